//! Who gets a track's batches: the viewers of each rendition, and those of the sound.

use headwater_media::id::TrackId;
use smallvec::SmallVec;

/// The slots of a stream's viewers, by what they get. A fan-out visits those of its track only.
#[derive(Debug, Default)]
pub(crate) struct Audiences(SmallVec<[Audience; 4]>);

#[derive(Debug)]
struct Audience {
    track: TrackId,
    slots: Vec<usize>,
}

impl Audiences {
    /// The viewers of a track.
    pub(crate) fn of(&self, track: TrackId) -> &[usize] {
        self.0
            .iter()
            .find(|audience| audience.track == track)
            .map_or(&[], |audience| &audience.slots)
    }

    /// A viewer gets this track from now on. It must not be there yet.
    pub(crate) fn enter(&mut self, track: TrackId, slot: usize) {
        match self.0.iter_mut().find(|audience| audience.track == track) {
            Some(audience) => audience.slots.push(slot),
            None => self.0.push(Audience {
                track,
                slots: vec![slot],
            }),
        }
    }

    /// A viewer gets this track no longer. A track without viewers is forgotten.
    pub(crate) fn leave(&mut self, track: TrackId, slot: usize) {
        let Some(at) = self.0.iter().position(|audience| audience.track == track) else {
            return;
        };
        let slots = &mut self.0[at].slots;
        if let Some(place) = slots.iter().position(|other| *other == slot) {
            slots.swap_remove(place);
        }
        if slots.is_empty() {
            self.0.swap_remove(at);
        }
    }
}
