//! AAC: the AudioSpecificConfig (ISO/IEC 14496-3 section 1.6.2.1).

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use bytes::Bytes;

use crate::codec::bits::{BitReader, OutOfBits};

/// How an AAC track is coded. Made from an AudioSpecificConfig by [`Configuration::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The AudioSpecificConfig as the publisher sent it.
    pub asc: Bytes,
    /// The core's audio object type: 2 is LC.
    pub object_type: u8,
    /// The core's sampling rate in Hz.
    pub sample_rate_hz: u32,
    /// 1 to 24, counted where a program_config_element describes them; parametric stereo's second channel is not among them.
    pub channels: u8,
    /// Spectral band replication is signalled (HE-AAC): the output runs at twice the core's rate.
    pub sbr: bool,
    /// Parametric stereo is signalled (HE-AAC v2).
    pub ps: bool,
    /// Samples per frame and channel of the core: 1024 or 960, in the low-delay object types 512 or 480.
    pub frame_samples: u16,
}

/// Why bytes are no AudioSpecificConfig that we take. None is worth a retry: the publisher is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within an element.
    #[error("truncated AudioSpecificConfig")]
    Truncated,
    /// Longer than any real one.
    #[error("AudioSpecificConfig of {0} bytes")]
    TooLong(usize),
    /// Not one of the object types that carry AAC frames in FLV.
    #[error("unsupported audio object type {0}")]
    ObjectType(u8),
    /// A reserved sampling frequency index, or a rate of 0 or over 192 kHz.
    #[error("invalid sampling rate")]
    SampleRate,
    /// A reserved channel configuration, or no channels at all.
    #[error("invalid channel configuration")]
    Channels,
}

impl From<OutOfBits> for Error {
    fn from(_: OutOfBits) -> Self {
        Self::Truncated
    }
}

/// Audio object types (ISO/IEC 14496-3 table 1.17) by their short names.
mod object_type {
    pub(super) const MAIN: u8 = 1;
    pub(super) const LC: u8 = 2;
    pub(super) const SSR: u8 = 3;
    pub(super) const LTP: u8 = 4;
    pub(super) const SBR: u8 = 5;
    pub(super) const ER_LC: u8 = 17;
    pub(super) const ER_LD: u8 = 23;
    pub(super) const PS: u8 = 29;
    pub(super) const ESCAPE: u8 = 31;
    pub(super) const ELD: u8 = 39;
}

/// A program_config_element with all elements and the longest comment has 330.
const ASC_BYTES_MAX: usize = 512;
const SAMPLE_RATE_HZ_MAX: u32 = 192_000;
/// syncExtensionType of SBR and of PS (ISO/IEC 14496-3 table 1.15).
const SYNC_SBR: u32 = 0x2b7;
const SYNC_PS: u32 = 0x548;

impl Configuration {
    /// From an AudioSpecificConfig. SBR and PS are found where they are signalled, hierarchically (object types 5 and 29) or
    /// behind the core's configuration; implicit SBR shows only in the frames.
    ///
    /// # Errors
    /// If it is cut off, uses reserved values, or is of a family that is not AAC.
    pub fn parse(asc: Bytes) -> Result<Self, Error> {
        if asc.len() > ASC_BYTES_MAX {
            return Err(Error::TooLong(asc.len()));
        }
        let mut r = BitReader::new(&asc);
        let mut object_type = read_object_type(&mut r)?;
        let sample_rate_hz = read_sample_rate(&mut r)?;
        let channel_configuration = r.bits(4)?;

        let hierarchical = matches!(object_type, object_type::SBR | object_type::PS);
        let (mut sbr, mut ps) = (hierarchical, object_type == object_type::PS);
        if hierarchical {
            read_sample_rate(&mut r)?; // of the output
            object_type = read_object_type(&mut r)?;
        }

        let (frame_samples, channels) = match object_type {
            object_type::MAIN
            | object_type::LC
            | object_type::SSR
            | object_type::LTP
            | object_type::ER_LC
            | object_type::ER_LD => read_general_audio(&mut r, object_type, channel_configuration)?,
            object_type::ELD => {
                let short = r.flag()?;
                r.skip(3)?; // error resilience flags
                sbr |= r.flag()?; // ldSbrPresentFlag
                let samples = if short { 480 } else { 512 };
                (samples, fixed_channels(channel_configuration)?)
            }
            other => return Err(Error::ObjectType(other)),
        };

        // ER object types put epConfig between, and never have the sync extension in practice.
        let extensible = object_type <= object_type::LTP;
        if !hierarchical && extensible {
            // What follows the core's configuration is optional; a torn one is no extension.
            (sbr, ps) = read_sync_extension(&mut r).unwrap_or((false, false));
        }
        Ok(Self {
            object_type,
            sample_rate_hz,
            channels,
            sbr,
            ps,
            frame_samples,
            asc,
        })
    }
}

/// Table 1.16.
fn read_object_type(r: &mut BitReader<'_>) -> Result<u8, OutOfBits> {
    let short = u8::try_from(r.bits(5)?).unwrap_or(u8::MAX);
    if short != object_type::ESCAPE {
        return Ok(short);
    }
    let escaped = u8::try_from(r.bits(6)?).unwrap_or(u8::MAX);
    Ok(escaped.saturating_add(32))
}

/// samplingFrequencyIndex and, behind the escape, samplingFrequency (table 1.18).
fn read_sample_rate(r: &mut BitReader<'_>) -> Result<u32, Error> {
    let rate = match r.bits(4)? {
        0 => 96_000,
        1 => 88_200,
        2 => 64_000,
        3 => 48_000,
        4 => 44_100,
        5 => 32_000,
        6 => 24_000,
        7 => 22_050,
        8 => 16_000,
        9 => 12_000,
        10 => 11_025,
        11 => 8_000,
        12 => 7_350,
        15 => r.bits(24)?,
        _ => return Err(Error::SampleRate),
    };
    if (1..=SAMPLE_RATE_HZ_MAX).contains(&rate) {
        Ok(rate)
    } else {
        Err(Error::SampleRate)
    }
}

/// Table 1.19, without 0.
const fn fixed_channels(channel_configuration: u32) -> Result<u8, Error> {
    match channel_configuration {
        1 => Ok(1),
        2 => Ok(2),
        3 => Ok(3),
        4 => Ok(4),
        5 => Ok(5),
        6 => Ok(6),
        11 => Ok(7),
        7 | 12 | 14 => Ok(8),
        13 => Ok(24),
        _ => Err(Error::Channels),
    }
}

/// GASpecificConfig (table 4.1): samples per frame, channels.
fn read_general_audio(
    r: &mut BitReader<'_>,
    object_type: u8,
    channel_configuration: u32,
) -> Result<(u16, u8), Error> {
    let short = r.flag()?;
    if r.flag()? {
        r.skip(14)?; // coreCoderDelay
    }
    let extension = r.flag()?;
    let channels = if channel_configuration == 0 {
        read_program_config(r)?
    } else {
        fixed_channels(channel_configuration)?
    };
    if extension && object_type >= object_type::ER_LC {
        r.skip(3)?; // error resilience flags
    }
    if extension {
        r.skip(1)?; // extensionFlag3
    }
    let samples = match (object_type == object_type::ER_LD, short) {
        (false, false) => 1024,
        (false, true) => 960,
        (true, false) => 512,
        (true, true) => 480,
    };
    Ok((samples, channels))
}

/// program_config_element (table 4.2): how many channels it has.
fn read_program_config(r: &mut BitReader<'_>) -> Result<u8, Error> {
    r.skip(10)?; // element_instance_tag, object_type, sampling_frequency_index
    let positioned = [r.bits(4)?, r.bits(4)?, r.bits(4)?]; // front, side, back
    let low_frequency = r.bits(2)?;
    let associated_data = r.bits(3)?;
    let coupling = r.bits(4)?;
    for bits in [4, 4, 3] {
        // mono and stereo mixdown element numbers, matrix mixdown
        if r.flag()? {
            r.skip(bits)?;
        }
    }
    let mut channels = low_frequency;
    for _ in 0..positioned
        .iter()
        .fold(0, |sum: u32, n| sum.saturating_add(*n))
    {
        channels = channels.saturating_add(if r.flag()? { 2 } else { 1 });
        r.skip(4)?; // tag_select
    }
    let tags = low_frequency.saturating_add(associated_data);
    r.skip(tags.saturating_mul(4))?;
    r.skip(coupling.saturating_mul(5))?;
    // byte_alignment counts from the AudioSpecificConfig's start (section 4.5.1.2).
    r.align();
    let comment_bytes = r.bits(8)?;
    r.skip(comment_bytes.saturating_mul(8))?;
    u8::try_from(channels)
        .ok()
        .filter(|channels| *channels > 0)
        .ok_or(Error::Channels)
}

/// The backward compatible extension behind the core's configuration (section 1.6.5): SBR, PS.
fn read_sync_extension(r: &mut BitReader<'_>) -> Result<(bool, bool), Error> {
    if r.bits_left() < 16 || r.bits(11)? != SYNC_SBR {
        return Ok((false, false));
    }
    if read_object_type(r)? != object_type::SBR || !r.flag()? {
        return Ok((false, false));
    }
    read_sample_rate(r)?; // of the output
    let ps = r.bits_left() >= 12 && r.bits(11)? == SYNC_PS && r.flag()?;
    Ok((true, ps))
}

/// The raw frame in an ADTS frame (ISO/IEC 14496-3 section 1.A.2), which some encoders wrongly send; `frame` itself when it
/// is not exactly one ADTS frame.
pub fn strip_adts(frame: Bytes) -> Bytes {
    let [0xff, second, _, third, fourth, fifth, sixth, ..] = *frame else {
        return frame;
    };
    // No raw frame begins with twelve ones: 0b111 is the end element. Layer is 0, ID either.
    let is_adts = second & 0xf6 == 0xf0;
    let length =
        usize::from(third & 0b11) << 11 | usize::from(fourth) << 3 | usize::from(fifth >> 5);
    let blocks = sixth & 0b11;
    let header = if second & 1 == 1 { 7 } else { 9 };
    if is_adts && blocks == 0 && length == frame.len() && length >= header {
        frame.slice(header..)
    } else {
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Seen(u8, u32, u8, bool, bool, u16);

    fn parse(bytes: &[u8]) -> Result<Seen, Error> {
        Configuration::parse(Bytes::copy_from_slice(bytes)).map(|c| {
            assert_eq!(c.asc, bytes);
            Seen(
                c.object_type,
                c.sample_rate_hz,
                c.channels,
                c.sbr,
                c.ps,
                c.frame_samples,
            )
        })
    }

    #[test]
    fn configurations_of_real_encoders() {
        for (name, asc, expected) in [
            (
                "LC stereo",
                &[0x12, 0x10][..],
                Seen(2, 44_100, 2, false, false, 1024),
            ),
            (
                "ffmpeg's LC",
                &[0x11, 0x90, 0x56, 0xe5, 0x00],
                Seen(2, 48_000, 2, false, false, 1024),
            ),
            (
                "HE, backward compatible",
                &[0x13, 0x10, 0x56, 0xe5, 0x98],
                Seen(2, 24_000, 2, true, false, 1024),
            ),
            (
                "HE v2, backward compatible",
                &[0x13, 0x08, 0x56, 0xe5, 0x9d, 0x48, 0x80],
                Seen(2, 24_000, 1, true, true, 1024),
            ),
            (
                "HE, hierarchical",
                &[0x2b, 0x11, 0x88, 0x00],
                Seen(2, 24_000, 2, true, false, 1024),
            ),
            (
                "HE v2, hierarchical",
                &[0xeb, 0x09, 0x88, 0x00],
                Seen(2, 24_000, 1, true, true, 1024),
            ),
            ("5.1", &[0x11, 0xb0], Seen(2, 48_000, 6, false, false, 1024)),
            (
                "960 samples",
                &[0x11, 0x94],
                Seen(2, 48_000, 2, false, false, 960),
            ),
            // Explicit 24-bit rate 44100 behind index 15.
            (
                "explicit rate",
                &[0x17, 0x80, 0x56, 0x22, 0x10],
                Seen(2, 44_100, 2, false, false, 1024),
            ),
            // Object type 31 + (39 - 32): ELD, 48 kHz, stereo, 512 samples.
            (
                "ELD",
                &[0xf8, 0xe6, 0x40, 0x00],
                Seen(39, 48_000, 2, false, false, 512),
            ),
        ] {
            assert_eq!(parse(asc), Ok(expected), "{name}");
        }
    }

    #[test]
    fn channels_are_counted_in_a_program_config_element() {
        // LC, 48 kHz, configuration 0; front: one single, one pair; back: one pair; one LFE: 5.1. Comment of one byte.
        let bits = "00010 0011 0000 000 \
            0000 01 0011 0010 0000 0001 01 000 0000 0 0 0 0 0000 1 0000 1 0001 0000";
        let mut bits: Vec<u8> = bits
            .bytes()
            .filter(u8::is_ascii_digit)
            .map(|b| b - b'0')
            .collect();
        bits.resize(bits.len().next_multiple_of(8), 0);
        let mut asc: Vec<u8> = bits
            .chunks(8)
            .map(|byte| byte.iter().fold(0, |v, bit| v << 1 | bit))
            .collect();
        asc.extend([1, b'x']);
        assert_eq!(parse(&asc), Ok(Seen(2, 48_000, 6, false, false, 1024)));
        asc.pop();
        assert_eq!(parse(&asc), Err(Error::Truncated));
    }

    #[test]
    fn broken_configurations_are_typed_errors() {
        for (asc, error) in [
            (&[][..], Error::Truncated),
            (&[0x12], Error::Truncated),
            (&[0x16, 0x90], Error::SampleRate),
            (&[0x17, 0x80, 0x00, 0x00, 0x10], Error::SampleRate),
            (&[0x11, 0xc8], Error::Channels),
            (&[0x31, 0x90], Error::ObjectType(6)),
            (&[0x01, 0x90], Error::ObjectType(0)),
            // 31 + (42 - 32): USAC.
            (&[0xf9, 0x46, 0x40, 0x00], Error::ObjectType(42)),
        ] {
            assert_eq!(parse(asc), Err(error), "{asc:?}");
        }
        assert_eq!(parse(&[0x12; 513]), Err(Error::TooLong(513)));
    }

    #[test]
    fn adts_headers_are_taken_off() {
        let frame = |header: &[u8]| Bytes::copy_from_slice(&[header, &[1, 2, 3]].concat());
        for (header, stripped) in [
            (&[0xff, 0xf1, 0x4c, 0x80, 0x01, 0x5f, 0xfc][..], true),
            (
                &[0xff, 0xf0, 0x4c, 0x80, 0x01, 0x9f, 0xfc, 0xaa, 0xbb],
                true,
            ),
            // Another length, more than one raw block, another layer, no sync word.
            (&[0xff, 0xf1, 0x4c, 0x80, 0x01, 0x7f, 0xfc], false),
            (&[0xff, 0xf1, 0x4c, 0x80, 0x01, 0x5f, 0xfd], false),
            (&[0xff, 0xf3, 0x4c, 0x80, 0x01, 0x5f, 0xfc], false),
            (&[0x21, 0x10, 0x04], false),
        ] {
            let whole = frame(header);
            let expected = if stripped {
                whole.slice(header.len()..)
            } else {
                whole.clone()
            };
            assert_eq!(strip_adts(whole), expected, "{header:x?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(found) = Configuration::parse(bytes.clone().into()) {
                prop_assert!(found.sample_rate_hz > 0 && found.channels > 0);
            }
            let stripped = strip_adts(bytes.clone().into());
            prop_assert!(bytes.ends_with(&stripped));
        }
    }
}
