//! Whether sound comes in time.
//!
//! What an upstream sends after its way was cut, or a publisher after its network stood still, comes all at once. Pictures of that are decoded
//! as fast as they come, up to the newest. Sound is played as slowly as it was made: browsers hurry by a few per cent at most, so it would
//! stay as late as the cut was long, and pictures would wait for it. What comes too late is therefore not sent.

use std::time::{Duration, Instant};

use headwater_media::time::WallTime;
use headwater_media::unit::AccessUnit;

use crate::lateness::{Bounds, Lateness};

/// How much later than usual sound may come from its publisher's socket: more than the ways between nodes differ.
const REPLICATED: Bounds = bounds(Duration::from_millis(300));
/// And how much later than its timestamps say: publishers send it in pieces of their own length.
const SENT: Bounds = bounds(Duration::from_secs(1));

const fn bounds(late: Duration) -> Bounds {
    Bounds {
        late,
        in_time: late,
        usual_after: Duration::from_secs(2),
    }
}

/// One track's punctuality.
#[derive(Debug)]
pub(super) struct Punctual {
    replicated: Lateness,
    sent: Lateness,
}

impl Default for Punctual {
    fn default() -> Self {
        Self {
            replicated: Lateness::new(&REPLICATED),
            sent: Lateness::new(&SENT),
        }
    }
}

impl Punctual {
    /// The next unit came; false: too late.
    pub(super) fn takes(&mut self, now: Instant, unit: &AccessUnit) -> bool {
        let micros = i64::try_from(unit.ingest_time.unix_micros()).unwrap_or(i64::MAX);
        let known = unit.ingest_time != WallTime::default();
        let replicated = !known || self.replicated.handle(now, micros).is_none();
        let millis = unit.dts.as_millis();
        let sent = self.sent.handle(now, millis.saturating_mul(1000)).is_none();
        replicated && sent
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::id::TrackId;
    use headwater_media::testkit;
    use headwater_media::time::MediaTime;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    struct Listener {
        start: Instant,
        punctual: Punctual,
    }

    impl Listener {
        fn new() -> Self {
            Self {
                start: testkit::start(),
                punctual: Punctual::default(),
            }
        }

        /// How many are taken of frames that come at such a time, with such an ingest time and such a timestamp (ms).
        fn taken(&mut self, frames: impl Iterator<Item = (u64, u64, u64)>) -> usize {
            let mut take = |(came, ingest, time): (u64, u64, u64)| {
                let time = MediaTime::from_millis(i64::try_from(time).unwrap());
                let mut unit = testkit::unit(TrackId::OPUS, 1, 0, time);
                unit.ingest_time = WallTime::from_unix_micros((1_000_000 + ingest) * 1000);
                let now = self.start + MILLISECOND * u32::try_from(came).unwrap();
                self.punctual.takes(now, &unit)
            };
            frames.filter(|frame| take(*frame)).count()
        }
    }

    /// One each 20 ms, as it is made.
    fn live(frames: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
        frames.map(|frame| (20 * frame, 20 * frame, 20 * frame))
    }

    #[test]
    fn what_was_missed_over_a_cut_link_is_not_sent_late() {
        let mut listener = Listener::new();
        assert_eq!(listener.taken(live(0..100)), 100);
        // Three seconds come together; those of the last 300 ms are in time.
        let flood = (100..250).map(|frame| (5000, 20 * frame, 20 * frame));
        assert_eq!(listener.taken(flood), 15);
        assert_eq!(listener.taken(live(250..300)), 50);
    }

    #[test]
    fn nor_is_what_a_publisher_sends_together_after_a_pause() {
        let mut listener = Listener::new();
        assert_eq!(listener.taken(live(0..100)), 100);
        let flood = (100..250).map(|frame| (5000, 5000, 20 * frame));
        assert_eq!(listener.taken(flood), 50);
        assert_eq!(listener.taken(live(250..300)), 50);
    }

    #[test]
    fn who_sends_in_pieces_of_a_second_is_heard_whole() {
        let mut listener = Listener::new();
        let pieces = (0..500).map(|frame: u64| {
            let piece = 1000 * (frame / 50 + 1);
            (piece, piece, 20 * frame)
        });
        assert_eq!(listener.taken(pieces), 500);
    }
}
