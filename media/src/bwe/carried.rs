//! What arrived lately.

use std::collections::VecDeque;

/// Groups remembered (count): half a second of pictures in pieces of 8 ms.
const GROUPS: usize = 64;
/// A larger leap back or ahead is of a clock, not of the network (units of 250 µs: 5 s).
const LEAP: u64 = 20_000;

/// Arrivals of the last half second. 1 KB.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// (arrival of the last packet in units of 250 µs, bytes), in order of time.
    groups: VecDeque<(i64, u32)>,
}

impl Carried {
    /// Takes a group in.
    pub(super) fn handle_group(&mut self, arrived: i64, bytes: u32) {
        let newest = self.newest();
        if newest.is_some_and(|newest| newest.abs_diff(arrived) > LEAP) {
            self.groups.clear();
        }
        // Groups may arrive in another order than they left; what counts is that they did.
        let arrived = self.newest().map_or(arrived, |newest| newest.max(arrived));
        if self.groups.len() >= GROUPS {
            self.groups.pop_front();
        }
        self.groups.push_back((arrived, bytes));
    }

    /// Bits per second over the last `span` or from `since` on, whichever is shorter (units of 250 µs); `None` if that is less than `span_min`.
    pub(super) fn rate(&self, since: Option<i64>, span: i64, span_min: i64) -> Option<u64> {
        let newest = self.newest()?;
        let from = newest.saturating_sub(span).max(since.unwrap_or(i64::MIN));
        let first = self.groups.partition_point(|(at, _)| *at < from);
        let (begin, _) = *self.groups.get(first)?;
        let span = newest.saturating_sub(begin);
        if span < span_min {
            return None;
        }
        let bytes: u64 = self
            .groups
            .range(first + 1..)
            .map(|(_, bytes)| u64::from(*bytes))
            .sum();
        Some(bytes.saturating_mul(8 * 4000) / u64::try_from(span).ok()?.max(1))
    }

    fn newest(&self) -> Option<i64> {
        self.groups.back().map(|(at, _)| *at)
    }
}
