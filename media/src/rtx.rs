//! Which packets to send again: NACKs in, decisions out.
//!
//! One [`Retransmitter`] for each SSRC of a viewer. It keeps no packets: a short list of segments maps the viewer's sequence numbers to
//! (track, ring index), and the packets are in the [`crate::rtp::ring::PacketRing`] that all viewers share.

use std::time::{Duration, Instant};

use crate::id::TrackId;

/// Bounds of retransmission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// A packet sent longer ago than this comes too late to be shown.
    pub latest_useful: Duration,
    /// Bytes of retransmission earned by each byte sent.
    pub share: f32,
    /// Bytes that may be saved up.
    pub burst_bytes: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            latest_useful: Duration::from_secs(1),
            share: 0.3,
            burst_bytes: 128 << 10,
        }
    }
}

/// A run of packets that left for the viewer for the first time: consecutive sequence numbers, consecutive ring indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The viewer's sequence number of the first, extended to 64 bits by the sender: its low 16 bits were on the wire.
    pub first_sequence: u64,
    /// How many.
    pub packets: u32,
    /// The track they came from.
    pub track: TrackId,
    /// The first's index in that track's ring.
    pub first_index: u64,
    /// What was added to [`crate::rtp::batch::PacketBatch::rtp_time`], modulo 2^32, to make the RTP timestamp.
    pub timestamp_offset: u32,
    /// They begin a keyframe.
    pub keyframe: bool,
    /// Bytes of payload, together.
    pub bytes: u32,
}

/// A packet to send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    /// The viewer's sequence number of the original: the OSN is its low 16 bits.
    pub sequence: u64,
    /// Where to find it.
    pub track: TrackId,
    /// Where to find it.
    pub index: u64,
    /// Added to the batch's `rtp_time` gives the original's RTP timestamp, which the copy repeats (RFC 4588 section 4).
    pub timestamp_offset: u32,
}

/// What came of NACKs so far, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Sequence numbers asked for.
    pub asked: u64,
    /// Resent.
    pub sent: u64,
    /// Not resent, because a copy left less than a round trip ago.
    pub suppressed: u64,
    /// Not resent, because the token bucket was empty.
    pub over_budget: u64,
    /// Not resent, because they were sent too long ago.
    pub too_late: u64,
    /// Not resent, because the ring no longer has them.
    pub out_of_ring: u64,
    /// Not resent, because we never sent them.
    pub unknown: u64,
}

/// The viewer misses packets that can't be resent and that pictures refer to: only a keyframe helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyframeWanted;

/// See the module.
#[derive(Debug)]
pub struct Retransmitter {}

impl Retransmitter {
    /// With an empty history and a full token bucket.
    pub fn new(options: Options, now: Instant) -> Self {
        let _ = (options, now);
        Self {}
    }

    /// Notes packets that left.
    pub fn handle_sent(&mut self, now: Instant, sent: &Sent) {
        let _ = (now, sent);
        todo!()
    }

    /// Answers a NACK. `size` says how many payload bytes a packet has, `None` when the ring no longer has it. What is to be resent is
    /// appended to `out`, in the order asked.
    pub fn handle_nack(
        &mut self,
        now: Instant,
        lost: impl IntoIterator<Item = u16>,
        rtt: Option<Duration>,
        size: impl FnMut(TrackId, u64) -> Option<usize>,
        out: &mut Vec<Resend>,
    ) -> Option<KeyframeWanted> {
        let _ = (now, lost.into_iter(), rtt, size, out);
        todo!()
    }

    /// What came of NACKs so far.
    pub fn counters(&self) -> Counters {
        todo!()
    }
}
