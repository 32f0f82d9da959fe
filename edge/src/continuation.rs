//! One timeline out of several: what makes RTP timestamps go on when another origin takes a stream over.

use std::time::{Duration, Instant};

use headwater_media::id::Epoch;
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::AccessUnit;

/// A larger step of the timeline at a change of the publisher is not taken over: another origin began another timeline.
const STEP_MAX: Duration = Duration::from_secs(10);

/// Joins the timelines of a stream's incarnations, so that RTP timestamps never jump: an origin that takes a stream over from a dead one
/// begins a timeline of its own.
#[derive(Debug, Default)]
pub(crate) struct Continuation {
    epoch: Option<Epoch>,
    shift: MediaTime,
    /// The latest time that left, when it came, and when its publisher had sent it.
    latest: Option<(MediaTime, Instant, WallTime)>,
}

impl Continuation {
    /// What to add to a unit's times.
    pub(crate) fn shift(&mut self, now: Instant, unit: &AccessUnit) -> MediaTime {
        if self.epoch != Some(unit.epoch) {
            if let Some((latest, at, ingest_time)) = self.latest {
                // What is kept for those who come late comes all at once, and is as old as its publisher's sending.
                let known = ingest_time.min(unit.ingest_time) != WallTime::default();
                let elapsed = if known {
                    unit.ingest_time.since(ingest_time)
                } else {
                    now.saturating_duration_since(at)
                };
                let micros = i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX);
                let expected = latest + MediaTime::from_samples(micros, 1_000_000);
                let given = unit.dts + self.shift;
                let step = given.since(expected).max(expected.since(given));
                if step > STEP_MAX || given < latest {
                    self.shift = expected - unit.dts;
                }
            }
            self.epoch = Some(unit.epoch);
        }
        let time = unit.dts + self.shift;
        if self.latest.is_none_or(|(latest, ..)| latest < time) {
            self.latest = Some((time, now, unit.ingest_time));
        }
        self.shift
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::id::TrackId;
    use headwater_media::testkit;

    use super::*;

    fn unit(epoch: u64, millis: i64) -> AccessUnit {
        testkit::unit(
            TrackId::SOURCE_VIDEO,
            epoch,
            0,
            MediaTime::from_millis(millis),
        )
    }

    #[test]
    fn timelines_are_joined_only_where_they_do_not_continue() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut timeline = Continuation::default();
        let mut at = |elapsed, epoch, millis| {
            let unit = unit(epoch, millis);
            (unit.dts + timeline.shift(after(elapsed), &unit)).as_millis()
        };
        assert_eq!(at(0, 1, 5000), 5000);
        assert_eq!(at(1000, 1, 6000), 6000);
        // A publisher that returns to the same origin continues its timeline.
        assert_eq!(at(4000, 2, 9100), 9100);
        // Another origin begins anew, behind or far ahead: time goes on as the clock does.
        assert_eq!(at(6000, 3, 10), 11_100);
        assert_eq!(at(7000, 3, 1010), 12_100);
        assert_eq!(at(9000, 4, 9_000_000), 14_100);
        // The other tracks of that incarnation move with it.
        assert_eq!(at(9000, 4, 9_000_020), 14_120);
    }

    #[test]
    fn what_was_kept_before_it_came_is_as_old_as_it_is() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
        let now = Instant::now();
        let mut timeline = Continuation::default();
        let mut at = |came, ingest: u64, epoch, millis| {
            let mut unit = unit(epoch, millis);
            unit.ingest_time = WallTime::from_unix_micros(1_000_000 + ingest * 1000);
            let shift = timeline.shift(now + Duration::from_millis(came), &unit);
            (unit.dts + shift).as_millis()
        };
        assert_eq!(at(0, 0, 1, 5000), 5000);
        // Four seconds of another origin's come together, five seconds later.
        assert_eq!(at(5000, 1000, 2, 10), 6000);
        assert_eq!(at(5010, 5000, 2, 4010), 10_000);
        // Clocks that are not quite the same don't turn time back.
        assert_eq!(at(5020, 4990, 3, 10), 10_000);
    }
}
