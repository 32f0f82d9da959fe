//! The offset between two nodes' wall clocks, from pings: the sample with the shortest round trip is the most exact one, since its
//! error is at most half of that (as in RFC 5905 section 10).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::time::WallTime;

/// How long a sample counts. Crystals drift by some 50 µs a second at worst, so half a minute costs 1.5 ms.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(30);

/// Samples kept (count): half a minute of pings.
const SAMPLES_MAX: usize = 64;

/// A peer's clock that is further away than this is taken for broken, and its stamps as not known.
const OFFSET_MICROS_MAX: i64 = 365 * 86_400 * 1_000_000;

/// One answered ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// Our clock when the ping left.
    pub t0: WallTime,
    /// The peer's clock when it came.
    pub t1: WallTime,
    /// The peer's clock when the answer left.
    pub t2: WallTime,
    /// Our clock when the answer came.
    pub t3: WallTime,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    round_trip: Duration,
    offset_micros: i64,
}

/// The filter.
#[derive(Debug, Default)]
pub struct OffsetFilter {
    samples: VecDeque<Sample>,
}

impl OffsetFilter {
    /// Takes an answered ping; one whose times make no sense is ignored.
    pub fn handle_exchange(&mut self, now: Instant, exchange: Exchange) {
        let Exchange { t0, t1, t2, t3 } = exchange;
        if t3 < t0 || t2 < t1 {
            return;
        }
        let there = difference(t1, t0);
        let back = difference(t2, t3);
        let offset = (there + back) / 2;
        let Ok(offset_micros) = i64::try_from(offset) else {
            return;
        };
        if offset_micros.saturating_abs() > OFFSET_MICROS_MAX {
            return;
        }
        let round_trip = t3.since(t0).saturating_sub(t2.since(t1));
        self.samples.push_back(Sample {
            at: now,
            round_trip,
            offset_micros,
        });
        while self.samples.len() > SAMPLES_MAX
            || self.samples.len() > 1
                && self
                    .samples
                    .front()
                    .is_some_and(|s| now.saturating_duration_since(s.at) > SAMPLE_AGE_MAX)
        {
            self.samples.pop_front();
        }
    }

    /// The shortest round trip of late; none before the first sample.
    pub fn round_trip(&self) -> Option<Duration> {
        self.best().map(|sample| sample.round_trip)
    }

    /// The peer's clock minus ours (µs); none before the first sample.
    pub fn offset_micros(&self) -> Option<i64> {
        self.best().map(|sample| sample.offset_micros)
    }

    /// A stamp of the peer's clock on ours; unknown if it is, or before the first sample.
    pub fn localize(&self, stamp: WallTime) -> WallTime {
        match self.offset_micros() {
            Some(offset) if stamp != WallTime::default() => {
                WallTime::from_unix_micros(stamp.unix_micros().saturating_add_signed(-offset))
            }
            Some(_) | None => WallTime::default(),
        }
    }

    fn best(&self) -> Option<&Sample> {
        self.samples.iter().min_by_key(|sample| sample.round_trip)
    }
}

fn difference(a: WallTime, b: WallTime) -> i128 {
    i128::from(a.unix_micros()) - i128::from(b.unix_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any instant to start from")]
    fn start() -> Instant {
        Instant::now()
    }

    fn exchange(t0: u64, there: u64, back: u64, offset: u64) -> Exchange {
        let at = WallTime::from_unix_micros;
        Exchange {
            t0: at(t0),
            t1: at(t0 + there + offset),
            t2: at(t0 + there + offset + 10),
            t3: at(t0 + there + 10 + back),
        }
    }

    #[test]
    fn the_shortest_round_trip_decides() {
        let mut filter = OffsetFilter::default();
        let now = start();
        filter.handle_exchange(now, exchange(1_000_000, 50_000, 1_000, 500_000));
        filter.handle_exchange(now, exchange(2_000_000, 200, 200, 500_000));
        filter.handle_exchange(now, exchange(3_000_000, 1_000, 90_000, 500_000));
        assert_eq!(filter.offset_micros(), Some(500_000));
        assert_eq!(filter.round_trip(), Some(Duration::from_micros(400)));
        assert_eq!(
            filter.localize(WallTime::from_unix_micros(9_500_000)),
            WallTime::from_unix_micros(9_000_000)
        );
        assert_eq!(filter.localize(WallTime::default()), WallTime::default());
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut filter = OffsetFilter::default();
        let at = WallTime::from_unix_micros;
        for (t0, t1, t2, t3) in [(10, 5, 4, 20), (10, 5, 6, 9), (0, u64::MAX, u64::MAX, 10)] {
            let (t0, t1, t2, t3) = (at(t0), at(t1), at(t2), at(t3));
            filter.handle_exchange(start(), Exchange { t0, t1, t2, t3 });
        }
        assert_eq!(filter.offset_micros(), None);
    }
}
