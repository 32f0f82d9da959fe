//! The resume window: the newest units of all tracks, for subscribers that come back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::gop_cache::Limits;
use crate::id::TrackId;
use crate::unit::AccessUnit;

/// See the module.
#[derive(Debug)]
pub struct ResumeWindow {
    limits: Limits,
    units: VecDeque<(Instant, Arc<AccessUnit>)>,
    bytes: usize,
}

impl ResumeWindow {
    /// Empty.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            units: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes the next unit of a track.
    pub fn push(&mut self, now: Instant, unit: &Arc<AccessUnit>) {
        self.bytes = self.bytes.saturating_add(unit.payload.len());
        self.units.push_back((now, Arc::clone(unit)));
        self.trim(now);
    }

    /// Forgets everything: a new epoch began.
    pub fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
    }

    /// Drops what is too old at `now`.
    pub fn trim(&mut self, now: Instant) {
        while let Some((at, unit)) = self.units.front()
            && (self.bytes > self.limits.bytes
                || now.saturating_duration_since(*at) > self.limits.span)
        {
            self.bytes = self.bytes.saturating_sub(unit.payload.len());
            self.units.pop_front();
        }
    }

    /// In order of arrival.
    pub fn units(&self) -> impl Iterator<Item = &Arc<AccessUnit>> {
        self.units.iter().map(|(_, unit)| unit)
    }

    /// The first sequence number that is here of a track.
    pub fn oldest(&self, track: TrackId) -> Option<u64> {
        let oldest = self.units().find(|unit| unit.track == track);
        oldest.map(|unit| unit.sequence)
    }
}
