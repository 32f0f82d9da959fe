//! What a shard is about to send: datagrams and GSO runs, written into one arena and sent together.
//!
//! A run is consecutive datagrams to one viewer that the kernel cuts from one message (UDP_SEGMENT): all have the same size but the
//! last, which may be smaller. Nothing here is allocated once the arena has grown to its working size.

use std::ops::Range;

use headwater_media::ice::Path;

/// Datagrams in a run (count): UDP_MAX_SEGMENTS of kernels before 6.9.
const SEGMENTS_MAX: usize = 64;

/// Bytes in a run: what fits an IPv4 datagram, less its headers.
const RUN_BYTES_MAX: usize = 65_000;

/// Bytes after which the arena should be sent before more is written.
const FULL_BYTES: usize = 512 << 10;

/// Messages after which the same is so (count).
const FULL_MESSAGES: usize = 256;

/// Headers of a datagram: UDP's and IPv4's (bytes).
const HEADERS_BYTES: usize = 8 + 20;

/// A message for the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The way to the viewer.
    pub(crate) to: Path,
    /// Its bytes in the arena.
    pub(crate) range: Range<usize>,
    /// Size of each datagram but the last; `None` when it is a single one.
    pub(crate) segment: Option<u16>,
}

/// The arena and its messages, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    /// The run that is being written.
    run: Option<Run>,
    wire_bytes: u64,
}

#[derive(Debug)]
struct Run {
    to: Path,
    range: Range<usize>,
    segment: usize,
    segments: usize,
    /// A smaller datagram was written, so none can follow.
    closed: bool,
}

impl Outbox {
    /// Appends a datagram of `length` bytes to `to` for `write` to fill. When `write` returns `None`, there is none.
    /// Joins the run before it if that is possible.
    pub(crate) fn push_with<R>(
        &mut self,
        to: Path,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Option<R>,
    ) -> Option<R> {
        let start = self.bytes.len();
        self.bytes.resize(start + length, 0);
        let Some(result) = write(&mut self.bytes[start..]) else {
            self.bytes.truncate(start);
            return None;
        };
        self.wire_bytes += (length + HEADERS_BYTES) as u64;
        match &mut self.run {
            Some(run)
                if run.to == to
                    && !run.closed
                    && length <= run.segment
                    && run.segments < SEGMENTS_MAX
                    && start + length - run.range.start <= RUN_BYTES_MAX =>
            {
                run.segments += 1;
                run.range.end = start + length;
                run.closed = length < run.segment;
            }
            _ => {
                self.end_run();
                self.run = Some(Run {
                    to,
                    range: start..start + length,
                    segment: length,
                    segments: 1,
                    closed: length == 0,
                });
            }
        }
        Some(result)
    }

    /// Appends a datagram.
    pub(crate) fn push(&mut self, to: Path, datagram: &[u8]) {
        self.push_with(to, datagram.len(), |out| {
            out.copy_from_slice(datagram);
            Some(())
        });
    }

    /// Ends the run: what is pushed next starts a new message.
    pub(crate) fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            let segment = (run.segments > 1)
                .then(|| u16::try_from(run.segment).ok())
                .flatten();
            self.messages.push(Message {
                to: run.to,
                range: run.range,
                segment,
            });
        }
    }

    /// Everything that was ever pushed, with UDP and IP headers (bytes).
    pub(crate) const fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// It should be sent before more is written.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.messages.len() >= FULL_MESSAGES
    }

    /// There is nothing to send.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is to be sent, in order, and the bytes it refers to.
    pub(crate) fn messages(&mut self) -> (&[Message], &[u8]) {
        self.end_run();
        (&self.messages, &self.bytes)
    }

    /// Everything is sent or given up.
    pub(crate) fn clear(&mut self) {
        self.run = None;
        self.messages.clear();
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn path(port: u16) -> Path {
        Path::udp(SocketAddr::from(([127, 0, 0, 1], port)))
    }

    fn runs(sizes: &[(u16, usize)]) -> Vec<(u16, usize, Option<u16>)> {
        let mut outbox = Outbox::default();
        for (port, size) in sizes {
            outbox.push(path(*port), &vec![0; *size]);
        }
        outbox
            .messages()
            .0
            .iter()
            .map(|m| (m.to.address.port(), m.range.len(), m.segment))
            .collect()
    }

    #[test]
    fn equal_datagrams_to_one_viewer_make_a_run_and_a_smaller_one_ends_it() {
        for (sizes, expected) in [
            (&[(1, 50)][..], vec![(1, 50, None)]),
            (
                &[(1, 50), (1, 100), (1, 100), (1, 30), (1, 30)],
                vec![(1, 50, None), (1, 230, Some(100)), (1, 30, None)],
            ),
            (
                &[(1, 100), (1, 100), (2, 100), (2, 100)],
                vec![(1, 200, Some(100)), (2, 200, Some(100))],
            ),
            (&[(1, 100), (1, 101)], vec![(1, 100, None), (1, 101, None)]),
        ] {
            assert_eq!(runs(sizes), expected, "{sizes:?}");
        }
    }

    #[test]
    fn runs_are_bounded_in_segments_and_bytes() {
        assert_eq!(
            runs(&[(1, 100); 65]),
            vec![(1, 6400, Some(100)), (1, 100, None)]
        );
        let many = runs(&[(1, 1200); 60]);
        assert_eq!(many[0], (1, 54 * 1200, Some(1200)));
        assert_eq!(many[1], (1, 6 * 1200, Some(1200)));
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let mut outbox = Outbox::default();
        outbox.push(path(1), &[1; 10]);
        assert_eq!(outbox.push_with(path(1), 10, |_| None::<()>), None);
        let (messages, bytes) = outbox.messages();
        assert_eq!((messages.len(), bytes.len()), (1, 10));
    }
}
