//! How a call notices that its stream's publisher is with another origin by now.
//!
//! The directory says so at once. The origins of a fixed list know nothing of each other: while one holds a stream for its publisher, the
//! others are asked whether it has come to them.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use super::Call;
use crate::locate;
use crate::subscriber::leg::Leg;

/// The directory may name a newer publisher for so long before an edge that feeds this node with an older one is left: it reads the
/// same directory, and brings the newer one with everybody below it. So is whoever brings an older one than another leg does.
const MOVED_GRACE: Duration = Duration::from_secs(3);

/// How often the others are asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// The gRPC URL of one that has the publisher.
type Asking = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// Where else the stream's publisher might be.
#[derive(Default)]
pub(super) struct Elsewhere {
    /// When the others are asked next, while the stream is held.
    ask_at: Option<Instant>,
    asking: Option<Asking>,
}

impl Elsewhere {
    /// The stream is described: its publisher sends, or it is held for it.
    pub(super) fn handle_info(&mut self, now: Instant, publishing: bool) {
        if publishing {
            *self = Self::default();
        } else {
            self.ask_at.get_or_insert(now);
        }
    }

    /// When to look at the time again.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.ask_at.filter(|_| self.asking.is_none())
    }

    /// An origin that has the publisher; waits for ever while none is asked.
    pub(super) async fn found(&mut self) -> Option<String> {
        let Some(asking) = &mut self.asking else {
            return std::future::pending().await;
        };
        let found = asking.await;
        self.asking = None;
        found
    }
}

impl Leg {
    /// The directory names another owner, with a newer publisher than this call brings, or another leg brings a newer one.
    pub(super) fn left_behind(&self, call: &mut Call<'_>) -> bool {
        let (node, name) = (&self.trunk.node, &self.trunk.name);
        let epoch = self.core.epoch();
        let moved = locate::moved(node, name, &call.root.grpc_url, epoch);
        if !moved && self.trunk.epoch() <= epoch {
            call.moved_since = None;
            return false;
        }
        let now = node.clock.now();
        let since = *call.moved_since.get_or_insert(now);
        (moved && call.direct()) || now.saturating_duration_since(since) >= MOVED_GRACE
    }

    /// Asks the other origins of a fixed list when that is due.
    pub(super) fn look_elsewhere(&self, call: &mut Call<'_>) {
        let node = &self.trunk.node;
        let now = node.clock.now();
        let due = call.elsewhere.poll_timeout().is_some_and(|at| at <= now);
        if !due {
            return;
        }
        let present = call.root.grpc_url.clone();
        let others = node.directory.fixed_origins();
        if others.iter().all(|url| *url == present) {
            call.elsewhere.ask_at = None;
            return;
        }
        call.elsewhere.ask_at = Some(now + ASK_INTERVAL);
        let (node, name) = (node.clone(), self.trunk.name.clone());
        call.elsewhere.asking = Some(Box::pin(async move {
            locate::publisher_elsewhere(&node, &name, &present).await
        }));
    }
}
