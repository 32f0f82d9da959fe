//! What a viewer's link carries, by its transport-wide feedback.
//!
//! [`History`] remembers when each numbered packet left and boils a feedback message down to [`Arrivals`], a few numbers; [`Estimator`] makes
//! an [`Estimate`] of them, in the manner of draft-ietf-rmcat-gcc-02:
//!
//! | part | what it tells |
//! |---|---|
//! | `delay` | how long the queue in the network is, and whether it grows: the slope of one-way delays against a threshold that adapts |
//! | `carried` | what arrived lately; while a queue stands, that is all the link carries |
//! | trains | packets that left together arrive as far apart as the narrowest link spreads them, so each picture measures the link |
//! | `loss` | whether packets are lost because too many are sent; loss that stays when less is sent doesn't count |
//! | `probe` | how fast a cluster of packets, sent faster than usual, came through |
//!
//! What is sent is what was encoded, often far less than the link carries. So the estimate does not fall for want of packets, and it does not
//! rise above one and a half of what arrives unless trains or a probe have shown more.

mod carried;
mod delay;
mod estimator;
mod history;
mod loss;
mod probe;

pub use estimator::{Estimate, Estimator};
pub use history::{Arrivals, Cluster, Group, History, ProbeArrivals, Train};
pub use probe::Probed;
