//! Access units to packet batches, once per rendition.

use crate::codec::h264;
use crate::rtp::batch::PacketBatch;
use crate::time::MediaTime;
use crate::unit::AccessUnit;

/// A position on the stream's timeline as the extended RTP timestamp of a clock: what [`PacketBatch::rtp_time`] has, and what
/// a sender report maps to wall time.
pub fn rtp_time(pts: MediaTime, clock_hz: u32) -> u64 {
    let _ = (pts, clock_hz);
    todo!()
}

/// H.264 in packetization mode 1 (RFC 6184). One per video track of a replica.
#[derive(Debug)]
pub struct H264Packetizer {}

impl H264Packetizer {
    /// `max_payload`: bytes of an RTP payload, without RTP header, extensions and SRTP tag.
    pub fn new(max_payload: usize) -> Self {
        let _ = max_payload;
        Self {}
    }

    /// The packets of `unit`, `None` if it has no NAL units.
    pub fn packetize(
        &mut self,
        unit: &AccessUnit,
        configuration: &h264::Configuration,
    ) -> Option<PacketBatch> {
        let _ = (unit, configuration);
        todo!()
    }
}

/// Opus (RFC 7587): one packet an access unit. One per audio track of a replica.
#[derive(Debug)]
pub struct OpusPacketizer {}

impl OpusPacketizer {
    /// `max_payload`: as in [`H264Packetizer::new`]. A larger Opus packet is dropped, as RFC 7587 section 4.2 has no fragments.
    pub fn new(max_payload: usize) -> Self {
        let _ = max_payload;
        Self {}
    }

    /// The packet of `unit`, `None` if it is empty or too large.
    pub fn packetize(&mut self, unit: &AccessUnit) -> Option<PacketBatch> {
        let _ = unit;
        todo!()
    }
}
