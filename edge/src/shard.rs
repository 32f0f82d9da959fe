//! Shards: one core's viewers each.
//!
//! A shard is one thread with one UDP socket; its viewers live and die on it. [`Shards`] picks one for a new
//! viewer, [`ShardHandle`] talks to it from other threads.

mod audience;
mod backlog;
pub(crate) mod connection;
pub(crate) mod core;
pub(crate) mod demand;
mod demux;
mod fanout;
pub(crate) mod feedback;
mod figures;
mod handshakes;
mod inbound;
pub(crate) mod load;
mod outbox;
mod outgoing;
mod paths;
mod peer;
mod prefetch;
mod probing;
mod run;
mod socket;
pub(crate) mod stream;
mod streams;
mod switching;
pub(crate) mod tag;
#[cfg(any(test, feature = "testkit"))]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
#[allow(
    clippy::unwrap_used,
    reason = "tests, though clippy sees that only in cfg(test)"
)]
pub(crate) mod tests;
mod threads;
mod wheel;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use headwater_media::abr::{ProbeRequest, Selection};
use headwater_media::bwe::Estimate;
use headwater_media::id::{Bitrate, StreamName};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtx::Resend;
use headwater_media::sdp::{Candidate, Negotiated};
use headwater_media::track::StreamInfo;
use headwater_media::unit::MediaKind;
use tokio::sync::{mpsc, oneshot};

use crate::latency::Timing;
use crate::registry::ReplicaHandle;
use crate::shard::connection::Claimed;
use crate::shard::demand::Need;
use crate::shard::load::{Board, Bound, Load};
use crate::shard::run::Control;
pub use crate::shard::threads::StartError;
pub(crate) use crate::shard::threads::Threads;

/// Joins and ICE restarts waiting at a shard (count), past which it is too busy for another.
const REQUESTS_WAITING_MAX: usize = 512;

/// Loads closer than this are the same to a newcomer (ratio); then the number of viewers decides.
const LOAD_STEP: f64 = 0.05;

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
    number: usize,
    candidates: Arc<[Candidate]>,
    control: mpsc::UnboundedSender<Control>,
    claimed: mpsc::Sender<Claimed>,
    viewers: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    board: Arc<Board>,
}

/// Told of each viewer that ended.
pub(crate) type Ended = Arc<dyn Fn(ViewerId, EndReason) + Send + Sync>;

/// Told of a shard that has panicked, whose viewers nobody has any more.
pub(crate) type Failed = Arc<dyn Fn(usize) + Send + Sync>;

/// What replicas tell a shard.
#[derive(Debug)]
pub(crate) enum Media {
    /// What there is so far, as an answer to an attachment or after something was lost on the way.
    Backlog {
        stream: StreamName,
        info: Arc<StreamInfo>,
        batches: Vec<Arc<PacketBatch>>,
    },
    /// The next access unit.
    Batch {
        stream: StreamName,
        batch: Arc<PacketBatch>,
        timing: Timing,
    },
    /// The stream is described anew.
    Info {
        stream: StreamName,
        info: Arc<StreamInfo>,
    },
    /// The stream is over.
    Ended { stream: StreamName },
}

/// What a viewer's actors ask of its shard.
#[derive(Debug)]
pub(crate) enum Command {
    /// Send packets again by RTX.
    Resend {
        viewer: ViewerId,
        kind: MediaKind,
        packets: Vec<Resend>,
    },
    /// Send the newest GOP again.
    Keyframe { viewer: ViewerId },
    /// What the viewer's link carries is known anew.
    Estimate {
        viewer: ViewerId,
        estimate: Estimate,
    },
    /// Send another rendition.
    Select {
        viewer: ViewerId,
        selection: Selection,
    },
    /// Probe the viewer's link.
    Probe {
        viewer: ViewerId,
        request: ProbeRequest,
    },
    /// The viewer needs these tracks.
    Need { viewer: ViewerId, need: Need },
    /// Packets are lost for good; whether that earns a keyframe the viewer's actor decides.
    KeyframeAsked { viewer: ViewerId },
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
    /// Our ICE user fragment for it: unique among the shard's viewers, and begins with the shard's [`ShardHandle::tag`].
    pub local_ufrag: String,
    /// Our ICE password for it.
    pub local_pwd: String,
    /// What offer and stream agreed on.
    pub negotiated: Negotiated,
    /// What the viewer asked for.
    pub preference: Preference,
    /// What the shard counts about it, for the API.
    pub counters: Arc<Counters>,
    /// When its request came.
    pub asked: Instant,
}

/// Which renditions a viewer will have; by default the best that its link carries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layers {
    /// This one, by its name, whatever the link carries.
    pub pinned: Option<Arc<str>>,
    /// None of more lines than this.
    pub height_max: Option<u32>,
    /// None of more columns than this.
    pub width_max: Option<u32>,
}

/// What a viewer asks for when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Preference {
    /// Which renditions it will have.
    pub layers: Layers,
    /// What its link carries, as it says itself, or as the last viewer from there found.
    pub assumed: Option<Bitrate>,
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
#[derive(Debug)]
pub struct Counters {
    /// See [`ViewerState`].
    pub state: AtomicU8,
    /// What carries its media: 0: nothing yet, or not now; 1: UDP; 2: TCP.
    pub transport: AtomicU8,
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
    /// Round-trip time as far as it is known (microseconds); 0: not at all.
    pub rtt_micros: AtomicU64,
    /// Loss by the last report (1/1000).
    pub loss_permille: AtomicU64,
    /// Receive rate by transport-wide feedback (bits per second); 0: not known.
    pub receive_rate: AtomicU64,
    /// What the link carries, as estimated (bits per second); 0: not known.
    pub estimate: AtomicU64,
    /// What may be assumed of the next link like it (bits per second); 0: nothing.
    pub carried: AtomicU64,
    /// The network that its media goes to, as `link_memory` numbers them; 0: none.
    pub network: AtomicU64,
    /// The rendition that is sent, as its track's id; [`NO_RENDITION`] before there is one, and while there is sound alone.
    pub rendition: AtomicU32,
    /// Times that another rendition was switched to (count).
    pub switches: AtomicU64,
}

/// See [`Counters::rendition`].
pub const NO_RENDITION: u32 = u32::MAX;

impl Default for Counters {
    fn default() -> Self {
        Self {
            state: AtomicU8::default(),
            transport: AtomicU8::default(),
            packets: AtomicU64::default(),
            bytes: AtomicU64::default(),
            nacks: AtomicU64::default(),
            resent: AtomicU64::default(),
            plis: AtomicU64::default(),
            rtt_micros: AtomicU64::default(),
            loss_permille: AtomicU64::default(),
            receive_rate: AtomicU64::default(),
            estimate: AtomicU64::default(),
            carried: AtomicU64::default(),
            network: AtomicU64::default(),
            rendition: AtomicU32::new(NO_RENDITION),
            switches: AtomicU64::default(),
        }
    }
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
    /// The shards have as many viewers as they may (503).
    #[error("the shard is full")]
    Full,
    /// The edge sends as much as it may (503).
    #[error("the edge sends as much as it may")]
    Egress,
    /// The shards have as much work as they can do in time (503).
    #[error("the shard is overloaded")]
    Overloaded,
    /// The stream has B-frames by now (422).
    #[error("the stream has B-frames")]
    Reordered,
    /// The stream has ended since it was opened (409).
    #[error("the stream is over")]
    StreamGone,
    /// The user fragment is taken; make another one.
    #[error("the user fragment is taken")]
    UfragTaken,
    /// The edge is stopping (503).
    #[error("the edge is stopping")]
    Stopping,
}

/// A shard has no time for another connection, or is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the shard is busy")]
pub(crate) struct Busy;

/// The viewer is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the viewer is gone")]
pub struct Gone;

/// Why ICE can't be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RestartError {
    /// See [`Gone`] (404).
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The shard is too busy to answer (503).
    #[error("the shard is overloaded")]
    Overloaded,
}

impl Shards {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.shards.len()
    }

    /// The shard that a new viewer goes to: the least loaded one that is alive. Cheap, so it is asked before anything is done for a viewer.
    ///
    /// # Errors
    /// If none takes another one, by what fills the least loaded.
    pub fn pick(&self, now: Instant) -> Result<ShardHandle, JoinError> {
        let (shard, load) = self.least_loaded(now).ok_or(JoinError::Stopping)?;
        if shard.board.admits(load) {
            return Ok(shard.clone());
        }
        // The least loaded one may be closed for a while after it was too late; another one may not.
        let other = self.alive().find(|shard| {
            let load = shard.load(now);
            shard.board.admits(load)
        });
        other.cloned().ok_or(match load.bound {
            Bound::Viewers => JoinError::Full,
            Bound::Egress => JoinError::Egress,
            Bound::Lag => JoinError::Overloaded,
        })
    }

    /// What a newcomer would meet: 0 idle, 1 full, more when overloaded.
    pub fn load(&self, now: Instant) -> f64 {
        self.least_loaded(now).map_or(1.0, |(_, load)| load.ratio)
    }

    fn least_loaded(&self, now: Instant) -> Option<(&ShardHandle, Load)> {
        let loads = self.alive().map(|shard| (shard, shard.load(now)));
        loads.min_by(|(a, a_load), (b, b_load)| {
            let step = |load: &Load| (load.ratio / LOAD_STEP).floor();
            step(a_load)
                .total_cmp(&step(b_load))
                .then_with(|| a.present().cmp(&b.present()))
        })
    }

    /// Shards that haven't ended. One that has panicked would look idle for ever.
    fn alive(&self) -> impl Iterator<Item = &ShardHandle> {
        self.shards
            .iter()
            .filter(|shard| !shard.control.is_closed())
    }

    /// SHA-256 of the DTLS certificate of this process.
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The shard of the viewer that our user fragment belongs to. Whether there is such a viewer only the shard knows.
    pub(crate) fn named_by(&self, ufrag: &str) -> Option<&ShardHandle> {
        self.shards.get(tag::shard_of(ufrag)?)
    }

    /// Viewers on all shards, connecting ones included.
    pub fn viewers(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.viewers.load(Ordering::Relaxed))
            .sum()
    }
}

impl ShardHandle {
    /// Which of the edge's shards it is, from 0.
    pub(crate) const fn number(&self) -> usize {
        self.number
    }

    /// Where viewers reach this shard (host candidates), best first.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// What our user fragments for this shard's viewers have to begin with.
    pub(crate) fn tag(&self) -> String {
        tag::tag(self.number)
    }

    /// Hands over a connection that names one of this shard's viewers; it is closed if the shard has too many to look at.
    pub(crate) fn hand_over(&self, claimed: Claimed) -> Result<(), Busy> {
        self.claimed.try_send(claimed).map_err(|_| Busy)
    }

    /// Takes a viewer in. From then on its ICE checks are answered.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub async fn join(&self, join: Join) -> Result<(), JoinError> {
        let waiting = Waiting::enter(&self.waiting).ok_or(JoinError::Overloaded)?;
        let (reply, joined) = oneshot::channel();
        let control = Control::Join {
            join: Box::new(join),
            waiting,
            reply,
        };
        self.control
            .send(control)
            .map_err(|_| JoinError::Stopping)?;
        joined.await.map_err(|_| JoinError::Stopping)?
    }

    /// Ends a viewer: BYE and close_notify leave, then everything of it is freed. Unknown viewers are ignored.
    pub fn leave(&self, viewer: ViewerId, reason: EndReason) {
        // A shard that has stopped has no viewers.
        let _ = self.control.send(Control::Leave { viewer, reason });
    }

    /// A viewer wants other renditions. Unknown viewers are ignored.
    ///
    /// # Errors
    /// [`Busy`] if too much waits at the shard.
    pub(crate) fn choose(&self, viewer: ViewerId, layers: Layers) -> Result<(), Busy> {
        let waiting = Waiting::enter(&self.waiting).ok_or(Busy)?;
        let control = Control::Choose {
            viewer,
            layers,
            waiting,
        };
        // A shard that has stopped has no viewers.
        let _ = self.control.send(control);
        Ok(())
    }

    /// Restarts a viewer's ICE: DTLS and SRTP go on, the old user fragment is ignored from now on.
    ///
    /// # Errors
    /// See [`RestartError`].
    pub async fn restart_ice(
        &self,
        viewer: ViewerId,
        credentials: Credentials,
    ) -> Result<(), RestartError> {
        let waiting = Waiting::enter(&self.waiting).ok_or(RestartError::Overloaded)?;
        let (reply, restarted) = oneshot::channel();
        let control = Control::Restart {
            viewer,
            credentials,
            waiting,
            reply,
        };
        self.control.send(control).map_err(|_| Gone)?;
        Ok(restarted.await.map_err(|_| Gone)??)
    }

    /// Viewers, those included whose joins wait (count).
    fn present(&self) -> usize {
        self.viewers.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed)
    }

    fn load(&self, now: Instant) -> Load {
        self.board.load(now, self.present())
    }
}

/// Counts a request until the shard has taken it, which may be after whoever sent it has given up: so the queue is bounded whatever happens.
#[derive(Debug)]
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    /// `None` if too many do.
    fn enter(waiting: &Arc<AtomicUsize>) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let entered = Self(Arc::clone(waiting));
        (before < REQUESTS_WAITING_MAX).then_some(entered)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
