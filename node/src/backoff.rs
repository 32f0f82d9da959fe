//! Waits between attempts: doubling up to a cap, with jitter, so that a thousand nodes that lost the same server don't
//! come back in step.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Yields the wait before each next attempt.
///
/// The n-th wait is uniform between half and all of `initial * 2^n`, at most `max`. The seed makes tests repeatable.
#[derive(Debug, Clone)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
    rng: SmallRng,
}

impl Backoff {
    /// From the first wait and the cap, with a seed of its own.
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self::seeded(initial, max, rand::rng().random())
    }

    /// As [`Self::new`], with a given seed.
    pub fn seeded(initial: Duration, max: Duration, seed: u64) -> Self {
        Self {
            initial,
            max,
            next: initial.min(max),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// How long to wait before the next attempt.
    pub fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        full.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Call after a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.next = self.initial.min(self.max);
    }
}

/// A uniformly random wait below `max`, to spread what many nodes would otherwise do at once.
pub fn jitter(max: Duration) -> Duration {
    max.mul_f64(rand::rng().random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_stay_within_the_jitter() {
        for seed in 0..50 {
            let mut backoff = Backoff::seeded(
                Duration::from_millis(100),
                Duration::from_millis(1000),
                seed,
            );
            for full_ms in [100, 200, 400, 800, 1000, 1000] {
                let wait = backoff.wait();
                let full = Duration::from_millis(full_ms);
                assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
            }
            backoff.reset();
            assert!(backoff.wait() <= Duration::from_millis(100));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut backoff = Backoff::seeded(Duration::from_secs(1), Duration::from_secs(9), seed);
            [backoff.wait(), backoff.wait(), backoff.wait()]
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }
}
