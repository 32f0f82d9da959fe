//! A packet batch: the RTP payloads of one access unit, made once and shared by every viewer.

use crate::id::{Epoch, TrackId};
use crate::time::{MediaTime, WallTime};

/// The RTP payloads of one access unit. Shared as `Arc<PacketBatch>` by all shards and viewers; what differs
/// between viewers (SSRC, sequence number, timestamp offset, payload type, header extensions) is written when a packet is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketBatch {
    /// The track.
    pub track: TrackId,
    /// The publisher incarnation.
    pub epoch: Epoch,
    /// [`crate::unit::AccessUnit::sequence`].
    pub unit_sequence: u64,
    /// Index of the first packet, counted over the track's life on this replica, gapless.
    pub first_index: u64,
    /// Presentation time, on the stream's timeline.
    pub pts: MediaTime,
    /// RTP timestamp in the track's clock (90 kHz video, 48 kHz audio), extended to 64 bits; a viewer adds its own offset
    /// and truncates.
    pub rtp_time: u64,
    /// A decoder can start here.
    pub keyframe: bool,
    /// No other access unit refers to this one.
    pub discardable: bool,
    /// See [`crate::unit::AccessUnit::discontinuity`].
    pub discontinuity: bool,
    /// When the origin read the access unit from its publisher, on this node's clock.
    pub ingest_time: WallTime,
    /// All payloads, one after another.
    pub(crate) payloads: Box<[u8]>,
    /// Where each payload ends in `payloads`.
    pub(crate) ends: Box<[u32]>,
}

impl PacketBatch {
    /// How many packets there are; at least one.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Never true: a batch has at least one packet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all payloads together.
    pub fn payload_bytes(&self) -> usize {
        self.payloads.len()
    }

    /// The payload of packet `i`. The last packet of a video batch carries the marker bit (RFC 6184 section 5.1).
    pub fn payload(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)? as usize;
        let start = i
            .checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize);
        self.payloads.get(start..end)
    }
}
