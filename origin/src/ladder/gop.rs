//! The source since its newest keyframe: what a child begins with.

use std::sync::Arc;
use std::time::Duration;

use headwater_media::id::Epoch;
use headwater_media::unit::AccessUnit;

/// Bounds of what is kept. A GOP beyond one of them is dropped, and a child begins with the next.
const UNITS_MAX: usize = 1200;
const BYTES_MAX: usize = 24 << 20;
const SPAN_MAX: Duration = Duration::from_secs(20);

/// Pictures from which a frame rate is told (count).
const RATED: usize = 6;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Gop {
    units: Vec<Arc<AccessUnit>>,
    bytes: usize,
    /// Of the last GOP that was long enough (1/s).
    frame_rate: Option<f64>,
}

impl Gop {
    /// Takes the next picture.
    pub(crate) fn push(&mut self, unit: &Arc<AccessUnit>) {
        if unit.keyframe {
            self.units.clear();
            self.bytes = 0;
        }
        let Some(first) = self.units.first() else {
            if unit.keyframe {
                self.bytes = unit.payload.len();
                self.units.push(Arc::clone(unit));
            }
            return;
        };
        let span = unit.dts.since(first.dts);
        self.bytes += unit.payload.len();
        self.units.push(Arc::clone(unit));
        if self.units.len() >= RATED && !span.is_zero() {
            self.frame_rate = Some((self.units.len() - 1) as f64 / span.as_secs_f64());
        }
        if self.units.len() > UNITS_MAX || self.bytes > BYTES_MAX || span > SPAN_MAX {
            self.clear();
        }
    }

    /// Drops what is not of this publisher and configuration.
    pub(crate) fn keep_only(&mut self, coding: Option<(Epoch, u32)>) {
        let mut units = self.units.iter();
        if units.any(|unit| Some((unit.epoch, unit.configuration_id)) != coding) {
            self.clear();
            self.frame_rate = None;
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
    pub(crate) const fn frame_rate(&self) -> Option<f64> {
        self.frame_rate
    }
}
