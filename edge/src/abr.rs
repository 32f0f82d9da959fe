//! AbrActor: how one viewer receives.
//!
//! With one rendition there is nothing to choose, so it measures: round-trip time, loss, and receive rate go to the viewer's counters, and
//! what the link carries to the shard, whose pacer follows it. Its
//! parent is the viewer's [`crate::viewer::ViewerActor`]; it lives on the shard's arbiter and ends when its parent lets go of it. It receives
//! [`Measured`], one for each report; when its mailbox is full they are dropped and counted, and the next ones say the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, Context, Handler, Message};
use headwater_media::bwe::{Arrivals, Estimate, Estimator};
use headwater_media::rtt::Trust;
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::mpsc;

use crate::metrics::MAILBOX_FULL;
use crate::round_trip::RoundTrip;
use crate::shard::feedback::Sample;
use crate::shard::{Command, Counters, ViewerId};

/// Reports waiting (count). Transport-wide feedback comes every 50 to 100 ms.
const MAILBOX: usize = 32;

/// How a viewer receives, by one feedback message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Measured {
    pub(crate) sample: Sample,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AbrActor {
    pub(crate) viewer: ViewerId,
    pub(crate) core: Meter,
    pub(crate) round_trip: RoundTrip,
    pub(crate) estimator: Estimator,
    /// What the shard knows.
    pub(crate) told: Option<Estimate>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Actor for AbrActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl AbrActor {
    /// Tells the shard's pacer, if it matters. What a full mailbox refuses is said with the next message.
    fn tell(&mut self, estimate: Estimate) {
        let rate = &self.counters.estimate;
        rate.store(estimate.rate.0, Ordering::Relaxed);
        if self.told.is_some_and(|told| is_same(told, estimate)) {
            return;
        }
        let viewer = self.viewer;
        let command = Command::Estimate { viewer, estimate };
        match self.commands.try_send(command) {
            Ok(()) => self.told = Some(estimate),
            Err(_) => counter!(MAILBOX_FULL, "link" => "commands").increment(1),
        }
    }
}

/// A pacer makes no difference between these two: the rate creeps with every message.
const fn is_same(told: Estimate, estimate: Estimate) -> bool {
    told.overused == estimate.overused && told.rate.0.abs_diff(estimate.rate.0) <= told.rate.0 / 32
}

impl Handler<Measured> for AbrActor {
    type Result = ();

    fn handle(&mut self, message: Measured, _: &mut Context<Self>) {
        if let Sample::Arrivals(arrivals) = &message.sample {
            let estimate = self.estimator.handle_arrivals(self.clock.now(), arrivals);
            if let Some(estimate) = estimate {
                self.tell(estimate);
            }
        }
        self.core.handle_sample(&message.sample);
        match message.sample {
            Sample::Report { rtt: Some(rtt), .. } => {
                self.round_trip.note(Trust::Measured, rtt);
                self.estimator.handle_rtt(rtt);
            }
            Sample::AnsweredWithin(took) => self.round_trip.note(Trust::AtMost, took),
            Sample::Report { rtt: None, .. } | Sample::Arrivals(_) => {}
        }
        let counters = &self.counters;
        let loss = self.core.loss_permille();
        counters.loss_permille.store(loss, Ordering::Relaxed);
        if let Some(rate) = self.core.receive_rate() {
            counters.receive_rate.store(rate, Ordering::Relaxed);
        }
    }
}

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
