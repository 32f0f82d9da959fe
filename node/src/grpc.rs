//! A node's gRPC port: opened first, so that its address is known, then served, then stopped.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tracing::warn;

use crate::Node;

/// Calls one connection may carry (count); nodes open another connection past it.
const CALLS_PER_CONNECTION: u32 = 1024;

/// A peer that leaves this many keepalive probes' time unanswered is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls in progress have this long to end after [`GrpcServer::stop`].
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// An opened port that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Opens `listen` on the node's I/O runtime.
    ///
    /// # Errors
    /// If the port can't be had.
    pub async fn open(listen: SocketAddr, node: &Node) -> io::Result<Self> {
        let bind = node.io.spawn(TcpListener::bind(listen));
        let listener = bind.await.map_err(io::Error::other)??;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where other nodes reach it: as `advertise` says, or without it where this machine does.
    pub fn url(&self, advertise: Option<&str>) -> String {
        let given = advertise.filter(|url| !url.is_empty());
        given.map_or_else(
            || format!("http://{}", reachable(self.address)),
            str::to_owned,
        )
    }

    /// Answers calls until [`GrpcServer::stop`].
    pub fn serve(self, routes: Routes, node: &Node) -> GrpcServer {
        let stop = CancellationToken::new();
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let stopped = stop.clone();
        let task = node.io.spawn(async move {
            let served = Server::builder()
                .max_concurrent_streams(CALLS_PER_CONNECTION)
                .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, stopped.cancelled_owned())
                .await;
            if let Err(error) = served {
                warn!(%error, "the gRPC server ended");
            }
        });
        GrpcServer { stop, task }
    }
}

/// The listening gRPC port.
#[derive(Debug)]
pub struct GrpcServer {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl GrpcServer {
    /// Stops accepting, lets calls end for a moment, then cuts them.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }
}

/// Where this machine reaches a port that listens on `bound`.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}
