//! Reads the FLV file format (Adobe FLV 10.1 annex E) from a byte stream, incrementally and bounded.
//!
//! Push what was read, then poll until `None`. After an error the stream has lost its framing: end it.
//! Called by whoever reads an ffmpeg child's output.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use bytes::{Buf, Bytes, BytesMut};

use super::TagKind;

/// Bytes of a tag's header.
const TAG_HEADER_BYTES: usize = 11;

/// One tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// What it carries.
    pub kind: TagKind,
    /// Decode time in milliseconds, as on the wire; it wraps at 2^32.
    pub millis: u32,
    /// The body, for [`super::demux::Demuxer`].
    pub body: Bytes,
}

/// Why a stream is not FLV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It does not begin with `FLV`.
    #[error("no FLV signature")]
    Signature,
    /// The header's length field is out of range.
    #[error("FLV header of {0} bytes")]
    Header(u32),
    /// A tag is longer than the limit.
    #[error("a tag of {0} bytes")]
    TooLong(usize),
}

/// The incremental reader. Holds at most one incomplete tag beyond what the caller pushed at once.
#[derive(Debug)]
pub struct Reader {
    buffer: BytesMut,
    header_seen: bool,
    body_bytes_max: usize,
}

impl Reader {
    /// A reader that refuses tag bodies longer than this many bytes.
    pub fn new(body_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            header_seen: false,
            body_bytes_max,
        }
    }

    /// Takes what was read from the stream.
    pub fn handle_input(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole tag. Tags of unknown types are skipped.
    ///
    /// # Errors
    /// If the stream is not FLV or exceeds the limit; it can't be read further.
    pub fn poll_tag(&mut self) -> Result<Option<Tag>, Error> {
        if !self.header_seen && !self.take_header()? {
            return Ok(None);
        }
        loop {
            // The PreviousTagSize in front of each tag says nothing that the tag before it did not.
            let Some([_, _, _, _, kind, s2, s1, s0, t2, t1, t0, t3, ..]) = self
                .buffer
                .first_chunk::<{ TAG_HEADER_BYTES + 4 }>()
                .copied()
            else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_be_bytes([0, s2, s1, s0])).unwrap_or(usize::MAX);
            if length > self.body_bytes_max {
                return Err(Error::TooLong(length));
            }
            let Some(whole) = length.checked_add(TAG_HEADER_BYTES + 4) else {
                return Err(Error::TooLong(length));
            };
            if self.buffer.len() < whole {
                return Ok(None);
            }
            self.buffer.advance(TAG_HEADER_BYTES + 4);
            let body = self.buffer.split_to(length).freeze();
            // Bit 5 marks encrypted bodies, which nobody here can read.
            if let Some(kind) = TagKind::from_number(kind) {
                return Ok(Some(Tag {
                    kind,
                    millis: u32::from_be_bytes([t3, t2, t1, t0]),
                    body,
                }));
            }
        }
    }

    fn take_header(&mut self) -> Result<bool, Error> {
        let Some([f, l, v, _, _, h3, h2, h1, h0]) = self.buffer.first_chunk::<9>().copied() else {
            return Ok(false);
        };
        if [f, l, v] != *b"FLV" {
            return Err(Error::Signature);
        }
        let length = u32::from_be_bytes([h3, h2, h1, h0]);
        if !(9..=1024).contains(&length) {
            return Err(Error::Header(length));
        }
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if self.buffer.len() < bytes {
            return Ok(false);
        }
        self.buffer.advance(bytes);
        self.header_seen = true;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::writer;
    use super::*;

    fn sample() -> BytesMut {
        let mut flv = BytesMut::new();
        writer::header(&mut flv, true, true);
        writer::aac_configuration(&mut flv, 0, &[0x11, 0x90]).expect("short");
        writer::h264_unit(&mut flv, 0xFFFF_FFFF, 40, true, b"nal").expect("short");
        writer::aac_frame(&mut flv, 0x1_0000_0017, b"").expect("short");
        flv
    }

    fn read(reader: &mut Reader) -> Vec<Tag> {
        std::iter::from_fn(|| reader.poll_tag().expect("valid")).collect()
    }

    #[test]
    fn what_the_writer_writes_is_read_back() {
        let mut reader = Reader::new(1000);
        reader.handle_input(&sample());
        let tags = read(&mut reader);
        let summary: Vec<_> = tags
            .iter()
            .map(|tag| (tag.kind, tag.millis, tag.body.len()))
            .collect();
        assert_eq!(
            summary,
            [
                (TagKind::Audio, 0, 4),
                (TagKind::Video, u32::MAX, 8),
                (TagKind::Audio, 0x17, 2)
            ]
        );
    }

    #[test]
    fn foreign_bytes_and_long_tags_are_refused() {
        let mut reader = Reader::new(1000);
        reader.handle_input(b"GIF89a...........");
        assert_eq!(reader.poll_tag(), Err(Error::Signature));
        let mut reader = Reader::new(3);
        reader.handle_input(&sample());
        assert_eq!(reader.poll_tag(), Err(Error::TooLong(4)));
        let mut reader = Reader::new(3);
        reader.handle_input(b"FLV\x01\x05\xFF\0\0\0");
        assert_eq!(reader.poll_tag(), Err(Error::Header(0xFF00_0000)));
    }

    proptest! {
        #[test]
        fn splitting_the_stream_anywhere_changes_nothing(cuts in prop::collection::vec(0usize..90, 0..5)) {
            let flv = sample();
            let mut whole = Reader::new(1000);
            whole.handle_input(&flv);
            let expected = read(&mut whole);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(flv.len())).collect();
            cuts.sort_unstable();
            cuts.push(flv.len());
            let (mut reader, mut at, mut tags) = (Reader::new(1000), 0, Vec::new());
            for cut in cuts {
                reader.handle_input(&flv[at..cut]);
                tags.extend(read(&mut reader));
                at = cut;
            }
            prop_assert_eq!(tags, expected);
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(64);
            reader.handle_input(b"FLV\x01\x05\0\0\0\x09");
            reader.handle_input(&bytes);
            while let Ok(Some(_)) = reader.poll_tag() {}
        }
    }
}
