//! One leg of a subscription: looks for an upstream, reads its call ([`super::call`]), and looks for the next when it is lost.
//!
//! Who is asked in which order is [`Search`]'s decision. Nodes that were lost or didn't answer a moment ago are avoided, since those above
//! them may not have noticed yet; who only said no isn't, for a node is full or without an upstream for milliseconds. Where there is more
//! than one leg, each avoids the nodes that the others are fed by, and all but the first wait until there is something to be second to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::id::NodeId;
use headwater_media::replication::{Receiver, Want};
use headwater_media::tree::{self, Alternative, Candidate, Search};
use headwater_node::backoff::Backoff;
use headwater_node::directory::Upstream;
use headwater_node::trace::Context;
use metrics::{counter, histogram};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::trunk::Trunk;
use super::{ATTEMPTS, Outcome, REPARENT_GAP, REPARENTED};
use crate::locate;
use crate::replica::UpstreamState;

/// First and longest wait between attempts. The longest bounds how late a stream is found that nothing announces (fixed lists).
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The longest wait of a leg that others live without.
const SPARE_RETRY_MAX: Duration = Duration::from_secs(10);

/// A node that was lost is avoided for so long: those above it notice within two seconds.
const SHUNNED_FOR: Duration = Duration::from_secs(10);

/// Nodes that are avoided so (count).
const SHUNNED_MAX: usize = 8;

/// See the module.
pub(super) struct Leg {
    pub(super) index: usize,
    pub(super) trunk: Arc<Trunk>,
    /// What the replica wants.
    pub(super) own: watch::Receiver<Want>,
    /// What those want whom this node feeds.
    pub(super) children: watch::Receiver<Want>,
    pub(super) stop: CancellationToken,
    pub(super) core: Receiver,
    /// Units came in the last call: whatever ended it, the way there is good.
    pub(super) served: bool,
    /// Who feeds this leg, or fed it last.
    pub(super) parent: Option<NodeId>,
    /// When the last upstream was lost, and who that was, until a unit of the next comes.
    pub(super) lost: Option<(Instant, Option<NodeId>)>,
    /// The upstream of a fixed list that is asked first: it had the publisher a moment ago.
    pub(super) preferred: Option<String>,
    /// The trace that the first search is part of, until it has found somebody.
    pub(super) trace: Option<Context>,
    known: Vec<Alternative>,
    shunned: Vec<(Instant, NodeId)>,
}

impl Leg {
    pub(super) fn new(
        index: usize,
        trunk: Arc<Trunk>,
        own: watch::Receiver<Want>,
        stop: CancellationToken,
    ) -> Self {
        let children = match &trunk.relay {
            Some(relay) => relay.wants(),
            None => watch::Sender::default().subscribe(),
        };
        Self {
            index,
            trace: trunk.options.trace,
            trunk,
            own,
            children,
            stop,
            core: Receiver::default(),
            served: false,
            parent: None,
            lost: None,
            preferred: None,
            known: Vec::new(),
            shunned: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let stop = self.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.work() => {}
        }
        self.trunk.handle_down(self.index, None);
    }

    /// Ends with its replica or its node.
    async fn work(&mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut spare = Backoff::new(RETRY_MAX, SPARE_RETRY_MAX);
        let mut connected = self.trunk.connected.subscribe();
        loop {
            // Without anybody to be second to there is nothing to do for a second leg, unless it knows of nodes that the others don't.
            let idle = self.index > 0 && self.known.is_empty();
            if idle && connected.wait_for(|count| *count > 0).await.is_err() {
                return;
            }
            let mut changes = self.trunk.node.directory.changes();
            changes.mark_unchanged();
            let named = self.named();
            let outcome = self.try_all().await;
            // Who asked for the stream doesn't wait for what comes later, which goes on for as long as somebody watches.
            self.trace = None;
            self.core.handle_disconnected();
            let state = match outcome {
                Outcome::Stopped => return,
                Outcome::Ended => UpstreamState::Ended,
                Outcome::Lost
                | Outcome::Failed
                | Outcome::Refused
                | Outcome::Shed
                | Outcome::Redirected(_) => UpstreamState::Lost,
                // What has ended is not found either, which is no news.
                Outcome::NotFound if self.trunk.told() == Some(UpstreamState::Ended) => {
                    UpstreamState::Ended
                }
                Outcome::NotFound => UpstreamState::NotFound,
            };
            self.trunk.handle_down(self.index, Some(state));
            let served = std::mem::take(&mut self.served);
            if served {
                backoff.reset();
                spare.reset();
            }
            if served && outcome == Outcome::Shed {
                // It knows where there is room, and asking is all that is left to do.
                continue;
            }
            let lost = outcome == Outcome::Lost;
            let needed = lost || self.trunk.alone(self.index);
            let wait = if needed { backoff.wait() } else { spare.wait() };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                // The others are lost too.
                _ = connected.wait_for(|count| *count == 0), if !needed => {}
                changed = self.renamed(&mut changes, &named), if !lost && needed => {
                    if changed.is_err() {
                        // The directory is gone, and so is this node.
                        return;
                    }
                    // An origin may be named a moment before it has the stream.
                    backoff.reset();
                }
            }
        }
    }

    /// Who has the stream as far as the directory knows.
    pub(super) fn named(&self) -> Vec<Upstream> {
        let mut upstreams = locate::upstreams(&self.trunk.node, &self.trunk.name);
        if let Some(first) = &self.preferred {
            upstreams.sort_by_key(|upstream| upstream.grpc_url != *first);
        }
        upstreams
    }

    /// Waits until the directory names others than `before`. It changes all the time, with each node's load.
    async fn renamed(
        &self,
        changes: &mut watch::Receiver<u64>,
        before: &[Upstream],
    ) -> Result<(), watch::error::RecvError> {
        while self.named() == before {
            changes.changed().await?;
        }
        Ok(())
    }

    /// Asks who may have the stream, one by one, until one serves it.
    async fn try_all(&mut self) -> Outcome {
        let upstreams = self.named();
        if upstreams.is_empty() && !self.trunk.node.directory.synced() {
            return Outcome::Failed;
        }
        let roots = upstreams.iter().map(|root| root.grpc_url.clone()).collect();
        let mut known = std::mem::take(&mut self.known);
        let directory = &self.trunk.node.directory;
        if directory.fixed_origins().is_empty() {
            // Of a node that has left, nobody may answer for a while, and the roots wait for their turn.
            known.retain(|known| directory.node(&known.node).is_some());
        }
        let mut search = Search::new(roots, known, self.avoid());
        let mut worst = Outcome::NotFound;
        while let Some(candidate) = search.poll_candidate() {
            let Some(root) = upstreams.get(candidate.root) else {
                break;
            };
            let outcome = self.attempt(root, &candidate).await;
            // Nobody lacks anything where a second way isn't to be had.
            let label = match outcome {
                Outcome::Refused if !self.trunk.alone(self.index) => "spare_refused",
                _ => outcome.label(),
            };
            counter!(ATTEMPTS, "outcome" => label).increment(1);
            match outcome {
                Outcome::NotFound => {}
                Outcome::Redirected(alternatives) => {
                    search.handle_redirect(&candidate, alternatives);
                    // It is there, though not for this node.
                    worst = Outcome::Failed;
                }
                // The publisher may have moved to another origin of the list.
                Outcome::Ended if root.epoch.is_none() && upstreams.len() > 1 => {
                    worst = Outcome::Ended;
                }
                // Hours may have passed since this search began.
                Outcome::Failed if self.served => {
                    self.known = search.into_known();
                    return Outcome::Lost;
                }
                Outcome::Failed | Outcome::Refused if worst == Outcome::Ended => {}
                Outcome::Failed | Outcome::Refused => worst = Outcome::Failed,
                Outcome::Lost | Outcome::Shed | Outcome::Ended | Outcome::Stopped => {
                    self.known = search.into_known();
                    return outcome;
                }
            }
        }
        self.known = search.into_known();
        worst
    }

    async fn attempt(&mut self, root: &Upstream, candidate: &Candidate) -> Outcome {
        let outcome = self.subscribe(root, candidate).await;
        let now = self.trunk.node.clock.now();
        if self.trunk.connected_by(self.index) {
            self.lost = Some((now, self.parent.clone()));
        }
        // Whom this node feeds doesn't wait for the end of a long search.
        self.trunk.handle_down(self.index, None);
        // The origin is asked again whatever happens: it is where the stream is.
        let edge = candidate.node.as_ref();
        let wanting = matches!(outcome, Outcome::Lost | Outcome::Failed);
        if let Some(edge) = edge.filter(|_| wanting) {
            self.shun(now, edge.clone());
        }
        outcome
    }

    /// Whom not to be fed by.
    pub(super) fn avoid(&mut self) -> Vec<NodeId> {
        let now = self.trunk.node.clock.now();
        self.shunned
            .retain(|(since, _)| now.saturating_duration_since(*since) < SHUNNED_FOR);
        let shunned = self.shunned.iter().map(|(_, node)| node.clone());
        let mut avoid: Vec<NodeId> = shunned.chain(self.trunk.others(self.index)).collect();
        avoid.truncate(tree::AVOID_MAX);
        avoid
    }

    /// The first unit of a call came.
    pub(super) fn handle_served(&mut self, from_origin: bool) {
        self.served = true;
        let Some((since, parent)) = self.lost.take() else {
            return;
        };
        let gap = self.trunk.node.clock.now().saturating_duration_since(since);
        histogram!(REPARENT_GAP).record(gap.as_secs_f64());
        if parent != self.parent {
            let label = if from_origin { "origin" } else { "edge" };
            counter!(REPARENTED, "to" => label).increment(1);
        }
    }

    fn shun(&mut self, now: Instant, node: NodeId) {
        self.shunned.retain(|(_, known)| *known != node);
        if self.shunned.len() >= SHUNNED_MAX {
            self.shunned.remove(0);
        }
        self.shunned.push((now, node));
    }
}
