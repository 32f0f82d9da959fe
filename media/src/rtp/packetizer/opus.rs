//! Opus in RTP (RFC 7587): one packet an access unit.

use super::Builder;
use crate::codec::opus::CLOCK_HZ;
use crate::rtp::batch::PacketBatch;
use crate::unit::AccessUnit;

/// One per audio track of a replica: it counts the track's packets.
#[derive(Debug)]
pub struct OpusPacketizer {
    max_payload: usize,
    next_index: u64,
}

impl OpusPacketizer {
    /// `max_payload`: bytes of an RTP payload, without RTP header, extensions and SRTP tag.
    pub const fn new(max_payload: usize) -> Self {
        Self {
            max_payload,
            next_index: 0,
        }
    }

    /// The packet of `unit`; `None` if it is empty or over the limit, as RFC 7587 section 4.2 has no fragments.
    pub fn packetize(&mut self, unit: &AccessUnit) -> Option<PacketBatch> {
        if unit.payload.is_empty() || unit.payload.len() > self.max_payload {
            return None;
        }
        let mut builder = Builder::with_capacity(unit.payload.len(), 1);
        builder.payloads.extend_from_slice(&unit.payload);
        builder.end_packet();
        builder.finish(unit, CLOCK_HZ, &mut self.next_index)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::TrackId;
    use crate::testkit;
    use crate::time::{MediaTime, WallTime};

    fn unit(sequence: i64, bytes: usize) -> AccessUnit {
        let pts = MediaTime::from_samples(960 * sequence - 312, 48_000);
        AccessUnit {
            discontinuity: sequence == 0,
            payload: Bytes::from(vec![7; bytes]),
            ingest_time: WallTime::from_unix_micros(5),
            ..testkit::unit(TrackId::OPUS, 1, sequence.unsigned_abs(), pts)
        }
    }

    #[test]
    fn one_packet_a_unit_with_gapless_indices() {
        let mut packetizer = OpusPacketizer::new(1100);
        let mut times = Vec::new();
        for (expected, sequence) in (0..).zip([0, 1, 2]) {
            let unit = unit(sequence, 160);
            let batch = packetizer.packetize(&unit).expect("fits");
            assert_eq!((batch.first_index, batch.len()), (expected, 1));
            assert_eq!(batch.payload(0), Some(&unit.payload[..]));
            assert_eq!(batch.payload(1), None);
            assert_eq!(batch.discontinuity, sequence == 0);
            times.push(batch.rtp_time);
        }
        assert_eq!((times[1] - times[0], times[2] - times[1]), (960, 960));
    }

    #[test]
    fn what_cannot_be_sent_takes_no_index() {
        let mut packetizer = OpusPacketizer::new(1100);
        assert_eq!(packetizer.packetize(&unit(0, 0)), None);
        assert_eq!(packetizer.packetize(&unit(1, 1101)), None);
        let batch = packetizer.packetize(&unit(2, 1100)).expect("fits");
        assert_eq!(batch.first_index, 0);
    }
}
