//! The registry's side of contributors: who may send which rendition, and who waits for a source in vain.

use std::sync::Arc;

use actix::{Handler, Message};
use headwater_media::id::{ContributorId, RenditionName};
use metrics::counter;

use super::actor::StreamRegistry;
use super::{PublishError, PublishRequest};
use crate::contribution::{Contribution, Contributor, Refused};
use crate::describe::Publisher;
use crate::metrics as names;

/// See [`super::Registry::contribute`].
#[derive(Message)]
#[rtype(result = "Result<Contribution, PublishError>")]
pub(super) struct Join(pub(super) PublishRequest, pub(super) RenditionName);

impl StreamRegistry {
    /// Contributors who wait in vain for somebody to publish the source.
    pub(super) fn expire_contributors(&mut self) {
        let (now, patience) = (self.node.clock.now(), self.config.hold());
        self.entries.retain(|_, entry| {
            let waiting = entry.live.is_none() && !entry.claiming;
            !(waiting && entry.contributors.expire(now, patience))
        });
    }

    fn join(
        &mut self,
        request: PublishRequest,
        rendition: RenditionName,
    ) -> Result<Contribution, PublishError> {
        if self.leaving() {
            return Err(PublishError::Stopping);
        }
        let known = self.entries.contains_key(&request.name);
        if !known && self.entries.len() >= self.config.streams_max {
            return Err(PublishError::TooManyStreams);
        }
        let clock = &self.node.clock;
        self.next_contributor += 1;
        let publisher = Publisher {
            peer: request.peer,
            encoder: request.encoder,
            since: clock.now(),
            metadata: None,
        };
        let id = ContributorId(self.next_contributor);
        let contributor = Arc::new(Contributor::new(id, rendition, publisher, clock));
        let entry = self.entries.entry(request.name).or_default();
        let added = entry
            .contributors
            .add(Arc::clone(&contributor), clock, self.config.takeover());
        added.map_err(|refused| match refused {
            Refused::Busy => PublishError::Busy,
            Refused::TooMany => PublishError::TooManyStreams,
        })?;
        if let Some(live) = &entry.live {
            contributor.connect(&live.actor);
        }
        Ok(Contribution::new(contributor, clock.clone()))
    }
}

impl Handler<Join> for StreamRegistry {
    type Result = Result<Contribution, PublishError>;

    fn handle(&mut self, Join(request, rendition): Join, _: &mut Self::Context) -> Self::Result {
        let answer = self.join(request, rendition);
        let outcome = if answer.is_ok() {
            "accepted"
        } else {
            "refused"
        };
        counter!(names::CONTRIBUTORS, "outcome" => outcome).increment(1);
        answer
    }
}
