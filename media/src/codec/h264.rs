//! H.264: parameter sets, the AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section 5.3.3.1), NAL units.

use bytes::Bytes;

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
