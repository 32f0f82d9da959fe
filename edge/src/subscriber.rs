//! The replication client: one subscription per stream this edge replicates, whatever its upstream does.
//!
//! A task on the I/O runtime around [`Receiver`], started by a replica and ended by dropping its [`Handle`]. It reads always; what
//! the replica's mailbox refuses is dropped to the track's next keyframe. It finds upstreams in the directory, asks them one
//! by one, resumes by sequence after a cut, leaves an upstream that is dead or that the directory no longer names, and keeps looking
//! for as long as it lives.

use std::time::Duration;

use headwater_media::id::StreamName;
use headwater_media::replication::clock::Exchange;
use headwater_media::replication::receiver::{Output, Received};
use headwater_media::replication::{Position, Receiver, Want};
use headwater_media::time::WallTime;
use headwater_media::track::StreamInfo;
use headwater_media::unit::AccessUnit;
use headwater_node::Node;
use headwater_node::actor::{Sender, Undelivered};
use headwater_node::backoff::Backoff;
use headwater_node::directory::Upstream;
use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use headwater_proto::convert;
use headwater_proto::replication as wire;
use headwater_proto::replication::{to_edge, to_origin};
use metrics::{counter, describe_counter};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Code;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::locate;
use crate::replica::{Feed, UpstreamState};
use crate::upstream::Connection;

/// First and longest wait between attempts. The longest bounds how late a stream is found that nothing announces (fixed lists).
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// An upstream that takes longer to accept a subscription is left for the next.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages to the upstream that may wait (count): acknowledgements and pings of several seconds.
const OUTBOUND_QUEUE: usize = 64;

/// Units the replica's full mailbox refused.
const REFUSED: &str = "headwater_edge_upstream_units_refused_total";
/// Attempts to subscribe, by outcome.
const ATTEMPTS: &str = "headwater_edge_upstream_attempts_total";
/// Units that were missing in what came.
const LOST: &str = "headwater_edge_upstream_units_lost_total";

/// Registers the help texts.
pub(crate) fn describe_metrics() {
    describe_counter!(
        REFUSED,
        "access units that a replica's full mailbox refused"
    );
    describe_counter!(ATTEMPTS, "attempts to subscribe at an upstream, by outcome");
    describe_counter!(LOST, "access units missing in what an upstream sent");
    start_at_zero(&[REFUSED, LOST]);
    start_at_zero_by(
        ATTEMPTS,
        "outcome",
        &["not_found", "failed", "lost", "ended", "stopped"],
    );
}

/// A running subscription. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Handle {
    _stop: DropGuard,
}

/// Subscribes to a stream and keeps `feed` supplied until the handle is dropped: finds an upstream, resumes by sequence
/// after a cut, follows the directory, and retries with a capped, jittered backoff.
///
/// Runs on `node.io`; may be called from any thread.
pub fn spawn(
    node: &Node,
    name: StreamName,
    wants: watch::Receiver<Want>,
    feed: Sender<Feed>,
) -> Handle {
    // Not the node's: while it drains, its viewers watch on.
    let stop = CancellationToken::new();
    let span = info_span!("subscriber", stream = %name);
    let subscriber = Subscriber {
        node: node.clone(),
        name,
        wants,
        feed,
        stop: stop.clone(),
        core: Receiver::default(),
        told: None,
        served: false,
    };
    node.io.spawn(subscriber.run().instrument(span));
    Handle {
        _stop: stop.drop_guard(),
    }
}

/// How an attempt at one upstream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It has no such stream.
    NotFound,
    /// It can't be reached, or refused.
    Failed,
    /// It served for a while and is lost, or has the stream no longer.
    Lost,
    /// The stream is over.
    Ended,
    /// This subscription is to end.
    Stopped,
}

/// The replica is gone, or wants no more.
struct Stopped;

struct Subscriber {
    node: Node,
    name: StreamName,
    wants: watch::Receiver<Want>,
    feed: Sender<Feed>,
    stop: CancellationToken,
    core: Receiver,
    told: Option<UpstreamState>,
    /// Units came in the last call: whatever ended it, the way there is good.
    served: bool,
}

impl Subscriber {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        let mut changes = self.node.directory.changes();
        loop {
            changes.mark_unchanged();
            let outcome = self.try_all().await;
            match outcome {
                Outcome::Stopped => return,
                Outcome::Ended => self.tell(UpstreamState::Ended),
                Outcome::Lost | Outcome::Failed => self.tell(UpstreamState::Lost),
                // What has ended is not found either, which is no news.
                Outcome::NotFound if self.told == Some(UpstreamState::Ended) => {}
                Outcome::NotFound => self.tell(UpstreamState::NotFound),
            }
            if std::mem::take(&mut self.served) {
                backoff.reset();
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(backoff.wait()) => {}
                changed = changes.changed(), if outcome != Outcome::Lost => {
                    if changed.is_err() {
                        // The directory is gone, and so is this node.
                        return;
                    }
                }
            }
        }
    }

    fn tell(&mut self, state: UpstreamState) {
        if self.told != Some(state) {
            self.told = Some(state);
            debug!(?state, "upstream");
            self.feed.post(Feed::Upstream(state));
        }
    }

    /// Asks who may have the stream, one by one, until one serves it.
    async fn try_all(&mut self) -> Outcome {
        let upstreams = locate::upstreams(&self.node, &self.name);
        if upstreams.is_empty() && !self.node.directory.synced() {
            return Outcome::Failed;
        }
        let mut worst = Outcome::NotFound;
        for upstream in upstreams {
            let outcome = self.attempt(&upstream).await;
            let label = match outcome {
                Outcome::NotFound => "not_found",
                Outcome::Failed => "failed",
                Outcome::Lost => "lost",
                Outcome::Ended => "ended",
                Outcome::Stopped => "stopped",
            };
            counter!(ATTEMPTS, "outcome" => label).increment(1);
            match outcome {
                Outcome::NotFound => {}
                // The publisher may have moved to another origin of the list.
                Outcome::Ended if upstream.epoch.is_none() => worst = Outcome::Ended,
                Outcome::Failed if worst == Outcome::Ended => {}
                Outcome::Failed => worst = Outcome::Failed,
                Outcome::Lost | Outcome::Ended | Outcome::Stopped => return outcome,
            }
        }
        worst
    }

    async fn attempt(&mut self, upstream: &Upstream) -> Outcome {
        let stop = self.stop.clone();
        let outcome = tokio::select! {
            () = stop.cancelled() => Outcome::Stopped,
            outcome = self.subscribe(upstream) => outcome,
        };
        self.core.handle_disconnected();
        outcome
    }

    async fn subscribe(&mut self, upstream: &Upstream) -> Outcome {
        let url = upstream.grpc_url.as_str();
        let connection = Connection::shared(&self.node, url);
        let mut client = match connection.client().await {
            Ok(client) => client,
            Err(error) => {
                debug!(upstream = url, %error, "no connection");
                connection.discard();
                return Outcome::Failed;
            }
        };
        let (outbound, requests) = mpsc::channel(OUTBOUND_QUEUE);
        self.core.handle_connected(self.node.clock.now());
        let want = self.want();
        self.core.handle_want(&want.tracks);
        let subscribe = self.hello(&want);
        // The queue is new and empty.
        let _ = outbound.try_send(message(to_origin::Message::Subscribe(subscribe)));
        let call = client.subscribe(ReceiverStream::new(requests));
        let inbound = match tokio::time::timeout(SUBSCRIBE_TIMEOUT, call).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) if status.code() == Code::NotFound => return Outcome::NotFound,
            Ok(Err(status)) => {
                debug!(upstream = url, %status, "refused");
                if !matches!(
                    status.code(),
                    Code::ResourceExhausted | Code::InvalidArgument
                ) {
                    connection.discard();
                }
                return Outcome::Failed;
            }
            Err(_) => {
                debug!(upstream = url, "does not answer");
                connection.discard();
                return Outcome::Failed;
            }
        };
        let call = Call {
            upstream: upstream.clone(),
            outbound,
            inbound,
            want_due: false,
        };
        let outcome = self.serve(call).await;
        if outcome == Outcome::Lost {
            connection.discard();
        }
        outcome
    }

    fn want(&mut self) -> Want {
        self.wants.borrow_and_update().clone()
    }

    fn hello(&self, want: &Want) -> wire::Subscribe {
        let have: Vec<Position> = self.core.have();
        wire::Subscribe {
            stream: self.name.to_string(),
            have: convert::have_to_wire(&have),
            want: Some(convert::want_to_wire(want)),
            ping: Some(self.ping()),
            node: self.node.id.to_string(),
            ..wire::Subscribe::default()
        }
    }

    fn ping(&self) -> wire::Ping {
        wire::Ping {
            t0_unix_micros: self.node.clock.wall().unix_micros(),
            room: None,
        }
    }

    /// Runs an accepted call to its end.
    async fn serve(&mut self, mut call: Call) -> Outcome {
        let mut changes = self.node.directory.changes();
        let mut wants_end = false;
        loop {
            self.pump(&mut call);
            if self.core.upstream_dead() {
                warn!(
                    upstream = call.upstream.grpc_url,
                    "the upstream is dead: pings go unanswered"
                );
                return Outcome::Lost;
            }
            let wake = self.core.poll_timeout();
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = call.inbound.message() => match message {
                    Ok(Some(message)) => match self.handle_message(message, &call.upstream) {
                        Ok(None) => {}
                        Ok(Some(outcome)) => return outcome,
                        Err(Stopped) => return Outcome::Stopped,
                    },
                    Ok(None) => return Outcome::Lost,
                    Err(status) => {
                        info!(upstream = call.upstream.grpc_url, %status, "the upstream is lost");
                        return Outcome::Lost;
                    }
                },
                changed = self.wants.changed(), if !wants_end => {
                    wants_end = changed.is_err();
                    call.want_due = true;
                }
                changed = changes.changed() => {
                    let url = &call.upstream.grpc_url;
                    if changed.is_err() || locate::moved(&self.node, &self.name, url, self.core.epoch()) {
                        info!(upstream = url, "the stream has moved");
                        return Outcome::Lost;
                    }
                }
                () = sleep => {}
            }
        }
    }

    /// Sends what is due.
    fn pump(&mut self, call: &mut Call) {
        while let Some(output) = self.core.poll_output(self.node.clock.now()) {
            let output = match output {
                Output::Ack { units } => to_origin::Message::Ack(wire::Ack { units }),
                Output::Ping => to_origin::Message::Ping(self.ping()),
            };
            // On a full queue the next one says the same; an upstream that takes none for long is dead by its pings.
            let _ = call.outbound.try_send(message(output));
        }
        if call.want_due {
            let want = self.want();
            let told = to_origin::Message::Want(convert::want_to_wire(&want));
            if call.outbound.try_send(message(told)).is_ok() {
                call.want_due = false;
                self.core.handle_want(&want.tracks);
            }
        }
    }

    fn handle_message(
        &mut self,
        message: wire::ToEdge,
        upstream: &Upstream,
    ) -> Result<Option<Outcome>, Stopped> {
        match message.message {
            Some(to_edge::Message::Info(info)) => return Ok(self.handle_info(info, upstream)),
            Some(to_edge::Message::Unit(unit)) => match AccessUnit::try_from(unit) {
                Ok(unit) => self.handle_unit(unit)?,
                Err(error) => {
                    warn!(upstream = upstream.grpc_url, %error, "the upstream sends nonsense");
                    return Ok(Some(Outcome::Lost));
                }
            },
            Some(to_edge::Message::Pong(pong)) => {
                let now = self.node.clock.now();
                let at = WallTime::from_unix_micros;
                let exchange = Exchange {
                    t0: at(pong.t0_unix_micros),
                    t1: at(pong.t1_unix_micros),
                    t2: at(pong.t2_unix_micros),
                    t3: self.node.clock.wall_at(now),
                };
                self.core.handle_pong(now, exchange);
            }
            Some(to_edge::Message::End(end)) => {
                let ended = end.reason() == wire::EndReason::Ended;
                info!(
                    upstream = upstream.grpc_url,
                    ended, "the upstream ends the stream"
                );
                return Ok(Some(if ended { Outcome::Ended } else { Outcome::Lost }));
            }
            // Nobody redirects who says that it follows no redirection.
            Some(to_edge::Message::Redirect(_)) => return Ok(Some(Outcome::Failed)),
            // A gap shows in the sequence numbers; a newer upstream may say more than this node knows.
            Some(to_edge::Message::Gap(_)) | None => self.core.handle_life(),
        }
        Ok(None)
    }

    fn handle_info(&mut self, info: wire::StreamInfo, upstream: &Upstream) -> Option<Outcome> {
        let info = match StreamInfo::try_from(info) {
            Ok(info) if info.name == self.name => info,
            Ok(info) => {
                warn!(upstream = upstream.grpc_url, got = %info.name, "the upstream sends another stream");
                return Some(Outcome::Failed);
            }
            Err(error) => {
                warn!(upstream = upstream.grpc_url, %error, "the upstream sends nonsense");
                return Some(Outcome::Failed);
            }
        };
        if let Err(stale) = self.core.handle_info(&info) {
            // A directory that lost its data starts its epochs anew, and then names the lower one itself.
            if upstream.epoch.is_some_and(|named| info.epoch < named) {
                debug!(upstream = upstream.grpc_url, %stale, "the upstream no longer owns the stream");
                return Some(Outcome::Failed);
            }
            // Nothing fences the origins of a fixed list either: one whose clock was set back gives lower epochs after its restart.
            info!(upstream = upstream.grpc_url, %stale, "the upstream starts anew");
            self.core.reset();
            // Nothing is older than nothing.
            let _ = self.core.handle_info(&info);
        }
        self.tell(UpstreamState::Connected);
        self.feed.post(Feed::Info(info.into()));
        None
    }

    fn handle_unit(&mut self, unit: AccessUnit) -> Result<(), Stopped> {
        let Received::Deliver { lost, unit } = self.core.handle_unit(self.node.clock.now(), unit)
        else {
            return Ok(());
        };
        self.served = true;
        let track = unit.track;
        if lost > 0 {
            counter!(LOST).increment(lost);
            self.feed.post(Feed::Gap { track, lost });
        }
        match self.feed.try_send(Feed::Unit(unit)) {
            Ok(()) => Ok(()),
            Err(Undelivered::Full) => {
                counter!(REFUSED).increment(1);
                self.core.handle_refused(track);
                Ok(())
            }
            Err(Undelivered::Closed) => Err(Stopped),
        }
    }
}

/// An accepted call.
struct Call {
    upstream: Upstream,
    outbound: mpsc::Sender<wire::ToOrigin>,
    inbound: tonic::Streaming<wire::ToEdge>,
    /// Other tracks are wanted than the upstream knows.
    want_due: bool,
}

const fn message(message: to_origin::Message) -> wire::ToOrigin {
    wire::ToOrigin {
        message: Some(message),
    }
}
