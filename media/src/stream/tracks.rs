//! The tracks of a stream, and how further renditions among them get names and numbers.
//!
//! A number stands for a name as long as the stream lives: a rendition that comes back, from the same publisher, the next one or the
//! origin itself, is the track it was before. Only when very many names have occurred are those forgotten that went first; their numbers
//! are never given again.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use super::renditions::TooManyRenditions;
use super::track::{Feed, TrackState};
use crate::id::TrackId;
use crate::track::Configuration;
use crate::unit::MediaKind;

/// Renditions beside the source that a stream may have at a time (count). Ladders have three to six rungs.
pub(super) const RENDITIONS_MAX: usize = 16;

/// Tracks that are remembered (count): those of a full ladder, those of the publisher before, and some that may return. A
/// `StreamInfo` on the wire has room for 64.
const REMEMBERED_MAX: usize = 48;

/// See the module.
#[derive(Debug)]
pub(super) struct Tracks {
    /// By id.
    tracks: Vec<TrackState>,
    next_id: TrackId,
}

impl Tracks {
    pub(super) const fn new() -> Self {
        Self {
            tracks: Vec::new(),
            next_id: TrackId::FIRST_RENDITION,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &TrackState> {
        self.tracks.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut TrackState> {
        self.tracks.iter_mut()
    }

    /// Those that are part of the stream.
    pub(super) fn listed(&mut self) -> impl Iterator<Item = &mut TrackState> {
        self.tracks.iter_mut().filter(|track| track.listed)
    }

    pub(super) fn position(&self, found: impl Fn(&TrackState) -> bool) -> Option<usize> {
        self.tracks.iter().position(found)
    }

    /// The place of the track with this id, which is one of the few that everybody has.
    pub(super) fn insert(&mut self, track: TrackState) -> usize {
        let at = self.tracks.partition_point(|other| other.id < track.id);
        self.tracks.insert(at, track);
        at
    }

    /// The place of the track that the present publisher, or the origin for it, feeds.
    pub(super) fn fed_by(&self, kind: MediaKind, feed: Feed) -> Option<usize> {
        self.position(|track| track.confirmed && track.feed == feed && track.kind() == kind)
    }

    /// The place of a rendition of this name, which is made if there is none. If the name is in use for another one, the second has
    /// `480p2`, the third `480p3`. Returned too: which track was forgotten for it.
    pub(super) fn rendition(
        &mut self,
        name: &str,
        feed: Feed,
        configuration: &Configuration,
    ) -> Result<(usize, Option<TrackId>), TooManyRenditions> {
        let further = |track: &&TrackState| track.is_further() && track.confirmed;
        if self.iter().filter(further).count() >= RENDITIONS_MAX {
            return Err(TooManyRenditions);
        }
        let mut rendition: Arc<str> = name.into();
        let mut number = 1;
        while let Some(at) = self
            .position(|track| *track.rendition == *rendition && track.kind() == MediaKind::Video)
        {
            let track = &mut self.tracks[at];
            if !track.confirmed && track.is_further() {
                track.feed = feed;
                track.name = name.into();
                return Ok((at, None));
            }
            number += 1;
            rendition = format!("{name}{number}").into();
        }
        let forgotten = if self.tracks.len() < REMEMBERED_MAX {
            None
        } else {
            let gone = |track: &TrackState| track.is_further() && !track.listed && !track.confirmed;
            let at = self.position(gone).ok_or(TooManyRenditions)?;
            Some(self.tracks.remove(at).id)
        };
        let id = self.next_id;
        self.next_id = TrackId(id.0.checked_add(1).ok_or(TooManyRenditions)?);
        let track = TrackState::new(id, rendition, name.into(), feed, configuration.clone());
        Ok((self.insert(track), forgotten))
    }
}

impl Index<usize> for Tracks {
    type Output = TrackState;

    fn index(&self, at: usize) -> &TrackState {
        &self.tracks[at]
    }
}

impl IndexMut<usize> for Tracks {
    fn index_mut(&mut self, at: usize) -> &mut TrackState {
        &mut self.tracks[at]
    }
}
