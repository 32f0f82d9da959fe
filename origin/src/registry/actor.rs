//! The actor: the entries, and what becomes of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, Addr, ArbiterHandle, AsyncContext, Context, Handler, MessageResult,
    ResponseActFuture, WrapFuture,
};
use headwater_media::id::{Epoch, StreamName};
use headwater_media::time::WallTime;
use headwater_node::Node;
use headwater_node::actor::Sender;
use headwater_node::directory::EPOCHS_PER_CLAIM;
use headwater_node::replication::EndReason;
use metrics::gauge;
use tracing::{debug, info, warn};

use super::{
    Drain, Find, HoldExpired, Kick, List, Occupied, Publication, Publish, PublishError,
    PublishRequest, Revoked, StopAll,
};
use crate::config::OriginConfig;
use crate::contribution::Contributors;
use crate::describe::Publisher;
use crate::ownership::{self, Denied, acquire::acquire};
use crate::publication::{Links, Slot};
use crate::stream::{Begin, Stop, StreamActor};
use crate::{audio, ladder, metrics as names};

/// How often ownership is compared with the directory's copy.
pub(super) const OWNERSHIP_INTERVAL: Duration = Duration::from_secs(1);

/// See the parent module.
pub(super) struct StreamRegistry {
    pub(super) config: OriginConfig,
    audio: audio::Config,
    ladder: ladder::Shared,
    grpc_url: String,
    pub(super) node: Node,
    arbiters: Vec<ArbiterHandle>,
    next_arbiter: usize,
    pub(super) entries: HashMap<StreamName, Entry>,
    pub(super) next_contributor: u64,
    stopping: bool,
}

#[derive(Default)]
pub(super) struct Entry {
    /// A publisher waits for its claim.
    pub(super) claiming: bool,
    /// None until the first claim succeeded.
    pub(super) live: Option<Live>,
    /// They may come first, and stay when the stream ends.
    pub(super) contributors: Contributors,
}

pub(super) struct Live {
    /// The epoch of the claim it lives by.
    claim: Epoch,
    /// Its publisher's: the claim's, or one above it that belongs to the claim.
    epoch: Epoch,
    pub(super) actor: Addr<StreamActor>,
    publisher: Arc<Slot>,
    /// The hold time ended while a publisher was waiting for its claim.
    hold_expired: bool,
}

impl Entry {
    /// See [`ownership::occupied`].
    fn occupied(&self, now: WallTime, takeover: Duration) -> bool {
        let present = self.live.as_ref().filter(|live| !live.publisher.left());
        let silent = present.map(|live| live.publisher.silent_for(now));
        ownership::occupied(self.claiming, silent, takeover)
    }
}

impl StreamRegistry {
    pub(super) fn new(
        config: OriginConfig,
        audio: audio::Config,
        ladder: ladder::Shared,
        grpc_url: String,
        node: Node,
        arbiters: Vec<ArbiterHandle>,
    ) -> Self {
        Self {
            config,
            audio,
            ladder,
            grpc_url,
            node,
            arbiters,
            next_arbiter: 0,
            entries: HashMap::new(),
            next_contributor: 0,
            stopping: false,
        }
    }

    /// Nobody is taken any more, and who is here is sent away.
    pub(super) fn leaving(&self) -> bool {
        self.stopping || self.node.shutdown.is_cancelled()
    }

    fn admit(&mut self, name: &StreamName) -> Result<(), PublishError> {
        if self.leaving() {
            return Err(PublishError::Stopping);
        }
        let now = self.node.clock.wall();
        match self.entries.get(name) {
            Some(entry) if entry.occupied(now, self.config.takeover()) => {
                return Err(PublishError::Busy);
            }
            Some(_) => {}
            None if self.entries.len() >= self.config.streams_max => {
                return Err(PublishError::TooManyStreams);
            }
            None => {}
        }
        self.entries.entry(name.clone()).or_default().claiming = true;
        Ok(())
    }

    /// The name is acquired, or not: the second half of [`Publish`].
    fn conclude(
        &mut self,
        request: PublishRequest,
        acquired: Result<Epoch, Denied>,
        ctx: &Context<Self>,
    ) -> Result<Publication, PublishError> {
        let name = request.name.clone();
        let acquired = acquired
            .map(|claim| (claim, claim))
            .or_else(|denied| self.go_on_without_directory(&name, denied));
        let (claim, epoch) = match acquired {
            Ok(epochs) if !self.leaving() => epochs,
            outcome => {
                if let Ok((claim, _)) = outcome {
                    self.release(name.clone(), claim);
                }
                self.forget_claim(&name);
                return Err(outcome.map_or_else(PublishError::from, |_| PublishError::Stopping));
            }
        };
        let existing = self
            .entries
            .get_mut(&name)
            .and_then(|entry| entry.live.take());
        if let Some(live) = existing.as_ref().filter(|live| !live.publisher.left()) {
            info!(stream = %name, "a silent publisher is replaced by a newer one");
            live.publisher.revoke(Revoked::Replaced);
        }
        // An actor that panicked takes nothing any more.
        let actor = match existing.filter(|live| live.actor.connected()) {
            Some(live) => live.actor,
            None => self.start_stream(name.clone(), ctx),
        };
        Sender::<Begin>::new(&actor).post(Begin {
            epoch,
            publisher: Publisher {
                peer: request.peer,
                encoder: request.encoder,
                since: self.node.clock.now(),
                metadata: None,
            },
        });
        let slot = Arc::new(Slot::new(self.node.clock.wall()));
        let links = Links {
            deliver: Sender::new(&actor),
            configure: Sender::new(&actor),
            end: Sender::new(&actor),
            metadata: Sender::new(&actor),
            leave: Sender::new(&actor),
        };
        let entry = self.entries.entry(name).or_default();
        entry.claiming = false;
        entry.contributors.connect(&actor);
        entry.live = Some(Live {
            claim,
            epoch,
            actor,
            publisher: Arc::clone(&slot),
            hold_expired: false,
        });
        self.count();
        Ok(Publication::new(
            epoch,
            self.node.clock.clone(),
            links,
            slot,
        ))
    }

    /// A publisher comes back while the directory is away: the claim that stands does for it, too. Yields that claim and the publisher's
    /// epoch.
    fn go_on_without_directory(
        &self,
        name: &StreamName,
        denied: Denied,
    ) -> Result<(Epoch, Epoch), Denied> {
        let live = self.entries.get(name).and_then(|entry| entry.live.as_ref());
        match live {
            Some(live)
                if matches!(denied, Denied::Directory(_))
                    && self.node.directory.owns(name, live.claim)
                    && live.epoch.0 + 1 < live.claim.0.saturating_add(EPOCHS_PER_CLAIM) =>
            {
                info!(stream = %name, ?denied, "the publisher is taken by the claim that stands");
                Ok((live.claim, Epoch(live.epoch.0 + 1)))
            }
            Some(_) | None => Err(denied),
        }
    }

    /// A claim failed: what was before it goes on, or ends if its time has come meanwhile.
    fn forget_claim(&mut self, name: &StreamName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.claiming = false;
        let over = entry.live.as_ref().is_none_or(|live| live.hold_expired);
        if over && let Some(claim) = self.end_stream(name, EndReason::Ended, Revoked::Stopping) {
            self.release(name.clone(), claim);
        }
    }

    fn start_stream(&mut self, name: StreamName, ctx: &Context<Self>) -> Addr<StreamActor> {
        let (config, audio) = (self.config.clone(), self.audio.clone());
        let ladder = self.ladder.clone();
        let (clock, registry) = (self.node.clock.clone(), Sender::new(&ctx.address()));
        let create = move |_: &mut Context<StreamActor>| {
            StreamActor::new(name, config, audio, ladder, clock, registry)
        };
        self.next_arbiter = (self.next_arbiter + 1) % self.arbiters.len().max(1);
        match self.arbiters.get(self.next_arbiter) {
            Some(arbiter) => StreamActor::start_in_arbiter(arbiter, create),
            None => StreamActor::create(create),
        }
    }

    /// Yields the claim, to be released.
    fn end_stream(
        &mut self,
        name: &StreamName,
        reason: EndReason,
        revoked: Revoked,
    ) -> Option<Epoch> {
        let now = self.node.clock.now();
        let entry = self.entries.get_mut(name)?;
        let live = entry.live.take();
        if entry.contributors.is_empty() {
            self.entries.remove(name);
        } else if live.is_some() {
            entry.contributors.disconnect(now);
        }
        let live = live?;
        live.publisher.revoke(revoked);
        Sender::<Stop>::new(&live.actor).post(Stop { reason });
        self.count();
        Some(live.claim)
    }

    fn release(&self, name: StreamName, epoch: Epoch) {
        let directory = Arc::clone(&self.node.directory);
        self.node.io.spawn(async move {
            if let Err(error) = directory.release(name.clone(), epoch).await {
                // The record goes with this node's lease at the latest.
                debug!(stream = %name, %error, "the stream's name was not released");
            }
        });
    }

    /// Ends streams that another origin owns by now, which can be when this one lost its lease for a while or had no publisher, and
    /// those whose actor panicked. Not while a publisher waits for its claim: its outcome decides, and a second claim beside it could
    /// end before it.
    fn check_ownership(&mut self) {
        let settled = self.entries.iter().filter(|(_, entry)| !entry.claiming);
        let mut over: Vec<StreamName> = Vec::new();
        for (name, live) in settled.filter_map(|(name, entry)| Some((name, entry.live.as_ref()?))) {
            if !self.node.directory.owns(name, live.claim) {
                warn!(stream = %name, "another origin owns the stream now");
            } else if !live.actor.connected() {
                warn!(stream = %name, "the stream's actor is gone; its publisher may come again");
            } else {
                continue;
            }
            over.push(name.clone());
        }
        for name in over {
            if let Some(claim) = self.end_stream(&name, EndReason::Moved, Revoked::Replaced) {
                self.release(name, claim);
            }
        }
        self.expire_contributors();
    }

    fn count(&self) {
        let live = self.entries.values().filter(|entry| entry.live.is_some());
        let count = u32::try_from(live.count()).unwrap_or(u32::MAX);
        gauge!(names::STREAMS).set(f64::from(count));
    }
}

impl Actor for StreamRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(256);
        ctx.run_interval(OWNERSHIP_INTERVAL, |actor, _| actor.check_ownership());
    }
}

impl Handler<Publish> for StreamRegistry {
    type Result = ResponseActFuture<Self, Result<Publication, PublishError>>;

    fn handle(&mut self, Publish(request): Publish, _: &mut Self::Context) -> Self::Result {
        if let Err(refused) = self.admit(&request.name) {
            return Box::pin(actix::fut::ready(Err(refused)));
        }
        let (node, name, grpc_url) = (
            self.node.clone(),
            request.name.clone(),
            self.grpc_url.clone(),
        );
        // On the I/O runtime, since a directory may be a network client; a task of its own, since a claim that is made must
        // be known here even if the publisher is gone by then.
        let acquired = self
            .node
            .io
            .spawn(async move { acquire(&node, &name, &grpc_url).await });
        let acquired = async move {
            acquired
                .await
                .unwrap_or_else(|_| Err(Denied::Directory("this node stops".to_owned())))
        };
        Box::pin(
            acquired
                .into_actor(self)
                .map(move |acquired, actor, ctx| actor.conclude(request, acquired, ctx)),
        )
    }
}

impl Handler<Occupied> for StreamRegistry {
    type Result = bool;

    fn handle(&mut self, Occupied(name): Occupied, _: &mut Self::Context) -> Self::Result {
        let now = self.node.clock.wall();
        !self.leaving()
            && self
                .entries
                .get(&name)
                .is_some_and(|entry| entry.occupied(now, self.config.takeover()))
    }
}

impl Handler<Find> for StreamRegistry {
    type Result = MessageResult<Find>;

    fn handle(&mut self, Find(name): Find, _: &mut Self::Context) -> Self::Result {
        let live = self
            .entries
            .get(&name)
            .and_then(|entry| entry.live.as_ref());
        MessageResult(live.map(|live| live.actor.clone()))
    }
}

impl Handler<List> for StreamRegistry {
    type Result = MessageResult<List>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        let mut streams: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(name, entry)| Some((name.clone(), entry.live.as_ref()?.actor.clone())))
            .collect();
        streams.sort_by(|(a, _), (b, _)| a.cmp(b));
        MessageResult(streams)
    }
}

impl Handler<Kick> for StreamRegistry {
    type Result = bool;

    fn handle(&mut self, Kick(name): Kick, _: &mut Self::Context) -> Self::Result {
        let live = self
            .entries
            .get(&name)
            .and_then(|entry| entry.live.as_ref());
        match live {
            Some(live) if !live.publisher.left() => {
                live.publisher.revoke(Revoked::Kicked);
                true
            }
            Some(_) | None => false,
        }
    }
}

impl Handler<HoldExpired> for StreamRegistry {
    type Result = ();

    fn handle(&mut self, message: HoldExpired, _: &mut Self::Context) {
        let Some(entry) = self.entries.get_mut(&message.name) else {
            return;
        };
        let Some(live) = entry
            .live
            .as_mut()
            .filter(|live| live.epoch == message.epoch)
        else {
            return;
        };
        if entry.claiming {
            // The publisher that is just being accepted goes first.
            live.hold_expired = true;
            return;
        }
        let ended = self.end_stream(&message.name, EndReason::Ended, Revoked::Stopping);
        if let Some(claim) = ended {
            self.release(message.name, claim);
        }
    }
}

impl Handler<Drain> for StreamRegistry {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.stopping = true;
    }
}

impl Handler<StopAll> for StreamRegistry {
    type Result = ();

    fn handle(&mut self, _: StopAll, _: &mut Self::Context) {
        self.stopping = true;
        for entry in self.entries.values_mut() {
            entry.contributors.revoke(Revoked::Stopping);
        }
        let names: Vec<StreamName> = self.entries.keys().cloned().collect();
        for name in names {
            if let Some(claim) = self.end_stream(&name, EndReason::Moved, Revoked::Stopping) {
                self.release(name, claim);
            }
        }
    }
}
