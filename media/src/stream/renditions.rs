//! Renditions beside the source: those of the publisher's further tracks, and those that the origin makes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::track::{Feed, TrackState};
use super::tracks::RENDITIONS_MAX;
use super::{Dropped, Placed, Stream};
use crate::codec::h264;
use crate::id::TrackId;
use crate::track::Configuration;
use crate::unit::{AccessUnit, MediaKind, RenditionUnit};

/// A further rendition of the publisher that sent nothing for this long while its default video went on has vanished. It comes back with
/// its next keyframe.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// A stream has as many renditions as it may: the new one is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream has at most {} renditions beside the source", RENDITIONS_MAX)]
pub struct TooManyRenditions;

impl Stream {
    /// There is a rendition that the origin makes, or it is coded differently from here on. Its number stays while the stream lives; a
    /// rendition of the publisher that has the name already makes this one `480p2`.
    ///
    /// # Errors
    /// If it is one rendition too many.
    pub fn handle_rendition_configuration(
        &mut self,
        rendition: &str,
        configuration: h264::Configuration,
    ) -> Result<TrackId, TooManyRenditions> {
        let configuration = Configuration::H264(configuration);
        self.configure_rendition(rendition, Feed::Made, configuration)
            .map(|(id, _)| id)
    }

    /// A rendition that the origin made is made no longer, or has to begin anew. Declare it again to go on.
    pub fn remove_rendition(&mut self, id: TrackId) {
        if id >= TrackId::FIRST_RENDITION {
            self.remove_track(id);
        }
    }

    /// Units of a rendition that the origin makes were lost: it goes on at the next keyframe.
    pub fn handle_rendition_loss(&mut self, id: TrackId) {
        if let Some(at) = self.made(id) {
            self.tracks[at].lose();
        }
    }

    /// Takes a picture of a rendition that the origin made; its times are the timeline's already, and moved only if they don't rise.
    ///
    /// # Errors
    /// [`Dropped`]: count it.
    pub fn handle_rendition_unit(
        &mut self,
        now: Instant,
        id: TrackId,
        unit: RenditionUnit,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        let at = self.made(id).ok_or(Dropped::NoConfiguration)?;
        self.place(now, at, unit)
    }

    /// Takes a picture whose times are the timeline's.
    pub(super) fn place(
        &mut self,
        now: Instant,
        at: usize,
        unit: RenditionUnit,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        if unit.payload.is_empty() {
            return Err(Dropped::Empty);
        }
        let track = &self.tracks[at];
        if track.awaiting_keyframe && !unit.keyframe {
            return Err(Dropped::AwaitingKeyframe);
        }
        let dts = track.earliest(unit.dts);
        let steady = dts == unit.dts;
        let placed = Placed {
            dts,
            pts: if steady { unit.pts } else { unit.pts.max(dts) },
            keyframe: unit.keyframe,
            discardable: unit.discardable,
            jumped: false,
            steady,
            payload: unit.payload,
            ingest_time: unit.ingest_time,
        };
        Ok(self.emit(now, at, placed))
    }

    pub(super) fn configure_rendition(
        &mut self,
        name: &str,
        feed: Feed,
        configuration: Configuration,
    ) -> Result<(TrackId, bool), TooManyRenditions> {
        let present = self.tracks.position(|track| {
            let same = match feed {
                Feed::Publisher(_) | Feed::Contributor(_) => true,
                Feed::Made => *track.name == *name,
            };
            track.is_further() && track.confirmed && track.feed == feed && same
        });
        // Pictures of another height are another rendition.
        let renamed = present.filter(|&at| *self.tracks[at].name != *name);
        if let Some(at) = renamed {
            self.remove_track(self.tracks[at].id);
        }
        let at = match present.filter(|_| renamed.is_none()) {
            Some(at) => at,
            None => {
                let (at, forgotten) = self.tracks.rendition(name, feed, &configuration)?;
                if let Some(forgotten) = forgotten {
                    self.timeline.forget(forgotten);
                }
                at
            }
        };
        let track = &mut self.tracks[at];
        let id = track.id;
        let changed = track.configure(configuration);
        if changed {
            self.gop.forget(id);
            self.changed = true;
        }
        Ok((id, changed || present.is_none() || renamed.is_some()))
    }

    fn made(&self, id: TrackId) -> Option<usize> {
        self.tracks.position(|track| {
            track.id == id && track.is_further() && track.confirmed && track.feed == Feed::Made
        })
    }

    pub(super) fn unlist_silent(&mut self, now: Instant) {
        let silent_since = |track: &TrackState| {
            let last = track.last_at?;
            (now.saturating_duration_since(last) >= SILENT_MAX).then_some(last)
        };
        let source = self.tracks.fed_by(MediaKind::Video, Feed::SOURCE);
        if source.is_none_or(|at| silent_since(&self.tracks[at]).is_some()) {
            return;
        }
        for track in self.tracks.listed() {
            let publishers = track.feed != Feed::Made && track.confirmed;
            if track.is_further() && publishers && silent_since(track).is_some() {
                track.listed = false;
                track.begin_anew();
                self.gop.forget(track.id);
                self.changed = true;
            }
        }
    }
}
