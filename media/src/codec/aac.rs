//! AAC: the AudioSpecificConfig (ISO/IEC 14496-3 section 1.6.2.1).

use bytes::Bytes;

/// How an AAC track is coded. Made from an AudioSpecificConfig by [`Configuration::parse`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The AudioSpecificConfig as the publisher sent it.
    pub asc: Bytes,
    /// The core's audio object type: 2 is LC.
    pub object_type: u8,
    /// The core's sampling rate in Hz.
    pub sample_rate_hz: u32,
    /// 1 to 8; 0 when a program_config_element describes them.
    pub channels: u8,
    /// Spectral band replication is signalled (HE-AAC): the output runs at twice the core's rate.
    pub sbr: bool,
    /// Parametric stereo is signalled (HE-AAC v2).
    pub ps: bool,
    /// Samples per frame and channel of the core: 1024 or 960.
    pub frame_samples: u16,
}

/// Why bytes are no AudioSpecificConfig that we take. None is worth a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within an element.
    #[error("truncated AudioSpecificConfig")]
    Truncated,
}

impl Configuration {
    /// From an AudioSpecificConfig.
    ///
    /// # Errors
    /// If it is cut off, uses reserved values, or is of a family that is not AAC.
    pub fn parse(asc: Bytes) -> Result<Self, Error> {
        let _ = asc;
        todo!()
    }
}

/// The raw frame of an ADTS frame: `frame` itself when it has no ADTS header.
pub fn strip_adts(frame: Bytes) -> Bytes {
    frame
}
