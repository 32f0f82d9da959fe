//! H.264: parameter sets, the AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section 5.3.3.1), NAL units.

use bytes::Bytes;
use smallvec::SmallVec;

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
    /// The VUI's max_num_reorder_frames, if it says; above 0 allows B-frames.
    pub max_reorder_frames: Option<u8>,
}

/// Why bytes are not the H.264 they claim to be. None of these is worth a retry; the publisher is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within an element.
    #[error("truncated in {0}")]
    Truncated(&'static str),
}

impl Configuration {
    /// From an AVCDecoderConfigurationRecord as a publisher sends it, of any NAL unit length size.
    ///
    /// # Errors
    /// If the record or its first SPS can't be read.
    pub fn parse(avcc: Bytes) -> Result<Self, Error> {
        let _ = avcc;
        todo!()
    }

    /// From parameter sets seen in-band, each a NAL unit with its header byte.
    ///
    /// # Errors
    /// If there is no SPS or no PPS, or the first SPS can't be read.
    pub fn from_parameter_sets(sps: Vec<Bytes>, pps: Vec<Bytes>) -> Result<Self, Error> {
        let _ = (sps, pps);
        todo!()
    }
}

/// The NAL unit length size (1, 2 or 4 bytes) that an AVCDecoderConfigurationRecord announces: what [`normalize`] needs.
///
/// # Errors
/// If the record is too short, or says 3.
pub fn length_size(avcc: &[u8]) -> Result<u8, Error> {
    let _ = avcc;
    todo!()
}

/// What [`normalize`] makes of a publisher's access unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normalized {
    /// See [`crate::unit::AccessUnit::payload`]. Empty when the publisher sent nothing but parameter sets and the like.
    pub payload: Bytes,
    /// It has an IDR slice.
    pub keyframe: bool,
    /// Every slice has nal_ref_idc 0.
    pub discardable: bool,
    /// The recovery_frame_cnt of a recovery point SEI, if there is one: the picture is right that many frames later. Streams
    /// with gradual intra refresh have these instead of IDR pictures. They are no keyframes to us, because browsers start at IDR only.
    pub recovery_point: Option<u32>,
    /// Sequence parameter sets found in-band, now stripped.
    pub sps: SmallVec<[Bytes; 1]>,
    /// Picture parameter sets found in-band, now stripped.
    pub pps: SmallVec<[Bytes; 1]>,
}

/// Brings an access unit into the form that the cluster uses: see [`crate::unit::AccessUnit::payload`]. No copy is made when
/// `length_size` is 4 and nothing has to be stripped.
///
/// # Errors
/// If the length prefixes don't add up, or `length_size` is not 1 to 4.
pub fn normalize(payload: Bytes, length_size: u8) -> Result<Normalized, Error> {
    let _ = (payload, length_size);
    todo!()
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
