//! The source since its newest keyframe, which is what a child begins with, and its frame rate.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use headwater_media::id::{Bitrate, Epoch};
use headwater_media::time::MediaTime;
use headwater_media::unit::AccessUnit;

/// Bounds of what is kept. A GOP beyond one of them is dropped, and a child begins with the next.
const UNITS_MAX: usize = 1200;
const BYTES_MAX: usize = 24 << 20;
const SPAN_MAX: Duration = Duration::from_secs(20);

/// Pictures from which a frame rate is told (count): so many, or fewer that lie over [`RATED_SPAN`].
const RATED: usize = 8;
const RATED_SPAN: Duration = Duration::from_secs(1);

/// From one keyframe to the next, as most publishers are set (milliseconds).
const KEYFRAME_INTERVAL_MS: u128 = 2000;

/// Pictures over which it is measured (count).
const RECENT: usize = 61;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Gop {
    units: Vec<Arc<AccessUnit>>,
    bytes: usize,
    /// DTS of the last pictures, of whatever GOP.
    recent: VecDeque<MediaTime>,
}

impl Gop {
    /// Takes the next picture.
    pub(crate) fn push(&mut self, unit: &Arc<AccessUnit>) {
        if unit.discontinuity {
            self.recent.clear();
        }
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(unit.dts);
        if unit.keyframe {
            self.clear();
        } else if self.units.is_empty() {
            return;
        }
        self.bytes += unit.payload.len();
        self.units.push(Arc::clone(unit));
        let first = self.units.first().map_or(unit.dts, |first| first.dts);
        let span = unit.dts.since(first);
        if self.units.len() > UNITS_MAX || self.bytes > BYTES_MAX || span > SPAN_MAX {
            self.clear();
        }
    }

    /// Drops what is not of this publisher and configuration.
    pub(crate) fn keep_only(&mut self, coding: Option<(Epoch, u32)>) {
        let mut units = self.units.iter();
        if units.any(|unit| Some((unit.epoch, unit.configuration_id)) != coding) {
            self.clear();
            self.recent.clear();
        }
    }

    /// A picture is missing: goes on at the next keyframe.
    pub(crate) fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
    }

    /// The keyframe, if there is one.
    pub(crate) fn first(&self) -> Option<&Arc<AccessUnit>> {
        self.units.first()
    }

    /// All of them.
    pub(crate) fn units(&self) -> Vec<Arc<AccessUnit>> {
        self.units.clone()
    }

    /// Pictures per second; none until known.
    pub(crate) fn frame_rate(&self) -> Option<f64> {
        let (first, last) = (*self.recent.front()?, *self.recent.back()?);
        let span = last.since(first);
        let known = !span.is_zero() && (self.recent.len() >= RATED || span >= RATED_SPAN);
        known.then(|| (self.recent.len() - 1) as f64 / span.as_secs_f64())
    }

    /// Bits per second as the newest GOP so far lets expect; none until known. Its keyframe, which may be as large as all the
    /// rest, counts as one in [`KEYFRAME_INTERVAL_MS`].
    pub(crate) fn bitrate(&self) -> Option<Bitrate> {
        self.frame_rate()?;
        let (first, last) = (self.units.first()?, self.units.last()?);
        let millis = last.dts.since(first.dts).as_millis();
        let keyframe = first.payload.len();
        let per_second = |bytes: usize, millis: u128| {
            let bits = u128::try_from(bytes).ok()? * 8;
            u64::try_from((bits * 1000).checked_div(millis)?).ok()
        };
        let others = per_second(self.bytes - keyframe, millis)?;
        Some(Bitrate(
            others + per_second(keyframe, KEYFRAME_INTERVAL_MS)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use headwater_media::id::TrackId;
    use headwater_media::testkit;

    use super::*;

    fn unit(millis: i64, keyframe: bool, bytes: usize) -> Arc<AccessUnit> {
        Arc::new(AccessUnit {
            keyframe,
            payload: Bytes::from(vec![0; bytes]),
            ..testkit::unit(TrackId::SOURCE_VIDEO, 1, 0, MediaTime::from_millis(millis))
        })
    }

    #[test]
    fn frame_rates_are_told_of_slow_sources_and_of_keyframes_alone() {
        for (interval, every, rate) in
            [(40, 50, 25.0), (500, 2, 2.0), (20, 1, 50.0), (2000, 1, 0.5)]
        {
            let mut gop = Gop::default();
            for number in 0..20 {
                gop.push(&unit(number * interval, number % every == 0, 10));
            }
            let told = gop.frame_rate().expect("known");
            assert!((told - rate).abs() < 0.01, "{told}");
            assert!(gop.first().is_some());
        }
        let mut gop = Gop::default();
        assert_eq!(gop.frame_rate(), None);
        gop.push(&unit(0, true, 10));
        gop.push(&unit(40, false, 10));
        assert_eq!(gop.frame_rate(), None);
    }

    #[test]
    fn a_gop_beyond_its_bounds_is_dropped_until_the_next_keyframe() {
        for (millis, bytes) in [(20_001, 10), (40, BYTES_MAX)] {
            let mut gop = Gop::default();
            gop.push(&unit(0, true, 10));
            gop.push(&unit(millis, false, bytes));
            gop.push(&unit(millis + 40, false, 10));
            assert!(gop.first().is_none());
            gop.push(&unit(millis + 80, true, 10));
            assert_eq!(gop.units().len(), 1);
        }
        let mut gop = Gop::default();
        gop.push(&unit(0, true, 10));
        gop.keep_only(Some((Epoch(1), 0)));
        assert!(gop.first().is_some());
        gop.keep_only(Some((Epoch(1), 1)));
        assert!(gop.first().is_none() && gop.frame_rate().is_none());
    }
}
