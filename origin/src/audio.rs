//! AAC to Opus: the sound that WebRTC viewers can play, made from the sound that RTMP publishers send.
//!
//! A [`Transcoder`] is one stream's transcode. It takes AAC access units and yields Opus packets on the same
//! timeline through a callback. AAC-LC in mono or stereo is decoded in this process; everything else
//! (HE-AAC, more than two channels, AAC Main) goes through a supervised ffmpeg child.

use std::sync::Arc;

use bytes::Bytes;

use headwater_media::codec::opus;
use headwater_media::time::{MediaTime, WallTime};

mod child;
mod config;
mod decoder;
mod encoder;
mod flv;
mod framer;
mod metrics;
mod pipeline;
mod pool;
mod resampler;
mod sbr;
mod timeline;
mod transcoder;

pub use config::Config;
pub use transcoder::Transcoder;

/// What a [`Transcoder`] tells its owner. Called on a thread of the transcoder's pool: hand it on, don't work there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// How the packets that follow are coded. Comes before the first packet and again when it changes.
    Configured(opus::Configuration),
    /// One Opus packet of 20 ms.
    Unit {
        /// When the first sample that a decoder makes of it is to be heard, on the stream's timeline; the encoder's
        /// look-ahead is already subtracted. Packets without `discontinuity` lie exactly 1800 ticks apart.
        pts: MediaTime,
        /// The packet.
        payload: Bytes,
        /// That of the AAC access unit whose samples completed the packet.
        ingest_time: WallTime,
        /// It doesn't follow its predecessor: sound is missing between them, or the publisher's clock jumped.
        discontinuity: bool,
    },
    /// The transcode has ended and why, in words for an operator. Nothing follows until [`Transcoder::configure`].
    Failed(Arc<str>),
}

#[cfg(test)]
mod tests;
