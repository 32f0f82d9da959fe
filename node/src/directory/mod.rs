//! The directory: who is alive, and who owns which stream.
//!
//! Edges read it from a watched copy, so that it may be away without a viewer noticing (static stability).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use headwater_media::id::{Epoch, NodeId, StreamName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

mod claimant;
pub mod etcd;
pub mod fixed;
pub mod memory;
#[cfg(test)]
pub(crate) mod suite;

pub use claimant::{Claimant, Restore};

/// The name of a cluster: 1 to 63 characters of `A-Z a-z 0-9 . _ -`. Clusters of different names share an etcd without
/// seeing each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterName(NodeId);

impl Default for ClusterName {
    fn default() -> Self {
        Self("default".parse().expect("a valid name"))
    }
}

impl FromStr for ClusterName {
    type Err = InvalidClusterName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| InvalidClusterName)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is no [`ClusterName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cluster name is 1 to 63 characters of A-Z a-z 0-9 . _ -")]
pub struct InvalidClusterName;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Takes publishers in.
    Origin,
    /// Serves viewers.
    Edge,
}

/// One run of a node's process: one that was restarted under its id is another incarnation. Random, never given twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Of a run that begins.
    pub fn new() -> Self {
        // Zero is what records of nodes that don't know incarnations read as.
        Self(rand::random_range(1..=u64::MAX))
    }
}

/// A node as others see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// What it does.
    pub role: Role,
    /// Where its gRPC is reached by other nodes, `http://host:port`.
    pub grpc_url: String,
    /// Where viewers reach its HTTP, if it says.
    pub public_url: Option<String>,
    /// 0 idle, 1 full.
    pub load: f64,
    /// It takes nobody new.
    pub draining: bool,
    /// Streams that viewers watch there, those with the most viewers first: at most [`Self::STREAMS_MAX`]. Only edges say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamName>,
    /// Its software version.
    pub version: String,
}

impl NodeRecord {
    /// Streams in a record (count). Every node reads every record, so they stay small.
    pub const STREAMS_MAX: usize = 32;
}

/// A stream as others see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamRecord {
    /// The stream.
    pub name: StreamName,
    /// Its owner.
    pub origin: NodeId,
    /// The owner's run that claimed it.
    pub incarnation: Incarnation,
    /// The owner's fencing token for it.
    pub epoch: Epoch,
    /// Where the owner's gRPC is reached.
    pub grpc_url: String,
}

/// A place to subscribe at.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// `http://host:port` of a node's gRPC.
    pub grpc_url: String,
    /// The epoch the directory names, if it knows.
    pub epoch: Option<Epoch>,
}

impl From<&StreamRecord> for Upstream {
    fn from(record: &StreamRecord) -> Self {
        Self {
            grpc_url: record.grpc_url.clone(),
            epoch: Some(record.epoch),
        }
    }
}

/// Why a directory operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another node owns the stream.
    #[error("{} is owned by {} (epoch {})", .0.name, .0.origin, .0.epoch)]
    Held(StreamRecord),
    /// The directory did not answer in time; try again later.
    #[error("the directory does not answer: {0}")]
    Unavailable(Arc<str>),
    /// This kind of directory can't be written.
    #[error("this directory is a fixed list of origins and can't be written")]
    ReadOnly,
}

/// Epochs that belong to a claim (count): the one it yields, for its publisher, and those above it for publishers who come after that
/// one while the directory is away. More than that come only from one that flaps, and are refused.
pub const EPOCHS_PER_CLAIM: u64 = 256;

/// The first epoch of a claim above all that belong to the one of `known`.
fn next_claim(known: Epoch) -> Epoch {
    let claim = known.0 / EPOCHS_PER_CLAIM + 1;
    Epoch(claim.saturating_mul(EPOCHS_PER_CLAIM))
}

/// Where nodes and streams are found. Implementations: memory, etcd, fixed.
pub trait Directory: Send + Sync + 'static {
    /// Announces this node, or replaces its record, until [`Self::withdraw`] or the loss of this node.
    fn announce(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), Error>>;

    /// The run of this node that its claims name.
    fn incarnation(&self) -> Incarnation;

    /// Claims a stream name for this node and yields an epoch above all that were ever given for it: it and the [`EPOCHS_PER_CLAIM`]
    /// from it on are this claim's.
    /// A name this node already owns, or an earlier run of it did, is claimed anew, with a higher epoch; so is one that another node
    /// owns at the epoch `over`, which the caller knows to be void. Whoever claimed it since keeps it.
    fn claim(
        &self,
        name: StreamName,
        grpc_url: String,
        over: Option<Epoch>,
    ) -> BoxFuture<'_, Result<Epoch, Error>>;

    /// Gives a stream name up, if this node still owns it at `epoch`.
    fn release(&self, name: StreamName, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>>;

    /// This node's claim of `epoch` stands as far as is known: nobody has claimed the stream since. Also while the directory is
    /// away, and when it let this node's records go, which are put again then. Answers without a round trip.
    fn owns(&self, name: &StreamName, epoch: Epoch) -> bool;

    /// Where a stream can be had, best first; empty if nobody has it as far as is known. Answers from the
    /// watched copy, without a round trip. A fixed list names all its origins for every stream.
    fn upstreams(&self, name: &StreamName) -> Vec<Upstream>;

    /// All streams that are known. Always empty for a fixed list.
    fn streams(&self) -> Vec<StreamRecord>;

    /// All nodes that are known. For a fixed list: none.
    fn nodes(&self) -> Vec<NodeRecord>;

    /// The node with this id, if it is known.
    fn node(&self, id: &NodeId) -> Option<NodeRecord>;

    /// gRPC URLs of the origins of a fixed list, else empty: who must be asked what is live.
    fn fixed_origins(&self) -> Vec<String> {
        Vec::new()
    }

    /// Counts changes; wakes whoever waits for a stream to appear or move.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The first listing has been seen; before it, "unknown" means little.
    fn synced(&self) -> bool;

    /// Withdraws this node and its streams, best effort within a second or two.
    fn withdraw(&self) -> BoxFuture<'_, ()>;
}
