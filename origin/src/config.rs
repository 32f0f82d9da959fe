//! The origin's settings: `[origin]` in the configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use headwater_media::gop_cache::Limits;
use headwater_media::{replication, stream};
use headwater_node::auth::Token;
use serde::{Deserialize, Serialize};

use crate::{audio, ladder, rtmp};

/// Settings of `[origin]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OriginConfig {
    /// Where gRPC listens for edges.
    pub grpc: SocketAddr,
    /// Where other nodes reach that gRPC, `http://host:port`. Empty: the address that `grpc` is bound to, loopback if that is the
    /// unspecified address; right only when all nodes share a machine.
    pub advertise: String,
    /// How long a stream whose publisher left is kept for it to return (seconds). Viewers keep their sessions meanwhile.
    pub hold_seconds: u64,
    /// After how long without media a publisher may be replaced by a newer one of the same name (seconds).
    pub takeover_seconds: u64,
    /// Streams this origin takes (count), held ones included.
    pub streams_max: usize,
    /// Edges that get a stream from this origin itself (count); further ones get it from those. It takes more only where no edge can pass
    /// the stream on.
    pub fanout: usize,
    /// Subscriptions of edges this origin takes (count), over all streams.
    pub subscribers_max: usize,
    /// Most that a stream's GOP cache holds (bytes); a longer GOP is not cached and new edges wait for the next keyframe.
    pub gop_cache_bytes: usize,
    /// The longest GOP that is cached (seconds).
    pub gop_cache_seconds: u64,
    /// How far back an edge may resume without a gap (seconds).
    pub resume_seconds: u64,
    /// Most that the resume window of a stream holds (bytes).
    pub resume_bytes: usize,
    /// Most that is on its way to one edge without acknowledgement, per stream (bytes); past it the edge skips to a keyframe.
    pub window_bytes: usize,
    /// How long media may wait for one edge before it skips to a keyframe (milliseconds).
    pub window_ms: u64,
    /// Threads that carry stream actors (count).
    pub stream_threads: usize,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            grpc: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7070)),
            advertise: String::new(),
            hold_seconds: 30,
            takeover_seconds: 5,
            streams_max: 500,
            fanout: 32,
            subscribers_max: 20_000,
            gop_cache_bytes: 24 << 20,
            gop_cache_seconds: 20,
            resume_seconds: 10,
            resume_bytes: 16 << 20,
            window_bytes: 8 << 20,
            window_ms: 2000,
            stream_threads: 2,
        }
    }
}

impl OriginConfig {
    /// See [`Self::hold_seconds`].
    pub const fn hold(&self) -> Duration {
        Duration::from_secs(self.hold_seconds)
    }

    /// See [`Self::takeover_seconds`].
    pub const fn takeover(&self) -> Duration {
        Duration::from_secs(self.takeover_seconds)
    }

    /// The bounds of a stream's caches.
    pub const fn stream(&self) -> stream::Config {
        stream::Config {
            gop: Limits {
                bytes: self.gop_cache_bytes,
                span: Duration::from_secs(self.gop_cache_seconds),
            },
            resume: Limits {
                bytes: self.resume_bytes,
                span: Duration::from_secs(self.resume_seconds),
            },
        }
    }

    /// The bounds of one subscriber's window.
    pub const fn window(&self) -> replication::sender::Config {
        replication::sender::Config {
            bytes: self.window_bytes,
            span: Duration::from_millis(self.window_ms),
        }
    }
}

/// All settings of an origin.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `[origin]`.
    pub origin: OriginConfig,
    /// `[rtmp]`.
    pub rtmp: rtmp::Config,
    /// `[audio]`.
    pub audio: audio::Config,
    /// `[ladder]`.
    pub ladder: ladder::Config,
    /// Who presents it may publish; none: everybody.
    pub publish_token: Option<Token>,
}
