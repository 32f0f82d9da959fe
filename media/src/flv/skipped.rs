//! Why a tag body could not be used, in words and as labels.

use super::demux::VIDEO_TRACKS_MAX;
use super::enhanced::{FourCc, Malformed};

/// Why a body could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Skipped {
    /// A codec that is neither H.264 nor AAC.
    #[error("{0} is not supported; use H.264 and AAC")]
    Codec(Codec),
    /// Media before the sequence header that says how to decode it.
    #[error("media without a sequence header")]
    NoConfiguration,
    /// A sequence header that can't be read or describes nothing we can use.
    #[error("an unusable sequence header")]
    Configuration,
    /// A body that is not what its header says.
    #[error("malformed media")]
    Malformed,
    /// An audio track beside the default one.
    #[error("only the default audio track is used")]
    FurtherAudio,
    /// More video tracks than a publisher may send.
    #[error("more than {VIDEO_TRACKS_MAX} video tracks")]
    TooManyTracks,
}

/// Codecs that FLV can carry and we do not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// A FourCC of Enhanced RTMP that means nothing here.
    Enhanced,
    /// `hvc1`, or the non-standard codec id 12.
    Hevc,
    /// `vvc1`.
    Vvc,
    /// `av01`.
    Av1,
    /// `vp08` and `vp09`.
    Vpx,
    /// `Opus`.
    Opus,
    /// `fLaC`.
    Flac,
    /// `ac-3` and `ec-3`.
    Ac3,
    /// Screen, Sorenson, VP6 and others of Flash's codecs.
    Flash,
    /// MP3.
    Mp3,
    /// Speex.
    Speex,
    /// G.711 A-law or µ-law.
    G711,
    /// Uncompressed or ADPCM.
    Pcm,
    /// Nellymoser and other numbers.
    Other,
}

impl Skipped {
    /// The value of a `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Codec(codec) => codec.label(),
            Self::NoConfiguration => "no_configuration",
            Self::Configuration => "configuration",
            Self::Malformed => "malformed",
            Self::FurtherAudio => "further_audio",
            Self::TooManyTracks => "too_many_tracks",
        }
    }
}

impl From<Malformed> for Skipped {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Codec {
    pub(super) fn from_four_cc(code: FourCc) -> Self {
        match &code {
            b"hvc1" => Self::Hevc,
            b"vvc1" => Self::Vvc,
            b"av01" => Self::Av1,
            b"vp08" | b"vp09" => Self::Vpx,
            b"Opus" => Self::Opus,
            b"fLaC" => Self::Flac,
            b"ac-3" | b"ec-3" => Self::Ac3,
            b".mp3" => Self::Mp3,
            _ => Self::Enhanced,
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Enhanced => "enhanced_rtmp",
            Self::Hevc => "hevc",
            Self::Vvc => "vvc",
            Self::Av1 => "av1",
            Self::Vpx => "vpx",
            Self::Opus => "opus",
            Self::Flac => "flac",
            Self::Ac3 => "ac3",
            Self::Flash => "flash_video",
            Self::Mp3 => "mp3",
            Self::Speex => "speex",
            Self::G711 => "g711",
            Self::Pcm => "pcm",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Enhanced => "this Enhanced RTMP codec",
            Self::Hevc => "HEVC",
            Self::Vvc => "VVC",
            Self::Av1 => "AV1",
            Self::Vpx => "VP8 or VP9",
            Self::Opus => "Opus",
            Self::Flac => "FLAC",
            Self::Ac3 => "AC-3",
            Self::Flash => "a video codec of Flash's time",
            Self::Mp3 => "MP3",
            Self::Speex => "Speex",
            Self::G711 => "G.711",
            Self::Pcm => "uncompressed audio",
            Self::Other => "this audio codec",
        })
    }
}
