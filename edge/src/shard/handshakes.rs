//! DTLS datagrams of viewers that aren't connected yet, waiting for their turn.
//!
//! A step of a handshake costs some hundred times what any other datagram does (signatures, key agreement), so a storm of joins read
//! as it comes would hold up everybody's media. Here they wait instead, first come first served, and the shell serves them with the time that media
//! leaves ([`Core::handle_handshake`]). What doesn't fit is dropped and counted: DTLS sends its flights again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use headwater_media::ice::Path;
use headwater_media::time::WallTime;
use metrics::counter;

use crate::metrics::HANDSHAKES;
use crate::shard::core::{Core, Event};
use crate::shard::feedback::Sample;
use crate::shard::outbox::Outbox;
use crate::shard::peer::Peer;
use crate::shard::{EndReason, ViewerId, ViewerState};
use crate::transport::dtls;

/// Datagrams waiting (count), of at most 2 kB each: some two seconds of a core's work, which is when the first of them come again.
const WAITING_MAX: usize = 4096;

/// Of one viewer (count), so that none can fill the queue. A browser's largest flight is four datagrams.
const WAITING_PER_VIEWER_MAX: u8 = 12;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    slot: usize,
    viewer: ViewerId,
    from: Path,
    datagram: Box<[u8]>,
}

impl Handshakes {
    /// Puts a datagram of a viewer at the end. False if there is no room for it.
    pub(super) fn push(
        &mut self,
        peer: &mut Peer,
        slot: usize,
        from: Path,
        datagram: &[u8],
    ) -> bool {
        if self.waiting.len() >= WAITING_MAX || peer.handshakes_waiting >= WAITING_PER_VIEWER_MAX {
            return false;
        }
        peer.handshakes_waiting += 1;
        self.waiting.push_back(Waiting {
            slot,
            viewer: peer.id,
            from,
            datagram: datagram.into(),
        });
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Core {
    /// There are handshakes to go on with.
    pub(crate) fn has_handshakes(&self) -> bool {
        !self.handshakes.is_empty()
    }

    /// Takes one step of the handshake that has waited longest: up to half a millisecond.
    pub(crate) fn handle_handshake(&mut self, now: Instant, wall: WallTime, outbox: &mut Outbox) {
        while let Some(step) = self.handshakes.waiting.pop_front() {
            // Whoever has left meanwhile costs nothing.
            if let Some(peer) = self.peers.get_mut(step.slot)
                && peer.id == step.viewer
            {
                peer.handshakes_waiting = peer.handshakes_waiting.saturating_sub(1);
                self.handle_association(now, wall, step.slot, step.from, &step.datagram, outbox);
                break;
            }
        }
        if self.handshakes.is_empty() && self.handshakes.waiting.capacity() > WAITING_MAX / 8 {
            self.handshakes.waiting.shrink_to(WAITING_MAX / 8);
        }
    }

    /// A DTLS datagram of a viewer.
    pub(super) fn handle_association(
        &mut self,
        now: Instant,
        wall: WallTime,
        slot: usize,
        from: Path,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        if peer.session.is_none() {
            peer.set_state(ViewerState::Handshaking);
        }
        let result = peer.dtls.handle_datagram(now, &self.identity, datagram);
        peer.flush_dtls(from, outbox);
        match result {
            Ok(None) => {}
            Ok(Some(dtls::Event::Connected(session))) => {
                counter!(HANDSHAKES, "profile" => session.profile().as_str()).increment(1);
                let viewer = peer.id;
                peer.session = Some(*session);
                peer.ice.handle_connected();
                peer.set_state(ViewerState::Connected);
                // The first report goes ahead of the first packets, so that lip sync holds from the first frame.
                if let Some(stream) = self.streams.get(&peer.stream) {
                    peer.report(now, wall, &stream.timeline, outbox);
                }
                self.events.push_back(Event::Connected { viewer });
                if let Some(track) = peer.audience {
                    self.events.push_back(Event::Switched { viewer, track });
                }
                if let Some(took) = peer.dtls.answered_within() {
                    let sample = Sample::AnsweredWithin(took);
                    self.events.push_back(Event::Measured {
                        viewer,
                        sample,
                        wait: Duration::ZERO,
                    });
                }
                self.start_video(now, viewer);
            }
            Ok(Some(dtls::Event::Closed)) => {
                return self.end(wall, slot, EndReason::Closed, outbox);
            }
            Err(error) => {
                tracing::debug!(viewer = %peer.id, %error, "no DTLS association");
                return self.end(wall, slot, EndReason::HandshakeFailed, outbox);
            }
        }
        self.schedule(slot);
    }
}
