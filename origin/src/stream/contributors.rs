//! The stream actor's side of its contributors: who sends which rendition, and who was sent away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use actix::{Context, Handler, Message};
use headwater_media::codec::h264;
use headwater_media::id::ContributorId;
use headwater_media::stream::Dropped;
use headwater_media::unit::{IngestUnit, MediaKind};
use metrics::counter;
use tracing::{info, warn};

use super::StreamActor;
use crate::contribution::Contributor;
use crate::metrics as names;
use crate::registry::Revoked;

/// Refusals that are remembered for the API (count).
const REFUSALS_MAX: usize = 8;

const TOO_MANY: &str = "the stream has as many renditions as it may";

/// Somebody contributes. Saying so twice changes nothing.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Contributes {
    pub(crate) contributor: Arc<Contributor>,
}

/// See [`crate::registry::Contribution::configure`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Recode {
    pub(crate) contributor: ContributorId,
    pub(crate) configuration: h264::Configuration,
}

/// A picture of a contributor.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Contribute {
    pub(crate) contributor: ContributorId,
    /// Pictures were dropped before it.
    pub(crate) after_loss: bool,
    pub(crate) unit: IngestUnit,
}

/// A contributor left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ContributorLeaves {
    pub(crate) contributor: ContributorId,
}

/// Whom a stream has, and had to send away.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    pub(crate) present: Vec<Arc<Contributor>>,
    pub(crate) refused: VecDeque<(Arc<Contributor>, &'static str, Instant)>,
}

impl Roll {
    fn take(&mut self, id: ContributorId) -> Option<Arc<Contributor>> {
        let at = self.present.iter().position(|known| known.id == id)?;
        Some(self.present.swap_remove(at))
    }

    fn refuse(&mut self, now: Instant, contributor: Arc<Contributor>, reason: &'static str) {
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.pop_front();
        }
        self.refused.push_back((contributor, reason, now));
    }
}

impl StreamActor {
    /// A contributor's rendition can't be a part of this stream.
    fn dismiss(&mut self, id: ContributorId, why: Revoked, reason: &'static str) {
        self.core.handle_contributor_leave(id);
        self.pump();
        let Some(contributor) = self.roll.take(id) else {
            return;
        };
        let (rendition, peer) = (&contributor.rendition, contributor.publisher.peer);
        warn!(stream = %self.core.name(), %rendition, %peer, reason, "a rendition is refused");
        let label = if why == Revoked::Unaligned {
            "unaligned"
        } else {
            "too_many"
        };
        counter!(names::RENDITIONS_REFUSED, "reason" => label).increment(1);
        contributor.slot.revoke(why);
        self.roll.refuse(self.clock.now(), contributor, reason);
    }
}

impl Handler<Contributes> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Contributes, _: &mut Self::Context) {
        let contributor = message.contributor;
        let (id, rendition) = (contributor.id, contributor.rendition.clone());
        if self.roll.present.iter().any(|known| known.id == id) {
            return;
        }
        // One of the same rendition that fell silent was replaced.
        let present = self.roll.present.iter();
        let before = present.filter(|known| known.rendition == rendition);
        let before: Vec<ContributorId> = before.map(|known| known.id).collect();
        for id in before {
            self.roll.take(id);
            self.core.handle_contributor_leave(id);
        }
        info!(stream = %self.core.name(), %rendition, peer = %contributor.publisher.peer, "a contributor begins");
        self.roll.present.push(contributor);
        if self.core.handle_contributor(id, rendition).is_err() {
            self.dismiss(id, Revoked::TooMany, TOO_MANY);
        }
        self.pump();
    }
}

impl Handler<Recode> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Recode, _: &mut Self::Context) {
        let id = message.contributor;
        let configured = self
            .core
            .handle_contributor_configuration(id, message.configuration);
        if configured.is_err() {
            self.dismiss(id, Revoked::TooMany, TOO_MANY);
        }
        self.pump();
    }
}

impl Handler<Contribute> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Contribute, _: &mut Context<Self>) {
        let id = message.contributor;
        if message.after_loss {
            self.core.handle_contributor_loss(id);
        }
        let bytes = u64::try_from(message.unit.payload.len()).unwrap_or(u64::MAX);
        counter!(names::INGEST_BYTES, "kind" => "video").increment(bytes);
        let now = self.clock.now();
        match self.core.handle_contributor_unit(now, id, message.unit) {
            Ok(unit) => {
                self.ingest.handle_unit(MediaKind::Video, &unit);
                self.emit(unit);
            }
            Err(dropped) => {
                self.count_drop(dropped);
                if dropped == Dropped::Unaligned {
                    let reason = "its keyframes are not at the times of the source's";
                    self.dismiss(id, Revoked::Unaligned, reason);
                }
            }
        }
    }
}

impl Handler<ContributorLeaves> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: ContributorLeaves, _: &mut Self::Context) {
        self.core.handle_contributor_leave(message.contributor);
        if let Some(contributor) = self.roll.take(message.contributor) {
            info!(stream = %self.core.name(), rendition = %contributor.rendition, "a contributor left");
        }
        self.pump();
    }
}
