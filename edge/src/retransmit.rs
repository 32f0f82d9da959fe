//! RetransmitActor: answers one viewer's NACKs.
//!
//! Owns the decision, shares the history with the shard (which notes what it sends) and the packets with everybody. Its parent is the
//! viewer's [`crate::viewer::ViewerActor`]; it lives on the shard's arbiter and ends when its parent lets go of it. It receives [`Nacks`], one
//! for each feedback datagram; when its mailbox is full they are dropped and counted, and the viewer asks again.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::{Actor, Context, Handler, Message};
use headwater_media::rtt::Trust;
use headwater_media::rtx::Retransmitter;
use headwater_media::unit::MediaKind;
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::mpsc;

use crate::metrics::{MAILBOX_FULL, NACKED, NACKS_UNANSWERED, RESENT_BYTES, RESENT_SPARE};
use crate::round_trip::RoundTrip;
use crate::shard::stream::SharedRings;
use crate::shard::{Command, Counters, ViewerId};

/// Feedback datagrams waiting (count). One comes every 50 ms or so.
const MAILBOX: usize = 32;

/// The histories of a viewer's RTP streams that have RTX.
#[derive(Debug, Default)]
pub(crate) struct Retransmitters {
    pub(crate) video: Option<Rc<RefCell<Retransmitter>>>,
    pub(crate) audio: Option<Rc<RefCell<Retransmitter>>>,
}

/// Packets that a viewer misses.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Nacks {
    pub(crate) kind: MediaKind,
    pub(crate) lost: Vec<u16>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RetransmitActor {
    pub(crate) viewer: ViewerId,
    pub(crate) cores: Retransmitters,
    pub(crate) rings: SharedRings,
    pub(crate) round_trip: RoundTrip,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Actor for RetransmitActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Nacks> for RetransmitActor {
    type Result = ();

    fn handle(&mut self, message: Nacks, _: &mut Context<Self>) {
        let asked = message.lost.len() as u64;
        self.counters.nacks.fetch_add(asked, Ordering::Relaxed);
        counter!(NACKED).increment(asked);
        let core = match message.kind {
            MediaKind::Video => &self.cores.video,
            MediaKind::Audio => &self.cores.audio,
        };
        let Some(core) = core else {
            counter!(NACKS_UNANSWERED, "reason" => "no_rtx").increment(asked);
            return;
        };
        let now = self.clock.now();
        let mut core = core.borrow_mut();
        if let Some(took) = core.since_noticed(now, &message.lost) {
            self.round_trip.note(Trust::AtMost, took);
        }
        let rings = self.rings.borrow();
        let mut packets = Vec::with_capacity(message.lost.len());
        let before = core.counters();
        let keyframe = core.handle_nack(
            now,
            message.lost,
            self.round_trip.estimate(),
            |track, index| rings.payload_bytes(track, index),
            &mut packets,
        );
        let after = core.counters();
        for (reason, count) in [
            ("suppressed", after.suppressed - before.suppressed),
            ("over_budget", after.over_budget - before.over_budget),
            ("too_late", after.too_late - before.too_late),
            ("out_of_ring", after.out_of_ring - before.out_of_ring),
            ("unknown", after.unknown - before.unknown),
        ] {
            if count > 0 {
                counter!(NACKS_UNANSWERED, "reason" => reason).increment(count);
            }
        }
        counter!(RESENT_BYTES).increment(after.sent_bytes - before.sent_bytes);
        counter!(RESENT_SPARE).increment(after.spare - before.spare);
        let command = |command| {
            if self.commands.try_send(command).is_err() {
                counter!(MAILBOX_FULL, "link" => "commands").increment(1);
            }
        };
        if !packets.is_empty() {
            command(Command::Resend {
                viewer: self.viewer,
                kind: message.kind,
                packets,
            });
        }
        // Sound has no keyframes, and a lost packet of it is no reason to send pictures.
        if keyframe.is_some() && message.kind == MediaKind::Video {
            command(Command::KeyframeAsked {
                viewer: self.viewer,
            });
        }
    }
}
