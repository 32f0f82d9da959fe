//! NAL units of an access unit: walk them, and bring a publisher's into our form.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::ops::Range;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;

use super::Error;
use crate::codec::bits::{BitReader, OutOfBits};

/// nal_unit_type (ITU-T H.264 table 7-1) of those we name.
pub(crate) mod kind {
    pub(crate) const SLICE: u8 = 1;
    pub(crate) const IDR: u8 = 5;
    pub(crate) const SEI: u8 = 6;
    pub(crate) const SPS: u8 = 7;
    pub(crate) const PPS: u8 = 8;
}

/// NAL units of one access unit. Level 6.2 allows 240 slices times two fields, so nothing real comes near.
const NAL_UNITS_MAX: usize = 2048;
/// Parameter sets of one kind in one access unit; H.264 has 32 SPS ids and 256 PPS ids, real streams use one or two.
const PARAMETER_SETS_MAX: usize = 32;
/// SEI messages looked at in one NAL unit.
const SEI_MESSAGES_MAX: usize = 32;
/// payloadType of a recovery point (ITU-T H.264 section D.1.8).
const SEI_RECOVERY_POINT: u32 = 6;

/// nal_unit_type of a NAL unit, by its header byte.
pub(crate) const fn kind_of(header: u8) -> u8 {
    header & 0x1f
}

/// What [`normalize`] makes of a publisher's access unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// See [`crate::unit::AccessUnit::payload`]. Empty when the publisher sent nothing but parameter sets and the like.
    pub payload: Bytes,
    /// It has an IDR slice.
    pub keyframe: bool,
    /// It has slices, and each has nal_ref_idc 0.
    pub discardable: bool,
    /// The recovery_frame_cnt of a recovery point SEI, if there is one: the picture is right that many frames later. Streams
    /// with gradual intra refresh have these instead of IDR pictures. They are no keyframes to us, because browsers start at
    /// IDR pictures only.
    pub recovery_point: Option<u32>,
    /// Sequence parameter sets found in-band, now stripped.
    pub sps: SmallVec<[Bytes; 1]>,
    /// Picture parameter sets found in-band, now stripped.
    pub pps: SmallVec<[Bytes; 1]>,
}

/// Brings an access unit into the form that the cluster uses: see [`crate::unit::AccessUnit::payload`].
///
/// Kept are slices and SEI. Parameter sets are reported instead; delimiters, filler and the kinds a browser doesn't decode
/// (extensions, auxiliary and unspecified ones, of which 24 to 31 mean something else in RTP) are dropped. No copy is made when
/// `length_size` is 4 and what is kept lies in one piece.
///
/// # Errors
/// If the length prefixes don't add up, `length_size` is not 1 to 4, or there are absurdly many NAL units.
pub fn normalize(mut payload: Bytes, length_size: u8) -> Result<Normalized, Error> {
    let mut found = Normalized {
        payload: Bytes::new(),
        keyframe: false,
        discardable: false,
        recovery_point: None,
        sps: SmallVec::new(),
        pps: SmallVec::new(),
    };
    // The kept units with 4-byte prefixes as one range of `payload`, as long as that is possible.
    let mut kept: Option<Range<usize>> = None;
    let mut in_one_piece = true;
    let mut kept_bytes = 0_usize;
    let (mut slices, mut references) = (false, false);
    let mut count = 0_usize;

    let mut walk = Prefixed::new(&payload, length_size)?;
    while let Some((range, nal)) = walk.next_nal()? {
        count = count.saturating_add(1);
        if count > NAL_UNITS_MAX {
            return Err(Error::TooMany("NAL units"));
        }
        let Some((&header, body)) = nal.split_first() else {
            continue;
        };
        match kind_of(header) {
            kind::SPS => collect(&mut found.sps, nal)?,
            kind::PPS => collect(&mut found.pps, nal)?,
            nal_kind @ kind::SLICE..=kind::SEI if header & 0x80 == 0 => {
                if nal_kind == kind::SEI {
                    if found.recovery_point.is_none() {
                        found.recovery_point = recovery_point(body).unwrap_or(None);
                    }
                } else {
                    slices = true;
                    references |= header & 0x60 != 0;
                    found.keyframe |= nal_kind == kind::IDR;
                }
                kept_bytes = kept_bytes.saturating_add(nal.len()).saturating_add(4);
                kept = Some(match kept {
                    None => range,
                    Some(so_far) => {
                        in_one_piece &= so_far.end == range.start;
                        so_far.start..range.end
                    }
                });
            }
            _ => {}
        }
    }
    found.discardable = slices && !references;

    found.payload = match kept {
        None => Bytes::new(),
        Some(range) if in_one_piece && length_size == 4 => {
            payload.truncate(range.end);
            payload.advance(range.start);
            payload
        }
        Some(_) => rebuild(&payload, length_size, kept_bytes)?,
    };
    Ok(found)
}

/// A copy of what is kept, behind 4-byte prefixes.
fn rebuild(payload: &Bytes, length_size: u8, bytes: usize) -> Result<Bytes, Error> {
    // `bytes` was summed over NAL units that are there, not taken from a length field.
    let mut out = BytesMut::with_capacity(bytes);
    let mut walk = Prefixed::new(payload, length_size)?;
    while let Some((_, nal)) = walk.next_nal()? {
        let keep = nal.first().is_some_and(|header| {
            matches!(kind_of(*header), kind::SLICE..=kind::SEI) && header & 0x80 == 0
        });
        if keep {
            out.put_u32(u32::try_from(nal.len()).map_err(|_| Error::Truncated("NAL unit"))?);
            out.put_slice(nal);
        }
    }
    Ok(out.freeze())
}

/// Copies a parameter set, so that it doesn't keep the access unit's memory.
fn collect(sets: &mut SmallVec<[Bytes; 1]>, nal: &[u8]) -> Result<(), Error> {
    if sets.iter().any(|known| known == nal) {
        return Ok(());
    }
    if sets.len() >= PARAMETER_SETS_MAX {
        return Err(Error::TooMany("parameter sets"));
    }
    sets.push(Bytes::copy_from_slice(nal));
    Ok(())
}

/// recovery_frame_cnt of the first recovery point message in an SEI NAL unit's payload (ITU-T H.264 section 7.3.2.3).
fn recovery_point(body: &[u8]) -> Result<Option<u32>, OutOfBits> {
    let mut r = BitReader::rbsp(body);
    for _ in 0..SEI_MESSAGES_MAX {
        // rbsp_trailing_bits are one byte 0x80 here, since messages are whole bytes.
        if r.bits_left() < 24 {
            return Ok(None);
        }
        let message = sei_number(&mut r)?;
        let bytes = sei_number(&mut r)?;
        if message == SEI_RECOVERY_POINT {
            return r.ue().map(Some);
        }
        r.skip(bytes.saturating_mul(8))?;
    }
    Ok(None)
}

/// payloadType or payloadSize: a run of 0xff bytes and one that ends it.
fn sei_number(r: &mut BitReader<'_>) -> Result<u32, OutOfBits> {
    let mut number = 0_u32;
    loop {
        let byte = r.byte()?;
        number = number.saturating_add(u32::from(byte));
        if byte != 0xff {
            return Ok(number);
        }
    }
}

/// A NAL unit, and where it lies in its payload, prefix included.
type Placed<'a> = (Range<usize>, &'a [u8]);

/// Walks NAL units behind length prefixes of any size.
struct Prefixed<'a> {
    payload: &'a [u8],
    at: usize,
    length_size: usize,
}

impl<'a> Prefixed<'a> {
    fn new(payload: &'a [u8], length_size: u8) -> Result<Self, Error> {
        if !(1..=4).contains(&length_size) {
            return Err(Error::LengthSize(length_size));
        }
        Ok(Self {
            payload,
            at: 0,
            length_size: usize::from(length_size),
        })
    }

    fn next_nal(&mut self) -> Result<Option<Placed<'a>>, Error> {
        let rest = self.payload.get(self.at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let Some((prefix, rest)) = rest.split_at_checked(self.length_size) else {
            // Zeros that pad a message are harmless; anything else means that we lost our place.
            return if rest.iter().all(|byte| *byte == 0) {
                Ok(None)
            } else {
                Err(Error::Truncated("NAL unit length"))
            };
        };
        let length = prefix
            .iter()
            .fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let nal = rest.get(..length).ok_or(Error::Truncated("NAL unit"))?;
        let start = self.at;
        self.at = start
            .saturating_add(self.length_size)
            .saturating_add(length);
        Ok(Some((start..self.at, nal)))
    }
}

/// The NAL units of a normalized payload, without their length prefixes. Ends early at a prefix that points past the end.
pub fn nal_units(payload: &[u8]) -> NalUnits<'_> {
    NalUnits { rest: payload }
}

/// Iterator of [`nal_units`].
#[derive(Debug, Clone)]
pub struct NalUnits<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for NalUnits<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (prefix, rest) = self.rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*prefix)).ok()?;
        let (nal, rest) = rest.split_at_checked(length)?;
        self.rest = rest;
        Some(nal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefixed(nals: &[&[u8]], length_size: usize) -> Bytes {
        let mut out = Vec::new();
        for nal in nals {
            let length = u32::try_from(nal.len()).expect("short").to_be_bytes();
            out.extend_from_slice(&length[4 - length_size..]);
            out.extend_from_slice(nal);
        }
        out.into()
    }

    const AUD: &[u8] = &[9, 0xf0];
    const SPS: &[u8] = &[0x67, 1, 2, 3];
    const PPS: &[u8] = &[0x68, 4];
    const SEI: &[u8] = &[6, 5, 1, 0xaa, 0x80];
    const IDR: &[u8] = &[0x65, 0x88, 0x84];
    const P: &[u8] = &[0x41, 0x9a];
    const B: &[u8] = &[0x01, 0x9b];
    const FILLER: &[u8] = &[12, 0xff, 0x80];

    #[test]
    fn what_is_kept_in_one_piece_is_not_copied() {
        for nals in [
            &[SEI, IDR][..],
            &[AUD, SPS, PPS, SEI, IDR],
            &[AUD, P, FILLER],
        ] {
            let payload = prefixed(nals, 4);
            let found = normalize(payload.clone(), 4).expect("valid");
            let memory = payload.as_ptr_range();
            assert!(memory.contains(&found.payload.as_ptr()), "{nals:?}");
        }
    }

    #[test]
    fn every_length_size_becomes_four() {
        for length_size in 1..=4_u8 {
            let payload = prefixed(&[AUD, SEI, FILLER, SPS, PPS, IDR], length_size.into());
            let found = normalize(payload, length_size).expect("valid");
            assert_eq!(found.payload, prefixed(&[SEI, IDR], 4), "{length_size}");
            assert!(found.keyframe && !found.discardable);
            assert_eq!(
                (found.sps[0].as_ref(), found.pps[0].as_ref()),
                (SPS, PPS),
                "{length_size}"
            );
        }
        for bad in [0, 5, 255] {
            assert_eq!(
                normalize(Bytes::from_static(&[0]), bad),
                Err(Error::LengthSize(bad))
            );
        }
    }

    #[test]
    fn flags_follow_the_slices() {
        for (nals, keyframe, discardable, empty) in [
            (&[IDR][..], true, false, false),
            (&[P], false, false, false),
            (&[B, B], false, true, false),
            (&[B, P], false, false, false),
            (&[SEI], false, false, false),
            (&[SPS, PPS, AUD], false, false, true),
            (&[&[]], false, false, true),
            (&[], false, false, true),
            (
                &[&[0x78, 1], &[0x7c, 1], &[0], &[0xc1, 0]],
                false,
                false,
                true,
            ),
        ] {
            let found = normalize(prefixed(nals, 4), 4).expect("valid");
            assert_eq!(
                (found.keyframe, found.discardable, found.payload.is_empty()),
                (keyframe, discardable, empty),
                "{nals:?}"
            );
        }
    }

    #[test]
    fn a_recovery_point_is_reported_and_no_keyframe() {
        // user data of 1 byte, then a recovery point with recovery_frame_cnt 4 (00101).
        let sei: &[u8] = &[6, 5, 1, 0xaa, 6, 1, 0b0010_1100, 0x80];
        let found = normalize(prefixed(&[sei, P], 4), 4).expect("valid");
        assert_eq!((found.recovery_point, found.keyframe), (Some(4), false));
        let found = normalize(prefixed(&[SEI, P], 4), 4).expect("valid");
        assert_eq!(found.recovery_point, None);
    }

    #[test]
    fn prefixes_that_lie_are_errors() {
        for bad in [&[0, 0, 0, 2, 0x41][..], &[0, 0, 1], &[0xff; 4]] {
            let error = normalize(Bytes::copy_from_slice(bad), 4);
            assert!(matches!(error, Err(Error::Truncated(_))), "{bad:?}");
        }
        let mut padded = prefixed(&[P], 4).to_vec();
        padded.extend([0, 0, 0]);
        let found = normalize(padded.into(), 4).expect("padding is harmless");
        assert_eq!(found.payload, prefixed(&[P], 4));
    }

    #[test]
    fn a_flood_of_units_is_refused() {
        let nals = vec![B; NAL_UNITS_MAX + 1];
        assert_eq!(
            normalize(prefixed(&nals, 1), 1),
            Err(Error::TooMany("NAL units"))
        );
        let sets: Vec<[u8; 2]> = (0..=32).map(|i| [0x67, i]).collect();
        let sets: Vec<&[u8]> = sets.iter().map(<[u8; 2]>::as_slice).collect();
        assert_eq!(
            normalize(prefixed(&sets, 2), 2),
            Err(Error::TooMany("parameter sets"))
        );
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..256), length_size in 0..6_u8) {
            if let Ok(found) = normalize(bytes.into(), length_size) {
                // What comes out is in our form, so a second time changes nothing.
                let again = normalize(found.payload.clone(), 4).expect("normalized");
                prop_assert_eq!(&again.payload, &found.payload);
                let walked: usize = nal_units(&found.payload).map(|nal| nal.len() + 4).sum();
                prop_assert_eq!(walked, found.payload.len());
            }
        }
    }
}
