//! Announces this origin in the directory, with its load, and keeps the record fresh. Stream records are the registry's.

use std::time::Duration;

use headwater_node::Node;
use headwater_node::backoff::jitter;
use headwater_node::directory::{Error, NodeRecord, Role};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::registry::Registry;

/// How often the record is renewed. Load changes slowly, and the directory's lease tells who is alive.
const INTERVAL: Duration = Duration::from_secs(5);

/// Spread of the renewals, so that many nodes don't write at once.
const JITTER: Duration = Duration::from_secs(1);

/// Announces until the node stops or the task is aborted.
pub(crate) fn spawn(
    node: &Node,
    registry: Registry,
    grpc_url: String,
    streams_max: usize,
) -> JoinHandle<()> {
    let node_task = node.clone();
    node.io.spawn(async move {
        let node = node_task;
        loop {
            let streams = registry.list().await.len();
            let record = NodeRecord {
                id: node.id.clone(),
                role: Role::Origin,
                grpc_url: grpc_url.clone(),
                public_url: None,
                load: ratio(streams, streams_max),
                draining: node.shutdown.is_cancelled(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            match node.directory.announce(record).await {
                Ok(()) => {}
                // Nobody looks a fixed list's origins up.
                Err(Error::ReadOnly) => return,
                // Known streams go on without it; the directory logs its own state.
                Err(error) => debug!(%error, "not announced"),
            }
            tokio::time::sleep(INTERVAL + jitter(JITTER)).await;
        }
    })
}

fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    (number(part) / number(whole.max(1))).min(1.0)
}
