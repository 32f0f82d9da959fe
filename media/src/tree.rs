//! The tree that a stream takes through the cluster: who feeds whom, decided by redirection.
//!
//! No node knows the tree and nothing of it is written anywhere. Each node has two halves of the decision: [`Children`], whom it feeds and
//! where it sends those that it doesn't, and [`Search`], whom a node that needs an upstream asks next; [`Patience`] is how long it stays with one
//! that gets nothing itself. Two rules keep it a tree: a
//! stream's description names the path that it came by, and who finds itself in it leaves; and who has no upstream takes nobody new.

use std::sync::Arc;

use crate::id::NodeId;

mod children;
mod patience;
mod search;

pub use children::{Capacity, ChildId, Children, Config, Joining, Refusal, Verdict};
pub use patience::{Answer, Patience};
pub use search::{Candidate, Search};

/// Nodes that a path may name (count). No configuration allows a tree so deep; a longer one comes of a fault.
pub const PATH_NODES_MAX: usize = 32;

/// Alternatives of a redirection (count).
pub const ALTERNATIVES_MAX: usize = 16;

/// Nodes that a subscriber may wish to avoid (count).
pub const AVOID_MAX: usize = 32;

/// The nodes that a stream came through, the origin first. Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Path(Arc<[NodeId]>);

impl Default for Path {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl From<Vec<NodeId>> for Path {
    fn from(nodes: Vec<NodeId>) -> Self {
        Self(nodes.into())
    }
}

impl Path {
    /// The nodes, the origin first.
    pub fn nodes(&self) -> &[NodeId] {
        &self.0
    }

    /// How far from the publisher whoever gets the stream by this path is (count): 0 at the origin, 1 for those it feeds.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether the stream came through `node`.
    pub fn contains(&self, node: &NodeId) -> bool {
        self.0.contains(node)
    }

    /// The path of those that `node` feeds, which gets the stream by this one.
    #[must_use]
    pub fn through(&self, node: &NodeId) -> Self {
        Self(self.0.iter().chain([node]).cloned().collect())
    }
}

/// What a node can do for further subscribers of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// How many more it takes (count).
    pub free: u32,
    /// 0 idle, 100 full.
    pub load_percent: u32,
    /// How many nodes are fed through it, directly or not (count).
    pub descendants: u32,
    /// How many levels of them there are (count).
    pub height: u32,
    /// How many levels of them there may be, as far from the publisher as it is (count); 0: it doesn't say.
    pub height_max: u32,
}

/// A node that has a stream and passes it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// Where, `http://host:port`.
    pub grpc_url: String,
    /// Who.
    pub node: NodeId,
    /// How far from the publisher it is (count); 1 is fed by the origin.
    pub depth: usize,
}
