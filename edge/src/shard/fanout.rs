//! Fan-out: an access unit's packets to every viewer of its track, in slices.
//!
//! A batch becomes a [`Job`] that visits its stream's viewers, [`CHUNK`] at a time, so that the shell can look at the socket and the clock
//! in between. Each viewer knows the index it is at, which makes a job idempotent: who has the batch already is skipped, who is behind (a
//! viewer that has just connected, or one that moved in the list while a job was under way) is brought up from the ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::id::{StreamName, TrackId};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::unit::MediaKind;

use crate::shard::ViewerId;
use crate::shard::core::Core;
use crate::shard::outbox::Outbox;
use crate::shard::stream::Rings;

/// Viewers served between two looks at the clock (count): about 100 µs of sealing at six packets a picture.
const CHUNK: usize = 8;

/// Packets after which a viewer that is catching up pauses (count), and for how long. A receiver with the kernel's default buffer of 208 kB
/// has room for about 90 packets; a GOP at once overflows it, and the NACKs and PLIs that follow make it worse. Together with the wheel's
/// resolution this makes some 50 Mbit/s: a 2 s GOP of 2 Mbit/s takes 60 ms.
const CATCH_UP_PACKETS: u64 = 32;
const CATCH_UP_PAUSE: Duration = Duration::from_millis(4);

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
        arrived: Instant,
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
    pub(crate) bytes: u64,
    /// Times a viewer lost its place and waits for a keyframe.
    pub(crate) skips: u64,
    /// Batches there was no room for in the queue of jobs.
    pub(crate) dropped: u64,
    /// Since when those batches were on their way that are now with their last viewer.
    pub(crate) finished: Vec<Instant>,
}

impl Core {
    /// A batch came from its replica, which packetized it at `since`: keep it and send it on.
    pub(crate) fn handle_batch(
        &mut self,
        since: Instant,
        name: &StreamName,
        batch: Arc<PacketBatch>,
    ) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        if !stream.keep(&batch) {
            return;
        }
        let audio = stream
            .info
            .track(batch.track)
            .map_or(batch.track == TrackId::OPUS, |track| {
                track.configuration.kind() == MediaKind::Audio
            });
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
            arrived: since,
            start: stream.rotation,
            visited: 0,
        });
    }

    /// There is media to send.
    pub(crate) fn has_jobs(&self) -> bool {
        !self.audio_jobs.is_empty() || !self.video_jobs.is_empty()
    }

    /// Does a piece of work of bounded size. Returns whether there is more.
    pub(crate) fn handle_job(&mut self, now: Instant, outbox: &mut Outbox) -> bool {
        let (job, audio) = match self.audio_jobs.pop_front() {
            Some(job) => (Some(job), true),
            None => (self.video_jobs.pop_front(), false),
        };
        let unfinished = match job {
            Some(Job::Batch {
                stream,
                batch,
                arrived,
                start,
                visited,
            }) => {
                let visited = self.send_chunk(now, &stream, &batch, start, visited, outbox);
                if visited.is_none() {
                    self.sent.finished.push(arrived);
                }
                visited.map(|visited| Job::Batch {
                    stream,
                    batch,
                    arrived,
                    start,
                    visited,
                })
            }
            Some(Job::CatchUp { viewer }) => {
                if self.catch_up(now, viewer, outbox) {
                    self.pause_catch_up(viewer, now + CATCH_UP_PAUSE);
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
            Job::Batch { arrived, .. } => Some(*arrived),
            Job::CatchUp { .. } => None,
        })
        .min()
    }

    /// What was sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Sent {
        std::mem::take(&mut self.sent)
    }

    /// Starts a connected viewer's video at the newest GOP in the ring. False if there is none; it then starts at the next keyframe.
    pub(super) fn start_video(&mut self, viewer: ViewerId) -> bool {
        let Some(slot) = self.slot(viewer) else {
            return false;
        };
        let peer = &mut self.peers[slot];
        let (Some(video), Some(stream)) = (&mut peer.video, self.streams.get(&peer.stream)) else {
            return false;
        };
        let rings = stream.rings.borrow();
        let start = rings
            .get(video.track)
            .and_then(|ring| ring.newest_gop().next())
            .map(|keyframe| keyframe.first_index);
        let Some(start) = start else {
            return false;
        };
        video.position = Some(start);
        if !peer.catching_up {
            peer.catching_up = true;
            self.video_jobs.push_back(Job::CatchUp { viewer });
        }
        true
    }

    /// Sends a batch to the next viewers. Returns how many were visited, `None` when all were.
    fn send_chunk(
        &mut self,
        now: Instant,
        name: &StreamName,
        batch: &PacketBatch,
        start: usize,
        visited: usize,
        outbox: &mut Outbox,
    ) -> Option<usize> {
        let stream = self.streams.get(name)?;
        let rings = stream.rings.borrow();
        let count = stream.peers.len();
        let end = count.min(visited + CHUNK);
        for i in visited..end {
            let slot = stream.peers[(start + i) % count];
            let Some(peer) = self.peers.get_mut(slot) else {
                continue;
            };
            let kinds = [&peer.video, &peer.audio]
                .map(|outgoing| outgoing.as_ref().is_some_and(|o| o.track == batch.track));
            let kind = match kinds {
                [true, _] => MediaKind::Video,
                [_, true] => MediaKind::Audio,
                [false, false] => continue,
            };
            if peer.session.is_none() {
                continue;
            }
            let video = kind == MediaKind::Video;
            let Some(outgoing) = peer.outgoing(kind) else {
                continue;
            };
            match outgoing.position {
                Some(position) if position > batch.first_index => continue,
                Some(position) if position < batch.first_index && video => {
                    if !has(&rings, batch.track, position) {
                        self.sent.skips += 1;
                        outgoing.position = None;
                        if !batch.keyframe {
                            continue;
                        }
                    } else {
                        let viewer = peer.id;
                        if !peer.catching_up {
                            peer.catching_up = true;
                            self.video_jobs.push_back(Job::CatchUp { viewer });
                        }
                        continue;
                    }
                }
                None if video && !batch.keyframe => continue,
                // Audio is always at the live edge: what was missed is not sent late.
                Some(_) | None => {}
            }
            let (packets, bytes) = peer.send(now, kind, batch, outbox);
            self.sent.add(kind, packets, bytes);
        }
        (end < count).then_some(end)
    }

    /// Sends a viewer some of what it lacks. Returns whether there is more.
    fn catch_up(&mut self, now: Instant, viewer: ViewerId, outbox: &mut Outbox) -> bool {
        let Some(slot) = self.slot(viewer) else {
            return false;
        };
        let peer = &mut self.peers[slot];
        let Some(stream) = self.streams.get(&peer.stream) else {
            return false;
        };
        let rings = stream.rings.borrow();
        let mut chunk = 0;
        while chunk < CATCH_UP_PACKETS {
            let Some(video) = &mut peer.video else {
                break;
            };
            let (Some(ring), Some(position)) = (rings.get(video.track), video.position) else {
                break;
            };
            if ring.next_index().is_none_or(|next| position >= next) {
                break;
            }
            let Some((batch, _)) = ring.get(position) else {
                self.sent.skips += 1;
                video.position = None;
                break;
            };
            let (packets, bytes) = peer.send(now, MediaKind::Video, batch, outbox);
            self.sent.add(MediaKind::Video, packets, bytes);
            chunk += packets;
            if packets == 0 {
                break;
            }
        }
        let more = peer.video.as_ref().is_some_and(|video| {
            let next = rings.get(video.track).and_then(|ring| ring.next_index());
            video
                .position
                .is_some_and(|position| next.is_some_and(|next| position < next))
        }) && peer.session.is_some();
        peer.catching_up = more;
        more
    }
}

fn has(rings: &Rings, track: TrackId, index: u64) -> bool {
    rings
        .get(track)
        .is_some_and(|ring| ring.get(index).is_some())
}

impl Sent {
    const fn add(&mut self, kind: MediaKind, packets: u64, bytes: u64) {
        match kind {
            MediaKind::Video => self.video_packets += packets,
            MediaKind::Audio => self.audio_packets += packets,
        }
        self.bytes += bytes;
    }
}
