//! A track's units as RTP packets: its packetizer, and the ring of what shards begin with.

use std::sync::Arc;

use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::header::HEADER_BYTES_MAX;
use headwater_media::rtp::packetizer::{H264Packetizer, OpusPacketizer};
use headwater_media::rtp::ring::{Limits, PacketRing};
use headwater_media::track::Configuration;
use headwater_media::unit::AccessUnit;

use crate::latency::LiveEdge;
use crate::transport::srtp::RTP_TAG_BYTES_MAX;

/// Bytes of a UDP payload that pass everywhere: IPv6's least MTU less its headers (RFC 8200 section 5).
const UDP_PAYLOAD_BYTES: usize = 1280 - 40 - 8;

/// Bytes of an RTP payload, so that header, extensions and tag still fit.
pub(crate) const RTP_PAYLOAD_BYTES: usize =
    UDP_PAYLOAD_BYTES - HEADER_BYTES_MAX - RTP_TAG_BYTES_MAX;

/// A track's way to packets.
pub(super) struct Packets {
    packetizer: Packetizer,
    ring: PacketRing,
    /// Units were lost: nothing is sent before a keyframe.
    pub(super) waiting: bool,
    pub(super) live: LiveEdge,
}

enum Packetizer {
    H264(H264Packetizer),
    Opus(OpusPacketizer),
}

impl Packets {
    /// Of a track that is coded so; none if WebRTC viewers don't get it.
    pub(super) fn new(configuration: &Configuration, ring: Limits) -> Option<Self> {
        let packetizer = match configuration {
            Configuration::H264(_) => Packetizer::H264(H264Packetizer::new(RTP_PAYLOAD_BYTES)),
            Configuration::Opus(_) => Packetizer::Opus(OpusPacketizer::new(RTP_PAYLOAD_BYTES)),
            Configuration::Aac(_) => return None,
        };
        Some(Self {
            packetizer,
            ring: PacketRing::new(ring),
            waiting: true,
            live: LiveEdge::default(),
        })
    }

    /// The packets of the next unit, kept in the ring; none if it has none.
    pub(super) fn packetize(
        &mut self,
        unit: &AccessUnit,
        configuration: &Configuration,
    ) -> Option<Arc<PacketBatch>> {
        let batch = match (&mut self.packetizer, configuration) {
            (Packetizer::H264(packetizer), Configuration::H264(configuration)) => {
                packetizer.packetize(unit, configuration)
            }
            (Packetizer::Opus(packetizer), Configuration::Opus(_)) => packetizer.packetize(unit),
            _ => None,
        };
        let batch = Arc::new(batch?);
        self.ring.push(Arc::clone(&batch));
        Some(batch)
    }

    /// Forgets what there was, which is as old as its last viewers; indices go on.
    pub(super) fn begin_anew(&mut self, ring: Limits) {
        self.ring = PacketRing::new(ring);
        self.waiting = true;
    }

    /// What a shard begins with: pictures from the newest keyframe on, or the newest sound.
    pub(super) fn newest(&self) -> Vec<Arc<PacketBatch>> {
        match self.packetizer {
            Packetizer::H264(_) => self.ring.newest_gop().cloned().collect(),
            Packetizer::Opus(_) => self.ring.newest().cloned().into_iter().collect(),
        }
    }
}
