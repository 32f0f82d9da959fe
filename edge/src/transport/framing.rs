//! Datagrams in a byte stream (RFC 4571 section 2): each behind its length in two bytes.

use bytes::{Buf, BytesMut};

/// Bytes in front of each datagram.
pub(crate) const PREFIX_BYTES: usize = 2;

/// The longest datagram that a viewer may send (bytes), as by UDP: checks, flights and feedback are made for an MTU.
pub(crate) const FRAME_BYTES_MAX: usize = 2048;

/// Why a stream can't be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A frame is longer than any datagram of a viewer.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
}

/// What goes in front of a datagram of `length` bytes; `None` if it has no place in a frame.
pub(crate) fn prefix(length: usize) -> Option<[u8; PREFIX_BYTES]> {
    Some(u16::try_from(length).ok()?.to_be_bytes())
}

/// Cuts what was read into datagrams. Holds at most one incomplete frame and what was read behind it.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: BytesMut,
}

impl Frames {
    /// More of the stream. Take all frames with [`Self::next`] before the next call.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next datagram, if it is complete. The null packet is passed over, as RFC 4571 section 2 has it.
    ///
    /// # Errors
    /// If the stream is not what it should be: close it.
    pub(crate) fn next(&mut self) -> Result<Option<BytesMut>, Error> {
        while let Some((prefix, rest)) = self.bytes.split_first_chunk::<PREFIX_BYTES>() {
            let length = usize::from(u16::from_be_bytes(*prefix));
            if length > FRAME_BYTES_MAX {
                return Err(Error::TooLong(length));
            }
            if rest.len() < length {
                return Ok(None);
            }
            self.bytes.advance(PREFIX_BYTES);
            if length > 0 {
                return Ok(Some(self.bytes.split_to(length)));
            }
        }
        if self.bytes.is_empty() {
            // Viewers are silent most of the time, so nothing is kept for them.
            self.bytes = BytesMut::new();
        }
        Ok(None)
    }

    /// A frame has begun and isn't complete.
    pub(crate) fn is_partial(&self) -> bool {
        !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn framed(datagrams: &[Vec<u8>]) -> Vec<u8> {
        let mut stream = Vec::new();
        for datagram in datagrams {
            stream.extend_from_slice(&prefix(datagram.len()).unwrap());
            stream.extend_from_slice(datagram);
        }
        stream
    }

    #[test]
    fn a_frame_longer_than_a_datagram_ends_the_stream_before_it_is_read() {
        for length in [FRAME_BYTES_MAX + 1, 65_535] {
            let mut frames = Frames::default();
            frames.push(&framed(&[vec![1; 20]]));
            frames.push(&prefix(length).unwrap());
            assert_eq!(frames.next().unwrap().unwrap().len(), 20);
            assert_eq!(frames.next(), Err(Error::TooLong(length)));
        }
        assert_eq!(prefix(65_535), Some([255, 255]));
        assert_eq!(prefix(65_536), None);
    }

    #[test]
    fn null_packets_are_passed_over_and_leave_nothing() {
        let mut frames = Frames::default();
        frames.push(&[0; 1001]);
        assert_eq!(frames.next(), Ok(None));
        assert!(frames.is_partial(), "half a prefix");
        frames.push(&[0]);
        assert_eq!(frames.next(), Ok(None));
        assert!(!frames.is_partial());
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_yields_the_same_frames(
            datagrams in vec(vec(any::<u8>(), 1..=FRAME_BYTES_MAX), 0..8),
            cuts in vec(1_usize..700, 1..64),
        ) {
            let stream = framed(&datagrams);
            let mut frames = Frames::default();
            let mut got = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                rest = behind;
                frames.push(piece);
                while let Some(frame) = frames.next().unwrap() {
                    got.push(frame.to_vec());
                }
            }
            prop_assert_eq!(got, datagrams);
            prop_assert!(!frames.is_partial());
        }

        #[test]
        fn no_bytes_panic_or_pile_up(pieces in vec(vec(any::<u8>(), 0..300), 0..64)) {
            let mut frames = Frames::default();
            for piece in pieces {
                frames.push(&piece);
                loop {
                    match frames.next() {
                        Ok(Some(frame)) => prop_assert!(frame.len() <= FRAME_BYTES_MAX),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(frames.bytes.len() < FRAME_BYTES_MAX + PREFIX_BYTES);
            }
        }
    }
}
