//! Whether packets are lost because too many are sent.
//!
//! draft-ietf-rmcat-gcc-02 section 6 lets less than 10 % pass. Here that is 8 % above what the path loses anyway, which is thought to be 2 % at first: when a lower rate
//! doesn't lower the loss, it is not ours, and the limit is lifted.

use std::time::{Duration, Instant};

use super::Arrivals;

/// Loss is judged over so much time, and so many packets (count).
const INTERVAL: Duration = Duration::from_millis(400);
const PACKETS_MIN: u32 = 20;
/// So much above what the path loses anyway is congestion, so little isn't (of 1000 packets).
const EXCESS_MAX: u32 = 80;
const EXCESS_FINE: u32 = 20;
/// What a path is thought to lose anyway, at first and at most (of 1000 packets).
const INHERENT: u32 = 20;
const INHERENT_MAX: u32 = 300;
/// Once is a moment without a connection; so many intervals in a row are congestion.
const INTERVALS: u32 = 2;
/// The limit grows by this each second without loss (per cent).
const GROWTH_PERCENT: u64 = 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Loss {
    interval: Interval,
    limit: Option<u64>,
    inherent: Option<u32>,
    /// What the rate was limited for: loss and rate of sending at the time.
    fault: Option<Fault>,
    /// Intervals in a row with too much loss (count).
    bad: u32,
    permille: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct Interval {
    since: Option<Instant>,
    received: u32,
    lost: u32,
    received_bytes: u64,
    lost_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    permille: u32,
    sent: u64,
    judged: u32,
}

/// What became of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing new.
    Nothing,
    /// Too much is sent: the link carries this (bits per second).
    Limited(u64),
}

impl Loss {
    /// Takes a message in.
    pub(super) fn handle_arrivals(&mut self, now: Instant, arrivals: &Arrivals) -> Verdict {
        let interval = &mut self.interval;
        let since = *interval.since.get_or_insert(now);
        interval.received = interval.received.saturating_add(arrivals.received);
        interval.lost = interval.lost.saturating_add(arrivals.lost);
        interval.received_bytes = interval.received_bytes.saturating_add(arrivals.bytes);
        interval.lost_bytes = interval.lost_bytes.saturating_add(arrivals.lost_bytes);
        let elapsed = now.saturating_duration_since(since);
        let packets = interval.received.saturating_add(interval.lost);
        if elapsed < INTERVAL || packets < PACKETS_MIN {
            return Verdict::Nothing;
        }
        let done = std::mem::take(interval);
        self.interval.since = Some(now);
        self.judge(elapsed, done)
    }

    /// The most that may be sent (bits per second).
    pub(super) const fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Of 1000 packets, lost in the last interval.
    pub(super) const fn permille(&self) -> u32 {
        self.permille
    }

    fn judge(&mut self, elapsed: Duration, done: Interval) -> Verdict {
        let packets = u64::from(done.received) + u64::from(done.lost);
        let permille = u64::from(done.lost) * 1000 / packets.max(1);
        let permille = u32::try_from(permille).unwrap_or(1000);
        self.permille = permille;
        let micros = u64::try_from(elapsed.as_micros())
            .unwrap_or(u64::MAX)
            .max(1);
        let rate = |bytes: u64| bytes.saturating_mul(8_000_000) / micros;
        let received = rate(done.received_bytes);
        let sent = rate(done.received_bytes.saturating_add(done.lost_bytes));

        let inherent = self.inherent.unwrap_or(INHERENT);
        let excess = permille.saturating_sub(inherent);
        if let Some(fault) = &mut self.fault
            && sent < fault.sent / 20 * 17
        {
            // Less is sent now. If no less of it is lost, it is lost anyway.
            fault.judged += 1;
            if fault.judged >= 2 {
                if permille.saturating_mul(10) > fault.permille.saturating_mul(7) {
                    self.inherent = Some(permille.min(INHERENT_MAX));
                    self.limit = None;
                }
                self.fault = None;
                return Verdict::Nothing;
            }
        }
        if excess > EXCESS_MAX {
            self.bad += 1;
            if self.bad < INTERVALS {
                return Verdict::Nothing;
            }
            // What comes next was sent before this can have changed anything.
            self.bad = 0;
            if self.fault.is_none() {
                self.fault = Some(Fault {
                    permille,
                    sent,
                    judged: 0,
                });
            }
            let limit = received.max(sent / 2);
            let limit = self.limit.map_or(limit, |before| before.min(limit));
            self.limit = Some(limit);
            return Verdict::Limited(limit);
        }
        self.bad = 0;
        if permille < inherent {
            let slowly = (inherent * 15 + permille) / 16;
            self.inherent = Some(slowly.max(INHERENT));
        }
        if let Some(limit) = self.limit
            && excess <= EXCESS_FINE
        {
            let step = (limit / 100 * GROWTH_PERCENT).saturating_mul(micros) / 1_000_000;
            let grown = limit.saturating_add(step);
            let grown = grown.max(received);
            // It bounds nothing any more.
            self.limit = (grown < sent.saturating_mul(2)).then_some(grown);
        }
        Verdict::Nothing
    }
}
