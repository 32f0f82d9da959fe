//! How a stream gets from node to node: the window on the sending side, order and resume on the receiving side.
//!
//! The transport below is reliable and ordered (gRPC). What these cores add: a bound on what is on its way, skipping to a keyframe
//! instead of lagging, going on after a cut without a gap, never mixing two publisher incarnations, noticing a dead upstream, and the
//! offset between two nodes' clocks.

use crate::id::{Epoch, TrackId};

pub mod clock;
pub mod merge;
pub mod receiver;
pub mod sender;
pub mod store;

pub use merge::Merge;
pub use receiver::Receiver;
pub use sender::Sender;
pub use store::Store;

/// The last unit that a subscriber has of a track.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The track.
    pub track: TrackId,
    /// The publisher incarnation.
    pub epoch: Epoch,
    /// The unit's sequence number.
    pub sequence: u64,
}

/// What a subscriber asks of its upstream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Want {
    /// The tracks it is to get.
    pub tracks: Vec<TrackId>,
    /// It has viewers who would take lower renditions, or need one without B-frames: making them is worth its cost.
    pub adaptive: bool,
}

impl Want {
    /// What both want. Tracks are sorted, none of them twice.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut tracks = [self.tracks.as_slice(), &other.tracks].concat();
        tracks.sort_unstable();
        tracks.dedup();
        Self {
            tracks,
            adaptive: self.adaptive || other.adaptive,
        }
    }
}

#[cfg(test)]
mod tests;
