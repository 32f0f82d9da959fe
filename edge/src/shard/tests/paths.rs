//! Viewers whose way to the edge changes, by UDP and TCP.

use super::super::paths::Transports;
use super::*;

fn udp(port: u16) -> Path {
    Path::udp(SocketAddr::from(([198, 51, 100, 7], port)))
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 9], port))
}

impl World {
    /// Pictures are sent for a while, at 30 a second.
    fn play(&mut self, pictures: usize) {
        for _ in 0..pictures {
            let picture = self.picture();
            self.send(picture);
            self.pass(Duration::from_millis(33));
        }
    }

    fn check_from(&mut self, peer: &Peer, path: Path, nominates: bool) {
        let username = format!("{}:remote", peer.ufrag);
        self.receive(path, &check(&username, PWD, nominates));
    }

    /// A viewer's receiver report, without report blocks.
    fn feedback_from(&mut self, peer: &mut Peer, path: Path) {
        let report = peer.feedback(&[0x80, 201, 0, 1, 0, 0, 0, 9]);
        self.receive(path, &report);
    }

    fn packets_on_the_wire(&self, path: Path) -> usize {
        self.wire
            .iter()
            .filter(|(to, data)| *to == path && data[0] >= 128 && !(192..224).contains(&data[1]))
            .count()
    }

    /// A viewer that is connected by TCP.
    fn join_by_tcp(&mut self, number: u64, address: SocketAddr) -> Peer {
        let mut peer = self.join(number, vec![GCM]);
        peer.path = Path::tcp(address);
        self.open(address);
        self.connect(&mut peer);
        peer
    }
}

#[actix_rt::test]
async fn a_viewer_whose_address_changes_goes_on_as_soon_as_it_reports_from_the_new_one() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    world.play(10);
    world.exchange(&mut peer);
    let old = peer.path;

    // Its NAT gave it another port: the old one is dead. Two pictures are lost with it.
    world.play(2);
    world.wire.clear();
    world.pass(SECOND);
    peer.path = udp(5);
    world.check(&peer);
    world.feedback_from(&mut peer, udp(5));
    world.play(10);
    assert_eq!(world.packets_on_the_wire(old), 0);
    world.exchange(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    // The numbers go on, so what was lost is asked for and nothing else.
    let last = video.last().unwrap().sequence;
    let first = video[0].sequence;
    let missing = usize::from(last.wrapping_sub(first)) + 1 - video.len();
    assert!((1..40).contains(&missing), "{missing}");
    assert!(world.ended(peer.id).is_none());

    // The old address is another viewer's now, or nobody's.
    world.pass(SECOND);
    world.receive(old, &[0x80, 201, 0, 1, 0, 0, 0, 9]);
    assert!(world.core.knows(udp(5)));
}

#[actix_rt::test]
async fn without_feedback_a_new_address_is_taken_after_three_seconds_of_silence() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let old = peer.path;
    world.check(&peer);
    for (seconds, moved) in [(1, false), (1, false), (1, true)] {
        world.pass(SECOND * seconds);
        world.check_from(&peer, udp(5), true);
        world.wire.clear();
        world.play(1);
        assert_eq!(world.packets_on_the_wire(udp(5)) > 0, moved);
        assert_eq!(world.packets_on_the_wire(old) > 0, !moved);
    }
}

#[actix_rt::test]
async fn an_address_that_is_alive_is_not_left_for_another_that_is_only_checked() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    world.play(1);
    world.exchange(&mut peer);
    // A browser with two interfaces keeps both pairs alive.
    for _ in 0..20 {
        world.check(&peer);
        world.check_from(&peer, udp(5), true);
        let path = peer.path;
        world.feedback_from(&mut peer, path);
        world.wire.clear();
        world.play(15);
        assert_eq!(world.packets_on_the_wire(udp(5)), 0);
        assert!(world.packets_on_the_wire(peer.path) > 0);
    }
}

#[actix_rt::test]
async fn a_viewer_moves_to_tcp_and_back_with_the_same_keys() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let home = peer.path;
    world.play(5);
    world.exchange(&mut peer);
    assert_eq!(world.core.transports(), Transports { udp: 1, tcp: 0 });

    // A network that lets no UDP through.
    world.open(at(1));
    world.pass(SECOND);
    peer.path = Path::tcp(at(1));
    world.check(&peer);
    world.feedback_from(&mut peer, Path::tcp(at(1)));
    assert_eq!(world.core.transports(), Transports { udp: 0, tcp: 1 });
    assert_eq!(peer.counters.transport.load(Ordering::Relaxed), 2);
    world.play(5);
    world.exchange(&mut peer);

    // Home again: TCP still answers, but the viewer uses UDP.
    peer.path = home;
    world.check(&peer);
    world.feedback_from(&mut peer, home);
    world.play(5);
    world.exchange(&mut peer);
    world.close(at(1));
    world.play(5);
    world.exchange(&mut peer);
    assert_eq!(world.core.transports(), Transports { udp: 1, tcp: 0 });
    assert_eq!(peer.counters.transport.load(Ordering::Relaxed), 1);

    let video = peer.of(VIDEO_SSRC);
    assert_continuous(&video);
    assert_eq!(video.iter().filter(|p| p.marker).count(), 20);
    let viewer = peer.id;
    let wall = world.wall();
    world
        .core
        .handle_leave(wall, viewer, EndReason::Left, &mut world.outbox);
    assert_eq!(world.core.transports(), Transports::default());
}

#[actix_rt::test]
async fn a_connection_that_stalls_skips_to_a_keyframe_and_its_neighbours_miss_nothing() {
    let mut world = World::new();
    let mut slow = world.join_by_tcp(1, at(1));
    let mut quick = world.join_by_tcp(2, at(2));
    let mut other = world.join(3, vec![GCM]);
    world.connect(&mut other);
    world.play(60);
    world.exchange(&mut slow);
    assert_eq!(slow.of(VIDEO_SSRC).iter().filter(|p| p.marker).count(), 60);
    let before = slow.of(VIDEO_SSRC).len();

    // Nothing is taken for five seconds, which hold keyframes 60, 120 and 180.
    world.connections.get_mut(&at(1)).unwrap().stalled = true;
    let mut sent = Vec::new();
    let mut largest = 0;
    for _ in 0..150 {
        let (picture, sound) = (world.picture(), world.sound());
        sent.push(payloads(&picture));
        world.send(picture);
        world.send(sound);
        world.pass(Duration::from_millis(33));
        // It does go on saying that it is there.
        world.check(&slow);
        let waiting = world.connections[&at(1)].backlog.bytes();
        largest = largest.max(waiting);
    }
    assert!(largest < 400 << 10, "bounded: {largest}");
    let counted = world.core.take_sent();
    assert_eq!(counted.tcp_skips, 1);
    assert!(counted.tcp_drops > 100, "{}", counted.tcp_drops);

    // The link is back.
    assert!(world.drain(at(1), usize::MAX) > 0);
    world.connections.get_mut(&at(1)).unwrap().stalled = false;
    for _ in 150..240 {
        let picture = world.picture();
        sent.push(payloads(&picture));
        world.send(picture);
        world.pass(Duration::from_millis(33));
    }
    for peer in [&mut slow, &mut quick, &mut other] {
        world.exchange(peer);
    }
    for peer in [&quick, &other] {
        let video = peer.of(VIDEO_SSRC);
        assert_continuous(&video);
        let all: Vec<_> = sent.iter().flatten().collect();
        let got = &video[video.len() - all.len()..];
        assert!(got.iter().map(|p| &p.payload).eq(all), "{}", peer.id);
    }
    // What its backlog took, then the next keyframe: whole pictures without a hole in their numbers.
    let video = slow.of(VIDEO_SSRC);
    assert_continuous(&video);
    let got: Vec<_> = video[before..].iter().map(|p| &p.payload).collect();
    let kept = sent
        .iter()
        .scan(0, |total, picture| {
            *total += picture.len();
            Some(*total)
        })
        .take_while(|total| *total <= got.len() && got[*total - 1] == &sent_at(&sent, *total - 1))
        .count();
    assert!((10..60).contains(&kept), "{kept}");
    let expected: Vec<_> = sent[..kept].iter().chain(&sent[180..]).flatten().collect();
    assert_eq!(got, expected);
}

/// The packet with this index in a list of pictures.
fn sent_at(sent: &[Vec<Vec<u8>>], index: usize) -> Vec<u8> {
    sent.iter().flatten().nth(index).unwrap().clone()
}

#[actix_rt::test]
async fn a_viewer_whose_connection_closed_comes_back_by_another_at_the_newest_keyframe() {
    let mut world = World::new();
    let mut peer = world.join_by_tcp(1, at(1));
    world.play(30);
    world.exchange(&mut peer);
    let before = peer.of(VIDEO_SSRC).len();

    world.close(at(1));
    assert_eq!(world.core.transports(), Transports::default());
    assert!(!world.core.knows(Path::tcp(at(1))));
    let gone: Vec<_> = (0..60).map(|_| world.picture()).collect();
    for picture in &gone {
        world.send(Arc::clone(picture));
        world.pass(Duration::from_millis(33));
    }
    assert_eq!(world.core.viewers(), 1);

    world.open(at(2));
    peer.path = Path::tcp(at(2));
    world.check(&peer);
    world.work();
    world.pass(Duration::from_secs(1));
    world.play(1);
    world.exchange(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    assert_continuous(&video);
    // Pictures 30 to 89 were missed; the newest keyframe is the 60th.
    let expected: Vec<_> = gone[30..].iter().flat_map(|b| payloads(b)).collect();
    let got: Vec<_> = video[before..].iter().map(|p| p.payload.clone()).collect();
    assert_eq!(got[..expected.len()], expected);
    assert!(got.len() > expected.len(), "and it goes on");

    // Nobody comes back this time.
    world.close(at(2));
    world.pass(SECOND * 31);
    assert_eq!(world.ended(peer.id), Some(EndReason::Expired));
}

#[actix_rt::test]
async fn a_short_interruption_costs_no_picture() {
    let mut world = World::new();
    let mut peer = world.join_by_tcp(1, at(1));
    world.play(10);
    world.exchange(&mut peer);
    world.close(at(1));
    world.play(5);
    world.open(at(2));
    peer.path = Path::tcp(at(2));
    world.check(&peer);
    world.play(5);
    world.pass(Duration::from_millis(400));
    world.exchange(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    assert_continuous(&video);
    assert_eq!(video.iter().filter(|p| p.marker).count(), 20);
}

#[actix_rt::test]
async fn a_handshake_goes_on_over_another_connection() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    peer.path = Path::tcp(at(1));
    world.open(at(1));
    world.check(&peer);
    // The ClientHello arrives; the answer is lost with the connection.
    while let Some(datagram) = peer.client.poll_transmit() {
        world.receive(peer.path, &datagram);
    }
    assert!(!world.wire.is_empty());
    world.wire.clear();
    world.close(at(1));
    // Nothing is due while there is nowhere to send to.
    world.pass(Duration::from_millis(600));
    assert!(world.wire.is_empty());

    peer.path = Path::tcp(at(2));
    world.open(at(2));
    world.check(&peer);
    world.pass(SECOND * 2);
    world.exchange(&mut peer);
    // The client repeats its hello by its own timer; ours repeats the flight.
    for _ in 0..10 {
        world.pass(SECOND);
        peer.client.handle_timeout(world.now);
        world.exchange(&mut peer);
    }
    assert!(world.connected(peer.id));
}

#[actix_rt::test]
async fn an_answered_flight_is_not_repeated_over_tcp() {
    let mut world = World::new();
    let mut peer = world.join_by_tcp(1, at(1));
    let flights = |world: &World| {
        let dtls = |(_, data): &&(Path, Vec<u8>)| (20..64).contains(&data[0]);
        world.wire.iter().filter(dtls).count()
    };
    world.exchange(&mut peer);
    world.pass(SECOND * 5);
    assert_eq!(flights(&world), 0);
}

#[actix_rt::test]
async fn too_many_connections_of_a_viewer_are_closed_oldest_first_and_all_with_it() {
    let mut world = World::new();
    let mut peer = world.join_by_tcp(1, at(1));
    for port in 2..=20 {
        world.open(at(port));
        world.pass(Duration::from_millis(10));
        world.check_from(&peer, Path::tcp(at(port)), false);
    }
    world.collect();
    let disused = |world: &World| -> Vec<u16> {
        let port = |event: &Event| match event {
            Event::Disused { address } => Some(address.port()),
            _ => None,
        };
        world.events.iter().filter_map(port).collect()
    };
    assert_eq!(disused(&world), (2..=13).collect::<Vec<_>>());
    let wall = world.wall();
    world
        .core
        .handle_leave(wall, peer.id, EndReason::Left, &mut world.outbox);
    world.collect();
    assert_eq!(disused(&world).len(), 20);
    world.exchange(&mut peer);
    assert!(peer.closed, "the goodbye goes out before the connection");
}

#[actix_rt::test]
async fn a_connection_without_a_valid_check_is_nobodys() {
    let mut world = World::new();
    let _peer = world.join(1, vec![GCM]);
    world.open(at(1));
    let path = Path::tcp(at(1));
    for frame in [
        check("u1:remote", "another password", true),
        check("u1:somebody", PWD, true),
        check("nobody:remote", PWD, true),
        vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        world.receive(path, &frame);
        assert!(!world.core.knows(path));
    }
    assert!(world.wire.is_empty());
}
