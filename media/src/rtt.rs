//! How long a viewer's packets take there and back, from whatever tells.
//!
//! Reports (LSR and DLSR) measure it, but many viewers send none that do: a viewer that never got our sender report, or doesn't care to
//! fill those fields in. Everything else that answers something of ours is an upper bound, because it holds the viewer's own time too: a
//! DTLS flight after ours, a ClientHello after our STUN answer, a transport-wide feedback after the packets it speaks of, a NACK after the
//! packet that showed the hole. Of bounds the lowest counts, of the last seconds only, since paths change.

use std::time::{Duration, Instant};

/// A report older than this says nothing about now. Viewers report once a second.
const REPORT_VALID: Duration = Duration::from_secs(10);
/// Bounds are forgotten after one to two of these. Several losses, or a hundred feedbacks, at common rates.
const WINDOW: Duration = Duration::from_secs(5);
/// What nobody's path takes: the answer to something else, or a clock that was set. Longer ones are ignored.
const RTT_MAX: Duration = Duration::from_secs(5);

/// How a sample was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// The path alone: the viewer told its own time (RFC 3550 section 6.4.1).
    Measured,
    /// The path and what the viewer did meanwhile: not less than the truth.
    AtMost,
}

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Estimator {
    /// Smoothed, and when the last came.
    measured: Option<(Duration, Instant)>,
    /// The lowest bounds of this window and the one before.
    window: Option<Duration>,
    previous: Option<Duration>,
    window_end: Option<Instant>,
}

impl Estimator {
    /// Takes a sample in.
    pub fn handle_sample(&mut self, now: Instant, trust: Trust, rtt: Duration) {
        if rtt > RTT_MAX {
            return;
        }
        match trust {
            Trust::Measured => {
                let smoothed = match self.measured {
                    // RFC 6298 section 2.3 weights a sample by an eighth.
                    Some((old, at)) if now.saturating_duration_since(at) <= REPORT_VALID => {
                        (old * 7 + rtt) / 8
                    }
                    Some(_) | None => rtt,
                };
                self.measured = Some((smoothed, now));
            }
            Trust::AtMost => {
                if self.window_end.is_none_or(|end| now >= end) {
                    // Whatever is older than a window is dropped with it, unless there is nothing newer.
                    self.previous = self.window.take().or(self.previous);
                    self.window_end = Some(now + WINDOW);
                }
                self.window = Some(self.window.map_or(rtt, |lowest| lowest.min(rtt)));
            }
        }
    }

    /// The best guess; `None` before the first sample.
    pub fn estimate(&self, now: Instant) -> Option<Duration> {
        let measured = self
            .measured
            .filter(|(_, at)| now.saturating_duration_since(*at) <= REPORT_VALID)
            .map(|(rtt, _)| rtt);
        let bound = match (self.window, self.previous) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        match (measured, bound) {
            // A viewer may tell nonsense; what it did in time it can't have learned later.
            (Some(measured), Some(bound)) => Some(measured.min(bound)),
            (measured, bound) => measured.or(bound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_handshake_is_enough_until_something_better_comes() {
        let now = testkit::start();
        let mut rtt = Estimator::default();
        assert_eq!(rtt.estimate(now), None);
        rtt.handle_sample(now, Trust::AtMost, millis(90));
        rtt.handle_sample(now, Trust::AtMost, millis(62));
        assert_eq!(rtt.estimate(now), Some(millis(62)));
        // An hour later nothing else was learned.
        assert_eq!(rtt.estimate(now + millis(3_600_000)), Some(millis(62)));
        rtt.handle_sample(now, Trust::Measured, millis(50));
        assert_eq!(rtt.estimate(now), Some(millis(50)));
    }

    #[test]
    fn the_lowest_bound_counts_until_it_is_old() {
        let start = testkit::start();
        let mut rtt = Estimator::default();
        let mut seen = Vec::new();
        // The path gets longer after 6 s; the viewer's own time spreads over 50 ms.
        for i in 0..200_u64 {
            let now = start + millis(i * 100);
            let path = if i < 60 { 40 } else { 120 };
            rtt.handle_sample(now, Trust::AtMost, millis(path + i * 7 % 50));
            seen.push(rtt.estimate(now).unwrap_or_default().as_millis());
        }
        assert!((40..44).contains(&seen[30]), "{}", seen[30]);
        assert!((40..44).contains(&seen[70]), "{}", seen[70]);
        assert!((120..124).contains(&seen[199]), "{}", seen[199]);
    }

    #[test]
    fn reports_are_smoothed_bounded_and_forgotten() {
        let now = testkit::start();
        let mut rtt = Estimator::default();
        rtt.handle_sample(now, Trust::Measured, millis(80));
        rtt.handle_sample(now, Trust::Measured, millis(160));
        assert_eq!(rtt.estimate(now), Some(millis(90)));
        rtt.handle_sample(now, Trust::AtMost, millis(70));
        assert_eq!(
            rtt.estimate(now),
            Some(millis(70)),
            "a report can't be above"
        );
        rtt.handle_sample(now, Trust::Measured, Duration::from_secs(9));
        rtt.handle_sample(now, Trust::AtMost, Duration::from_secs(9));
        assert_eq!(rtt.estimate(now), Some(millis(70)), "nonsense");
        // After a silence the next report stands for itself.
        let later = now + millis(11_000);
        rtt.handle_sample(later, Trust::AtMost, millis(400));
        rtt.handle_sample(later + millis(6000), Trust::AtMost, millis(400));
        assert_eq!(rtt.estimate(later), Some(millis(400)));
        rtt.handle_sample(later, Trust::Measured, millis(300));
        assert_eq!(rtt.estimate(later), Some(millis(300)));
    }
}
