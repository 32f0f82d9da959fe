//! What happens when: a queue in virtual time, in microseconds from the start.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Events in the order of their times, and of their making where those are equal.
#[derive(Debug)]
pub(super) struct Events<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    now: u64,
    next: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: u64,
    number: u64,
    event: E,
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

impl<E> Events<E> {
    pub(super) const fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            now: 0,
            next: 0,
        }
    }

    /// Now.
    pub(super) const fn now(&self) -> u64 {
        self.now
    }

    /// Will happen `after` so long.
    pub(super) fn push(&mut self, after: u64, event: E) {
        self.next += 1;
        self.heap.push(Reverse(Entry {
            at: self.now.saturating_add(after),
            number: self.next,
            event,
        }));
    }

    /// The next event, at its time; none after `end`.
    pub(super) fn pop(&mut self, end: u64) -> Option<E> {
        if self.heap.peek()?.0.at > end {
            return None;
        }
        let Reverse(entry) = self.heap.pop()?;
        self.now = entry.at;
        Some(entry.event)
    }
}

/// A duration in microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
