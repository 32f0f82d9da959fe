//! The late-join cache: the source video since its newest keyframe, and the audio that covers it.
//!
//! Whoever attaches gets it first, so that the first picture needs no waiting for a keyframe. Bounded in bytes and time: a GOP
//! that outgrows a bound is dropped whole, since half a GOP is of no use, and the cache fills again at the next keyframe. A stream
//! without video keeps its last second of audio.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::time::MediaTime;
use crate::unit::{AccessUnit, MediaKind};

/// What a [`GopCache`] may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes.
    pub bytes: usize,
    /// Media time of the GOP.
    pub span: Duration,
}

/// Audio kept while there is no GOP to cover: enough for a listener's buffer to start.
const AUDIO_ALONE: Duration = Duration::from_secs(1);

/// The newest GOP with its audio, in order of arrival.
#[derive(Debug)]
pub struct GopCache {
    limits: Limits,
    units: VecDeque<(MediaKind, Arc<AccessUnit>)>,
    bytes: usize,
    keyframe_dts: Option<MediaTime>,
}

impl GopCache {
    /// Empty.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            units: VecDeque::new(),
            bytes: 0,
            keyframe_dts: None,
        }
    }

    /// Takes the next unit of a track.
    pub fn push(&mut self, kind: MediaKind, unit: &Arc<AccessUnit>) {
        match kind {
            MediaKind::Video if unit.keyframe => {
                let from = unit.dts;
                self.retain(|kind, unit| kind == MediaKind::Audio && unit.dts >= from);
                self.keyframe_dts = Some(from);
            }
            // Without its keyframe nothing can be done with it.
            MediaKind::Video if self.keyframe_dts.is_none() => return,
            MediaKind::Video | MediaKind::Audio => {}
        }
        self.bytes = self.bytes.saturating_add(unit.payload.len());
        self.units.push_back((kind, Arc::clone(unit)));

        let begin = self.keyframe_dts;
        if begin.is_some_and(|begin| unit.dts.since(begin) > self.limits.span)
            || (begin.is_some() && self.bytes > self.limits.bytes)
        {
            self.keyframe_dts = None;
            self.retain(|kind, _| kind == MediaKind::Audio);
        }
        if self.keyframe_dts.is_none() {
            while let Some((_, oldest)) = self.units.front()
                && (unit.dts.since(oldest.dts) > AUDIO_ALONE || self.bytes > self.limits.bytes)
            {
                self.bytes = self.bytes.saturating_sub(oldest.payload.len());
                self.units.pop_front();
            }
        }
    }

    /// Forgets everything: a new epoch or video configuration began.
    pub fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
        self.keyframe_dts = None;
    }

    /// What is cached, in order of arrival.
    pub fn units(&self) -> impl Iterator<Item = &Arc<AccessUnit>> {
        self.units.iter().map(|(_, unit)| unit)
    }

    /// Payload bytes held.
    pub const fn bytes(&self) -> usize {
        self.bytes
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
    use crate::id::{Epoch, TrackId};
    use crate::time::WallTime;

    fn unit(track: TrackId, millis: i64, keyframe: bool, bytes: usize) -> Arc<AccessUnit> {
        Arc::new(AccessUnit {
            track,
            epoch: Epoch(1),
            sequence: 0,
            configuration_id: 0,
            dts: MediaTime::from_millis(millis),
            pts: MediaTime::from_millis(millis),
            keyframe,
            discardable: false,
            discontinuity: false,
            payload: Bytes::from(vec![0; bytes]),
            ingest_time: WallTime::default(),
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
