//! WHEP sessions: which session URL is which viewer, until the viewer ends.
//!
//! HTTP workers insert and look up, shards report ends, the API reads; all under one short lock. The table holds nothing
//! that needs a clean-up of its own: a session lives exactly as long as its viewer, and the shard expires viewers that
//! never connect or fall silent. It is bounded by what the shards admit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headwater_media::id::{Bitrate, NodeId, StreamName};
use headwater_media::sdp::IceCredentials;
use headwater_node::clock::Clock;
use metrics::gauge;
use rand::RngCore;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::http::metrics::SESSIONS;
use crate::link_memory::{self, LinkMemory};
use crate::shard::{Counters, EndReason, Layers, NO_RENDITION, ShardHandle, ViewerId, ViewerState};

/// The last part of a session URL: the edge that has the session, `~`, and what nobody can guess: 128 bits of a CSPRNG in hex. It is a
/// capability, so it stays out of logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// A new one of this edge.
    pub fn random(edge: &NodeId) -> Self {
        let mut bytes = [0; 16];
        rand::rng().fill_bytes(&mut bytes);
        Self(format!("{edge}~{}", hex(&bytes)).into())
    }

    /// The edge that a session URL's last part names, if it does.
    pub(crate) fn edge(text: &str) -> Option<NodeId> {
        // A node id has no such character.
        text.split_once('~')?.0.parse().ok()
    }

    /// As it stands in the URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionId(…)")
    }
}

/// One viewer's WHEP session.
#[derive(Debug)]
pub struct Session {
    /// Its URL's last part.
    pub id: SessionId,
    /// The viewer.
    pub viewer: ViewerId,
    /// What it watches.
    pub stream: StreamName,
    /// The shard it lives on.
    pub shard: ShardHandle,
    /// What its shard counts.
    pub counters: Arc<Counters>,
    /// Where the offer came from.
    pub peer: Option<IpAddr>,
    /// When the offer came.
    pub since: Instant,
    /// Which renditions the viewer wants.
    pub layers: Mutex<Layers>,
    /// mids of the answer with their media types, the tagged one first: what a restart's answer repeats.
    pub mids: Vec<(&'static str, String)>,
    /// Cancelled when the session is over.
    pub ended: CancellationToken,
    /// Ends the stream of events that the player reads, if it does: a newer one takes its place.
    pub listening: Mutex<CancellationToken>,
    /// The running ICE session. Held across a restart, so that overlapping ones come one after the other.
    pub ice: tokio::sync::Mutex<IceSession>,
}

/// What identifies a running ICE session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IceSession {
    /// Its entity tag: strong, with its quotes (RFC 9725 section 4.3.1).
    pub etag: String,
    /// The viewer's credentials.
    pub remote: IceCredentials,
}

impl IceSession {
    /// With a new entity tag.
    pub fn new(remote: IceCredentials) -> Self {
        let mut bytes = [0; 8];
        rand::rng().fill_bytes(&mut bytes);
        Self {
            etag: format!("\"{}\"", hex(&bytes)),
            remote,
        }
    }
}

/// All sessions of an edge.
#[derive(Debug)]
pub struct Sessions {
    clock: Clock,
    table: Mutex<Table>,
    links: Mutex<LinkMemory>,
    next_viewer: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    sessions: HashMap<SessionId, Arc<Session>>,
    viewers: HashMap<ViewerId, SessionId>,
}

impl Sessions {
    /// An empty table.
    pub fn new(clock: Clock) -> Self {
        let links = Mutex::new(LinkMemory::new(clock.now()));
        Self {
            clock,
            table: Mutex::default(),
            links,
            next_viewer: AtomicU64::new(1),
        }
    }

    /// A number for the next viewer of this process.
    pub fn next_viewer(&self) -> ViewerId {
        ViewerId(self.next_viewer.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds a session.
    pub fn insert(&self, session: Arc<Session>) {
        let mut table = self.table();
        table.viewers.insert(session.viewer, session.id.clone());
        table.sessions.insert(session.id.clone(), session);
        publish(&table);
    }

    /// The session with this id, if it belongs to `stream`.
    pub fn get(&self, stream: &StreamName, id: &str) -> Option<Arc<Session>> {
        let id = SessionId(id.into());
        let table = self.table();
        let session = table.sessions.get(&id)?;
        (session.stream == *stream).then(|| Arc::clone(session))
    }

    /// Forgets a viewer's session; false if it had none (any more). Shards call this when a viewer ends, whatever ended it;
    /// HTTP calls it when the viewer asks to leave, so that a second DELETE finds nothing, and when a join fails. Why
    /// viewers end is counted by their shards.
    pub fn ended(&self, viewer: ViewerId, reason: EndReason) -> bool {
        let mut table = self.table();
        let Some(id) = table.viewers.remove(&viewer) else {
            return false;
        };
        let session = table.sessions.remove(&id);
        publish(&table);
        drop(table);
        if let Some(session) = session {
            session.ended.cancel();
            let carried = Bitrate(session.counters.carried.load(Ordering::Relaxed));
            let network = session.counters.network.load(Ordering::Relaxed);
            self.links()
                .handle_carried(self.clock.now(), network, carried);
            let reason = reason.as_str();
            debug!(stream = %session.stream, %viewer, reason, "WHEP session ended");
        }
        true
    }

    /// What the link of a viewer that asks from this address may be assumed to carry, going by those that ended. Where a proxy stands between,
    /// the address is the proxy's, which no media goes to, so nothing is assumed.
    pub(crate) fn assumed_link(&self, peer: IpAddr) -> Option<Bitrate> {
        self.links()
            .assumed(self.clock.now(), link_memory::network_of(peer))
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        self.table().sessions.values().cloned().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table().sessions.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Viewers per stream.
    pub fn by_stream(&self) -> HashMap<StreamName, usize> {
        let mut viewers = HashMap::new();
        for session in self.table().sessions.values() {
            *viewers.entry(session.stream.clone()).or_default() += 1;
        }
        viewers
    }

    /// The streams that are watched, those with the most viewers first.
    pub fn streams(&self) -> Vec<StreamName> {
        let mut streams: Vec<_> = self.by_stream().into_iter().collect();
        streams.sort_by(|(a_name, a), (b_name, b)| b.cmp(a).then_with(|| a_name.cmp(b_name)));
        streams.into_iter().map(|(name, _)| name).collect()
    }

    /// Ends a viewer as an operator wants it; false if there is none of that number (any more).
    pub fn kick(&self, viewer: ViewerId) -> bool {
        let table = self.table();
        let id = table.viewers.get(&viewer);
        let session = id.and_then(|id| table.sessions.get(id)).cloned();
        drop(table);
        let Some(session) = session else {
            return false;
        };
        let was_there = self.ended(viewer, EndReason::Kicked);
        session.shard.leave(viewer, EndReason::Kicked);
        was_there
    }

    /// Forgets the sessions of a shard that is lost.
    pub(crate) fn shard_lost(&self, number: usize) {
        let mut sessions = self.all();
        sessions.retain(|session| session.shard.number() == number);
        for session in sessions {
            self.ended(session.viewer, EndReason::Kicked);
        }
    }

    /// All sessions as API records, by viewer number; `rendition` names a stream's track. Nothing in them opens a session URL.
    pub fn records(
        &self,
        rendition: impl Fn(&StreamName, u32) -> Option<Arc<str>>,
    ) -> Vec<serde_json::Value> {
        let now = self.clock.now();
        let mut sessions = self.all();
        sessions.sort_by_key(|session| session.viewer);
        let record = |session: &Arc<Session>| session.record(now, &rendition);
        sessions.iter().map(record).collect()
    }

    fn links(&self) -> MutexGuard<'_, LinkMemory> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change leaves the two maps consistent, so a panic of another holder has broken nothing.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn record(
        &self,
        now: Instant,
        rendition: impl Fn(&StreamName, u32) -> Option<Arc<str>>,
    ) -> serde_json::Value {
        let counters = &self.counters;
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let rtt = Some(read(&counters.rtt_micros)).filter(|micros| *micros > 0);
        let age = now.saturating_duration_since(self.since);
        let track = counters.rendition.load(Ordering::Relaxed);
        let track = Some(track).filter(|track| *track != NO_RENDITION);
        json!({
            "id": self.viewer.0,
            "stream": self.stream.as_str(),
            "peer": self.peer.map(|ip| ip.to_string()),
            "age_seconds": age.as_secs(),
            "state": state(counters.state.load(Ordering::Relaxed)),
            "transport": transport(counters.transport.load(Ordering::Relaxed)),
            "packets": read(&counters.packets),
            "bytes": read(&counters.bytes),
            "nacks": read(&counters.nacks),
            "resent": read(&counters.resent),
            "plis": read(&counters.plis),
            "rtt_ms": rtt.map(|micros| micros / 1000),
            "loss_permille": read(&counters.loss_permille),
            "receive_bits_per_second": read(&counters.receive_rate),
            "estimate_bits_per_second": read(&counters.estimate),
            "track": track,
            "rendition": track.and_then(|track| rendition(&self.stream, track)).as_deref(),
            "switches": read(&counters.switches),
        })
    }
}

const fn state(state: u8) -> &'static str {
    const NEW: u8 = ViewerState::New as u8;
    const HANDSHAKING: u8 = ViewerState::Handshaking as u8;
    const CONNECTED: u8 = ViewerState::Connected as u8;
    match state {
        NEW => "new",
        HANDSHAKING => "handshaking",
        CONNECTED => "connected",
        _ => "ended",
    }
}

const fn transport(transport: u8) -> Option<&'static str> {
    match transport {
        1 => Some("udp"),
        2 => Some("tcp"),
        _ => None,
    }
}

fn publish(table: &Table) {
    let sessions = u32::try_from(table.sessions.len()).unwrap_or(u32::MAX);
    gauge!(SESSIONS).set(f64::from(sessions));
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
