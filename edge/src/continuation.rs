//! One timeline out of several: what makes RTP timestamps go on when another origin takes a stream over.

use std::time::{Duration, Instant};

use headwater_media::id::Epoch;
use headwater_media::time::MediaTime;
use headwater_media::unit::AccessUnit;

/// A larger step of the timeline at a change of the publisher is not taken over: another origin began another timeline.
const STEP_MAX: Duration = Duration::from_secs(10);

/// Joins the timelines of a stream's incarnations, so that RTP timestamps never jump: an origin that takes a stream over from a dead one
/// begins a timeline of its own.
#[derive(Debug, Default)]
pub(crate) struct Continuation {
    epoch: Option<Epoch>,
    shift: MediaTime,
    /// The latest time that left, and when.
    latest: Option<(MediaTime, Instant)>,
}

impl Continuation {
    /// What to add to a unit's times.
    pub(crate) fn shift(&mut self, now: Instant, unit: &AccessUnit) -> MediaTime {
        if self.epoch != Some(unit.epoch) {
            if let Some((latest, at)) = self.latest {
                let elapsed = now.saturating_duration_since(at);
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
        if self.latest.is_none_or(|(latest, _)| latest < time) {
            self.latest = Some((time, now));
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
}
