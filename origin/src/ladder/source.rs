//! What a ladder knows of its source.

use headwater_media::codec::h264;
use headwater_media::id::{Bitrate, Epoch};

/// The source, as its stream describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub(crate) epoch: Epoch,
    pub(crate) configuration: h264::Configuration,
    pub(crate) configuration_id: u32,
    /// Measured; zero until known.
    pub(crate) bitrate: Bitrate,
    /// Its publisher has just come: darkness or a title, with which many begin, has less than what follows.
    pub(crate) young: bool,
    /// It has B-frames.
    pub(crate) reordered: bool,
    /// The publisher sends smaller renditions itself.
    pub(crate) has_lower: bool,
}

impl Source {
    /// Which units are of it.
    pub(super) const fn coding(&self) -> (Epoch, u32) {
        (self.epoch, self.configuration_id)
    }

    /// Nothing changed that a running child would have to be replaced for.
    pub(super) fn same(&self, other: &Self) -> bool {
        (self.coding(), self.reordered, self.has_lower)
            == (other.coding(), other.reordered, other.has_lower)
            && self.configuration == other.configuration
    }
}
