//! Finds HE-AAC that doesn't say so: spectral band replication whose only sign is in the frames themselves.
//!
//! Implicit signalling (ISO/IEC 14496-3 section 1.6.5.3) gives an AudioSpecificConfig of plain AAC-LC at half the real
//! sampling rate; a plain decoder then plays a dull core without an error. The sign is an extension payload of type
//! EXT_SBR_DATA in a fill element, which stands behind the audio elements. To reach it from the front, all of the
//! Huffman-coded spectrum would have to be read. But elements up to the end of the frame must fit exactly, so it is
//! sought from the back: at each bit, does a chain of elements start that begins with SBR data and ends with the frame?
//! Chance makes that so in a few percent of frames, HE-AAC in all, so some in a row decide.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

/// So many frames in a row with an SBR payload are HE-AAC; by chance, one in a million streams.
const FRAMES_TO_DECIDE: u8 = 6;

/// Frames that are looked at (count), 2.7 s of HE-AAC at a 24 kHz core. Encoders start SBR with the first frame.
const FRAMES_WATCHED: u8 = 64;

/// Elements that may follow in a chain (count).
const CHAIN_MAX: usize = 4;

/// Syntactic elements of a raw_data_block (ISO/IEC 14496-3 table 4.85).
const ID_DSE: u32 = 4;
const ID_FIL: u32 = 6;
const ID_END: u32 = 7;

/// Extension types (ISO/IEC 14496-3 table 4.121).
const EXT_SBR_DATA: u32 = 13;
const EXT_SBR_DATA_CRC: u32 = 14;

/// Watches the first frames of a stream.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: u8,
    in_a_row: u8,
}

impl Watch {
    /// Looks at one raw frame; true once the stream is known to be HE-AAC.
    pub(crate) fn handle_frame(&mut self, frame: &[u8]) -> bool {
        if self.in_a_row >= FRAMES_TO_DECIDE {
            return true;
        }
        if self.seen >= FRAMES_WATCHED {
            return false;
        }
        self.seen = self.seen.saturating_add(1);
        self.in_a_row = if ends_with_sbr(frame) {
            self.in_a_row.saturating_add(1)
        } else {
            0
        };
        self.in_a_row >= FRAMES_TO_DECIDE
    }
}

/// Whether the frame ends in a chain of elements that starts with an SBR fill element. False positives happen.
fn ends_with_sbr(frame: &[u8]) -> bool {
    // An SBR payload has at most 269 + 2 bytes, more elements may follow.
    let start = frame.len().saturating_sub(600).saturating_mul(8);
    let end = frame.len().saturating_mul(8);
    (start..end).any(|at| is_sbr_chain(Bits { frame, at }))
}

fn is_sbr_chain(mut bits: Bits<'_>) -> bool {
    let mut sbr_first = || -> Option<()> {
        if bits.read(3)? != ID_FIL {
            return None;
        }
        let length = bits.fill_length()?;
        let kind = bits.peek(4)?;
        if length == 0 || !matches!(kind, EXT_SBR_DATA | EXT_SBR_DATA_CRC) {
            return None;
        }
        bits.skip(length)?;
        for _ in 0..CHAIN_MAX {
            match bits.read(3)? {
                ID_END => return (bits.left() < 8).then_some(()),
                ID_FIL => {
                    let length = bits.fill_length()?;
                    bits.skip(length)?;
                }
                ID_DSE => {
                    bits.read(4)?;
                    let aligned = bits.read(1)? == 1;
                    let mut bytes = bits.read(8)?;
                    if bytes == 255 {
                        bytes = bytes.saturating_add(bits.read(8)?);
                    }
                    if aligned {
                        bits.at = bits.at.checked_next_multiple_of(8)?;
                    }
                    bits.skip(bytes)?;
                }
                _ => return None,
            }
        }
        None
    };
    sbr_first().is_some()
}

#[derive(Clone, Copy)]
struct Bits<'a> {
    frame: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn left(&self) -> usize {
        self.frame.len().saturating_mul(8).saturating_sub(self.at)
    }

    fn peek(&self, count: usize) -> Option<u32> {
        if self.left() < count {
            return None;
        }
        let mut value = 0_u32;
        for at in self.at..self.at.saturating_add(count) {
            let byte = self.frame.get(at / 8)?;
            let shift = 7_usize.saturating_sub(at % 8);
            value = value.wrapping_shl(1)
                | (u32::from(*byte).wrapping_shr(u32::try_from(shift).ok()?) & 1);
        }
        Some(value)
    }

    fn read(&mut self, count: usize) -> Option<u32> {
        let value = self.peek(count)?;
        self.at = self.at.saturating_add(count);
        Some(value)
    }

    fn skip(&mut self, bytes: u32) -> Option<()> {
        let bits = usize::try_from(bytes).ok()?.checked_mul(8)?;
        (self.left() >= bits).then(|| self.at = self.at.saturating_add(bits))
    }

    /// The length of a fill element's payload in bytes (ISO/IEC 14496-3 table 4.11).
    fn fill_length(&mut self) -> Option<u32> {
        match self.read(4)? {
            15 => Some(self.read(8)?.saturating_add(14)),
            count => Some(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn adts_frames(mut adts: &[u8]) -> Vec<&[u8]> {
        let mut frames = Vec::new();
        while adts.len() > 7 {
            let length = usize::from(adts[3] & 3) << 11
                | usize::from(adts[4]) << 3
                | usize::from(adts[5]) >> 5;
            frames.push(&adts[7..length]);
            adts = &adts[length..];
        }
        frames
    }

    #[test]
    fn he_aac_is_recognised_by_its_frames() {
        for adts in [
            &include_bytes!("testdata/he-aac-v1.aac")[..],
            include_bytes!("testdata/he-aac-v2.aac"),
        ] {
            let frames = adts_frames(adts);
            assert!(frames.len() > 20);
            let mut watch = Watch::default();
            let decided = frames.iter().position(|frame| watch.handle_frame(frame));
            assert_eq!(decided, Some(usize::from(FRAMES_TO_DECIDE) - 1));
        }
    }

    #[test]
    fn chance_does_not_make_six_in_a_row() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut hits = 0;
        for _ in 0..20 {
            let mut watch = Watch::default();
            for _ in 0..FRAMES_WATCHED {
                let mut frame = vec![0; rng.random_range(0..700)];
                rng.fill(&mut frame[..]);
                // The end of a real frame: ID_END and padding.
                if let Some(last) = frame.last_mut() {
                    *last |= 0b1110;
                    *last &= 0b1111_1110;
                }
                hits += u32::from(ends_with_sbr(&frame));
                assert!(!watch.handle_frame(&frame));
            }
        }
        assert!(hits < 20 * 64 / 10, "{hits} false alarms");
    }

    #[test]
    fn watching_ends() {
        let mut watch = Watch::default();
        for _ in 0..FRAMES_WATCHED {
            assert!(!watch.handle_frame(&[]));
        }
        // FIL of one byte, EXT_SBR_DATA, END.
        let sbr = [0b1100_0011, 0b1010_0001, 0b1100_0000];
        assert!(ends_with_sbr(&sbr));
        for _ in 0..10 {
            assert!(!watch.handle_frame(&sbr));
        }
    }
}
