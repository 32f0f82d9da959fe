//! What a call does about an upstream that gets nothing itself: it is kept as long as [`Patience`](headwater_media::tree::Patience) says, and
//! doesn't count meanwhile.

use std::future::Future;
use std::pin::Pin;

use headwater_media::tree::{Answer, PATH_NODES_MAX};
use tracing::info;

use super::Call;
use crate::locate;
use crate::replica::UpstreamState;
use crate::subscriber::leg::Leg;

/// The stream's owner is being asked for it.
pub(super) type Asking = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl Leg {
    /// The upstream has had none itself for so long that this node had better leave it. Asks the stream's owner when that is due.
    pub(super) fn waited_enough(&self, call: &mut Call<'_>) -> bool {
        let node = &self.trunk.node;
        let now = node.clock.now();
        if call.patience.poll_ask(now) {
            let (node, name) = (node.clone(), self.trunk.name.clone());
            call.asking = Some(Box::pin(
                async move { locate::ask_owners(&node, &name).await },
            ));
        }
        let replaced = call.patience.overdue(now) && !self.trunk.alone(self.index);
        replaced || call.patience.ended(now)
    }

    /// The upstream says how far above this node somebody has no upstream.
    pub(super) fn handle_orphaned(&mut self, levels: u32, call: &mut Call<'_>) {
        let now = self.trunk.node.clock.now();
        let levels = levels.min(u32::try_from(PATH_NODES_MAX).unwrap_or(u32::MAX));
        if levels > 0 && !call.patience.waits() {
            info!(
                upstream = call.url(),
                levels, "the upstream gets nothing itself"
            );
            self.lost = Some((now, self.parent.clone()));
        }
        call.patience.handle_levels(now, levels);
        if levels > 0 {
            let named = !self.named().is_empty() || !self.trunk.node.directory.synced();
            let state = if named {
                UpstreamState::Lost
            } else {
                UpstreamState::NotFound
            };
            self.trunk.handle_orphaned(self.index, levels, state);
        }
    }
}
