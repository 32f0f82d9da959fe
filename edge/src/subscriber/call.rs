//! A call to one upstream: from `Subscribe` to whatever ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::replication::Want;
use headwater_media::replication::clock::Exchange;
use headwater_media::replication::receiver::{Output, Received};
use headwater_media::time::WallTime;
use headwater_media::track::StreamInfo;
use headwater_media::tree::{Candidate, Patience};
use headwater_media::unit::AccessUnit;
use headwater_node::backoff::jitter;
use headwater_node::directory::Upstream;
use headwater_node::trace::{self, Span};
use headwater_proto::convert;
use headwater_proto::replication as wire;
use headwater_proto::replication::{to_edge, to_origin};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use tracing::{debug, info, warn};

use super::leg::Leg;
use super::trunk::Standing;
use super::{Outcome, Stopped};
use crate::latency::CallClock;
use crate::upstream::{Connection, Purpose, outages};

mod moved;
mod orphaned;

use moved::Elsewhere;
use orphaned::Asking;

/// An origin that takes longer to accept a subscription is left for the next, and an edge, of which there are others.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
const SUBSCRIBE_TIMEOUT_EDGE: Duration = Duration::from_secs(1);

/// Messages to the upstream that may wait (count): acknowledgements and pings of several seconds.
const OUTBOUND_QUEUE: usize = 64;

/// An accepted call.
struct Call<'a> {
    /// What the directory names.
    root: &'a Upstream,
    /// Who is asked.
    candidate: &'a Candidate,
    outbound: mpsc::Sender<wire::ToOrigin>,
    inbound: tonic::Streaming<wire::ToEdge>,
    /// Other tracks are wanted than the upstream knows.
    want_due: bool,
    /// The upstream shall hear at once what this node can take: it sends nobody here before.
    room_due: bool,
    /// Something came other than a redirection.
    begun: bool,
    /// Since when a newer publisher is known than this call brings.
    moved_since: Option<Instant>,
    /// For an upstream that gets nothing itself.
    patience: Patience,
    /// The stream's owner is asked whether it has it.
    asking: Option<Asking>,
    elsewhere: Elsewhere,
    clock: CallClock,
    /// The way there is broken, not only this call.
    broken: bool,
}

/// What an accepted call is read and answered by.
type Opened = (
    Arc<Connection>,
    mpsc::Sender<wire::ToOrigin>,
    tonic::Streaming<wire::ToEdge>,
);

impl Call<'_> {
    fn url(&self) -> &str {
        &self.candidate.grpc_url
    }

    /// By the origin itself.
    fn direct(&self) -> bool {
        self.candidate.node.is_none()
    }
}

impl Leg {
    /// Asks one upstream, and reads what it sends until that ends.
    pub(super) async fn subscribe(&mut self, root: &Upstream, candidate: &Candidate) -> Outcome {
        let mut span = trace::follow("subscribe", trace::Kind::Client, self.trace);
        span.set("stream", &self.trunk.name);
        span.set("upstream", &candidate.grpc_url);
        let opened = self.open(candidate, &span).await;
        let (connection, outbound, inbound) = match opened {
            Ok(opened) => opened,
            Err(outcome) => {
                span.fail(outcome.label());
                return outcome;
            }
        };
        // What follows lasts as long as the stream is watched.
        drop(span);
        let mut call = Call {
            root,
            candidate,
            outbound,
            inbound,
            want_due: false,
            room_due: self.trunk.relay.is_some(),
            begun: false,
            moved_since: None,
            patience: Patience::new(jitter(Patience::SPREAD)),
            asking: None,
            elsewhere: Elsewhere::default(),
            clock: self.trunk.options.clocks.call(),
            broken: false,
        };
        let outcome = self.serve(&mut call).await;
        if !matches!(outcome, Outcome::Redirected(_)) {
            self.trace = None;
        }
        if call.broken {
            connection.discard();
        }
        outcome
    }

    /// Asks one upstream; the outcome, if it doesn't accept.
    async fn open(&mut self, candidate: &Candidate, span: &Span) -> Result<Opened, Outcome> {
        let url = candidate.grpc_url.as_str();
        let connection = Connection::shared(&self.trunk.node, url, Purpose::Streams);
        let patience = if candidate.node.is_some() {
            SUBSCRIBE_TIMEOUT_EDGE
        } else {
            SUBSCRIBE_TIMEOUT
        };
        let mut client = match tokio::time::timeout(patience, connection.replication()).await {
            Ok(Ok(client)) => client,
            Err(_) => {
                outages::report(&self.trunk.node, url, "no connection in time");
                connection.discard();
                return Err(Outcome::Failed);
            }
            Ok(Err(error)) => {
                outages::report(&self.trunk.node, url, &outages::chain(&error));
                connection.discard();
                return Err(Outcome::Failed);
            }
        };
        let (outbound, requests) = mpsc::channel(OUTBOUND_QUEUE);
        let (epoch, have) = self.trunk.have();
        self.core.handle_positions(epoch, &have);
        self.core.handle_connected(self.trunk.node.clock.now());
        let want = self.want();
        let avoid = self.avoid();
        let subscribe = wire::Subscribe {
            stream: self.trunk.name.to_string(),
            have: convert::have_to_wire(&self.core.have()),
            want: Some(convert::want_to_wire(&want)),
            ping: Some(self.ping()),
            node: self.trunk.node.id.to_string(),
            grpc_url: self.trunk.options.grpc_url.clone(),
            room: self.room(),
            redirects_left: candidate.redirects_left,
            avoid: avoid.iter().map(ToString::to_string).collect(),
        };
        // The queue is new and empty.
        let _ = outbound.try_send(message(to_origin::Message::Subscribe(subscribe)));
        let mut request = tonic::Request::new(ReceiverStream::new(requests));
        if let Some(context) = span.context() {
            context.put(request.metadata_mut());
        }
        let call = client.subscribe(request);
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(response)) => Ok((connection, outbound, response.into_inner())),
            Ok(Err(status)) if status.code() == Code::NotFound => Err(Outcome::NotFound),
            Ok(Err(status)) => {
                let broken = broken(&status);
                if broken {
                    connection.discard();
                }
                // Edges send others away as a matter of course, and so do origins one that has its other way by them.
                if broken || (candidate.node.is_none() && self.trunk.alone(self.index)) {
                    outages::report(&self.trunk.node, url, &outages::refusal(&status));
                } else {
                    debug!(upstream = url, %status, "refused");
                }
                // What is wrong with the way to it won't change in a moment.
                if broken || status.code() == Code::FailedPrecondition {
                    return Err(Outcome::Failed);
                }
                Err(Outcome::Refused)
            }
            Err(_) => {
                outages::report(&self.trunk.node, url, "no answer in time");
                connection.discard();
                Err(Outcome::Failed)
            }
        }
    }

    /// What the replica and those whom this node feeds want now.
    fn want(&mut self) -> Want {
        let own = self.own.borrow_and_update().clone();
        let all = own.union(&self.children.borrow_and_update());
        self.trunk.handle_want(&own, &all);
        self.core.handle_want(&all.tracks);
        all
    }

    fn room(&self) -> Option<wire::Room> {
        let relay = self.trunk.relay.as_ref()?;
        Some(convert::room_to_wire(relay.branch().room()))
    }

    fn ping(&mut self) -> wire::Ping {
        let avoid = self.avoid();
        let nodes = avoid.iter().map(ToString::to_string).collect();
        wire::Ping {
            t0_unix_micros: self.trunk.node.clock.wall().unix_micros(),
            room: self.room(),
            avoid: Some(wire::Avoid { nodes }),
        }
    }

    /// Runs an accepted call to its end.
    async fn serve(&mut self, call: &mut Call<'_>) -> Outcome {
        let mut changes = self.trunk.node.directory.changes();
        let (mut own_ends, mut children_end) = (false, false);
        loop {
            self.pump(call);
            if self.core.upstream_dead() {
                warn!(
                    upstream = call.url(),
                    "the upstream is dead: pings go unanswered"
                );
                call.broken = true;
                return Outcome::Lost;
            }
            self.look_elsewhere(call);
            if self.left_behind(call) {
                info!(upstream = call.url(), "the stream has moved");
                return Outcome::Lost;
            }
            if self.waited_enough(call) {
                info!(upstream = call.url(), "the upstream finds none itself");
                return Outcome::Lost;
            }
            let wakes = [
                self.core.poll_timeout(),
                self.trunk.poll_timeout(),
                call.patience.poll_timeout(),
                call.elsewhere.poll_timeout(),
            ];
            let wake = wakes.into_iter().flatten().min();
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let asking = &mut call.asking;
            let answer = async {
                match asking {
                    Some(asking) => asking.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                message = call.inbound.message() => match message {
                    Ok(Some(message)) => match self.handle_message(message, call) {
                        Ok(None) => {}
                        Ok(Some(outcome)) => return outcome,
                        Err(Stopped) => return Outcome::Stopped,
                    },
                    Ok(None) => return Outcome::Lost,
                    Err(status) => {
                        info!(upstream = call.url(), %status, "the upstream is lost");
                        call.broken = broken(&status);
                        return Outcome::Lost;
                    }
                },
                changed = self.own.changed(), if !own_ends => {
                    own_ends = changed.is_err();
                    call.want_due |= !own_ends;
                }
                changed = self.children.changed(), if !children_end => {
                    children_end = changed.is_err();
                    call.want_due |= !children_end;
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Outcome::Lost;
                    }
                }
                answer = answer => {
                    call.asking = None;
                    let now = self.trunk.node.clock.now();
                    call.patience.handle_answer(now, answer);
                }
                found = call.elsewhere.found() => if let Some(url) = found {
                    info!(upstream = call.url(), to = %url, "the publisher is with another origin");
                    self.preferred = Some(url);
                    return Outcome::Lost;
                },
                () = sleep => {
                    if self.trunk.handle_timeout().is_err() {
                        return Outcome::Stopped;
                    }
                }
            }
        }
    }

    /// Sends what is due.
    fn pump(&mut self, call: &mut Call<'_>) {
        let now = self.trunk.node.clock.now();
        while let Some(output) = self.core.poll_output(now) {
            let sent = match output {
                Output::Ack { units } => to_origin::Message::Ack(wire::Ack { units }),
                Output::Ping => to_origin::Message::Ping(self.ping()),
            };
            if call.outbound.try_send(message(sent)).is_err() {
                self.core.handle_unsent(now, output);
            }
        }
        if call.room_due
            && self.trunk.connected_by(self.index)
            && call
                .outbound
                .try_send(message(to_origin::Message::Ping(self.ping())))
                .is_ok()
        {
            call.room_due = false;
        }
        if call.want_due
            && let Ok(permit) = call.outbound.try_reserve()
        {
            let want = self.want();
            permit.send(message(to_origin::Message::Want(convert::want_to_wire(
                &want,
            ))));
            call.want_due = false;
        }
    }

    fn handle_message(
        &mut self,
        message: wire::ToEdge,
        call: &mut Call<'_>,
    ) -> Result<Option<Outcome>, Stopped> {
        let begun = std::mem::replace(&mut call.begun, true);
        match message.message {
            Some(to_edge::Message::Info(info)) => return Ok(self.handle_info(info, call)),
            Some(to_edge::Message::Unit(unit)) => match AccessUnit::try_from(unit) {
                Ok(unit) => self.handle_unit(unit, call)?,
                Err(error) => {
                    warn!(upstream = call.url(), %error, "the upstream sends nonsense");
                    return Ok(Some(Outcome::Lost));
                }
            },
            Some(to_edge::Message::Pong(pong)) => {
                let clock = &self.trunk.node.clock;
                let now = clock.now();
                let at = WallTime::from_unix_micros;
                let exchange = Exchange {
                    t0: at(pong.t0_unix_micros),
                    t1: at(pong.t1_unix_micros),
                    t2: at(pong.t2_unix_micros),
                    t3: clock.wall_at(now),
                };
                self.core.handle_pong(now, exchange);
                let measured = self.core.clock();
                if let (Some(offset), Some(round_trip)) =
                    (measured.offset_micros(), measured.round_trip())
                {
                    call.clock.set(offset, round_trip);
                }
                self.handle_orphaned(pong.orphaned_levels, call);
            }
            Some(to_edge::Message::End(end)) => {
                let ended = end.reason() == wire::EndReason::Ended;
                info!(upstream = call.url(), ended, "the upstream ends the stream");
                return Ok(Some(if ended { Outcome::Ended } else { Outcome::Lost }));
            }
            Some(to_edge::Message::Redirect(redirect)) => {
                let alternatives = convert::alternatives_from_wire(redirect);
                return Ok(Some(match alternatives {
                    Ok(alternatives) if !begun => Outcome::Redirected(alternatives),
                    // It was taken already, and is one too many now.
                    Ok(_) => Outcome::Shed,
                    Err(error) => {
                        warn!(upstream = call.url(), %error, "the upstream sends nonsense");
                        Outcome::Failed
                    }
                }));
            }
            // A gap shows in the sequence numbers; a newer upstream may say more than this node knows.
            Some(to_edge::Message::Gap(_)) | None => self.core.handle_life(),
        }
        Ok(None)
    }

    fn handle_info(&mut self, info: wire::StreamInfo, call: &mut Call<'_>) -> Option<Outcome> {
        let info = match StreamInfo::try_from(info) {
            Ok(info) if info.name == self.trunk.name => info,
            Ok(info) => {
                warn!(upstream = call.url(), got = %info.name, "the upstream sends another stream");
                return Some(Outcome::Failed);
            }
            Err(error) => {
                warn!(upstream = call.url(), %error, "the upstream sends nonsense");
                return Some(Outcome::Failed);
            }
        };
        if info.path.contains(&self.trunk.node.id) {
            info!(upstream = call.url(), "this node would feed itself");
            return Some(Outcome::Failed);
        }
        if info.path.depth() > self.trunk.options.depth_max {
            info!(
                upstream = call.url(),
                depth = info.path.depth(),
                "the upstream is too far from the origin"
            );
            return Some(Outcome::Failed);
        }
        if let Err(stale) = self.core.handle_info(&info) {
            // A directory that lost its data starts its epochs anew, and then names the lower one itself.
            let outdated = call.root.epoch.is_some_and(|named| info.epoch < named);
            if outdated || !self.trunk.alone(self.index) {
                debug!(upstream = call.url(), %stale, "the upstream no longer owns the stream");
                return Some(Outcome::Failed);
            }
            // Nothing fences the origins of a fixed list either: one whose clock was set back gives lower epochs after its restart.
            info!(upstream = call.url(), %stale, "the upstream starts anew");
            self.core.reset();
            self.trunk.reset();
            // Nothing is older than nothing.
            let _ = self.core.handle_info(&info);
        }
        self.parent = info.path.nodes().last().cloned();
        call.patience.handle_fed();
        call.asking = None;
        call.elsewhere
            .handle_info(self.trunk.node.clock.now(), info.publishing);
        match self.trunk.handle_info(self.index, &Arc::new(info)) {
            Standing::Counts => None,
            Standing::Behind => {
                debug!(
                    upstream = call.url(),
                    "another upstream knows a newer publisher"
                );
                None
            }
            Standing::Shares => {
                info!(upstream = call.url(), "another upstream comes the same way");
                Some(Outcome::Failed)
            }
        }
    }

    fn handle_unit(&mut self, unit: AccessUnit, call: &Call<'_>) -> Result<(), Stopped> {
        let now = self.trunk.node.clock.now();
        // What is missing shows again where the legs come together.
        let Received::Deliver { unit, .. } = self.core.handle_unit(now, unit) else {
            return Ok(());
        };
        if !call.patience.waits() {
            self.handle_served(call.direct());
        }
        self.trunk.handle_unit(self.index, unit)
    }
}

/// The connection failed, rather than that the upstream said no.
fn broken(status: &Status) -> bool {
    // What an upstream says has no cause on this side.
    std::error::Error::source(status).is_some()
        || matches!(status.code(), Code::Internal | Code::Unknown)
}

const fn message(message: to_origin::Message) -> wire::ToOrigin {
    wire::ToOrigin {
        message: Some(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_upstream_answers_breaks_no_connection() {
        assert!(!broken(&Status::unavailable("it has no upstream just now")));
        assert!(!broken(&Status::resource_exhausted("full")));
        let cut = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(broken(&Status::from_error(Box::new(cut))));
    }
}
