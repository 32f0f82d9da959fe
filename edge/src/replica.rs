//! Replicas: one live stream as this edge has it.
//!
//! What a subscriber tells a replica is [`Feed`]; what the replica wants of its upstream is [`Wants`].

use std::sync::Arc;

use actix::Message;
use headwater_media::id::TrackId;
use headwater_media::track::StreamInfo;
use headwater_media::unit::AccessUnit;

/// What a replica gets from its subscriber. Units are perishable (`try_send`), the rest is control (`post`).
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Feed {
    /// What the stream is now: at first, after each change, and each second with measured bitrates.
    Info(Arc<StreamInfo>),
    /// The next access unit of a track. Ingest times are on this node's clock.
    Unit(Arc<AccessUnit>),
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

/// The tracks a replica wants to receive, sorted. Latest value wins (a `watch`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wants {
    /// Sorted by id, no duplicates.
    pub tracks: Vec<TrackId>,
}
