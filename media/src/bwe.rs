//! What a viewer's link carries, by its transport-wide feedback.
//!
//! [`History`] remembers when each numbered packet left and boils a feedback message down to [`Arrivals`], a few numbers; [`Estimator`] makes
//! an [`Estimate`] of them. Two things are looked at. Packets that left together arrive as far apart as the narrowest link
//! spreads them, so each picture measures the link's rate. And packets that take ever longer on their way queue somewhere: then what
//! arrives is all that the link carries.

mod estimator;
mod history;

pub use estimator::{Estimate, Estimator};
pub use history::{Arrivals, History, Train};
