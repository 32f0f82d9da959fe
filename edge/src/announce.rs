//! Announces this edge in the directory, with its load, and keeps the record fresh.

use std::time::Duration;

use headwater_node::Node;
use headwater_node::backoff::jitter;
use headwater_node::directory::{Error, NodeRecord, Role};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::config::Config;
use crate::shard::Shards;

/// How often the record is renewed. Load changes slowly, and the directory's lease tells who is alive.
const INTERVAL: Duration = Duration::from_secs(5);

/// Spread of the renewals, so that many nodes don't write at once.
const JITTER: Duration = Duration::from_secs(1);

/// Announces until the task is aborted.
pub(crate) fn spawn(node: &Node, shards: Shards, config: &Config) -> JoinHandle<()> {
    let capacity = shards.len().saturating_mul(config.viewers_per_shard);
    let grpc_url = config.advertise.clone().unwrap_or_default();
    let public_url = config.public_url.clone();
    let task_node = node.clone();
    node.io.spawn(async move {
        let node = task_node;
        loop {
            let record = NodeRecord {
                id: node.id.clone(),
                role: Role::Edge,
                grpc_url: grpc_url.clone(),
                public_url: public_url.clone(),
                load: crate::load(&shards, capacity),
                draining: node.shutdown.is_cancelled(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            match node.directory.announce(record).await {
                Ok(()) => {}
                // A fixed list of origins knows no edges.
                Err(Error::ReadOnly) => return,
                // Viewers go on without it; the directory logs its own state.
                Err(error) => debug!(%error, "not announced"),
            }
            tokio::time::sleep(INTERVAL + jitter(JITTER)).await;
        }
    })
}
