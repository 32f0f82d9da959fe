//! Access units: the coded pictures and audio frames that everything else moves around.

use std::time::Duration;

use bytes::Bytes;

use crate::id::{Epoch, TrackId};
use crate::time::{MediaTime, WallTime};

/// Whether a track carries pictures or sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MediaKind {
    /// Coded pictures.
    Video,
    /// Coded sound.
    Audio,
}

impl MediaKind {
    /// As logs and metrics call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Video => "video",
            Self::Audio => "audio",
        }
    }
}

/// Which of a publisher's tracks of one kind: the trackId of Enhanced RTMP v2, multitrack. Who sends one track of a kind sends the
/// default. The number names a track and ranks nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceTrack(pub u8);

impl SourceTrack {
    /// The track of those who know of one.
    pub const DEFAULT: Self = Self(0);
}

/// What a publisher's protocol layer hands to its stream: an access unit that has no place on the
/// stream's timeline yet. Times are the publisher's own, already unwrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestUnit {
    /// Picture or sound.
    pub kind: MediaKind,
    /// Which of its publisher's tracks of this kind.
    pub track: SourceTrack,
    /// Decode time on the publisher's clock.
    pub dts: MediaTime,
    /// Presentation time on the publisher's clock.
    pub pts: MediaTime,
    /// A decoder can start here.
    pub keyframe: bool,
    /// No other access unit refers to this one.
    pub discardable: bool,
    /// See [`AccessUnit::payload`].
    pub payload: Bytes,
    /// When the last byte of it was read from the publisher's socket.
    pub ingest_time: WallTime,
}

/// A coded picture of a rendition that the origin itself makes, or that has found its place on the timeline otherwise: its times are the
/// stream's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenditionUnit {
    /// Decode time.
    pub dts: MediaTime,
    /// Presentation time.
    pub pts: MediaTime,
    /// A decoder can start here.
    pub keyframe: bool,
    /// No other access unit refers to this one.
    pub discardable: bool,
    /// See [`AccessUnit::payload`].
    pub payload: Bytes,
    /// Of the picture that it was made from.
    pub ingest_time: WallTime,
}

/// A coded picture or audio frame on its stream's timeline. Shared as `Arc<AccessUnit>`, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessUnit {
    /// The track it belongs to.
    pub track: TrackId,
    /// The publisher incarnation it belongs to.
    pub epoch: Epoch,
    /// Its number within the track, gapless within the epoch, from 0.
    pub sequence: u64,
    /// The [`crate::track::Track::configuration_id`] it is to be decoded with.
    pub configuration_id: u32,
    /// Decode time.
    pub dts: MediaTime,
    /// Presentation time.
    pub pts: MediaTime,
    /// A decoder can start here.
    pub keyframe: bool,
    /// No other access unit refers to this one.
    pub discardable: bool,
    /// Media before this unit may be missing, or the publisher's clock jumped.
    pub discontinuity: bool,
    /// H.264: NAL units, each behind a 4-byte big-endian length (ISO/IEC 14496-15), whatever length
    /// size the publisher used; parameter sets and access unit delimiters are left out, they stand in the track's
    /// configuration. AAC: one raw frame, no ADTS. Opus: one packet.
    pub payload: Bytes,
    /// When the origin read it from the publisher's socket.
    pub ingest_time: WallTime,
    /// How long the origin had it before it sent it on, of a rendition that it makes with the time that took; zero: not known, or it has it
    /// still.
    pub origin_delay: Duration,
}
