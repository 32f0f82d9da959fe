//! A running child, as the core sees it: what it has been fed and has not answered, and whether it keeps up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::codec::h264;

use crate::ladder::output::Output;
use crate::ladder::rungs::Rung;
use crate::ladder::source::Source;
use crate::ladder::times::Times;

/// Pictures that a decoder, its threads and an encoder may hold back together (count): with so many outstanding it doesn't lag, it waits.
const HELD_BACK_MAX: usize = 24;

/// A child this far behind gets no more until it has caught up.
const LAG_MAX: Duration = Duration::from_millis(1500);

/// What comes later than this is of no use to a viewer of a live stream, who had better watch another rendition.
const LATE_MAX: Duration = Duration::from_millis(2500);

/// So long it may take to catch up with the GOP it began with.
const START_MAX: Duration = Duration::from_secs(15);

/// It has caught up when pictures take less than this.
const LAG_GOOD: Duration = Duration::from_millis(250);

/// Pictures, and bytes of them, that a child may have and not have answered.
const OUTSTANDING_MAX: usize = 2048;
const OUTSTANDING_BYTES_MAX: usize = 48 << 20;

/// A running child.
#[derive(Debug)]
pub(super) struct Run {
    /// What it was started for.
    pub(super) source: Source,
    pub(super) rungs: Vec<RungState>,
    pub(super) times: Times,
    pub(super) started: Instant,
    /// When it last yielded a picture, or had nothing to work on.
    pub(super) alive: Instant,
    pub(super) feeding: Feeding,
    pub(super) caught_up: bool,
    pub(super) yielded: bool,
    /// Its rungs don't fit the source any more: another child takes over at the next keyframe.
    pub(super) outgrown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feeding {
    /// Everything.
    On,
    /// From the next keyframe on.
    FromKeyframe,
    /// From a keyframe on, once it has caught up.
    CaughtUp,
}

#[derive(Debug)]
pub(super) struct RungState {
    pub(super) rung: Rung,
    /// How it is coded, once the child said so.
    pub(super) configuration: Option<h264::Configuration>,
    /// The stream was told that.
    pub(super) announced: bool,
    pub(super) awaiting_keyframe: bool,
    /// What came out last, in the child's time.
    pub(super) last_millis: Option<i64>,
}

impl RungState {
    /// What follows is not what came before: it goes on at a keyframe, of which the stream is told once.
    pub(super) fn interrupt(&mut self) -> Option<Output> {
        let began = !std::mem::replace(&mut self.awaiting_keyframe, true);
        began.then(|| Output::Lost {
            rendition: Arc::clone(&self.rung.name),
        })
    }
}

impl Run {
    /// A child that has no more than it may hold back has no reason to yield anything.
    pub(super) fn see_idle(&mut self, now: Instant) {
        if self.times.outstanding() <= HELD_BACK_MAX {
            self.alive = now;
        }
    }

    fn behind(&self, now: Instant) -> Duration {
        let oldest = self.times.oldest();
        oldest.map_or(Duration::ZERO, |fed| now.saturating_duration_since(fed.at))
    }

    /// Forgets what all rungs have, and sees whether the child has caught up.
    pub(super) fn settle(&mut self, now: Instant) {
        let slowest = self.rungs.iter().map(|state| state.last_millis).min();
        if let Some(Some(millis)) = slowest {
            self.times.forget(millis);
        }
        if self.behind(now) < LAG_GOOD || self.times.outstanding() <= HELD_BACK_MAX {
            self.caught_up = true;
            if self.feeding == Feeding::CaughtUp {
                self.feeding = Feeding::FromKeyframe;
            }
        }
    }

    /// It had caught up, but now what it yields is not worth sending.
    pub(super) fn late(&self, now: Instant) -> bool {
        self.caught_up && self.times.outstanding() > HELD_BACK_MAX && self.behind(now) > LATE_MAX
    }

    pub(super) fn lags(&self, now: Instant) -> bool {
        let outstanding = self.times.outstanding();
        if outstanding <= HELD_BACK_MAX {
            return false;
        }
        let allowed = if self.caught_up { LAG_MAX } else { START_MAX };
        self.behind(now) > allowed
            || outstanding >= OUTSTANDING_MAX
            || self.times.outstanding_bytes() >= OUTSTANDING_BYTES_MAX
    }

    pub(super) fn pause(&mut self, feeding: Feeding) {
        if self.feeding != Feeding::CaughtUp {
            self.feeding = feeding;
        }
    }
}
