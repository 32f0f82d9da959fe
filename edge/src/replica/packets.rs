//! A track's units as RTP packets: its packetizer, and the ring of what shards begin with.

use std::sync::Arc;
use std::time::Instant;

use headwater_media::id::Epoch;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::header::HEADER_BYTES_MAX;
use headwater_media::rtp::packetizer::{H264Packetizer, OpusPacketizer};
use headwater_media::rtp::ring::{Limits, PacketRing};
use headwater_media::track::Configuration;
use headwater_media::unit::AccessUnit;

use super::punctual::Punctual;
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
    /// Of sound.
    pub(super) punctual: Punctual,
    /// The last unit that was taken.
    newest: Option<(Epoch, u64)>,
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
            punctual: Punctual::default(),
            newest: None,
        })
    }

    /// Whether a unit goes on from what there is. It doesn't if it was here before, as after the track was not wanted for a moment and what
    /// is kept of it came again, or if it is a picture and the one before it is missing.
    pub(super) fn takes(&mut self, unit: &AccessUnit) -> bool {
        let known = self.newest.filter(|(epoch, _)| *epoch == unit.epoch);
        if known.is_some_and(|(_, newest)| unit.sequence <= newest) {
            return false;
        }
        if matches!(self.packetizer, Packetizer::H264(_)) {
            let follows = self.newest.is_none()
                || known.is_some_and(|(_, newest)| unit.sequence == newest.saturating_add(1));
            self.waiting |= !follows;
            if self.waiting && !unit.keyframe {
                return false;
            }
        }
        if std::mem::take(&mut self.waiting) {
            self.live = LiveEdge::default();
        }
        self.newest = Some((unit.epoch, unit.sequence));
        true
    }

    /// The packets of the next unit, kept in the ring; none if it has none.
    pub(super) fn packetize(
        &mut self,
        now: Instant,
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
        self.ring.push(now, Arc::clone(&batch));
        Some(batch)
    }

    /// Forgets what there was, which is as old as its last viewers; indices go on.
    pub(super) fn begin_anew(&mut self, ring: Limits) {
        self.ring = PacketRing::new(ring);
        self.waiting = true;
        self.punctual = Punctual::default();
        self.newest = None;
    }

    /// What a shard begins with: pictures from the newest keyframe on, or the newest sound.
    pub(super) fn newest(&self) -> Vec<Arc<PacketBatch>> {
        match self.packetizer {
            Packetizer::H264(_) => self.ring.newest_gop().cloned().collect(),
            Packetizer::Opus(_) => self.ring.newest().cloned().into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use headwater_media::id::TrackId;
    use headwater_media::testkit;
    use headwater_media::time::MediaTime;

    use super::*;

    fn unit(epoch: u64, sequence: u64) -> AccessUnit {
        AccessUnit {
            keyframe: sequence.is_multiple_of(10),
            payload: Bytes::from_static(&[0, 0, 0, 1, 0x65]),
            ..testkit::unit(
                TrackId::SOURCE_VIDEO,
                epoch,
                sequence,
                MediaTime::from_millis(i64::try_from(sequence).unwrap() * 33),
            )
        }
    }

    /// Those of `sequences` that become packets.
    fn taken(
        packets: &mut Packets,
        epoch: u64,
        sequences: impl IntoIterator<Item = u64>,
    ) -> Vec<u64> {
        let configuration = Configuration::H264(testkit::h264_configuration());
        let now = testkit::start();
        let mut take = |sequence: &u64| {
            let unit = unit(epoch, *sequence);
            packets.takes(&unit) && packets.packetize(now, &unit, &configuration).is_some()
        };
        sequences
            .into_iter()
            .filter(|sequence| take(sequence))
            .collect()
    }

    #[test]
    fn what_comes_again_is_taken_once_and_nothing_after_a_hole_before_a_keyframe() {
        let limits = Limits {
            bytes: 1 << 20,
            age: Duration::from_secs(4),
        };
        let configuration = Configuration::H264(testkit::h264_configuration());
        let mut packets = Packets::new(&configuration, limits).unwrap();
        assert_eq!(taken(&mut packets, 1, 8..15), [10, 11, 12, 13, 14]);
        // It was not wanted for a moment, and comes again from the keyframe on.
        assert_eq!(taken(&mut packets, 1, 10..17), [15, 16]);
        // What was missed is not kept.
        assert_eq!(taken(&mut packets, 1, 18..22), [20, 21]);
        // Another publisher's numbers begin anew.
        assert_eq!(taken(&mut packets, 2, [22, 23]), [0_u64; 0]);
        assert_eq!(taken(&mut packets, 2, [0, 1]), [0, 1]);
        // Whoever wakes it begins with all that is kept.
        packets.begin_anew(limits);
        assert_eq!(taken(&mut packets, 2, 0..3), [0, 1, 2]);
    }
}
