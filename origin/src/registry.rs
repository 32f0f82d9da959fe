//! `StreamRegistry`: the streams this origin has, by name. Publishers come in here, and subscribers find their stream here.
//!
//! It acquires a name ([`crate::ownership`]), which yields the epoch, before a publisher is accepted; decides between two publishers of one
//! name, and between two contributors of one rendition of it, who may come first and need no claim; starts a [`StreamActor`] for each stream
//! and ends it when the hold time is over, or when another origin has the name at a higher epoch. Its parent is the origin. All its
//! messages are control.

use std::net::SocketAddr;
use std::time::Duration;

use actix::{Actor, Addr, ArbiterHandle, Handler, Message};
use futures_util::future::join_all;
use headwater_media::id::{Epoch, NodeId, RenditionName, StreamName};
use headwater_node::Node;
use metrics::counter;

use crate::config::OriginConfig;
use crate::ownership::Denied;
use crate::stream::StreamActor;
use crate::{audio, ladder, metrics as names};

mod actor;
mod contributors;
#[cfg(test)]
mod tests;

use actor::StreamRegistry;
use contributors::Join;

pub use crate::contribution::Contribution;
pub use crate::publication::Publication;

/// How long a stream may take to answer when all are asked. The admin port gives its report 0.9 s in all.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

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
    /// Another origin has a publisher of this stream.
    #[error("the stream has a publisher at origin {0}")]
    HeldElsewhere(NodeId),
    /// The origin that owns the stream does not answer. Trying again works once its lease has ended.
    #[error(
        "the stream is held by origin {0}, which does not answer: it is free when the lease of that origin ends"
    )]
    OwnerSilent(NodeId),
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

impl From<Denied> for PublishError {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Publishing(owner) => Self::HeldElsewhere(owner),
            Denied::Silent(owner) => Self::OwnerSilent(owner),
            Denied::Directory(problem) => Self::DirectoryUnavailable(problem),
        }
    }
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
        let registry = StreamRegistry::new(config, audio, ladder, grpc_url, node, arbiters);
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
            Err(PublishError::OwnerSilent(_)) => "owner_silent",
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

    /// The stream has a publisher here that sends, or one that is just being accepted.
    pub(crate) async fn occupied(&self, name: StreamName) -> bool {
        self.actor.send(Occupied(name)).await.unwrap_or(false)
    }

    /// The stream of this name, if this origin has it.
    pub(crate) async fn find(&self, name: StreamName) -> Option<Addr<StreamActor>> {
        self.actor.send(Find(name)).await.ok().flatten()
    }

    /// All streams.
    pub(crate) async fn list(&self) -> Vec<(StreamName, Addr<StreamActor>)> {
        self.actor.send(List).await.unwrap_or_default()
    }

    /// Asks one stream, if it is there and answers.
    pub(crate) async fn ask<M>(
        &self,
        name: StreamName,
        question: M,
    ) -> Option<(StreamName, <M as Message>::Result)>
    where
        M: Message + Send + 'static,
        M::Result: Send + 'static,
        StreamActor: Handler<M>,
    {
        let actor = self.find(name.clone()).await?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, actor.send(question)).await;
        Some((name, answer.ok()?.ok()?))
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

    /// From now on nobody is taken, and the publishers who are here don't keep other origins from taking their streams over.
    pub(crate) async fn drain(&self) {
        // A registry that is gone takes nobody.
        let _ = self.actor.send(Drain).await;
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
struct Occupied(StreamName);

#[derive(Message)]
#[rtype(result = "bool")]
struct Kick(StreamName);

#[derive(Message)]
#[rtype(result = "()")]
struct Drain;

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
