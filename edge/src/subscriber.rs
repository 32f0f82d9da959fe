//! The replication client: one subscription per stream this edge replicates, whatever its upstreams do.
//!
//! Started by a replica and ended by dropping its [`Handle`]. It has one leg per upstream that it is to have (`edge.upstreams`), each a task on
//! the I/O runtime that looks for an upstream and reads its call ([`leg`], [`call`]); what they bring comes together in the [`trunk`], once and
//! in order, and goes to the replica and to the edges that this one feeds.

use std::sync::Arc;

use headwater_media::id::StreamName;
use headwater_media::replication::Want;
use headwater_media::tree::{self, Alternative};
use headwater_node::Node;
use headwater_node::actor::Sender;
use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use headwater_node::trace::Context;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, info_span};

use crate::latency::Clocks;
use crate::relay::Relay;
use crate::replica::Feed;

mod call;
mod leg;
mod trunk;

use leg::Leg;
use trunk::Trunk;

/// Units the replica's full mailbox refused.
const REFUSED: &str = "headwater_edge_upstream_units_refused_total";
/// Attempts to subscribe, by outcome.
const ATTEMPTS: &str = "headwater_edge_upstream_attempts_total";
/// Units that were missing in what came.
const LOST: &str = "headwater_edge_upstream_units_lost_total";
/// Changes of the upstream, by what the new one is.
const REPARENTED: &str = "headwater_edge_reparented_total";
/// From the loss of an upstream to the first unit of the next.
const REPARENT_GAP: &str = "headwater_edge_reparent_gap_seconds";
/// Subscriptions by distance from the publisher.
const DEPTH: &str = "headwater_edge_upstreams_by_depth";

/// Registers the help texts.
pub(crate) fn describe_metrics() {
    describe_counter!(
        REFUSED,
        "access units that a replica's full mailbox refused"
    );
    describe_counter!(ATTEMPTS, "attempts to subscribe at an upstream, by outcome");
    describe_counter!(LOST, "access units missing in what the upstreams sent");
    describe_counter!(
        REPARENTED,
        "times a lost upstream was replaced, by what the new one is: origin, edge"
    );
    describe_histogram!(
        REPARENT_GAP,
        Unit::Seconds,
        "from the loss of an upstream to the first unit of the next one"
    );
    describe_gauge!(
        DEPTH,
        "subscriptions, by how many nodes are between this one and the publisher"
    );
    start_at_zero(&[REFUSED, LOST]);
    start_at_zero_by(REPARENTED, "to", &["origin", "edge"]);
    start_at_zero_by(
        ATTEMPTS,
        "outcome",
        &[
            "not_found",
            "failed",
            "refused",
            "redirected",
            "lost",
            "shed",
            "ended",
            "stopped",
        ],
    );
}

/// A running subscription. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Handle {
    _stop: DropGuard,
}

/// How a subscription takes part in the tree.
#[derive(Debug, Clone)]
pub struct Options {
    /// Upstreams at a time (count).
    pub upstreams: usize,
    /// How far from the publisher this node may be (count).
    pub depth_max: usize,
    /// Where this node passes the stream on; empty: nowhere.
    pub grpc_url: String,
    /// Where calls show their upstreams' clocks.
    pub(crate) clocks: Clocks,
    /// The trace of who asked for the stream: looking for it belongs to that.
    pub trace: Option<Context>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            upstreams: 1,
            depth_max: tree::PATH_NODES_MAX,
            grpc_url: String::new(),
            clocks: Clocks::default(),
            trace: None,
        }
    }
}

/// Subscribes to a stream and keeps `feed` supplied until the handle is dropped: finds upstreams, resumes by sequence
/// after a cut, follows redirections and the directory, and retries with a capped, jittered backoff.
///
/// Runs on `node.io`; may be called from any thread.
pub fn spawn(
    node: &Node,
    name: StreamName,
    wants: &watch::Receiver<Want>,
    feed: Sender<Feed>,
    options: Options,
) -> Handle {
    subscribe(node, name, wants, feed, options, None)
}

/// As [`spawn`], for a stream that is passed on.
pub(crate) fn subscribe(
    node: &Node,
    name: StreamName,
    wants: &watch::Receiver<Want>,
    feed: Sender<Feed>,
    options: Options,
    relay: Option<Arc<Relay>>,
) -> Handle {
    // Not the node's: while it drains, its viewers watch on.
    let stop = CancellationToken::new();
    let legs = options.upstreams.max(1);
    let trunk = Arc::new(Trunk::new(node, name, options, legs, feed, relay));
    for index in 0..legs {
        let leg = Leg::new(index, Arc::clone(&trunk), wants.clone(), stop.clone());
        let span = info_span!("subscriber", stream = %trunk.name, leg = index);
        node.io.spawn(leg.run().instrument(span));
    }
    end_children_with(stop.clone(), node, trunk);
    Handle {
        _stop: stop.drop_guard(),
    }
}

/// Children are sent away when the subscription is stopped, and as soon as the node begins to: they have time then.
fn end_children_with(stop: CancellationToken, node: &Node, trunk: Arc<Trunk>) {
    if trunk.relay.is_some() {
        let shutdown = node.shutdown.clone();
        node.io.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = shutdown.cancelled() => {}
            }
            trunk.handle_leaving();
        });
    }
}

/// How an attempt at one upstream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// It has no such stream.
    NotFound,
    /// It can't be reached, or is of no use.
    Failed,
    /// It said no, as it may do for a moment only.
    Refused,
    /// It feeds enough, and names others.
    Redirected(Vec<Alternative>),
    /// It served for a while and is lost, or has the stream no longer.
    Lost,
    /// It served past its fan-out until others had room.
    Shed,
    /// The stream is over.
    Ended,
    /// This subscription is to end.
    Stopped,
}

impl Outcome {
    const fn label(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Redirected(_) => "redirected",
            Self::Lost => "lost",
            Self::Shed => "shed",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
        }
    }
}

/// The replica is gone, or wants no more.
struct Stopped;
