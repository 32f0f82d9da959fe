//! What the lab's link carries.

use std::time::Instant;

use crate::id::TrackId;

/// Payload of a full packet, and what it has besides: RTP header, extensions, tag; IP and UDP (bytes).
pub(super) const PAYLOAD_BYTES: u32 = 1130;
pub(super) const RTP_BYTES: usize = 44;
pub(super) const IP_BYTES: usize = 28;

/// One packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    /// Whose it is.
    pub(super) viewer: usize,
    /// Its transport-wide sequence number.
    pub(super) number: u16,
    /// What is in it, unless that is sound or padding.
    pub(super) part: Option<Part>,
}

/// A part of a picture.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// RTP sequence number, extended.
    pub(super) sequence: u64,
    /// Number of the picture, as sent to this viewer.
    pub(super) picture: u64,
    /// Packets of the picture.
    pub(super) parts: u32,
    pub(super) keyframe: bool,
    pub(super) track: TrackId,
    pub(super) captured: Instant,
    /// RTP, with everything.
    pub(super) bytes: usize,
}
