//! One subscriber of one stream: a task around [`Sender`].
//!
//! A session reads its stream's items always, so its queue there stays short; what the subscriber can't take yet waits in the
//! core, within its window. It ends with its call, its stream, or a peer that breaks the protocol, or when the subscriber is one too many and
//! others have room for it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headwater_media::id::NodeId;
use headwater_media::replication::sender::{GapReason, Output, Sender};
use headwater_media::time::WallTime;
use headwater_proto::convert;
use headwater_proto::replication as wire;
use headwater_proto::replication::{to_edge, to_origin};
use metrics::{counter, gauge};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tracing::debug;

use super::{EndReason, Item, Metrics, Place, Subscription, invalid};
use crate::clock::Clock;

/// Pongs that may wait (count). A subscriber pings twice a second; one that floods loses the oldest.
const PONGS_MAX: usize = 8;

/// A subscriber stays for so long at least, so that none goes to and fro while the tree is still coming about.
const SETTLED_AFTER: Duration = Duration::from_secs(5);

/// Keeps the gauge of subscribers right, however a session ends.
pub(super) struct Counted {
    gauge: &'static str,
}

impl Counted {
    pub(super) fn new(gauge: &'static str) -> Self {
        gauge!(gauge).increment(1.0);
        Self { gauge }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!(self.gauge).decrement(1.0);
    }
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) core: Sender,
    pub(super) clock: Clock,
    pub(super) me: NodeId,
    pub(super) metrics: Metrics,
    pub(super) subscription: Box<dyn Subscription>,
    pub(super) place: Place,
    pub(super) items: mpsc::Receiver<Item>,
    pub(super) inbound: Streaming<wire::ToOrigin>,
    pub(super) outbound: mpsc::Sender<Result<wire::ToEdge, Status>>,
    pub(super) counted: Counted,
}

/// See the module.
pub(super) struct Session {
    core: Sender,
    clock: Clock,
    me: NodeId,
    metrics: Metrics,
    subscription: Box<dyn Subscription>,
    place: Place,
    items: mpsc::Receiver<Item>,
    inbound: Streaming<wire::ToOrigin>,
    outbound: mpsc::Sender<Result<wire::ToEdge, Status>>,
    /// What pings said of their senders' time, and when they came.
    pongs: VecDeque<(u64, WallTime)>,
    /// The stream begins here: nobody has sent its units before.
    first: bool,
    /// The last message, once all that waits is sent.
    end: Option<to_edge::Message>,
    since: Instant,
    skips: u64,
    skipped: u64,
    _counted: Counted,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Self {
        let since = parts.clock.now();
        Self {
            core: parts.core,
            clock: parts.clock,
            me: parts.me,
            metrics: parts.metrics,
            subscription: parts.subscription,
            place: parts.place,
            items: parts.items,
            inbound: parts.inbound,
            outbound: parts.outbound,
            pongs: VecDeque::new(),
            first: false,
            end: None,
            since,
            skips: 0,
            skipped: 0,
            _counted: parts.counted,
        }
    }

    pub(super) async fn run(mut self) {
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
                    None => self.end = Some(ended(EndReason::Moved)),
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
            Item::End(reason) => self.end = Some(ended(reason)),
        }
        let (skips, skipped) = (self.core.overflows(), self.core.skipped_units());
        counter!(self.metrics.skips).increment(skips - self.skips);
        counter!(self.metrics.skipped).increment(skipped - self.skipped);
        (self.skips, self.skipped) = (skips, skipped);
    }

    fn handle_message(&mut self, message: wire::ToOrigin) -> Result<(), Status> {
        match message.message {
            Some(to_origin::Message::Ack(ack)) => self
                .core
                .handle_ack(self.clock.now(), ack.units)
                .map_err(|error| Status::invalid_argument(error.to_string())),
            Some(to_origin::Message::Ping(ping)) => {
                self.handle_ping(ping, self.clock.wall())?;
                self.shed();
                Ok(())
            }
            Some(to_origin::Message::Want(want)) => {
                let want = convert::want_from_wire(&want).map_err(|error| invalid(&error))?;
                self.subscription.want(&want);
                let fresh = self.core.handle_want(want.tracks);
                if !fresh.is_empty() {
                    self.subscription.backlog(fresh);
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

    pub(super) fn handle_ping(
        &mut self,
        ping: wire::Ping,
        arrived: WallTime,
    ) -> Result<(), Status> {
        if let Some(room) = ping.room {
            self.place.handle_room(convert::room_from_wire(room));
        }
        if let Some(avoid) = ping.avoid {
            let avoid = convert::avoid_from_wire(avoid.nodes).map_err(|error| invalid(&error))?;
            self.place.handle_avoid(avoid);
        }
        if self.pongs.len() >= PONGS_MAX {
            self.pongs.pop_front();
        }
        self.pongs.push_back((ping.t0_unix_micros, arrived));
        Ok(())
    }

    /// Sends the subscriber on, if it is one too many and others have room for it by now.
    fn shed(&mut self) {
        let stayed = self.clock.now().saturating_duration_since(self.since);
        if self.end.is_some() || stayed < SETTLED_AFTER {
            return;
        }
        if let Some(alternatives) = self.place.shed() {
            debug!(to = ?alternatives.first(), "a subscriber too many is sent on");
            counter!(self.metrics.redirects).increment(1);
            let redirect = convert::alternatives_to_wire(&alternatives);
            self.end = Some(to_edge::Message::Redirect(redirect));
        }
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
            let last = matches!(
                message,
                to_edge::Message::End(_) | to_edge::Message::Redirect(_)
            );
            permit.send(Ok(wire::ToEdge {
                message: Some(message),
            }));
            if last {
                return false;
            }
        }
    }

    fn next_message(&mut self) -> Option<to_edge::Message> {
        if let Some((t0_unix_micros, arrived)) = self.pongs.pop_front() {
            return Some(to_edge::Message::Pong(wire::Pong {
                t0_unix_micros,
                t1_unix_micros: arrived.unix_micros(),
                t2_unix_micros: self.clock.wall().unix_micros(),
                orphaned_levels: self.place.orphaned_levels(),
            }));
        }
        match self.core.poll_output(self.clock.now()) {
            Some(Output::Info(info)) => {
                self.first = info.path.depth() == 0;
                let mut info: wire::StreamInfo = info.as_ref().into();
                info.path.push(self.me.to_string());
                Some(to_edge::Message::Info(info))
            }
            Some(Output::Unit(unit)) => {
                let bytes = u64::try_from(unit.payload.len()).unwrap_or(u64::MAX);
                counter!(self.metrics.bytes).increment(bytes);
                let mut sent = wire::Unit::from(unit.as_ref());
                if self.first && unit.ingest_time != WallTime::default() {
                    let delay = self.clock.wall().since(unit.ingest_time).as_micros();
                    sent.origin_delay_micros = u32::try_from(delay).unwrap_or(u32::MAX);
                }
                Some(to_edge::Message::Unit(sent))
            }
            Some(Output::Gap {
                track,
                epoch,
                lost,
                reason,
            }) => Some(to_edge::Message::Gap(wire::Gap {
                track_id: u32::from(track.0),
                epoch: epoch.0,
                lost_units: lost,
                reason: match reason {
                    GapReason::Overflow => wire::GapReason::Overflow,
                    GapReason::NotKept => wire::GapReason::NotKept,
                }
                .into(),
            })),
            None => self.end.take(),
        }
    }
}

fn ended(reason: EndReason) -> to_edge::Message {
    let reason = match reason {
        EndReason::Ended => wire::EndReason::Ended,
        EndReason::Moved => wire::EndReason::Moved,
    };
    to_edge::Message::End(wire::End {
        reason: reason.into(),
    })
}
