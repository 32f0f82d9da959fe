//! The lab: how well the estimator and the policy do, against others, over links that behave badly in many ways.
//!
//! The real cores ([`crate::bwe`], [`crate::pacer`], [`crate::abr`]) send made-up pictures over a seeded link to a made-up viewer, under virtual
//! time. An oracle that knows the link chooses from the same ladder; `utilisation` is what was shown, in bits, of what it would have shown.
//! `headwater lab` prints it, and `make lab` writes it to `tests/lab.md`.

mod broadcast;
pub mod fleet;
mod link;
mod packet;
mod policy;
mod report;
mod rng;
mod scene;
mod sender;
#[cfg(test)]
mod tests;
mod trace;
mod viewer;

use std::time::Instant;

pub use link::{Conditions, Link, Loss, Policer, Tally};
pub use policy::Policy;
pub use report::{Line, Mean, Report};
pub use rng::Rng;
pub use scene::{Outcome, run};
pub use trace::Trace;

/// Every trace with every policy; `start` is any moment.
pub fn run_all(seed: u64, start: Instant) -> Report {
    let mut outcomes = Vec::new();
    for trace in Trace::all(seed) {
        for policy in Policy::ALL {
            let outcome = run(&trace, policy, seed, start);
            outcomes.push((trace.name, policy, outcome));
        }
    }
    Report::new(&outcomes)
}
