//! Which path leads to which viewer: what checks add, and what connections that close take away.
//!
//! Every path that a viewer's agent knows stands in the core's map under that viewer, and no other does: datagrams from elsewhere are
//! nobody's. A viewer that has lost its last path stays, paused, until a check brings a new one or its time is over.

use std::sync::atomic::Ordering;
use std::time::Instant;

use headwater_media::ice::{Path, Transport};

use crate::link_memory::network_of;
use crate::shard::core::{Core, Event};

/// Viewers by the transport of the path they are sent to on.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transports {
    pub(crate) udp: usize,
    pub(crate) tcp: usize,
}

impl Transports {
    const fn of(&mut self, transport: Transport) -> &mut usize {
        match transport {
            Transport::Udp => &mut self.udp,
            Transport::Tcp => &mut self.tcp,
        }
    }

    /// A viewer's path is another one now.
    pub(super) fn note(&mut self, before: Option<Path>, after: Option<Path>) {
        if let Some(before) = before {
            *self.of(before.transport) -= 1;
        }
        if let Some(after) = after {
            *self.of(after.transport) += 1;
        }
    }
}

impl Core {
    /// Viewers by transport; those that never had a path aren't in it.
    pub(crate) const fn transports(&self) -> Transports {
        self.transports
    }

    /// Datagrams from there are a viewer's.
    pub(crate) fn knows(&self, path: Path) -> bool {
        self.by_path.contains_key(&path)
    }

    /// A connection is closed, and its path with it.
    pub(crate) fn handle_disconnected(&mut self, now: Instant, path: Path) {
        let Some(slot) = self.by_path.remove(&path) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let before = peer.ice.selected();
        if peer.ice.handle_lost(now, path) {
            tracing::debug!(viewer = %peer.id, lost = %path, "a viewer's path is gone");
            self.moved(now, slot, before);
        }
    }

    /// A check of the viewer in `slot` was authentic.
    pub(super) fn handle_check(&mut self, now: Instant, slot: usize, from: Path, nominates: bool) {
        let peer = &mut self.peers[slot];
        let before = peer.ice.selected();
        let checked = peer.ice.handle_check(now, from, nominates);
        if let Some(forgotten) = checked.forgotten
            // A NAT may have given it to another viewer meanwhile.
            && self.by_path.get(&forgotten) == Some(&slot)
        {
            self.by_path.remove(&forgotten);
            self.disuse(forgotten);
        }
        self.by_path.insert(from, slot);
        if checked.moved {
            self.moved(now, slot, before);
        }
    }

    /// Authentic feedback of the viewer in `slot` came.
    pub(super) fn handle_traffic(&mut self, now: Instant, slot: usize, from: Path) {
        let peer = &mut self.peers[slot];
        let before = peer.ice.selected();
        if peer.ice.handle_traffic(now, from) {
            self.moved(now, slot, before);
        }
    }

    /// Forgets the paths of a viewer that is being removed, though it may still be sent to.
    pub(super) fn forget_paths(&mut self, slot: usize, paths: impl Iterator<Item = Path>) {
        for path in paths {
            if self.by_path.get(&path) == Some(&slot) {
                self.by_path.remove(&path);
                self.disuse(path);
            }
        }
    }

    /// Nobody is at this path any more; what has been queued for it is still to be sent.
    fn disuse(&mut self, path: Path) {
        if path.transport == Transport::Tcp {
            self.events.push_back(Event::Disused {
                address: path.address,
            });
        }
    }

    /// The viewer in `slot` is sent to on another path than `before`.
    fn moved(&mut self, now: Instant, slot: usize, before: Option<Path>) {
        let peer = &self.peers[slot];
        let after = peer.ice.selected();
        self.transports.note(before, after);
        let transport = after.map_or(0, |path| match path.transport {
            Transport::Udp => 1,
            Transport::Tcp => 2,
        });
        peer.counters.transport.store(transport, Ordering::Relaxed);
        if let Some(path) = after {
            let network = network_of(path.address.ip());
            peer.counters.network.store(network, Ordering::Relaxed);
        }
        if let (Some(from), Some(to)) = (before, after) {
            tracing::debug!(viewer = %peer.id, %from, %to, "a viewer moved");
        }
        // DTLS timers rest while there is no path.
        self.schedule(slot);
        if before.is_none() {
            self.resume(now, slot);
        }
    }

    /// A viewer that was out of reach goes on: where it stopped if that belongs to the newest GOP, else with its keyframe.
    fn resume(&mut self, now: Instant, slot: usize) {
        let peer = &self.peers[slot];
        let (Some(video), true) = (&peer.video, peer.is_reachable()) else {
            return;
        };
        let newest = self.streams.get(&peer.stream).and_then(|stream| {
            let rings = stream.rings.borrow();
            let keyframe = rings.get(video.track)?.newest_gop().next()?;
            Some(keyframe.first_index)
        });
        // Where it stopped is noticed by the next batch.
        if newest.is_some_and(|newest| video.position.is_none_or(|at| at < newest)) {
            let viewer = peer.id;
            self.start_video(now, viewer);
        }
    }
}
