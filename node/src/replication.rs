//! The `Replication` service of gRPC, which origins and edges answer alike: who subscribes is taken, sent on or refused, and each that is
//! taken gets a [`session`] of its own.
//!
//! What a node has to give is its [`Source`]; who is fed, and where the others are sent, its [`Feeding`].

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use headwater_media::id::{Epoch, StreamName, TrackId};
use headwater_media::replication::{Position, Want, sender};
use headwater_media::stream::Attachment;
use headwater_media::track::StreamInfo;
use headwater_media::tree::Refusal;
use headwater_media::unit::AccessUnit;
use headwater_proto::convert;
use headwater_proto::replication as wire;
use headwater_proto::replication::replication_server::{Replication, ReplicationServer};
use headwater_proto::replication::{to_edge, to_origin};
use metrics::counter;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use crate::clock::Clock;
use crate::trace::{self, Span};

mod feeding;
mod outlet;
mod session;

pub use feeding::{Branch, Feeding, Judged, Place, Refused};
pub use outlet::Outlet;
use session::{Counted, Session};

/// A call whose first message takes longer is ended.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Messages handed to tonic ahead of what HTTP/2 takes (count). Few: what waits should wait in the core, which can skip it.
const OUTBOUND_QUEUE: usize = 4;

/// The longest message a subscriber may send (bytes): a `Subscribe` with its positions.
const INBOUND_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// What a subscriber's session gets from its stream.
#[derive(Debug, Clone)]
pub enum Item {
    /// What the stream is now; before the units it concerns.
    Info(Arc<StreamInfo>),
    /// The next unit of a track.
    Unit(Arc<AccessUnit>),
    /// What [`Subscription::backlog`] asked for.
    Backlog(Vec<Arc<AccessUnit>>),
    /// Nothing follows.
    End(EndReason),
}

/// Why a stream ended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Its publisher left and did not return.
    Ended,
    /// This node has it no longer.
    Moved,
}

/// A subscriber's link to its stream. Dropping it, or the queue of [`Attached::items`], ends the subscription.
pub trait Subscription: Send {
    /// It wants something else.
    fn want(&mut self, want: &Want);

    /// It wants these tracks too: what is kept of them comes as [`Item::Backlog`].
    fn backlog(&mut self, tracks: Vec<TrackId>);
}

/// A subscriber's start.
pub struct Attached {
    /// What it begins with.
    pub attachment: Attachment,
    /// What follows. Bounded; when it is full the stream drops items, which shows in the units' sequence.
    pub items: mpsc::Receiver<Item>,
    /// Its link to the stream.
    pub subscription: Box<dyn Subscription>,
}

/// Why nobody can be attached to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unattached {
    /// It isn't here.
    #[error("this node does not have the stream")]
    NotFound,
    /// Whoever has it does not answer.
    #[error("this node is overloaded")]
    Overloaded,
}

/// A stream that begins at this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Its name.
    pub name: StreamName,
    /// Its publisher's incarnation.
    pub epoch: Epoch,
    /// Its publisher is here.
    pub publishing: bool,
}

/// The streams of a node.
pub trait Source: Send + Sync + 'static {
    /// Gives a subscriber that has the positions `have` what follows.
    fn attach(
        &self,
        name: StreamName,
        have: Vec<Position>,
        want: Want,
    ) -> BoxFuture<'_, Result<Attached, Unattached>>;

    /// What begins here, of one name or all.
    fn live(&self, only: Option<StreamName>) -> BoxFuture<'_, Result<Vec<Live>, Unattached>>;
}

/// The names under which a role counts its subscribers.
#[derive(Debug, Clone, Copy)]
pub struct Metrics {
    /// Gauge: subscriptions.
    pub subscribers: &'static str,
    /// Counter: attachments, by whether they resumed.
    pub attachments: &'static str,
    /// Counter: payload bytes sent.
    pub bytes: &'static str,
    /// Counter: times a slow subscriber was skipped to a keyframe.
    pub skips: &'static str,
    /// Counter: units skipped so.
    pub skipped: &'static str,
    /// Counter: subscribers that were sent to another node.
    pub redirects: &'static str,
    /// Counter: subscribers that were refused, by reason.
    pub refused: &'static str,
}

/// How a node answers subscribers.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bounds of what is on its way to one of them.
    pub window: sender::Config,
    /// Whom it feeds.
    pub feeding: Feeding,
    /// How it counts.
    pub metrics: Metrics,
    /// Reads the time.
    pub clock: Clock,
}

/// The service, for [`tonic::service::Routes`].
pub fn service(source: Arc<dyn Source>, options: Options) -> ReplicationServer<Service> {
    let service = Service { source, options };
    ReplicationServer::new(service)
        .max_decoding_message_size(INBOUND_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(convert::MESSAGE_BYTES_MAX)
}

/// See the module.
pub struct Service {
    source: Arc<dyn Source>,
    options: Options,
}

type Outbound = ReceiverStream<Result<wire::ToEdge, Status>>;

impl Service {
    /// What is to become of a subscriber, before anything is done for it.
    fn place(&self, name: &StreamName, subscribe: &wire::Subscribe) -> Result<Placed, Status> {
        let joining = convert::joining_from_wire(subscribe).map_err(|error| invalid(&error))?;
        match self.options.feeding.of(name).judge(&joining) {
            Ok(Judged::Redirected(alternatives)) => {
                debug!(stream = %name, node = ?joining.node, to = ?alternatives.first(), "sent on");
                counter!(self.options.metrics.redirects).increment(1);
                Ok(Placed::Redirected(convert::alternatives_to_wire(
                    &alternatives,
                )))
            }
            Err(refused) => {
                debug!(stream = %name, node = ?joining.node, %refused, "not taken");
                let (reason, status) = refuse(refused);
                counter!(self.options.metrics.refused, "reason" => reason).increment(1);
                Err(status)
            }
            Ok(Judged::Taken(place)) => {
                let counted = Counted::new(self.options.metrics.subscribers);
                Ok(Placed::Taken(place, counted))
            }
        }
    }

    async fn accept(
        &self,
        request: Request<Streaming<wire::ToOrigin>>,
        span: &mut Span,
    ) -> Result<Response<Outbound>, Status> {
        let peer = request.remote_addr();
        let mut inbound = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, inbound.message()).await;
        let first = first
            .map_err(|_| Status::deadline_exceeded("the first message must be Subscribe"))??;
        let Some(to_origin::Message::Subscribe(subscribe)) = first.and_then(|first| first.message)
        else {
            return Err(Status::invalid_argument(
                "the first message must be Subscribe",
            ));
        };
        let clock = &self.options.clock;
        let arrived = clock.wall();
        let name = stream_name(&subscribe.stream)?;
        span.set("stream", &name);
        span.set("node", printable(&subscribe.node));
        let have = convert::have_from_wire(&subscribe.have).map_err(|error| invalid(&error))?;
        let (outbound, responses) = mpsc::channel(OUTBOUND_QUEUE);
        let responses = Response::new(ReceiverStream::new(responses));
        let (place, counted) = match self.place(&name, &subscribe)? {
            Placed::Taken(place, counted) => (place, counted),
            Placed::Redirected(redirect) => {
                span.set("result", "redirected");
                let message = Some(to_edge::Message::Redirect(redirect));
                // The queue is new and empty.
                let _ = outbound.try_send(Ok(wire::ToEdge { message }));
                return Ok(responses);
            }
        };
        let want = subscribe.want.unwrap_or_default();
        let want = convert::want_from_wire(&want).map_err(|error| invalid(&error))?;

        let attached = self.source.attach(name, have, want.clone()).await;
        let Attached {
            attachment,
            items,
            subscription,
        } = attached.map_err(unattached)?;

        let metrics = self.options.metrics;
        let resumed = attachment.resumed();
        let label = if resumed { "true" } else { "false" };
        counter!(metrics.attachments, "resumed" => label).increment(1);
        info!(
            stream = %attachment.info.name, node = %printable(&subscribe.node), ?peer, resumed,
            backlog = attachment.backlog.len(), "subscriber attached"
        );
        let mut core = sender::Sender::new(self.options.window, want.tracks, &attachment.positions);
        core.handle_info(attachment.info);
        core.handle_backlog(clock.now(), attachment.backlog);
        let mut session = Session::new(session::Parts {
            core,
            clock: clock.clone(),
            me: self.options.feeding.me().clone(),
            metrics,
            subscription,
            place,
            items,
            inbound,
            outbound,
            counted,
        });
        if let Some(ping) = subscribe.ping {
            session.handle_ping(ping, arrived)?;
        }
        tokio::spawn(session.run());
        Ok(responses)
    }
}

/// What becomes of a subscriber.
enum Placed {
    Taken(Place, Counted),
    Redirected(wire::Redirect),
}

fn refuse(refused: Refused) -> (&'static str, Status) {
    let text = refused.to_string();
    match refused {
        Refused::Subscribers => ("subscribers", Status::resource_exhausted(text)),
        Refused::Stream(Refusal::Full) => ("full", Status::resource_exhausted(text)),
        Refused::Stream(Refusal::Avoided) => ("avoided", Status::resource_exhausted(text)),
        Refused::Stream(Refusal::Cycle) => ("cycle", Status::failed_precondition(text)),
        Refused::Stream(Refusal::TooDeep) => ("too_deep", Status::failed_precondition(text)),
        Refused::Stream(Refusal::Orphaned) => ("orphaned", Status::unavailable(text)),
    }
}

fn invalid(error: &convert::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

fn unattached(error: Unattached) -> Status {
    let text = error.to_string();
    match error {
        Unattached::NotFound => Status::not_found(text),
        Unattached::Overloaded => Status::resource_exhausted(text),
    }
}

#[tonic::async_trait]
impl Replication for Service {
    type SubscribeStream = Outbound;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::ToOrigin>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        // Up to the acceptance: a subscription lasts as long as its stream is watched.
        let parent = trace::Context::of_call(request.metadata());
        let mut span = trace::follow("accept subscription", trace::Kind::Server, parent);
        let result = self.accept(request, &mut span).await;
        if let Err(status) = &result {
            span.fail(status);
        }
        result
    }

    async fn list_streams(
        &self,
        request: Request<wire::ListStreamsRequest>,
    ) -> Result<Response<wire::ListStreamsResponse>, Status> {
        let only = match request.into_inner().stream.as_str() {
            "" => None,
            name => Some(stream_name(name)?),
        };
        let live = self.source.live(only).await.map_err(unattached)?;
        let streams = live.into_iter().map(|live| wire::LiveStream {
            stream: live.name.to_string(),
            epoch: live.epoch.0,
            publishing: live.publishing,
        });
        let streams = streams.collect();
        Ok(Response::new(wire::ListStreamsResponse { streams }))
    }
}

fn stream_name(text: &str) -> Result<StreamName, Status> {
    let name = text.parse();
    name.map_err(|error| invalid(&convert::Error::Name(error)))
}

/// What a peer says it is, fit for a log line.
fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let clean = text.chars().filter(|c| !c.is_control());
    clean.take(CHARS_MAX).collect()
}
