//! The resume window: the newest units of all tracks, for subscribers that come back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::gop_cache::Limits;
use crate::id::TrackId;
use crate::unit::AccessUnit;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    limits: Limits,
    units: VecDeque<(Instant, Arc<AccessUnit>)>,
    bytes: usize,
}

impl Window {
    pub(super) const fn new(limits: Limits) -> Self {
        Self {
            limits,
            units: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn push(&mut self, now: Instant, unit: &Arc<AccessUnit>) {
        self.bytes = self.bytes.saturating_add(unit.payload.len());
        self.units.push_back((now, Arc::clone(unit)));
        self.trim(now);
    }

    pub(super) fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
    }

    pub(super) fn trim(&mut self, now: Instant) {
        while let Some((at, unit)) = self.units.front()
            && (self.bytes > self.limits.bytes
                || now.saturating_duration_since(*at) > self.limits.span)
        {
            self.bytes = self.bytes.saturating_sub(unit.payload.len());
            self.units.pop_front();
        }
    }

    /// In order of arrival.
    pub(super) fn units(&self) -> impl Iterator<Item = &Arc<AccessUnit>> {
        self.units.iter().map(|(_, unit)| unit)
    }

    /// The first sequence number that is here of a track.
    pub(super) fn oldest(&self, track: TrackId) -> Option<u64> {
        let oldest = self.units().find(|unit| unit.track == track);
        oldest.map(|unit| unit.sequence)
    }
}
