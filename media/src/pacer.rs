//! How fast a viewer's packets leave: a token bucket whose rate follows what is known of the link.
//!
//! Nothing queues here. A viewer's queue is the part of the shared packet ring that is still ahead of it; the pacer only says how
//! many bytes may leave now, and when to ask again. Sound and retransmissions never ask, but they are counted, so that pictures
//! make room for them.
//!
//! | viewer | at the live edge | while it runs up to the live edge ([`Pacer::handle_start`]) |
//! |---|---|---|
//! | tells when packets arrive (transport-cc) | 1.5 × estimate; 2.5 × the rendition before the first one | the estimate itself; 2.5 × the rendition before the first one |
//! | the same, whose link has shown no limit | at least 2 Mbit/s: a still or dark picture, of which little is sent, proves little | the same |
//! | does not | nothing but the highest rate | 1.75 × the rendition, after 2 s a quarter more every 500 ms until it reports losses |
//!
//! The highest rate is 64 Mbit/s, or four times the rendition if that is more.

use std::time::{Duration, Instant};

use crate::bwe::Estimate;
use crate::id::Bitrate;

/// What may leave at once, as time at the pacing rate. libwebrtc's pacer has the same burst; an ordinary picture is below it and so
/// leaves as one GSO message, and a keyframe is spread.
const BURST: Duration = Duration::from_millis(40);
/// The least burst (bytes): two packets.
const BURST_BYTES_MIN: u64 = 2400;
/// The largest burst (bytes): 64 packets. A receiver with the kernel's default buffer of 208 kB has room for about 90.
const BURST_BYTES_MAX: u64 = 76_800;
/// More only at rates that make it shorter than this, the least time between two pieces and what timers add to it.
const BURST_MIN: Duration = Duration::from_millis(9);
/// Once the burst is used up, pieces of this length at the pacing rate leave: each costs a system call's share. They are at most half a
/// burst, so that a timer that is late by as much costs nothing of the rate.
const PIECE: Duration = Duration::from_millis(8);
/// No estimate lowers the rate below this (bits per second): sound and reports still have to get through.
const RATE_MIN: u64 = 100_000;
/// The rendition's bitrate as long as it is not known (bits per second).
const MEDIA_RATE_ASSUMED: u64 = 2_000_000;
/// A link that has shown no limit is taken to carry so much (bits per second), however little has been sent.
const UNLIMITED_RATE_MIN: u64 = 2_000_000;
/// The highest rate (bits per second): what a link that is whole again brings at once, or a GOP that a viewer starts with, has no room in a
/// receiver's buffer before that is scheduled.
const RATE_MAX: u64 = 64_000_000;
/// A rate that is so many times the rendition is never too high, and enough to make up soon for all that a viewer lacks.
const AMPLE: u64 = 4;
/// A viewer without feedback is taken to carry so much (bits per second), however little its rendition needs now: sound has its part of it.
const UNINFORMED_RATE_MIN: u64 = 500_000;
/// How long a viewer without feedback must be silent about losses before its rate grows by a quarter for the first time, and then again. A
/// GOP of two seconds is through before, no faster than a link can carry that has room for little more than the rendition; of a longer
/// one little is lost until a full queue is heard of.
const GROWTH_AFTER: Duration = Duration::from_secs(2);
const GROWTH: Duration = Duration::from_millis(500);
/// Steps after which any rate has reached [`RATE_MAX`].
const GROWTH_STEPS_MAX: u128 = 32;
/// How long nothing more is sent to a viewer without feedback when it reports the first losses, so that the queue in its network drains: what
/// home routers hold.
const DRAIN: Duration = Duration::from_millis(250);

/// How long that is remembered: a PLI or two, and the next keyframe of most publishers.
const CONGESTED: Duration = Duration::from_secs(4);

/// See the module. One for each viewer.
#[derive(Debug, Clone)]
pub struct Pacer {
    /// The viewer sends transport-wide feedback.
    informed: bool,
    media_rate: u64,
    estimate: Option<Estimate>,
    /// Bytes that may leave; negative after a packet that was larger, or that didn't ask.
    budget_bytes: i64,
    /// When the budget was right.
    at: Instant,
    /// Since when the viewer runs up to the live edge, if it does.
    start: Option<Instant>,
    /// When a viewer without feedback last reported losses while it ran up.
    congested: Option<Instant>,
}

impl Pacer {
    /// `informed`: the viewer sends transport-wide feedback.
    pub const fn new(informed: bool, now: Instant) -> Self {
        Self {
            informed,
            media_rate: MEDIA_RATE_ASSUMED,
            estimate: None,
            budget_bytes: 0,
            at: now,
            start: None,
            congested: None,
        }
    }

    /// The rendition's bitrate, as measured; `None` leaves the one known before.
    pub fn handle_media_rate(&mut self, now: Instant, rate: Option<Bitrate>) {
        if let Some(Bitrate(rate)) = rate.filter(|rate| rate.0 > 0) {
            self.refill(now);
            self.media_rate = rate;
        }
    }

    /// What the link carries, by the viewer's feedback.
    pub fn handle_estimate(&mut self, now: Instant, estimate: Estimate) {
        self.refill(now);
        self.estimate = Some(estimate);
    }

    /// The viewer begins to run up to the live edge. `keyframe_bytes` is what it must have to show its first picture; a viewer
    /// without feedback gets that at once.
    pub fn handle_start(&mut self, now: Instant, keyframe_bytes: u64) {
        self.refill(now);
        self.start = Some(now);
        if self.informed {
            self.budget_bytes = self.budget_bytes.max(self.full(now));
            return;
        }
        let free = keyframe_bytes.max(self.burst_bytes(now));
        self.budget_bytes = i64::try_from(free).unwrap_or(i64::MAX);
        // It stands in the queue of a slow link until then.
        self.at = now + time_of(free, self.rate(now).0);
    }

    /// The viewer has reached the live edge.
    pub fn handle_caught_up(&mut self, now: Instant) {
        let started = self.start.take().is_some();
        if started && !self.informed {
            // What it was given in advance is nothing to wait for any more.
            self.at = now;
            self.budget_bytes = self.full(now);
        }
    }

    /// The viewer asked for lost packets. One without feedback has no better way to say that its link is full.
    pub fn handle_losses(&mut self, now: Instant) {
        self.refill(now);
        if self.informed || self.start.is_none() {
            return;
        }
        let first = !self.is_congested(now);
        self.congested = Some(now);
        // It has to be silent anew before more is tried.
        self.start = Some(now);
        if first {
            let drain = bytes_in(self.rate(now).0, DRAIN);
            let drain = i64::try_from(drain).unwrap_or(i64::MAX);
            self.budget_bytes = self.budget_bytes.min(0).saturating_sub(drain);
        }
    }

    /// The viewer, which has no better way to say it, lost packets lately while it ran up to the live edge. Running up once more would
    /// only repeat that.
    pub fn is_congested(&self, now: Instant) -> bool {
        self.congested
            .is_some_and(|at| now.saturating_duration_since(at) < CONGESTED)
    }

    /// The viewer is running up to the live edge.
    pub const fn is_starting(&self) -> bool {
        self.start.is_some()
    }

    /// Bits per second at which pictures leave now.
    pub fn rate(&self, now: Instant) -> Bitrate {
        let first = self.media_rate.saturating_mul(5) / 2;
        let most = RATE_MAX.max(self.media_rate.saturating_mul(AMPLE));
        let rate = match (self.informed, self.start, self.estimate) {
            (false, None, _) => most,
            (false, Some(_), _) if self.is_congested(now) => {
                let least = self.media_rate.saturating_mul(5) / 4;
                least.max(UNINFORMED_RATE_MIN)
            }
            (false, Some(start), _) => {
                let first = self.media_rate.saturating_mul(7) / 4;
                let first = first.max(UNINFORMED_RATE_MIN);
                let silent = now.saturating_duration_since(start);
                let steps = match silent.checked_sub(GROWTH_AFTER) {
                    Some(more) => 1 + more.as_millis() / GROWTH.as_millis(),
                    None => 0,
                };
                (0..steps.min(GROWTH_STEPS_MAX)).fold(first, |rate, _| most.min(rate / 4 * 5))
            }
            (true, _, None) => first,
            (true, start, Some(estimate)) => {
                let carried = estimate.rate.0;
                if estimate.overused {
                    // The queue in the network has to drain.
                    carried
                } else {
                    let rate = match start {
                        Some(_) => carried,
                        None => carried.saturating_mul(3) / 2,
                    };
                    // A link without a queue carries what is sent, however little it was estimated at when less was sent.
                    let rate = rate.max(self.media_rate.saturating_mul(5) / 4);
                    if estimate.limited {
                        rate
                    } else {
                        rate.max(UNLIMITED_RATE_MIN)
                    }
                }
            }
        };
        Bitrate(rate.clamp(RATE_MIN, most))
    }

    /// All that a viewer at the live edge lacks is made up soon: nothing of it is worth dropping.
    pub fn is_ample(&self, now: Instant) -> bool {
        self.start.is_none() && self.rate(now).0 >= self.media_rate.saturating_mul(AMPLE)
    }

    /// Bytes that may leave now. A packet may leave while this is above zero, whatever its size.
    pub fn allowance(&mut self, now: Instant) -> u64 {
        self.refill(now);
        u64::try_from(self.budget_bytes).unwrap_or(0)
    }

    /// Bytes left.
    pub fn handle_sent(&mut self, now: Instant, bytes: u64) {
        self.refill(now);
        self.budget_bytes = self
            .budget_bytes
            .saturating_sub_unsigned(bytes)
            .max(-i64::from(u32::MAX));
    }

    /// When the next piece may leave, once [`Self::allowance`] is used up.
    pub fn next_at(&mut self, now: Instant) -> Instant {
        let Bitrate(rate) = self.rate(now);
        self.refill(now);
        let piece = bytes_in(rate, PIECE).min(self.burst_bytes(now) / 2);
        let piece = piece.max(BURST_BYTES_MIN);
        let missing = i64::try_from(piece).unwrap_or(i64::MAX) - self.budget_bytes;
        let missing = u64::try_from(missing).unwrap_or(0);
        self.at.max(now) + time_of(missing, rate)
    }

    /// How long it takes until `bytes` have left at the present rate.
    pub fn time_to_send(&self, now: Instant, bytes: u64) -> Duration {
        time_of(bytes, self.rate(now).0)
    }

    fn burst_bytes(&self, now: Instant) -> u64 {
        let Bitrate(rate) = self.rate(now);
        let most = BURST_BYTES_MAX.max(bytes_in(rate, BURST_MIN));
        bytes_in(rate, BURST).clamp(BURST_BYTES_MIN, most)
    }

    /// A budget of one burst.
    fn full(&self, now: Instant) -> i64 {
        i64::try_from(self.burst_bytes(now)).unwrap_or(i64::MAX)
    }

    /// Adds what was earned since the last time, at the rate that held until now.
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let Bitrate(rate) = self.rate(now);
        let burst = self.full(now);
        if self.budget_bytes < burst {
            let earned = i64::try_from(bytes_in(rate, elapsed)).unwrap_or(i64::MAX);
            self.budget_bytes = self.budget_bytes.saturating_add(earned).min(burst);
        }
    }
}

fn bytes_in(bits_per_second: u64, time: Duration) -> u64 {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    bits_per_second.saturating_mul(micros) / 8_000_000
}

fn time_of(bytes: u64, bits_per_second: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(8_000_000) / bits_per_second.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    const MEDIA: Bitrate = Bitrate(2_000_000);

    fn pacer(informed: bool, now: Instant) -> Pacer {
        let mut pacer = Pacer::new(informed, now);
        pacer.handle_media_rate(now, Some(MEDIA));
        pacer
    }

    fn estimate(rate: u64, overused: bool) -> Estimate {
        Estimate {
            rate: Bitrate(rate),
            overused,
            limited: true,
        }
    }

    fn rate(pacer: &Pacer, now: Instant) -> u64 {
        pacer.rate(now).0
    }

    /// Sends packets of 1200 B whenever it may; how many bytes left in `time`.
    fn drain(pacer: &mut Pacer, from: Instant, time: Duration) -> u64 {
        let (mut now, mut sent) = (from, 0);
        while now < from + time {
            while pacer.allowance(now) > 0 {
                pacer.handle_sent(now, 1200);
                sent += 1200;
            }
            let next = pacer.next_at(now);
            assert!(next > now, "it would spin");
            now = next;
        }
        sent
    }

    #[test]
    fn the_rate_follows_what_is_known_of_the_link() {
        let now = testkit::start();
        let mut informed = pacer(true, now);
        assert_eq!(rate(&informed, now), 5_000_000);
        informed.handle_estimate(now, estimate(8_000_000, false));
        assert_eq!(rate(&informed, now), 12_000_000);
        informed.handle_start(now, 0);
        assert_eq!(rate(&informed, now), 8_000_000);
        informed.handle_caught_up(now);
        // While a queue stands in the network no more than it carries; else never less than the rendition needs.
        informed.handle_estimate(now, estimate(1_000_000, true));
        assert_eq!(rate(&informed, now), 1_000_000);
        informed.handle_estimate(now, estimate(1_000_000, false));
        assert_eq!(rate(&informed, now), 2_500_000);
    }

    #[test]
    fn a_dark_picture_says_little_of_the_link() {
        let now = testkit::start();
        let mut pacer = pacer(true, now);
        pacer.handle_media_rate(now, Some(Bitrate(12_000)));
        let dark = Estimate {
            limited: false,
            ..estimate(30_000, false)
        };
        pacer.handle_estimate(now, dark);
        assert_eq!(rate(&pacer, now), UNLIMITED_RATE_MIN);
        // A queue is one, and a limit once seen is one.
        pacer.handle_estimate(
            now,
            Estimate {
                overused: true,
                ..dark
            },
        );
        assert_eq!(rate(&pacer, now), RATE_MIN);
        pacer.handle_estimate(now, estimate(300_000, false));
        assert_eq!(rate(&pacer, now), 450_000);
    }

    #[test]
    fn a_viewer_without_feedback_is_held_back_only_until_it_is_live() {
        let now = testkit::start();
        let mut pacer = pacer(false, now);
        assert_eq!(rate(&pacer, now), RATE_MAX);
        assert!(pacer.is_ample(now));
        pacer.handle_start(now, 60_000);
        assert_eq!(pacer.allowance(now), 60_000);
        assert_eq!(rate(&pacer, now), 3_500_000);
        assert!(!pacer.is_ample(now));
        // Until the keyframe is through a link that carries no more, nothing follows it.
        pacer.handle_sent(now, 60_000);
        let through = pacer.next_at(now);
        assert!(
            through > now + Duration::from_micros(137_142),
            "{through:?}"
        );
        assert_eq!(pacer.allowance(now + Duration::from_millis(130)), 0);
        let later = now + Duration::from_millis(2600);
        assert_eq!(rate(&pacer, later), 3_500_000 * 25 / 16);
        assert_eq!(rate(&pacer, now + Duration::from_secs(60)), RATE_MAX);
        pacer.handle_losses(later);
        assert_eq!(rate(&pacer, later), 2_500_000);
        // After a while it tries again, from the beginning.
        let again = rate(&pacer, later + Duration::from_millis(4100));
        assert!(again > 10_000_000, "{again:?}");
        // It is remembered, though it waits for a keyframe meanwhile and is not held back.
        pacer.handle_caught_up(now);
        assert_eq!(rate(&pacer, later), RATE_MAX);
        assert!(pacer.is_congested(later + Duration::from_secs(3)));
        assert!(!pacer.is_congested(later + Duration::from_secs(5)));
        // Losses of a live viewer are no reason to hold anything back.
        let live = later + Duration::from_secs(6);
        pacer.handle_losses(live);
        assert!(!pacer.is_congested(live));
    }

    #[test]
    fn what_leaves_is_the_rate_and_one_burst() {
        for bits in [100_000_u64, 1_000_000, 3_000_000, 40_000_000] {
            let now = testkit::start();
            let mut pacer = pacer(true, now);
            pacer.handle_estimate(now, estimate(bits, true));
            let sent = drain(&mut pacer, now, Duration::from_secs(2));
            let expected = bits / 4;
            let slack = bytes_in(bits, BURST).max(BURST_BYTES_MIN) + 2400;
            assert!(
                (expected.saturating_sub(slack)..=expected + slack).contains(&sent),
                "{bits}: {sent} of {expected}"
            );
        }
    }

    #[test]
    fn however_fast_the_link_a_receivers_buffer_is_not_filled_at_once() {
        let now = testkit::start();
        for informed in [true, false] {
            let mut pacer = pacer(informed, now);
            pacer.handle_estimate(now, estimate(900_000_000, false));
            let later = now + Duration::from_secs(1);
            assert_eq!(pacer.allowance(later), BURST_BYTES_MAX);
            let sent = drain(&mut pacer, later, Duration::from_millis(100));
            assert!((800_000..900_000).contains(&sent), "{sent}");
            // More than that only for a rendition that needs more.
            pacer.handle_media_rate(later, Some(Bitrate(50_000_000)));
            assert_eq!(rate(&pacer, later), 200_000_000);
        }
    }

    #[test]
    fn idle_time_saves_up_one_burst_and_no_more() {
        let now = testkit::start();
        let mut pacer = pacer(true, now);
        let later = now + Duration::from_secs(60);
        assert_eq!(pacer.allowance(later), bytes_in(5_000_000, BURST));
    }

    #[test]
    fn what_does_not_ask_delays_what_does() {
        let now = testkit::start();
        let mut pacer = pacer(true, now);
        pacer.handle_start(now, 0);
        pacer.handle_sent(now, 100_000);
        assert_eq!(pacer.allowance(now), 0);
        let wait = pacer.next_at(now) - now;
        // 100 kB less the burst of 25 kB, and a piece of 5 kB, at 5 Mbit/s.
        assert_eq!(wait, Duration::from_millis(128));
    }

    proptest::proptest! {
        #[test]
        fn it_neither_spins_nor_overflows(rates in proptest::collection::vec((0_u64..=u64::MAX, proptest::bool::ANY), 1..20), informed in proptest::bool::ANY) {
            let mut now = testkit::start();
            let mut pacer = Pacer::new(informed, now);
            for (rate, overused) in rates {
                pacer.handle_estimate(now, estimate(rate, overused));
                pacer.handle_media_rate(now, Some(Bitrate(rate / 3)));
                pacer.handle_start(now, rate);
                pacer.handle_sent(now, rate);
                let next = pacer.next_at(now);
                proptest::prop_assert!(next >= now);
                now += Duration::from_millis(7);
                pacer.handle_caught_up(now);
                let _ = pacer.allowance(now);
            }
        }
    }
}
