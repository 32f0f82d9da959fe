//! A bit reader that can't read past its end, for parameter sets and other headers.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

/// There are fewer bits than were asked for, or an Exp-Golomb code is longer than any that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OutOfBits;

/// Reads bits, most significant first.
#[derive(Debug, Clone)]
pub(crate) struct BitReader<'a> {
    bytes: std::slice::Iter<'a, u8>,
    current: u8,
    /// Bits of `current` not read yet.
    left: u32,
    /// Zero bytes just before the next one; counted only when `escaped`.
    zeros: u32,
    escaped: bool,
}

impl<'a> BitReader<'a> {
    /// Over bytes as they are.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes: bytes.iter(),
            current: 0,
            left: 0,
            zeros: 0,
            escaped: false,
        }
    }

    /// Over the payload of an H.264 NAL unit, leaving out emulation prevention bytes (ITU-T H.264 section 7.4.1).
    pub(crate) fn rbsp(bytes: &'a [u8]) -> Self {
        Self {
            escaped: true,
            ..Self::new(bytes)
        }
    }

    /// One bit.
    pub(crate) fn flag(&mut self) -> Result<bool, OutOfBits> {
        Ok(self.bits(1)? != 0)
    }

    /// `count` bits, at most 32, as a number.
    pub(crate) fn bits(&mut self, count: u32) -> Result<u32, OutOfBits> {
        debug_assert!(count <= 32, "asked for {count} bits");
        let mut value = 0_u32;
        let mut wanted = count;
        while wanted > 0 {
            if self.left == 0 {
                self.current = self.next_byte().ok_or(OutOfBits)?;
                self.left = 8;
            }
            let take = wanted.min(self.left);
            self.left = self.left.saturating_sub(take);
            wanted = wanted.saturating_sub(take);
            let mask = (1_u32 << take).wrapping_sub(1);
            value = (value << take) | (u32::from(self.current) >> self.left) & mask;
        }
        Ok(value)
    }

    /// Eight bits.
    pub(crate) fn byte(&mut self) -> Result<u8, OutOfBits> {
        // Eight bits always fit.
        Ok(u8::try_from(self.bits(8)?).unwrap_or(u8::MAX))
    }

    /// Leaves out `count` bits.
    pub(crate) fn skip(&mut self, count: u32) -> Result<(), OutOfBits> {
        let mut rest = count;
        while rest > 0 {
            let step = rest.min(32);
            self.bits(step)?;
            rest = rest.saturating_sub(step);
        }
        Ok(())
    }

    /// Goes on at the next byte boundary.
    pub(crate) fn align(&mut self) {
        self.left = 0;
    }

    /// An unsigned Exp-Golomb code, `ue(v)` (ITU-T H.264 section 9.1).
    pub(crate) fn ue(&mut self) -> Result<u32, OutOfBits> {
        let mut zeros = 0_u32;
        while !self.flag()? {
            zeros = zeros.saturating_add(1);
            if zeros > 31 {
                return Err(OutOfBits);
            }
        }
        let base = (1_u32 << zeros).wrapping_sub(1);
        Ok(base.wrapping_add(self.bits(zeros)?))
    }

    /// A signed Exp-Golomb code, `se(v)` (ITU-T H.264 section 9.1.1).
    pub(crate) fn se(&mut self) -> Result<i32, OutOfBits> {
        let code = self.ue()?;
        // At most 2^31 - 1, because `ue` stays below 2^32 - 1.
        let magnitude = i32::try_from(code.div_ceil(2)).unwrap_or(i32::MAX);
        Ok(if code % 2 == 0 {
            magnitude.wrapping_neg()
        } else {
            magnitude
        })
    }

    /// Bits not read yet; emulation prevention bytes ahead are counted too.
    pub(crate) fn bits_left(&self) -> usize {
        let ahead = self.bytes.len().saturating_mul(8);
        ahead.saturating_add(usize::try_from(self.left).unwrap_or(0))
    }

    fn next_byte(&mut self) -> Option<u8> {
        let mut byte = *self.bytes.next()?;
        if self.escaped {
            if self.zeros >= 2 && byte == 3 {
                byte = *self.bytes.next()?;
                self.zeros = 0;
            }
            self.zeros = if byte == 0 {
                self.zeros.saturating_add(1)
            } else {
                0
            };
        }
        Some(byte)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn exp_golomb_codes_of_the_standards_table() {
        // Table 9-1: 1, 010, 011, 00100, 00101 are 0 to 4, here one after another.
        let bytes = [0b1010_0110, 0b0100_0010, 0b1000_0000];
        let mut reader = BitReader::new(&bytes);
        for expected in 0..5 {
            assert_eq!(reader.ue(), Ok(expected));
        }
        let mut reader = BitReader::new(&bytes);
        for expected in [0, 1, -1, 2, -2] {
            assert_eq!(reader.se(), Ok(expected));
        }
    }

    #[test]
    fn emulation_prevention_bytes_are_left_out() {
        let read = |bytes: &[u8]| {
            let mut reader = BitReader::rbsp(bytes);
            std::iter::from_fn(|| reader.byte().ok()).collect::<Vec<u8>>()
        };
        for (escaped, plain) in [
            (&[0, 0, 3, 1][..], &[0, 0, 1][..]),
            (&[0, 0, 3, 0, 0, 3, 3], &[0, 0, 0, 0, 3]),
            (&[0, 0, 3], &[0, 0]),
            (&[0, 3, 0, 3], &[0, 3, 0, 3]),
            (&[1, 0, 0, 4], &[1, 0, 0, 4]),
        ] {
            assert_eq!(read(escaped), plain, "{escaped:?}");
        }
    }

    #[test]
    fn the_longest_code_is_read_and_a_longer_one_refused() {
        let mut longest = vec![0, 0, 0, 1];
        longest.extend([0xff; 4]);
        assert_eq!(BitReader::new(&longest).ue(), Ok(u32::MAX - 1));
        assert_eq!(BitReader::new(&longest).se(), Ok(-i32::MAX));
        assert_eq!(BitReader::new(&[0; 9]).ue(), Err(OutOfBits));
        assert_eq!(BitReader::new(&[]).bits(1), Err(OutOfBits));
    }

    proptest! {
        #[test]
        fn bits_come_out_as_they_went_in(bytes in proptest::collection::vec(any::<u8>(), 0..64), counts in proptest::collection::vec(0_u32..=32, 0..32)) {
            let mut reader = BitReader::new(&bytes);
            let mut at = 0_usize;
            for count in counts {
                let all = bytes.len() * 8;
                let end = at + count as usize;
                let read = reader.bits(count);
                if end > all {
                    prop_assert_eq!(read, Err(OutOfBits));
                    break;
                }
                let expected = (at..end).fold(0_u64, |value, bit| value << 1 | u64::from(bytes[bit / 8] >> (7 - bit % 8) & 1));
                prop_assert_eq!(read.map(u64::from), Ok(expected));
                at = end;
                prop_assert_eq!(reader.bits_left(), all - at);
            }
        }
    }
}
