//! What waits for one TCP connection: frames that the kernel hasn't taken, and since when.
//!
//! The outbox notes what it has for the connection, the shell tells what was written, the connection's task writes the rest
//! when it can; all on the shard's thread. The core only asks whether there is room, before it numbers and seals a packet: so what
//! a slow connection doesn't get leaves no hole in its sequence numbers that it would ask for again.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

/// Bytes that may wait. At 2 Mbit/s a second's worth; a lower rate is bounded by [`WAIT_MAX`].
const BYTES_MAX: usize = 256 << 10;

/// An access unit of any size may go behind this much (bytes), or the keyframes of a high bitrate never would.
const BYTES_FREE: usize = 64 << 10;

/// The longest that a byte may wait while more is added: what comes later than this is no live picture.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Bytes that checks, handshakes and reports may have beyond all that.
const CONTROL_BYTES_MAX: usize = BYTES_MAX + (64 << 10);

/// Room kept when nothing waits (bytes).
const IDLE_BYTES: usize = 16 << 10;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Backlog(RefCell<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In the outbox, not yet offered to the kernel (bytes).
    noted: usize,
    queue: VecDeque<u8>,
    /// All bytes that were ever queued, and how many of them are written.
    queued: u64,
    written: u64,
    /// Up to which byte what was queued when.
    marks: VecDeque<(u64, Instant)>,
}

impl Backlog {
    /// Media of `length` bytes may be added; it goes in whole or not at all.
    pub(crate) fn has_room(&self, now: Instant, length: usize) -> bool {
        let inner = self.0.borrow();
        let bytes = inner.bytes();
        let fresh = inner
            .oldest()
            .is_none_or(|at| now.saturating_duration_since(at) < WAIT_MAX);
        fresh && (bytes + length <= BYTES_MAX || bytes <= BYTES_FREE)
    }

    /// A datagram other than media may be added.
    pub(crate) fn has_room_for_control(&self, length: usize) -> bool {
        let bytes = self.0.borrow().bytes();
        // Behind a large access unit they wait as it does.
        bytes + length <= CONTROL_BYTES_MAX
    }

    /// The outbox has bytes for the connection.
    pub(crate) fn note(&self, length: usize) {
        self.0.borrow_mut().noted += length;
    }

    /// Of `data`, which was noted, the kernel took `written` bytes; the rest waits here.
    pub(crate) fn take_in(&self, now: Instant, data: &[u8], written: usize) {
        let mut inner = self.0.borrow_mut();
        inner.noted = inner.noted.saturating_sub(data.len());
        let rest = data.get(written..).unwrap_or_default();
        if rest.is_empty() {
            return;
        }
        inner.queue.extend(rest);
        inner.queued += rest.len() as u64;
        let end = inner.queued;
        match inner.marks.back_mut() {
            Some(mark) if mark.1 == now => mark.0 = end,
            _ => inner.marks.push_back((end, now)),
        }
    }

    /// Nothing waits behind what the kernel has.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().queue.is_empty()
    }

    /// All that waits, what is in the outbox included (bytes).
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.0.borrow().bytes()
    }

    /// Since when the first byte that waits does.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.0.borrow().oldest()
    }

    /// Writes what waits until nothing does or `write` fails. Returns the bytes written.
    ///
    /// # Errors
    /// Those of `write`, but not [`io::ErrorKind::WouldBlock`].
    pub(crate) fn write_to(
        &self,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut inner = self.0.borrow_mut();
        let mut total = 0;
        while !inner.queue.is_empty() {
            let (front, back) = inner.queue.as_slices();
            match write(&[IoSlice::new(front), IoSlice::new(back)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    inner.handle_written(count);
                    total += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }
}

impl Inner {
    fn bytes(&self) -> usize {
        self.noted + self.queue.len()
    }

    fn oldest(&self) -> Option<Instant> {
        self.marks.front().map(|(_, at)| *at)
    }

    fn handle_written(&mut self, count: usize) {
        let count = count.min(self.queue.len());
        self.queue.drain(..count);
        self.written += count as u64;
        while self
            .marks
            .front()
            .is_some_and(|(end, _)| *end <= self.written)
        {
            self.marks.pop_front();
        }
        if self.queue.is_empty() && self.queue.capacity() > IDLE_BYTES {
            self.queue = VecDeque::new();
            self.marks = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::testkit;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Queues `length` bytes of which nothing is written at once.
    fn queue(backlog: &Backlog, now: Instant, length: usize) {
        backlog.note(length);
        backlog.take_in(now, &vec![7; length], 0);
    }

    fn drain(backlog: &Backlog, mut budget: usize) -> usize {
        backlog
            .write_to(|slices| {
                let all: usize = slices.iter().map(|slice| slice.len()).sum();
                let count = all.min(budget).min(1000);
                budget -= count;
                if count == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(count)
            })
            .unwrap()
    }

    #[test]
    fn room_ends_with_the_bytes_or_with_the_age_of_the_first() {
        let now = testkit::start();
        let backlog = Backlog::default();
        assert!(backlog.has_room(now, BYTES_MAX * 4), "a huge keyframe");
        queue(&backlog, now, BYTES_FREE + 1);
        assert!(!backlog.has_room(now, BYTES_MAX * 4));
        assert!(backlog.has_room(now, BYTES_MAX / 2));
        assert!(backlog.has_room(now + WAIT_MAX - MS, 1000));
        assert!(!backlog.has_room(now + WAIT_MAX, 1000));

        // What is in the outbox counts, though nobody tried to write it yet.
        backlog.note(BYTES_MAX - BYTES_FREE - 1);
        assert!(backlog.has_room(now, 0));
        assert!(!backlog.has_room(now, 1));
        assert!(backlog.has_room_for_control(100));
        backlog.note(CONTROL_BYTES_MAX - BYTES_MAX);
        assert!(!backlog.has_room_for_control(1));
    }

    #[test]
    fn the_oldest_is_that_of_the_first_byte_not_written() {
        let now = testkit::start();
        let backlog = Backlog::default();
        queue(&backlog, now, 1000);
        queue(&backlog, now + MS, 1000);
        queue(&backlog, now + MS, 500);
        assert_eq!(drain(&backlog, 999), 999);
        assert_eq!(backlog.oldest(), Some(now));
        assert_eq!(drain(&backlog, 1), 1);
        assert_eq!(backlog.oldest(), Some(now + MS));
        assert_eq!(drain(&backlog, 9999), 1500);
        assert_eq!(backlog.oldest(), None);
        assert!(backlog.is_empty());
    }

    #[test]
    fn what_the_kernel_took_at_once_never_waits() {
        let now = testkit::start();
        let backlog = Backlog::default();
        backlog.note(10);
        backlog.take_in(now, b"0123456789", 10);
        assert!(backlog.is_empty());
        backlog.note(10);
        backlog.take_in(now, b"0123456789", 4);
        let mut written = Vec::new();
        backlog
            .write_to(|slices| {
                written.push(slices[0][0]);
                Ok(1)
            })
            .unwrap();
        assert_eq!(written, b"456789");
        let failed = backlog.write_to(|_| Err(io::ErrorKind::BrokenPipe.into()));
        assert!(failed.is_ok(), "nothing is left to write");
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let now = testkit::start();
        let backlog = Backlog::default();
        queue(&backlog, now, BYTES_MAX);
        drain(&backlog, usize::MAX);
        assert_eq!(backlog.0.borrow().queue.capacity(), 0);
    }
}
