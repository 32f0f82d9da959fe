//! Whole sessions on bad links under virtual time: pictures go out, NACKs come back, and what counts is what a viewer sees.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::{Counters, Options, Resend, Retransmitter, Sent};
use crate::id::TrackId;
use crate::rtt::{Estimator, Trust};
use crate::testkit::{self, Conditions, Link, Loss};

const VIDEO: TrackId = TrackId::SOURCE_VIDEO;
const PACKET_BYTES: usize = 1000;
/// Just under a wrap of the sequence numbers.
const FIRST_SEQUENCE: u64 = 65_000;

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How a viewer asks for what it misses.
#[derive(Debug, Clone, Copy)]
struct Habit {
    /// It looks for holes this often.
    every: Duration,
    /// A hole may be reordering for so long.
    patience: Duration,
    /// It asks again after so long.
    repeat: Duration,
}

/// libwebrtc: NACKs every 20 ms, and again after a round trip, which it takes for 100 ms where it doesn't send media itself.
const BROWSER: Habit = Habit {
    every: millis(20),
    patience: millis(0),
    repeat: millis(100),
};
/// Viewers that ask often, whatever the path.
const EAGER: Habit = Habit {
    every: millis(10),
    patience: millis(5),
    repeat: millis(40),
};

/// A viewer's link and what is sent over it.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    habit: Habit,
    round_trip: Duration,
    down: Loss,
    up: Loss,
    jitter: Duration,
    options: Options,
    seed: u64,
}

impl Scenario {
    const fn new(habit: Habit, round_trip_ms: u64, down: Loss) -> Self {
        Self {
            habit,
            round_trip: millis(round_trip_ms),
            down,
            up: Loss::None,
            jitter: Duration::ZERO,
            options: DEFAULT,
            seed: 1,
        }
    }
}

const DEFAULT: Options = Options {
    latest_useful: Duration::from_secs(1),
    share_percent: 30,
    burst_bytes: 128 << 10,
    patience: millis(160),
    spare_percent: 35,
};

/// What came of a session.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    pictures: u64,
    /// Whole in the end, and all before them too.
    shown: u64,
    /// Whole within 250 ms of leaving, and all before them too.
    in_time: u64,
    /// Times no picture could be shown for more than 200 ms.
    freezes: u64,
    lost_bytes: u64,
    counters: Counters,
}

impl Outcome {
    fn in_time_permille(&self) -> u64 {
        self.in_time * 1000 / self.pictures
    }

    /// Of the bytes lost, how much was sent again.
    fn copies_percent(&self) -> u64 {
        self.counters.sent_bytes * 100 / self.lost_bytes.max(1)
    }
}

/// The viewer's end: puts packets in order and asks for what is missing.
struct Viewer {
    habit: Habit,
    /// Everything before it has arrived.
    next: u64,
    newest: u64,
    received: BTreeSet<u64>,
    /// Holes: since when, and when last asked for.
    missing: BTreeMap<u64, (Instant, Option<Instant>)>,
}

impl Viewer {
    fn handle_packet(&mut self, now: Instant, sequence: u64) {
        for hole in self.newest + 1..sequence {
            self.missing.insert(hole, (now, None));
        }
        self.newest = self.newest.max(sequence);
        self.missing.remove(&sequence);
        if sequence >= self.next {
            self.received.insert(sequence);
        }
        while self.received.remove(&self.next) {
            self.next += 1;
        }
    }

    /// What it asks for now.
    fn nack(&mut self, now: Instant) -> Vec<u16> {
        let habit = self.habit;
        let mut lost = Vec::new();
        for (sequence, (since, asked)) in &mut self.missing {
            let due = match asked {
                Some(asked) => now - *asked >= habit.repeat,
                None => now - *since >= habit.patience,
            };
            if due {
                *asked = Some(now);
                lost.push(u16::try_from(sequence & 0xffff).expect("masked"));
            }
        }
        lost
    }
}

/// Plays `seconds` of 30 pictures a second, 6 packets each and 30 in every sixtieth.
fn play(scenario: &Scenario, seconds: u64) -> Outcome {
    let start = testkit::start();
    let half = scenario.round_trip / 2;
    let conditions = |loss| Conditions {
        delay: half,
        jitter: scenario.jitter,
        loss,
        ..Conditions::default()
    };
    let mut down = Link::new(conditions(scenario.down), scenario.seed, start);
    let mut up = Link::new(conditions(scenario.up), scenario.seed + 1000, start);
    let mut core = Retransmitter::new(scenario.options, start);
    let mut rtt = Estimator::default();
    // The handshake: the viewer's own time adds to the path's.
    rtt.handle_sample(start, Trust::AtMost, scenario.round_trip + millis(9));
    let mut viewer = Viewer {
        habit: scenario.habit,
        next: FIRST_SEQUENCE,
        newest: FIRST_SEQUENCE - 1,
        received: BTreeSet::new(),
        missing: BTreeMap::new(),
    };

    // When each picture left, and the sequence number behind its last.
    let mut pictures = Vec::new();
    let (mut sequence, mut shown, mut last_shown) = (FIRST_SEQUENCE, 0, start);
    let (mut in_time, mut freezes, mut lost_bytes) = (0, 0, 0);
    for tick in 0..seconds * 1000 + 3000 {
        let now = start + millis(tick);
        // A last picture shows what the one before it lost.
        let sending = tick <= seconds * 1000;
        if sending && tick * 30 % 1000 < 30 {
            let number = pictures.len();
            let packets = if number % 60 == 0 { 30 } else { 6 };
            core.handle_sent(
                now,
                &Sent {
                    first_sequence: sequence,
                    packets,
                    track: VIDEO,
                    first_index: sequence,
                    timestamp_offset: 0,
                    keyframe: number % 60 == 0,
                    bytes: packets * 1000,
                },
            );
            if tick == seconds * 1000 {
                down.set_conditions(now, conditions(Loss::None));
            }
            for _ in 0..packets {
                if !down.send(now, PACKET_BYTES, sequence) {
                    lost_bytes += PACKET_BYTES as u64;
                }
                sequence += 1;
            }
            pictures.push((now, sequence));
        }
        while let Some((at, packet)) = down.poll_arrived(now) {
            viewer.handle_packet(at, packet);
        }
        if tick % u64::try_from(scenario.habit.every.as_millis()).expect("short") == 0 {
            let lost = viewer.nack(now);
            if !lost.is_empty() {
                up.send(now, 40, lost);
            }
        }
        while let Some((at, lost)) = up.poll_arrived(now) {
            if let Some(bound) = core.since_noticed(at, &lost) {
                rtt.handle_sample(at, Trust::AtMost, bound);
            }
            let mut resends: Vec<Resend> = Vec::new();
            let size = |_, _| Some(PACKET_BYTES);
            core.handle_nack(at, lost, rtt.estimate(at), size, &mut resends);
            for resend in resends {
                down.send(at, PACKET_BYTES, resend.index);
            }
        }
        while let Some((left, _)) = pictures
            .get(shown)
            .filter(|(_, end)| *end <= viewer.next)
            .copied()
        {
            in_time += u64::from(now - left <= millis(250));
            freezes += u64::from(shown > 0 && now - last_shown > millis(200));
            last_shown = now;
            shown += 1;
        }
    }
    Outcome {
        pictures: pictures.len() as u64,
        shown: shown as u64,
        in_time,
        freezes,
        lost_bytes,
        counters: core.counters(),
    }
}

const MINUTES: u64 = 60;
const RANDOM: Loss = Loss::Random(20);
/// Gilbert-Elliott 1 %/25 %: 3.8 % lost, four in a row on average.
const BURSTS: Loss = Loss::Bursts {
    enter: 10,
    leave: 250,
};

#[test]
fn two_percent_loss_is_repaired_before_anyone_sees_it() {
    for habit in [EAGER, BROWSER] {
        for seed in 0..4 {
            let outcome = play(
                &Scenario {
                    seed,
                    ..Scenario::new(habit, 50, RANDOM)
                },
                4 * MINUTES,
            );
            assert!(outcome.in_time_permille() >= 999, "{outcome:?}");
            assert!(outcome.copies_percent() <= 145, "{outcome:?}");
            assert!(outcome.freezes <= 4, "{outcome:?}");
        }
    }
}

#[test]
fn bursts_are_repaired_too() {
    for habit in [EAGER, BROWSER] {
        for seed in 0..4 {
            let outcome = play(
                &Scenario {
                    seed,
                    ..Scenario::new(habit, 50, BURSTS)
                },
                4 * MINUTES,
            );
            assert!(outcome.in_time_permille() >= 997, "{outcome:?}");
            assert!(outcome.copies_percent() <= 145, "{outcome:?}");
        }
    }
}

#[test]
fn copies_stay_in_proportion_on_every_path() {
    for habit in [EAGER, BROWSER] {
        for round_trip in [2, 20, 40, 80, 100, 150, 300] {
            for loss in [5, 10, 30, 50, 100] {
                let scenario = Scenario {
                    up: Loss::Random(loss / 2),
                    jitter: millis(5),
                    ..Scenario::new(habit, round_trip, Loss::Random(loss))
                };
                let outcome = play(&scenario, MINUTES);
                let counters = outcome.counters;
                assert!(outcome.copies_percent() <= 150, "{scenario:?} {outcome:?}");
                assert_eq!(counters.over_budget, 0, "{scenario:?} {outcome:?}");
                if round_trip <= 150 {
                    assert_eq!(counters.too_late, 0, "{scenario:?} {outcome:?}");
                    assert_eq!(outcome.shown, outcome.pictures, "{scenario:?}");
                }
            }
        }
    }
}

#[test]
fn without_spare_copies_more_pictures_are_late() {
    let freezes = |spare_percent| -> u64 {
        let mut scenario = Scenario::new(EAGER, 50, Loss::Random(50));
        scenario.options.spare_percent = spare_percent;
        play(&scenario, 4 * MINUTES).freezes
    };
    let (without, with) = (freezes(0), freezes(DEFAULT.spare_percent));
    assert!(with * 3 <= without, "{with} of {without}");
}

#[test]
fn lost_nacks_and_lost_copies_cost_time_but_no_picture() {
    let scenario = Scenario {
        up: Loss::Random(200),
        ..Scenario::new(EAGER, 60, Loss::Random(200))
    };
    let outcome = play(&scenario, MINUTES);
    assert_eq!(outcome.shown, outcome.pictures, "{outcome:?}");
    assert!(outcome.copies_percent() <= 150, "{outcome:?}");
}
