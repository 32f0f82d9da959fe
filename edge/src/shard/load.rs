//! How loaded a shard is: one number that reaches 1 where its viewers would begin to notice.
//!
//! [`Meter`] is the core: the shard's loop tells it when it works and sleeps, how late access units were, and what was sent. Each
//! [`TICK`] it yields a [`Reading`], smoothed over [`SMOOTHING`], which the shard puts on its [`Board`] for whoever places viewers.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Over how long load is smoothed: a keyframe or a burst of joins isn't overload, a second of lateness is.
const SMOOTHING: Duration = Duration::from_secs(1);

/// How often a shard measures itself, and how often when it has nothing to do.
const TICK: Duration = Duration::from_millis(100);
const IDLE_TICK: Duration = Duration::from_millis(500);

/// The share of time that a full shard works. What is left takes the bursts: while a keyframe goes out to a thousand viewers, the
/// next pictures wait, and have to be caught up with.
const BUSY_FULL: f64 = 0.9;

/// How late a full shard's access units reach their last viewer: half of what viewers may notice, since pictures of
/// the usual size should be well ahead of a keyframe.
const LAG_FULL: Duration = Duration::from_millis(50);

/// A shard whose last reading is older than this is stuck, or its machine is; it is as late as the reading is old.
const STALE: Duration = Duration::from_secs(2);

/// How much of the load that newcomers of the last second will make is foreseen, at most (ratio): their number says nothing about
/// streams that have hardly begun.
const GROWTH_MAX: f64 = 1.5;

/// A shard that was too late is let have viewers again below this ratio, so that it doesn't take and refuse by turns.
const REOPEN: f64 = 0.9;

/// What a shard measured of itself.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Reading {
    /// The share of time that its loop was at work.
    pub(crate) busy: f64,
    /// How late access units reached their last viewer (seconds, smoothed; each tenth of a second counts by its latest).
    pub(crate) lag_seconds: f64,
    /// What it sent, UDP and IP headers included (bits per second).
    pub(crate) egress: f64,
    /// Its viewers (count), smoothed as the rest is.
    pub(crate) viewers: f64,
}

/// See the module. Feed it whatever happens, then ask [`Self::poll_reading`] when [`Self::poll_timeout`] says so.
#[derive(Debug)]
pub(crate) struct Meter {
    /// When the interval began that is being counted.
    since: Instant,
    /// When the work began that is being done.
    working_since: Option<Instant>,
    worked: Duration,
    latest: Duration,
    /// Bytes sent in all when the interval began.
    sent_bytes: u64,
    reading: Reading,
}

impl Meter {
    /// Nothing measured yet, and at work.
    pub(crate) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            working_since: Some(now),
            worked: Duration::ZERO,
            latest: Duration::ZERO,
            sent_bytes: 0,
            reading: Reading {
                busy: 0.0,
                lag_seconds: 0.0,
                egress: 0.0,
                viewers: 0.0,
            },
        }
    }

    /// The loop has something to do.
    pub(crate) const fn handle_wake(&mut self, now: Instant) {
        if self.working_since.is_none() {
            self.working_since = Some(now);
        }
    }

    /// The loop has nothing to do.
    pub(crate) fn handle_sleep(&mut self, now: Instant) {
        if let Some(since) = self.working_since.take() {
            self.worked += now.saturating_duration_since(since);
        }
    }

    /// An access unit reached its last viewer this long after it was packetized.
    pub(crate) fn handle_fan_out(&mut self, took: Duration) {
        self.latest = self.latest.max(took);
    }

    /// When [`Self::poll_reading`] has something new.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let idle = self.reading.viewers < 0.01 && self.reading.busy < 0.01;
        self.since + if idle { IDLE_TICK } else { TICK }
    }

    /// A new reading, if it is time for one. `waiting`: the age of the oldest access unit that hasn't reached its last viewer;
    /// `sent_bytes`: what was sent in all.
    pub(crate) fn poll_reading(
        &mut self,
        now: Instant,
        viewers: usize,
        waiting: Option<Duration>,
        sent_bytes: u64,
    ) -> Option<Reading> {
        if now < self.poll_timeout() {
            return None;
        }
        if self.working_since.is_some() {
            self.handle_sleep(now);
            self.handle_wake(now);
        }
        let span = now.saturating_duration_since(self.since).as_secs_f64();
        let share = 1.0 - (-span / SMOOTHING.as_secs_f64()).exp();
        let lag = self.latest.max(waiting.unwrap_or_default());
        let sent = sent_bytes.saturating_sub(self.sent_bytes);
        let viewers = f64::from(u32::try_from(viewers).unwrap_or(u32::MAX));
        let old = self.reading;
        let smooth = |old: f64, new: f64| (new - old).mul_add(share, old);
        self.reading = Reading {
            busy: smooth(old.busy, self.worked.as_secs_f64() / span),
            lag_seconds: smooth(old.lag_seconds, lag.as_secs_f64()),
            egress: smooth(old.egress, to_f64(sent) * 8.0 / span),
            viewers: smooth(old.viewers, viewers),
        };
        self.since = now;
        self.worked = Duration::ZERO;
        self.latest = Duration::ZERO;
        self.sent_bytes = sent_bytes;
        Some(self.reading)
    }
}

/// Bytes of less than a second are far from where this loses any.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
const fn to_f64(value: u64) -> f64 {
    value as f64
}

/// What of a shard's load is the largest part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bound {
    /// As many viewers as are configured.
    Viewers,
    /// As many bits per second as are configured.
    Egress,
    /// As much work as it can do in time.
    Lag,
}

/// A shard's load: 0 idle, 1 full, and more when it is overloaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    pub(crate) ratio: f64,
    pub(crate) bound: Bound,
}

/// What a shard may have at most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Capacity {
    /// Viewers (count).
    pub(crate) viewers: usize,
    /// Bits per second, UDP and IP headers included; `None`: as many as go.
    pub(crate) egress: Option<f64>,
}

/// A shard's last reading, for other threads. The values are read one by one, which is good enough for what changes smoothly.
#[derive(Debug)]
pub(crate) struct Board {
    capacity: Capacity,
    start: Instant,
    /// Since `start` (milliseconds).
    written: AtomicU64,
    busy: AtomicU32,
    lag_seconds: AtomicU32,
    egress: AtomicU32,
    viewers: AtomicU32,
    /// It was too late, and isn't well below that yet.
    closed: AtomicBool,
}

impl Board {
    /// Of a shard that starts now.
    pub(crate) fn new(capacity: Capacity, now: Instant) -> Self {
        Self {
            capacity,
            start: now,
            written: AtomicU64::new(0),
            busy: AtomicU32::default(),
            lag_seconds: AtomicU32::default(),
            egress: AtomicU32::default(),
            viewers: AtomicU32::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// A new reading.
    pub(crate) fn write(&self, now: Instant, reading: &Reading) {
        store(&self.busy, reading.busy);
        store(&self.lag_seconds, reading.lag_seconds);
        store(&self.egress, reading.egress);
        store(&self.viewers, reading.viewers);
        let at = now.saturating_duration_since(self.start).as_millis();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        self.written.store(at, Ordering::Relaxed);
    }

    /// The shard's load with `viewers` of them, those included that came since the reading.
    pub(crate) fn load(&self, now: Instant, viewers: usize) -> Load {
        let present = f64::from(u32::try_from(viewers).unwrap_or(u32::MAX));
        let growth = match load(&self.viewers) {
            // Too few to say what one costs.
            before if before < 1.0 => 1.0,
            before => (present / before).clamp(1.0, GROWTH_MAX),
        };
        let written = Duration::from_millis(self.written.load(Ordering::Relaxed));
        let age = now.saturating_duration_since(self.start + written);
        let late = if age > STALE { age } else { Duration::ZERO };
        let lag = load(&self.lag_seconds).max(late.as_secs_f64()) / LAG_FULL.as_secs_f64();
        let busy = load(&self.busy) * growth / BUSY_FULL;
        let limit = self.capacity.viewers;
        let places = if viewers < limit {
            present / f64::from(u32::try_from(limit).unwrap_or(u32::MAX))
        } else {
            1.0
        };
        let egress = self.capacity.egress.map_or(0.0, |limit| {
            load(&self.egress) * growth / limit.max(f64::MIN_POSITIVE)
        });
        [
            (places, Bound::Viewers),
            (egress, Bound::Egress),
            (busy.max(lag), Bound::Lag),
        ]
        .into_iter()
        .map(|(ratio, bound)| Load { ratio, bound })
        .fold(
            Load {
                ratio: 0.0,
                bound: Bound::Viewers,
            },
            |most, load| {
                if load.ratio > most.ratio { load } else { most }
            },
        )
    }

    /// Whether a shard with this load takes one more viewer. Lateness is remembered until it is well over.
    pub(crate) fn admits(&self, load: Load) -> bool {
        let full = load.ratio >= 1.0;
        if full && load.bound == Bound::Lag {
            self.closed.store(true, Ordering::Relaxed);
        } else if load.ratio < REOPEN {
            self.closed.store(false, Ordering::Relaxed);
        }
        !full && !self.closed.load(Ordering::Relaxed)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "seven digits will do")]
fn store(cell: &AtomicU32, value: f64) {
    cell.store((value as f32).to_bits(), Ordering::Relaxed);
}

fn load(cell: &AtomicU32) -> f64 {
    f64::from(f32::from_bits(cell.load(Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use headwater_media::testkit;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A loop that works `work` of each 10 ms, with access units this late, for a while.
    fn run(
        meter: &mut Meter,
        now: &mut Instant,
        work: u32,
        lag: Duration,
        seconds: u32,
    ) -> Reading {
        let mut sent = meter.sent_bytes;
        let mut last = meter.reading;
        for _ in 0..seconds * 100 {
            meter.handle_wake(*now);
            *now += MILLISECOND * work;
            sent += 12_500;
            meter.handle_fan_out(lag);
            if let Some(reading) = meter.poll_reading(*now, 100, None, sent) {
                last = reading;
            }
            meter.handle_sleep(*now);
            *now += MILLISECOND * (10 - work);
        }
        last
    }

    #[test]
    fn a_reading_says_how_busy_how_late_and_how_much() {
        let mut now = testkit::start();
        let mut meter = Meter::new(now);
        let reading = run(&mut meter, &mut now, 4, MILLISECOND * 7, 8);
        assert!((reading.busy - 0.4).abs() < 0.02, "{reading:?}");
        assert!((reading.lag_seconds - 0.007).abs() < 0.0001, "{reading:?}");
        assert!((reading.egress - 10e6).abs() < 0.6e6, "{reading:?}");
        assert!((reading.viewers - 100.0).abs() < 0.1, "{reading:?}");
    }

    #[test]
    fn one_late_picture_is_no_overload_and_a_second_of_them_is() {
        let mut now = testkit::start();
        let mut meter = Meter::new(now);
        let board = Board::new(
            Capacity {
                viewers: 1000,
                egress: None,
            },
            now,
        );
        run(&mut meter, &mut now, 4, MILLISECOND * 7, 8);
        meter.handle_fan_out(MILLISECOND * 300);
        let reading = run(&mut meter, &mut now, 4, MILLISECOND * 7, 1);
        board.write(now, &reading);
        assert!(board.admits(board.load(now, 100)), "{reading:?}");
        let reading = run(&mut meter, &mut now, 4, MILLISECOND * 80, 2);
        board.write(now, &reading);
        let load = board.load(now, 100);
        assert_eq!(load.bound, Bound::Lag);
        assert!(!board.admits(load), "{load:?}");
    }

    #[test]
    fn work_that_never_ends_counts_as_late_while_it_waits() {
        let mut now = testkit::start();
        let mut meter = Meter::new(now);
        let mut reading = Reading::default();
        for i in 0..30 {
            now += TICK;
            let waiting = TICK * i;
            reading = meter
                .poll_reading(now, 10, Some(waiting), 0)
                .unwrap_or(reading);
        }
        assert!(reading.lag_seconds > 1.0, "{reading:?}");
        assert!(reading.busy > 0.9, "{reading:?}");
    }

    #[test]
    fn load_is_the_largest_of_its_parts() {
        let now = testkit::start();
        let board = Board::new(
            Capacity {
                viewers: 1000,
                egress: Some(100e6),
            },
            now,
        );
        let reading = Reading {
            busy: 0.09,
            lag_seconds: 0.005,
            egress: 10e6,
            viewers: 100.0,
        };
        for (reading, viewers, ratio, bound) in [
            (Reading::default(), 0, 0.0, Bound::Viewers),
            (reading, 200, 0.2, Bound::Viewers),
            (
                Reading {
                    egress: 30e6,
                    ..reading
                },
                100,
                0.3,
                Bound::Egress,
            ),
            (
                Reading {
                    busy: 0.45,
                    ..reading
                },
                100,
                0.5,
                Bound::Lag,
            ),
            (
                Reading {
                    lag_seconds: 0.1,
                    ..reading
                },
                100,
                2.0,
                Bound::Lag,
            ),
            // Half as many again have come since: what they will cost counts already.
            (
                Reading {
                    egress: 30e6,
                    ..reading
                },
                150,
                0.45,
                Bound::Egress,
            ),
            // But hundreds at once say little.
            (
                Reading {
                    egress: 30e6,
                    ..reading
                },
                400,
                0.45,
                Bound::Egress,
            ),
        ] {
            board.write(now, &reading);
            let load = board.load(now, viewers);
            assert!((load.ratio - ratio).abs() < 0.001, "{reading:?} {load:?}");
            assert_eq!(load.bound, bound, "{reading:?} {load:?}");
        }
    }

    #[test]
    fn a_full_shard_refuses_and_a_late_one_until_it_is_well_below() {
        let now = testkit::start();
        let board = Board::new(
            Capacity {
                viewers: 1000,
                egress: None,
            },
            now,
        );
        let admits = |busy: f64, viewers| {
            let reading = Reading {
                busy: busy * BUSY_FULL,
                viewers: f64::from(u32::try_from(viewers).unwrap()),
                ..Reading::default()
            };
            board.write(now, &reading);
            board.admits(board.load(now, viewers))
        };
        assert!(admits(0.5, 999));
        assert!(!admits(0.5, 1000));
        // A place is free again: that is nothing to wait for.
        assert!(admits(0.5, 999));
        assert!(admits(0.99, 10));
        assert!(!admits(1.01, 10));
        assert!(!admits(0.95, 10));
        assert!(admits(0.89, 10));
        assert!(admits(0.95, 10));
    }

    #[test]
    fn a_shard_that_is_stuck_is_full() {
        let now = testkit::start();
        let board = Board::new(
            Capacity {
                viewers: 1000,
                egress: None,
            },
            now,
        );
        board.write(now, &Reading::default());
        assert!(board.admits(board.load(now + STALE, 0)));
        let later = now + STALE + Duration::from_secs(1);
        assert!(!board.admits(board.load(later, 0)));
        board.write(later, &Reading::default());
        assert!(board.admits(board.load(later, 0)));
    }
}
