//! Which rendition a viewer gets: as much as its link carries, without a freeze when that changes.
//!
//! [`Abr`] is told what the link carries ([`crate::bwe`]), how long pictures wait to leave, and which renditions there are; it says which one
//! to send, and when to probe.
//!
//! - **Down** as soon as the rendition doesn't fit, at the first keyframe of one that does. If it is far too large, an even lower rendition
//!   whose keyframe comes earlier bridges the time.
//! - **Up** only when a probe came through: a dozen packets, then a quarter of a second at the rate of the higher rendition, at its
//!   next keyframe. A rendition that had to be left again soon is tried again after a wait that doubles each time.
//! - **Sound alone** when not even the lowest rendition fits, until a probe of that comes through.

mod ascent;
mod ladder;
mod policy;
#[cfg(test)]
mod tests;

pub use ascent::ProbeRequest;
pub use ladder::Rendition;
pub use policy::{Abr, Choice, Config, Output, Selection};
