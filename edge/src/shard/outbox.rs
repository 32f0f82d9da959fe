//! What a shard is about to send: datagrams, GSO runs and frames for connections, written into one arena and sent together.
//!
//! A run is consecutive datagrams to one viewer that the kernel cuts from one message (UDP_SEGMENT): all have the same size but the
//! last, which may be smaller. What goes by TCP is written with its framing, all of a connection in one piece if nothing else came between.
//! Nothing here is allocated once the arena has grown to its working size.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use headwater_media::ice::{Path, Transport};

use crate::shard::backlog::Backlog;
use crate::transport::framing::{self, PREFIX_BYTES};

/// Datagrams in a run (count): UDP_MAX_SEGMENTS of kernels before 6.9.
const SEGMENTS_MAX: usize = 64;

/// Bytes in a run: what fits an IPv4 datagram, less its headers.
const RUN_BYTES_MAX: usize = 65_000;

/// Bytes after which the arena should be sent before more is written: small enough to be still in the second-level cache when the kernel copies
/// it, large enough that a receiver on the same machine isn't woken for every few messages.
const FULL_BYTES: usize = 384 << 10;

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

/// Framed datagrams for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Framed {
    /// The viewer's end of the connection.
    pub(crate) to: SocketAddr,
    /// Their bytes in the arena.
    pub(crate) range: Range<usize>,
}

/// The arena and its messages, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    messages: Vec<Message>,
    framed: Vec<Framed>,
    /// What waits for each open connection.
    connections: HashMap<SocketAddr, Rc<Backlog>>,
    /// The run that is being written.
    run: Option<Run>,
    /// Where datagrams are composed; kept for its memory.
    composed: Vec<u8>,
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
    /// A connection from `address` can be sent to.
    pub(crate) fn open(&mut self, address: SocketAddr, backlog: Rc<Backlog>) {
        self.connections.insert(address, backlog);
    }

    /// It can't any more.
    pub(crate) fn close(&mut self, address: SocketAddr) {
        self.connections.remove(&address);
    }

    /// Media of `length` bytes may be appended for `to`. By UDP there is always room: what the socket can't take is dropped there.
    pub(crate) fn has_room(&self, now: Instant, to: Path, length: usize) -> bool {
        match to.transport {
            Transport::Udp => true,
            Transport::Tcp => {
                let backlog = self.connections.get(&to.address);
                backlog.is_some_and(|backlog| backlog.has_room(now, length))
            }
        }
    }

    /// Since when the first byte waits that a connection doesn't take.
    pub(crate) fn oldest(&self, to: Path) -> Option<Instant> {
        match to.transport {
            Transport::Udp => None,
            Transport::Tcp => self.connections.get(&to.address)?.oldest(),
        }
    }

    /// A datagram of `length` bytes that nobody should wait with may be appended for `to`.
    pub(crate) fn has_room_for_control(&self, to: Path, length: usize) -> bool {
        match to.transport {
            Transport::Udp => true,
            Transport::Tcp => {
                let backlog = self.connections.get(&to.address);
                backlog.is_some_and(|backlog| backlog.has_room_for_control(length))
            }
        }
    }

    /// Appends a datagram of `length` bytes to `to` for `write` to fill. When `write` returns `None`, there is none.
    /// Joins the run before it if that is possible.
    pub(crate) fn push_with<R>(
        &mut self,
        to: Path,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Option<R>,
    ) -> Option<R> {
        if to.transport == Transport::Tcp {
            return self.push_framed(to.address, length, write);
        }
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

    /// Appends a frame. There is none without a connection: whose it was is about to hear of its end.
    fn push_framed<R>(
        &mut self,
        to: SocketAddr,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Option<R>,
    ) -> Option<R> {
        let prefix = framing::prefix(length)?;
        // A run is one piece of the arena.
        self.end_run();
        let backlog = self.connections.get(&to)?;
        let start = self.bytes.len();
        let end = start + PREFIX_BYTES + length;
        self.bytes.extend_from_slice(&prefix);
        self.bytes.resize(end, 0);
        let Some(result) = write(&mut self.bytes[start + PREFIX_BYTES..]) else {
            self.bytes.truncate(start);
            return None;
        };
        backlog.note(end - start);
        self.wire_bytes += (end - start) as u64;
        match self.framed.last_mut() {
            Some(last) if last.to == to && last.range.end == start => last.range.end = end,
            _ => self.framed.push(Framed {
                to,
                range: start..end,
            }),
        }
        Some(result)
    }

    /// Appends a datagram other than media. A connection that takes nothing gets none.
    pub(crate) fn push(&mut self, to: Path, datagram: &[u8]) {
        if !self.has_room_for_control(to, datagram.len()) {
            return;
        }
        self.push_with(to, datagram.len(), |out| {
            out.copy_from_slice(datagram);
            Some(())
        });
    }

    /// The same with one that `compose` writes; when that returns false, there is none.
    pub(crate) fn push_composed(&mut self, to: Path, compose: impl FnOnce(&mut Vec<u8>) -> bool) {
        let mut datagram = std::mem::take(&mut self.composed);
        datagram.clear();
        if compose(&mut datagram) {
            self.push(to, &datagram);
        }
        self.composed = datagram;
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

    /// Everything that was ever pushed, with UDP and IP headers, or the framing of connections (bytes).
    pub(crate) const fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// It should be sent before more is written.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL_BYTES || self.messages.len() + self.framed.len() >= FULL_MESSAGES
    }

    /// There is nothing to send.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is to be written to connections, in order, and the bytes it refers to.
    pub(crate) fn framed(&self) -> (&[Framed], &[u8]) {
        (&self.framed, &self.bytes)
    }

    /// What is to be sent by UDP, in order, and the bytes it refers to.
    pub(crate) fn messages(&mut self) -> (&[Message], &[u8]) {
        self.end_run();
        (&self.messages, &self.bytes)
    }

    /// Everything is sent or given up.
    pub(crate) fn clear(&mut self) {
        self.run = None;
        self.messages.clear();
        self.framed.clear();
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
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
    fn frames_of_a_connection_are_one_piece_and_break_no_run() {
        let address = SocketAddr::from(([192, 0, 2, 1], 9));
        let tcp = Path::tcp(address);
        let mut outbox = Outbox::default();
        outbox.push(tcp, b"nobody is there");
        assert!(outbox.is_empty());
        assert_eq!(outbox.push_with(tcp, 3, |_| Some(())), None);

        let backlog = Rc::new(Backlog::default());
        outbox.open(address, Rc::clone(&backlog));
        outbox.push(path(1), &[1; 100]);
        outbox.push(tcp, b"one");
        outbox.push(path(1), &[2; 100]);
        outbox.push(tcp, b"two");
        assert_eq!(outbox.push_with(tcp, 9, |_| None::<()>), None);
        outbox.push(tcp, b"three");
        let (framed, bytes) = outbox.framed();
        let pieces: Vec<_> = framed.iter().map(|m| &bytes[m.range.clone()]).collect();
        assert_eq!(pieces, [&b"\0\x03one"[..], b"\0\x03two\0\x05three"]);
        assert!(backlog.has_room_for_control((320 << 10) - 17));
        assert!(!backlog.has_room_for_control((320 << 10) - 16));
        // A run can't go on behind other bytes.
        assert_eq!(outbox.messages().0.len(), 2);
        outbox.clear();
        assert!(outbox.framed().0.is_empty());
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
