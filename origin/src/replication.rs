//! The gRPC server that edges subscribe at: one [`Session`] per (edge, stream), a task around [`replication::Sender`].
//!
//! A session reads its stream's items always, so its queue there stays short; what the subscriber can't take yet waits in the
//! core, within its window. Sessions end with their call, their stream, or a peer that breaks the protocol.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use headwater_media::id::TrackId;
use headwater_media::replication::{self, sender};
use headwater_media::time::WallTime;
use headwater_node::Node;
use headwater_node::actor::Sender;
use headwater_node::clock::Clock;
use headwater_proto::convert;
use headwater_proto::replication as wire;
use headwater_proto::replication::replication_server::{Replication, ReplicationServer};
use headwater_proto::replication::{to_edge, to_origin};
use metrics::{counter, gauge};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::metrics as names;
use crate::ownership::answer::Answerer;
use crate::registry::Registry;
use crate::stream::{Adapt, Attach, Attached, Backlog, EndReason, Item, Stat, StreamActor};

/// A call whose first message takes longer is ended.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an actor may take to answer; longer means that this node is overloaded.
const ACTOR_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages handed to tonic ahead of what HTTP/2 takes (count). Few: what waits should wait in the core, which can skip it.
const OUTBOUND_QUEUE: usize = 4;

/// Pongs that may wait (count). A subscriber pings twice a second; one that floods loses the oldest.
const PONGS_MAX: usize = 8;

/// The longest message a subscriber may send (bytes): a `Subscribe` with its positions.
const INBOUND_MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Calls one connection may carry (count); edges open another connection past it.
const CALLS_PER_CONNECTION: u32 = 1024;

/// A peer that leaves this many keepalive probes' time unanswered is gone.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls in progress have this long to end after [`GrpcServer::stop`].
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The listening gRPC port.
#[derive(Debug)]
pub(crate) struct GrpcServer {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// An opened port that nobody serves yet: its address is known before the registry starts.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    pub(crate) async fn open(listen: SocketAddr, node: &Node) -> io::Result<Self> {
        let bind = node.io.spawn(TcpListener::bind(listen));
        let listener = bind.await.map_err(io::Error::other)??;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn serve(
        self,
        registry: Registry,
        window: sender::Config,
        subscribers_max: usize,
        node: &Node,
    ) -> GrpcServer {
        let stop = CancellationToken::new();
        let ownership = Answerer::service(registry.clone(), node);
        let service = Service {
            registry,
            window,
            clock: node.clock.clone(),
            permits: Arc::new(Semaphore::new(subscribers_max.min(Semaphore::MAX_PERMITS))),
        };
        let service = ReplicationServer::new(service)
            .max_decoding_message_size(INBOUND_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(convert::MESSAGE_BYTES_MAX);
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let stopped = stop.clone();
        let task = node.io.spawn(async move {
            let served = Server::builder()
                .max_concurrent_streams(CALLS_PER_CONNECTION)
                .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
                .add_service(service)
                .add_service(ownership)
                .serve_with_incoming_shutdown(incoming, stopped.cancelled_owned())
                .await;
            if let Err(error) = served {
                warn!(%error, "the gRPC server ended");
            }
        });
        GrpcServer { stop, task }
    }
}

impl GrpcServer {
    /// Stops accepting, lets calls end for a moment, then cuts them.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, &mut self.task)
            .await
            .is_err()
        {
            self.task.abort();
        }
    }
}

struct Service {
    registry: Registry,
    window: sender::Config,
    clock: Clock,
    permits: Arc<Semaphore>,
}

/// The answer of an actor, or why there is none.
async fn ask<T>(
    request: impl Future<Output = Result<T, actix::MailboxError>>,
) -> Result<T, Status> {
    match tokio::time::timeout(ACTOR_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Status::not_found("the stream has just ended")),
        Err(_) => Err(Status::resource_exhausted("this origin is overloaded")),
    }
}

fn invalid(error: &convert::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

#[tonic::async_trait]
impl Replication for Service {
    type SubscribeStream = ReceiverStream<Result<wire::ToEdge, Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::ToOrigin>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
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
        let arrived = self.clock.wall();
        let name = subscribe
            .stream
            .parse()
            .map_err(|error| invalid(&convert::Error::Name(error)))?;
        let have = convert::have_from_wire(&subscribe.have).map_err(|error| invalid(&error))?;
        let want = subscribe.want.unwrap_or_default();
        let want = convert::want_from_wire(&want).map_err(|error| invalid(&error))?;
        let permit = Arc::clone(&self.permits)
            .try_acquire_owned()
            .map_err(|_| Status::resource_exhausted("this origin takes no more subscribers"))?;

        let find = self.registry.find(name);
        let stream = ask(async { Ok(find.await) }).await?;
        let stream =
            stream.ok_or_else(|| Status::not_found("this origin does not have the stream"))?;
        let Attached {
            subscriber,
            attachment,
            items,
        } = ask(stream.send(Attach {
            have: have.clone(),
            adaptive: want.adaptive,
        }))
        .await?;

        let resumed = attachment.resumed;
        let label = if resumed { "true" } else { "false" };
        counter!(names::ATTACHMENTS, "resumed" => label).increment(1);
        info!(
            stream = %attachment.info.name, node = %printable(&subscribe.node), ?peer, resumed,
            backlog = attachment.backlog.len(), "subscriber attached"
        );
        let mut core =
            replication::Sender::new(self.window, want.tracks, if resumed { &have } else { &[] });
        core.handle_info(attachment.info);
        core.handle_backlog(self.clock.now(), attachment.backlog);
        let (outbound, responses) = mpsc::channel(OUTBOUND_QUEUE);
        let mut session = Session {
            core,
            clock: self.clock.clone(),
            stream,
            subscriber,
            items,
            inbound,
            outbound,
            adaptive: want.adaptive,
            pongs: VecDeque::new(),
            end: None,
            skips: 0,
            skipped: 0,
            _counted: Counted::new(permit),
        };
        if let Some(ping) = subscribe.ping {
            session.handle_ping(&ping, arrived);
        }
        tokio::spawn(session.run());
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn list_streams(
        &self,
        _: Request<wire::ListStreamsRequest>,
    ) -> Result<Response<wire::ListStreamsResponse>, Status> {
        let answers = self.registry.ask_all(|| Stat);
        let answers = ask(async { Ok(answers.await) }).await?;
        let streams = answers.into_iter().map(|(name, status)| wire::LiveStream {
            stream: name.to_string(),
            epoch: status.epoch.0,
            publishing: status.publishing,
        });
        let streams = streams.collect();
        Ok(Response::new(wire::ListStreamsResponse { streams }))
    }
}

/// What a peer says it is, fit for a log line.
fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let clean = text.chars().filter(|c| !c.is_control());
    clean.take(CHARS_MAX).collect()
}

/// Keeps the gauge of subscribers right, however a session ends.
struct Counted(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Counted {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        gauge!(names::SUBSCRIBERS).increment(1.0);
        Self(permit)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!(names::SUBSCRIBERS).decrement(1.0);
    }
}

/// One subscriber of one stream.
struct Session {
    core: replication::Sender,
    clock: Clock,
    stream: Addr<StreamActor>,
    subscriber: u64,
    items: mpsc::Receiver<Item>,
    inbound: Streaming<wire::ToOrigin>,
    outbound: mpsc::Sender<Result<wire::ToEdge, Status>>,
    /// The stream knows it of this subscriber.
    adaptive: bool,
    pongs: VecDeque<(wire::Ping, WallTime)>,
    end: Option<EndReason>,
    skips: u64,
    skipped: u64,
    _counted: Counted,
}

impl Session {
    async fn run(mut self) {
        loop {
            if !self.pump() {
                return;
            }
            let outbound = self.outbound.clone();
            let blocked = outbound.capacity() == 0;
            tokio::select! {
                item = self.items.recv(), if self.end.is_none() => match item {
                    Some(item) => self.handle_item(item),
                    // The stream is gone without a word: whoever has it now is found in the directory.
                    None => self.end = Some(EndReason::Moved),
                },
                message = self.inbound.message() => match message {
                    Ok(Some(message)) => {
                        if let Err(status) = self.handle_message(message) {
                            debug!(%status, "a subscriber broke the protocol");
                            // A full queue ends it as well, with the call.
                            let _ = self.outbound.try_send(Err(status));
                            return;
                        }
                    }
                    Ok(None) | Err(_) => return,
                },
                // Only to wake up: `pump` takes what became free.
                permit = outbound.reserve(), if blocked => drop(permit),
                () = outbound.closed() => return,
            }
        }
    }

    fn handle_item(&mut self, item: Item) {
        let now = self.clock.now();
        match item {
            Item::Info(info) => self.core.handle_info(info),
            Item::Unit(unit) => self.core.handle_unit(now, unit),
            Item::Backlog(units) => self.core.handle_backlog(now, units),
            Item::End(reason) => self.end = Some(reason),
        }
        let (skips, skipped) = (self.core.overflows(), self.core.skipped_units());
        counter!(names::SUBSCRIBER_SKIPS).increment(skips - self.skips);
        counter!(names::UNITS_SKIPPED).increment(skipped - self.skipped);
        (self.skips, self.skipped) = (skips, skipped);
    }

    fn handle_message(&mut self, message: wire::ToOrigin) -> Result<(), Status> {
        match message.message {
            Some(to_origin::Message::Ack(ack)) => self
                .core
                .handle_ack(ack.units)
                .map_err(|error| Status::invalid_argument(error.to_string())),
            Some(to_origin::Message::Ping(ping)) => {
                self.handle_ping(&ping, self.clock.wall());
                Ok(())
            }
            Some(to_origin::Message::Want(want)) => {
                let want = convert::want_from_wire(&want).map_err(|error| invalid(&error))?;
                if std::mem::replace(&mut self.adaptive, want.adaptive) != want.adaptive {
                    Sender::<Adapt>::new(&self.stream).post(Adapt {
                        subscriber: self.subscriber,
                        adaptive: want.adaptive,
                    });
                }
                let fresh: Vec<TrackId> = self.core.handle_want(want.tracks);
                if !fresh.is_empty() {
                    Sender::<Backlog>::new(&self.stream).post(Backlog {
                        subscriber: self.subscriber,
                        tracks: fresh,
                    });
                }
                Ok(())
            }
            Some(to_origin::Message::Subscribe(_)) => {
                Err(Status::invalid_argument("Subscribe comes once, first"))
            }
            // A newer subscriber may say more than this node knows.
            None => Ok(()),
        }
    }

    fn handle_ping(&mut self, ping: &wire::Ping, arrived: WallTime) {
        if self.pongs.len() >= PONGS_MAX {
            self.pongs.pop_front();
        }
        self.pongs.push_back((*ping, arrived));
    }

    /// Sends what may be sent; false when the call is over.
    fn pump(&mut self) -> bool {
        loop {
            let outbound = self.outbound.clone();
            let permit = match outbound.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return true,
                Err(mpsc::error::TrySendError::Closed(())) => return false,
            };
            let Some(message) = self.next_message() else {
                return true;
            };
            let last = matches!(message, to_edge::Message::End(_));
            permit.send(Ok(wire::ToEdge {
                message: Some(message),
            }));
            if last {
                return false;
            }
        }
    }

    fn next_message(&mut self) -> Option<to_edge::Message> {
        if let Some((ping, arrived)) = self.pongs.pop_front() {
            return Some(to_edge::Message::Pong(wire::Pong {
                t0_unix_micros: ping.t0_unix_micros,
                t1_unix_micros: arrived.unix_micros(),
                t2_unix_micros: self.clock.wall().unix_micros(),
            }));
        }
        match self.core.poll_output(self.clock.now()) {
            Some(sender::Output::Info(info)) => Some(to_edge::Message::Info(info.as_ref().into())),
            Some(sender::Output::Unit(unit)) => {
                let bytes = u64::try_from(unit.payload.len()).unwrap_or(u64::MAX);
                counter!(names::REPLICATED_BYTES).increment(bytes);
                Some(to_edge::Message::Unit(unit.as_ref().into()))
            }
            Some(sender::Output::Gap {
                track,
                epoch,
                lost,
                reason,
            }) => Some(to_edge::Message::Gap(wire::Gap {
                track_id: u32::from(track.0),
                epoch: epoch.0,
                lost_units: lost,
                reason: match reason {
                    sender::GapReason::Overflow => wire::GapReason::Overflow,
                    sender::GapReason::NotKept => wire::GapReason::NotKept,
                }
                .into(),
            })),
            None => {
                let reason = match self.end? {
                    EndReason::Ended => wire::EndReason::Ended,
                    EndReason::Moved => wire::EndReason::Moved,
                };
                Some(to_edge::Message::End(wire::End {
                    reason: reason.into(),
                }))
            }
        }
    }
}
