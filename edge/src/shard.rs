//! Shards: one core's viewers each.
//!
//! A shard is one thread with one UDP socket; its viewers live and die on it. [`Shards`] picks one for a new
//! viewer, [`ShardHandle`] talks to it from other threads.

mod demux;
mod outbox;
mod socket;
mod wheel;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU64};

use headwater_media::id::StreamName;
use headwater_media::sdp::Negotiated;

use crate::registry::ReplicaHandle;

/// A viewer, unique in this process. Says nothing about its session URL, so it may be logged and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewerId(pub u64);

impl std::fmt::Display for ViewerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// All shards of an edge. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shards {
    shards: Arc<[ShardHandle]>,
    fingerprint: [u8; 32],
}

/// A link to one shard. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShardHandle {
    candidates: Arc<[SocketAddr]>,
}

/// A new viewer, as its offer was accepted.
#[derive(Debug)]
pub struct Join {
    /// The viewer.
    pub viewer: ViewerId,
    /// What it watches.
    pub stream: StreamName,
    /// Where that comes from.
    pub replica: ReplicaHandle,
    /// Our ICE user fragment for it: unique among the shard's viewers.
    pub local_ufrag: String,
    /// Our ICE password for it.
    pub local_pwd: String,
    /// What offer and stream agreed on.
    pub negotiated: Negotiated,
    /// What the shard counts about it, for the API.
    pub counters: Arc<Counters>,
}

/// ICE credentials of a restart.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Our new user fragment.
    pub local_ufrag: String,
    /// Our new password.
    pub local_pwd: String,
    /// The viewer's new user fragment.
    pub remote_ufrag: String,
    /// The viewer's new password.
    pub remote_pwd: String,
}

/// Passwords stay out of logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("local_ufrag", &self.local_ufrag)
            .field("remote_ufrag", &self.remote_ufrag)
            .finish_non_exhaustive()
    }
}

/// What a shard counts about one viewer, written by the shard alone and read by the API at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// See [`ViewerState`].
    pub state: AtomicU8,
    /// RTP packets sent, retransmissions included (count).
    pub packets: AtomicU64,
    /// RTP bytes sent, headers and tags included, without UDP and IP.
    pub bytes: AtomicU64,
    /// Packets asked for by NACK (count).
    pub nacks: AtomicU64,
    /// Packets resent by RTX (count).
    pub resent: AtomicU64,
    /// PLI and FIR received (count).
    pub plis: AtomicU64,
    /// Round-trip time by the last report (microseconds); -1: not known yet.
    pub rtt_micros: AtomicI64,
    /// Loss by the last report (1/1000).
    pub loss_permille: AtomicU64,
    /// Receive rate by transport-wide feedback (bits per second); 0: not known.
    pub receive_rate: AtomicU64,
}

/// Where a viewer stands, as [`Counters::state`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ViewerState {
    /// No authenticated STUN request came yet.
    New = 0,
    /// ICE works, DTLS is at it.
    Handshaking = 1,
    /// Media flows.
    Connected = 2,
    /// Gone.
    Ended = 3,
}

/// Why a viewer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// It asked to (DELETE).
    Left,
    /// It closed its DTLS association.
    Closed,
    /// It fell silent.
    Expired,
    /// It never connected.
    NeverConnected,
    /// Its handshake failed, or its certificate is another than it offered.
    HandshakeFailed,
    /// The stream is over.
    StreamEnded,
    /// The edge is stopping, or an operator said so.
    Kicked,
}

impl EndReason {
    /// For labels and API records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Closed => "closed",
            Self::Expired => "expired",
            Self::NeverConnected => "never_connected",
            Self::HandshakeFailed => "handshake_failed",
            Self::StreamEnded => "stream_ended",
            Self::Kicked => "kicked",
        }
    }
}

/// Why a viewer can't join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The shard has as many viewers as it may, or is too busy to answer (503).
    #[error("the shard is full")]
    Full,
    /// The user fragment is taken; make another one.
    #[error("the user fragment is taken")]
    UfragTaken,
    /// The edge is stopping (503).
    #[error("the edge is stopping")]
    Stopping,
}

/// The viewer is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the viewer is gone")]
pub struct Gone;

impl Shards {
    /// The shard that a new viewer goes to: the one with the fewest.
    pub fn pick(&self) -> ShardHandle {
        self.shards[0].clone()
    }

    /// SHA-256 of the DTLS certificate of this process.
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
}

impl ShardHandle {
    /// Where viewers reach this shard (UDP host candidates), best first.
    pub fn candidates(&self) -> &[SocketAddr] {
        &self.candidates
    }

    /// Takes a viewer in. From then on its ICE checks are answered.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(&self, _join: Join) -> Result<(), JoinError> {
        Err(JoinError::Stopping)
    }

    /// Ends a viewer: BYE and close_notify leave, then everything of it is freed. Unknown viewers are ignored.
    pub fn leave(&self, _viewer: ViewerId, _reason: EndReason) {}

    /// Restarts a viewer's ICE: DTLS and SRTP go on, the old user fragment is ignored from now on.
    ///
    /// # Errors
    /// If the viewer is gone.
    pub async fn restart_ice(
        &self,
        _viewer: ViewerId,
        _credentials: Credentials,
    ) -> Result<(), Gone> {
        Err(Gone)
    }
}
