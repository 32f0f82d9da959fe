//! Probes: everything a viewer is sent follows a higher rate for a moment, filled up with copies of packets it has already.
//!
//! Copies leave by RTX, so that a receiver which lost the original has a use for them and any other one drops them; packets of padding alone are small,
//! and so only sent where there is nothing to copy: to a viewer that gets sound alone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use headwater_media::abr::ProbeRequest;
use headwater_media::unit::MediaKind;

use crate::shard::ViewerId;
use crate::shard::core::Core;
use crate::shard::outbox::Outbox;
use crate::shard::outgoing::Outgoing;

/// From one piece to the next: a turn of the wheel.
const PIECE: Duration = Duration::from_millis(5);
/// Of the newest packets, so many are copied in turn (count): a picture or two.
const COPIED: u64 = 16;
/// A probe that takes longer than this has met an overloaded shard and says nothing.
const LENGTH_MAX: Duration = Duration::from_secs(2);

/// A probe that is under way.
#[derive(Debug)]
pub(crate) struct Probe {
    request: ProbeRequest,
    since: Instant,
    /// What the viewer had been sent before (bytes).
    bytes_before: u64,
    /// When the next piece is due.
    pub(crate) piece_at: Instant,
}

impl Core {
    /// A viewer's link is to be probed. A probe that is under way ends without result.
    pub(crate) fn handle_probe(&mut self, now: Instant, viewer: ViewerId, request: ProbeRequest) {
        let Some(slot) = self.slot(viewer) else {
            return;
        };
        let peer = &mut self.peers[slot];
        let Some(history) = peer
            .numbers
            .history
            .as_mut()
            .filter(|_| peer.video.is_some())
        else {
            return;
        };
        history.set_cluster(Some(request.cluster));
        peer.probe = Some(Box::new(Probe {
            request,
            since: now,
            bytes_before: peer.counters.bytes.load(Ordering::Relaxed),
            piece_at: now,
        }));
        self.schedule(slot);
    }

    /// Sends the piece of a probe that is due.
    pub(super) fn pad(&mut self, now: Instant, slot: usize, outbox: &mut Outbox) {
        let peer = &mut self.peers[slot];
        let Some(mut probe) = peer.probe.take_if(|probe| probe.piece_at <= now) else {
            return;
        };
        let Some(stream) = self.streams.get(&peer.stream) else {
            return;
        };
        let elapsed = now.saturating_duration_since(probe.since);
        let micros = u64::try_from((elapsed + PIECE).as_micros()).unwrap_or(u64::MAX);
        let due = probe.request.rate.0.saturating_mul(micros) / 8_000_000;
        let due = due.min(probe.request.bytes);
        let rings = stream.rings.borrow();
        let counters = Arc::clone(&peer.counters);
        let sent = || {
            let bytes = counters.bytes.load(Ordering::Relaxed);
            bytes.saturating_sub(probe.bytes_before)
        };
        let mut back = 0;
        let mut stuck = false;
        while sent() < due && !stuck {
            let core = peer.video.as_ref().and_then(Outgoing::retransmitter);
            // While there is sound alone, what was sent last is long gone.
            let copy = core.filter(|_| !peer.alone);
            let copy = copy.and_then(|core| core.borrow().sent_lately(back));
            let mut left = copy.map_or(0, |copy| {
                let copied = peer.copy(now, MediaKind::Video, &[copy], &rings, outbox);
                copied.packets
            });
            if left == 0 {
                left = peer.pad(now, outbox).packets;
            }
            stuck = left == 0;
            back = (back + 1) % COPIED;
        }
        let over = sent() >= probe.request.bytes || stuck || elapsed > LENGTH_MAX;
        if over {
            if let Some(history) = &mut peer.numbers.history {
                history.set_cluster(None);
            }
            return;
        }
        probe.piece_at = now + PIECE;
        peer.probe = Some(probe);
    }
}
