//! Both halves against each other over a link that is slow, jittery and cut, under virtual time from a seed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::clock::Exchange;
use super::receiver::{self, Received};
use super::sender::{self, GapReason};
use super::*;
use crate::time::{MediaTime, WallTime};
use crate::track::{Configuration, StreamInfo, Track};
use crate::unit::AccessUnit;
use crate::{codec::h264, testkit};

const VIDEO: TrackId = TrackId::SOURCE_VIDEO;
const AUDIO: TrackId = TrackId::OPUS;
const FRAME: Duration = Duration::from_millis(40);
const GOP: u64 = 25;

fn info(epoch: u64) -> Arc<StreamInfo> {
    let video = h264::Configuration {
        avcc: Bytes::new(),
        sps: Vec::new(),
        pps: Vec::new(),
        profile_level_id: [0x42, 0, 0x1f],
        width: 1280,
        height: 720,
        max_reorder_frames: None,
    };
    let video = testkit::track(VIDEO, Configuration::H264(video));
    Arc::new(testkit::stream_info(
        epoch,
        vec![video, testkit::opus_track()],
    ))
}

fn unit(track: TrackId, epoch: u64, sequence: u64, bytes: usize) -> Arc<AccessUnit> {
    let dts = MediaTime::from_millis(i64::try_from(sequence).expect("small") * 40);
    Arc::new(AccessUnit {
        keyframe: track == AUDIO || sequence.is_multiple_of(GOP),
        payload: Bytes::from(vec![0; bytes]),
        ingest_time: WallTime::from_unix_micros(1_000_000),
        ..testkit::unit(track, epoch, sequence, dts)
    })
}

/// An upstream, a link with a rate, and a subscriber.
struct Scene {
    now: Instant,
    rng: testkit::Rng,
    sender: Sender,
    receiver: Receiver,
    /// Bytes per millisecond that the link carries; 0: it stands still.
    rate: i64,
    /// Bytes that may go now; below zero while a unit is being carried.
    credit: i64,
    /// Sent, with the time at which the last of it arrives.
    down: VecDeque<(Instant, sender::Output)>,
    up: VecDeque<(Instant, receiver::Output)>,
    next: u64,
    epoch: u64,
    frame_bytes: usize,
    next_frame: Instant,
    got: Vec<(TrackId, u64, u64)>,
    lost: u64,
    gaps: Vec<(TrackId, u64, GapReason)>,
    widest: (usize, usize),
}

impl Scene {
    fn new(seed: u64) -> Self {
        let now = testkit::start();
        let mut sender = Sender::new(sender::Config::default(), vec![VIDEO, AUDIO], &[]);
        sender.handle_info(info(1));
        let mut receiver = Receiver::default();
        receiver.handle_connected(now);
        Self {
            now,
            rng: testkit::Rng::new(seed),
            sender,
            receiver,
            rate: 10_000,
            credit: 0,
            down: VecDeque::new(),
            up: VecDeque::new(),
            next: 0,
            epoch: 1,
            frame_bytes: 20_000,
            next_frame: now,
            got: Vec::new(),
            lost: 0,
            gaps: Vec::new(),
            widest: (0, 0),
        }
    }

    fn latency(&mut self) -> Duration {
        Duration::from_millis(5 + self.rng.next() % 30)
    }

    /// Runs in steps of a millisecond.
    fn run(&mut self, span: Duration) {
        for _ in 0..span.as_millis() {
            self.now += Duration::from_millis(1);
            self.publish();
            self.transmit();
            self.receive();
            let (flying, waiting) = self.sender.held_bytes();
            self.widest = (self.widest.0.max(flying), self.widest.1.max(waiting));
        }
    }

    fn publish(&mut self) {
        if self.now < self.next_frame {
            return;
        }
        self.next_frame += FRAME;
        for (track, bytes) in [(VIDEO, self.frame_bytes), (AUDIO, 200)] {
            let unit = unit(track, self.epoch, self.next, bytes);
            self.sender.handle_unit(self.now, unit);
        }
        self.next += 1;
    }

    fn transmit(&mut self) {
        self.credit = if self.rate == 0 {
            0
        } else {
            (self.credit + self.rate).min(self.rate * 50)
        };
        while self.credit > 0 {
            let Some(output) = self.sender.poll_output(self.now) else {
                break;
            };
            if let sender::Output::Unit(unit) = &output {
                self.credit -= i64::try_from(unit.payload.len()).expect("small");
            }
            let arrival = self.now + self.latency();
            let last = self.down.back().map_or(arrival, |(at, _)| *at);
            self.down.push_back((arrival.max(last), output));
        }
    }

    fn receive(&mut self) {
        while self.down.front().is_some_and(|(at, _)| *at <= self.now) {
            let Some((_, output)) = self.down.pop_front() else {
                break;
            };
            match output {
                sender::Output::Info(info) => {
                    self.receiver.handle_info(&info).expect("a fresh epoch");
                }
                sender::Output::Gap {
                    track,
                    lost,
                    reason,
                    ..
                } => self.gaps.push((track, lost, reason)),
                sender::Output::Unit(unit) => {
                    let received = self.receiver.handle_unit(self.now, unit.as_ref().clone());
                    if let Received::Deliver { lost, unit } = received {
                        self.lost += lost;
                        self.got.push((unit.track, unit.epoch.0, unit.sequence));
                    }
                }
            }
        }
        while let Some(output) = self.receiver.poll_output(self.now) {
            let arrival = self.now + self.latency();
            self.up.push_back((arrival, output));
        }
        while self.rate > 0 && self.up.front().is_some_and(|(at, _)| *at <= self.now) {
            match self.up.pop_front() {
                Some((_, receiver::Output::Ack { units })) => {
                    self.sender
                        .handle_ack(self.now, units)
                        .expect("no more than was sent");
                }
                Some((_, receiver::Output::Ping)) => self.receiver.handle_life(),
                None => break,
            }
        }
    }

    fn video(&self) -> Vec<u64> {
        let video = self.got.iter().filter(|(track, ..)| *track == VIDEO);
        video.map(|(_, _, sequence)| *sequence).collect()
    }
}

fn gapless(sequences: &[u64]) -> bool {
    sequences.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

#[test]
fn a_link_that_keeps_up_loses_nothing() {
    for seed in 0..5 {
        let mut scene = Scene::new(seed);
        scene.run(Duration::from_secs(10));
        assert!(gapless(&scene.video()), "seed {seed}");
        assert!(scene.video().len() > 245, "seed {seed}");
        assert_eq!((scene.lost, scene.gaps.len()), (0, 0), "seed {seed}");
        assert!(!scene.receiver.upstream_dead());
    }
}

#[test]
fn a_slow_subscriber_skips_to_keyframes_within_its_window() {
    for seed in 0..5 {
        let mut scene = Scene::new(seed);
        scene.frame_bytes = 100_000; // 20 Mbit/s
        scene.rate = 800; // 6.4 Mbit/s
        scene.run(Duration::from_secs(60));
        let video = scene.video();
        assert!(!gapless(&video), "seed {seed}: it can't have all");
        for pair in video.windows(2).filter(|pair| pair[1] != pair[0] + 1) {
            assert!(
                pair[1].is_multiple_of(GOP),
                "seed {seed}: goes on at a keyframe"
            );
        }
        assert!(scene.lost > 0 && scene.sender.skipped_units() > 0);
        let overflow = |gap: &(TrackId, u64, GapReason)| gap.2 == GapReason::Overflow;
        assert!(scene.gaps.iter().all(overflow), "{:?}", scene.gaps);
        let bound = (8 << 20) + 100_000;
        assert!(
            scene.widest.0 <= bound && scene.widest.1 <= bound,
            "{:?}",
            scene.widest
        );
        // What arrives is of late: no more than both windows' two seconds old, and the GOP it belongs to.
        let newest = video.last().copied().unwrap_or(0);
        assert!(
            scene.next - newest < 25 * 6,
            "seed {seed}: {newest} of {}",
            scene.next
        );
    }
}

#[test]
fn a_stall_is_followed_by_a_keyframe_not_by_old_pictures() {
    let mut scene = Scene::new(7);
    scene.run(Duration::from_secs(2));
    scene.rate = 0;
    scene.run(Duration::from_secs(20));
    let before = scene.video().len();
    let stalled_at = scene.next;
    scene.rate = 10_000;
    scene.run(Duration::from_secs(3));
    let after = scene.video().split_off(before);
    let fresh = after
        .iter()
        .find(|&&sequence| sequence + 3 * GOP > stalled_at);
    assert!(
        fresh.is_some_and(|sequence| sequence.is_multiple_of(GOP)),
        "{after:?}"
    );
    // Eight seconds' worth.
    assert!(scene.widest.1 <= 5 << 20, "{:?}", scene.widest);
}

#[test]
fn a_subscriber_that_was_stopped_for_less_than_the_resume_window_misses_nothing() {
    for (seed, stopped) in [(1, 3), (2, 5), (3, 7)] {
        let mut scene = Scene::new(seed);
        scene.run(Duration::from_secs(2));
        scene.rate = 0;
        scene.run(Duration::from_secs(stopped));
        scene.rate = 10_000;
        scene.run(Duration::from_secs(3));
        assert!(gapless(&scene.video()), "{stopped} s");
        assert_eq!((scene.lost, scene.gaps.len()), (0, 0), "{stopped} s");
        let newest = scene.video().last().copied().expect("pictures");
        assert!(scene.next - newest < 5, "it has caught up: {stopped} s");
    }
}

#[test]
fn one_that_goes_on_over_too_narrow_a_link_skips_as_any_slow_one() {
    let mut scene = Scene::new(4);
    scene.run(Duration::from_secs(2));
    scene.rate = 0;
    scene.run(Duration::from_secs(6));
    scene.frame_bytes = 100_000;
    scene.rate = 800;
    scene.run(Duration::from_secs(20));
    assert!(scene.sender.skipped_units() > 0);
    let newest = scene.video().last().copied().expect("pictures");
    assert!(scene.next - newest < 25 * 6, "{newest} of {}", scene.next);
}

#[test]
fn an_acknowledgement_that_found_no_room_is_said_again() {
    let now = testkit::start();
    let mut receiver = Receiver::default();
    receiver.handle_connected(now);
    receiver.handle_info(&info(1)).expect("the first epoch");
    receiver.handle_unit(now, unit(VIDEO, 1, 0, 10).as_ref().clone());
    let later = now + receiver::ACK_INTERVAL;
    let ack = receiver::Output::Ack { units: 1 };
    // Nothing more comes, for the window is closed until it is said.
    for round in 1..4 {
        let at = now + receiver::ACK_INTERVAL * round;
        assert_eq!(receiver.poll_output(at), Some(ack), "round {round}");
        assert_eq!(receiver.poll_output(at), None);
        receiver.handle_unsent(at, ack);
    }
    assert_eq!(
        receiver.poll_timeout(),
        Some(later + receiver::ACK_INTERVAL * 3)
    );
}

#[test]
fn a_refusing_consumer_gets_the_track_back_at_a_keyframe() {
    let mut receiver = Receiver::default();
    let now = testkit::start();
    receiver.handle_connected(now);
    receiver.handle_info(&info(1)).expect("the first epoch");
    let mut delivered = Vec::new();
    for sequence in 0..60 {
        let received = receiver.handle_unit(now, unit(VIDEO, 1, sequence, 10).as_ref().clone());
        if let Received::Deliver { lost, unit } = received {
            delivered.push((unit.sequence, lost));
            if sequence == 30 {
                receiver.handle_refused(VIDEO);
            }
        }
    }
    assert_eq!(delivered[30], (30, 0));
    // The refused unit and the 19 up to the next keyframe.
    assert_eq!(delivered[31], (50, 20));
}

#[test]
fn epochs_are_never_mixed_and_older_ones_refused() {
    let mut receiver = Receiver::default();
    let now = testkit::start();
    receiver.handle_connected(now);
    receiver.handle_info(&info(5)).expect("the first epoch");
    let take = |receiver: &mut Receiver, epoch, sequence| {
        let unit = unit(VIDEO, epoch, sequence, 10).as_ref().clone();
        matches!(receiver.handle_unit(now, unit), Received::Deliver { .. })
    };
    assert!(take(&mut receiver, 5, 0));
    assert!(!take(&mut receiver, 4, 25), "an older one");
    assert!(
        !take(&mut receiver, 6, 0),
        "a newer one that was not announced"
    );
    receiver.handle_info(&info(6)).expect("a newer epoch");
    assert!(!take(&mut receiver, 5, 1));
    assert!(take(&mut receiver, 6, 0));
    let stale = receiver.handle_info(&info(5)).expect_err("an older epoch");
    assert_eq!((stale.offered, stale.present), (Epoch(5), Epoch(6)));
    assert_eq!(receiver.have()[0].epoch, Epoch(6));
}

#[test]
fn what_is_left_of_an_old_epoch_does_not_shift_the_new_one() {
    let now = testkit::start();
    let mut sender = Sender::new(sender::Config::default(), vec![VIDEO], &[]);
    sender.handle_unit(now, unit(VIDEO, 1, 100, 10));
    sender.handle_unit(now, unit(VIDEO, 1, 101, 10));
    for sequence in 0..2 {
        sender.handle_unit(now, unit(VIDEO, 2, sequence, 10));
    }
    sender.handle_unit(now, unit(VIDEO, 2, 125, 10));
    let sent: Vec<_> = std::iter::from_fn(|| sender.poll_output(now))
        .map(|output| match output {
            sender::Output::Unit(unit) => (unit.epoch.0, unit.sequence, 0),
            sender::Output::Gap { epoch, lost, .. } => (epoch.0, 0, lost),
            sender::Output::Info(_) => panic!("none was given"),
        })
        .collect();
    let expected = [
        (1, 100, 0),
        (1, 101, 0),
        (2, 0, 0),
        (2, 1, 0),
        (2, 0, 123),
        (2, 125, 0),
    ];
    assert_eq!(sent, expected);
}

#[test]
fn a_track_that_is_wanted_again_starts_at_a_keyframe() {
    let now = testkit::start();
    let mut sender = Sender::new(sender::Config::default(), vec![VIDEO, AUDIO], &[]);
    sender.handle_info(info(1));
    let drain = |sender: &mut Sender| {
        let mut sent = Vec::new();
        while let Some(output) = sender.poll_output(now) {
            match output {
                sender::Output::Unit(unit) => sent.push((unit.track.0, unit.sequence)),
                sender::Output::Gap { track, lost, .. } => sent.push((track.0 + 100, lost)),
                sender::Output::Info(_) => {}
            }
        }
        sent
    };
    sender.handle_unit(now, unit(VIDEO, 1, 0, 10));
    assert_eq!(drain(&mut sender), [(0, 0)]);
    assert_eq!(sender.handle_want(vec![AUDIO]), []);
    sender.handle_unit(now, unit(VIDEO, 1, 1, 10));
    sender.handle_unit(now, unit(AUDIO, 1, 0, 10));
    assert_eq!(drain(&mut sender), [(2, 0)]);
    assert_eq!(sender.handle_want(vec![VIDEO, AUDIO]), [VIDEO]);
    sender.handle_unit(now, unit(VIDEO, 1, 26, 10));
    assert_eq!(drain(&mut sender), []);
    sender.handle_backlog(now, vec![unit(VIDEO, 1, 25, 10), unit(VIDEO, 1, 26, 10)]);
    sender.handle_unit(now, unit(VIDEO, 1, 27, 10));
    assert_eq!(drain(&mut sender), [(0, 25), (0, 26), (0, 27)]);
    // So soon that the GOP is still the same, of which the subscriber has forgotten what it had.
    sender.handle_want(vec![AUDIO]);
    sender.handle_unit(now, unit(VIDEO, 1, 28, 10));
    sender.handle_want(vec![VIDEO, AUDIO]);
    sender.handle_backlog(now, (25..29).map(|at| unit(VIDEO, 1, at, 10)).collect());
    assert_eq!(drain(&mut sender), [(0, 25), (0, 26), (0, 27), (0, 28)]);
    assert!(sender.handle_ack(now, 10).is_err(), "nine were sent");
    assert!(sender.handle_ack(now, 9).is_ok());
    assert_eq!(sender.held_bytes(), (0, 0));
}

#[test]
fn what_comes_of_a_track_that_was_given_up_is_no_part_of_its_new_beginning() {
    let now = testkit::start();
    let mut receiver = Receiver::default();
    receiver.handle_connected(now);
    receiver.handle_info(&info(1)).expect("the first");
    receiver.handle_want(&[VIDEO, AUDIO]);
    let takes = |receiver: &mut Receiver, sequence| {
        let unit = AccessUnit::clone(&unit(VIDEO, 1, sequence, 10));
        matches!(receiver.handle_unit(now, unit), Received::Deliver { .. })
    };
    assert!(takes(&mut receiver, 25));
    assert!(takes(&mut receiver, 26));
    receiver.handle_want(&[AUDIO]);
    // It was on its way.
    assert!(!takes(&mut receiver, 27));
    receiver.handle_want(&[VIDEO, AUDIO]);
    for sequence in 25..29 {
        assert!(takes(&mut receiver, sequence), "{sequence}");
    }
}

#[test]
fn three_unanswered_pings_are_a_dead_upstream_and_any_sign_of_life_is_not() {
    let start = testkit::start();
    for (alive, dead) in [(false, true), (true, false)] {
        let mut receiver = Receiver::default();
        receiver.handle_connected(start);
        let mut now = start;
        let mut died = None;
        for _ in 0..30 {
            now = receiver.poll_timeout().expect("a call");
            while receiver.poll_output(now).is_some() {}
            if receiver.upstream_dead() {
                died.get_or_insert(now);
            }
            if alive {
                receiver.handle_life();
            }
        }
        assert_eq!(died.is_some(), dead);
        assert!(died.is_none_or(|at| at - start <= Duration::from_secs(2)));
        receiver.handle_connected(now);
        assert!(!receiver.upstream_dead(), "another call, another chance");
    }
}

#[test]
fn ingest_times_are_put_on_the_subscribers_clock() {
    let now = testkit::start();
    let mut receiver = Receiver::default();
    receiver.handle_connected(now);
    receiver.handle_info(&info(1)).expect("the first epoch");
    let at = WallTime::from_unix_micros;
    let exchange = Exchange {
        t0: at(5_000_000),
        t1: at(900_100),
        t2: at(900_100),
        t3: at(5_000_200),
    };
    receiver.handle_pong(now, exchange);
    let received = receiver.handle_unit(now, unit(VIDEO, 1, 0, 10).as_ref().clone());
    let Received::Deliver { unit, .. } = received else {
        panic!("{received:?}");
    };
    assert_eq!(unit.ingest_time, at(5_100_000));
}

#[test]
fn each_rendition_skips_to_a_keyframe_of_its_own() {
    const LOWER: TrackId = TrackId::FIRST_RENDITION;
    let now = testkit::start();
    let config = sender::Config {
        bytes: 100_000,
        span: Duration::from_secs(2),
    };
    let mut sender = Sender::new(config, vec![VIDEO, LOWER, AUDIO], &[]);
    let mut info = StreamInfo::clone(&info(1));
    info.tracks.push(Track {
        id: LOWER,
        ..info.tracks[0].clone()
    });
    sender.handle_info(Arc::new(info));
    for sequence in 0..60 {
        sender.handle_unit(now, unit(VIDEO, 1, sequence, 1000));
        let mut lower = AccessUnit::clone(&unit(LOWER, 1, sequence, 1000));
        lower.keyframe = sequence.is_multiple_of(20);
        sender.handle_unit(now, Arc::new(lower));
        sender.handle_unit(now, unit(AUDIO, 1, sequence, 10));
    }
    assert_eq!(sender.overflows(), 1);
    let outputs = std::iter::from_fn(|| sender.poll_output(now));
    let units: Vec<Arc<AccessUnit>> = outputs
        .filter_map(|output| match output {
            sender::Output::Unit(unit) => Some(unit),
            sender::Output::Info(_) | sender::Output::Gap { .. } => None,
        })
        .collect();
    for (track, first) in [(VIDEO, 25), (LOWER, 40), (AUDIO, 25)] {
        let of_track = units.iter().filter(|unit| unit.track == track);
        let sequences: Vec<u64> = of_track.map(|unit| unit.sequence).collect();
        assert_eq!(sequences, (first..60).collect::<Vec<_>>(), "{track}");
    }
}
