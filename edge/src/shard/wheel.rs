//! A hashed timer wheel: one entry per viewer instead of one tokio timer.
//!
//! Entries fire up to one [`TICK`] late and never early. Those further ahead than a turn of the wheel stay in their bucket until
//! their turn comes. An entry can't be taken out: whoever gets a stale one ignores it. All buckets share one slab of entries, which grows to the
//! most there ever were at a time, and not to the most of each bucket.

use std::time::{Duration, Instant};

use slab::Slab;

/// Resolution of the wheel: that of the shortest timer, the pauses of a viewer that catches up.
const TICK: Duration = Duration::from_millis(4);
const TICKS_PER_SECOND: u64 = 250;

/// Buckets (count): a turn is 4.1 s, so that the usual timers (reports, a flight) are touched once.
const BUCKETS: usize = 1024;

/// Timers of type `K`.
#[derive(Debug)]
pub(crate) struct Wheel<K> {
    start: Instant,
    /// The next tick to look at.
    tick: u64,
    /// The first entry of each.
    buckets: Vec<Option<usize>>,
    entries: Slab<Entry<K>>,
}

#[derive(Debug)]
struct Entry<K> {
    at: u64,
    key: K,
    /// The next one of its bucket.
    next: Option<usize>,
}

impl<K: Copy> Wheel<K> {
    /// An empty wheel.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            start: now,
            tick: 0,
            buckets: vec![None; BUCKETS],
            entries: Slab::new(),
        }
    }

    /// Fires `key` at `at`, or with the next turn if that has passed.
    pub(crate) fn schedule(&mut self, at: Instant, key: K) {
        let at = self.tick_after(at).max(self.tick);
        let first = &mut self.buckets[Self::bucket(at)];
        let next = *first;
        *first = Some(self.entries.insert(Entry { at, key, next }));
    }

    /// Moves what is due to `due`.
    pub(crate) fn poll_expired(&mut self, now: Instant, due: &mut Vec<K>) {
        let elapsed = now.saturating_duration_since(self.start);
        let last = u64::try_from(elapsed.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX);
        // After a stall longer than a turn one round visits every bucket.
        let first = self.tick.max(last.saturating_sub(BUCKETS as u64 - 1));
        for tick in first..=last {
            let bucket = Self::bucket(tick);
            let mut rest = self.buckets[bucket].take();
            while let Some(slot) = rest {
                let entry = &mut self.entries[slot];
                rest = entry.next;
                if entry.at <= last {
                    due.push(self.entries.remove(slot).key);
                } else {
                    entry.next = self.buckets[bucket].replace(slot);
                }
            }
        }
        self.tick = self.tick.max(last + 1);
    }

    /// When to call [`Self::poll_expired`] next: at the latest then, an entry may be due. `None` when there are none.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if self.entries.is_empty() {
            return None;
        }
        let ahead = (0..BUCKETS as u64)
            .find(|ahead| self.buckets[Self::bucket(self.tick + ahead)].is_some())
            .unwrap_or(0);
        // Seconds and the rest apart, since a `Duration` is multiplied by 32 bits only, which are 199 days of ticks.
        let ticks = self.tick + ahead;
        let (seconds, rest) = (ticks / TICKS_PER_SECOND, ticks % TICKS_PER_SECOND);
        let rest = u32::try_from(rest).unwrap_or(0);
        Some(self.start + Duration::from_secs(seconds) + TICK * rest)
    }

    const fn bucket(tick: u64) -> usize {
        // The remainder is below BUCKETS.
        #[expect(clippy::cast_possible_truncation, reason = "below BUCKETS")]
        let bucket = (tick % BUCKETS as u64) as usize;
        bucket
    }

    /// The first tick not before `at`.
    fn tick_after(&self, at: Instant) -> u64 {
        let ahead = at.saturating_duration_since(self.start);
        u64::try_from(ahead.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_memory_is_that_of_the_most_at_a_time() {
        let mut now = start();
        let mut wheel = Wheel::new(now);
        let mut due = Vec::new();
        // Ten turns of the wheel, a hundred entries at a time, each time in another bucket.
        for _ in 0..10 * BUCKETS {
            for key in 0..100 {
                wheel.schedule(now + TICK, key);
            }
            now += 2 * TICK;
            wheel.poll_expired(now, &mut due);
            assert_eq!(due.len(), 100);
            due.clear();
        }
        assert!(wheel.entries.capacity() < 256);
        assert_eq!(wheel.poll_timeout(), None);
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    proptest::proptest! {
        #[test]
        fn each_fires_once_not_early_and_at_most_a_tick_late(
            delays in proptest::collection::vec(0_u64..40_000, 1..50),
            step in 1_u64..6000,
        ) {
            let now = start();
            let mut wheel = Wheel::new(now);
            for (i, delay) in delays.iter().enumerate() {
                wheel.schedule(now + Duration::from_millis(*delay), i);
            }
            let mut fired = vec![None; delays.len()];
            let mut at = 0;
            while at < 50_000 {
                let mut due = Vec::new();
                wheel.poll_expired(now + Duration::from_millis(at), &mut due);
                for i in due {
                    proptest::prop_assert!(fired[i].replace(at).is_none());
                }
                at += step;
            }
            proptest::prop_assert_eq!(wheel.poll_timeout(), None);
            for (delay, fired) in delays.iter().zip(fired) {
                let fired = fired.expect("fired");
                proptest::prop_assert!(fired >= *delay && fired < *delay + 4 + step);
            }
        }
    }

    #[test]
    fn the_timeout_goes_on_past_32_bits_of_ticks() {
        let start = start();
        let mut wheel = Wheel::new(start);
        let later = start + Duration::from_secs(200 * 24 * 3600);
        wheel.poll_expired(later, &mut Vec::new());
        let at = later + Duration::from_millis(100);
        wheel.schedule(at, 'a');
        let named = wheel.poll_timeout().expect("one entry");
        assert!((at..at + TICK).contains(&named));
    }

    #[test]
    fn the_timeout_names_the_next_entry() {
        let now = start();
        let mut wheel = Wheel::new(now);
        assert_eq!(wheel.poll_timeout(), None);
        wheel.schedule(now + Duration::from_millis(100), 'a');
        let at = wheel.poll_timeout().expect("one entry");
        assert!(at >= now + Duration::from_millis(100));
        assert!(at < now + Duration::from_millis(104));
        let mut due = Vec::new();
        wheel.poll_expired(at, &mut due);
        assert_eq!(due, ['a']);
    }
}
