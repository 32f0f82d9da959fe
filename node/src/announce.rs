//! Announces a node in the directory, with its load, and keeps the record fresh. Stream records are the origin registry's.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tracing::debug;

use crate::Node;
use crate::backoff::jitter;
use crate::directory::{Error, NodeRecord, Role};

/// How often the record is renewed. Load changes slowly, and the directory's lease tells who is alive.
const INTERVAL: Duration = Duration::from_secs(5);

/// Spread of the renewals, so that many nodes don't write at once.
const JITTER: Duration = Duration::from_secs(1);

/// What of a node's record never changes.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// What it does.
    pub role: Role,
    /// See [`NodeRecord::grpc_url`]; empty if it has none.
    pub grpc_url: String,
    /// See [`NodeRecord::public_url`].
    pub public_url: Option<String>,
}

/// Announces until the task is aborted. `load` is asked before each time: 0 idle, 1 full.
pub fn spawn<F, L>(node: &Node, announcement: Announcement, load: F) -> JoinHandle<()>
where
    F: Fn() -> L + Send + 'static,
    L: Future<Output = f64> + Send,
{
    let io = node.io.clone();
    let node = node.clone();
    io.spawn(async move {
        loop {
            let record = NodeRecord {
                id: node.id.clone(),
                role: announcement.role,
                grpc_url: announcement.grpc_url.clone(),
                public_url: announcement.public_url.clone(),
                load: load().await,
                draining: node.shutdown.is_cancelled(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            };
            match node.directory.announce(record).await {
                Ok(()) => {}
                // A fixed list of origins knows nobody else.
                Err(Error::ReadOnly) => return,
                // The node's work goes on without it; the directory logs its own state.
                Err(error) => debug!(%error, "not announced"),
            }
            tokio::time::sleep(INTERVAL + jitter(JITTER)).await;
        }
    })
}

/// The share that `part` is of `whole` (counts), at most 1.
pub fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    (number(part) / number(whole.max(1))).min(1.0)
}
