//! A live stream's core: what a publisher sends becomes access units on one timeline, numbered per track, and late subscribers get
//! what they need to start or to go on.
//!
//! The publisher's default video is the rendition `source`. Others are named by the height of their pictures and come from further tracks
//! of the publisher, or are made from it by the origin, which gives their times on the timeline ([`Stream::handle_rendition_unit`]). A
//! rendition is listed from its first keyframe on.
//!
//! Invariants: within a track, DTS rises and sequence numbers are gapless from 0 in each epoch; the first unit of an epoch, of a
//! configuration and after a loss is a keyframe; a rendition has its number as long as the stream lives; the timeline goes on when a
//! publisher returns. The origin's `StreamActor` owns one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::opus;
use crate::gop_cache::{GopCache, Limits};
use crate::id::{Epoch, RenditionName, StreamName, TrackId};
use crate::replication::Position;
use crate::resume_window::ResumeWindow;
use crate::time::{MediaTime, WallTime};
use crate::track::{Configuration, StreamInfo};
use crate::tree::Path;
use crate::unit::{AccessUnit, IngestUnit, MediaKind, SourceTrack};

mod align;
mod contributors;
mod observe;
mod renditions;
mod timeline;
mod track;
mod tracks;

use contributors::Contributor;
pub use renditions::TooManyRenditions;
use timeline::Timeline;
use track::{Feed, TrackState};
use tracks::Tracks;

/// Composition offsets are held within this; no encoder reorders over seconds.
const COMPOSITION_OFFSET_MAX: MediaTime = MediaTime::from_millis(5000);

/// After a publisher's first unit, tracks of the publisher before it that it has not announced are dropped.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(3);

/// Encoders announce their tracks in their first messages, within tens of milliseconds of each other; after this, what is missing is
/// taken to be missing for good.
const SETTLE_MAX: Duration = Duration::from_millis(500);

/// Bounds of a [`Stream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The GOP cache's.
    pub gop: Limits,
    /// The resume window's.
    pub resume: Limits,
}

/// A unit that is later than this is measured as if it were so late.
const LATE_MAX: Duration = Duration::from_secs(10);

/// Why an access unit was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// Nobody said how its track is coded.
    #[error("its configuration is not known")]
    NoConfiguration,
    /// Its track begins, or begins anew after a loss, with a keyframe.
    #[error("a keyframe must come first")]
    AwaitingKeyframe,
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// Nobody publishes.
    #[error("nobody publishes")]
    NotPublishing,
    /// Its contributor's keyframes have not been found at the source's times yet.
    #[error("its place is not known yet")]
    Aligning,
    /// Its contributor's keyframes are not at the source's times.
    #[error("its keyframes are not at the times of the source's")]
    Unaligned,
}

/// What a subscriber starts with.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// What the stream is.
    pub info: Arc<StreamInfo>,
    /// The units it lacks, before those to come.
    pub backlog: Vec<Arc<AccessUnit>>,
    /// Where it was in those tracks that the backlog goes on with gaplessly. Of the others it has what the GOP caches hold.
    pub positions: Vec<Position>,
}

impl Attachment {
    /// What a subscriber lacks that has `positions`, which the window goes on from.
    pub(crate) fn new(
        info: Arc<StreamInfo>,
        positions: Vec<Position>,
        gop: &GopCache,
        window: &ResumeWindow,
    ) -> Self {
        let had = |unit: &AccessUnit| {
            let mut positions = positions.iter();
            positions.find(|position| position.track == unit.track)
        };
        let cached = gop.units().filter(|unit| had(unit).is_none());
        let mut backlog: Vec<Arc<AccessUnit>> = cached.cloned().collect();
        if !positions.is_empty() {
            let missed = window
                .units()
                .filter(|unit| had(unit).is_some_and(|position| unit.sequence > position.sequence));
            backlog.extend(missed.cloned());
            backlog.sort_by_key(|unit| unit.dts);
        }
        Self {
            info,
            backlog,
            positions,
        }
    }

    /// The subscriber goes on where it was, at least with one track.
    pub const fn resumed(&self) -> bool {
        !self.positions.is_empty()
    }
}

/// What is seen of a track, beyond its [`Track`](crate::track::Track).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// The track.
    pub track: TrackId,
    /// Access units per second; zero until known.
    pub units_per_second: f64,
    /// From one keyframe to the next; none until two came.
    pub keyframe_interval: Option<Duration>,
}

/// See the module.
#[derive(Debug)]
pub struct Stream {
    name: StreamName,
    epoch: Epoch,
    publishing: bool,
    /// When the present publisher's first unit came.
    first_unit_at: Option<Instant>,
    timeline: Timeline,
    tracks: Tracks,
    contributors: Vec<Contributor>,
    gop: GopCache,
    window: ResumeWindow,
    audio_problem: Option<Arc<str>>,
    changed: bool,
}

impl Stream {
    /// A stream that nobody publishes yet.
    pub fn new(name: StreamName, config: Config) -> Self {
        Self {
            name,
            epoch: Epoch::default(),
            publishing: false,
            first_unit_at: None,
            timeline: Timeline::default(),
            tracks: Tracks::new(),
            contributors: Vec::new(),
            gop: GopCache::new(config.gop),
            window: ResumeWindow::new(config.resume),
            audio_problem: None,
            changed: true,
        }
    }

    /// A publisher begins, the first or one that returns: sequences start anew, the timeline goes on. Renditions that the origin makes are
    /// declared anew for it.
    pub fn handle_begin(&mut self, epoch: Epoch) {
        debug_assert!(epoch >= self.epoch, "the directory's epochs rise");
        self.epoch = epoch;
        self.publishing = true;
        self.first_unit_at = None;
        self.timeline.begin();
        for track in self.tracks.iter_mut() {
            track.begin_epoch();
        }
        self.contributors.iter_mut().for_each(Contributor::reset);
        // Units of two epochs are never mixed, so nobody can resume across this.
        self.gop.clear();
        self.window.clear();
        self.audio_problem = None;
        self.changed = true;
    }

    /// The publisher left; the stream is held. What the caches hold stays: who attaches now sees the last pictures.
    pub fn handle_leave(&mut self) {
        self.publishing = false;
        self.changed = true;
    }

    /// The publisher says how it codes one of its tracks; `track` tells apart those of one kind. True if that is news: a new track or
    /// another configuration. Sound has one track.
    ///
    /// # Errors
    /// If it is one rendition too many.
    pub fn handle_configuration(
        &mut self,
        track: SourceTrack,
        configuration: Configuration,
    ) -> Result<bool, TooManyRenditions> {
        match &configuration {
            Configuration::H264(h264) if track != SourceTrack::DEFAULT => {
                let name = format!("{}p", h264.height);
                let feed = Feed::Publisher(track);
                self.configure_rendition(&name, feed, configuration)
                    .map(|(_, news)| news)
            }
            Configuration::H264(_) => {
                Ok(self.configure(TrackId::SOURCE_VIDEO, Feed::SOURCE, configuration))
            }
            Configuration::Aac(_) => {
                if let Some(opus) = self.tracks.listed().find(|track| track.id == TrackId::OPUS) {
                    // It is made from this one, and its encoder says nothing as long as its own configuration stays.
                    opus.confirmed = true;
                }
                Ok(self.configure(TrackId::SOURCE_AUDIO, Feed::SOURCE, configuration))
            }
            Configuration::Opus(_) => Ok(self.configure(TrackId::OPUS, Feed::Made, configuration)),
        }
    }

    /// The publisher ended one of its video tracks. The default one stays: encoders say so between scenes.
    pub fn handle_end(&mut self, track: SourceTrack) {
        let feed = Feed::Publisher(track);
        if let Some(at) = self.tracks.fed_by(MediaKind::Video, feed) {
            self.remove_rendition(self.tracks[at].id);
        }
    }

    /// Units of the publisher were lost on their way here: the track goes on at the next keyframe.
    pub fn handle_loss(&mut self, kind: MediaKind, track: SourceTrack) {
        if let Some(at) = self.tracks.fed_by(kind, Feed::Publisher(track)) {
            self.tracks[at].lose();
        }
    }

    /// Takes what the publisher sent.
    ///
    /// # Errors
    /// [`Dropped`]: count it.
    pub fn handle_unit(
        &mut self,
        now: Instant,
        unit: IngestUnit,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        if !self.publishing {
            return Err(Dropped::NotPublishing);
        }
        if unit.payload.is_empty() {
            return Err(Dropped::Empty);
        }
        let at = self
            .tracks
            .fed_by(unit.kind, Feed::Publisher(unit.track))
            .ok_or(Dropped::NoConfiguration)?;
        let keyframe = unit.keyframe || unit.kind == MediaKind::Audio;
        if self.tracks[at].awaiting_keyframe && !keyframe {
            return Err(Dropped::AwaitingKeyframe);
        }
        self.first_unit_at.get_or_insert(now);
        let id = self.tracks[at].id;
        let mapped = self.timeline.map(now, id, unit.dts);
        if mapped.jumped && id == TrackId::SOURCE_VIDEO {
            self.contributors.iter_mut().for_each(Contributor::reset);
        }
        // A rendition that somebody else fed until now is not set back by its new clock.
        let dts = self.tracks[at].earliest(mapped.dts);
        let repaired = mapped.repaired || dts != mapped.dts;
        let composition = unit.pts - unit.dts;
        // A picture can't be decoded after it is shown: a repaired DTS takes the PTS along.
        let pts = match unit.kind {
            MediaKind::Audio => dts,
            MediaKind::Video => {
                let offset = composition.clamp(
                    MediaTime::ZERO - COMPOSITION_OFFSET_MAX,
                    COMPOSITION_OFFSET_MAX,
                );
                let wanted = unit.dts + mapped.offset + offset;
                if repaired { wanted.max(dts) } else { wanted }
            }
        };
        let placed = Placed {
            dts,
            pts,
            keyframe,
            discardable: unit.discardable,
            jumped: mapped.jumped,
            steady: !mapped.jumped && !repaired,
            payload: unit.payload,
            ingest_time: unit.ingest_time,
        };
        Ok(self.emit(now, at, placed))
    }

    /// Takes what the origin's own Opus encoder made; its time is the timeline's already.
    ///
    /// # Errors
    /// [`Dropped`]: count it.
    pub fn handle_opus(
        &mut self,
        now: Instant,
        pts: MediaTime,
        payload: Bytes,
        ingest_time: WallTime,
        discontinuity: bool,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        if payload.is_empty() {
            return Err(Dropped::Empty);
        }
        let at = self
            .tracks
            .position(|track| track.id == TrackId::OPUS && track.confirmed)
            .ok_or(Dropped::NoConfiguration)?;
        let dts = self.tracks[at].earliest(pts);
        let placed = Placed {
            dts,
            pts: dts,
            keyframe: true,
            discardable: false,
            jumped: discontinuity,
            steady: true,
            payload,
            ingest_time,
        };
        Ok(self.emit(now, at, placed))
    }

    /// There is Opus audio from now on, or another kind of it. True if that is news.
    pub fn handle_opus_configuration(&mut self, configuration: opus::Configuration) -> bool {
        self.audio_problem = None;
        self.changed = true;
        let configuration = Configuration::Opus(configuration);
        self.configure(TrackId::OPUS, Feed::Made, configuration)
    }

    /// There is no Opus audio, and why. The Opus track goes.
    pub fn handle_audio_problem(&mut self, problem: Arc<str>) {
        self.audio_problem = Some(problem);
        self.remove_track(TrackId::OPUS);
        self.changed = true;
    }

    /// Housekeeping, each second or so: tracks that a returned publisher no longer has go, and renditions that it stopped sending.
    pub fn handle_timeout(&mut self, now: Instant) {
        let settled = self
            .first_unit_at
            .is_some_and(|at| now.saturating_duration_since(at) >= UNCONFIRMED_MAX);
        if settled && self.publishing {
            let stale: Vec<TrackId> = self
                .tracks
                .iter()
                .filter(|track| track.listed && !track.confirmed)
                .map(|track| track.id)
                .collect();
            for id in stale {
                self.remove_track(id);
            }
        }
        self.unlist_silent(now);
        self.window.trim(now);
    }

    /// What the stream is, with rates measured up to `now`.
    pub fn info(&mut self, now: Instant) -> StreamInfo {
        StreamInfo {
            name: self.name.clone(),
            epoch: self.epoch,
            tracks: self
                .tracks
                .listed()
                .map(|track| track.describe(now))
                .collect(),
            publishing: self.publishing,
            audio_problem: self.audio_problem.clone(),
            settled: self.settled(now),
            path: Path::default(),
        }
    }

    fn settled(&self, now: Instant) -> bool {
        let announced = |kind| {
            let mut confirmed = self
                .tracks
                .iter()
                .filter(|track| track.listed && track.confirmed);
            confirmed.any(|track| track.kind() == kind)
        };
        (announced(MediaKind::Video) && announced(MediaKind::Audio))
            || self
                .first_unit_at
                .is_some_and(|at| now.saturating_duration_since(at) >= SETTLE_MAX)
    }

    /// Whether subscribers must be told before the next unit, since this was last asked.
    pub fn poll_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// What is seen of each track.
    pub fn observe(&mut self, now: Instant) -> Vec<Observed> {
        let listed = self.tracks.listed();
        listed.map(|track| track.observed(now)).collect()
    }

    /// The name.
    pub const fn name(&self) -> &StreamName {
        &self.name
    }

    /// The source audio is part of the stream.
    pub fn has_source_audio(&self) -> bool {
        let mut tracks = self.tracks.iter();
        tracks.any(|track| track.id == TrackId::SOURCE_AUDIO && track.listed)
    }

    /// The present publisher's epoch, or the last one's.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// A publisher is there.
    pub const fn publishing(&self) -> bool {
        self.publishing
    }

    /// What a subscriber that has the positions `have` (none: a new one) starts with.
    pub fn attach(&mut self, now: Instant, have: &[Position]) -> Attachment {
        let info = Arc::new(self.info(now));
        // A rendition that went meanwhile is no reason to begin anew with the others.
        let listed = |position: &&Position| {
            let mut tracks = self.tracks.iter();
            tracks.any(|track| track.listed && track.id == position.track)
        };
        let mut have: Vec<Position> = have.iter().filter(listed).copied().collect();
        if !have.iter().all(|position| self.continues(position)) {
            have.clear();
        }
        Attachment::new(info, have, &self.gop, &self.window)
    }

    /// What a present subscriber needs to start with further tracks.
    pub fn backlog(&self, tracks: &[TrackId]) -> Vec<Arc<AccessUnit>> {
        let wanted = self.gop.units().filter(|unit| tracks.contains(&unit.track));
        wanted.cloned().collect()
    }

    /// The window has everything that followed `position`.
    fn continues(&self, position: &Position) -> bool {
        let mut tracks = self.tracks.iter();
        let Some(track) = tracks.find(|track| track.id == position.track && track.listed) else {
            return false;
        };
        let Some(next) = position.sequence.checked_add(1) else {
            return false;
        };
        if position.epoch != self.epoch || next > track.next_sequence {
            return false;
        }
        let oldest = self.window.oldest(track.id);
        next == track.next_sequence || oldest.is_some_and(|oldest| oldest <= next)
    }

    /// One of the tracks that every stream has, under the numbers that everybody knows.
    fn configure(&mut self, id: TrackId, feed: Feed, configuration: Configuration) -> bool {
        let known = self.tracks.position(|track| track.id == id);
        let at = known.unwrap_or_else(|| {
            let name: Arc<str> = RenditionName::SOURCE.into();
            let track = TrackState::new(id, Arc::clone(&name), name, feed, configuration.clone());
            self.tracks.insert(track)
        });
        let track = &mut self.tracks[at];
        let changed = track.configure(configuration);
        let came_back = !std::mem::replace(&mut track.listed, true);
        if !changed && !came_back {
            return false;
        }
        if !changed {
            track.restart();
        }
        // Parameter sets go out from the newest configuration only, which an older GOP does not match.
        self.gop.forget(id);
        self.changed = true;
        true
    }

    fn emit(&mut self, now: Instant, at: usize, placed: Placed) -> Arc<AccessUnit> {
        let track = &mut self.tracks[at];
        let unit = Arc::new(AccessUnit {
            track: track.id,
            epoch: self.epoch,
            sequence: track.next_sequence,
            configuration_id: track.configuration_id,
            dts: placed.dts,
            pts: placed.pts,
            keyframe: placed.keyframe,
            discardable: placed.discardable && !placed.keyframe,
            discontinuity: placed.jumped || track.discontinuity,
            payload: placed.payload,
            ingest_time: placed.ingest_time,
            origin_delay: Duration::ZERO,
        });
        track.next_sequence += 1;
        track.awaiting_keyframe = false;
        track.discontinuity = false;
        if unit.keyframe && track.id == TrackId::SOURCE_VIDEO {
            for contributor in &mut self.contributors {
                contributor.handle_source_keyframe(&unit);
            }
        }
        self.changed |= !std::mem::replace(&mut track.listed, true);
        let due = self.due(now, &unit);
        let track = &mut self.tracks[at];
        self.changed |= track.observe(now, due, &unit, placed.steady);
        self.gop.push(track.kind(), &unit);
        self.window.push(now, &unit);
        unit
    }

    /// When a unit that comes now was due, by the source's pictures: a rendition begins with what is made of the past all at once, and would
    /// else be measured at a multiple of its bitrate.
    fn due(&self, now: Instant, unit: &AccessUnit) -> Instant {
        let mut tracks = self.tracks.iter();
        let source = tracks.find(|track| track.id == TrackId::SOURCE_VIDEO);
        let newest = source.and_then(|source| source.last_dts);
        let late = newest.map_or(Duration::ZERO, |newest| newest.since(unit.dts));
        now.checked_sub(late.min(LATE_MAX)).unwrap_or(now)
    }

    fn remove_track(&mut self, id: TrackId) {
        let Some(at) = self.tracks.position(|track| track.id == id) else {
            return;
        };
        let track = &mut self.tracks[at];
        track.confirmed = false;
        track.begin_anew();
        self.gop.forget(id);
        self.changed |= std::mem::replace(&mut track.listed, false);
    }
}

/// A unit that has its times, but no number yet.
struct Placed {
    dts: MediaTime,
    pts: MediaTime,
    keyframe: bool,
    discardable: bool,
    jumped: bool,
    steady: bool,
    payload: Bytes,
    ingest_time: WallTime,
}

#[cfg(test)]
mod tests;
