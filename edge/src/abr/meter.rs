//! How a viewer receives, in figures for its API record.

use headwater_media::bwe::Arrivals;

use crate::shard::feedback::Sample;

/// Smooths what feedback says.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    loss_permille: u64,
    receive_rate: Option<u64>,
    /// Transport-wide feedback tells loss better than reports do.
    has_arrivals: bool,
    window: Window,
}

/// Arrivals since the last figure was made.
#[derive(Debug, Default)]
struct Window {
    received: u64,
    lost: u64,
    bytes: u64,
    span: Option<(i64, i64)>,
}

impl Window {
    /// A second, in the 250 µs of transport-wide feedback: long enough to hold several pictures of any rate.
    const SPAN: i64 = 4000;
}

impl Meter {
    /// Takes a feedback message in.
    pub(crate) fn handle_sample(&mut self, sample: &Sample) {
        match sample {
            Sample::AnsweredWithin(_) => {}
            Sample::Report { fraction_lost, .. } => {
                if !self.has_arrivals {
                    self.loss_permille = u64::from(*fraction_lost) * 1000 / 256;
                }
            }
            Sample::Arrivals(arrivals) => self.handle_arrivals(arrivals),
        }
    }

    /// Of 1000 packets lately, how many were lost on the way.
    pub(crate) const fn loss_permille(&self) -> u64 {
        self.loss_permille
    }

    /// The viewer sends transport-wide feedback.
    pub(crate) const fn has_arrivals(&self) -> bool {
        self.has_arrivals
    }

    /// What arrives, in bits per second, where transport-wide feedback tells.
    pub(crate) const fn receive_rate(&self) -> Option<u64> {
        self.receive_rate
    }

    fn handle_arrivals(&mut self, arrivals: &Arrivals) {
        self.has_arrivals = true;
        let window = &mut self.window;
        window.received += u64::from(arrivals.received);
        window.lost += u64::from(arrivals.lost);
        window.bytes = window.bytes.saturating_add(arrivals.bytes);
        if let Some((first, last)) = arrivals.span {
            window.span = Some(window.span.map_or((first, last), |(oldest, newest)| {
                (oldest.min(first), newest.max(last))
            }));
        }
        let length = window
            .span
            .map_or(0, |(first, last)| last.saturating_sub(first));
        let packets = window.received + window.lost;
        // A viewer that hears nothing any more makes no span, but its losses count.
        if length < Window::SPAN && packets < 2000 {
            return;
        }
        self.loss_permille = window.lost * 1000 / packets.max(1);
        if let Some(quarters) = u64::try_from(length).ok().filter(|length| *length > 0) {
            self.receive_rate = Some(window.bytes.saturating_mul(8 * 4000) / quarters);
        }
        self.window = Window::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_receive_rate_and_loss_are_those_of_the_last_second() {
        let mut meter = Meter::default();
        // 1.2 Mbit/s: 125 packets of 1200 B a second, every tenth lost, told every 100 ms on the viewer's clock.
        for i in 0..40_i64 {
            meter.handle_sample(&Sample::Arrivals(Arrivals {
                received: 9,
                lost: 1,
                bytes: 15_000,
                span: Some((i * 400, i * 400 + 399)),
                ..Arrivals::default()
            }));
        }
        assert_eq!(meter.loss_permille(), 100);
        let rate = meter.receive_rate().expect("measured");
        assert!((1_190_000..1_320_000).contains(&rate), "{rate}");
    }

    #[test]
    fn reports_tell_loss_only_where_nothing_better_does() {
        let report = Sample::Report {
            rtt: Some(Duration::from_millis(80)),
            fraction_lost: 64,
        };
        let mut meter = Meter::default();
        meter.handle_sample(&report);
        assert_eq!(meter.loss_permille(), 250);

        meter.handle_sample(&Sample::Arrivals(Arrivals {
            received: 2000,
            lost: 0,
            bytes: 0,
            span: None,
            ..Arrivals::default()
        }));
        meter.handle_sample(&report);
        assert_eq!(meter.loss_permille(), 0);
        assert_eq!(meter.receive_rate(), None);
    }

    #[test]
    fn hostile_spans_do_not_overflow() {
        let mut meter = Meter::default();
        for span in [(i64::MIN, i64::MAX), (i64::MAX, i64::MIN), (0, 0)] {
            meter.handle_sample(&Sample::Arrivals(Arrivals {
                received: u32::MAX,
                lost: u32::MAX,
                bytes: u64::MAX,
                span: Some(span),
                ..Arrivals::default()
            }));
        }
    }
}
