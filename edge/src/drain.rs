//! Drain: before an edge stops, its viewers are asked to go to another one, and get the time to.
//!
//! Players that listen for events (`http/events.rs`) join elsewhere first and leave then, so that nobody sees it. Those that don't stay until
//! the time is up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_node::clock::Clock;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::placement::Placement;
use crate::sessions::Sessions;
use crate::shard::ViewerId;

/// Viewers that are asked per second: other edges let in a few hundred a second without their own viewers noticing.
const ASKED_PER_SECOND: usize = 100;
/// Even a few viewers are not asked in one instant.
const SPREAD_MIN: Duration = Duration::from_millis(500);

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// That viewers are asked to leave. `None`: they aren't.
pub(crate) type Leaving = Option<Asking>;

/// When viewers are asked: each at a moment of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asking {
    since: Instant,
    over: Duration,
}

impl Asking {
    /// The moment of this viewer. Always the same, or players that listen now and then would miss theirs.
    pub(crate) fn at(&self, viewer: ViewerId) -> Instant {
        // Numbers in a row are spread evenly by the golden ratio (Knuth, The Art of Computer Programming, section 6.4).
        let spread = viewer.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let part = u32::try_from(spread).unwrap_or(u32::MAX);
        self.since + self.over.mul_f64(f64::from(part) / f64::from(u32::MAX))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Drain {
    leaving: watch::Sender<Leaving>,
    placement: Placement,
    sessions: Arc<Sessions>,
    clock: Clock,
}

impl Drain {
    pub(crate) fn new(placement: Placement, sessions: Arc<Sessions>, clock: Clock) -> Self {
        Self {
            leaving: watch::Sender::new(None),
            placement,
            sessions,
            clock,
        }
    }

    /// Wakes whoever has viewers to ask.
    pub(crate) fn watch(&self) -> watch::Receiver<Leaving> {
        self.leaving.subscribe()
    }

    /// Asks the viewers to leave, and returns when they have, or when `within` is over. Without another edge to go to, at once.
    pub(crate) async fn run(&self, within: Duration) {
        let viewers = self.sessions.len();
        if viewers == 0 || within.is_zero() {
            return;
        }
        if !self.placement.has_others() {
            info!(
                viewers,
                "no other edge is known, so viewers are not asked to go to one"
            );
            return;
        }
        let spread = spread(viewers, within);
        info!(
            viewers,
            over_seconds = spread.as_secs_f64(),
            within_seconds = within.as_secs_f64(),
            "draining: viewers are asked to go to another edge"
        );
        let start = self.clock.now();
        self.leaving.send_replace(Some(Asking {
            since: start,
            over: spread,
        }));
        let mut progress_at = start + PROGRESS_INTERVAL;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let (now, left) = (self.clock.now(), self.sessions.len());
            if left == 0 {
                info!("drained: all viewers have left");
                return;
            }
            if now >= start + within {
                warn!(
                    viewers = left,
                    "the time to drain is over, and viewers are left"
                );
                return;
            }
            if now >= progress_at {
                progress_at = now + PROGRESS_INTERVAL;
                info!(viewers = left, "draining");
            }
        }
    }
}

/// How long so many viewers are asked over, so that their joins elsewhere are no storm.
fn spread(viewers: usize, within: Duration) -> Duration {
    let seconds = u32::try_from(viewers / ASKED_PER_SECOND).unwrap_or(u32::MAX);
    Duration::from_secs(seconds.into())
        .max(SPREAD_MIN)
        .min(within / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_viewers_are_asked_over_a_longer_time_but_not_over_all_of_it() {
        for (viewers, within, expected) in [
            (3, 30, 500),
            (1000, 30, 10_000),
            (100_000, 30, 15_000),
            (3, 0, 0),
        ] {
            let spread = spread(viewers, Duration::from_secs(within));
            assert_eq!(spread, Duration::from_millis(expected), "{viewers}");
        }
    }
}
