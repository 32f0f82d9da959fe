//! Which rendition a viewer is sent: its AbrActor selects, and the switch happens at a keyframe of what was selected.
//!
//! Invariants: a viewer is in the audience of one rendition at most, and then its `video.track` is that rendition; it is in
//! [`crate::shard::stream::Stream::switching`] exactly as long as it waits for the keyframe of another one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::abr::{Choice, Selection};
use headwater_media::id::{StreamName, TrackId};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::time::MediaTime;

use crate::shard::ViewerId;
use crate::shard::core::{Core, Event};
use crate::shard::demand::Need;
use crate::shard::fanout::{Job, media_rate};
use crate::shard::peer::Peer;
use crate::shard::stream::{Rings, Stream};

/// A keyframe this much older than what a viewer was shown last is history: a rendition that has just begun to flow comes with its past. What
/// the origin makes is later than the source by far less.
const OLD: MediaTime = MediaTime::from_millis(500);

/// The keyframe of the rendition to be left is held back for so long, for that of the other one to come, which shows the same.
const HOLD: Duration = Duration::from_millis(200);

/// A rendition whose newest picture is so much older than another one's doesn't flow now.
const STALE: MediaTime = MediaTime::from_millis(1000);

impl Core {
    /// A viewer is to get something else.
    pub(crate) fn handle_select(&mut self, now: Instant, viewer: ViewerId, selection: Selection) {
        let Some(slot) = self.slot(viewer) else {
            return;
        };
        let peer = &mut self.peers[slot];
        let Some(stream) = self.streams.get_mut(&peer.stream) else {
            return;
        };
        let Some(video) = &peer.video else {
            return;
        };
        stream.switching.retain(|other| *other != slot);
        peer.sheds = selection.shed;
        let Choice::Video(target) = selection.target else {
            peer.selection = Some(Box::new(selection));
            peer.alone = true;
            leave(stream, slot, peer);
            return;
        };
        if peer.audience == Some(target) {
            peer.selection = None;
            if peer.is_reachable() {
                self.events.push_back(Event::Switched {
                    viewer,
                    track: target,
                });
            }
            return;
        }
        peer.selection = Some(Box::new(selection));
        let shown = video.has_sent() && (peer.audience.is_some() || peer.alone);
        if shown || stream.info().track(target).is_none() {
            stream.switching.push(slot);
            if peer.sheds {
                self.descend(now, slot);
            }
            return;
        }
        // There is nothing on its screen, or nothing more to come: the newest GOP is better than to wait.
        peer.selection = None;
        enter(stream, slot, peer, target);
        if peer.is_reachable() {
            self.start_video(now, viewer);
            self.events.push_back(Event::Switched {
                viewer,
                track: target,
            });
        }
    }

    /// A viewer that goes down doesn't wait for the next keyframe if the newest one is hardly older than what it was sent last: its pictures
    /// are late by about as much.
    fn descend(&mut self, now: Instant, slot: usize) {
        let peer = &mut self.peers[slot];
        let Some(stream) = self.streams.get_mut(&peer.stream) else {
            return;
        };
        let Some(selection) = peer.selection.as_deref().filter(|_| peer.is_reachable()) else {
            return;
        };
        let rings = stream.rings.borrow();
        let target = match selection.target {
            Choice::Video(track) => Some(track),
            Choice::AudioOnly => None,
        };
        let keyframe = target.iter().chain(&selection.also).find_map(|track| {
            let keyframe = rings.get(*track)?.newest_gop().next()?;
            let present = keyframe.epoch == stream.described.borrow().epoch;
            (present && accepts(peer, keyframe) && flows(&rings, *track))
                .then(|| Arc::clone(keyframe))
        });
        drop(rings);
        let Some(keyframe) = keyframe else {
            return;
        };
        let event = go_over(now, stream, slot, peer, &keyframe);
        self.events.push_back(event);
        if peer.selection.is_none() {
            stream.switching.retain(|other| *other != slot);
        }
        let viewer = peer.id;
        if !peer.catching_up {
            peer.catching_up = true;
            peer.waiting_since = Some(now);
            self.video_jobs.push_back(Job::CatchUp { viewer });
        } else if peer.catch_up_at.is_some() {
            peer.catch_up_at = Some(now);
            self.schedule(slot);
        }
    }

    /// A viewer needs other tracks than before.
    pub(crate) fn handle_need(&mut self, viewer: ViewerId, need: Need) {
        let Some(slot) = self.slot(viewer) else {
            return;
        };
        let peer = &mut self.peers[slot];
        let before = std::mem::replace(&mut peer.need, need);
        if let Some(stream) = self.streams.get_mut(&peer.stream)
            && stream.demand.replace(&before, &peer.need)
        {
            self.events.push_back(Event::Demanded {
                stream: peer.stream.clone(),
                need: stream.demand.need(),
            });
        }
    }

    /// A keyframe is about to be fanned out: those who wait for it go over to its rendition.
    pub(super) fn switch_at(&mut self, now: Instant, name: &StreamName, batch: &PacketBatch) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        let mut waiting = std::mem::take(&mut stream.switching);
        let mut held = Vec::new();
        waiting.retain(|slot| {
            let Some(peer) = self.peers.get_mut(*slot) else {
                return false;
            };
            if !accepts(peer, batch) || !peer.is_reachable() {
                return true;
            }
            let event = go_over(now, stream, *slot, peer, batch);
            self.events.push_back(event);
            if peer.catch_up_at.is_some() {
                // It paused with what it leaves now.
                peer.catch_up_at = Some(now);
                held.push(*slot);
            }
            // It goes on waiting where this only bridges the time.
            peer.selection.is_some()
        });
        if let Some(stream) = self.streams.get_mut(name) {
            stream.switching = waiting;
        }
        for slot in held {
            self.schedule(slot);
        }
    }

    /// What the stream is has changed: who gets a rendition that is none any more gets nothing until something else is selected.
    pub(super) fn drop_lost_renditions(&mut self, name: &StreamName) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        let info = stream.info();
        let playable = |track| info.renditions().any(|(playable, _)| playable.id == track);
        for slot in stream.peers.clone() {
            let Some(peer) = self.peers.get_mut(slot) else {
                continue;
            };
            if peer.audience.is_some_and(|track| !playable(track)) {
                leave(stream, slot, peer);
            }
        }
    }
}

/// A viewer goes over to a rendition, at this keyframe of it. If that was what it waited for, its selection is done with.
fn go_over(
    now: Instant,
    stream: &mut Stream,
    slot: usize,
    peer: &mut Peer,
    keyframe: &PacketBatch,
) -> Event {
    enter(stream, slot, peer, keyframe.track);
    if let Some(video) = &mut peer.video {
        video.handle_switch(keyframe.first_index);
        if peer.sheds
            && let Some(core) = video.retransmitter()
        {
            core.borrow_mut().handle_abandoned();
        }
    }
    peer.waiting_since = peer.catching_up.then_some(now);
    let target = Choice::Video(keyframe.track);
    if peer
        .selection
        .as_deref()
        .is_some_and(|selection| selection.target == target)
    {
        peer.selection = None;
        peer.sheds = false;
    }
    let rings = stream.rings.borrow();
    if let Some(ring) = rings.get(keyframe.track) {
        let rate = media_rate(&stream.info(), ring, keyframe.track);
        peer.pacer.handle_media_rate(now, rate);
    }
    Event::Switched {
        viewer: peer.id,
        track: keyframe.track,
    }
}

/// Whether a viewer that waits for another rendition takes this keyframe.
fn accepts(peer: &Peer, batch: &PacketBatch) -> bool {
    let (Some(selection), Some(video)) = (peer.selection.as_deref(), &peer.video) else {
        return false;
    };
    let target = selection.target == Choice::Video(batch.track);
    // Until then another will do, if it is below what the viewer has.
    let mut below = selection
        .also
        .iter()
        .take_while(|track| Some(**track) != peer.audience);
    let bridges = below.any(|track| *track == batch.track);
    (target || bridges) && video.is_fresh(batch.rtp_time, OLD)
}

/// Until when the keyframe of the rendition that a viewer is about to leave waits for that of the other one; `None`: it leaves at once.
pub(super) fn hold(
    now: Instant,
    peer: &Peer,
    batch: &PacketBatch,
    rings: &Rings,
) -> Option<Instant> {
    let selection = peer.selection.as_deref()?;
    let Choice::Video(target) = selection.target else {
        return None;
    };
    let newest = rings.get(target)?.newest()?.pts;
    // One that has come past this picture has no keyframe of it any more.
    let comes = newest < batch.pts && newest + STALE > batch.pts;
    comes.then(|| now + HOLD)
}

/// Whether a track's newest picture is of now.
pub(super) fn flows(rings: &Rings, track: TrackId) -> bool {
    let newest = |track| {
        let ring = rings.get(track)?;
        Some(ring.newest()?.pts)
    };
    let Some(pts) = newest(track) else {
        return false;
    };
    rings
        .tracks()
        .filter_map(newest)
        .all(|other| pts + STALE > other)
}

pub(super) fn enter(stream: &mut Stream, slot: usize, peer: &mut Peer, track: TrackId) {
    leave(stream, slot, peer);
    stream.audiences.enter(track, slot);
    peer.audience = Some(track);
    peer.alone = false;
    if let Some(video) = &mut peer.video {
        video.track = track;
    }
}

/// The viewer gets no pictures for now.
fn leave(stream: &mut Stream, slot: usize, peer: &mut Peer) {
    if let Some(track) = peer.audience.take() {
        stream.audiences.leave(track, slot);
    }
    peer.skip_video();
}
