//! The late-join cache: of each video track what came since its newest keyframe, and the audio that covers it.
//!
//! Whoever attaches gets it first, so that the first picture needs no waiting for a keyframe, and whoever turns to another
//! rendition gets that one's part. Bounded in bytes over all tracks, and in time: a GOP that outgrows a bound is dropped whole,
//! since half a GOP is of no use, and the cache fills again at the track's next keyframe. A stream without video keeps its last
//! second of audio.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::id::TrackId;
use crate::time::MediaTime;
use crate::unit::{AccessUnit, MediaKind};

/// What a [`GopCache`] may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes.
    pub bytes: usize,
    /// Media time of a GOP.
    pub span: Duration,
}

/// Audio kept while there is no GOP to cover: enough for a listener's buffer to start.
const AUDIO_ALONE: Duration = Duration::from_secs(1);

/// The newest GOP of each video track with the audio for them, in order of arrival.
#[derive(Debug)]
pub struct GopCache {
    limits: Limits,
    units: VecDeque<(MediaKind, Arc<AccessUnit>)>,
    bytes: usize,
    gops: Vec<Gop>,
}

/// The cached GOP of a video track.
#[derive(Debug)]
struct Gop {
    track: TrackId,
    keyframe_dts: MediaTime,
    bytes: usize,
}

impl GopCache {
    /// Empty.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            units: VecDeque::new(),
            bytes: 0,
            gops: Vec::new(),
        }
    }

    /// Takes the next unit of a track.
    pub fn push(&mut self, kind: MediaKind, unit: &Arc<AccessUnit>) {
        let bytes = unit.payload.len();
        if kind == MediaKind::Video {
            if unit.keyframe {
                self.forget(unit.track);
                self.gops.push(Gop {
                    track: unit.track,
                    keyframe_dts: unit.dts,
                    bytes: 0,
                });
                self.trim_audio();
            }
            let mut gops = self.gops.iter_mut();
            match gops.find(|gop| gop.track == unit.track) {
                Some(gop) => gop.bytes = gop.bytes.saturating_add(bytes),
                // Without its keyframe nothing can be done with it.
                None => return,
            }
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.units.push_back((kind, Arc::clone(unit)));

        while let Some(track) = self.outgrown(unit.dts) {
            self.forget(track);
            self.trim_audio();
        }
        if self.gops.is_empty() {
            while let Some((_, oldest)) = self.units.front()
                && (unit.dts.since(oldest.dts) > AUDIO_ALONE || self.bytes > self.limits.bytes)
            {
                self.bytes = self.bytes.saturating_sub(oldest.payload.len());
                self.units.pop_front();
            }
        }
    }

    /// Forgets a video track: it went, or is coded differently from here on.
    pub fn forget(&mut self, track: TrackId) {
        if let Some(at) = self.gops.iter().position(|gop| gop.track == track) {
            self.gops.swap_remove(at);
            self.retain(|_, unit| unit.track != track);
        }
    }

    /// Forgets everything: a new epoch began.
    pub fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
        self.gops.clear();
    }

    /// What is cached, in order of arrival.
    pub fn units(&self) -> impl Iterator<Item = &Arc<AccessUnit>> {
        self.units.iter().map(|(_, unit)| unit)
    }

    /// Payload bytes held.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// A track whose GOP is too long at `now`, or the largest if all of them together are too large.
    fn outgrown(&self, now: MediaTime) -> Option<TrackId> {
        let too_long = |gop: &&Gop| now.since(gop.keyframe_dts) > self.limits.span;
        let largest = || {
            let gops = self.gops.iter().max_by_key(|gop| gop.bytes);
            gops.filter(|_| self.bytes > self.limits.bytes)
        };
        let gop = self.gops.iter().find(too_long).or_else(largest);
        gop.map(|gop| gop.track)
    }

    /// Drops the audio that no GOP needs. Without one all of it stays, for [`AUDIO_ALONE`] to bound.
    fn trim_audio(&mut self) {
        if let Some(from) = self.gops.iter().map(|gop| gop.keyframe_dts).min() {
            self.retain(|kind, unit| kind == MediaKind::Video || unit.dts >= from);
        }
    }

    fn retain(&mut self, keep: impl Fn(MediaKind, &AccessUnit) -> bool) {
        let bytes = &mut self.bytes;
        self.units.retain(|(kind, unit)| {
            let kept = keep(*kind, unit);
            if !kept {
                *bytes = bytes.saturating_sub(unit.payload.len());
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::TrackId;
    use crate::testkit;

    fn unit(track: TrackId, millis: i64, keyframe: bool, bytes: usize) -> Arc<AccessUnit> {
        Arc::new(AccessUnit {
            keyframe,
            payload: Bytes::from(vec![0; bytes]),
            ..testkit::unit(track, 1, 0, MediaTime::from_millis(millis))
        })
    }

    fn video(cache: &mut GopCache, millis: i64, keyframe: bool, bytes: usize) {
        cache.push(
            MediaKind::Video,
            &unit(TrackId::SOURCE_VIDEO, millis, keyframe, bytes),
        );
    }

    fn audio(cache: &mut GopCache, millis: i64) {
        cache.push(
            MediaKind::Audio,
            &unit(TrackId::SOURCE_AUDIO, millis, true, 10),
        );
    }

    fn held(cache: &GopCache) -> Vec<(u16, i64)> {
        cache
            .units()
            .map(|unit| (unit.track.0, unit.dts.as_millis()))
            .collect()
    }

    fn cache() -> GopCache {
        GopCache::new(Limits {
            bytes: 1000,
            span: Duration::from_secs(10),
        })
    }

    #[test]
    fn a_keyframe_replaces_the_gop_but_keeps_audio_that_covers_it() {
        let mut cache = cache();
        video(&mut cache, 0, true, 100);
        audio(&mut cache, 5);
        audio(&mut cache, 45);
        video(&mut cache, 40, true, 100);
        video(&mut cache, 80, false, 50);
        assert_eq!(held(&cache), [(1, 45), (0, 40), (0, 80)]);
        assert_eq!(cache.bytes(), 160);
    }

    #[test]
    fn a_gop_that_outgrows_a_bound_is_dropped_until_the_next_keyframe() {
        for (millis, bytes) in [(20, 950), (10_001, 10)] {
            let mut cache = cache();
            video(&mut cache, 0, true, 100);
            video(&mut cache, millis, false, bytes);
            video(&mut cache, millis + 10, false, 10);
            assert_eq!(held(&cache), []);
            assert_eq!(cache.bytes(), 0);
            video(&mut cache, millis + 20, true, 10);
            assert_eq!(held(&cache), [(0, millis + 20)]);
        }
    }

    const LOWER: TrackId = TrackId(16);

    fn lower(cache: &mut GopCache, millis: i64, keyframe: bool, bytes: usize) {
        cache.push(MediaKind::Video, &unit(LOWER, millis, keyframe, bytes));
    }

    #[test]
    fn each_track_has_its_own_gop_and_audio_covers_the_earliest() {
        let mut cache = cache();
        for millis in [0, 40] {
            video(&mut cache, millis, millis == 0, 10);
            lower(&mut cache, millis, millis == 0, 10);
            audio(&mut cache, millis + 5);
        }
        lower(&mut cache, 80, true, 10);
        let source = [(0, 0), (1, 5), (0, 40), (1, 45)];
        assert_eq!(held(&cache), [&source[..], &[(16, 80)]].concat());
        video(&mut cache, 80, true, 10);
        assert_eq!(held(&cache), [(16, 80), (0, 80)]);
        cache.forget(LOWER);
        assert_eq!(held(&cache), [(0, 80)]);
        lower(&mut cache, 120, false, 10);
        assert_eq!(held(&cache), [(0, 80)], "its keyframe is gone");
        assert_eq!(cache.bytes(), 10);
    }

    #[test]
    fn the_largest_gop_makes_room_and_a_track_that_stopped_is_not_kept() {
        let mut cache = cache();
        video(&mut cache, 0, true, 700);
        lower(&mut cache, 0, true, 200);
        lower(&mut cache, 40, false, 101);
        assert_eq!(held(&cache), [(16, 0), (16, 40)]);
        assert_eq!(cache.bytes(), 301);
        video(&mut cache, 9000, true, 10);
        video(&mut cache, 10_040, false, 10);
        assert_eq!(held(&cache), [(0, 9000), (0, 10_040)]);
    }

    #[test]
    fn without_video_the_last_second_of_audio_is_kept() {
        let mut cache = cache();
        for millis in (0..5000).step_by(100) {
            audio(&mut cache, millis);
        }
        assert_eq!(held(&cache).first(), Some(&(1, 3900)));
        assert_eq!(held(&cache).len(), 11);
    }
}
