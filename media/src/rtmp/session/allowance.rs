//! How often a publisher may change what its stream is.

use std::time::{Duration, Instant};

/// Configurations, and metadata messages, that a publisher may send in a burst (count); [`CHANGE_EVERY`] allows one more.
///
/// Both go to the stream as messages that are never dropped, so nobody may send them at the rate of media.
const CHANGES_MAX: u32 = 64;
const CHANGE_EVERY: Duration = Duration::from_millis(100);

/// How many of something may still come: a bucket that fills up with time.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    filled: Instant,
}

impl Allowance {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            left: CHANGES_MAX,
            filled: now,
        }
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled);
        let more = since.as_millis().div_euclid(CHANGE_EVERY.as_millis());
        if more > 0 {
            self.filled = now;
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(more).min(CHANGES_MAX);
        }
        let allowed = self.left > 0;
        self.left = self.left.saturating_sub(1);
        allowed
    }
}
