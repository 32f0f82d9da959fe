//! The part of an RTP packet that differs between viewers: fixed header (RFC 3550 section 5.1) and one-byte extensions (RFC 8285).

use crate::sdp::NegotiatedMedia;
use crate::time::WallTime;

/// Room that the longest header needs, in bytes.
pub const HEADER_BYTES_MAX: usize = 56;

/// What of a viewer's headers never changes; one per SSRC. [`Layout::template`] makes an access unit's header of it.
#[derive(Debug, Clone)]
pub struct Layout {}

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

/// The header of every packet of one access unit, but for what [`Template::write`] patches. All have the same length, so
/// that equal payloads make equal GSO segments.
#[derive(Debug, Clone, Copy)]
pub struct Template {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

impl Layout {
    /// For the packets of `media`'s own SSRC.
    pub fn new(media: &NegotiatedMedia) -> Self {
        let _ = media;
        Self {}
    }

    /// For the packets of `media`'s RTX SSRC (RFC 4588), if it was negotiated.
    pub fn rtx(media: &NegotiatedMedia) -> Option<Self> {
        let _ = media;
        todo!()
    }

    /// The header for one access unit.
    pub fn template(&self, unit: &UnitFields) -> Template {
        let _ = unit;
        todo!()
    }
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

impl Template {
    /// Bytes that [`Template::write`] writes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the header to the start of `out` and returns its length, or `None` when `out` is too short.
    pub fn write(&self, out: &mut [u8], packet: &PacketFields) -> Option<usize> {
        let _ = (self.bytes, out, packet);
        todo!()
    }

    /// Like [`Template::write`] for a retransmission: the header and the original sequence number (RFC 4588 section 4); the
    /// original's payload follows. To be called on a template of [`Layout::rtx`].
    pub fn write_rtx(
        &self,
        out: &mut [u8],
        packet: &PacketFields,
        original_sequence: u16,
    ) -> Option<usize> {
        let _ = (out, packet, original_sequence);
        todo!()
    }
}
