//! How long pictures take from the publisher's socket to the viewers', hop by hop.
//!
//! Each hop is measured on one clock, or on two whose offset is known, and the total is their sum, picture by picture: what an operator reads
//! of one of them is not an estimate that the others contradict. The player measures the rest, up to the screen (`http/qoe.rs`).
//!
//! Sound isn't measured, nor what is kept for whoever comes later: that is as old as it is because nobody wanted it before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headwater_media::time::WallTime;
use headwater_media::unit::AccessUnit;
use metrics::{Histogram, gauge, histogram};

use crate::metrics::{CLOCK_ERROR, CLOCK_OFFSET, HOP, LATENCY};

/// Over how much of a track's time it is told whether it comes as fast as it was made.
const LIVE_EDGE_SPAN: Duration = Duration::from_millis(50);

/// A picture's way up to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Arrival {
    at: Instant,
    /// From the publisher's socket until the origin sent it on.
    ingest: Duration,
    /// From there to here, through all nodes in between, until it was complete and in order.
    replicate: Duration,
}

impl Arrival {
    /// Of a unit that came at `at`, which was then `wall`; none if its ingest time isn't known.
    pub(crate) fn new(at: Instant, wall: WallTime, unit: &AccessUnit) -> Option<Self> {
        if unit.ingest_time == WallTime::default() {
            return None;
        }
        let both = wall.since(unit.ingest_time);
        // The offset between the clocks is known to half a round trip only.
        let ingest = unit.origin_delay.min(both);
        Some(Self {
            at,
            ingest,
            replicate: both.saturating_sub(ingest),
        })
    }

    /// The hops of a picture that a shard began to send at `begun`, and that its last viewer's socket took at `sent`.
    fn hops(&self, begun: Instant, sent: Instant) -> [Duration; 4] {
        [
            self.ingest,
            self.replicate,
            begun.saturating_duration_since(self.at),
            sent.saturating_duration_since(begun),
        ]
    }
}

/// When a batch of packets was where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    /// When it was packetized.
    pub(crate) since: Instant,
    /// How it came to this node, if that is measured.
    pub(crate) arrival: Option<Arrival>,
    /// When its first viewer's turn came; none before, and where it has no viewers.
    pub(crate) begun: Option<Instant>,
}

impl Timing {
    /// It was packetized at `since`.
    pub(crate) const fn new(since: Instant, arrival: Option<Arrival>) -> Self {
        Self {
            since,
            arrival,
            begun: None,
        }
    }

    /// The hops of a batch that its last viewer's socket took at `sent`; none of what isn't measured, or had no viewers.
    pub(crate) fn hops(&self, sent: Instant) -> Option<[Duration; 4]> {
        Some(self.arrival?.hops(self.begun?, sent))
    }
}

/// Tells a track's live pictures from those that were kept for whoever comes. Those come faster than they were made; from the first that don't
/// on, all are live, however late.
#[derive(Debug, Default)]
pub(crate) struct LiveEdge {
    /// When a picture came, and when it was read from its publisher.
    reference: Option<(Instant, WallTime)>,
    reached: bool,
}

impl LiveEdge {
    /// The next picture came. Returns whether it is live.
    pub(crate) fn handle_unit(&mut self, now: Instant, ingest_time: WallTime) -> bool {
        if self.reached {
            return true;
        }
        let (came, made) = *self.reference.get_or_insert((now, ingest_time));
        let made = ingest_time.since(made);
        // Pictures that a publisher sent together say nothing.
        if made >= LIVE_EDGE_SPAN {
            self.reached = now.saturating_duration_since(came) * 2 >= made;
            self.reference = Some((now, ingest_time));
        }
        self.reached
    }
}

/// What a shard shows of it: a record per picture that had viewers, not per viewer.
pub(crate) struct Recorder {
    total: Histogram,
    hops: [Histogram; 4],
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            total: histogram!(LATENCY),
            hops: ["ingest", "replicate", "queue", "wire"].map(|hop| histogram!(HOP, "hop" => hop)),
        }
    }

    /// A picture came to its last viewer by these hops.
    pub(crate) fn record(&self, hops: [Duration; 4]) {
        for (histogram, hop) in self.hops.iter().zip(hops) {
            histogram.record(hop.as_secs_f64());
        }
        self.total
            .record(hops.iter().sum::<Duration>().as_secs_f64());
    }
}

/// The offsets of the clocks of all upstreams, of which the worst is shown. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clocks(Arc<Mutex<Readings>>);

#[derive(Debug, Default)]
struct Readings {
    next: u64,
    /// The upstream's clock minus ours (µs), and the round trip by which it was measured.
    of: HashMap<u64, (i64, Duration)>,
}

impl Clocks {
    /// A call begins.
    pub(crate) fn call(&self) -> CallClock {
        let mut readings = self.readings();
        readings.next += 1;
        CallClock {
            number: readings.next,
            clocks: self.clone(),
        }
    }

    /// Shows the worst of them.
    pub(crate) fn show(&self) {
        let readings = self.readings();
        let of = readings.of.values();
        let worst = of.clone().max_by_key(|(offset, _)| offset.unsigned_abs());
        let round_trip = of.map(|(_, round_trip)| *round_trip).max();
        gauge!(CLOCK_OFFSET).set(worst.map_or(0.0, |(offset, _)| seconds(*offset)));
        gauge!(CLOCK_ERROR).set(round_trip.unwrap_or_default().as_secs_f64() / 2.0);
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        // Whoever panicked has broken nothing.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53 µs")]
fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}

/// One call's part of them; dropped with it.
#[derive(Debug)]
pub(crate) struct CallClock {
    number: u64,
    clocks: Clocks,
}

impl CallClock {
    /// The upstream's clock minus ours (µs), measured by this round trip.
    pub(crate) fn set(&self, offset_micros: i64, round_trip: Duration) {
        let mut readings = self.clocks.readings();
        readings.of.insert(self.number, (offset_micros, round_trip));
    }
}

impl Drop for CallClock {
    fn drop(&mut self) {
        self.clocks.readings().of.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::testkit::{self, Video, VideoOptions};

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn wall(millis: u64) -> WallTime {
        WallTime::from_unix_micros(1_000_000_000 + millis * 1000)
    }

    #[test]
    fn hops_add_up_to_the_time_since_ingest() {
        let at = testkit::start();
        for (delay, hops) in [(5, [5, 25, 3, 4]), (0, [0, 30, 3, 4]), (40, [30, 0, 3, 4])] {
            let mut unit = Video::new(VideoOptions::default(), 1).next().unwrap();
            unit.ingest_time = wall(100);
            unit.origin_delay = MILLISECOND * delay;
            let arrival = Arrival::new(at, wall(130), &unit).unwrap();
            let (begun, sent) = (at + 3 * MILLISECOND, at + 7 * MILLISECOND);
            assert_eq!(arrival.hops(begun, sent), hops.map(|hop| MILLISECOND * hop));
            unit.ingest_time = WallTime::default();
            assert_eq!(Arrival::new(at, wall(130), &unit), None);
        }
    }

    #[test]
    fn pictures_are_live_from_the_first_that_come_no_faster_than_they_were_made() {
        let start = testkit::start();
        let mut edge = LiveEdge::default();
        let mut live =
            |came: u32, made: u64| edge.handle_unit(start + MILLISECOND * came, wall(made));
        // Two seconds that were kept, two of their pictures made together, come in 60 ms.
        for picture in 0..60 {
            assert!(!live(picture, u64::from(picture) * 33));
            assert!(!live(picture, u64::from(picture) * 33));
        }
        assert!(!live(70, 1980));
        assert!(!live(110, 2020));
        assert!(live(150, 2060));
        // A network that stood still is no excuse.
        assert!(live(2000, 2093));
        assert!(live(2001, 2126));
    }

    #[test]
    fn the_clock_that_is_furthest_off_is_shown_while_its_call_lasts() {
        let clocks = Clocks::default();
        let (near, far) = (clocks.call(), clocks.call());
        near.set(500, MILLISECOND);
        far.set(-7000, MILLISECOND);
        let offsets = || {
            clocks
                .0
                .lock()
                .unwrap()
                .of
                .values()
                .map(|(o, _)| *o)
                .collect::<Vec<_>>()
        };
        assert_eq!(offsets().len(), 2);
        drop(far);
        assert_eq!(offsets(), [500]);
    }
}
