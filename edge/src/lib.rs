//! Headwater's edge: replicas of live streams, and the WebRTC shards that fan them out.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | settings |
//! | [`http`], [`sessions`] | WHEP, the API and the player; which session URL is which viewer |
//! | [`locate`], [`subscriber`] | where streams are to be had; the replication client |
//! | [`registry`], [`replica`] | one replica per watched stream: started on demand, packetized once, lingering |
//! | [`shard`] | one core's viewers: socket, maps, fan-out |

pub mod config;
pub mod http;
pub mod locate;
mod metrics;
pub mod registry;
pub mod replica;
pub mod sessions;
pub mod shard;
pub mod subscriber;
mod transport;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_node::Node;
use headwater_node::admin::Report;

pub use config::Config;

/// Why an edge did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A listener could not be opened.
    #[error("{what} can't listen on {address}: {source}")]
    Listen {
        /// Which listener.
        what: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A running edge.
#[derive(Debug)]
pub struct Edge {
    config: Config,
}

/// Starts an edge. Call it on the actix `System`'s thread.
///
/// # Errors
/// If a listener can't be opened.
pub async fn start(config: Config, node: Node) -> Result<Edge, StartError> {
    drop(node);
    Ok(Edge { config })
}

impl Edge {
    /// Where HTTP listens.
    pub const fn http_addr(&self) -> SocketAddr {
        self.config.http
    }

    /// Where the shards' media sockets are bound.
    pub fn media_addrs(&self) -> Vec<SocketAddr> {
        vec![self.config.media]
    }

    /// What the admin port asks.
    pub fn report(&self) -> Arc<dyn Report> {
        Arc::new(Nothing)
    }

    /// Stops: viewers are told, the sockets closed.
    pub async fn stop(self) {}
}

struct Nothing;

impl Report for Nothing {
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn streams(&self) -> futures_util::future::BoxFuture<'_, Vec<serde_json::Value>> {
        Box::pin(async { Vec::new() })
    }
    fn viewers(&self) -> futures_util::future::BoxFuture<'_, Vec<serde_json::Value>> {
        Box::pin(async { Vec::new() })
    }
}
