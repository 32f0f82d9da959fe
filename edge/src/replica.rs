//! Replicas: one live stream as this edge has it.
//!
//! What a subscriber tells a replica is [`Feed`]; what the replica wants of its upstream is [`Want`].
//!
//! [`ReplicaActor`] owns the subscription, the packetizers and a packet ring per track. It packetizes each access unit once and sends the batch
//! once to each shard that has viewers. Its parent is the [`Registry`], whose table it leaves when nobody has held it for the lingering time,
//! or its stream is over. It lives on a role arbiter. When its mailbox is full, the subscriber skips a track to its next keyframe; when a
//! shard's queue is full, that shard gets the newest GOP anew once there is room.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler};
use headwater_media::id::{StreamName, TrackId};
use headwater_media::replication::Want;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::time::MediaTime;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_media::unit::{AccessUnit, MediaKind};
use headwater_node::Node;
use headwater_node::actor::Sender;
use metrics::counter;
use tokio::sync::{mpsc, watch};

use crate::continuation::Continuation;
use crate::latency::{Arrival, Timing};
use crate::metrics::{LATE_SOUND, MAILBOX_FULL, SKIPPED};
use crate::registry::{Options, Registry, Release};
use crate::relay::Relay;
use crate::shard::Media;
use crate::shard::demand::Need;
use crate::subscriber;

mod messages;
mod packets;
mod punctual;

pub use messages::{Feed, UpstreamState};
pub(crate) use messages::{Request, State};
use packets::Packets;
#[cfg(any(test, feature = "testkit"))]
pub(crate) use packets::RTP_PAYLOAD_BYTES;

/// Messages waiting (count): over ten seconds of a picture and an audio track.
const MAILBOX: usize = 1024;

/// How often a replica looks at the time.
const TICK: Duration = Duration::from_millis(250);

/// A replica of a stream that isn't there goes sooner than one that was watched: long enough for a player's next try, and at once when names
/// that somebody makes up would fill the table.
const NOT_FOUND_LINGER: Duration = Duration::from_secs(2);

/// Pictures that come with B-frames now are made anew without them in about a second, if the origin does that. Until then viewers see the last one.
const REPAIRED_WITHIN: Duration = Duration::from_secs(6);

/// See the module.
pub(crate) struct ReplicaActor {
    name: StreamName,
    node: Node,
    options: Options,
    registry: Registry,
    state: watch::Sender<State>,
    /// Latest value wins. Tracks are sorted, none of them twice.
    want: watch::Sender<Want>,
    subscription: Option<subscriber::Handle>,
    /// What other edges get of it, if this one passes streams on.
    relay: Option<Arc<Relay>>,
    tracks: HashMap<TrackId, Packets>,
    timeline: Continuation,
    shards: HashMap<usize, Link>,
    idle_since: Option<Instant>,
    /// Nobody has watched it for the lingering time, and it stays for those alone whom it feeds.
    feeding_only: bool,
    /// Since when no upstream has the stream.
    missing_since: Option<Instant>,
    over: bool,
    /// Since when all pictures have B-frames.
    unshowable_since: Option<Instant>,
}

/// Whether tracks may be taken off the list.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grow {
    Only,
    OrShrink,
}

/// A shard that has viewers.
struct Link {
    media: mpsc::Sender<Media>,
    /// Its queue was full, so it lacks something: it gets a backlog once there is room.
    stale: bool,
    /// It must hear that the stream ended before anything else: packet indices start anew after that.
    ended: bool,
    /// What its viewers need; `None`: it hasn't said yet.
    need: Option<Need>,
}

impl ReplicaActor {
    pub(crate) fn new(
        name: StreamName,
        node: Node,
        options: Options,
        registry: Registry,
        state: watch::Sender<State>,
        relay: Option<Arc<Relay>>,
    ) -> Self {
        // Pictures and Opus are what WebRTC needs; ids are those that every origin gives. Known before the first info, so that the GOP
        // cache is on its way while the stream is still being described.
        let want = watch::Sender::new(Want {
            tracks: vec![TrackId::SOURCE_VIDEO, TrackId::OPUS],
            adaptive: false,
        });
        Self {
            name,
            node,
            options,
            registry,
            state,
            want,
            subscription: None,
            relay,
            tracks: HashMap::new(),
            timeline: Continuation::default(),
            shards: HashMap::new(),
            idle_since: None,
            feeding_only: false,
            missing_since: None,
            over: false,
            unshowable_since: None,
        }
    }

    fn handle_info(&mut self, info: &Arc<StreamInfo>) {
        self.over = false;
        self.missing_since = None;
        let unshowable = info.has_only_b_frames();
        if !unshowable {
            self.unshowable_since = None;
        } else if self.unshowable_since.is_none() {
            self.unshowable_since = Some(self.node.clock.now());
        }
        self.state.send_modify(|state| {
            state.info = Some(Arc::clone(info));
            state.upstream = Some(UpstreamState::Connected);
        });
        self.update_want(Grow::Only);
        let (stream, info) = (self.name.clone(), Arc::clone(info));
        self.broadcast(|| Media::Info {
            stream: stream.clone(),
            info: Arc::clone(&info),
        });
    }

    /// What viewers need now: the sound, and the pictures that their shards say.
    fn needed(&self) -> Want {
        if self.feeding_only {
            return Want::default();
        }
        let info = self.state.borrow().info.clone();
        let opus = info.as_ref().and_then(|info| {
            let mut tracks = info.tracks.iter();
            let opus = tracks.find(|t| matches!(*t.configuration, Configuration::Opus(_)))?;
            Some(opus.id)
        });
        let mut tracks = vec![opus.unwrap_or(TrackId::OPUS)];
        let mut adaptive = false;
        let needs: Vec<&Need> = self
            .shards
            .values()
            .filter_map(|link| link.need.as_ref())
            .collect();
        for need in &needs {
            tracks.extend(&need.tracks);
            adaptive |= need.adaptive;
        }
        if needs.is_empty() {
            // Whoever opened it is about to join.
            adaptive = self.idle_since.is_none();
            if info.is_none_or(|info| !info.has_only_b_frames()) {
                tracks.push(TrackId::SOURCE_VIDEO);
            }
        }
        tracks.sort_unstable();
        tracks.dedup();
        Want { tracks, adaptive }
    }

    /// Tells the upstream, if it is news.
    fn update_want(&self, grow: Grow) {
        let mut needed = self.needed();
        self.want.send_if_modified(|want| {
            if grow == Grow::Only {
                needed.tracks.extend(&want.tracks);
                needed.tracks.sort_unstable();
                needed.tracks.dedup();
                needed.adaptive |= want.adaptive;
            }
            let changed = *want != needed;
            *want = std::mem::take(&mut needed);
            changed
        });
    }

    fn handle_unit(&mut self, unit: &Arc<AccessUnit>, came: Option<Instant>) {
        let info = self.state.borrow().info.clone();
        let Some(track) = info.as_ref().and_then(|info| info.track(unit.track)) else {
            return;
        };
        let packets = match self.tracks.entry(unit.track) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let Some(packets) = Packets::new(&track.configuration, self.options.ring) else {
                    return;
                };
                entry.insert(packets)
            }
        };
        let video = track.configuration.kind() == MediaKind::Video;
        if video && unit.configuration_id != track.configuration_id {
            // What was missed while the publisher changed it can't be decoded with what holds now.
            packets.waiting = true;
            return;
        }
        if !packets.takes(unit) {
            return;
        }
        let clock = &self.node.clock;
        let now = clock.now();
        let arrival =
            came.filter(|came| video && packets.live.handle_unit(*came, unit.ingest_time));
        let arrival = arrival.and_then(|came| Arrival::new(came, clock.wall_at(came), unit));
        let shift = self.timeline.shift(now, unit);
        let shifted;
        let unit = if shift == MediaTime::ZERO {
            &**unit
        } else {
            shifted = AccessUnit {
                dts: unit.dts + shift,
                pts: unit.pts + shift,
                ..AccessUnit::clone(unit)
            };
            &shifted
        };
        if !video && !packets.punctual.takes(now, unit) {
            counter!(LATE_SOUND).increment(1);
            return;
        }
        let batch = packets.packetize(now, unit, &track.configuration);
        let Some(batch) = batch else {
            return;
        };
        let stream = self.name.clone();
        self.broadcast(|| Media::Batch {
            stream: stream.clone(),
            batch: Arc::clone(&batch),
            timing: Timing::new(now, arrival),
        });
    }

    /// Sends something to every shard; a backlog instead to those that lack something.
    fn broadcast(&mut self, media: impl Fn() -> Media) {
        let mut links = std::mem::take(&mut self.shards);
        links.retain(|_, link| self.send(link, &media));
        self.shards = links;
    }

    /// Sends something to one shard. False: the shard is gone.
    fn send(&self, link: &mut Link, media: &impl Fn() -> Media) -> bool {
        use mpsc::error::TrySendError::{Closed, Full};
        if link.ended {
            match link.media.try_send(ended(&self.name)) {
                Ok(()) => link.ended = false,
                Err(Full(_)) => return true,
                Err(Closed(_)) => return false,
            }
        }
        let message = if link.stale {
            self.backlog()
        } else {
            Some(media())
        };
        let Some(message) = message else {
            return true;
        };
        match link.media.try_send(message) {
            Ok(()) => link.stale = false,
            Err(Full(_)) => {
                if !link.stale {
                    counter!(SKIPPED, "place" => "shard").increment(1);
                }
                counter!(MAILBOX_FULL, "link" => "shard").increment(1);
                link.stale = true;
            }
            Err(Closed(_)) => return false,
        }
        true
    }

    /// What a shard needs to begin with: pictures from the newest keyframe on, and the newest sound.
    fn backlog(&self) -> Option<Media> {
        let info = self.state.borrow().info.clone()?;
        let mut batches: Vec<Arc<PacketBatch>> = Vec::new();
        for packets in self.tracks.values() {
            batches.extend(packets.newest());
        }
        Some(Media::Backlog {
            stream: self.name.clone(),
            info,
            batches,
        })
    }

    fn handle_upstream(&mut self, upstream: UpstreamState) {
        let now = self.node.clock.now();
        tracing::debug!(stream = %self.name, ?upstream, "upstream");
        self.state
            .send_modify(|state| state.upstream = Some(upstream));
        match upstream {
            UpstreamState::Connected => self.missing_since = None,
            // Whoever waits is told after a while, whether the upstream is gone or says that the stream is.
            UpstreamState::Lost | UpstreamState::NotFound => {
                self.missing_since.get_or_insert(now);
            }
            UpstreamState::Ended => {
                self.missing_since.get_or_insert(now);
                self.end_viewers();
            }
        }
    }

    /// The stream is over for its viewers. Should it come back, they join anew.
    fn end_viewers(&mut self) {
        self.over = true;
        self.state.send_modify(|state| state.info = None);
        self.tracks.clear();
        self.timeline = Continuation::default();
        self.tell_end();
    }

    /// Ends the stream for the viewers that are there.
    fn tell_end(&mut self) {
        for link in self.shards.values_mut() {
            // A full queue is tried again with each tick.
            link.ended = link.media.try_send(ended(&self.name)).is_err();
            link.stale = true;
        }
    }

    fn handle_tick(&mut self, ctx: &mut Context<Self>) {
        let now = self.node.clock.now();
        // What nobody has needed for a moment; a viewer that goes down and up again shall not make it come and go.
        self.update_want(Grow::OrShrink);
        let unshowable = self
            .unshowable_since
            .map(|since| now.saturating_duration_since(since));
        if unshowable.is_some_and(|since| since >= REPAIRED_WITHIN) && !self.shards.is_empty() {
            tracing::warn!(stream = %self.name, "all its pictures have B-frames now: its WebRTC viewers are sent away");
            // Their players join anew and are told the reason.
            self.unshowable_since = Some(now);
            self.tell_end();
        }
        let missing = self
            .missing_since
            .map(|since| now.saturating_duration_since(since));
        let lost = missing.is_some_and(|missing| missing >= self.options.lost_after);
        // Shards whose queue was full are told again.
        let untold = self.over && self.shards.values().any(|link| link.ended);
        if untold || (lost && !self.over) {
            self.end_viewers();
        }
        let known = missing.is_none() && self.state.borrow().info.is_some();
        let linger = if known {
            self.options.linger
        } else if self.registry.crowded() {
            Duration::ZERO
        } else {
            NOT_FOUND_LINGER.min(self.options.linger)
        };
        let idle = self
            .idle_since
            .is_some_and(|since| now.saturating_duration_since(since) >= linger);
        if self.node.shutdown.is_cancelled() || idle {
            match self.registry.release(&self.name) {
                Release::Free => ctx.stop(),
                // Who watches it again will say so when it is over.
                Release::Watched if idle => self.wake(),
                Release::Feeding if idle => self.feeding_only = true,
                Release::Watched | Release::Feeding => {}
            }
        }
    }
}

impl ReplicaActor {
    /// Somebody watches here again, where the stream may only have been passed on.
    fn wake(&mut self) {
        self.idle_since = None;
        if std::mem::take(&mut self.feeding_only) {
            for packets in self.tracks.values_mut() {
                packets.begin_anew(self.options.ring);
            }
            self.update_want(Grow::Only);
        }
    }
}

fn ended(stream: &StreamName) -> Media {
    Media::Ended {
        stream: stream.clone(),
    }
}

impl Actor for ReplicaActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        let feed = Sender::new(&ctx.address());
        let want = self.want.subscribe();
        self.subscription = Some(subscriber::subscribe(
            &self.node,
            self.name.clone(),
            &want,
            feed,
            self.options.subscription.clone(),
            self.relay.take(),
        ));
        ctx.run_interval(TICK, |actor, ctx| actor.handle_tick(ctx));
        tracing::info!(stream = %self.name, "replica started");
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        tracing::info!(stream = %self.name, "replica ended");
    }
}

impl Handler<Feed> for ReplicaActor {
    type Result = ();

    fn handle(&mut self, message: Feed, _: &mut Context<Self>) {
        match message {
            Feed::Info(info) => self.handle_info(&info),
            Feed::Unit { unit, came } => self.handle_unit(&unit, came),
            Feed::Gap { track, lost } => {
                tracing::debug!(stream = %self.name, %track, lost, "gap");
                counter!(SKIPPED, "place" => "replica").increment(1);
                if let Some(packets) = self.tracks.get_mut(&track) {
                    packets.waiting = true;
                }
            }
            Feed::Upstream(upstream) => self.handle_upstream(upstream),
        }
    }
}

impl Handler<Request> for ReplicaActor {
    type Result = ();

    fn handle(&mut self, message: Request, _: &mut Context<Self>) {
        match message {
            Request::Attach { shard, media } => {
                self.wake();
                let mut link = Link {
                    media,
                    stale: true,
                    ended: false,
                    need: None,
                };
                let stream = self.name.clone();
                if self.over {
                    let ended = || Media::Ended {
                        stream: stream.clone(),
                    };
                    link.stale = link.media.try_send(ended()).is_err();
                    self.shards.insert(shard, link);
                } else if let Some(backlog) = self.backlog() {
                    link.stale = link.media.try_send(backlog).is_err();
                    self.shards.insert(shard, link);
                } else {
                    self.shards.insert(shard, link);
                }
            }
            Request::Detach { shard } => {
                self.shards.remove(&shard);
            }
            Request::Demand { shard, need } => {
                if let Some(link) = self.shards.get_mut(&shard) {
                    link.need = Some(need);
                    self.update_want(Grow::Only);
                }
            }
            Request::Idle => self.idle_since = Some(self.node.clock.now()),
        }
    }
}
