//! Access units to packet batches, once per rendition.

use crate::rtp::batch::PacketBatch;
use crate::time::{MediaTime, TICKS_PER_SECOND};
use crate::unit::AccessUnit;

mod h264;
mod opus;

pub use h264::H264Packetizer;
pub use opus::OpusPacketizer;

/// The extended RTP timestamp of the timeline's start. Above zero, so that positions before the start (composition offsets, encoder
/// delay) stay non-negative; a multiple of 2^32, so that it disappears when truncated.
const RTP_TIME_OF_START: i128 = 1 << 40;

/// A position on the stream's timeline as the extended RTP timestamp of a clock, rounded to the nearest: what
/// [`PacketBatch::rtp_time`] has, and what a sender report maps to wall time.
pub fn rtp_time(pts: MediaTime, clock_hz: u32) -> u64 {
    let second = i128::from(TICKS_PER_SECOND);
    let scaled = i128::from(pts.ticks()) * i128::from(clock_hz);
    let rounded = (scaled + second / 2).div_euclid(second);
    u64::try_from(rounded + RTP_TIME_OF_START).unwrap_or(if rounded < 0 { 0 } else { u64::MAX })
}

/// A batch while its payloads are written.
#[derive(Debug)]
struct Builder {
    payloads: Vec<u8>,
    ends: Vec<u32>,
}

impl Builder {
    /// With room for `bytes` in `packets`.
    fn with_capacity(bytes: usize, packets: usize) -> Self {
        Self {
            payloads: Vec::with_capacity(bytes),
            ends: Vec::with_capacity(packets),
        }
    }

    /// Ends the packet whose payload was appended to `payloads`.
    fn end_packet(&mut self) {
        // An access unit is bounded by the RTMP message limit, far below 4 GiB.
        let end = u32::try_from(self.payloads.len()).unwrap_or(u32::MAX);
        self.ends.push(end);
    }

    /// The batch, and `next_index` moved past it. `None` when there are no packets.
    fn finish(self, unit: &AccessUnit, clock_hz: u32, next_index: &mut u64) -> Option<PacketBatch> {
        let packets = u64::try_from(self.ends.len()).ok().filter(|n| *n > 0)?;
        let first_index = *next_index;
        *next_index += packets;
        Some(PacketBatch {
            track: unit.track,
            epoch: unit.epoch,
            unit_sequence: unit.sequence,
            first_index,
            pts: unit.pts,
            rtp_time: rtp_time(unit.pts, clock_hz),
            keyframe: unit.keyframe,
            discardable: unit.discardable,
            discontinuity: unit.discontinuity,
            ingest_time: unit.ingest_time,
            payloads: self.payloads.into_boxed_slice(),
            ends: self.ends.into_boxed_slice(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rtp_time_starts_above_zero_and_truncates_to_the_position() {
        const START: u64 = 1 << 40;
        for (ticks, hz, expected) in [
            (0, 90_000, START),
            (1, 90_000, START + 1),
            (-3000, 90_000, START - 3000),
            (90_000, 48_000, START + 48_000),
            (-585, 48_000, START - 312),
            // The 32-bit wrap, 13.3 hours in.
            (0xffff_ffff, 90_000, START + 0xffff_ffff),
            (0x1_0000_0000, 90_000, START + 0x1_0000_0000),
            (i64::MIN, 90_000, 0),
            (i64::MAX, u32::MAX, u64::MAX),
        ] {
            let time = rtp_time(MediaTime::from_ticks(ticks), hz);
            assert_eq!(time, expected, "{ticks} at {hz}");
        }
        assert_eq!(START & 0xffff_ffff, 0);
    }

    #[test]
    fn sample_positions_survive_the_timeline() {
        for sample in -2000..2000 {
            let pts = MediaTime::from_samples(sample, 48_000);
            let back = rtp_time(pts, 48_000).checked_signed_diff(1 << 40);
            assert_eq!(back, Some(sample));
        }
    }
}
