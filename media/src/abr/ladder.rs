//! The renditions, from the lowest to the highest, and how trying them went.

use std::time::{Duration, Instant};

use crate::id::{Bitrate, TrackId};

/// Headers, SRTP tags and retransmissions, on top of what is measured (per cent).
const OVERHEAD_PERCENT: u64 = 6;

/// How long a rendition that had to be left soon isn't tried again: the first time, then doubled.
const BLOCKED: Duration = Duration::from_secs(6);
const BLOCKED_MAX: Duration = Duration::from_secs(96);

/// Renditions that are looked at (count): the best of more are as good as these.
pub(super) const RUNGS_MAX: usize = 8;

/// One encoding of the stream, as the shell knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rendition {
    /// The track.
    pub track: TrackId,
    /// As measured, or as its encoder was told.
    pub bitrate: Bitrate,
    /// Lines of its picture.
    pub height: u32,
    /// The longest time between two keyframes.
    pub keyframe_interval: Duration,
}

/// A rendition and how trying it went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rung {
    pub(super) rendition: Rendition,
    /// Times in a row that it had to be left soon (count).
    failures: u32,
    blocked_until: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
    audio: u64,
}

impl Ladder {
    /// Takes the renditions in; what is known about those that stay is kept.
    pub(super) fn set(&mut self, renditions: &[Rendition], audio: Bitrate) {
        let mut rungs: Vec<Rung> = renditions
            .iter()
            .map(|rendition| {
                let known = self.position(rendition.track).map(|at| self.rungs[at]);
                Rung {
                    rendition: *rendition,
                    failures: known.map_or(0, |known| known.failures),
                    blocked_until: known.and_then(|known| known.blocked_until),
                }
            })
            .collect();
        // By size first: what is measured of a rendition that has just begun can be far off.
        rungs.sort_by_key(|rung| (rung.rendition.height, rung.rendition.bitrate));
        let surplus = rungs.len().saturating_sub(RUNGS_MAX);
        rungs.drain(..surplus);
        self.rungs = rungs;
        self.audio = audio.0;
    }

    pub(super) const fn len(&self) -> usize {
        self.rungs.len()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Rung> {
        self.rungs.get(at)
    }

    pub(super) fn track(&self, at: usize) -> Option<TrackId> {
        self.rungs.get(at).map(|rung| rung.rendition.track)
    }

    pub(super) fn position(&self, track: TrackId) -> Option<usize> {
        self.rungs
            .iter()
            .position(|rung| rung.rendition.track == track)
    }

    /// What a link must carry for this rung and sound (bits per second).
    pub(super) fn need(&self, at: usize) -> u64 {
        let video = self
            .rungs
            .get(at)
            .map_or(0, |rung| rung.rendition.bitrate.0);
        let all = video.saturating_add(self.audio);
        all.saturating_add(all / 100 * OVERHEAD_PERCENT)
    }

    /// The highest rung that needs at most `rate`.
    pub(super) fn fitting(&self, rate: u64) -> Option<usize> {
        (0..self.rungs.len())
            .rev()
            .find(|at| self.need(*at) <= rate)
    }

    /// The rung had to be left soon.
    pub(super) fn handle_failure(&mut self, now: Instant, at: usize) {
        if let Some(rung) = self.rungs.get_mut(at) {
            let wait = BLOCKED.saturating_mul(1 << rung.failures.min(8));
            rung.blocked_until = Some(now + wait.min(BLOCKED_MAX));
            rung.failures += 1;
        }
    }

    /// The rung held.
    pub(super) fn handle_success(&mut self, at: usize) {
        if let Some(rung) = self.rungs.get_mut(at) {
            rung.failures = 0;
            rung.blocked_until = None;
        }
    }

    /// Until when neither this rung nor one above `above` below it may be tried.
    pub(super) fn blocked_until(&self, above: Option<usize>, at: usize) -> Option<Instant> {
        let from = above.map_or(0, |above| above + 1);
        let range = self.rungs.get(from..=at).unwrap_or_default();
        range.iter().filter_map(|rung| rung.blocked_until).max()
    }
}
