//! Feedback on lost packets and pictures: NACK, FIR, REMB.

use super::Fields;

/// Iterator over the lost sequence numbers of a generic NACK (RFC 4585 section 6.2.1), in the order of the message.
#[derive(Debug, Clone)]
pub struct Lost<'a> {
    entries: &'a [u8],
    /// PID of the entry at hand.
    first: u16,
    /// What of its bitmask is still to be told.
    following: u16,
}

impl<'a> Lost<'a> {
    pub(super) const fn new(entries: &'a [u8]) -> Self {
        Self {
            entries,
            first: 0,
            following: 0,
        }
    }
}

impl Iterator for Lost<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        if self.following != 0 {
            let bit = self.following.trailing_zeros();
            self.following &= self.following.wrapping_sub(1);
            let after = u16::try_from(bit).unwrap_or(0).wrapping_add(1);
            return Some(self.first.wrapping_add(after));
        }
        let (&[a, b, c, d], rest) = self.entries.split_first_chunk::<4>()?;
        self.entries = rest;
        self.first = u16::from_be_bytes([a, b]);
        self.following = u16::from_be_bytes([c, d]);
        Some(self.first)
    }
}

/// Iterator over (SSRC, command number) of a FIR (RFC 5104 section 4.3.1.1). A repeated command number is the same request.
#[derive(Debug, Clone)]
pub struct FullIntraRequests<'a>(&'a [u8]);

impl<'a> FullIntraRequests<'a> {
    pub(super) const fn new(entries: &'a [u8]) -> Self {
        Self(entries)
    }
}

impl Iterator for FullIntraRequests<'_> {
    type Item = (u32, u8);

    fn next(&mut self) -> Option<(u32, u8)> {
        let (&[a, b, c, d, command, _, _, _], rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some((u32::from_be_bytes([a, b, c, d]), command))
    }
}

/// Bits per second of an application layer feedback message, if it is REMB (draft-alvestrand-rmcat-remb-03 section 2.2).
pub(super) fn maximum_bitrate(mut fields: Fields<'_>) -> Option<u64> {
    if fields.take().ok()? != *b"REMB" {
        return None;
    }
    fields.u8().ok()?; // number of SSRCs
    let [a, b, c] = fields.take().ok()?;
    let mantissa = u32::from_be_bytes([0, a & 0b11, b, c]);
    let bits = u128::from(mantissa) << (a >> 2);
    Some(u64::try_from(bits).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::super::{Packet, packets};
    use super::*;

    #[test]
    fn masks_are_unfolded_at_every_edge() {
        for (pid, mask, expected) in [
            (0_u16, 0_u16, vec![0]),
            (1, 1, vec![1, 2]),
            (32_767, 0x8000, vec![32_767, 32_783]),
            (32_768, 0x0003, vec![32_768, 32_769, 32_770]),
            (65_535, 0x8001, vec![65_535, 0, 15]),
        ] {
            let [[a, b], [c, d]] = [pid.to_be_bytes(), mask.to_be_bytes()];
            let entries = [a, b, c, d, 9];
            let lost: Vec<_> = Lost::new(&entries).collect();
            assert_eq!(lost, expected, "{pid} {mask:x}");
        }
        assert_eq!(Lost::new(&[0, 1, 0xff, 0xff, 0, 1, 0, 0]).count(), 18);
    }

    #[test]
    fn a_bitrate_is_mantissa_times_power() {
        for (bytes, expected) in [
            ([0, 0, 0], 0),
            ([0x03, 0xff, 0xff], 0x3ffff),
            ([0x04, 0, 1], 2),
            ([0x1a, 0x36, 0xee], (0x2_36ee) << 6),
            ([0xff, 0xff, 0xff], u64::MAX),
        ] {
            let [a, b, c] = bytes;
            let message = [
                0x8f, 206, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, b'R', b'E', b'M', b'B', 1, a, b, c, 0, 0,
                0, 9,
            ];
            let found: Vec<_> = packets(&message).collect();
            assert!(
                matches!(found[..], [Ok(Packet::MaximumBitrate { bits_per_second })] if bits_per_second == expected),
                "{found:?}"
            );
        }
        let other = [
            0x8f, 206, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, b'R', b'E', b'M', b'X',
        ];
        assert!(matches!(
            packets(&other).next(),
            Some(Ok(Packet::Other {
                packet_type: 206,
                format: 15
            }))
        ));
    }

    #[test]
    fn full_intra_requests_name_their_ssrc() {
        let message = [
            0x84, 206, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 4, 0, 0, 0, 0, 0, 0, 10, 255, 0,
            0, 0,
        ];
        let found: Vec<_> = packets(&message).collect();
        let [Ok(Packet::FullIntraRequest(requests))] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(requests.clone().collect::<Vec<_>>(), [(9, 4), (10, 255)]);
    }
}
