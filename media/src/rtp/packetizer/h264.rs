//! H.264 in RTP, packetization mode 1 (RFC 6184): single NAL units, STAP-A, FU-A.

use smallvec::SmallVec;

use super::Builder;
use crate::codec::h264::{self, nal_units};
use crate::rtp::batch::PacketBatch;
use crate::unit::AccessUnit;

const CLOCK_HZ: u32 = 90_000;
/// NAL unit types of RFC 6184 section 5.2.
const STAP_A: u8 = 24;
const FU_A: u8 = 28;
const FU_START: u8 = 0x80;
const FU_END: u8 = 0x40;
/// A NAL unit header's nal_ref_idc; the higher, the more important.
const NRI: u8 = 0x60;
/// Under this a fragment would be mostly header.
const PAYLOAD_BYTES_MIN: usize = 64;

/// One per video track of a replica: it counts the track's packets.
///
/// Before an IDR picture go the track's parameter sets, because FLV has them out of band and a viewer may join there. Small
/// NAL units share a STAP-A as far as it fits. Fragments of a large one are equal but for the last, so that they leave as one
/// GSO message.
#[derive(Debug)]
pub struct H264Packetizer {
    max_payload: usize,
    next_index: u64,
}

impl H264Packetizer {
    /// `max_payload`: bytes of an RTP payload, without RTP header, extensions and SRTP tag; at least 64.
    pub fn new(max_payload: usize) -> Self {
        Self {
            max_payload: max_payload.max(PAYLOAD_BYTES_MIN),
            next_index: 0,
        }
    }

    /// The packets of `unit`, `None` if it has no NAL units. `configuration` is the one that the unit names.
    pub fn packetize(
        &mut self,
        unit: &AccessUnit,
        configuration: &h264::Configuration,
    ) -> Option<PacketBatch> {
        let parameter_sets = configuration.sps.iter().chain(&configuration.pps);
        let parameter_sets = parameter_sets
            .filter(|_| unit.keyframe)
            .map(AsRef::as_ref)
            .filter(|set: &&[u8]| !set.is_empty());

        // Headers of fragments and aggregates stay well under a tenth.
        let packets = unit.payload.len() / self.max_payload + 4;
        let bytes = unit.payload.len() + packets * 4 + configuration.avcc.len();
        let mut writer = Writer {
            max_payload: self.max_payload,
            builder: Builder::with_capacity(bytes, packets),
            pending: SmallVec::new(),
            pending_bytes: 1,
        };
        let mut nals = nal_units(&unit.payload)
            .filter(|nal| !nal.is_empty())
            .peekable();
        nals.peek()?;
        for nal in parameter_sets.chain(nals) {
            writer.push(nal);
        }
        writer.flush();
        writer.builder.finish(unit, CLOCK_HZ, &mut self.next_index)
    }
}

/// Distributes NAL units over packets.
struct Writer<'a> {
    max_payload: usize,
    builder: Builder,
    /// What the next STAP-A will have.
    pending: SmallVec<[&'a [u8]; 8]>,
    /// Its size: a header, and for each NAL unit a 2-byte length.
    pending_bytes: usize,
}

impl<'a> Writer<'a> {
    fn push(&mut self, nal: &'a [u8]) {
        if nal.len() > self.max_payload {
            self.flush();
            self.fragment(nal);
            return;
        }
        let bytes = nal.len() + 2;
        if self.pending_bytes + bytes > self.max_payload {
            self.flush();
        }
        self.pending.push(nal);
        self.pending_bytes += bytes;
    }

    /// Writes what is pending as a STAP-A (RFC 6184 section 5.7.1), or as it is if it is one (section 5.6).
    fn flush(&mut self) {
        let out = &mut self.builder.payloads;
        match self.pending.as_slice() {
            [] => return,
            [single] => out.extend_from_slice(single),
            several => {
                let headers = several.iter().filter_map(|nal| nal.first());
                let importance = headers.map(|header| header & NRI).max().unwrap_or(0);
                out.push(importance | STAP_A);
                for nal in several {
                    // At most `max_payload`, which fits a datagram.
                    let length = u16::try_from(nal.len()).unwrap_or(u16::MAX);
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(nal);
                }
            }
        }
        self.builder.end_packet();
        self.pending.clear();
        self.pending_bytes = 1;
    }

    /// Writes FU-A packets (RFC 6184 section 5.8).
    fn fragment(&mut self, nal: &[u8]) {
        let Some((header, body)) = nal.split_first() else {
            return;
        };
        let room = self.max_payload - 2;
        let size = body.len().div_ceil(body.len().div_ceil(room));
        let mut flags = FU_START;
        let mut fragments = body.chunks(size).peekable();
        while let Some(fragment) = fragments.next() {
            if fragments.peek().is_none() {
                flags |= FU_END;
            }
            let out = &mut self.builder.payloads;
            out.extend_from_slice(&[header & !0x1f | FU_A, flags | header & 0x1f]);
            out.extend_from_slice(fragment);
            self.builder.end_packet();
            flags = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::TrackId;
    use crate::testkit::{self, h264_configuration};
    use crate::time::MediaTime;

    fn unit(nals: &[Vec<u8>], keyframe: bool) -> AccessUnit {
        let mut payload = Vec::new();
        for nal in nals {
            let length = u32::try_from(nal.len()).expect("short");
            payload.extend_from_slice(&length.to_be_bytes());
            payload.extend_from_slice(nal);
        }
        AccessUnit {
            pts: MediaTime::from_ticks(3000),
            keyframe,
            payload: payload.into(),
            ..testkit::unit(TrackId::SOURCE_VIDEO, 1, 3, MediaTime::ZERO)
        }
    }

    fn nal(header: u8, bytes: usize) -> Vec<u8> {
        (0..bytes)
            .map(|i| if i == 0 { header } else { i.to_le_bytes()[0] })
            .collect()
    }

    /// The NAL units as a receiver puts them together again.
    fn depacketize(batch: &PacketBatch) -> Vec<Vec<u8>> {
        let mut found: Vec<Vec<u8>> = Vec::new();
        let mut open = false;
        for i in 0..batch.len() {
            let payload = batch.payload(i).expect("in range");
            match payload[0] & 0x1f {
                STAP_A => {
                    let mut rest = &payload[1..];
                    while !rest.is_empty() {
                        let length = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
                        assert_eq!(rest[2] & NRI & !payload[0], 0, "importance");
                        found.push(rest[2..2 + length].to_vec());
                        rest = &rest[2 + length..];
                    }
                }
                FU_A => {
                    let start = payload[1] & FU_START != 0;
                    assert_eq!(start, !open, "fragment order");
                    if start {
                        found.push(vec![payload[0] & 0xe0 | payload[1] & 0x1f]);
                    }
                    found
                        .last_mut()
                        .expect("started")
                        .extend_from_slice(&payload[2..]);
                    open = payload[1] & FU_END == 0;
                }
                _ => found.push(payload.to_vec()),
            }
        }
        assert!(!open, "last fragment");
        found
    }

    fn sizes(batch: &PacketBatch) -> Vec<usize> {
        (0..batch.len())
            .filter_map(|i| batch.payload(i).map(<[u8]>::len))
            .collect()
    }

    #[test]
    fn a_keyframe_begins_with_its_parameter_sets_in_one_packet() {
        let configuration = h264_configuration();
        let unit = unit(&[nal(0x06, 30), nal(0x65, 5000)], true);
        let batch = H264Packetizer::new(1100)
            .packetize(&unit, &configuration)
            .expect("has units");
        // SPS 23, PPS 4 and SEI 30 in a STAP-A; 4999 bytes in five fragments.
        assert_eq!(
            sizes(&batch),
            [1 + 25 + 6 + 32, 1002, 1002, 1002, 1002, 1001]
        );
        let whole = depacketize(&batch);
        assert_eq!(
            whole[..2],
            [configuration.sps[0].to_vec(), configuration.pps[0].to_vec()]
        );
        assert_eq!(whole[2..], [nal(0x06, 30), nal(0x65, 5000)]);
        assert_eq!((batch.rtp_time, batch.unit_sequence), ((1 << 40) + 3000, 3));
        assert!(batch.keyframe);
    }

    #[test]
    fn small_units_share_a_packet_and_large_ones_are_cut_evenly() {
        let configuration = h264_configuration();
        for (lengths, expected) in [
            (&[500][..], &[500][..]),
            (&[1100], &[1100]),
            (&[1098], &[1098]),
            (&[1101], &[552, 552]),
            (&[30, 900], &[1 + 32 + 902]),
            (&[30, 1065], &[1100]),
            (&[30, 1066], &[30, 1066]),
            (&[30, 2000], &[30, 1002, 1001]),
            (&[400, 400, 400], &[805, 400]),
            (&[1, 1, 1101, 1, 1], &[7, 552, 552, 7]),
        ] {
            let nals: Vec<_> = lengths.iter().map(|length| nal(0x41, *length)).collect();
            let batch = H264Packetizer::new(1100)
                .packetize(&unit(&nals, false), &configuration)
                .expect("has units");
            assert_eq!(sizes(&batch), expected, "{lengths:?}");
            assert_eq!(depacketize(&batch), nals);
        }
    }

    #[test]
    fn indices_are_gapless_and_an_empty_unit_takes_none() {
        let configuration = h264_configuration();
        let mut packetizer = H264Packetizer::new(1100);
        let mut expected = 0;
        for bytes in [100, 3000, 0, 1200] {
            let nals: Vec<_> = (bytes > 0).then(|| nal(0x41, bytes)).into_iter().collect();
            let batch = packetizer.packetize(&unit(&nals, bytes == 0), &configuration);
            assert_eq!(batch.is_none(), bytes == 0);
            if let Some(batch) = batch {
                assert_eq!(batch.first_index, expected);
                expected += batch.len() as u64;
            }
        }
        assert_eq!(expected, 1 + 3 + 2);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(lengths in proptest::collection::vec(prop_oneof![1_usize..64, 1_usize..6000], 1..12), max in 0_usize..1500, keyframe in any::<bool>()) {
            let configuration = h264_configuration();
            let nals: Vec<_> = lengths.iter().map(|length| nal(0x41, *length)).collect();
            let batch = H264Packetizer::new(max).packetize(&unit(&nals, keyframe), &configuration).expect("has units");
            let limit = max.max(PAYLOAD_BYTES_MIN);
            prop_assert!(sizes(&batch).iter().all(|size| (1..=limit).contains(size)));
            prop_assert_eq!(batch.payload_bytes(), sizes(&batch).iter().sum::<usize>());
            let mut whole = depacketize(&batch);
            if keyframe {
                whole.drain(..2);
            }
            prop_assert_eq!(whole, nals);
        }

        #[test]
        fn random_payloads_never_panic(payload in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..300)) {
            let mut unit = unit(&[], true);
            unit.payload = payload.into();
            let _ = H264Packetizer::new(64).packetize(&unit, &h264_configuration());
        }
    }
}
