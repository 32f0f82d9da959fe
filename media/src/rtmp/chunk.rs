//! RTMP chunks to messages (RTMP 1.0 section 5.3), within limits.
//!
//! Every chunk stream reassembles its own message, because hardware encoders do interleave audio and pings with the chunks of
//! a large picture. A payload is copied once, from the socket's buffer into the message. [`ChunkReader::read`] returns after
//! each message, so that a Set Chunk Size takes effect before the next chunk is looked at.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::HashMap;

use bytes::Bytes;

use super::{Fault, Limits};

/// The chunk size before either side sets another (RTMP 1.0 section 5.4.1).
const CHUNK_BYTES_INITIAL: usize = 128;

/// The longest chunk header: 3 bytes of basic header, 11 of message header, 4 of extended timestamp.
const HEADER_BYTES_MAX: usize = 18;

/// Allocated at once for a message (bytes); a longer one grows as its bytes arrive, so that a claimed length costs nothing.
const ALLOCATION_BYTES: usize = 256 << 10;

/// The longest protocol control or user control message (bytes). They have 4 to 10; some servers' dialects a few more.
const CONTROL_BYTES_MAX: usize = 64;

/// In the 24-bit field: the timestamp stands in 32 bits behind the header.
const EXTENDED: u32 = 0x00FF_FFFF;

/// Up to this value (ms), the timestamp of a type 0 chunk is taken for the distance to the next message too, if that
/// begins with a type 3 chunk.
///
/// RTMP 1.0 section 5.3.1.2.4 wants that for any value, and FFmpeg does it, but librtmp means "the same time again": with a
/// stream that runs for an hour, the one reading would jump an hour ahead. No two messages are seconds apart.
const LITERAL_DELTA_MAX: u32 = 1000;

/// One whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The message type id: 8 audio, 9 video, 20 AMF0 command and so on.
    pub kind: u8,
    /// The message stream id: 0 for the connection, else what `createStream` gave.
    pub stream_id: u32,
    /// Milliseconds, modulo 2^32.
    pub timestamp: u32,
    /// The body.
    pub payload: Bytes,
}

/// The incremental reader of one connection's chunks.
#[derive(Debug)]
pub struct ChunkReader {
    limits: Limits,
    chunk_bytes: usize,
    streams: HashMap<u32, ChunkStream>,
    /// The header being read: its first `header_len` bytes.
    header: [u8; HEADER_BYTES_MAX],
    header_len: usize,
    /// Bytes that turned out to be no extended timestamp, in reverse order: they come before the input.
    returned: Vec<u8>,
    /// The chunk whose payload is being read: its chunk stream and the bytes left.
    chunk: Option<(u32, usize)>,
    /// Capacity of all incomplete messages (bytes).
    held_bytes: usize,
}

/// What a chunk stream remembers.
#[derive(Debug, Default)]
struct ChunkStream {
    /// Of the last message.
    timestamp: u32,
    /// To the next message that brings no timestamp.
    delta: u32,
    /// The 32-bit field of the last header that had one; set while type 3 chunks may repeat it.
    extended: Option<u32>,
    length: usize,
    kind: u8,
    stream_id: u32,
    /// The message that is not complete yet.
    partial: Option<Vec<u8>>,
}

impl ChunkReader {
    /// A reader at the start of a connection, behind the handshake.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            chunk_bytes: CHUNK_BYTES_INITIAL,
            streams: HashMap::new(),
            header: [0; HEADER_BYTES_MAX],
            header_len: 0,
            returned: Vec::with_capacity(4),
            chunk: None,
            held_bytes: 0,
        }
    }

    /// Consumes bytes from the front of `input` until a message is complete. `None`: all was consumed.
    ///
    /// # Errors
    /// If the peer breaks the format or a limit. The framing is lost then: end the connection.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Message>, Fault> {
        loop {
            let (id, left) = match self.chunk.take() {
                Some(chunk) => chunk,
                None => match self.read_header(input)? {
                    Some(chunk) => chunk,
                    None => return Ok(None),
                },
            };
            if let Some(message) = self.read_payload(id, left, input)? {
                return Ok(Some(message));
            }
            if self.chunk.is_some() {
                return Ok(None);
            }
        }
    }

    /// Applies a Set Chunk Size of the peer, to the chunks that follow.
    ///
    /// # Errors
    /// If it is 0 or above the limit.
    pub fn set_chunk_size(&mut self, bytes: u32) -> Result<(), Fault> {
        // The top bit is reserved as zero; larger values than the longest message mean "never split".
        let bytes = usize::try_from(bytes).map_err(|_| Fault::ChunkSize)?;
        if bytes == 0 || bytes > self.limits.chunk_bytes {
            return Err(Fault::ChunkSize);
        }
        self.chunk_bytes = bytes;
        Ok(())
    }

    /// Applies an Abort of the peer: what has arrived of that chunk stream's message is dropped.
    pub fn abort(&mut self, chunk_stream: u32) {
        if let Some(stream) = self.streams.get_mut(&chunk_stream)
            && let Some(partial) = stream.partial.take()
        {
            self.held_bytes = self.held_bytes.saturating_sub(partial.capacity());
        }
    }

    /// Reads a chunk's header; yields its chunk stream and the payload bytes it has.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<(u32, usize)>, Fault> {
        let layout = loop {
            match self.layout() {
                Ok(layout) => break layout,
                Err(needed) => {
                    while self.header_len < needed {
                        let Some(byte) = self.returned.pop().or_else(|| next(input)) else {
                            return Ok(None);
                        };
                        if let Some(slot) = self.header.get_mut(self.header_len) {
                            *slot = byte;
                        }
                        self.header_len = self.header_len.saturating_add(1);
                    }
                }
            }
        };
        self.header_len = 0;
        let id = layout.chunk_stream;
        if !self.streams.contains_key(&id) && self.streams.len() >= self.limits.chunk_streams {
            return Err(Fault::ChunkStreams);
        }
        if layout.format >= 2 && !self.streams.contains_key(&id) {
            return Err(Fault::ChunkWithoutHeader);
        }
        let stream = self.streams.entry(id).or_default();
        if let (3, Some(field)) = (layout.format, layout.extended) {
            // Behind a type 3 header, the field is a repetition or, from senders that leave it out, payload already.
            let continued = stream.partial.is_some();
            let absolute = if continued {
                stream.timestamp
            } else {
                stream.timestamp.wrapping_add(stream.delta)
            };
            if stream.extended != Some(field) && absolute != field {
                self.returned.extend(field.to_be_bytes().iter().rev());
            }
        }
        if layout.format < 3 {
            if stream.partial.is_some() {
                return Err(Fault::HeaderWithinMessage);
            }
            stream.extended = layout.extended;
            let time = layout.extended.unwrap_or(layout.time);
            if layout.format == 0 {
                stream.timestamp = time;
                stream.delta = if time <= LITERAL_DELTA_MAX { time } else { 0 };
                stream.stream_id = layout.stream_id;
            } else {
                stream.delta = time;
                stream.timestamp = stream.timestamp.wrapping_add(time);
            }
            if layout.format < 2 {
                stream.length = layout.length;
                stream.kind = layout.kind;
            }
        } else if stream.partial.is_none() {
            stream.timestamp = stream.timestamp.wrapping_add(stream.delta);
        }
        let partial = match &mut stream.partial {
            Some(partial) => partial,
            none => {
                let longest = match stream.kind {
                    1..=6 => CONTROL_BYTES_MAX,
                    15..=20 => self.limits.amf_bytes,
                    _ => self.limits.message_bytes,
                };
                if stream.length > longest {
                    return Err(Fault::MessageTooLong);
                }
                none.insert(Vec::new())
            }
        };
        let left = stream.length.saturating_sub(partial.len());
        Ok(Some((id, left.min(self.chunk_bytes))))
    }

    /// Reads what is there of a chunk's payload; yields the message if that completes it.
    fn read_payload(
        &mut self,
        id: u32,
        mut left: usize,
        input: &mut &[u8],
    ) -> Result<Option<Message>, Fault> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(None);
        };
        let Some(partial) = &mut stream.partial else {
            return Ok(None);
        };
        while left > 0 {
            let byte = self.returned.pop();
            let available = match byte.as_ref() {
                Some(byte) => std::slice::from_ref(byte),
                None => {
                    let (head, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    head
                }
            };
            if available.is_empty() {
                break;
            }
            let needed = partial.len().saturating_add(available.len());
            if needed > partial.capacity() {
                let capacity = needed
                    .max(partial.capacity().saturating_mul(2))
                    .max(ALLOCATION_BYTES)
                    .min(stream.length);
                let before = partial.capacity();
                partial.reserve_exact(capacity.saturating_sub(partial.len()));
                self.held_bytes = self
                    .held_bytes
                    .saturating_sub(before)
                    .saturating_add(partial.capacity());
                if self.held_bytes > self.limits.reassembly_bytes {
                    return Err(Fault::ReassemblyFull);
                }
            }
            partial.extend_from_slice(available);
            left = left.saturating_sub(available.len());
        }
        if left > 0 {
            self.chunk = Some((id, left));
            return Ok(None);
        }
        if partial.len() < stream.length {
            return Ok(None);
        }
        self.held_bytes = self.held_bytes.saturating_sub(partial.capacity());
        Ok(Some(Message {
            kind: stream.kind,
            stream_id: stream.stream_id,
            timestamp: stream.timestamp,
            payload: Bytes::from(stream.partial.take().unwrap_or_default()),
        }))
    }

    /// The header so far, or how many bytes of it are needed to know more.
    fn layout(&self) -> Result<Layout, usize> {
        let header = self.header.get(..self.header_len).unwrap_or_default();
        let mut rest = header;
        let [first] = take(&mut rest).ok_or(1usize)?;
        let chunk_stream = match first & 0x3F {
            0 => {
                let [low] = take(&mut rest).ok_or(2usize)?;
                u32::from(low).wrapping_add(64)
            }
            1 => {
                let pair = take(&mut rest).ok_or(3usize)?;
                u32::from(u16::from_le_bytes(pair)).wrapping_add(64)
            }
            id => u32::from(id),
        };
        let basic = header.len().saturating_sub(rest.len());
        let needed = |bytes: usize| basic.saturating_add(bytes);
        let mut layout = Layout {
            format: first >> 6,
            chunk_stream,
            time: 0,
            length: 0,
            kind: 0,
            stream_id: 0,
            extended: None,
        };
        let message_header = match layout.format {
            0 => 11,
            1 => 7,
            2 => 3,
            _ => 0,
        };
        if layout.format < 3 {
            let [a, b, c] = take(&mut rest).ok_or_else(|| needed(message_header))?;
            layout.time = u32::from_be_bytes([0, a, b, c]);
        }
        if layout.format < 2 {
            let [a, b, c, kind] = take(&mut rest).ok_or_else(|| needed(message_header))?;
            layout.length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            layout.kind = kind;
        }
        if layout.format == 0 {
            layout.stream_id =
                u32::from_le_bytes(take(&mut rest).ok_or_else(|| needed(message_header))?);
        }
        let extended = if layout.format < 3 {
            layout.time == EXTENDED
        } else {
            self.streams
                .get(&chunk_stream)
                .is_some_and(|stream| stream.extended.is_some())
        };
        if extended {
            let needed = needed(message_header).saturating_add(4);
            layout.extended = Some(u32::from_be_bytes(take(&mut rest).ok_or(needed)?));
        }
        Ok(layout)
    }
}

/// A chunk header's fields; those that its format lacks are zero.
struct Layout {
    format: u8,
    chunk_stream: u32,
    time: u32,
    length: usize,
    kind: u8,
    stream_id: u32,
    extended: Option<u32>,
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

fn next(input: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = input.split_first()?;
    *input = rest;
    Some(*byte)
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made-up data"
)]
mod tests {
    use proptest::prelude::*;

    use super::super::testkit::{Sent, basic, chunks, message};
    use super::*;

    fn reader() -> ChunkReader {
        ChunkReader::new(Limits::default())
    }

    fn read_all(reader: &mut ChunkReader, mut input: &[u8]) -> Result<Vec<Message>, Fault> {
        let mut messages = Vec::new();
        while let Some(message) = reader.read(&mut input)? {
            messages.push(message);
        }
        assert!(input.is_empty());
        Ok(messages)
    }

    fn times(bytes: &[u8]) -> Vec<u32> {
        read_all(&mut reader(), bytes)
            .expect("valid")
            .iter()
            .map(|message| message.timestamp)
            .collect()
    }

    /// A header of type 1 or 2, with no payload behind it.
    fn delta(format: u8, time: u32, length: u32) -> Vec<u8> {
        let mut out = basic(format, 4);
        out.extend_from_slice(&time.min(EXTENDED).to_be_bytes()[1..]);
        if format == 1 {
            out.extend_from_slice(&length.to_be_bytes()[1..]);
            out.push(9);
        }
        if time >= EXTENDED {
            out.extend_from_slice(&time.to_be_bytes());
        }
        out
    }

    #[test]
    fn deltas_accumulate_and_type_3_repeats_the_last() {
        let mut bytes = message(4, 9, 1, 5000, b"x");
        for part in [delta(1, 40, 1), delta(2, 33, 0), basic(3, 4), basic(3, 4)] {
            bytes.extend(part);
            bytes.push(b'x');
        }
        assert_eq!(times(&bytes), [5000, 5040, 5073, 5106, 5139]);
    }

    #[test]
    fn type_3_behind_type_0_is_ffmpegs_delta_or_librtmps_same_time() {
        for (first, second) in [
            (0, 0),
            (23, 46),
            (1000, 2000),
            (1001, 1001),
            (3_600_000, 3_600_000),
        ] {
            let mut bytes = message(4, 9, 1, first, b"x");
            bytes.extend(basic(3, 4));
            bytes.push(b'x');
            assert_eq!(times(&bytes), [first, second]);
        }
    }

    #[test]
    fn timestamps_wrap() {
        let mut bytes = message(4, 9, 1, 0xFFFF_FFF0, b"x");
        bytes.extend(delta(1, 0x20, 1));
        bytes.push(b'x');
        bytes.extend(delta(2, 0x0100_0000, 0));
        bytes.push(b'x');
        assert_eq!(times(&bytes), [0xFFFF_FFF0, 0x10, 0x0100_0010]);
    }

    #[test]
    fn extended_timestamps_may_be_repeated_or_not() {
        for time in [0x00FF_FFFE, 0x00FF_FFFF, 0x0100_0000, u32::MAX] {
            for repeat in [true, false] {
                for length in [1, 128, 129, 131, 132, 400] {
                    let sent = Sent {
                        chunk_stream: 4,
                        kind: 9,
                        stream_id: 1,
                        timestamp: time,
                        payload: (0..length).map(|i| i as u8).collect(),
                    };
                    let mut bytes = chunks(&sent, 128, repeat).concat();
                    // Another message behind it: what was looked at too far must be given back.
                    bytes.extend(message(3, 8, 1, 7, b"end"));
                    let messages = read_all(&mut reader(), &bytes).expect("valid");
                    assert_eq!(messages.len(), 2, "{time} {repeat} {length}");
                    assert_eq!(
                        messages[0].payload, sent.payload,
                        "{time} {repeat} {length}"
                    );
                    assert_eq!(messages[0].timestamp, time);
                }
            }
        }
    }

    #[test]
    fn an_abort_drops_what_came() {
        let mut bytes = message(4, 9, 1, 0, &[1; 300]);
        bytes.truncate(100 + 12);
        let mut reader = reader();
        let start = &message(4, 9, 1, 0, &[1; 300])[..12 + 128];
        assert_eq!(read_all(&mut reader, start), Ok(vec![]));
        reader.abort(4);
        assert_eq!(reader.held_bytes, 0);
        reader.abort(77);
        let messages = read_all(&mut reader, &message(4, 9, 1, 9, b"new")).expect("valid");
        assert_eq!(messages[0].payload, "new");
    }

    #[test]
    fn a_chunk_size_set_mid_message_counts_from_the_next_chunk() {
        let payload: Vec<u8> = (0..300u16).map(|i| i as u8).collect();
        let whole = message(4, 9, 1, 0, &payload);
        let mut reader = reader();
        assert_eq!(read_all(&mut reader, &whole[..12 + 128]), Ok(vec![]));
        reader.set_chunk_size(1000).expect("in range");
        let mut rest = basic(3, 4);
        rest.extend_from_slice(&payload[128..]);
        assert_eq!(
            read_all(&mut reader, &rest).expect("valid")[0].payload,
            payload
        );
    }

    #[test]
    fn every_limit_and_broken_rule_has_its_fault() {
        let check = |bytes: &[u8], fault| {
            assert_eq!(read_all(&mut reader(), bytes), Err(fault), "{fault:?}");
        };
        check(&basic(3, 4), Fault::ChunkWithoutHeader);
        check(&delta(2, 1, 0), Fault::ChunkWithoutHeader);
        let begun = &message(4, 9, 1, 0, &[1; 300])[..12 + 128];
        check(
            &[begun, &message(4, 9, 1, 0, b"x")].concat(),
            Fault::HeaderWithinMessage,
        );
        check(
            &[begun, &delta(1, 0, 10)].concat(),
            Fault::HeaderWithinMessage,
        );
        let header = |kind: u8, length: u32| {
            let mut out = vec![4, 0, 0, 0];
            out.extend_from_slice(&length.to_be_bytes()[1..]);
            out.extend_from_slice(&[kind, 0, 0, 0, 0]);
            out
        };
        check(&header(9, (8 << 20) + 1), Fault::MessageTooLong);
        check(&header(20, (256 << 10) + 1), Fault::MessageTooLong);
        check(&header(1, 65), Fault::MessageTooLong);
        let many: Vec<u8> = (2..67).flat_map(|id| message(id, 9, 1, 0, b"x")).collect();
        check(&many, Fault::ChunkStreams);
        for size in [0, 0x0100_0000, u32::MAX] {
            assert_eq!(reader().set_chunk_size(size), Err(Fault::ChunkSize));
        }
        assert_eq!(reader().set_chunk_size(1), Ok(()));
        assert_eq!(reader().set_chunk_size(0x00FF_FFFF), Ok(()));
    }

    #[test]
    fn claimed_lengths_cost_nothing_and_held_memory_is_bounded() {
        let mut reader = reader();
        reader.set_chunk_size(1 << 20).expect("in range");
        let mut fault = None;
        for id in 2..66 {
            let mut chunk = message(id, 9, 1, 0, b"");
            chunk[4..7].copy_from_slice(&[0x7F, 0xFF, 0xFF]);
            chunk.extend(std::iter::repeat_n(7, 1 << 20));
            // A claim alone allocates nothing.
            let held = reader.held_bytes;
            let mut input = &chunk[..12];
            assert_eq!(reader.read(&mut input), Ok(None));
            assert_eq!(reader.held_bytes, held);
            if let Err(error) = read_all(&mut reader, &chunk[12..]) {
                fault = Some(error);
                break;
            }
            assert!(reader.held_bytes <= Limits::default().reassembly_bytes);
        }
        assert_eq!(fault, Some(Fault::ReassemblyFull));
    }

    /// A message and those of its chunks that are still to be sent.
    type Queued = (Sent, Vec<Vec<u8>>);

    fn sent() -> impl Strategy<Value = Sent> {
        (
            prop_oneof![Just(2u32), 3..70u32, Just(319), Just(320), Just(65_599)],
            8u8..10,
            any::<u32>(),
            prop_oneof![0..100_000u32, 0x00FF_FFF0..0x0100_0010u32, any::<u32>()],
            prop::collection::vec(any::<u8>(), 0..600),
        )
            .prop_map(|(chunk_stream, kind, stream_id, timestamp, payload)| Sent {
                chunk_stream,
                kind,
                stream_id,
                timestamp,
                payload,
            })
    }

    proptest! {
        /// The naive model: each chunk stream is a queue of messages, chunks of different streams are drawn in any order, and
        /// messages are due when their last chunk is.
        #[test]
        fn interleaved_messages_come_out_whole(
            messages in prop::collection::vec((sent(), any::<bool>()), 1..12),
            draws in prop::collection::vec(any::<prop::sample::Index>(), 200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut queues: Vec<(u32, Vec<Queued>)> = Vec::new();
            for (sent, repeat) in messages {
                let parts = chunks(&sent, 128, repeat);
                match queues.iter_mut().find(|(id, _)| *id == sent.chunk_stream) {
                    Some((_, queue)) => queue.push((sent, parts)),
                    None => queues.push((sent.chunk_stream, vec![(sent, parts)])),
                }
            }
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            let mut draws = draws.into_iter().cycle();
            while !queues.is_empty() {
                let at = draws.next().expect("cycled").index(queues.len());
                let queue = &mut queues[at].1;
                bytes.extend(queue[0].1.remove(0));
                if queue[0].1.is_empty() {
                    expected.push(queue.remove(0).0);
                }
                if queue.is_empty() {
                    queues.remove(at);
                }
            }
            // Where a sender leaves the extended timestamp out, the last bytes of a message are known for payload only once
            // the next chunk's come.
            let last = Sent { chunk_stream: 300, kind: 8, stream_id: 0, timestamp: 0, payload: b"last".to_vec() };
            bytes.extend(chunks(&last, 128, true).concat());
            expected.push(last);
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut reader, mut found, mut from) = (reader(), Vec::new(), 0);
            for cut in cuts {
                found.extend(read_all(&mut reader, &bytes[from..cut]).expect("valid"));
                from = cut;
            }
            prop_assert_eq!(reader.held_bytes, 0);
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert_eq!(found.kind, expected.kind);
                prop_assert_eq!(found.stream_id, expected.stream_id);
                prop_assert_eq!(found.timestamp, expected.timestamp);
                prop_assert_eq!(&found.payload[..], &expected.payload[..]);
            }
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_all(&mut reader(), &bytes);
        }
    }
}
