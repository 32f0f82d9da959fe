//! How late pictures leave for a viewer, going by when those before them left.
//!
//! What was missed while a way was cut comes together, seconds late. libwebrtc learns from that how timestamps go with time, and would
//! show later pictures by what it has learned: seconds late at first, and for half a minute up to half a second.

use std::time::{Duration, Instant};

use headwater_media::time::TICKS_PER_SECOND;

/// Pictures are late from here on (µs): later than a link's own queue makes them where its rendition fits.
const LATE: i64 = 700_000;
/// And in time again from here on (µs).
const IN_TIME: i64 = 100_000;
/// What is late for so long is how it comes now.
const USUAL_AFTER: Duration = Duration::from_secs(3);
/// What is always late a little is forgotten by this share with each picture, so that clocks may drift.
const FORGETTING: i64 = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lateness {
    last: Option<(Instant, u64)>,
    /// Behind the most punctual one (µs).
    late: i64,
    /// Since when pictures are late.
    since: Option<Instant>,
}

impl Lateness {
    /// When the last one left.
    pub(crate) fn last_left(&self) -> Option<Instant> {
        self.last.map(|(left, _)| left)
    }

    /// A picture of this RTP time (90 kHz) leaves. Returns how late it is, if it is, or those after such a one are not in time again yet (90 kHz).
    pub(crate) fn handle_unit(&mut self, now: Instant, rtp_time: u64) -> u64 {
        if let Some((left, time)) = self.last.replace((now, rtp_time)) {
            let elapsed = now.saturating_duration_since(left).as_micros();
            let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
            // Below zero when it goes back to an older keyframe.
            let made = rtp_time.cast_signed().saturating_sub(time.cast_signed());
            let made = made.saturating_mul(1000) / (TICKS_PER_SECOND / 1000);
            let late = self.late.saturating_add(elapsed).saturating_sub(made);
            self.late = late.max(0);
            let least = if self.since.is_some() { IN_TIME } else { LATE };
            if self.late <= least {
                self.since = None;
                self.late -= self.late / FORGETTING;
            } else if now.saturating_duration_since(*self.since.get_or_insert(now)) >= USUAL_AFTER {
                *self = Self {
                    last: self.last,
                    ..Self::default()
                };
            }
        }
        if self.since.is_some() {
            self.late.unsigned_abs() * 9 / 100
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Viewer {
        start: Instant,
        lateness: Lateness,
    }

    impl Viewer {
        fn new() -> Self {
            #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
            let start = Instant::now();
            Self {
                start,
                lateness: Lateness::default(),
            }
        }

        /// How late a picture of the time `made` is that leaves at `left` (ms).
        fn late(&mut self, left: u64, made: u64) -> u64 {
            let now = self.start + Duration::from_millis(left);
            self.lateness.handle_unit(now, made * 90) / 90
        }
    }

    #[test]
    fn pictures_are_late_until_those_that_came_together_are_over() {
        let mut viewer = Viewer::new();
        assert!((0..50).all(|i| viewer.late(40 * i, 40 * i) == 0));
        // Three seconds come within 150 ms.
        let flood = (50..125).map(|i| viewer.late(5000 + 2 * (i - 50), 40 * i));
        let late: Vec<u64> = flood.collect();
        assert_eq!((late[0], late[10]), (3000, 2620));
        assert!(late[70] > 0);
        assert!((130..200).all(|i| viewer.late(40 * i, 40 * i) == 0));
    }

    #[test]
    fn a_pause_of_the_publisher_and_a_step_to_a_newer_keyframe_are_not_late() {
        let mut viewer = Viewer::new();
        for made in [0, 40, 80, 4000, 4040, 9000] {
            assert_eq!(viewer.late(made, made), 0);
        }
    }

    #[test]
    fn who_goes_back_to_an_older_keyframe_is_late() {
        let mut viewer = Viewer::new();
        assert_eq!(viewer.late(2000, 2000), 0);
        assert_eq!(viewer.late(2040, 1000), 1040);
    }

    #[test]
    fn what_stays_late_is_usual_then() {
        let mut viewer = Viewer::new();
        assert_eq!(viewer.late(0, 0), 0);
        let late: Vec<u64> = (1..150)
            .map(|i| viewer.late(2000 + 40 * i, 40 * i))
            .collect();
        assert_eq!((late[0], late[70], late[80]), (2000, 2000, 0));
    }

    #[test]
    fn a_slow_clock_is_not_late() {
        let mut viewer = Viewer::new();
        assert!((0..90_000).all(|i| viewer.late(40 * i + i / 25, 40 * i) == 0));
    }
}
