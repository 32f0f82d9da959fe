//! `StreamRegistry`: the streams this origin has, by name. Publishers come in here, and subscribers find their stream here.
//!
//! It claims a name in the directory, which yields the epoch, before a publisher is accepted; decides between two publishers of one
//! name, and between two contributors of one rendition of it, who may come first and need no claim; starts a [`StreamActor`] for each stream and ends it when the hold time is over, or when the directory says that another
//! origin has the name at a higher epoch. Its parent is the origin. All its messages are control.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, Addr, ArbiterHandle, AsyncContext, Context, Handler, Message,
    MessageResult, ResponseActFuture, WrapFuture,
};
use futures_util::future::join_all;
use headwater_media::id::{Epoch, NodeId, RenditionName, StreamName};
use headwater_node::actor::Sender;
use headwater_node::{Node, directory};
use metrics::{counter, gauge};
use tracing::{debug, info, warn};

use crate::config::OriginConfig;
use crate::contribution::Contributors;
use crate::describe::Publisher;
use crate::publication::{Links, Slot};
use crate::stream::{Begin, EndReason, Stop, StreamActor};
use crate::{audio, ladder, metrics as names};

mod contributors;

use contributors::Join;

pub use crate::contribution::Contribution;
pub use crate::publication::Publication;

/// A claim that takes longer has failed; a publisher waits no longer for its answer.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stream may take to answer when all are asked. The admin port gives its report 0.9 s in all.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// How often ownership is compared with the directory's copy.
const OWNERSHIP_INTERVAL: Duration = Duration::from_secs(1);

/// Who wants to publish what.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The stream.
    pub name: StreamName,
    /// Where the publisher connected from.
    pub peer: SocketAddr,
    /// What the publisher says it is, for the API and the log.
    pub encoder: Option<String>,
}

/// Why a publisher was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Another publisher is sending to this stream.
    #[error("the stream already has a publisher")]
    Busy,
    /// Another origin owns the stream's name.
    #[error("the stream is held by origin {0}")]
    HeldElsewhere(NodeId),
    /// The name could not be claimed; trying again later may work.
    #[error("the stream's name could not be claimed: {0}")]
    DirectoryUnavailable(String),
    /// This origin has as many streams as it takes.
    #[error("this origin has as many streams as it takes")]
    TooManyStreams,
    /// This origin is stopping.
    #[error("this origin is stopping")]
    Stopping,
}

/// Why a publisher that had been accepted must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revoked {
    /// It was silent for too long and a newer publisher took its place.
    Replaced,
    /// An administrator ended it.
    Kicked,
    /// This origin is stopping.
    Stopping,
    /// A contributor whose keyframes are not at the source's times.
    Unaligned,
    /// A contributor to a stream that nobody publishes, or no longer.
    NoSource,
    /// A contributor to a stream that has as many renditions as it may.
    TooMany,
}

/// The streams of this origin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    actor: Addr<StreamRegistry>,
}

impl Registry {
    /// Starts the registry, its streams to be spread over `arbiters` (at least one).
    pub(crate) fn start(
        config: OriginConfig,
        audio: audio::Config,
        ladder: ladder::Shared,
        grpc_url: String,
        node: Node,
        arbiters: Vec<ArbiterHandle>,
    ) -> Self {
        let registry = StreamRegistry {
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
        };
        Self {
            actor: registry.start(),
        }
    }

    /// Claims the stream's name and makes the caller its publisher.
    ///
    /// # Errors
    /// [`PublishError`]: the session refuses the publisher.
    pub async fn publish(&self, request: PublishRequest) -> Result<Publication, PublishError> {
        let answer = self.actor.send(Publish(request)).await;
        let answer = answer.unwrap_or(Err(PublishError::Stopping));
        let outcome = match &answer {
            Ok(_) => "accepted",
            Err(PublishError::Busy) => "busy",
            Err(PublishError::HeldElsewhere(_)) => "held_elsewhere",
            Err(PublishError::DirectoryUnavailable(_)) => "directory_unavailable",
            Err(PublishError::TooManyStreams) => "too_many_streams",
            Err(PublishError::Stopping) => "stopping",
        };
        counter!(names::PUBLISHES, "outcome" => outcome).increment(1);
        answer
    }

    /// Makes the caller a contributor of one rendition to the stream, whether somebody publishes its source already or not. Who waits for
    /// a source is revoked after the hold time.
    ///
    /// # Errors
    /// [`PublishError`]: the session refuses it.
    pub async fn contribute(
        &self,
        request: PublishRequest,
        rendition: RenditionName,
    ) -> Result<Contribution, PublishError> {
        let answer = self.actor.send(Join(request, rendition)).await;
        answer.unwrap_or(Err(PublishError::Stopping))
    }

    /// Makes a stream's publisher leave; false if there is none.
    pub async fn kick(&self, name: StreamName) -> bool {
        self.actor.send(Kick(name)).await.unwrap_or(false)
    }

    /// The stream of this name, if this origin has it.
    pub(crate) async fn find(&self, name: StreamName) -> Option<Addr<StreamActor>> {
        self.actor.send(Find(name)).await.ok().flatten()
    }

    /// All streams.
    pub(crate) async fn list(&self) -> Vec<(StreamName, Addr<StreamActor>)> {
        self.actor.send(List).await.unwrap_or_default()
    }

    /// Asks all streams at once. One that ends meanwhile, or is stuck, is left out rather than holding the others up.
    pub(crate) async fn ask_all<M>(
        &self,
        question: impl Fn() -> M,
    ) -> Vec<(StreamName, <M as Message>::Result)>
    where
        M: Message + Send + 'static,
        M::Result: Send + 'static,
        StreamActor: Handler<M>,
    {
        let asked = self.list().await.into_iter().map(|(name, actor)| {
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, actor.send(question()));
            async move { Some((name, answer.await.ok()?.ok()?)) }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Ends all streams: publishers must leave, subscribers look elsewhere. Nobody is taken afterwards.
    pub(crate) async fn stop(&self) {
        // A registry that is gone has nothing left to stop.
        let _ = self.actor.send(StopAll).await;
    }
}

#[derive(Message)]
#[rtype(result = "Result<Publication, PublishError>")]
struct Publish(PublishRequest);

#[derive(Message)]
#[rtype(result = "Option<Addr<StreamActor>>")]
struct Find(StreamName);

#[derive(Message)]
#[rtype(result = "Vec<(StreamName, Addr<StreamActor>)>")]
struct List;

#[derive(Message)]
#[rtype(result = "bool")]
struct Kick(StreamName);

#[derive(Message)]
#[rtype(result = "()")]
struct StopAll;

/// A stream's publisher left and did not return in time.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct HoldExpired {
    pub(crate) name: StreamName,
    /// The publisher that left.
    pub(crate) epoch: Epoch,
}

/// See the module.
struct StreamRegistry {
    config: OriginConfig,
    audio: audio::Config,
    ladder: ladder::Shared,
    grpc_url: String,
    node: Node,
    arbiters: Vec<ArbiterHandle>,
    next_arbiter: usize,
    entries: HashMap<StreamName, Entry>,
    next_contributor: u64,
    stopping: bool,
}

#[derive(Default)]
struct Entry {
    /// A publisher waits for its claim.
    claiming: bool,
    /// None until the first claim succeeded.
    live: Option<Live>,
    /// They may come first, and stay when the stream ends.
    contributors: Contributors,
}

struct Live {
    epoch: Epoch,
    actor: Addr<StreamActor>,
    publisher: Arc<Slot>,
    /// The hold time ended while a publisher was waiting for its claim.
    hold_expired: bool,
}

impl StreamRegistry {
    fn admit(&mut self, name: &StreamName) -> Result<(), PublishError> {
        if self.stopping {
            return Err(PublishError::Stopping);
        }
        let now = self.node.clock.wall();
        match self.entries.get(name) {
            Some(Entry { claiming: true, .. }) => return Err(PublishError::Busy),
            Some(Entry {
                live: Some(live), ..
            }) if !live.publisher.left()
                && live.publisher.silent_for(now) <= self.config.takeover() =>
            {
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

    /// The name is claimed, or not: the second half of [`Publish`].
    fn conclude(
        &mut self,
        request: PublishRequest,
        claim: Result<Epoch, directory::Error>,
        ctx: &Context<Self>,
    ) -> Result<Publication, PublishError> {
        let name = request.name.clone();
        let epoch = match claim {
            Ok(epoch) if !self.stopping => epoch,
            outcome => {
                if let Ok(epoch) = outcome {
                    self.release(name.clone(), epoch);
                }
                self.forget_claim(&name);
                return Err(match outcome {
                    Ok(_) => PublishError::Stopping,
                    Err(directory::Error::Held(record)) => {
                        PublishError::HeldElsewhere(record.origin)
                    }
                    Err(error) => PublishError::DirectoryUnavailable(error.to_string()),
                });
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

    /// A claim failed: what was before it goes on, or ends if its time has come meanwhile.
    fn forget_claim(&mut self, name: &StreamName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.claiming = false;
        let over = entry.live.as_ref().is_none_or(|live| live.hold_expired);
        if over && let Some(epoch) = self.end_stream(name, EndReason::Ended, Revoked::Stopping) {
            self.release(name.clone(), epoch);
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
        Some(live.epoch)
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

    /// Ends streams that another origin owns by now, which can be when this one lost its lease for a while, and those whose
    /// actor panicked. Not while a publisher waits for its claim: its outcome decides, and a second claim beside it could
    /// end before it.
    fn check_ownership(&mut self) {
        if self.entries.is_empty() {
            return;
        }
        let settled = |entry: &&Entry| !entry.claiming;
        let lost: Vec<StreamName> = self
            .node
            .directory
            .streams()
            .into_iter()
            .filter(|record| record.origin != self.node.id)
            .filter(|record| {
                let entry = self.entries.get(&record.name).filter(settled);
                let live = entry.and_then(|entry| entry.live.as_ref());
                live.is_some_and(|live| live.epoch < record.epoch)
            })
            .map(|record| record.name)
            .collect();
        for name in lost {
            warn!(stream = %name, "another origin owns the stream now");
            self.end_stream(&name, EndReason::Moved, Revoked::Replaced);
        }
        let panicked = |live: &Live| !live.actor.connected();
        let dead: Vec<StreamName> = self
            .entries
            .iter()
            .filter(|(_, entry)| settled(entry) && entry.live.as_ref().is_some_and(panicked))
            .map(|(name, _)| name.clone())
            .collect();
        self.expire_contributors();
        for name in dead {
            warn!(stream = %name, "the stream's actor is gone; its publisher may come again");
            if let Some(epoch) = self.end_stream(&name, EndReason::Moved, Revoked::Replaced) {
                self.release(name, epoch);
            }
        }
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
        let directory = Arc::clone(&self.node.directory);
        let (name, grpc_url) = (request.name.clone(), self.grpc_url.clone());
        // On the I/O runtime, since a directory may be a network client; a task of its own, since a claim that is made must
        // be known here even if the publisher is gone by then.
        let claim = self.node.io.spawn(async move {
            let claim = tokio::time::timeout(CLAIM_TIMEOUT, directory.claim(name, grpc_url));
            claim
                .await
                .unwrap_or_else(|_| Err(directory::Error::Unavailable("it took too long".into())))
        });
        let claim = async move {
            claim
                .await
                .unwrap_or_else(|_| Err(directory::Error::Unavailable("this node stops".into())))
        };
        Box::pin(
            claim
                .into_actor(self)
                .map(move |claim, actor, ctx| actor.conclude(request, claim, ctx)),
        )
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
        self.end_stream(&message.name, EndReason::Ended, Revoked::Stopping);
        self.release(message.name, message.epoch);
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
            if let Some(epoch) = self.end_stream(&name, EndReason::Moved, Revoked::Stopping) {
                self.release(name, epoch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use headwater_node::clock::Clock;
    use headwater_node::directory::memory::MemoryDirectory;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::stream::Stat;

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    impl Handler<Panic> for StreamActor {
        type Result = ();

        fn handle(&mut self, _: Panic, _: &mut Self::Context) {
            panic!("as the test asked");
        }
    }

    fn registry() -> Registry {
        let id: NodeId = "o1".parse().expect("valid");
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id)),
            io: tokio::runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        };
        let (config, audio) = Default::default();
        let ladder = ladder::Config::default();
        let ladder = ladder::Shared::new(ladder, node.clock.clone(), node.io.clone());
        Registry::start(
            config,
            audio,
            ladder,
            "http://o1:7070".to_owned(),
            node,
            Vec::new(),
        )
    }

    async fn publish(registry: &Registry) -> Publication {
        let request = PublishRequest {
            name: name(),
            peer: SocketAddr::from(([127, 0, 0, 1], 1)),
            encoder: None,
        };
        registry.publish(request).await.expect("accepted")
    }

    fn name() -> StreamName {
        "live/x".parse().expect("valid")
    }

    async fn panic_stream(registry: &Registry) {
        let actor = registry.find(name()).await.expect("live");
        assert!(actor.send(Panic).await.is_err());
    }

    #[actix::test]
    async fn a_stream_that_panicked_is_replaced() {
        let registry = registry();
        let first = publish(&registry).await;
        drop(first);
        panic_stream(&registry).await;
        let _second = publish(&registry).await;
        let actor = registry.find(name()).await.expect("live");
        let status = actor.send(Stat).await.expect("a living actor");
        assert!(status.publishing);
    }

    #[actix::test]
    async fn a_stream_that_panicked_ends_by_itself() {
        let registry = registry();
        let _publication = publish(&registry).await;
        panic_stream(&registry).await;
        tokio::time::timeout(OWNERSHIP_INTERVAL * 4, async {
            while registry.find(name()).await.is_some() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .expect("it is noticed");
        let _next = publish(&registry).await;
    }
}
