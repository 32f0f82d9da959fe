//! What replicas are told and asked.

use std::sync::Arc;
use std::time::Instant;

use actix::Message;
use headwater_media::id::TrackId;
use headwater_media::track::StreamInfo;
use headwater_media::unit::AccessUnit;
use tokio::sync::mpsc;

use crate::shard::Media;
use crate::shard::demand::Need;

/// What a replica gets from its subscriber. Units are perishable (`try_send`), the rest is control (`post`).
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Feed {
    /// What the stream is now: at first, after each change, and each second with measured bitrates.
    Info(Arc<StreamInfo>),
    /// The next access unit of a track. Ingest times are on this node's clock.
    Unit {
        /// It.
        unit: Arc<AccessUnit>,
        /// When it came; none: it was kept.
        came: Option<Instant>,
    },
    /// Units of a track were lost on the way or skipped; what follows begins at a keyframe.
    Gap {
        /// The track.
        track: TrackId,
        /// How many units (count), as far as is known.
        lost: u64,
    },
    /// How the upstream is.
    Upstream(UpstreamState),
}

/// How a replica's upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// Subscribed; info and units follow.
    Connected,
    /// Away; the subscriber keeps trying and resumes.
    Lost,
    /// Everyone who might have the stream was asked, and nobody has it. The subscriber keeps looking.
    NotFound,
    /// The stream is over: its publisher left and did not return within the hold time.
    Ended,
}

/// What is known of a stream, for whoever opens it.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) info: Option<Arc<StreamInfo>>,
    /// `None`: no upstream has answered yet.
    pub(crate) upstream: Option<UpstreamState>,
}

/// What shards and handles ask of a replica. Control: few, must arrive.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) enum Request {
    /// A shard has viewers now.
    Attach {
        shard: usize,
        media: mpsc::Sender<Media>,
    },
    /// A shard has none any more.
    Detach { shard: usize },
    /// A shard's viewers need other pictures than before.
    Demand { shard: usize, need: Need },
    /// The last handle was dropped.
    Idle,
}
