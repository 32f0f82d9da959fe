//! Renditions that come by connections of their own: other outputs of the encoder whose default video the stream has.
//!
//! A contributor may come before or after the stream's publisher. Its pictures have a place once its keyframes are found at the source's
//! times ([`super::align`]); until then, and while nobody publishes the source, they are dropped.

use std::sync::Arc;
use std::time::Instant;

use super::align::{self, Aligner, Verdict};
use super::renditions::TooManyRenditions;
use super::track::Feed;
use super::{Dropped, Stream};
use crate::codec::h264;
use crate::id::{ContributorId, RenditionName, TrackId};
use crate::track::Configuration;
use crate::unit::{AccessUnit, IngestUnit, MediaKind, RenditionUnit};

/// Somebody who sends one rendition.
#[derive(Debug)]
pub(super) struct Contributor {
    id: ContributorId,
    rendition: RenditionName,
    configuration: Option<h264::Configuration>,
    aligner: Aligner,
}

impl Contributor {
    /// The source has a keyframe.
    pub(super) fn handle_source_keyframe(&mut self, unit: &AccessUnit) {
        self.aligner.handle_source_keyframe(unit.pts);
    }

    /// The source begins anew, or its clock jumped.
    pub(super) fn reset(&mut self) {
        self.aligner.reset();
    }
}

impl Stream {
    /// Somebody will send this rendition.
    ///
    /// # Errors
    /// If it is one too many.
    pub fn handle_contributor(
        &mut self,
        id: ContributorId,
        rendition: RenditionName,
    ) -> Result<(), TooManyRenditions> {
        if self.contributors.iter().any(|known| known.id == id) {
            return Ok(());
        }
        if self.contributors.len() >= super::tracks::RENDITIONS_MAX {
            return Err(TooManyRenditions);
        }
        self.contributors.push(Contributor {
            id,
            rendition,
            configuration: None,
            aligner: Aligner::new(),
        });
        Ok(())
    }

    /// It left.
    pub fn handle_contributor_leave(&mut self, id: ContributorId) {
        self.contributors.retain(|known| known.id != id);
        if let Some(at) = self.tracks.fed_by(MediaKind::Video, Feed::Contributor(id)) {
            self.remove_track(self.tracks[at].id);
        }
    }

    /// It says how its rendition is coded.
    ///
    /// # Errors
    /// If it is one rendition too many.
    pub fn handle_contributor_configuration(
        &mut self,
        id: ContributorId,
        configuration: h264::Configuration,
    ) -> Result<(), TooManyRenditions> {
        if let Some(known) = self.contributors.iter_mut().find(|known| known.id == id) {
            known.configuration = Some(configuration);
            let present = self.tracks.fed_by(MediaKind::Video, Feed::Contributor(id));
            if present.is_some() {
                self.declare(id)?;
            }
        }
        Ok(())
    }

    /// Units of it were lost on their way here.
    pub fn handle_contributor_loss(&mut self, id: ContributorId) {
        if let Some(known) = self.contributors.iter_mut().find(|known| known.id == id) {
            known.aligner.forgive();
        }
        if let Some(at) = self.tracks.fed_by(MediaKind::Video, Feed::Contributor(id)) {
            self.tracks[at].lose();
        }
    }

    /// Takes a picture of it.
    ///
    /// # Errors
    /// [`Dropped`]: count it. After [`Dropped::Unaligned`] nothing of it is taken any more: tell it to leave.
    pub fn handle_contributor_unit(
        &mut self,
        now: Instant,
        id: ContributorId,
        unit: IngestUnit,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        if !self.publishing {
            return Err(Dropped::NotPublishing);
        }
        let source = self.timeline.offset(TrackId::SOURCE_VIDEO);
        let source = source.zip(self.timeline.present(now));
        let (offset, present) = source.ok_or(Dropped::Aligning)?;
        let mut contributors = self.contributors.iter_mut();
        let known = contributors.find(|known| known.id == id);
        let known = known.filter(|known| known.configuration.is_some());
        let known = known.ok_or(Dropped::NoConfiguration)?;
        let times = align::Times {
            dts: unit.dts,
            pts: unit.pts,
            keyframe: unit.keyframe,
        };
        let source = align::Source { offset, present };
        let offset = match known.aligner.handle_picture(times, source) {
            Verdict::Searching => return Err(Dropped::Aligning),
            Verdict::Refused => return Err(Dropped::Unaligned),
            Verdict::Place(offset) => offset,
        };
        let present = self.tracks.fed_by(MediaKind::Video, Feed::Contributor(id));
        if present.is_none() {
            self.declare(id).map_err(|_| Dropped::NoConfiguration)?;
        }
        let at = self.tracks.fed_by(MediaKind::Video, Feed::Contributor(id));
        let unit = RenditionUnit {
            dts: unit.dts + offset,
            pts: unit.pts + offset,
            keyframe: unit.keyframe,
            discardable: unit.discardable,
            payload: unit.payload,
            ingest_time: unit.ingest_time,
        };
        self.place(now, at.ok_or(Dropped::NoConfiguration)?, unit)
    }

    /// Its rendition's name, and whether its pictures have a place, of each contributor.
    pub fn contributors(&self) -> impl Iterator<Item = (ContributorId, &RenditionName, bool)> {
        let contributors = self.contributors.iter();
        contributors.map(|known| (known.id, &known.rendition, known.aligner.aligned()))
    }

    fn declare(&mut self, id: ContributorId) -> Result<(), TooManyRenditions> {
        let known = self.contributors.iter().find(|known| known.id == id);
        let Some((name, configuration)) =
            known.and_then(|known| Some((known.rendition.clone(), known.configuration.clone()?)))
        else {
            return Ok(());
        };
        let configuration = Configuration::H264(configuration);
        self.configure_rendition(name.as_str(), Feed::Contributor(id), configuration)?;
        Ok(())
    }
}
