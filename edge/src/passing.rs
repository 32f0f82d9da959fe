//! This edge's replicas as other edges subscribe to them: [`Source`] over the registry.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::{StreamName, TrackId};
use headwater_media::replication::{Position, Want};
use headwater_node::replication::{Attached, Live, Source, Subscription, Unattached};

use crate::registry::{ChildHold, Registry};
use crate::relay::Relay;

impl Source for Registry {
    fn attach(
        &self,
        name: StreamName,
        have: Vec<Position>,
        want: Want,
    ) -> BoxFuture<'_, Result<Attached, Unattached>> {
        // Only what is here already: whoever was sent here was sent because it is.
        let attached = self.relay(&name).and_then(|(hold, relay)| {
            let start = relay.attach(&have, want)?;
            Some(Attached {
                attachment: start.attachment,
                items: start.items,
                subscription: Box::new(Link {
                    relay,
                    id: start.id,
                    _hold: hold,
                }),
            })
        });
        std::future::ready(attached.ok_or(Unattached::NotFound)).boxed()
    }

    fn live(&self, _only: Option<StreamName>) -> BoxFuture<'_, Result<Vec<Live>, Unattached>> {
        // Streams begin at origins.
        std::future::ready(Ok(Vec::new())).boxed()
    }
}

/// A child's link to its stream.
struct Link {
    relay: Arc<Relay>,
    id: u64,
    /// The replica stays as long as it feeds somebody.
    _hold: ChildHold,
}

impl Subscription for Link {
    fn want(&mut self, want: &Want) {
        self.relay.want(self.id, want);
    }

    fn backlog(&mut self, tracks: Vec<TrackId>) {
        self.relay.send_backlog(self.id, &tracks);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.relay.detach(self.id);
    }
}
