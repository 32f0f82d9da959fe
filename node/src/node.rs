//! What a role is handed by whoever starts it: its identity and the shared services of the process.

use std::fmt;
use std::sync::Arc;

use headwater_media::id::NodeId;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::directory::Directory;

/// The services of one node. Cheap to clone; the roles of a standalone process share everything but the directory's view.
#[derive(Clone)]
pub struct Node {
    /// Who this node is; unique in its cluster.
    pub id: NodeId,
    /// Reads the time.
    pub clock: Clock,
    /// This node's view of the cluster: what is claimed and announced through it carries [`Self::id`].
    pub directory: Arc<dyn Directory>,
    /// The multi-thread runtime that carries gRPC, etcd and RTMP sockets. Spawn here what must not wait for an actor's thread.
    pub io: tokio::runtime::Handle,
    /// Cancelled when the process is asked to stop. Roles stop taking new work then; their `stop` ends what is left.
    pub shutdown: CancellationToken,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id)
            .field("stopping", &self.shutdown.is_cancelled())
            .finish_non_exhaustive()
    }
}
