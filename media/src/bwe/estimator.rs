//! The estimate.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::carried::Carried;
use super::delay::{Delay, Usage};
use super::loss::{Loss, Verdict};
use super::probe::{Probe, Probed};
use super::{Arrivals, Train};
use crate::id::Bitrate;

/// Time over which the rate of arrivals is measured, in units of 250 µs: 500 ms hold several pictures.
const CARRIED_SPAN: i64 = 2000;
/// Less than this says nothing about a rate: 60 ms, two pictures.
const CARRIED_SPAN_MIN: i64 = 240;
/// While a queue stands, less is enough, since the link is never idle (80 ms).
const BUSY_SPAN_MIN: i64 = 320;

/// Trains that the link's rate is the median of (count): one that a busy receiver read late does no harm. They are forgotten after a while.
const TRAINS: usize = 5;
const TRAINS_AGE: Duration = Duration::from_secs(4);
/// How long trains are not believed when the link carried much less than they said, as behind a token bucket: at first, then doubled.
const DISTRUST: Duration = Duration::from_secs(10);
const DISTRUST_MAX: Duration = Duration::from_secs(160);

/// A queue stands in the network when packets take this much longer than the fastest lately (units of 125 µs: 25 ms). Wireless links
/// shake by less.
const STANDING: i64 = 200;
/// A queue this long is one, whatever trains say (100 ms).
const LONG: i64 = 800;
/// A queue that doesn't drain within this is fought again.
const DRAINS_WITHIN: Duration = Duration::from_millis(800);

/// What is sent when a queue grows, of what arrives (per cent): beta of draft-ietf-rmcat-gcc-02 section 5.5.
const BETA_PERCENT: u64 = 85;
/// Per second, far from what the link is known to carry (per cent; draft-ietf-rmcat-gcc-02 section 5.5).
const GROWTH_PERCENT: u64 = 8;
/// Near that, one packet for each response time (bytes).
const STEP_BYTES: u64 = 1200;
/// A response is a round trip and the time that feedback waits.
const RESPONSE: Duration = Duration::from_millis(100);
/// After a fall the rate rests for this long, and a response.
const REST: Duration = Duration::from_millis(300);

/// Without feedback for longer, the rate grows no more.
const ELAPSED_MAX: Duration = Duration::from_millis(500);

/// The estimate is at most this (bits per second), so that nothing computed from it overflows.
const RATE_MAX: u64 = 1_000_000_000;

/// What a link carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Bits per second of RTP.
    pub rate: Bitrate,
    /// A queue stands in the network: sending more than `rate` makes it longer.
    pub overused: bool,
    /// The link has shown a limit: by a queue, by losses or by a probe that came through slower. Before it has, `rate` says what was sent rather than
    /// what it carries.
    pub limited: bool,
}

/// See [`crate::bwe`]. Feed it each feedback message; then look whether a probe ended. 2 KB.
#[derive(Debug, Default)]
pub struct Estimator {
    rate: Option<u64>,
    overused: bool,
    limited: bool,
    delay: Delay,
    carried: Carried,
    loss: Loss,
    probe: Probe,
    probed: Option<Probed>,
    trains: VecDeque<(Instant, u64)>,
    /// Until when trains aren't believed, and for how long the next time.
    distrusted: Option<Instant>,
    distrust: Option<Duration>,
    link: Convergence,
    updated: Option<Instant>,
    fell: Option<Instant>,
    standing_since: Option<Instant>,
    rtt: Option<Duration>,
}

/// What the link carried each time a queue grew: its mean, and how far from it they were (draft-ietf-rmcat-gcc-02 section 5.5).
#[derive(Debug, Default, Clone, Copy)]
struct Convergence {
    mean: Option<u64>,
    deviation: u64,
}

impl Estimator {
    /// The round trip is known anew.
    pub const fn handle_rtt(&mut self, rtt: Duration) {
        self.rtt = Some(rtt);
    }

    /// Takes a message in and says what is known now; `None` before anything is.
    pub fn handle_arrivals(&mut self, now: Instant, arrivals: &Arrivals) -> Option<Estimate> {
        let mut over = false;
        for group in &arrivals.groups {
            self.delay.handle_group(now, group);
            self.carried.handle_group(group.arrived, group.bytes);
            over |= self.delay.usage() == Usage::Over;
        }
        for train in &arrivals.trains {
            if self.trains.len() >= TRAINS {
                self.trains.pop_front();
            }
            self.trains.push_back((now, train_rate(*train)));
        }
        while self
            .trains
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > TRAINS_AGE)
        {
            self.trains.pop_front();
        }
        let elapsed = self
            .updated
            .replace(now)
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
            .min(ELAPSED_MAX);

        self.overused = self.delay.queue() > STANDING;
        if !self.overused {
            self.standing_since = None;
        } else if self.standing_since.is_none() {
            self.standing_since = Some(now);
        }
        if let Verdict::Limited(limit) = self.loss.handle_arrivals(now, arrivals) {
            self.fall(now, limit);
        }
        let lasting = self
            .standing_since
            .is_some_and(|since| now.saturating_duration_since(since) > DRAINS_WITHIN);
        if self.overused && (over || lasting) {
            self.fight(now, over, lasting);
        } else if !self.overused && self.delay.usage() != Usage::Over {
            self.rise(now, elapsed);
        }
        if let Some(probed) = self.probe.handle_arrivals(arrivals, self.queue()) {
            self.handle_probed(probed);
        }
        self.estimate()
    }

    /// What is known now.
    pub fn estimate(&self) -> Option<Estimate> {
        let limit = self.loss.limit().unwrap_or(RATE_MAX).min(RATE_MAX);
        self.rate.map(|rate| Estimate {
            rate: Bitrate(rate.min(limit)),
            overused: self.overused,
            limited: self.limited,
        })
    }

    /// The probe that ended with the last message.
    pub const fn poll_probed(&mut self) -> Option<Probed> {
        self.probed.take()
    }

    /// How long packets wait in the network, by the newest that arrived.
    pub fn queue(&self) -> Duration {
        Duration::from_micros(
            u64::try_from(self.delay.queue())
                .unwrap_or(0)
                .saturating_mul(125),
        )
    }

    /// Of 1000 packets, lost lately.
    pub const fn loss_permille(&self) -> u32 {
        self.loss.permille()
    }

    /// A queue grows or stays: what arrived meanwhile is what the link carries, and a bit less lets it drain.
    fn fight(&mut self, now: Instant, over: bool, lasting: bool) {
        let busy = self.delay.busy_since();
        let Some(carried) = self.carried.rate(busy, CARRIED_SPAN, BUSY_SPAN_MIN) else {
            return;
        };
        let link = self.median(3);
        // Where trains come through much faster, packets are late for another reason: a cell that pauses, another route.
        // But those that have been wrong about what is left for us, as where others share the link, excuse nothing.
        let excused = link.is_some_and(|link| link / 2 > carried / 4 * 3)
            && !(lasting && self.distrusts(now));
        let long = over && self.delay.queue() > LONG;
        if excused && !long {
            return;
        }
        self.link.add(carried);
        // A pause of the link can look like its end: by half for each message at most.
        let half = self.rate.unwrap_or_default() / 2;
        self.fall(now, (carried / 100 * BETA_PERCENT).max(half));
    }

    fn fall(&mut self, now: Instant, to: u64) {
        if let Some(link) = self.median(TRAINS)
            && self.trains.len() >= 3
            && link / 3 > to / 2
        {
            let wait = self.distrust.unwrap_or(DISTRUST);
            self.distrust = Some((wait * 2).min(DISTRUST_MAX));
            self.distrusted = Some(now + wait);
        }
        self.trains.clear();
        self.limited = true;
        self.fell = Some(now);
        self.rate = Some(self.rate.map_or(to, |rate| rate.min(to)));
    }

    /// Without a queue in the network the link carries at least what arrives, and what trains say; they are believed step by step,
    /// since a receiver that reads in batches shows them faster than they were.
    fn rise(&mut self, now: Instant, elapsed: Duration) {
        let response = self.rtt.unwrap_or_default() + RESPONSE;
        let rests = self
            .fell
            .is_some_and(|fell| now.saturating_duration_since(fell) < response + REST);
        if rests || self.delay.usage() == Usage::Under {
            return;
        }
        let carried = self.carried.rate(None, CARRIED_SPAN, CARRIED_SPAN_MIN);
        let Some(floor) = self.rate.or(carried) else {
            return;
        };
        let carried = carried.unwrap_or(0);
        self.link.forget_below(carried);
        let mut rate = floor.max(carried);
        let room = carried.saturating_mul(3) / 2;
        if rate < room {
            let step = if self.link.is_near(rate) {
                STEP_BYTES * 8 * micros(elapsed) / micros(response).max(1)
            } else {
                rate / 100 * GROWTH_PERCENT * micros(elapsed) / 1_000_000
            };
            rate = rate.saturating_add(step).min(room);
        }
        if let Some(link) = self.median(TRAINS) {
            let fastest = self.trains.iter().map(|(_, rate)| *rate).max();
            let slow = fastest.is_some_and(|fastest| fastest < rate / 5 * 4);
            if slow && self.trains.len() >= TRAINS {
                rate = link.max(carried);
            } else if !self.distrusts(now) {
                rate = rate.max((link - link / 20).min(floor.saturating_mul(2)));
            }
        }
        self.rate = Some(rate.min(RATE_MAX));
    }

    fn handle_probed(&mut self, probed: Probed) {
        let Bitrate(carried) = probed.carried;
        if probed.whole {
            self.rate = Some(self.rate.map_or(carried, |rate| rate.max(carried)));
            self.link.forget_below(carried);
        } else {
            self.limited = true;
            let arrives = self.carried.rate(None, CARRIED_SPAN, CARRIED_SPAN_MIN);
            let bound = (carried / 20 * 19).max(arrives.unwrap_or(0));
            self.rate = self.rate.map(|rate| rate.min(bound));
        }
        self.probed = Some(probed);
    }

    /// Trains have been wrong lately.
    fn distrusts(&self, now: Instant) -> bool {
        self.distrusted.is_some_and(|until| now < until)
    }

    /// The median of the newest trains, at most `count`.
    fn median(&self, count: usize) -> Option<u64> {
        let newest = self.trains.iter().rev().take(count);
        let mut sorted: SmallVec<[u64; TRAINS]> = newest.map(|(_, rate)| *rate).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

impl Convergence {
    fn add(&mut self, carried: u64) {
        let Some(mean) = self.mean else {
            self.mean = Some(carried);
            self.deviation = carried / 10;
            return;
        };
        self.deviation = (self.deviation * 3 + mean.abs_diff(carried)) / 4;
        self.mean = Some((mean * 3 + carried) / 4);
    }

    fn is_near(&self, rate: u64) -> bool {
        self.mean
            .is_some_and(|mean| mean.abs_diff(rate) <= self.deviation.saturating_mul(3))
    }

    /// More than that arrives: the link is another one.
    fn forget_below(&mut self, carried: u64) {
        if self
            .mean
            .is_some_and(|mean| carried > mean + self.deviation.saturating_mul(3))
        {
            self.mean = None;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn train_rate(train: Train) -> u64 {
    // Arrivals are told in steps of 250 µs; none apart at all means faster than can be told.
    let micros = u64::from(train.micros).max(125);
    u64::from(train.bytes).saturating_mul(8_000_000) / micros
}
