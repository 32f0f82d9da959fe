//! Times through ffmpeg and back: FLV counts milliseconds, the stream ticks of 90 kHz.
//!
//! Each picture that is fed is remembered under its millisecond until all rungs have it, so that what comes out gets the exact time and
//! the ingest time of what it was made from, and so that it is known how far the child lags.

use std::collections::BTreeMap;
use std::time::Instant;

use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::AccessUnit;

/// The first picture's time in the child (ms): room for pictures that are shown before it is decoded, since FLV's times are unsigned.
const FIRST_MILLIS: i64 = 10_000;

/// Times from here on are not for a 32-bit field (ms): the child is replaced after 23 days.
const MILLIS_MAX: i64 = 2_000_000_000;

/// ffmpeg moves a time that doesn't rise by single milliseconds. What was moved further is not this picture any more (ms).
const MOVED_MAX: i64 = 5;

/// A picture that the child has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fed {
    /// On the stream's timeline.
    pub(crate) pts: MediaTime,
    pub(crate) ingest_time: WallTime,
    /// When it was fed.
    pub(crate) at: Instant,
    /// As it happened, not of the cache that the child began with.
    pub(crate) live: bool,
    bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Times {
    base: MediaTime,
    fed: BTreeMap<i64, Fed>,
    bytes: usize,
}

impl Times {
    /// For a child that begins with the picture decoded at `first`.
    pub(crate) const fn new(first: MediaTime) -> Self {
        Self {
            base: first,
            fed: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Remembers a picture. Its decode time in the child and its composition offset (ms), none when the child is too old for it.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        live: bool,
        unit: &AccessUnit,
    ) -> Option<(i64, i64)> {
        let (dts, pts) = (self.millis(unit.dts), self.millis(unit.pts));
        if !(0..MILLIS_MAX).contains(&dts) || !(0..MILLIS_MAX).contains(&pts) {
            return None;
        }
        let fed = Fed {
            pts: unit.pts,
            ingest_time: unit.ingest_time,
            at: now,
            live,
            bytes: unit.payload.len(),
        };
        self.bytes += fed.bytes;
        if let Some(before) = self.fed.insert(pts, fed) {
            self.bytes -= before.bytes;
        }
        Some((dts, pts - dts))
    }

    /// The picture that came out with this time.
    pub(crate) fn find(&self, millis: i64) -> Option<&Fed> {
        let nearest = self.fed.range(..=millis).next_back();
        nearest
            .filter(|(at, _)| millis - **at <= MOVED_MAX)
            .map(|(_, fed)| fed)
    }

    /// All rungs have the pictures up to this time.
    pub(crate) fn forget(&mut self, millis: i64) {
        while let Some(entry) = self.fed.first_entry()
            && *entry.key() <= millis
        {
            self.bytes -= entry.remove().bytes;
        }
    }

    /// Pictures that some rung lacks (count).
    pub(crate) fn outstanding(&self) -> usize {
        self.fed.len()
    }

    /// Their payload (bytes).
    pub(crate) const fn outstanding_bytes(&self) -> usize {
        self.bytes
    }

    /// The first of them.
    pub(crate) fn oldest(&self) -> Option<&Fed> {
        self.fed.first_key_value().map(|(_, fed)| fed)
    }

    fn millis(&self, time: MediaTime) -> i64 {
        let ticks = (time - self.base).ticks();
        // To the nearest, which FLV's readers and writers keep.
        ticks
            .saturating_add(45)
            .div_euclid(90)
            .saturating_add(FIRST_MILLIS)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use headwater_media::id::TrackId;
    use headwater_media::testkit;
    use headwater_node::clock::Clock;

    use super::*;

    fn unit(dts: i64, pts: i64) -> AccessUnit {
        AccessUnit {
            pts: MediaTime::from_ticks(pts),
            keyframe: false,
            payload: Bytes::from_static(b"12345"),
            ingest_time: WallTime::from_unix_micros(u64::try_from(pts).unwrap_or_default()),
            ..testkit::unit(TrackId::SOURCE_VIDEO, 1, 0, MediaTime::from_ticks(dts))
        }
    }

    #[test]
    fn what_comes_out_has_the_ticks_of_what_went_in() {
        let now = Clock::system().now();
        // 30000/1001 pictures a second: no millisecond is exact.
        let ticks: Vec<i64> = (0..1000).map(|n| 7_777 + n * 3003).collect();
        let mut times = Times::new(MediaTime::from_ticks(ticks[0]));
        for &at in &ticks {
            let (dts, offset) = times.add(now, true, &unit(at, at)).expect("in range");
            assert_eq!(offset, 0);
            let fed = times.find(dts).expect("it was fed");
            assert_eq!(fed.pts.ticks(), at);
            assert_eq!(
                fed.ingest_time.unix_micros(),
                u64::try_from(at).expect("positive")
            );
        }
        assert_eq!(
            (times.outstanding(), times.outstanding_bytes()),
            (1000, 5000)
        );
    }

    #[test]
    fn reordered_pictures_are_found_by_when_they_are_shown() {
        let now = Clock::system().now();
        let mut times = Times::new(MediaTime::from_millis(500));
        let at = |millis: i64| millis * 90;
        let mut fed = Vec::new();
        for (dts, pts) in [(500, 566), (533, 700), (566, 633), (600, 600)] {
            let (millis, offset) = times
                .add(now, true, &unit(at(dts), at(pts)))
                .expect("in range");
            fed.push((millis + offset, pts));
        }
        for &(millis, pts) in &fed {
            assert_eq!(times.find(millis).map(|fed| fed.pts.as_millis()), Some(pts));
        }
        // ffmpeg may move a time a little.
        assert_eq!(
            times.find(fed[0].0 + 3).map(|fed| fed.pts.as_millis()),
            Some(566)
        );
        assert!(times.find(fed[0].0 + 20).is_none());
        assert!(times.find(0).is_none());
    }

    #[test]
    fn what_every_rung_has_is_forgotten() {
        let now = Clock::system().now();
        let mut times = Times::new(MediaTime::ZERO);
        let mut last = 0;
        for n in 0..10 {
            let ticks = n * 3600;
            last = times
                .add(now, n > 4, &unit(ticks, ticks))
                .expect("in range")
                .0;
        }
        times.forget(last - 40);
        assert_eq!((times.outstanding(), times.outstanding_bytes()), (1, 5));
        assert!(times.oldest().is_some_and(|fed| fed.live));
        times.forget(last);
        assert_eq!((times.outstanding(), times.outstanding_bytes()), (0, 0));
    }

    #[test]
    fn a_child_is_too_old_after_23_days() {
        let now = Clock::system().now();
        let mut times = Times::new(MediaTime::ZERO);
        let days = |days: i64| days * 86_400 * 90_000;
        assert!(times.add(now, true, &unit(days(23), days(23))).is_some());
        assert_eq!(times.add(now, true, &unit(days(24), days(24))), None);
        // Nor are times before its own.
        assert_eq!(times.add(now, true, &unit(-days(1), -days(1))), None);
    }
}
