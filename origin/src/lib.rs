//! Headwater's origin: takes publishers in and replicates their streams to edges.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | settings |
//! | [`rtmp`] | RTMP ingest: listener, limits, sessions |
//! | [`registry`] | name → stream; decides between publishers |
//! | `ownership` | who gets a name: claims it, asks its owner, answers those who ask |
//! | `publication` | a publisher's link to its stream |
//! | `contribution` | the same of one that sends a rendition by a connection of its own |
//! | `stream` | `StreamActor`: one live stream and its subscribers |
//! | [`audio`] | AAC to Opus |
//! | [`ladder`] | renditions made of the publisher's video, by an ffmpeg child |
//! | `replication` | the streams as edges subscribe to them |
//! | `describe`, `ingest`, `metrics` | API record, what publishers' media is like, metrics |
//! | `publish_config` | what OBS is to send as a stream with several renditions |

use std::net::SocketAddr;
use std::sync::Arc;

use actix::Arbiter;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::StreamName;
use headwater_media::tree;
use headwater_node::Node;
use headwater_node::admin::{PublishConfigRequest, Report};
use headwater_node::announce::{self, Announcement, Reading};
use headwater_node::directory::{NodeRecord, Role};
use headwater_node::grpc::{Bound, GrpcServer};
use headwater_node::listen;
use headwater_node::replication::Feeding;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tracing::info;

use crate::ownership::answer::Answerer;
use crate::registry::Registry;
use crate::stream::Describe;

pub mod audio;
pub mod config;
mod contribution;
mod describe;
mod ffmpeg;
mod ingest;
pub mod ladder;
mod metrics;
mod ownership;
mod publication;
mod publish_config;
pub mod registry;
mod replication;
pub mod rtmp;
mod stream;

pub use config::Config;

/// A running origin. Dropping it without [`Self::stop`] leaves it running until the process ends.
#[derive(Debug)]
pub struct Origin {
    rtmp: rtmp::Listener,
    grpc: GrpcServer,
    grpc_addr: SocketAddr,
    registry: Registry,
    /// The rungs of a full ladder.
    ladder: Vec<ladder::Step>,
    announcement: Announcement,
    streams_max: usize,
    announcer: JoinHandle<()>,
    arbiters: Vec<Arbiter>,
    node: Node,
}

/// Starts an origin. Call it on the actix `System`'s thread.
///
/// # Errors
/// If a listener can't be opened.
pub async fn start(config: Config, node: Node) -> Result<Origin, listen::Error> {
    metrics::describe();
    let grpc = Bound::open(config.origin.grpc, &node)
        .await
        .map_err(listen::Error::of("gRPC", config.origin.grpc))?;
    let grpc_addr = grpc.address();
    let grpc_url = grpc.url(Some(&config.origin.advertise));
    let arbiters: Vec<Arbiter> = (0..config.origin.stream_threads.max(1))
        .map(|_| Arbiter::new())
        .collect();
    let registry = Registry::start(
        config.origin.clone(),
        config.audio.clone(),
        ladder::Shared::new(config.ladder.clone(), node.clock.clone(), node.io.clone()),
        grpc_url.clone(),
        node.clone(),
        arbiters.iter().map(Arbiter::handle).collect(),
    );
    let rtmp = rtmp::Listener::start(
        &config.rtmp,
        config.publish_token.clone(),
        registry.clone(),
        &node,
    )
    .map_err(listen::Error::of("RTMP", config.rtmp.listen))?;
    let children = tree::Config {
        fanout: config.origin.fanout,
        depth_max: tree::PATH_NODES_MAX,
        overflows: true,
    };
    let options = headwater_node::replication::Options {
        window: config.origin.window(),
        feeding: Feeding::origin(children, config.origin.subscribers_max, node.id.clone()),
        metrics: metrics::REPLICATION,
        clock: node.clock.clone(),
    };
    let service = headwater_node::replication::service(Arc::new(registry.clone()), options);
    let ownership = Answerer::service(registry.clone(), &node);
    let routes = Routes::new(service).add_service(ownership);
    let grpc = grpc.serve(routes, &node);
    let streams_max = config.origin.streams_max;
    let announcement = Announcement {
        role: Role::Origin,
        grpc_url: grpc_url.clone(),
        public_url: None,
    };
    let announcer = announce::spawn(&node, announcement.clone(), {
        let registry = registry.clone();
        move || {
            let registry = registry.clone();
            async move { reading(&registry, streams_max).await }
        }
    });
    info!(rtmp = %rtmp.address(), grpc = %grpc_addr, %grpc_url, "origin started");
    Ok(Origin {
        rtmp,
        grpc,
        grpc_addr,
        registry,
        ladder: config.ladder.rungs,
        announcement,
        streams_max,
        announcer,
        arbiters,
        node,
    })
}

async fn reading(registry: &Registry, streams_max: usize) -> Reading {
    Reading {
        load: announce::ratio(registry.list().await.len(), streams_max),
        ..Reading::default()
    }
}

impl Origin {
    /// Where RTMP listens.
    pub fn rtmp_addr(&self) -> SocketAddr {
        self.rtmp.address()
    }

    /// Where gRPC listens.
    pub const fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// The streams, for whoever publishes from within the process.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What the admin port asks.
    pub fn report(&self) -> Arc<dyn Report> {
        Arc::new(OriginReport {
            registry: self.registry.clone(),
            node: self.node.clone(),
            rtmp: self.rtmp.address(),
            ladder: self.ladder.clone(),
            announcement: self.announcement.clone(),
            streams_max: self.streams_max,
        })
    }

    /// Stops: publishers are sent elsewhere, edges told that the streams move, the names released.
    pub async fn stop(self) {
        self.announcer.abort();
        self.registry.drain().await;
        self.rtmp.drain().await;
        self.registry.stop().await;
        self.rtmp.stop().await;
        self.grpc.stop().await;
        self.node.directory.withdraw().await;
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}

/// Answers for the admin port.
struct OriginReport {
    registry: Registry,
    node: Node,
    rtmp: SocketAddr,
    ladder: Vec<ladder::Step>,
    announcement: Announcement,
    streams_max: usize,
}

impl Report for OriginReport {
    fn ready(&self) -> Result<(), String> {
        if self.node.shutdown.is_cancelled() {
            return Err("the origin is stopping".to_owned());
        }
        Ok(())
    }

    fn streams(&self) -> BoxFuture<'_, Vec<serde_json::Value>> {
        async {
            let answers = self.registry.ask_all(|| Describe).await;
            answers.into_iter().map(|(_, value)| value).collect()
        }
        .boxed()
    }

    fn viewers(&self) -> BoxFuture<'_, Vec<serde_json::Value>> {
        async { Vec::new() }.boxed()
    }

    fn node(&self) -> BoxFuture<'_, NodeRecord> {
        async {
            let reading = reading(&self.registry, self.streams_max).await;
            self.announcement.record(&self.node, reading)
        }
        .boxed()
    }

    fn kick_publisher(&self, name: StreamName) -> BoxFuture<'_, bool> {
        self.registry.kick(name).boxed()
    }

    fn publish_config(
        &self,
        name: &StreamName,
        asked: &PublishConfigRequest,
    ) -> Option<serde_json::Value> {
        Some(publish_config::document(
            name,
            asked,
            self.rtmp,
            &self.ladder,
        ))
    }
}
