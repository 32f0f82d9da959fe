//! The part of an RTP packet that differs between viewers: fixed header (RFC 3550 section 5.1) and one-byte extensions (RFC 8285).
//!
//! Work is done as seldom as it can be: a [`Layout`] a viewer and SSRC, a [`Template`] an access unit, and for each packet a copy of some
//! forty bytes and a few patches.

use smallvec::SmallVec;

use crate::sdp::{ExtensionIds, NegotiatedMedia};
use crate::time::WallTime;

/// Room that the longest header needs, in bytes: 12 fixed, 4 before the extensions, 33 of extensions padded to 36, and the original
/// sequence number of a retransmission makes 54.
pub const HEADER_BYTES_MAX: usize = 56;

/// RFC 3550 section 5.1.
const FIXED_BYTES: usize = 12;
/// "defined by profile" of one-byte extensions (RFC 8285 section 4.2).
const ONE_BYTE_PROFILE: [u8; 2] = [0xbe, 0xde];
/// What a one-byte extension can hold (RFC 8285 section 4.2).
const ELEMENT_BYTES_MAX: usize = 16;
const MARKER: u8 = 0x80;
/// min and max of playout-delay have 12 bits.
const PLAYOUT_DELAY_MAX: u16 = 0xfff;

/// What of a viewer's headers never changes; one for each SSRC. [`Layout::template`] makes an access unit's header of it.
#[derive(Debug, Clone)]
pub struct Layout {
    payload_type: u8,
    ssrc: u32,
    ids: ExtensionIds,
    mid: SmallVec<[u8; ELEMENT_BYTES_MAX]>,
}

/// What changes from one access unit to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UnitFields {
    /// The RTP timestamp towards this viewer.
    pub timestamp: u32,
    /// For abs-capture-time; written only where the viewer negotiated it.
    pub capture_time: Option<WallTime>,
    /// For playout-delay, (min, max) in units of 10 ms, each below 4096; written only where the viewer negotiated it.
    pub playout_delay: Option<(u16, u16)>,
    /// Write the mid, where negotiated: the first packets need it, until the viewer has mapped the SSRC (RFC 8843 section 9.2).
    pub mid: bool,
}

/// What changes from packet to packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PacketFields {
    /// The RTP sequence number towards this viewer.
    pub sequence: u16,
    /// The transport-wide sequence number; written only where the viewer negotiated it.
    pub transport_sequence: u16,
    /// Last packet of a picture.
    pub marker: bool,
}

/// The header of every packet of one access unit, but for what [`Template::write`] patches. All have the same length, so
/// that equal payloads make equal GSO segments.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
    /// Where the transport-wide sequence number goes; 0 for nowhere.
    transport_sequence_at: usize,
}

impl Layout {
    /// For the packets of `media`'s own SSRC.
    pub fn new(media: &NegotiatedMedia) -> Self {
        Self::with(media, media.payload_type, media.ssrc)
    }

    /// For the packets of `media`'s RTX SSRC (RFC 4588), if it was negotiated.
    pub fn rtx(media: &NegotiatedMedia) -> Option<Self> {
        let payload_type = media.rtx_payload_type?;
        Some(Self::with(media, payload_type, media.rtx_ssrc))
    }

    /// The header for one access unit.
    pub fn template(&self, unit: &UnitFields) -> Template {
        let mut template = Template {
            bytes: [0; HEADER_BYTES_MAX],
            len: FIXED_BYTES,
            transport_sequence_at: 0,
        };
        template.bytes[0] = 0x80; // version 2, no padding, no CSRC
        template.bytes[1] = self.payload_type;
        template.bytes[4..8].copy_from_slice(&unit.timestamp.to_be_bytes());
        template.bytes[8..12].copy_from_slice(&self.ssrc.to_be_bytes());

        let mut elements = Elements {
            template: &mut template,
            at: FIXED_BYTES + 4,
        };
        if let Some(id) = self.ids.transport_sequence {
            let at = elements.push(id, &[0, 0]);
            elements.template.transport_sequence_at = at;
        }
        if let (Some(id), Some(time)) = (self.ids.capture_time, unit.capture_time) {
            elements.push(id, &time.ntp().to_be_bytes());
        }
        if let (Some(id), Some((min, max))) = (self.ids.playout_delay, unit.playout_delay) {
            let min = u32::from(min.min(PLAYOUT_DELAY_MAX));
            let max = u32::from(max.min(PLAYOUT_DELAY_MAX));
            let [_, bytes @ ..] = (min << 12 | max).to_be_bytes();
            elements.push(id, &bytes);
        }
        if let (Some(id), true, false) = (self.ids.mid, unit.mid, self.mid.is_empty()) {
            elements.push(id, &self.mid);
        }
        elements.finish();
        template
    }

    fn with(media: &NegotiatedMedia, payload_type: u8, ssrc: u32) -> Self {
        let mid = media.mid.as_bytes();
        // A longer mid has no place in a one-byte extension; the SSRC is in the answer, so viewers map it without.
        let mid = if mid.len() <= ELEMENT_BYTES_MAX {
            mid
        } else {
            &[]
        };
        Self {
            payload_type: payload_type & !MARKER,
            ssrc,
            ids: media.extensions,
            mid: SmallVec::from_slice(mid),
        }
    }
}

impl Template {
    /// Bytes that [`Template::write`] writes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Never true.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the header to the start of `out` and returns its length, or `None` when `out` is too short.
    pub fn write(&self, out: &mut [u8], packet: &PacketFields) -> Option<usize> {
        let header = out.get_mut(..self.len)?;
        header.copy_from_slice(&self.bytes[..self.len]);
        if packet.marker {
            header[1] |= MARKER;
        }
        header[2..4].copy_from_slice(&packet.sequence.to_be_bytes());
        let at = self.transport_sequence_at;
        if at != 0 {
            header[at..at + 2].copy_from_slice(&packet.transport_sequence.to_be_bytes());
        }
        Some(self.len)
    }

    /// Like [`Template::write`] for a retransmission: the header and the original sequence number (RFC 4588 section 4); the
    /// original's payload follows. To be called on a template of [`Layout::rtx`].
    pub fn write_rtx(
        &self,
        out: &mut [u8],
        packet: &PacketFields,
        original_sequence: u16,
    ) -> Option<usize> {
        let end = self.len + 2;
        let osn = out.get_mut(self.len..end)?;
        osn.copy_from_slice(&original_sequence.to_be_bytes());
        self.write(out, packet)?;
        Some(end)
    }
}

/// Extension elements on their way into a template.
struct Elements<'a> {
    template: &'a mut Template,
    at: usize,
}

impl Elements<'_> {
    /// Appends one of 1 to 16 bytes and returns where they are. `HEADER_BYTES_MAX` has room for one of each.
    fn push(&mut self, id: u8, data: &[u8]) -> usize {
        let length_minus_one = u8::try_from(data.len() - 1).unwrap_or(0);
        self.template.bytes[self.at] = id << 4 | length_minus_one & 0xf;
        let start = self.at + 1;
        self.at = start + data.len();
        self.template.bytes[start..self.at].copy_from_slice(data);
        start
    }

    /// Writes what precedes the elements, if there are any; the padding behind them is there already.
    fn finish(self) {
        let start = FIXED_BYTES + 4;
        if self.at == start {
            return;
        }
        let words = (self.at - start).div_ceil(4);
        let bytes = &mut self.template.bytes;
        bytes[0] |= 0x10;
        bytes[12..14].copy_from_slice(&ONE_BYTE_PROFILE);
        bytes[14..16].copy_from_slice(&u16::try_from(words).unwrap_or(0).to_be_bytes());
        self.template.len = start + words * 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(extensions: ExtensionIds) -> NegotiatedMedia {
        NegotiatedMedia {
            mid: "0".to_owned(),
            payload_type: 102,
            rtx_payload_type: Some(103),
            ssrc: 0x0102_0304,
            rtx_ssrc: 0x0506_0708,
            transport_cc: true,
            nack: true,
            extensions,
        }
    }

    const ALL: ExtensionIds = ExtensionIds {
        transport_sequence: Some(3),
        capture_time: Some(9),
        playout_delay: Some(5),
        mid: Some(4),
    };

    const UNIT: UnitFields = UnitFields {
        timestamp: 0xfffe_fdfc,
        capture_time: Some(WallTime::from_unix_micros(1_500_000)),
        playout_delay: Some((0, 4095)),
        mid: true,
    };

    /// Reads a header as a receiver does: the elements as (id, data).
    fn elements(header: &[u8]) -> Vec<(u8, Vec<u8>)> {
        if header[0] & 0x10 == 0 {
            assert_eq!(header.len(), 12);
            return Vec::new();
        }
        assert_eq!(header[12..14], [0xbe, 0xde]);
        let words = usize::from(u16::from_be_bytes([header[14], header[15]]));
        assert_eq!(header.len(), 16 + words * 4);
        let (mut rest, mut found) = (&header[16..], Vec::new());
        while let [first, tail @ ..] = rest {
            if *first == 0 {
                rest = tail;
                continue;
            }
            let (data, tail) = tail.split_at(usize::from(first & 0xf) + 1);
            found.push((first >> 4, data.to_vec()));
            rest = tail;
        }
        found
    }

    #[test]
    fn a_full_header_says_everything() {
        let template = Layout::new(&media(ALL)).template(&UNIT);
        let mut out = [0xee; HEADER_BYTES_MAX];
        let packet = PacketFields {
            sequence: 65_535,
            transport_sequence: 0x1234,
            marker: true,
        };
        let len = template.write(&mut out, &packet).expect("room");
        assert_eq!(len, template.len());
        assert_eq!(
            out[..12],
            [
                0x90,
                0x80 | 102,
                0xff,
                0xff,
                0xff,
                0xfe,
                0xfd,
                0xfc,
                1,
                2,
                3,
                4
            ]
        );
        let ntp = WallTime::from_unix_micros(1_500_000).ntp();
        assert_eq!(
            elements(&out[..len]),
            [
                (3, vec![0x12, 0x34]),
                (9, ntp.to_be_bytes().to_vec()),
                (5, vec![0, 0x0f, 0xff]),
                (4, b"0".to_vec()),
            ]
        );
        assert!(out[len..].iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn only_what_was_negotiated_and_given_is_written() {
        let none = ExtensionIds::default();
        let given_nothing = UnitFields::default();
        for (ids, unit, len, count) in [
            (none, UNIT, 12, 0),
            (ALL, given_nothing, 20, 1),
            (
                ExtensionIds {
                    transport_sequence: None,
                    ..ALL
                },
                given_nothing,
                12,
                0,
            ),
            (
                ExtensionIds {
                    capture_time: None,
                    ..ALL
                },
                UNIT,
                28,
                3,
            ),
        ] {
            let template = Layout::new(&media(ids)).template(&unit);
            let mut out = [0; HEADER_BYTES_MAX];
            let written = template.write(&mut out, &PacketFields::default());
            assert_eq!(written, Some(len));
            assert_eq!(elements(&out[..len]).len(), count);
            assert_eq!(out[1], 102);
        }
    }

    #[test]
    fn the_longest_header_fits_and_a_short_buffer_is_refused() {
        let mut longest = media(ALL);
        longest.mid = "x".repeat(16);
        let template = Layout::rtx(&longest).expect("offered").template(&UNIT);
        let mut out = [0; HEADER_BYTES_MAX];
        let packet = PacketFields::default();
        let end = template.write_rtx(&mut out, &packet, 0x0a0b).expect("room");
        assert_eq!(end, 54);
        assert_eq!(out[52..54], [0x0a, 0x0b]);
        assert_eq!((out[1], &out[8..12]), (103, &[5, 6, 7, 8][..]));
        assert_eq!(template.write(&mut [0; 51], &packet), None);
        assert_eq!(template.write_rtx(&mut [0; 53], &packet, 0), None);
        longest.mid = "x".repeat(17);
        let mut out = [0; HEADER_BYTES_MAX];
        let template = Layout::new(&longest).template(&UNIT);
        let len = template.write(&mut out, &packet).expect("room");
        assert_eq!(elements(&out[..len]).len(), 3, "no mid");
    }

    #[test]
    fn no_rtx_without_its_payload_type() {
        let mut without = media(ALL);
        without.rtx_payload_type = None;
        assert!(Layout::rtx(&without).is_none());
    }
}
