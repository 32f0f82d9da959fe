//! How a stream gets from node to node: the window on the sending side, order and resume on the receiving side.
//!
//! The transport below is reliable and ordered (gRPC). What these cores add: a bound on what is on its way, skipping to a keyframe
//! instead of lagging, going on after a cut without a gap, never mixing two publisher incarnations, noticing a dead upstream, and the
//! offset between two nodes' clocks.

use crate::id::{Epoch, TrackId};

pub mod clock;
pub mod receiver;
pub mod sender;

pub use receiver::Receiver;
pub use sender::Sender;

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

#[cfg(test)]
mod tests;
