//! The way up: when to probe, with how much, and what the answer means.

use std::time::{Duration, Instant};

use crate::bwe::{Cluster, Probed};
use crate::id::Bitrate;

/// What a probe sends faster than the rendition and the sound need together (per cent).
const MARGIN_PERCENT: u64 = 8;
/// The first stage (bytes): a dozen packets are 40 ms of the next rung on a link that doesn't carry it.
const FIRST_BYTES: u64 = 12 * 1200;
/// The second: so much time, at least so many bytes.
const SECOND: Duration = Duration::from_millis(400);
const SECOND_BYTES_MIN: u64 = 24 * 1200;
/// An answer that takes longer does not come.
const ANSWERED_WITHIN: Duration = Duration::from_millis(1500);
/// What must come through, of what the rung needs (per cent).
const CARRIED_PERCENT: u64 = 100;
/// A queue that a probe left behind which is no longer than this is no reason against it.
const QUEUE_MAX: Duration = Duration::from_millis(100);

/// Until the next probe after one that failed: at first, then doubled.
const PAUSE: Duration = Duration::from_millis(1500);
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// Send so many bytes at this rate, all of them marked as of this cluster ([`crate::bwe::History::set_cluster`]): the media that is due
/// anyway, and padding where that isn't enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeRequest {
    /// Its mark.
    pub cluster: Cluster,
    /// Everything together, bits per second.
    pub rate: Bitrate,
    /// Everything together.
    pub bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ascent {
    cluster: Cluster,
    open: Option<Open>,
    pause: Duration,
    not_before: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    cluster: Cluster,
    /// The rung it is for, and what that needs.
    rung: usize,
    need: u64,
    second: bool,
    deadline: Instant,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Probe(ProbeRequest),
    /// The link carries this rung.
    Climb(usize),
}

impl Default for Ascent {
    fn default() -> Self {
        Self {
            cluster: Cluster::FIRST,
            open: None,
            pause: PAUSE,
            not_before: None,
        }
    }
}

impl Ascent {
    /// No probe before then.
    pub(super) fn wait_until(&mut self, at: Instant) {
        self.not_before = Some(self.not_before.map_or(at, |before| before.max(at)));
    }

    /// The viewer's situation has changed: what was under way means nothing any more.
    pub(super) const fn cancel(&mut self) {
        self.open = None;
    }

    /// The viewer is one rung higher.
    pub(super) const fn handle_climbed(&mut self) {
        self.open = None;
        self.pause = PAUSE;
    }

    /// The rung that is probed for.
    pub(super) fn rung(&self) -> Option<usize> {
        self.open.map(|open| open.rung)
    }

    /// When the next probe may leave, or the one under way is given up.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.open.map(|open| open.deadline).or(self.not_before)
    }

    pub(super) fn is_idle(&self, now: Instant) -> bool {
        self.open.is_none() && self.not_before.is_none_or(|at| now >= at)
    }

    /// An answer didn't come: the probe or its feedback was lost.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.not_before.is_some_and(|at| now >= at) {
            self.not_before = None;
        }
        if self.open.is_some_and(|open| now >= open.deadline) {
            self.open = None;
            self.fail(now);
        }
    }

    /// Begins to probe for a rung.
    pub(super) fn begin(&mut self, now: Instant, rung: usize, need: u64) -> Step {
        self.not_before = None;
        self.probe(now, rung, need, false)
    }

    /// A probe ended.
    pub(super) fn handle_probed(&mut self, now: Instant, probed: &Probed) -> Step {
        let Some(open) = self.open.filter(|open| open.cluster == probed.cluster) else {
            return Step::Nothing;
        };
        self.open = None;
        let carried = probed.carried.0 >= open.need / 100 * CARRIED_PERCENT;
        if !probed.whole || !carried || probed.queue > QUEUE_MAX {
            self.fail(now);
            return Step::Nothing;
        }
        if open.second {
            return Step::Climb(open.rung);
        }
        self.probe(now, open.rung, open.need, true)
    }

    fn fail(&mut self, now: Instant) {
        self.wait_until(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn probe(&mut self, now: Instant, rung: usize, need: u64, second: bool) -> Step {
        let rate = need.saturating_add(need / 100 * MARGIN_PERCENT);
        let bytes = if second {
            let millis = u64::try_from(SECOND.as_millis()).unwrap_or(0);
            (rate.saturating_mul(millis) / 8000).max(SECOND_BYTES_MIN)
        } else {
            FIRST_BYTES
        };
        self.cluster = self.cluster.next();
        let takes = Duration::from_micros(bytes.saturating_mul(8_000_000) / rate.max(1));
        self.open = Some(Open {
            cluster: self.cluster,
            rung,
            need,
            second,
            deadline: now + takes + ANSWERED_WITHIN,
        });
        Step::Probe(ProbeRequest {
            cluster: self.cluster,
            rate: Bitrate(rate),
            bytes,
        })
    }
}
