//! Fan-out: an access unit's packets to every viewer of its track, in slices.
//!
//! A batch becomes a [`Job`] that visits its stream's viewers, [`CHUNK`] at a time, so that the shell can look at the socket and the clock
//! in between. Each viewer knows the index it is at, which makes a job idempotent: who has the batch already is skipped, who is behind (a
//! viewer that has just connected, or one that moved in the list while a job was under way) is brought up from the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::id::{Bitrate, StreamName, TrackId};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::ring::PacketRing;
use headwater_media::time::WallTime;
use headwater_media::track::StreamInfo;
use headwater_media::unit::MediaKind;
use slab::Slab;
use smallvec::SmallVec;

use crate::latency::Timing;
use crate::shard::ViewerId;
use crate::shard::core::Core;
use crate::shard::outbox::Outbox;
use crate::shard::outgoing::{Allowance, Left, wire_bytes};
use crate::shard::peer::Peer;
use crate::shard::prefetch::prefetch;
use crate::shard::switching::{flows, hold};

/// Viewers served between two looks at the clock (count): about 100 µs of sealing at six packets a picture.
const CHUNK: usize = 8;

/// Packets of a piece for a viewer that runs up to the live edge (count), and the least time between two. A receiver with the kernel's default
/// buffer of 208 kB has room for about 90 packets; a GOP at once overflows it, and the NACKs and PLIs that follow make it worse. A keyframe
/// is left whole up to the larger number: nothing can be shown before its last packet. Who was at the live edge is sent as many as its pacer
/// lets go.
const PIECE_PACKETS: u64 = 32;
const KEYFRAME_PACKETS: u64 = 64;
const PIECE_PAUSE: Duration = Duration::from_millis(4);

/// A viewer that is behind goes on at a new keyframe when what lies before it would take longer than this. Below it nothing is worth
/// dropping, nor where the link carries so much that all is made up soon, as what came at once when another link was whole again.
const BEHIND_KEYFRAME_MAX: Duration = Duration::from_millis(100);

/// Pictures that would take longer than this to leave are given up: the link does not carry the rendition, and what comes that late is of
/// no use to anybody.
const QUEUE_MAX: Duration = Duration::from_secs(1);

/// How many viewers ahead memory is asked for, and then again what that refers to (count).
const AHEAD: usize = 3;

/// Jobs waiting (count). Each batch makes one; past this the shard is hopelessly behind, and viewers are brought up from the ring by
/// the jobs that come later.
const JOBS_MAX: usize = 4096;

/// Work of the fan-out.
#[derive(Debug)]
pub(crate) enum Job {
    /// A batch to all viewers of its track.
    Batch {
        stream: StreamName,
        batch: Arc<PacketBatch>,
        timing: Timing,
        /// Where in the viewers it began, and how many it visited.
        start: usize,
        visited: usize,
    },
    /// What the ring has to one viewer.
    CatchUp { viewer: ViewerId },
}

/// What was sent since it was last taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) video_packets: u64,
    pub(crate) audio_packets: u64,
    pub(crate) video_bytes: u64,
    pub(crate) audio_bytes: u64,
    /// Times a viewer lost its place and waits for a keyframe.
    pub(crate) skips: u64,
    /// Times a connection had no room for an access unit of video, and its viewer waits for a keyframe.
    pub(crate) tcp_skips: u64,
    /// Access units of sound that a connection had no room for.
    pub(crate) tcp_drops: u64,
    /// Batches there was no room for in the queue of jobs.
    pub(crate) dropped: u64,
    /// Batches that are now with their last viewer.
    pub(crate) finished: SmallVec<[Timing; 4]>,
    /// From viewers' requests to what they were sent first.
    pub(crate) first: SmallVec<[Duration; 4]>,
    /// How long pictures waited for a viewer's pacer.
    pub(crate) waited: SmallVec<[Duration; 32]>,
}

impl Core {
    /// A batch came from its replica: keep it and send it on.
    pub(crate) fn handle_batch(
        &mut self,
        timing: Timing,
        name: &StreamName,
        batch: Arc<PacketBatch>,
    ) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        if !stream.keep(timing.since, &batch) {
            return;
        }
        let info = stream.described.borrow();
        let track = info.track(batch.track);
        let audio = track.map_or(batch.track == TrackId::OPUS, |track| {
            track.configuration.kind() == MediaKind::Audio
        });
        if track.is_some_and(|track| track.reordered) {
            // B-frames never leave; who was sent this track is being moved to another.
            return;
        }
        drop(info);
        stream.rotation = stream.rotation.wrapping_add(CHUNK);
        let jobs = if audio {
            &mut self.audio_jobs
        } else {
            &mut self.video_jobs
        };
        if jobs.len() >= JOBS_MAX {
            self.sent.dropped += 1;
            return;
        }
        jobs.push_back(Job::Batch {
            stream: name.clone(),
            batch,
            timing,
            start: stream.rotation,
            visited: 0,
        });
    }

    /// There is media to send.
    pub(crate) fn has_jobs(&self) -> bool {
        !self.audio_jobs.is_empty() || !self.video_jobs.is_empty()
    }

    /// Does a piece of work of bounded size. Returns whether there is more.
    pub(crate) fn handle_job(&mut self, now: Instant, wall: WallTime, outbox: &mut Outbox) -> bool {
        let (job, audio) = match self.audio_jobs.pop_front() {
            Some(job) => (Some(job), true),
            None => (self.video_jobs.pop_front(), false),
        };
        let unfinished = match job {
            Some(Job::Batch {
                stream,
                batch,
                mut timing,
                start,
                visited,
            }) => {
                if visited == 0 && self.has_audience(&stream, batch.track) {
                    timing.begun = Some(now);
                }
                let visited = self.send_chunk((now, wall), &stream, &batch, start, visited, outbox);
                if visited.is_none() {
                    self.sent.finished.push(timing);
                }
                visited.map(|visited| Job::Batch {
                    stream,
                    batch,
                    timing,
                    start,
                    visited,
                })
            }
            Some(Job::CatchUp { viewer }) => {
                if let Some(at) = self.catch_up(now, viewer, outbox) {
                    self.pause_catch_up(viewer, at);
                }
                None
            }
            None => None,
        };
        match unfinished {
            Some(job) if audio => self.audio_jobs.push_front(job),
            Some(job) => self.video_jobs.push_front(job),
            None => {}
        }
        self.has_jobs()
    }

    /// Since when the oldest batch is on its way that hasn't reached its last viewer.
    pub(crate) fn oldest_batch(&self) -> Option<Instant> {
        let jobs = self.audio_jobs.iter().chain(&self.video_jobs);
        jobs.filter_map(|job| match job {
            Job::Batch { timing, .. } => Some(timing.since),
            Job::CatchUp { .. } => None,
        })
        .min()
    }

    fn has_audience(&self, stream: &StreamName, track: TrackId) -> bool {
        let stream = self.streams.get(stream);
        stream.is_some_and(|stream| !stream.audiences.of(track).is_empty())
    }

    /// What was sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Starts a connected viewer's video at the newest GOP in the ring, whether it has just joined or lost its picture. False if there is
    /// none; it then starts at the next keyframe.
    ///
    /// The keyframe leaves at once, as far as the pacer allows, and the viewer runs up to the live edge from there: timestamps stay the
    /// original ones, so that its latency is then that of everybody. If a newer keyframe comes before it is there, it goes on at that one.
    pub(super) fn start_video(&mut self, now: Instant, viewer: ViewerId) -> bool {
        let Some(slot) = self.slot(viewer) else {
            return false;
        };
        let peer = &mut self.peers[slot];
        let (Some(video), Some(stream)) = (&mut peer.video, self.streams.get(&peer.stream)) else {
            return false;
        };
        let rings = stream.rings.borrow();
        let Some(ring) = rings.get(video.track) else {
            return false;
        };
        let Some(keyframe) = ring.newest_gop().next() else {
            return false;
        };
        if keyframe.epoch != stream.described.borrow().epoch {
            // Another publisher has the stream now, and nobody is shown again what was before.
            return false;
        }
        if peer.audience != Some(video.track) || !flows(&rings, video.track) {
            // It gets no pictures for now, or the rendition has only been asked for.
            return false;
        }
        peer.waiting_since = None;
        if peer.pacer.is_congested(now) {
            // The GOP again would overflow the same queue: this viewer goes on at the next keyframe.
            video.position = None;
            return true;
        }
        video.handle_rewind(keyframe.first_index);
        let keyframe_bytes = wire_bytes(keyframe);
        peer.pacer
            .handle_media_rate(now, media_rate(&stream.info(), ring, video.track));
        peer.pacer
            .handle_start(now, u64::try_from(keyframe_bytes).unwrap_or(u64::MAX));
        if !peer.catching_up {
            peer.catching_up = true;
            self.video_jobs.push_back(Job::CatchUp { viewer });
        } else if peer.catch_up_at.is_some() {
            // It pauses, by the pace of what it was sent before.
            peer.catch_up_at = Some(now);
            drop(rings);
            self.schedule(slot);
        }
        true
    }

    /// How far a viewer's pictures are behind the live edge, by its own pace; zero while it runs up to it, or makes up for what came at once
    /// over a link with room for that. Pictures that came late are behind by what they have waited here.
    pub(super) fn wait(&self, now: Instant, slot: usize, outbox: &Outbox) -> Duration {
        let peer = &self.peers[slot];
        let stalled = peer.ice.selected().and_then(|path| outbox.oldest(path));
        let stalled = stalled.map(|since| now.saturating_duration_since(since));
        let paced = || {
            let video = peer.video.as_ref()?;
            let stream = self.streams.get(&peer.stream)?;
            let rings = stream.rings.borrow();
            let ring = rings.get(video.track)?;
            let (next, _) = ring.get(video.position?)?;
            let behind = ring.newest()?.pts.since(next.pts);
            let waited = peer
                .waiting_since
                .map(|at| now.saturating_duration_since(at));
            Some(waited.map_or(behind, |waited| behind.min(waited)))
        };
        let behind = peer.catching_up && !peer.pacer.is_starting() && !peer.pacer.is_ample(now);
        let paced = if behind { paced() } else { None };
        stalled.max(paced).unwrap_or_default()
    }

    /// Sends a batch to the next viewers. Returns how many were visited, `None` when all were.
    fn send_chunk(
        &mut self,
        (now, wall): (Instant, WallTime),
        name: &StreamName,
        batch: &PacketBatch,
        start: usize,
        visited: usize,
        outbox: &mut Outbox,
    ) -> Option<usize> {
        if visited == 0 && batch.keyframe {
            self.switch_at(now, name, batch);
        }
        let stream = self.streams.get(name)?;
        let rings = stream.rings.borrow();
        let audience = stream.audiences.of(batch.track);
        let count = audience.len();
        let end = count.min(visited + CHUNK);
        let mut paused: SmallVec<[usize; CHUNK]> = SmallVec::new();
        for i in visited..end {
            prefetch_ahead(&self.peers, audience, start + i);
            let slot = audience[(start + i) % count];
            let Some(peer) = self.peers.get_mut(slot) else {
                continue;
            };
            if !peer.is_reachable() {
                continue;
            }
            let video = peer.audience == Some(batch.track);
            let kind = if video {
                MediaKind::Video
            } else {
                MediaKind::Audio
            };
            if video
                && batch.keyframe
                && let Some(until) = hold(now, peer, batch, &rings)
            {
                peer.hold(batch.first_index, until);
                paused.push(slot);
                continue;
            }
            let sheds = video && peer.sheds;
            let Some(outgoing) = peer.outgoing(kind) else {
                continue;
            };
            match outgoing.position {
                Some(position) if position > batch.first_index => continue,
                Some(position) if position < batch.first_index && video => {
                    if !peer.has_room(now, batch, outbox) {
                        // Its connection doesn't even take what came before.
                        self.sent.tcp_skips += u64::from(peer.skip_video());
                        continue;
                    }
                    let ring = rings.get(batch.track);
                    match behind(now, peer, batch, ring, position) {
                        Behind::GoesOn => {}
                        Behind::Skips(position) => {
                            self.sent.skips += u64::from(!peer.pacer.is_starting());
                            if let Some(video) = &mut peer.video {
                                video.position = position;
                            }
                        }
                    }
                    let viewer = peer.id;
                    if !peer.catching_up {
                        peer.catching_up = true;
                        peer.waiting_since = Some(now);
                        self.video_jobs.push_back(Job::CatchUp { viewer });
                    }
                    continue;
                }
                None if video && !batch.keyframe => continue,
                Some(_) if sheds && batch.discardable => {
                    outgoing.position = Some(batch.first_index + batch.len() as u64);
                    continue;
                }
                // Audio is always at the live edge: what was missed is not sent late.
                Some(_) | None => {}
            }
            if !peer.has_room(now, batch, outbox) {
                if video {
                    self.sent.tcp_skips += u64::from(peer.skip_video());
                } else {
                    self.sent.tcp_drops += 1;
                }
                continue;
            }
            let allowance = if video {
                Allowance {
                    bytes: peer.pacer.allowance(now),
                    ..Allowance::ALL
                }
            } else {
                Allowance::ALL
            };
            let left = peer.send(now, kind, batch, 0, allowance, outbox);
            self.sent.add(kind, left);
            self.sent.note_first(now, peer, left);
            if peer.may_report(now, kind) {
                peer.report(now, wall, &stream.timeline, outbox);
            }
            if video && left.packets < batch.len() as u64 && !peer.catching_up {
                // The rest of it, and what follows, leaves at the viewer's pace.
                peer.catching_up = true;
                peer.catch_up_at = Some(peer.pacer.next_at(now));
                peer.waiting_since = Some(now);
                let rate = rings
                    .get(batch.track)
                    .and_then(|ring| media_rate(&stream.info(), ring, batch.track));
                peer.pacer.handle_media_rate(now, rate);
                paused.push(slot);
            }
        }
        drop(rings);
        for slot in paused {
            self.schedule(slot);
        }
        (end < count).then_some(end)
    }

    /// Sends a viewer some of what it lacks. Returns when to go on, if there is more.
    fn catch_up(&mut self, now: Instant, viewer: ViewerId, outbox: &mut Outbox) -> Option<Instant> {
        let slot = self.slot(viewer)?;
        let peer = &mut self.peers[slot];
        let stream = self.streams.get(&peer.stream)?;
        let rings = stream.rings.borrow();
        let at_keyframe = peer.video.as_ref().is_some_and(|video| {
            let ring = rings.get(video.track);
            let batch = ring.zip(video.position).and_then(|(ring, at)| ring.get(at));
            batch.is_some_and(|(batch, place)| batch.keyframe && place == 0)
        });
        let mut allowance = Allowance {
            packets: match (peer.pacer.is_starting(), at_keyframe) {
                (true, true) => KEYFRAME_PACKETS,
                (true, false) => PIECE_PACKETS,
                (false, _) => u64::MAX,
            },
            bytes: peer.pacer.allowance(now),
        };
        let reachable = peer.is_reachable();
        let more = loop {
            let Some(video) = peer.video.as_mut().filter(|_| reachable) else {
                break false;
            };
            let (Some(ring), Some(position)) = (rings.get(video.track), video.position) else {
                break false;
            };
            if ring.next_index().is_none_or(|next| position >= next) {
                break false;
            }
            let Some((batch, place)) = ring.get(position) else {
                self.sent.skips += 1;
                video.position = None;
                break false;
            };
            if peer.sheds && batch.discardable && place == 0 {
                video.position = Some(position + batch.len() as u64);
                continue;
            }
            if allowance.is_empty() || !peer.has_room(now, batch, outbox) {
                break true;
            }
            let left = peer.send(now, MediaKind::Video, batch, place, allowance, outbox);
            self.sent.add(MediaKind::Video, left);
            self.sent.note_first(now, peer, left);
            allowance = allowance.less(left);
            if left.packets == 0 {
                break false;
            }
        };
        peer.catching_up = more;
        if more {
            return Some(peer.pacer.next_at(now).max(now + PIECE_PAUSE));
        }
        peer.pacer.handle_caught_up(now);
        if let Some(since) = peer.waiting_since.take() {
            self.sent.waited.push(now.saturating_duration_since(since));
        }
        None
    }
}

/// Asks for the state of the viewers whose turn is soon: of the further ones their own, of the nearer ones what that refers to.
fn prefetch_ahead(peers: &Slab<Peer>, audience: &[usize], i: usize) {
    let peer = |ahead: usize| {
        let slot = audience.get((i + ahead) % audience.len())?;
        peers.get(*slot)
    };
    if let Some(far) = peer(2 * AHEAD) {
        prefetch(far);
    }
    if let Some(near) = peer(AHEAD) {
        near.prefetch();
    }
}

/// What a viewer does that is behind when a batch comes.
enum Behind {
    /// It gets what it lacks.
    GoesOn,
    /// It goes on from there; `None`: at the next keyframe.
    Skips(Option<u64>),
}

fn behind(
    now: Instant,
    peer: &Peer,
    batch: &PacketBatch,
    ring: Option<&PacketRing>,
    position: u64,
) -> Behind {
    let fresh = batch.keyframe.then_some(batch.first_index);
    let ample = peer.pacer.is_ample(now);
    // A link that carries little has no room for a GOP that is begun: its viewer waits for the next.
    let keyframe = || {
        let newest = ring.filter(|_| ample)?.newest_gop().next()?;
        (newest.first_index > position).then_some(newest.first_index)
    };
    let Some(ring) = ring.filter(|ring| ring.get(position).is_some()) else {
        return Behind::Skips(fresh.or_else(keyframe));
    };
    let lacking = ring.payload_bytes_from(position);
    let before = lacking.saturating_sub(ring.payload_bytes_from(batch.first_index));
    if fresh.is_some() && !ample && peer.pacer.time_to_send(now, before) > BEHIND_KEYFRAME_MAX {
        return Behind::Skips(fresh);
    }
    if !peer.pacer.is_starting() && peer.pacer.time_to_send(now, before) > QUEUE_MAX {
        return Behind::Skips(keyframe());
    }
    Behind::GoesOn
}

/// A track's bitrate: as the ring has it, else as its origin measured it.
pub(super) fn media_rate(info: &StreamInfo, ring: &PacketRing, track: TrackId) -> Option<Bitrate> {
    let told = || info.track(track).map(|track| track.bitrate);
    ring.bitrate().or_else(told)
}

impl Sent {
    const fn add(&mut self, kind: MediaKind, left: Left) {
        let (packets, bytes) = match kind {
            MediaKind::Video => (&mut self.video_packets, &mut self.video_bytes),
            MediaKind::Audio => (&mut self.audio_packets, &mut self.audio_bytes),
        };
        *packets += left.packets;
        *bytes += left.bytes;
    }

    fn note_first(&mut self, now: Instant, peer: &mut Peer, left: Left) {
        if left.packets > 0
            && let Some(asked) = peer.asked.take()
        {
            self.first.push(now.saturating_duration_since(asked));
        }
    }
}
