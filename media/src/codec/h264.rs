//! H.264: parameter sets, the AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section 5.3.3.1), NAL units.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::bits::BitReader;

pub(crate) mod nal;
mod sps;
pub mod stamp;

pub use nal::{NalUnits, Normalized, nal_units, normalize};

/// Bytes of all parameter sets of a track together. Real ones have under 200; each `StreamInfo` carries them.
const PARAMETER_SETS_BYTES_MAX: usize = 16 << 10;
/// SPS in a record: a five-bit count (ISO/IEC 14496-15 section 5.3.3.1.2).
const SPS_MAX: usize = 31;
/// PPS in a record: an eight-bit count.
const PPS_MAX: usize = 255;

/// How an H.264 track is coded. Made from an AVCDecoderConfigurationRecord by [`Configuration::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The AVCDecoderConfigurationRecord, with a NAL unit length size of 4.
    pub avcc: Bytes,
    /// Sequence parameter sets, each a NAL unit with its header byte.
    pub sps: Vec<Bytes>,
    /// Picture parameter sets, each a NAL unit with its header byte.
    pub pps: Vec<Bytes>,
    /// profile_idc, constraint flags, level_idc as in the first SPS: RFC 6184's profile-level-id.
    pub profile_level_id: [u8; 3],
    /// Cropped picture width in pixels.
    pub width: u16,
    /// Cropped picture height in pixels.
    pub height: u16,
    /// The VUI's max_num_reorder_frames, if it says, or 0 where the profile or the picture order count type rules reordering
    /// out; above 0 allows B-frames.
    pub max_reorder_frames: Option<u8>,
}

/// Why bytes are not the H.264 they claim to be. None of these is worth a retry: the publisher is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within an element.
    #[error("truncated {0}")]
    Truncated(&'static str),
    /// The record's configurationVersion is not 1.
    #[error("AVCDecoderConfigurationRecord of version {0}")]
    Version(u8),
    /// A NAL unit length size that doesn't exist.
    #[error("NAL unit length size {0}")]
    LengthSize(u8),
    /// There is no SPS, or no PPS.
    #[error("no {0}")]
    Missing(&'static str),
    /// Another NAL unit, or none, where a parameter set should be.
    #[error("{0} has the wrong NAL unit type")]
    WrongKind(&'static str),
    /// An SPS element has a value that the standard forbids.
    #[error("invalid SPS: {0}")]
    InvalidSps(&'static str),
    /// More than any real stream has.
    #[error("too many {0}")]
    TooMany(&'static str),
}

impl Configuration {
    /// From an AVCDecoderConfigurationRecord as a publisher sends it, of any NAL unit length size.
    ///
    /// # Errors
    /// If the record or its first SPS can't be read, or it lacks parameter sets.
    pub fn parse(avcc: Bytes) -> Result<Self, Error> {
        if avcc.len() > PARAMETER_SETS_BYTES_MAX {
            return Err(Error::TooMany("bytes of parameter sets"));
        }
        let size = length_size(&avcc)?;
        let mut cursor = Cursor {
            record: &avcc,
            at: 5,
        };
        let count = cursor.byte()? & 0x1f;
        let sps = cursor.parameter_sets(count, nal::kind::SPS, "SPS")?;
        let count = cursor.byte()?;
        let pps = cursor.parameter_sets(count, nal::kind::PPS, "PPS")?;

        let avcc = if size == 4 {
            avcc
        } else {
            let mut record = BytesMut::from(avcc);
            if let Some(byte) = record.get_mut(4) {
                *byte |= 0b11;
            }
            record.freeze()
        };
        Self::new(avcc, sps, pps)
    }

    /// From parameter sets seen in-band, each a NAL unit with its header byte.
    ///
    /// # Errors
    /// If there is no SPS or no PPS, there are too many, or the first SPS can't be read.
    pub fn from_parameter_sets(sps: Vec<Bytes>, pps: Vec<Bytes>) -> Result<Self, Error> {
        for (sets, kind, name) in [(&sps, nal::kind::SPS, "SPS"), (&pps, nal::kind::PPS, "PPS")] {
            for set in sets {
                check_kind(set, kind, name)?;
            }
        }
        let avcc = write_record(&sps, &pps)?;
        Self::new(avcc, sps, pps)
    }

    /// What the configuration becomes by parameter sets seen in-band: they replace those with their id. `None` when they
    /// change nothing.
    ///
    /// # Errors
    /// As [`Configuration::from_parameter_sets`].
    pub fn updated(&self, sps: &[Bytes], pps: &[Bytes]) -> Result<Option<Self>, Error> {
        let merged = (merge(&self.sps, sps, sps_id), merge(&self.pps, pps, pps_id));
        if (&merged.0, &merged.1) == (&self.sps, &self.pps) {
            return Ok(None);
        }
        Self::from_parameter_sets(merged.0, merged.1).map(Some)
    }

    fn new(avcc: Bytes, sps: Vec<Bytes>, pps: Vec<Bytes>) -> Result<Self, Error> {
        let first = sps.first().ok_or(Error::Missing("SPS"))?;
        if pps.is_empty() {
            return Err(Error::Missing("PPS"));
        }
        let parsed = sps::Sps::parse(first)?;
        Ok(Self {
            avcc,
            profile_level_id: parsed.profile_level_id,
            width: parsed.width,
            height: parsed.height,
            max_reorder_frames: parsed.max_reorder_frames,
            sps,
            pps,
        })
    }
}

/// The NAL unit length size (1, 2 or 4 bytes) that an AVCDecoderConfigurationRecord announces: what [`normalize`] needs.
///
/// # Errors
/// If the record is too short, of another version, or says 3.
pub fn length_size(avcc: &[u8]) -> Result<u8, Error> {
    match *avcc {
        [1, _, _, _, byte, ..] => match byte & 0b11 {
            2 => Err(Error::LengthSize(3)),
            minus_one => Ok(minus_one.saturating_add(1)),
        },
        [version, _, _, _, _, ..] => Err(Error::Version(version)),
        _ => Err(Error::Truncated("AVCDecoderConfigurationRecord")),
    }
}

/// A position in a record.
struct Cursor<'a> {
    record: &'a Bytes,
    at: usize,
}

impl Cursor<'_> {
    const TRUNCATED: Error = Error::Truncated("AVCDecoderConfigurationRecord");

    fn byte(&mut self) -> Result<u8, Error> {
        let byte = *self.record.get(self.at).ok_or(Self::TRUNCATED)?;
        self.at = self.at.saturating_add(1);
        Ok(byte)
    }

    fn parameter_sets(
        &mut self,
        count: u8,
        kind: u8,
        name: &'static str,
    ) -> Result<Vec<Bytes>, Error> {
        let mut sets = Vec::new();
        for _ in 0..count {
            let length = usize::from(u16::from_be_bytes([self.byte()?, self.byte()?]));
            let end = self.at.saturating_add(length);
            if end > self.record.len() {
                return Err(Self::TRUNCATED);
            }
            let set = self.record.slice(self.at..end);
            self.at = end;
            check_kind(&set, kind, name)?;
            // Some encoders repeat a set; once is enough for everyone downstream.
            if !sets.contains(&set) {
                sets.push(set);
            }
        }
        Ok(sets)
    }
}

fn check_kind(set: &[u8], kind: u8, name: &'static str) -> Result<(), Error> {
    match set.first() {
        Some(header) if nal::kind_of(*header) == kind => Ok(()),
        _ => Err(Error::WrongKind(name)),
    }
}

/// The AVCDecoderConfigurationRecord of these parameter sets, with a NAL unit length size of 4.
fn write_record(sps: &[Bytes], pps: &[Bytes]) -> Result<Bytes, Error> {
    let bytes = sps
        .iter()
        .chain(pps)
        .fold(0_usize, |sum, set| sum.saturating_add(set.len()));
    if bytes > PARAMETER_SETS_BYTES_MAX {
        return Err(Error::TooMany("bytes of parameter sets"));
    }
    let first = sps.first().ok_or(Error::Missing("SPS"))?;
    let parsed = sps::Sps::parse(first)?;
    let mut out = BytesMut::new();
    out.put_u8(1);
    out.put_slice(&parsed.profile_level_id);
    out.put_u8(0b1111_1100 | 0b11);
    let sps_count = count(sps, SPS_MAX, "SPS")?;
    out.put_u8(0b1110_0000 | sps_count);
    put_sets(&mut out, sps)?;
    out.put_u8(count(pps, PPS_MAX, "PPS")?);
    put_sets(&mut out, pps)?;
    if sps::is_high(parsed.profile_level_id[0]) {
        out.put_u8(0b1111_1100 | parsed.chroma_format_idc);
        out.put_u8(0b1111_1000 | parsed.bit_depth_luma_minus8);
        out.put_u8(0b1111_1000 | parsed.bit_depth_chroma_minus8);
        out.put_u8(0); // no SPS extensions
    }
    Ok(out.freeze())
}

fn count(sets: &[Bytes], most: usize, name: &'static str) -> Result<u8, Error> {
    u8::try_from(sets.len())
        .ok()
        .filter(|_| sets.len() <= most)
        .ok_or(Error::TooMany(name))
}

fn put_sets(out: &mut BytesMut, sets: &[Bytes]) -> Result<(), Error> {
    for set in sets {
        let length =
            u16::try_from(set.len()).map_err(|_| Error::TooMany("bytes of parameter sets"))?;
        out.put_u16(length);
        out.put_slice(set);
    }
    Ok(())
}

/// `old` with each of `new` in the place of the one with its id, or at the end. Unreadable ones are left out.
fn merge(old: &[Bytes], new: &[Bytes], id: fn(&[u8]) -> Option<u32>) -> Vec<Bytes> {
    let mut merged = old.to_vec();
    for set in new {
        let Some(new_id) = id(set) else { continue };
        match merged.iter_mut().find(|known| id(known) == Some(new_id)) {
            Some(known) => *known = set.clone(),
            None => merged.push(set.clone()),
        }
    }
    merged
}

fn sps_id(nal: &[u8]) -> Option<u32> {
    sps::Sps::parse(nal).ok().map(|sps| sps.id)
}

fn pps_id(nal: &[u8]) -> Option<u32> {
    let (_, rbsp) = nal.split_first()?;
    BitReader::rbsp(rbsp).ue().ok().filter(|id| *id <= 255)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Bytes {
        let digits: Vec<u8> = text
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|digit| u8::try_from(digit).expect("a digit"))
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    /// x264, Main, 1280x720, no B-frames, as ffmpeg sends it in FLV.
    const AVCC: &str =
        "014d401fffe10017674d401fda014016ec0440000003004000000f03c60ca801000468ef3c80";

    #[test]
    fn parameter_sets_of_encoders_are_read() {
        let pps = hex("68ebe3cb22c0");
        for (name, sps, width, height, reorder) in [
            (
                "high, B-frames",
                "6764001facd9405005bb0110000003001000000303c0f1831960",
                1280,
                720,
                Some(2),
            ),
            (
                "baseline, HRD, cropped",
                "6742c028d900780227e5c044000003000400000300f3898003d090007a13930c01e30649",
                1920,
                1080,
                Some(0),
            ),
            (
                "4:4:4, odd size, interlaced",
                "67f40028919b280f0089ee6c0440000003004000000c87c58b6580",
                1918,
                1078,
                Some(2),
            ),
            (
                "main, interlaced",
                "674d401eeca05031f9f011000003000100000300321f142996",
                640,
                360,
                Some(2),
            ),
        ] {
            let found = Configuration::from_parameter_sets(vec![hex(sps)], vec![pps.clone()])
                .expect("valid");
            assert_eq!(
                (found.width, found.height, found.max_reorder_frames),
                (width, height, reorder),
                "{name}"
            );
            assert_eq!(found.profile_level_id, hex(sps)[1..4], "{name}");
            // The record we wrote says the same.
            assert_eq!(
                Configuration::parse(found.avcc.clone()),
                Ok(found),
                "{name}"
            );
        }
    }

    #[test]
    fn a_record_is_kept_as_it_is() {
        let found = Configuration::parse(hex(AVCC)).expect("valid");
        assert_eq!(found.avcc, hex(AVCC));
        assert_eq!((found.width, found.height), (1280, 720));
        assert_eq!(found.max_reorder_frames, Some(0));
        assert_eq!(found.profile_level_id, [0x4d, 0x40, 0x1f]);
        assert_eq!(
            Configuration::from_parameter_sets(found.sps.clone(), found.pps.clone()),
            Ok(found)
        );
    }

    #[test]
    fn a_length_size_other_than_four_is_rewritten() {
        for (byte, size) in [
            (0xfc, Ok(1)),
            (0xfd, Ok(2)),
            (0xff, Ok(4)),
            (0xfe, Err(Error::LengthSize(3))),
        ] {
            let mut record = hex(AVCC).to_vec();
            record[4] = byte;
            assert_eq!(length_size(&record), size);
            let parsed = Configuration::parse(record.into());
            assert_eq!(parsed.map(|found| found.avcc), size.map(|_| hex(AVCC)));
        }
    }

    #[test]
    fn broken_records_are_typed_errors() {
        let whole = hex(AVCC);
        for end in 0..whole.len() {
            assert!(
                Configuration::parse(whole.slice(..end)).is_err(),
                "cut at {end}"
            );
        }
        let changed = |at: usize, byte: u8| {
            let mut record = whole.to_vec();
            record[at] = byte;
            Configuration::parse(record.into())
        };
        assert_eq!(changed(0, 0), Err(Error::Version(0)));
        assert_eq!(changed(8, 0x68), Err(Error::WrongKind("SPS")));
        assert_eq!(changed(31, 0), Err(Error::Missing("PPS")));
        assert_eq!(
            Configuration::parse(vec![1; PARAMETER_SETS_BYTES_MAX + 1].into()),
            Err(Error::TooMany("bytes of parameter sets"))
        );
        let many = vec![whole.slice(8..31); 32];
        assert_eq!(
            Configuration::from_parameter_sets(many, vec![hex("68ef3c80")]),
            Err(Error::TooMany("SPS"))
        );
    }

    #[test]
    fn in_band_sets_replace_those_with_their_id() {
        let old = Configuration::parse(hex(AVCC)).expect("valid");
        let same = old.updated(&old.sps, &old.pps);
        assert_eq!(same, Ok(None));
        let new_sps =
            hex("6742c028d900780227e5c044000003000400000300f3898003d090007a13930c01e30649");
        let new = old
            .updated(std::slice::from_ref(&new_sps), &[])
            .expect("valid")
            .expect("changed");
        assert_eq!((new.width, new.sps.len(), new.pps.len()), (1920, 1, 1));
        // pic_parameter_set_id 1 (010) joins 0 (1).
        let new = old.updated(&[], &[hex("685f3c80")]).expect("valid");
        assert_eq!(new.expect("changed").pps.len(), 2);
        assert_eq!(old.updated(&[hex("67")], &[]), Ok(None));
    }

    /// Writes what the reader reads, for parameter sets that no encoder at hand makes.
    #[derive(Default)]
    struct BitWriter(Vec<bool>);

    impl BitWriter {
        fn u(&mut self, count: u32, value: u32) -> &mut Self {
            self.0
                .extend((0..count).rev().map(|bit| value >> bit & 1 == 1));
            self
        }
        fn ue(&mut self, value: u32) -> &mut Self {
            let bits = (value + 1).ilog2();
            self.u(bits, 0).u(bits + 1, value + 1)
        }
        fn nal(&self, header: u8) -> Bytes {
            let mut bits = self.0.clone();
            bits.push(true);
            let rbsp = bits.chunks(8).map(|byte| {
                (0..8).fold(0, |value, bit| {
                    value << 1 | u8::from(byte.get(bit).copied().unwrap_or(false))
                })
            });
            let (mut out, mut zeros) = (vec![header], 0);
            for byte in rbsp {
                if zeros >= 2 && byte <= 3 {
                    out.push(3);
                    zeros = 0;
                }
                zeros = if byte == 0 { zeros + 1 } else { 0 };
                out.push(byte);
            }
            out.into()
        }
    }

    #[test]
    fn scaling_lists_order_cycles_and_the_whole_vui_are_passed_over() {
        let mut w = BitWriter::default();
        w.u(24, 0x64_00_28).ue(0).ue(3).u(1, 1).ue(0).ue(0).u(1, 0);
        w.u(1, 1);
        for list in 0..12 {
            match list % 3 {
                // Not present, ended at once by next scale 0 (delta -8 is se code 16), all deltas 0.
                0 => w.u(1, 0),
                1 => w.u(1, 1).ue(16),
                _ => {
                    w.u(1, 1);
                    (0..if list < 6 { 16 } else { 64 }).fold(&mut w, |w, _| w.ue(0))
                }
            };
        }
        w.ue(0).ue(1).u(1, 0).ue(0).ue(0).ue(3).ue(1).ue(2).ue(3);
        w.ue(4).u(1, 0).ue(79).ue(22).u(1, 0).u(1, 0).u(1, 1);
        // Separate planes are cropped by the sample, and by two rows, as this is interlaced: 736 - 16.
        w.u(1, 1).ue(1).ue(2).ue(3).ue(5);
        w.u(1, 1)
            .u(1, 1)
            .u(8, 255)
            .u(32, 0x0004_0003)
            .u(1, 1)
            .u(1, 0);
        w.u(1, 1).u(4, 0).u(1, 1).u(24, 0).u(1, 1).ue(0).ue(0);
        w.u(1, 1).u(32, 1).u(32, 50).u(1, 1);
        for _ in 0..2 {
            w.u(1, 1).ue(1).u(8, 0);
            (0..2)
                .fold(&mut w, |w, _| w.ue(100).ue(100).u(1, 0))
                .u(20, 0);
        }
        w.u(1, 0)
            .u(1, 0)
            .u(1, 1)
            .u(1, 1)
            .ue(0)
            .ue(0)
            .ue(9)
            .ue(9)
            .ue(3)
            .ue(4);
        let found = sps::Sps::parse(&w.nal(0x67)).expect("valid");
        assert_eq!((found.width, found.height), (1277, 2 * 23 * 16 - 16));
        assert_eq!(found.max_reorder_frames, Some(3));
        assert_eq!(found.chroma_format_idc, 3);
    }

    #[test]
    fn impossible_sizes_and_values_are_refused() {
        let sps = |width: u32, crop: u32| {
            let mut w = BitWriter::default();
            w.u(24, 0x42_00_28).ue(0).ue(0).ue(2).ue(1).u(1, 0);
            w.ue(width)
                .ue(9)
                .u(2, 0b11)
                .u(1, 1)
                .ue(crop)
                .ue(0)
                .ue(0)
                .ue(0)
                .u(1, 0);
            sps::Sps::parse(&w.nal(0x67))
        };
        assert_eq!(sps(39, 0).map(|found| found.width), Ok(640));
        for (width, crop) in [(39, 320), (39, u32::MAX - 1), (u32::MAX - 1, 0), (4096, 0)] {
            assert_eq!(
                sps(width, crop),
                Err(Error::InvalidSps("picture size")),
                "{width} {crop}"
            );
        }
        let mut w = BitWriter::default();
        w.u(24, 0x42_00_28).ue(32);
        let bad_id = sps::Sps::parse(&w.nal(0x67));
        assert_eq!(bad_id, Err(Error::InvalidSps("seq_parameter_set_id")));
    }

    proptest! {
        #[test]
        fn random_records_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Configuration::parse(bytes.clone().into());
            let _ = sps::Sps::parse(&bytes);
        }

        #[test]
        fn a_damaged_record_never_panics(at in 0..38_usize, byte in any::<u8>(), end in 0..39_usize) {
            let mut record = hex(AVCC).to_vec();
            record[at] = byte;
            record.truncate(end);
            if let Ok(found) = Configuration::parse(record.into()) {
                let again = Configuration::from_parameter_sets(found.sps.clone(), found.pps.clone());
                prop_assert_eq!(again.map(|again| again.sps), Ok(found.sps));
            }
        }
    }
}
