//! Tracks: what a stream consists of, and what a decoder must know before the first access unit.

use std::sync::Arc;

use crate::codec::{aac, h264, opus};
use crate::id::{Bitrate, Epoch, StreamName, TrackId};
use crate::tree::Path;
use crate::unit::MediaKind;

/// How a track is coded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configuration {
    /// H.264 with its parameter sets.
    H264(h264::Configuration),
    /// AAC with its AudioSpecificConfig.
    Aac(aac::Configuration),
    /// Opus, always 48 kHz.
    Opus(opus::Configuration),
}

impl Configuration {
    /// Picture or sound.
    pub const fn kind(&self) -> MediaKind {
        match self {
            Self::H264(_) => MediaKind::Video,
            Self::Aac(_) | Self::Opus(_) => MediaKind::Audio,
        }
    }

    /// The codec's short name, for labels and API records.
    pub const fn codec(&self) -> &'static str {
        match self {
            Self::H264(_) => "h264",
            Self::Aac(_) => "aac",
            Self::Opus(_) => "opus",
        }
    }
}

/// One elementary stream of a live stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Track {
    /// Its number in the stream.
    pub id: TrackId,
    /// The encoding's name in the ladder, `source` for what the publisher sent; audio tracks have it too.
    pub rendition: Arc<str>,
    /// How it is coded.
    pub configuration: Arc<Configuration>,
    /// Counts changes of `configuration` since the track began, from 0.
    pub configuration_id: u32,
    /// Measured over the last second or so; zero until known.
    pub bitrate: Bitrate,
    /// Pictures come in another order than they are shown (B-frames), as seen in the stream or
    /// announced by its parameter sets.
    pub reordered: bool,
}

/// What a stream is at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// The stream.
    pub name: StreamName,
    /// The publisher incarnation.
    pub epoch: Epoch,
    /// Its tracks, by id.
    pub tracks: Vec<Track>,
    /// A publisher is sending. False while the stream is held for one to return.
    pub publishing: bool,
    /// Why there is no audio for WebRTC although the publisher sends some, if that is so.
    pub audio_problem: Option<Arc<str>>,
    /// The publisher has announced all its tracks, as far as can be told: picture and sound, or it had time enough to.
    pub settled: bool,
    /// The nodes it came through to this one, the origin first; empty at the origin itself.
    pub path: Path,
}

impl StreamInfo {
    /// The track with this id.
    pub fn track(&self, id: TrackId) -> Option<&Track> {
        self.tracks.iter().find(|track| track.id == id)
    }

    /// Its renditions that WebRTC viewers can show: H.264 without B-frames.
    pub fn renditions(&self) -> impl Iterator<Item = (&Track, &h264::Configuration)> {
        self.tracks
            .iter()
            .filter_map(|track| match &*track.configuration {
                Configuration::H264(h264) if !track.reordered => Some((track, h264)),
                Configuration::H264(_) | Configuration::Aac(_) | Configuration::Opus(_) => None,
            })
    }

    /// It has pictures, and all of them come with B-frames, which WebRTC viewers can't show.
    pub fn has_only_b_frames(&self) -> bool {
        let mut tracks = self.tracks.iter();
        tracks.any(|track| track.configuration.kind() == MediaKind::Video)
            && self.renditions().next().is_none()
    }
}
