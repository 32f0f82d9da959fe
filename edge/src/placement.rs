//! The other edges: who could take a viewer that this one can't, or better.

use headwater_media::id::{NodeId, StreamName};
use headwater_media::placement::{self, Candidate};
use headwater_node::Node;
use headwater_node::directory::{NodeRecord, Role};
use rand::Rng;

/// Chooses among the edges that the directory knows. With a fixed list of origins there are none.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    node: Node,
    /// Where viewers reach this edge, if it says.
    public_url: Option<String>,
}

impl Placement {
    pub(crate) const fn new(node: Node, public_url: Option<String>) -> Self {
        Self { node, public_url }
    }

    /// There are others, so a viewer that leaves has somewhere to go.
    pub(crate) fn has_others(&self) -> bool {
        !self.others().is_empty()
    }

    /// The edge that a viewer of this stream should go to instead, if it must go somewhere: none of those that are `shunned`.
    pub(crate) fn other(
        &self,
        name: &StreamName,
        shunned: impl Fn(&NodeId) -> bool,
    ) -> Option<NodeRecord> {
        let mut others = self.others();
        // The player can go there, or its request can.
        others.retain(|other| self.own_url(other).is_some() || !other.grpc_url.is_empty());
        others.retain(|other| !shunned(&other.id));
        let candidates: Vec<Candidate> =
            others.iter().map(|other| candidate(other, name)).collect();
        let mut random = rand::rng();
        let at = placement::choose(&candidates, [random.random(), random.random()])?;
        Some(others.swap_remove(at))
    }

    /// The edge that a viewer of this stream is better off at than `here`. Costs nothing where the load is low.
    pub(crate) fn better(
        &self,
        name: &StreamName,
        here: &Candidate,
        shunned: impl Fn(&NodeId) -> bool,
    ) -> Option<NodeRecord> {
        if here.is_content() {
            return None;
        }
        self.other(name, shunned)
            .filter(|there| here.should_send_to(&candidate(there, name)))
    }

    /// The edge with this id, if it is another one that the directory knows.
    pub(crate) fn edge(&self, id: &NodeId) -> Option<NodeRecord> {
        let node = self.node.directory.node(id)?;
        (node.role == Role::Edge && node.id != self.node.id).then_some(node)
    }

    /// Where a viewer asks the other edge for this stream itself; `None` if it can't be reached past the address they share, as behind an Ingress.
    pub(crate) fn url_at(&self, there: &NodeRecord, name: &StreamName) -> Option<String> {
        self.own_url(there).map(|url| format!("{url}/whep/{name}"))
    }

    /// Where players reach the other edge and no other, this one included.
    fn own_url<'a>(&self, there: &'a NodeRecord) -> Option<&'a str> {
        let url = there.public_url.as_ref()?.trim_end_matches('/');
        let shared = |ours: &String| ours.trim_end_matches('/') == url;
        (!self.public_url.as_ref().is_some_and(shared)).then_some(url)
    }

    fn others(&self) -> Vec<NodeRecord> {
        let mut nodes = self.node.directory.nodes();
        nodes.retain(|other| {
            other.role == Role::Edge && !other.draining && other.id != self.node.id
        });
        nodes
    }
}

fn candidate(edge: &NodeRecord, name: &StreamName) -> Candidate {
    Candidate {
        load: edge.load,
        has_stream: edge.streams.contains(name),
    }
}
