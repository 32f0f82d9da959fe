//! Which streams this edge replicates: one replica per name, however many ask.
//!
//! HTTP workers open streams and shards attach to them, all through [`ReplicaHandle`]s that count the interest in a replica. The table's
//! lock is held for moments only, and it is what a replica takes to end itself, so that nobody gets a handle to one that is ending.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix::Actor;
use actix_rt::ArbiterHandle;
use headwater_media::id::StreamName;
use headwater_media::rtp::ring::Limits;
use headwater_media::stream;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_node::Node;
use headwater_node::actor::Sender;
use headwater_node::replication::Feeding;
use headwater_node::trace::Context;
use metrics::gauge;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::latency::Clocks;
use crate::metrics::REPLICAS;
use crate::relay::Relay;
use crate::replica::{ReplicaActor, Request, State, UpstreamState};
use crate::shard::Media;
use crate::shard::demand::Need;
use crate::subscriber;

/// Opens streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

/// A stream that is live, or held for its publisher.
#[derive(Debug, Clone)]
pub struct OpenStream {
    /// What it is now.
    pub info: Arc<StreamInfo>,
    /// Keeps the replica from being dropped; goes into [`crate::shard::Join`].
    pub handle: ReplicaHandle,
}

/// A hold on a replica: while one exists, and a lingering time after the last, the replica stays.
#[derive(Debug)]
pub struct ReplicaHandle {
    entry: Arc<Entry>,
}

/// Why a stream can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nobody publishes it now; try again later (409).
    #[error("nobody publishes this stream now")]
    NotLive,
    /// It can't be told, or no upstream answers; try again later (503).
    #[error("no upstream answers")]
    Unavailable,
    /// This edge replicates as many streams as it may (503).
    #[error("this edge has as many streams as it may")]
    TooMany,
}

/// What replicas need of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) streams_max: usize,
    pub(crate) linger: Duration,
    pub(crate) open_timeout: Duration,
    pub(crate) lost_after: Duration,
    pub(crate) ring: Limits,
    /// How they take part in the tree.
    pub(crate) subscription: subscriber::Options,
    /// What is kept for those whom they feed.
    pub(crate) store: stream::Config,
    /// Whom they feed; none: nobody.
    pub(crate) feeding: Option<Feeding>,
}

impl Options {
    /// For an edge that passes streams on at the URL of `feeding`, if there is one, and shows its upstreams' clocks in `clocks`.
    pub(crate) fn new(config: &Config, feeding: Option<(Feeding, String)>, clocks: Clocks) -> Self {
        let (feeding, grpc_url) = feeding.unzip();
        Self {
            streams_max: config.streams_max,
            linger: Duration::from_secs(config.linger_seconds),
            open_timeout: Duration::from_millis(config.open_timeout_ms),
            lost_after: Duration::from_secs(config.stream_lost_seconds),
            ring: Limits {
                bytes: config.ring_bytes,
                age: Duration::from_secs(config.ring_seconds),
            },
            subscription: subscriber::Options {
                upstreams: config.upstreams,
                depth_max: config.depth_max,
                grpc_url: grpc_url.unwrap_or_default(),
                clocks,
                trace: None,
            },
            store: config.store(),
            feeding,
        }
    }
}

#[derive(Debug)]
struct Inner {
    node: Node,
    options: Options,
    arbiter: ArbiterHandle,
    entries: Mutex<HashMap<StreamName, Arc<Entry>>>,
}

/// A replica as the table has it.
#[derive(Debug)]
struct Entry {
    holds: AtomicUsize,
    /// Those whom the replica feeds, who keep it too, but want nothing of it that they don't say.
    children: AtomicUsize,
    relay: Option<Arc<Relay>>,
    state: watch::Receiver<State>,
    requests: Sender<Request>,
}

impl Registry {
    /// An empty registry whose replicas live on `arbiter`.
    pub(crate) fn new(node: Node, options: Options, arbiter: ArbiterHandle) -> Self {
        Self {
            inner: Arc::new(Inner {
                node,
                options,
                arbiter,
                entries: Mutex::default(),
            }),
        }
    }

    /// Opens a stream, subscribing to it if nobody has yet, which is then part of `trace`. Waits a bounded time.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(
        &self,
        name: &StreamName,
        trace: Option<Context>,
    ) -> Result<OpenStream, OpenError> {
        let handle = self.hold(name, trace)?;
        let mut state = handle.entry.state.clone();
        let known = tokio::time::timeout(self.inner.options.open_timeout, async {
            loop {
                if let Some(verdict) = verdict(&state.borrow_and_update()) {
                    return verdict;
                }
                if state.changed().await.is_err() {
                    // It ended between the table and here.
                    return Err(OpenError::Unavailable);
                }
            }
        });
        let known = known.await.unwrap_or_else(|_| {
            let state = state.borrow();
            // Those who could tell that nobody publishes it would have done so by now.
            state.info.clone().ok_or(OpenError::Unavailable)
        });
        known.map(|info| OpenStream { info, handle })
    }

    /// What the replicated streams are now.
    pub fn streams(&self) -> Vec<Arc<StreamInfo>> {
        let entries = self.inner.entries();
        let infos = entries
            .values()
            .map(|entry| entry.state.borrow().info.clone());
        infos.flatten().collect()
    }

    /// What a replicated stream is, as it changes. Keeps nothing.
    pub(crate) fn watch(&self, name: &StreamName) -> Option<watch::Receiver<State>> {
        let entries = self.inner.entries();
        entries.get(name).map(|entry| entry.state.clone())
    }

    fn hold(&self, name: &StreamName, trace: Option<Context>) -> Result<ReplicaHandle, OpenError> {
        let inner = &self.inner;
        let mut entries = inner.entries();
        if let Some(entry) = entries.get(name).filter(|entry| entry.requests.connected()) {
            return Ok(ReplicaHandle::new(entry));
        }
        let directory = &inner.node.directory;
        if directory.synced()
            && directory.fixed_origins().is_empty()
            && directory.upstreams(name).is_empty()
        {
            // Nobody has it, so whoever asks for made-up names doesn't fill the table.
            return Err(OpenError::NotLive);
        }
        // One that ended without leaving the table has panicked; a new one replaces it.
        entries.remove(name);
        if entries.len() >= inner.options.streams_max {
            return Err(OpenError::TooMany);
        }
        let (state_sender, state) = watch::channel(State::default());
        let mut options = inner.options.clone();
        options.subscription.trace = trace;
        let relay = options.feeding.as_ref();
        let relay = relay.map(|feeding| Arc::new(Relay::new(options.store, feeding.of(name))));
        let (registry, stream, node, passed) = (
            self.clone(),
            name.clone(),
            inner.node.clone(),
            relay.clone(),
        );
        let address = ReplicaActor::start_in_arbiter(&inner.arbiter, move |_| {
            ReplicaActor::new(stream, node, options, registry, state_sender, passed)
        });
        let entry = Arc::new(Entry {
            holds: AtomicUsize::new(0),
            children: AtomicUsize::new(0),
            relay,
            state,
            requests: Sender::new(&address),
        });
        let handle = ReplicaHandle::new(&entry);
        entries.insert(name.clone(), entry);
        show(entries.len());
        Ok(handle)
    }

    /// A stream that is here, for one whom this edge is to feed with it.
    pub(crate) fn relay(&self, name: &StreamName) -> Option<(ChildHold, Arc<Relay>)> {
        let entries = self.inner.entries();
        let entry = entries
            .get(name)
            .filter(|entry| entry.requests.connected())?;
        let relay = Arc::clone(entry.relay.as_ref()?);
        Some((ChildHold::new(entry), relay))
    }

    /// Half of the streams that there may be are there: what isn't live makes room at once.
    pub(crate) fn crowded(&self) -> bool {
        2 * self.inner.entries().len() >= self.inner.options.streams_max
    }

    /// A replica wants to end: takes it out of the table unless somebody holds it.
    pub(crate) fn release(&self, name: &StreamName) -> Release {
        let mut entries = self.inner.entries();
        if let Some(entry) = entries.get(name) {
            if entry.holds.load(Ordering::Acquire) > 0 {
                return Release::Watched;
            }
            if entry.children.load(Ordering::Acquire) > 0 {
                return Release::Feeding;
            }
        }
        entries.remove(name);
        show(entries.len());
        Release::Free
    }
}

/// Whether a replica may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// It may.
    Free,
    /// Somebody watches it again.
    Watched,
    /// Nobody watches it here, but it feeds other edges.
    Feeding,
}

fn show(replicas: usize) {
    gauge!(REPLICAS).set(f64::from(u32::try_from(replicas).unwrap_or(u32::MAX)));
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<StreamName, Arc<Entry>>> {
        // Every change is one map operation, so a panic of another holder has broken nothing.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be said of a stream in this state; `None`: wait.
fn verdict(state: &State) -> Option<Result<Arc<StreamInfo>, OpenError>> {
    match (&state.info, state.upstream) {
        (_, Some(UpstreamState::NotFound | UpstreamState::Ended)) => Some(Err(OpenError::NotLive)),
        // Held for its publisher, with what it was; or just begun, and its tracks are on their way.
        (Some(info), _)
            if !info.publishing
                || (info.settled
                    && !info.tracks.is_empty()
                    && !awaits_opus(info)
                    && !info.has_only_b_frames()) =>
        {
            Some(Ok(Arc::clone(info)))
        }
        (Some(_) | None, _) => None,
    }
}

/// Whether the sound is announced and its Opus is still being made, which takes a few AAC frames. Who joined now would stay
/// without sound for as long as they watch, since WHEP negotiates once.
fn awaits_opus(info: &StreamInfo) -> bool {
    let has = |wanted: fn(&Configuration) -> bool| {
        info.tracks.iter().any(|track| wanted(&track.configuration))
    };
    info.audio_problem.is_none()
        && has(|configuration| matches!(configuration, Configuration::Aac(_)))
        && !has(|configuration| matches!(configuration, Configuration::Opus(_)))
}

impl ReplicaHandle {
    fn new(entry: &Arc<Entry>) -> Self {
        entry.holds.fetch_add(1, Ordering::AcqRel);
        Self {
            entry: Arc::clone(entry),
        }
    }

    /// What the stream is now; `None` when that isn't known any more.
    pub(crate) fn info(&self) -> Option<Arc<StreamInfo>> {
        self.entry.state.borrow().info.clone()
    }

    /// Asks for packets, from the newest GOP on.
    pub(crate) fn attach(&self, shard: usize, media: mpsc::Sender<Media>) {
        self.entry.requests.post(Request::Attach { shard, media });
    }

    /// A shard's viewers need these pictures from now on.
    pub(crate) fn demand(&self, shard: usize, need: Need) {
        self.entry.requests.post(Request::Demand { shard, need });
    }

    /// Ends what [`Self::attach`] began.
    pub(crate) fn detach(&self, shard: usize) {
        self.entry.requests.post(Request::Detach { shard });
    }
}

impl Clone for ReplicaHandle {
    fn clone(&self) -> Self {
        Self::new(&self.entry)
    }
}

impl Drop for ReplicaHandle {
    fn drop(&mut self) {
        if self.entry.holds.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.entry.requests.post(Request::Idle);
        }
    }
}

/// A hold on a replica of one whom it feeds.
#[derive(Debug)]
pub(crate) struct ChildHold {
    entry: Arc<Entry>,
}

impl ChildHold {
    fn new(entry: &Arc<Entry>) -> Self {
        entry.children.fetch_add(1, Ordering::AcqRel);
        Self {
            entry: Arc::clone(entry),
        }
    }
}

impl Drop for ChildHold {
    fn drop(&mut self) {
        self.entry.children.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(any(test, feature = "testkit"))]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
#[allow(
    clippy::unwrap_used,
    reason = "tests, though clippy sees that only in cfg(test)"
)]
pub(crate) mod tests {
    use actix::{Context, Handler};
    use headwater_media::testkit;

    use super::*;

    /// A replica that nobody runs: it takes requests and does nothing.
    struct Nobody;

    impl Actor for Nobody {
        type Context = Context<Self>;
    }

    impl Handler<Request> for Nobody {
        type Result = ();

        fn handle(&mut self, _: Request, _: &mut Context<Self>) {}
    }

    /// A handle to a stream that is described so, for tests of what holds one. Needs an actix arbiter.
    pub(crate) fn handle(info: &Arc<StreamInfo>) -> ReplicaHandle {
        let (_, state) = watch::channel(State {
            info: Some(Arc::clone(info)),
            upstream: Some(UpstreamState::Connected),
        });
        ReplicaHandle::new(&Arc::new(Entry {
            holds: AtomicUsize::new(0),
            children: AtomicUsize::new(0),
            relay: None,
            state,
            requests: Sender::new(&Nobody.start()),
        }))
    }

    #[test]
    fn a_stream_opens_when_it_can_be_shown_or_is_held() {
        let describe = |publishing, settled, tracks: usize| {
            Some(Arc::new(StreamInfo {
                publishing,
                settled,
                ..testkit::stream_info(1, vec![testkit::opus_track(); tracks])
            }))
        };
        let info = |publishing, tracks| describe(publishing, true, tracks);
        use UpstreamState::{Connected, Ended, Lost, NotFound};
        for (info, upstream, expected) in [
            (None, None, None),
            (None, Some(Connected), None),
            (None, Some(Lost), None),
            (None, Some(NotFound), Some(false)),
            (None, Some(Ended), Some(false)),
            (info(true, 0), Some(Connected), None),
            // Its picture, say, is still to be announced.
            (describe(true, false, 1), Some(Connected), None),
            (info(true, 1), Some(Connected), Some(true)),
            (info(false, 0), Some(Connected), Some(true)),
            // Viewers of a stream whose origin is away for a moment may be joined by others.
            (info(true, 1), Some(Lost), Some(true)),
            (info(true, 1), Some(NotFound), Some(false)),
        ] {
            let state = State { info, upstream };
            assert_eq!(verdict(&state).map(|v| v.is_ok()), expected, "{state:?}");
        }
    }
}
