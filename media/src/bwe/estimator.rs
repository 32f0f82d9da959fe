//! The estimate.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::{Arrivals, Train};
use crate::id::Bitrate;

/// Time over which the rate of arrivals is measured, in units of 250 µs: 500 ms hold several pictures.
const ARRIVALS_SPAN: i64 = 2000;
/// Less than this says nothing about a rate: 60 ms, two pictures.
const ARRIVALS_SPAN_MIN: i64 = 240;

/// Trains that the link's rate is the median of (count): one that a busy receiver read late does no harm.
const TRAINS: usize = 5;

/// A queue stands in the network when even the fastest of a message's packets took this much longer than the fastest lately (units of
/// 125 µs: 25 ms). Wireless links shake by less.
const STANDING: i64 = 200;
/// By how much it must have grown since the message before, to be of our making (1 ms).
const GROWING: i64 = 8;

/// The fastest packet is looked for in the present and the last window of this length: clocks drift apart, and routes change.
const WINDOW: Duration = Duration::from_secs(10);
/// A larger leap is of a clock, not of the network (units of 125 µs: 5 s).
const LEAP: i64 = 40_000;

/// Of 100 packets, lost: with a standing queue this means that it is full.
const LOSS_PERCENT_FULL: u32 = 10;

/// The estimate is at most this (bits per second), so that nothing computed from it overflows.
const RATE_MAX: u64 = 1_000_000_000;

/// What a link carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Estimate {
    /// Bits per second of RTP.
    pub rate: Bitrate,
    /// A queue stands in the network: sending more than `rate` makes it longer.
    pub overused: bool,
}

/// See [`crate::bwe`]. Feed it each feedback message.
#[derive(Debug, Default)]
pub struct Estimator {
    rate: Option<u64>,
    overused: bool,
    /// (last arrival, bytes) of the latest messages.
    arrived: VecDeque<(i64, u64)>,
    trains: VecDeque<u64>,
    fastest: Option<Fastest>,
    /// How much longer than the fastest the message before took.
    standing: i64,
}

/// The least delay of the present and of the last window.
#[derive(Debug, Clone, Copy)]
struct Fastest {
    since: Instant,
    present: i64,
    last: i64,
}

impl Estimator {
    /// Takes a message in and says what is known now; `None` before anything is.
    pub fn handle_arrivals(&mut self, now: Instant, arrivals: &Arrivals) -> Option<Estimate> {
        let carried = self.carried(arrivals);
        for train in &arrivals.trains {
            if self.trains.len() >= TRAINS {
                self.trains.pop_front();
            }
            self.trains.push_back(train_rate(*train));
        }
        if let Some(delay) = arrivals.delay_min {
            let standing = self.standing(now, delay);
            let full = arrivals.lost * 100
                > (arrivals.received + arrivals.lost).saturating_mul(LOSS_PERCENT_FULL);
            let growing = standing > self.standing.saturating_add(GROWING);
            self.standing = standing;
            self.overused = standing > STANDING;
            if self.overused && (growing || full) {
                // What arrived while the queue grew is what the link carries; a bit less lets it drain.
                if let Some(carried) = carried {
                    let carried = carried / 100 * 85;
                    self.rate = Some(self.rate.map_or(carried, |rate| rate.min(carried)));
                }
            }
        }
        if !self.overused {
            self.rise(carried);
        }
        self.estimate()
    }

    /// What is known now.
    pub fn estimate(&self) -> Option<Estimate> {
        self.rate.map(|rate| Estimate {
            rate: Bitrate(rate.min(RATE_MAX)),
            overused: self.overused,
        })
    }

    /// Without a queue in the network the link carries at least what arrives, and what trains say; they are believed step by step,
    /// since a receiver that reads in batches shows them faster than they were.
    fn rise(&mut self, carried: Option<u64>) {
        let Some(floor) = self.rate.or(carried) else {
            return;
        };
        let mut rate = floor.max(carried.unwrap_or(0));
        if let Some(link) = median(&self.trains) {
            rate = if link < rate / 5 * 4 && self.trains.len() >= TRAINS {
                link.max(carried.unwrap_or(0))
            } else {
                rate.max(link.min(floor.saturating_mul(2)))
            };
        }
        self.rate = Some(rate.min(RATE_MAX));
    }

    /// Bits per second that arrived lately.
    fn carried(&mut self, arrivals: &Arrivals) -> Option<u64> {
        let (first, last) = arrivals.span?;
        // Behind the newest: a message that came late, or a clock that was set back.
        if self.arrived.back().is_some_and(|(at, _)| *at > last) {
            self.arrived.clear();
        }
        let before = self.arrived.front().map_or(first, |(at, _)| *at);
        let known: u64 = self.arrived.iter().skip(1).map(|(_, bytes)| bytes).sum();
        self.arrived.push_back((last, arrivals.bytes));
        while self
            .arrived
            .front()
            .is_some_and(|(at, _)| last.saturating_sub(*at) > ARRIVALS_SPAN)
            && self.arrived.len() > 1
        {
            self.arrived.pop_front();
        }
        let span = last.saturating_sub(before);
        if span < ARRIVALS_SPAN_MIN {
            return None;
        }
        let bits = known.saturating_add(arrivals.bytes).saturating_mul(8);
        Some(bits.saturating_mul(4000) / u64::try_from(span).ok()?.max(1))
    }

    /// How much longer than the fastest lately the fastest packet of a message took.
    fn standing(&mut self, now: Instant, delay: i64) -> i64 {
        let fastest = self.fastest.filter(|fastest| {
            delay.abs_diff(fastest.present.min(fastest.last)) < LEAP.unsigned_abs()
        });
        let mut fastest = fastest.unwrap_or(Fastest {
            since: now,
            present: delay,
            last: delay,
        });
        if now.saturating_duration_since(fastest.since) >= WINDOW {
            fastest = Fastest {
                since: now,
                present: delay,
                last: fastest.present,
            };
        }
        fastest.present = fastest.present.min(delay);
        self.fastest = Some(fastest);
        delay.saturating_sub(fastest.present.min(fastest.last))
    }
}

fn train_rate(train: Train) -> u64 {
    // Arrivals are told in steps of 250 µs; none apart at all means faster than can be told.
    let micros = u64::from(train.micros).max(125);
    u64::from(train.bytes).saturating_mul(8_000_000) / micros
}

fn median(values: &VecDeque<u64>) -> Option<u64> {
    let mut sorted: SmallVec<[u64; TRAINS]> = values.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}
