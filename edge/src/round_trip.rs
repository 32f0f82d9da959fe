//! The round-trip time to one viewer, as its actors share it.
//!
//! Reports and the handshake tell the [`crate::abr::AbrActor`], NACKs the [`crate::retransmit::RetransmitActor`]; retransmission and the API
//! want to know. All of them live on the shard's thread.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use headwater_media::rtt::{Estimator, Trust};
use headwater_node::clock::Clock;

use crate::shard::Counters;

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct RoundTrip {
    estimator: Rc<RefCell<Estimator>>,
    counters: Arc<Counters>,
    clock: Clock,
}

impl RoundTrip {
    /// Not known yet.
    pub(crate) fn new(counters: Arc<Counters>, clock: Clock) -> Self {
        Self {
            estimator: Rc::default(),
            counters,
            clock,
        }
    }

    /// Takes a sample in, and shows what follows in the viewer's counters.
    pub(crate) fn note(&self, trust: Trust, rtt: Duration) {
        let now = self.clock.now();
        self.estimator.borrow_mut().handle_sample(now, trust, rtt);
        if let Some(rtt) = self.estimate() {
            let micros = u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX);
            self.counters
                .rtt_micros
                .store(micros.max(1), Ordering::Relaxed);
        }
    }

    /// The best guess; `None` before the first sample.
    pub(crate) fn estimate(&self) -> Option<Duration> {
        self.estimator.borrow().estimate(self.clock.now())
    }
}
