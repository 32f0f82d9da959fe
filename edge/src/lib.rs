//! Headwater's edge: replicas of live streams, and the WebRTC shards that fan them out.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | settings |
//! | [`http`], [`sessions`] | WHEP, the API and the player; which session URL is which viewer |
//! | [`locate`], `upstream`, [`subscriber`] | where streams are to be had; gRPC connections; the replication client |
//! | [`registry`], [`replica`], `continuation` | one replica per watched stream: started on demand, packetized once, lingering |
//! | `relay`, `passing` | what other edges get of a replica |
//! | [`shard`] | one core's viewers: socket, maps, fan-out |
//! | `transport` | a viewer's secure path: STUN, DTLS, SRTP |
//! | `latency`, `survey` | how long pictures take, hop by hop; what viewers' links are like |
//! | `viewer`, `abr`, `retransmit`, `round_trip` | a viewer's actors, on its shard's thread, and what they share |
//! | `metrics` | names and help texts |

mod abr;
pub mod config;
mod continuation;
mod drain;
pub mod http;
mod latency;
mod lateness;
mod link_memory;
pub mod locate;
mod metrics;
mod passing;
mod placement;
pub mod registry;
mod relay;
pub mod replica;
mod retransmit;
mod round_trip;
pub mod sessions;
pub mod shard;
pub mod subscriber;
mod survey;
#[cfg(feature = "testkit")]
pub mod testkit;
mod transport;
mod upstream;
mod viewer;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::gauge;
use actix_rt::Arbiter;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::replication::sender;
use headwater_media::tree;
use headwater_node::Node;
use headwater_node::admin::Report;
use headwater_node::announce::{self, Announcement, Reading};
use headwater_node::directory::{NodeRecord, Role};
use headwater_node::grpc::{Bound, GrpcServer};
use headwater_node::listen;
use headwater_node::replication::{self, Feeding};
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tracing::{error, info};

pub use config::Config;

use crate::drain::Drain;
use crate::http::{EdgeState, Guests};
use crate::latency::Clocks;
use crate::locate::LiveStream;
use crate::placement::Placement;
use crate::registry::{Options, Registry};
use crate::sessions::Sessions;
use crate::shard::{Shards, StartError, Threads, ViewerId};

/// A running edge.
#[derive(Debug)]
pub struct Edge {
    http: http::Http,
    grpc: Option<GrpcServer>,
    grpc_addr: Option<SocketAddr>,
    media: Threads,
    announcer: JoinHandle<()>,
    load_gauge: JoinHandle<()>,
    survey: JoinHandle<()>,
    replicas: Arbiter,
    /// Answers what other edges hand here.
    forwarded: Arbiter,
    report: Arc<EdgeReport>,
    drain: Arc<Drain>,
}

/// Starts an edge. Call it on the actix `System`'s thread.
///
/// # Errors
/// If a listener can't be opened.
pub async fn start(config: Config, node: Node) -> Result<Edge, StartError> {
    metrics::describe();
    http::describe();
    let sessions = Arc::new(Sessions::new(node.clock.clone()));
    let told = Arc::clone(&sessions);
    let ended = Arc::new(move |viewer, reason| {
        told.ended(viewer, reason);
    });
    let failed = {
        let (sessions, shutdown) = (Arc::clone(&sessions), node.shutdown.clone());
        // Whoever starts this process again brings the shard back; until then the others' viewers are asked to go elsewhere.
        Arc::new(move |shard| {
            error!(
                shard,
                "a shard has failed: its viewers are lost, and this edge stops"
            );
            sessions.shard_lost(shard);
            shutdown.cancel();
        })
    };
    let media = Threads::start(&config, &node.clock, &node.io, ended, failed).await?;
    let shards = media.shards().clone();
    let port = match config.grpc {
        Some(address) => match Bound::open(address, &node).await {
            Ok(port) => Some(port),
            Err(source) => {
                media.stop().await;
                return Err(listen::Error::of("gRPC", address)(source).into());
            }
        },
        None => None,
    };
    let grpc_addr = port.as_ref().map(Bound::address);
    let grpc_url = port
        .as_ref()
        .map(|port| port.url(config.advertise.as_deref()));
    let feeding = Feeding::edge(
        tree::Config {
            fanout: config.fanout,
            depth_max: config.depth_max,
            overflows: false,
        },
        config.subscribers_max,
        node.id.clone(),
    );
    let passing = grpc_url.clone().map(|url| (feeding.clone(), url));
    let replicas = Arbiter::new();
    let clocks = Clocks::default();
    let registry = Registry::new(
        node.clone(),
        Options::new(&config, passing, clocks.clone()),
        replicas.handle(),
    );
    let replication = replication::service(
        Arc::new(registry.clone()),
        replication::Options {
            window: sender::Config::default(),
            feeding: feeding.clone(),
            metrics: metrics::REPLICATION,
            clock: node.clock.clone(),
        },
    );
    let announcement = Announcement {
        role: Role::Edge,
        grpc_url: grpc_url.unwrap_or_default(),
        public_url: config.public_url.clone(),
    };
    let announcer = announce::spawn(&node, announcement.clone(), {
        let (shards, clock) = (shards.clone(), node.clock.clone());
        let sessions = Arc::clone(&sessions);
        move || {
            std::future::ready(Reading {
                load: shards.load(clock.now()).min(1.0),
                streams: sessions.streams(),
            })
        }
    });
    show_limits(&config, shards.count());
    let load_gauge = show_load(&node, shards.clone(), feeding, clocks);
    let survey = show_viewers(&node, Arc::clone(&sessions), registry.clone());
    let report = Arc::new(EdgeReport {
        node: node.clone(),
        registry: registry.clone(),
        sessions: Arc::clone(&sessions),
        shards: shards.clone(),
        announcement,
    });
    let address = config.http;
    let placement = Placement::new(node.clone(), config.public_url.clone());
    let clock = node.clock.clone();
    let drain = Drain::new(placement.clone(), Arc::clone(&sessions), clock);
    let drain = Arc::new(drain);
    let guests = Guests {
        sessions,
        placement,
        drain: Arc::clone(&drain),
    };
    let state = EdgeState::new(node.clone(), registry, shards, guests, config);
    let state = Arc::new(state);
    let forwarded = Arbiter::new();
    let grpc = port.map(|port| {
        let sessions = http::forwarded_service(Arc::clone(&state), &forwarded.handle());
        port.serve(Routes::new(replication).add_service(sessions), &node)
    });
    let http = match http::serve(state) {
        Ok(http) => http,
        Err(source) => {
            announcer.abort();
            load_gauge.abort();
            survey.abort();
            media.stop().await;
            if let Some(grpc) = grpc {
                grpc.stop().await;
            }
            replicas.stop();
            forwarded.stop();
            return Err(listen::Error::of("HTTP", address)(source).into());
        }
    };
    info!(
        http = %http.address(), grpc = ?grpc_addr, media = ?media.addresses(), media_tcp = ?media.tcp_address(),
        "edge started"
    );
    Ok(Edge {
        http,
        grpc,
        grpc_addr,
        media,
        announcer,
        load_gauge,
        survey,
        replicas,
        forwarded,
        report,
        drain,
    })
}

impl Edge {
    /// Where HTTP listens.
    pub const fn http_addr(&self) -> SocketAddr {
        self.http.address()
    }

    /// Where gRPC listens, if this edge passes streams on.
    pub const fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc_addr
    }

    /// Where the shards' media sockets are bound.
    pub fn media_addrs(&self) -> Vec<SocketAddr> {
        self.media.addresses().to_vec()
    }

    /// Where media over TCP listens, if it does.
    pub fn media_tcp_addr(&self) -> Option<SocketAddr> {
        self.media.tcp_address()
    }

    /// What the admin port asks.
    pub fn report(&self) -> Arc<dyn Report> {
        Arc::clone(&self.report) as Arc<dyn Report>
    }

    /// Asks viewers to go to another edge, and returns when they have, or when `within` is over. Nobody new is taken since the node was asked
    /// to stop.
    pub async fn drain(&self, within: Duration) {
        self.drain.run(within).await;
    }

    /// Stops: viewers are told, the sockets closed. Takes a few seconds at most.
    pub async fn stop(self) {
        self.announcer.abort();
        self.load_gauge.abort();
        self.survey.abort();
        // Viewers first: their goodbye should not wait for an HTTP request that is being served.
        self.media.stop().await;
        self.http.stop().await;
        if let Some(grpc) = self.grpc {
            grpc.stop().await;
        }
        self.replicas.stop();
        self.forwarded.stop();
        info!("edge stopped");
    }
}

/// Keeps the gauges of the edge's load and of its upstreams' clocks fresh, and what other edges hear of the load, until it is aborted.
fn show_load(node: &Node, shards: Shards, feeding: Feeding, clocks: Clocks) -> JoinHandle<()> {
    const INTERVAL: Duration = Duration::from_secs(1);
    let clock = node.clock.clone();
    node.io.spawn(async move {
        let gauge = gauge!(metrics::LOAD);
        loop {
            let load = shards.load(clock.now());
            gauge.set(load);
            feeding.set_load(load);
            clocks.show();
            tokio::time::sleep(INTERVAL).await;
        }
    })
}

/// Shows what the edge may take.
fn show_limits(config: &Config, shards: usize) {
    let viewers = config.viewers_per_shard.saturating_mul(shards);
    gauge!(metrics::VIEWERS_MAX).set(f64::from(u32::try_from(viewers).unwrap_or(u32::MAX)));
    gauge!(metrics::EGRESS_MAX).set(f64::from(config.egress_mbps_max) * 125_000.0);
}

/// Looks at viewers until it is aborted.
fn show_viewers(node: &Node, sessions: Arc<Sessions>, registry: Registry) -> JoinHandle<()> {
    node.io.spawn(async move {
        loop {
            tokio::time::sleep(survey::INTERVAL).await;
            survey::look(&sessions, &registry);
        }
    })
}

/// What the admin port is told.
#[derive(Debug)]
struct EdgeReport {
    node: Node,
    registry: Registry,
    sessions: Arc<Sessions>,
    shards: Shards,
    announcement: Announcement,
}

impl EdgeReport {
    /// Viewers as the API shows them, with the names of what they get.
    fn viewers(&self) -> Vec<serde_json::Value> {
        let infos = self.registry.streams().into_iter();
        let infos: HashMap<_, _> = infos.map(|info| (info.name.clone(), info)).collect();
        self.sessions.records(|stream, track| {
            let tracks = &infos.get(stream)?.tracks;
            let track = tracks.iter().find(|known| u32::from(known.id.0) == track)?;
            Some(Arc::clone(&track.rendition))
        })
    }

    fn records(&self) -> Vec<serde_json::Value> {
        let viewers: HashMap<_, _> = self.sessions.by_stream();
        let mut infos = self.registry.streams();
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        let record = |info: &Arc<headwater_media::track::StreamInfo>| {
            let stream = LiveStream {
                name: info.name.clone(),
                publishing: info.publishing,
            };
            let viewers = viewers.get(&info.name).copied().unwrap_or(0);
            http::record(&stream, viewers, Some(info))
        };
        infos.iter().map(record).collect()
    }
}

impl Report for EdgeReport {
    fn ready(&self) -> Result<(), String> {
        if self.node.shutdown.is_cancelled() {
            return Err("the edge is stopping".to_owned());
        }
        // Listeners are open before this can be asked, and a directory that is away is no reason.
        Ok(())
    }

    fn streams(&self) -> BoxFuture<'_, Vec<serde_json::Value>> {
        std::future::ready(self.records()).boxed()
    }

    fn viewers(&self) -> BoxFuture<'_, Vec<serde_json::Value>> {
        std::future::ready(self.viewers()).boxed()
    }

    fn node(&self) -> BoxFuture<'_, NodeRecord> {
        let reading = Reading {
            load: self.shards.load(self.node.clock.now()).min(1.0),
            streams: self.sessions.streams(),
        };
        std::future::ready(self.announcement.record(&self.node, reading)).boxed()
    }

    fn kick_viewer(&self, viewer: u64) -> bool {
        self.sessions.kick(ViewerId(viewer))
    }
}
