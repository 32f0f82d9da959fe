//! How viewers come and go: handshakes that wait their turn, those who never finish, and what is left of them.

use super::*;
use crate::latency::Arrival;

/// The viewer's next flight, as datagrams.
fn flight(peer: &mut Peer) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| {
        peer.client
            .poll_transmit()
            .map(|datagram| datagram.to_vec())
    })
    .collect()
}

impl World {
    /// A datagram comes in, and no handshake gets a turn.
    fn receive_only(&mut self, from: Path, datagram: &[u8]) {
        let wall = self.wall();
        let mut datagram = datagram.to_vec();
        self.core
            .handle_datagram(self.now, wall, from, &mut datagram, &mut self.outbox);
        self.collect();
    }

    /// The handshake that has waited longest gets a turn.
    fn one_handshake(&mut self) {
        let wall = self.wall();
        self.core.handle_handshake(self.now, wall, &mut self.outbox);
        self.collect();
    }
}

#[actix_rt::test]
async fn handshakes_wait_their_turn_while_checks_are_answered() {
    let mut world = World::new();
    let mut peers: Vec<Peer> = (1..=3).map(|i| world.join(i, vec![GCM])).collect();
    for peer in &mut peers {
        for datagram in flight(peer) {
            let username = format!("{}:remote", peer.ufrag);
            world.receive_only(peer.path, &check(&username, PWD, true));
            world.receive_only(peer.path, &datagram);
        }
    }
    let answered: Vec<_> = world.wire.drain(..).map(|(to, _)| to).collect();
    assert_eq!(answered, peers.iter().map(|p| p.path).collect::<Vec<_>>());
    assert!(world.core.has_handshakes());
    // First come, first served.
    for peer in &peers {
        world.one_handshake();
        assert!(world.wire.drain(..).all(|(to, _)| to == peer.path));
    }
    assert!(!world.core.has_handshakes());
}

#[actix_rt::test]
async fn one_viewer_cannot_fill_the_queue_of_handshakes() {
    let mut world = World::new();
    let mut hostile = world.join(1, vec![GCM]);
    let mut honest = world.join(2, vec![GCM]);
    world.check(&hostile);
    world.check(&honest);
    let hello = flight(&mut hostile);
    for _ in 0..10_000 {
        world.receive_only(hostile.path, &hello[0]);
    }
    for datagram in flight(&mut honest) {
        world.receive_only(honest.path, &datagram);
    }
    world.wire.clear();
    let mut turns = 0;
    while world.wire.iter().all(|(to, _)| *to != honest.path) {
        world.one_handshake();
        turns += 1;
    }
    assert!(turns < 20, "{turns}");
    world.exchange(&mut honest);
    assert!(world.connected(honest.id));
}

#[actix_rt::test]
async fn whoever_leaves_takes_his_waiting_handshake_along() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.check(&peer);
    for datagram in flight(&mut peer) {
        world.receive_only(peer.path, &datagram);
    }
    let wall = world.wall();
    world
        .core
        .handle_leave(wall, peer.id, EndReason::Left, &mut world.outbox);
    // Its place goes to another one, whose handshake this is not.
    let other = world.join(2, vec![GCM]);
    world.wire.clear();
    world.one_handshake();
    assert!(world.wire.is_empty());
    assert_eq!(
        other.counters.state.load(Ordering::Relaxed),
        ViewerState::New as u8
    );
    assert!(!world.core.has_handshakes());
}

#[actix_rt::test]
async fn whoever_stops_half_way_is_gone_within_thirty_seconds_and_leaves_nothing() {
    // How far each gets: nowhere, a check, half a handshake, connected.
    for steps in 0..4 {
        let mut world = World::new();
        let mut peer = world.join(1, vec![GCM]);
        if steps >= 1 {
            world.check(&peer);
        }
        if steps == 2 {
            for datagram in flight(&mut peer) {
                world.receive(peer.path, &datagram);
            }
        }
        if steps == 3 {
            world.exchange(&mut peer);
            assert!(world.connected(peer.id));
        }
        let expected = match steps {
            0 | 1 => EndReason::NeverConnected,
            2 => world.ended_after_half_a_handshake(&peer),
            _ => EndReason::Expired,
        };
        world.pass(SECOND * 31);
        assert_eq!(world.ended(peer.id), Some(expected), "{steps}");
        assert!(world.core.is_empty(), "{steps}");
        // What is left on the wheel goes when its time comes.
        world.pass(SECOND * 31);
        assert_eq!(world.core.poll_timeout(), None, "{steps}");
    }
}

impl World {
    /// Our flight goes unanswered, or the time to connect runs out, whatever is first.
    fn ended_after_half_a_handshake(&mut self, peer: &Peer) -> EndReason {
        self.pass(SECOND * 20);
        self.ended(peer.id).unwrap_or(EndReason::NeverConnected)
    }
}

#[actix_rt::test]
async fn viewers_who_come_and_go_leave_nothing() {
    let mut world = World::new();
    for round in 0..3 {
        let mut peers: Vec<Peer> = (0..20)
            .map(|i| world.join(round * 20 + i, vec![GCM]))
            .collect();
        for peer in &mut peers {
            world.check(peer);
            world.exchange(peer);
        }
        for _ in 0..10 {
            let picture = world.picture();
            world.send(picture);
        }
        for peer in peers {
            let wall = world.wall();
            world
                .core
                .handle_leave(wall, peer.id, EndReason::Left, &mut world.outbox);
        }
        world.work();
        assert!(world.core.is_empty());
    }
}

#[actix_rt::test]
async fn a_stream_that_turned_to_b_frames_since_the_offer_takes_nobody_for_its_pictures() {
    let mut world = World::new();
    let plain = Arc::clone(&world.info);
    let watching = world.join(1, vec![GCM]);
    let mut info = StreamInfo::clone(&world.info);
    for track in &mut info.tracks {
        track.reordered = track.configuration.kind() == MediaKind::Video;
    }
    let info = Arc::new(info);
    let join = world.join_of(&watching);
    let refused = world.core.handle_join(
        world.now,
        Join {
            viewer: ViewerId(2),
            local_ufrag: "u2".to_owned(),
            ..join
        },
        &info,
    );
    assert_eq!(refused, Err(JoinError::Reordered));
    // Sound alone is as good as before.
    let mut join = world.join_of(&watching);
    join.viewer = ViewerId(3);
    join.local_ufrag = "u3".to_owned();
    join.negotiated.video = None;
    assert_eq!(world.core.handle_join(world.now, join, &info), Ok(()));
    // Who joined a moment earlier waits for pictures without them.
    world.core.handle_info(&name(), &plain);
    world.core.handle_info(&name(), &info);
    world.collect();
    assert_eq!(world.ended(ViewerId(1)), None);
    assert_eq!(world.ended(ViewerId(3)), None);
}

#[actix_rt::test]
async fn first_packets_and_live_pictures_with_viewers_are_timed() {
    const MILLISECOND: Duration = Duration::from_millis(1);
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let picture = world.picture();
    world.send(picture);
    assert!(world.core.take_sent().first.is_empty());
    world.now += 40 * MILLISECOND;
    world.connect(&mut peer);
    assert_eq!(world.core.take_sent().first[..], [40 * MILLISECOND]);

    let unit = world.video.clone().next().unwrap();
    let came = world.now;
    let wall = unit.ingest_time.after(30 * MILLISECOND);
    let arrival = Arrival::new(came, wall, &unit);
    let picture = world.picture();
    world.now += 3 * MILLISECOND;
    let timing = Timing::new(came + MILLISECOND, arrival);
    world.core.handle_batch(timing, &name(), picture);
    world.now += 4 * MILLISECOND;
    world.work();
    let sent = world.core.take_sent();
    assert!(sent.first.is_empty(), "its first packet has left before");
    let begun = Some(came + 7 * MILLISECOND);
    assert_eq!(sent.finished[..], [Timing { begun, ..timing }]);
}
