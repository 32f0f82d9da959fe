//! Which tracks a stream's viewers on this shard need: what is to come from the stream's upstream, and no more.

use headwater_media::id::TrackId;
use smallvec::SmallVec;

/// What one viewer needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Need {
    /// Tracks of pictures, none of them twice.
    pub(crate) tracks: SmallVec<[TrackId; 4]>,
    /// It would take other renditions than the source if there were any.
    pub(crate) adaptive: bool,
}

/// What all of them need, by how many do (count).
#[derive(Debug, Default)]
pub(crate) struct Demand {
    tracks: SmallVec<[(TrackId, usize); 4]>,
    adaptive: usize,
}

impl Demand {
    /// A viewer's need becomes another. True: the need of all does, too.
    pub(crate) fn replace(&mut self, before: &Need, after: &Need) -> bool {
        let mut changed = false;
        for track in after
            .tracks
            .iter()
            .filter(|track| !before.tracks.contains(track))
        {
            match self.tracks.iter_mut().find(|(id, _)| id == track) {
                Some((_, count)) => *count += 1,
                None => {
                    self.tracks.push((*track, 1));
                    changed = true;
                }
            }
        }
        for track in before
            .tracks
            .iter()
            .filter(|track| !after.tracks.contains(track))
        {
            if let Some(at) = self.tracks.iter().position(|(id, _)| id == track) {
                self.tracks[at].1 -= 1;
                if self.tracks[at].1 == 0 {
                    self.tracks.swap_remove(at);
                    changed = true;
                }
            }
        }
        let had = self.adaptive > 0;
        self.adaptive += usize::from(after.adaptive);
        self.adaptive -= usize::from(before.adaptive);
        changed || had != (self.adaptive > 0)
    }

    /// What all of them need.
    pub(crate) fn need(&self) -> Need {
        let mut tracks: SmallVec<[TrackId; 4]> = self.tracks.iter().map(|(id, _)| *id).collect();
        tracks.sort_unstable();
        Need {
            tracks,
            adaptive: self.adaptive > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(tracks: &[u16], adaptive: bool) -> Need {
        Need {
            tracks: tracks.iter().map(|id| TrackId(*id)).collect(),
            adaptive,
        }
    }

    #[test]
    fn a_track_is_needed_as_long_as_somebody_needs_it() {
        let mut demand = Demand::default();
        let nothing = Need::default();
        assert!(demand.replace(&nothing, &need(&[17, 16], true)));
        assert_eq!(demand.need(), need(&[16, 17], true));
        // A second viewer with the same need is no news, nor is its end.
        assert!(!demand.replace(&nothing, &need(&[16], true)));
        assert!(!demand.replace(&need(&[16], true), &nothing));
        // The first moves on.
        assert!(demand.replace(&need(&[17, 16], true), &need(&[16, 0], false)));
        assert_eq!(demand.need(), need(&[0, 16], false));
        assert!(demand.replace(&need(&[16, 0], false), &nothing));
        assert_eq!(demand.need(), nothing);
    }
}
