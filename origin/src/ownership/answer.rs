//! Answers origins that have a publisher for a stream which the directory says is this one's.

use headwater_media::id::{NodeId, StreamName};
use headwater_node::Node;
use headwater_node::directory::Incarnation;
use headwater_proto::replication::ownership_server::{Ownership, OwnershipServer};
use headwater_proto::replication::{Inquiry, Standing};
use tonic::{Request, Response, Status};
use tracing::info;

use crate::registry::Registry;

/// The longest question (bytes).
const INQUIRY_BYTES_MAX: usize = 1 << 10;

/// The gRPC service.
pub(crate) struct Answerer {
    registry: Registry,
    id: NodeId,
    incarnation: Incarnation,
}

impl Answerer {
    /// A service that answers from `registry`.
    pub(crate) fn service(registry: Registry, node: &Node) -> OwnershipServer<Self> {
        let answerer = Self {
            registry,
            id: node.id.clone(),
            incarnation: node.directory.incarnation(),
        };
        OwnershipServer::new(answerer).max_decoding_message_size(INQUIRY_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Ownership for Answerer {
    async fn inquire(&self, request: Request<Inquiry>) -> Result<Response<Standing>, Status> {
        let inquiry = request.into_inner();
        let name: StreamName = inquiry
            .stream
            .parse()
            .map_err(|_| Status::invalid_argument("not a stream's name"))?;
        let publishing = self.registry.occupied(name.clone()).await;
        let asker: Option<NodeId> = inquiry.node.parse().ok();
        info!(stream = %name, asker = asker.map(tracing::field::display), publishing, "another origin has a publisher for the stream");
        Ok(Response::new(Standing {
            node: self.id.to_string(),
            incarnation: self.incarnation.0,
            publishing,
        }))
    }
}
