//! A stream as one shard has it: its packet rings, its viewers, and what wall time its media time is.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use headwater_media::id::TrackId;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::ring::{Limits, PacketRing};
use headwater_media::time::{MediaTime, TICKS_PER_SECOND, WallTime};
use headwater_media::track::StreamInfo;
use smallvec::SmallVec;

use crate::shard::audience::Audiences;
use crate::shard::demand::Demand;

/// The packet rings of a stream's tracks on this shard.
#[derive(Debug)]
pub(crate) struct Rings {
    limits: Limits,
    tracks: SmallVec<[(TrackId, PacketRing); 5]>,
}

/// The shard and its viewers' retransmit actors look packets up in the same rings; all live on one thread.
pub(crate) type SharedRings = Rc<RefCell<Rings>>;

/// What the stream is now, for the shard and its viewers' AbrActors.
pub(crate) type SharedInfo = Rc<RefCell<Arc<StreamInfo>>>;

impl Rings {
    /// The ring of a track, once it had a batch.
    pub(crate) fn get(&self, track: TrackId) -> Option<&PacketRing> {
        self.tracks
            .iter()
            .find(|(id, _)| *id == track)
            .map(|(_, ring)| ring)
    }

    /// The tracks that have had batches.
    pub(crate) fn tracks(&self) -> impl Iterator<Item = TrackId> {
        self.tracks.iter().map(|(id, _)| *id)
    }

    /// Payload bytes of a packet, `None` when the ring no longer has it.
    pub(crate) fn payload_bytes(&self, track: TrackId, index: u64) -> Option<usize> {
        let (batch, place) = self.get(track)?.get(index)?;
        batch.payload(place).map(<[u8]>::len)
    }

    /// Appends a batch; false if the ring had it already.
    fn push(&mut self, now: Instant, batch: Arc<PacketBatch>) -> bool {
        let i = self
            .tracks
            .iter()
            .position(|(id, _)| *id == batch.track)
            .unwrap_or_else(|| {
                let ring = PacketRing::new(self.limits);
                self.tracks.push((batch.track, ring));
                self.tracks.len() - 1
            });
        let ring = &mut self.tracks[i].1;
        if ring
            .next_index()
            .is_some_and(|next| batch.first_index < next)
        {
            return false;
        }
        ring.push(now, batch);
        true
    }
}

/// One stream with viewers on this shard.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) described: SharedInfo,
    pub(crate) rings: SharedRings,
    pub(crate) timeline: Timeline,
    /// Slots of its viewers.
    pub(crate) peers: Vec<usize>,
    /// The same, by what they get.
    pub(crate) audiences: Audiences,
    /// Those who wait for a keyframe of another rendition.
    pub(crate) switching: Vec<usize>,
    pub(crate) demand: Demand,
    /// Where the next fan-out starts, so that nobody is always last.
    pub(crate) rotation: usize,
}

impl Stream {
    pub(crate) fn new(info: Arc<StreamInfo>, limits: Limits) -> Self {
        Self {
            described: Rc::new(RefCell::new(info)),
            rings: Rc::new(RefCell::new(Rings {
                limits,
                tracks: SmallVec::new(),
            })),
            timeline: Timeline::default(),
            peers: Vec::new(),
            audiences: Audiences::default(),
            switching: Vec::new(),
            demand: Demand::default(),
            rotation: 0,
        }
    }

    /// What it is.
    pub(crate) fn info(&self) -> Arc<StreamInfo> {
        Arc::clone(&self.described.borrow())
    }

    /// Forgets a track's ring that begins behind `batch` without a keyframe: leftovers of an attachment that was given up, which
    /// nobody can start from and which would make the backlog's GOP old news.
    pub(crate) fn make_way(&mut self, batch: &PacketBatch) {
        let mut rings = self.rings.borrow_mut();
        rings.tracks.retain(|(id, ring)| {
            *id != batch.track
                || ring.newest_gop().next().is_some()
                || ring
                    .oldest_index()
                    .is_none_or(|oldest| oldest <= batch.first_index)
        });
    }

    /// Keeps a batch that came at `now`; false if it is old news.
    pub(crate) fn keep(&mut self, now: Instant, batch: &Arc<PacketBatch>) -> bool {
        let new = self.rings.borrow_mut().push(now, Arc::clone(batch));
        if new {
            self.timeline.handle_batch(batch);
        }
        new
    }
}

/// Which wall-clock time a media time is, for sender reports: one mapping for all tracks, or they drift apart.
///
/// Each access unit says when it was read from the publisher; the mapping follows slowly, so that a burst or a pause of the publisher's
/// network doesn't shake the viewers' clocks, and leaps when the publisher's timeline did.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Wall clock less media time (microseconds).
    offset_micros: Option<i64>,
}

impl Timeline {
    /// The share of a new observation: at 30 pictures and 50 audio frames a second about a second's worth.
    const SMOOTHING: i64 = 64;
    /// A larger difference is a leap of the timeline, not jitter (microseconds).
    const LEAP_MICROS: i64 = 1_000_000;

    fn handle_batch(&mut self, batch: &PacketBatch) {
        if batch.ingest_time == WallTime::default() {
            return;
        }
        let wall = i64::try_from(batch.ingest_time.unix_micros()).unwrap_or(i64::MAX);
        let observed = wall - micros(batch.pts);
        self.offset_micros = Some(match self.offset_micros {
            Some(offset) if (observed - offset).abs() < Self::LEAP_MICROS => {
                offset + (observed - offset) / Self::SMOOTHING
            }
            Some(_) | None => observed,
        });
    }

    /// The media time at `wall`.
    pub(crate) fn media_time(&self, wall: WallTime) -> Option<MediaTime> {
        let wall = i64::try_from(wall.unix_micros()).ok()?;
        let micros = i128::from(wall - self.offset_micros?);
        let ticks = micros * i128::from(TICKS_PER_SECOND) / 1_000_000;
        i64::try_from(ticks).ok().map(MediaTime::from_ticks)
    }
}

fn micros(time: MediaTime) -> i64 {
    let micros = i128::from(time.ticks()) * 1_000_000 / i128::from(TICKS_PER_SECOND);
    i64::try_from(micros).unwrap_or(i64::MAX)
}
