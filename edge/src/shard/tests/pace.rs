//! Joining and watching over links of all kinds: the pacer, the estimate it follows, and the way up to the live edge.

use headwater_media::bwe::Estimator;
use headwater_media::testkit::{Conditions, Link};

use super::super::feedback::Sample;
use super::*;

/// How often a browser tells what arrived.
const FEEDBACK: Duration = Duration::from_millis(100);
/// How often it shows that it still agrees to receive.
const CHECK: Duration = Duration::from_millis(2500);
const PICTURE: Duration = Duration::from_micros(33_333);
const STEP: Duration = Duration::from_millis(1);

/// A stream, one viewer of it, and the link between.
struct Scene {
    world: World,
    peer: Peer,
    link: Link<Vec<u8>>,
    estimator: Estimator,
    informed: bool,
    began: Instant,
    next_picture: Instant,
    pictures_sent: u32,
    check_at: Instant,
    feedback_at: Instant,
    feedback_count: u8,
    /// Transport-wide sequence numbers and arrivals that are still to be told.
    untold: Vec<(u16, Instant)>,
    untold_bytes: u64,
    told: Option<u16>,
    /// Packets told of as arrived, and what was heard of them.
    told_packets: u64,
    told_bytes: u64,
    heard_packets: u64,
    heard_bytes: u64,
    heard_lost: u64,
    /// Number and arrival of each picture, in the order they arrived.
    shown: Vec<(u64, Instant)>,
    /// Number of the picture that is arriving.
    arriving: Option<u64>,
    next_sequence: Option<u16>,
    longest_queue: Duration,
    /// A packet did not arrive; nothing here repairs it.
    lost: bool,
}

/// What the scene is about.
struct Plan {
    bits_per_second: u32,
    gop: u32,
    link: Conditions,
    informed: bool,
    /// Pictures published before the viewer joins.
    before: u32,
}

fn link(rate: u64) -> Conditions {
    Conditions {
        rate: Some(rate),
        // 200 ms, as a home router has.
        queue_bytes: usize::try_from(rate / 40).unwrap(),
        delay: Duration::from_millis(20),
        ..Conditions::default()
    }
}

impl Scene {
    fn new(plan: &Plan) -> Self {
        let mut world = World::new();
        world.video = Video::new(
            VideoOptions {
                bits_per_second: plan.bits_per_second,
                gop: plan.gop,
                ..VideoOptions::default()
            },
            7,
        );
        let mut peer = world.join_with(1, vec![GCM], |negotiated| {
            for media in [&mut negotiated.video, &mut negotiated.audio]
                .into_iter()
                .flatten()
            {
                media.transport_cc = plan.informed;
                media.extensions.transport_sequence = plan.informed.then_some(TRANSPORT_SEQUENCE);
                media.extensions.playout_delay = Some(PLAYOUT_DELAY);
            }
        });
        let backlog: Vec<_> = (0..plan.before).map(|_| world.picture()).collect();
        world.core.handle_backlog(world.now, &name(), &backlog);
        world.check(&peer);
        world.exchange(&mut peer);
        let now = world.now;
        Self {
            world,
            peer,
            link: Link::new(plan.link, 3, now),
            estimator: Estimator::default(),
            informed: plan.informed,
            began: now,
            next_picture: now,
            pictures_sent: plan.before,
            check_at: now + CHECK,
            feedback_at: now + FEEDBACK,
            feedback_count: 0,
            untold: Vec::new(),
            untold_bytes: 0,
            told: None,
            told_packets: 0,
            told_bytes: 0,
            heard_packets: 0,
            heard_bytes: 0,
            heard_lost: 0,
            shown: Vec::new(),
            arriving: None,
            next_sequence: None,
            longest_queue: Duration::ZERO,
            lost: false,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.world.now + time;
        while self.world.now < end {
            self.world.pass(STEP);
            let now = self.world.now;
            if now >= self.next_picture {
                self.next_picture += PICTURE;
                self.pictures_sent += 1;
                let picture = self.world.picture();
                self.world.send(picture);
            }
            if now >= self.check_at {
                self.check_at = now + CHECK;
                self.world.check(&self.peer);
            }
            self.world.work();
            while let Some((to, datagram)) = self.world.wire.pop_front() {
                assert_eq!(to, self.peer.path);
                self.link.send(now, datagram.len() + 28, datagram);
            }
            self.longest_queue = self.longest_queue.max(self.link.queued(now));
            while let Some((at, datagram)) = self.link.poll_arrived(now) {
                self.receive(at, &datagram);
            }
            if self.informed && now >= self.feedback_at {
                self.feedback_at = now + FEEDBACK;
                self.tell();
            }
            self.measure();
        }
    }

    fn receive(&mut self, at: Instant, datagram: &[u8]) {
        let before = self.peer.packets.len();
        self.peer.handle(at, datagram);
        let Some(packet) = self.peer.packets.get(before).cloned() else {
            return;
        };
        if let Some(number) = packet.transport_sequence {
            self.untold.push((number, at));
            self.untold_bytes += datagram.len() as u64;
        }
        if packet.ssrc != VIDEO_SSRC {
            return;
        }
        let whole = self
            .next_sequence
            .is_none_or(|next| next == packet.sequence);
        self.next_sequence = Some(packet.sequence.wrapping_add(1));
        self.lost |= !whole;
        self.arriving = number_in(&packet.payload).or(self.arriving);
        if packet.marker {
            self.shown.push((self.arriving.expect("it began"), at));
        }
    }

    /// Sends transport-wide feedback of what arrived since the last one.
    fn tell(&mut self) {
        let Some(&(first, _)) = self.untold.first() else {
            return;
        };
        let base = self.told.map_or(first, |told| told.wrapping_add(1));
        let reference = self.untold[0].1 - self.began;
        let reference = u32::try_from(reference.as_millis() / 64).unwrap();
        let mut last = u64::from(reference) * 64_000;
        let count = self.untold.last().unwrap().0.wrapping_sub(base) + 1;
        self.told_packets += self.untold.len() as u64;
        self.told_bytes += std::mem::take(&mut self.untold_bytes);
        let mut chunks: Vec<u16> = Vec::new();
        let mut deltas = Vec::new();
        for (number, at) in self.untold.drain(..) {
            while base.wrapping_add(u16::try_from(chunks.len()).unwrap()) != number {
                // A run of one packet that did not come.
                chunks.push(0x0001);
            }
            let micros = u64::try_from((at - self.began).as_micros()).unwrap() / 250 * 250;
            let delta = i16::try_from((micros.cast_signed() - last.cast_signed()) / 250).unwrap();
            last = micros;
            // A run of one packet with a two-byte delta.
            chunks.push(0x4001);
            deltas.push(delta);
            self.told = Some(number);
        }
        let mut message = vec![0x8f, 205, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend(base.to_be_bytes());
        message.extend(count.to_be_bytes());
        message.extend(&reference.to_be_bytes()[1..]);
        message.push(self.feedback_count);
        message.extend(chunks.iter().flat_map(|chunk| chunk.to_be_bytes()));
        message.extend(deltas.iter().flat_map(|delta| delta.to_be_bytes()));
        message.resize(message.len().next_multiple_of(4), 0);
        let words = u16::try_from(message.len() / 4 - 1).unwrap();
        message[2..4].copy_from_slice(&words.to_be_bytes());
        self.feedback_count = self.feedback_count.wrapping_add(1);
        let sealed = self.peer.feedback(&message);
        // The way back takes the same delay, but nothing here depends on it.
        self.world.receive(self.peer.path, &sealed);
    }

    /// What the viewer's actor does with it.
    fn measure(&mut self) {
        for event in std::mem::take(&mut self.world.events) {
            let Event::Measured {
                sample: Sample::Arrivals(arrivals),
                ..
            } = event
            else {
                continue;
            };
            self.heard_packets += u64::from(arrivals.received);
            self.heard_lost += u64::from(arrivals.lost);
            self.heard_bytes += arrivals.bytes;
            let now = self.world.now;
            if let Some(estimate) = self.estimator.handle_arrivals(now, &arrivals) {
                self.world.core.handle_estimate(now, self.peer.id, estimate);
            }
        }
    }

    /// The longest time without a new picture, once there was one.
    fn longest_gap(&self) -> Duration {
        self.shown
            .windows(2)
            .map(|pair| pair[1].1 - pair[0].1)
            .max()
            .unwrap()
    }

    /// How long the pictures of the last second were on their way, at most.
    fn lateness(&self) -> Duration {
        let (_, end) = self.shown.last().unwrap();
        let newest = u64::from(self.pictures_sent) - 1;
        let sent = self.next_picture - PICTURE;
        self.shown
            .iter()
            .filter(|(_, at)| *end - *at < SECOND)
            .map(|(number, at)| *at - (sent - PICTURE * u32::try_from(newest - number).unwrap()))
            .max()
            .unwrap()
    }
}

/// The number of the picture that a packet begins: it stands in an SEI, alone or in a STAP-A.
fn number_in(payload: &[u8]) -> Option<u64> {
    let marked = payload
        .windows(16)
        .position(|bytes| bytes == b"headwater-number")?;
    let digits = payload.get(marked + 16..marked + 32)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[actix_rt::test]
async fn joining_is_smooth_and_ends_at_the_live_edge_whatever_the_link() {
    for rate in [20_000_000, 6_000_000, 3_000_000] {
        for gop in [15, 60, 300] {
            for before in [gop + 2, gop + gop / 2, gop + gop - 2] {
                let plan = Plan {
                    bits_per_second: 1_500_000,
                    gop,
                    link: link(rate),
                    informed: true,
                    before,
                };
                let mut scene = Scene::new(&plan);
                scene.run(Duration::from_secs(12));
                let case = format!("{rate} bit/s, GOP of {gop}, joined at {before}");
                assert!(!scene.lost, "{case}");
                // The largest keyframes have 81 kB, 217 ms on the slowest of these links.
                let keyframe = Duration::from_micros(81_000 * 8_000_000 / rate);
                let first = scene.shown[0].1 - scene.began;
                assert!(
                    first < Duration::from_millis(200) + keyframe,
                    "{case}: {first:?}"
                );
                let gap = scene.longest_gap();
                assert!(
                    gap < Duration::from_millis(120) + keyframe,
                    "{case}: {gap:?}"
                );
                let late = scene.lateness();
                assert!(
                    late < Duration::from_millis(120) + keyframe,
                    "{case}: {late:?} late"
                );
            }
        }
    }
}

#[actix_rt::test]
async fn a_keyframe_does_not_burst_onto_a_narrow_link() {
    let plan = Plan {
        bits_per_second: 2_000_000,
        gop: 60,
        link: link(3_000_000),
        informed: true,
        before: 62,
    };
    let mut scene = Scene::new(&plan);
    scene.run(Duration::from_secs(4));
    scene.longest_queue = Duration::ZERO;
    scene.run(Duration::from_secs(10));
    // Keyframes of up to 109 kB would stand there for 290 ms.
    let queue = scene.longest_queue;
    assert!(queue < Duration::from_millis(150), "{queue:?}");
}

#[actix_rt::test]
async fn a_link_below_the_rendition_costs_pictures_and_not_latency() {
    let plan = Plan {
        bits_per_second: 2_500_000,
        gop: 30,
        link: link(1_500_000),
        informed: true,
        before: 31,
    };
    let mut scene = Scene::new(&plan);
    scene.run(Duration::from_secs(20));
    let late = scene.lateness();
    assert!(late < Duration::from_millis(1500), "{late:?}");
    assert!(scene.world.core.take_sent().skips > 0);
}

#[actix_rt::test]
async fn a_viewer_without_feedback_is_not_paced_once_it_is_live() {
    let plan = Plan {
        bits_per_second: 1_500_000,
        gop: 60,
        link: Conditions::default(),
        informed: false,
        before: 90,
    };
    let mut scene = Scene::new(&plan);
    scene.run(Duration::from_secs(4));
    let late = scene.lateness();
    assert!(late <= 2 * STEP, "{late:?}");
}

#[actix_rt::test]
async fn a_run_up_that_overflowed_is_not_repeated_before_the_next_keyframe() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let gop: Vec<_> = (0..40).map(|_| world.picture()).collect();
    world.core.handle_backlog(world.now, &name(), &gop);
    world.check(&peer);
    world.exchange(&mut peer);
    world.work();
    world.exchange(&mut peer);
    let lost = peer.of(VIDEO_SSRC)[3].sequence;
    let mut nack = vec![0x81, 205, 0, 3, 0, 0, 0, 1];
    nack.extend_from_slice(&VIDEO_SSRC.to_be_bytes());
    nack.extend_from_slice(&lost.to_be_bytes());
    nack.extend_from_slice(&[0, 0]);
    let nack = peer.feedback(&nack);
    world.receive(peer.path, &nack);

    let slot = world.core.slot(peer.id).unwrap();
    let position = |world: &World| world.core.peers[slot].video.as_ref().unwrap().position;
    // Each wish finds the viewer waiting, also once nothing is left to send.
    for _ in 0..3 {
        assert_eq!(world.core.handle_keyframe(world.now, peer.id), "resent");
        assert_eq!(position(&world), None);
        world.pass(Duration::from_millis(500));
        world.work();
    }
    let keyframe = loop {
        let picture = world.picture();
        world.send_whole(Arc::clone(&picture));
        if picture.keyframe {
            break picture;
        }
        assert_eq!(position(&world), None);
    };
    world.exchange(&mut peer);
    let sent = peer.of(VIDEO_SSRC);
    assert_eq!(
        sent.last().unwrap().payload,
        *payloads(&keyframe).last().unwrap()
    );
}

#[actix_rt::test]
async fn pictures_of_the_run_up_are_to_be_shown_as_they_come_and_later_ones_when_they_are_due() {
    let plan = Plan {
        bits_per_second: 1_500_000,
        gop: 60,
        link: link(6_000_000),
        informed: true,
        before: 45,
    };
    let mut scene = Scene::new(&plan);
    scene.run(Duration::from_secs(8));
    let said: Vec<_> = scene
        .peer
        .of(VIDEO_SSRC)
        .iter()
        .filter(|packet| packet.marker)
        .map(|packet| packet.playout_delay)
        .collect();
    // At once (0 to 400 ms), then libwebrtc's own bounds again (0 to 10 s), then nothing more.
    let at_once = said.iter().take_while(|said| **said == Some(40)).count();
    let taken_back = said[at_once..]
        .iter()
        .take_while(|said| **said == Some(1000))
        .count();
    assert!((90..180).contains(&at_once), "{at_once}");
    assert_eq!(taken_back, 60);
    assert!(said[at_once + taken_back..].iter().all(Option::is_none));
    assert!(said.len() > at_once + taken_back, "{}", said.len());
    let sound = scene.peer.of(AUDIO_SSRC);
    assert!(sound.iter().all(|packet| packet.playout_delay.is_none()));
}

#[actix_rt::test]
async fn pictures_leave_at_the_pace_of_a_link_that_changes() {
    let plan = Plan {
        bits_per_second: 1_500_000,
        gop: 60,
        link: link(20_000_000),
        informed: true,
        before: 62,
    };
    let mut scene = Scene::new(&plan);
    let slot = scene.world.core.slot(scene.peer.id).unwrap();
    let pace = |scene: &Scene| {
        let pacer = &scene.world.core.peers[slot].pacer;
        pacer.rate(scene.world.now).0
    };
    let unknown = pace(&scene);
    scene.run(Duration::from_secs(8));
    let wide = pace(&scene);
    assert!(wide > unknown, "{wide}");

    let now = scene.world.now;
    scene.link = Link::new(link(2_500_000), 4, now);
    scene.run(Duration::from_secs(10));
    let narrow = pace(&scene);
    assert!(narrow < wide / 2, "{narrow} after {wide}");
    // Nothing is lost for it, and keyframes of up to 81 kB, 260 ms of this link, don't stand there whole.
    scene.longest_queue = Duration::ZERO;
    scene.run(Duration::from_secs(6));
    let queue = scene.longest_queue;
    assert!(queue < Duration::from_millis(150), "{queue:?}");

    let now = scene.world.now;
    scene.link = Link::new(link(20_000_000), 5, now);
    scene.run(Duration::from_secs(15));
    let again = pace(&scene);
    assert!(again > narrow * 2, "{again} after {narrow}");
}

#[actix_rt::test]
async fn feedback_is_understood_across_the_wrap_of_transport_wide_numbers() {
    let plan = Plan {
        bits_per_second: 6_000_000,
        gop: 60,
        link: Conditions::default(),
        informed: true,
        before: 1,
    };
    let mut scene = Scene::new(&plan);
    while scene.told_packets < 70_000 {
        let before = (scene.told_packets, scene.heard_packets);
        scene.run(SECOND);
        assert!(scene.told_packets > before.0, "it goes on: {before:?}");
        assert_eq!(scene.heard_packets, scene.told_packets);
        // Each was recognised as the packet that it is.
        assert_eq!(scene.heard_bytes, scene.told_bytes);
        assert_eq!(scene.heard_lost, 0);
        let late = scene.lateness();
        // A keyframe of 325 kB, paced.
        assert!(late < Duration::from_millis(300), "{late:?}");
        // What was looked at is not kept.
        scene.peer.packets.clear();
        let old = scene.shown.len().saturating_sub(40);
        scene.shown.drain(..old);
    }
    // Without the wrap's packets taken for others, the link is still as wide as it is.
    let estimate = scene.estimator.estimate().unwrap();
    assert!(
        !estimate.overused && estimate.rate.0 > 6_000_000,
        "{estimate:?}"
    );
}

#[actix_rt::test]
async fn what_comes_at_once_is_made_up_for_in_a_moment_and_whole() {
    let mut world = World::new();
    let options = VideoOptions {
        bits_per_second: 8_000_000,
        ..VideoOptions::default()
    };
    world.video = Video::new(options, 7);
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    for _ in 0..60 {
        let picture = world.picture();
        world.send(picture);
        world.pass(PICTURE);
    }
    world.exchange(&mut peer);
    let before = peer.of(VIDEO_SSRC).len();

    // The way to the upstream is whole again after 3 s.
    let late: Vec<_> = (0..90).map(|_| world.picture()).collect();
    for picture in &late {
        world.send(Arc::clone(picture));
    }
    let (began, slot) = (world.now, world.core.slot(peer.id).unwrap());
    while world.core.peers[slot].catching_up {
        // No rendition below it is any better.
        let wait = world.core.wait(world.now, slot, &world.outbox);
        assert_eq!(wait, Duration::ZERO);
        // A shard wakes a moment after its timer.
        let due = world.core.poll_timeout().unwrap();
        world.now = due.max(world.now) + Duration::from_micros(200);
        let wall = world.wall();
        world
            .core
            .handle_timeout(world.now, wall, &mut world.outbox);
        world.work();
    }
    // 3 MB at 64 Mbit/s.
    let took = world.now - began;
    assert!(took < Duration::from_millis(450), "{took:?}");
    world.exchange(&mut peer);
    let sent = peer.of(VIDEO_SSRC);
    assert_continuous(&sent);
    let sent: Vec<_> = sent[before..].iter().map(|p| p.payload.clone()).collect();
    let expected: Vec<_> = late.iter().flat_map(|batch| payloads(batch)).collect();
    assert!(sent == expected, "{} of {}", sent.len(), expected.len());
}
