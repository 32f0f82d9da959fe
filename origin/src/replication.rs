//! This origin's streams as edges subscribe to them: [`Source`] over the registry and its actors.

use std::time::Duration;

use actix::Addr;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::{StreamName, TrackId};
use headwater_media::replication::{Position, Want};
use headwater_node::actor::Sender;
use headwater_node::replication::{Attached, Live, Source, Subscription, Unattached};

use crate::registry::Registry;
use crate::stream::{Adapt, Attach, Backlog, Stat, StreamActor};

/// How long an actor may take to answer; longer means that this node is overloaded.
const ACTOR_TIMEOUT: Duration = Duration::from_secs(2);

/// The answer of an actor, or why there is none.
async fn ask<T>(
    request: impl Future<Output = Result<T, actix::MailboxError>>,
) -> Result<T, Unattached> {
    match tokio::time::timeout(ACTOR_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        // The stream has just ended.
        Ok(Err(_)) => Err(Unattached::NotFound),
        Err(_) => Err(Unattached::Overloaded),
    }
}

impl Source for Registry {
    fn attach(
        &self,
        name: StreamName,
        have: Vec<Position>,
        want: Want,
    ) -> BoxFuture<'_, Result<Attached, Unattached>> {
        async move {
            let stream = ask(async { Ok(self.find(name).await) }).await?;
            let stream = stream.ok_or(Unattached::NotFound)?;
            let adaptive = want.adaptive;
            let (subscriber, attachment, items) =
                ask(stream.send(Attach { have, adaptive })).await?;
            Ok(Attached {
                attachment,
                items,
                subscription: Box::new(Link {
                    stream,
                    subscriber,
                    adaptive,
                }),
            })
        }
        .boxed()
    }

    fn live(&self, only: Option<StreamName>) -> BoxFuture<'_, Result<Vec<Live>, Unattached>> {
        async {
            let answers = match only {
                Some(name) => ask(async { Ok(self.ask(name, Stat).await) })
                    .await?
                    .into_iter()
                    .collect(),
                None => ask(async { Ok(self.ask_all(|| Stat).await) }).await?,
            };
            let streams = answers.into_iter().map(|(name, status)| Live {
                name,
                epoch: status.epoch,
                publishing: status.publishing,
            });
            Ok(streams.collect())
        }
        .boxed()
    }
}

/// A subscriber's link to the actor of its stream.
struct Link {
    stream: Addr<StreamActor>,
    subscriber: u64,
    /// The stream knows it of this subscriber.
    adaptive: bool,
}

impl Subscription for Link {
    fn want(&mut self, want: &Want) {
        if std::mem::replace(&mut self.adaptive, want.adaptive) != want.adaptive {
            Sender::<Adapt>::new(&self.stream).post(Adapt {
                subscriber: self.subscriber,
                adaptive: want.adaptive,
            });
        }
    }

    fn backlog(&mut self, tracks: Vec<TrackId>) {
        Sender::<Backlog>::new(&self.stream).post(Backlog {
            subscriber: self.subscriber,
            tracks,
        });
    }
}
