//! What publishers' media is like, for metrics: how much of it there is, its gaps, and how far keyframes are apart.

use headwater_media::id::TrackId;
use headwater_media::time::MediaTime;
use headwater_media::unit::{AccessUnit, MediaKind};
use metrics::{counter, histogram};

use crate::metrics::{INGEST_GAPS, INGEST_UNITS, KEYFRAME_INTERVAL};

/// Of one stream.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    /// The last keyframe of the source.
    keyframe: Option<MediaTime>,
}

impl Ingest {
    /// A publisher's unit was taken.
    pub(crate) fn handle_unit(&mut self, kind: MediaKind, unit: &AccessUnit) {
        counter!(INGEST_UNITS, "kind" => kind.as_str()).increment(1);
        let gap = unit.discontinuity && unit.sequence > 0;
        if gap {
            counter!(INGEST_GAPS, "kind" => kind.as_str()).increment(1);
        }
        if let Some(interval) = self.keyframe_interval(unit) {
            histogram!(KEYFRAME_INTERVAL).record(interval);
        }
    }

    /// How long after the last one a keyframe comes (seconds), if nothing is missing between them.
    fn keyframe_interval(&mut self, unit: &AccessUnit) -> Option<f64> {
        if unit.track != TrackId::SOURCE_VIDEO {
            return None;
        }
        if unit.discontinuity {
            self.keyframe = None;
        }
        if !unit.keyframe {
            return None;
        }
        let before = self.keyframe.replace(unit.dts)?;
        Some(unit.dts.since(before).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::testkit::{Video, VideoOptions};

    use super::*;

    #[test]
    fn keyframes_are_as_far_apart_as_they_are_where_nothing_is_missing() {
        let mut ingest = Ingest::default();
        let mut video = Video::new(VideoOptions::default(), 1);
        let mut found = Vec::new();
        for number in 0..260 {
            let mut unit = video.next().unwrap();
            unit.discontinuity |= number == 130;
            found.extend(ingest.keyframe_interval(&unit));
        }
        // Keyframes at 0, 60, 120, 180 and 240; something is missing between the third and the fourth.
        assert_eq!(found, [2.0, 2.0, 2.0]);
    }
}
