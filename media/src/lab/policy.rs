//! Who chooses renditions in the lab: ours, and two that others use.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::broadcast::{SOUND_RATE, renditions};
use crate::abr::{self, Abr, Choice, ProbeRequest, Selection};
use crate::bwe::{Estimate, Probed};
use crate::id::TrackId;

/// Between two switches of [`Policy::NextKeyframe`].
const COOLDOWN: Duration = Duration::from_secs(2);

/// A way to choose renditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// [`crate::abr`].
    Headwater,
    /// The highest rendition below the estimate, whenever that changes.
    Throughput,
    /// One step up or down by the estimate, at the next keyframe, and then none for 2 s: as OvenMediaEngine does.
    NextKeyframe,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Headwater, Self::Throughput, Self::NextKeyframe];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Headwater => "headwater",
            Self::Throughput => "throughput",
            Self::NextKeyframe => "next-keyframe",
        }
    }
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    Select(Selection),
    Probe(ProbeRequest),
}

/// One viewer's.
#[derive(Debug)]
pub(super) enum Chooser {
    Headwater(Box<Abr>),
    Plain(Plain),
}

/// One that goes by the estimate alone.
#[derive(Debug)]
pub(super) struct Plain {
    policy: Policy,
    current: usize,
    estimate: Option<Estimate>,
    switched: Option<Instant>,
    selected: Option<usize>,
}

impl Chooser {
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        match policy {
            Policy::Headwater => {
                let mut abr = Abr::new(abr::Config::default());
                abr.handle_ladder(now, &renditions(), SOUND_RATE);
                Self::Headwater(Box::new(abr))
            }
            Policy::Throughput | Policy::NextKeyframe => Self::Plain(Plain {
                policy,
                // Everybody starts alike.
                current: renditions().len() - 1,
                estimate: None,
                switched: None,
                selected: None,
            }),
        }
    }

    pub(super) fn handle_estimate(&mut self, now: Instant, estimate: Estimate, queue: Duration) {
        match self {
            Self::Headwater(abr) => abr.handle_estimate(now, estimate, queue),
            Self::Plain(plain) => plain.estimate = Some(estimate),
        }
    }

    pub(super) fn handle_probed(&mut self, now: Instant, probed: &Probed) {
        if let Self::Headwater(abr) = self {
            abr.handle_probed(now, probed);
        }
    }

    /// Called each step, with how long pictures wait.
    pub(super) fn handle_wait(&mut self, now: Instant, wait: Duration) {
        if let Self::Headwater(abr) = self {
            abr.handle_wait(now, wait);
            if abr.poll_timeout().is_some_and(|at| now >= at) {
                abr.handle_timeout(now);
            }
        }
    }

    pub(super) fn handle_switched(&mut self, now: Instant, track: TrackId) {
        match self {
            Self::Headwater(abr) => abr.handle_switched(now, track),
            Self::Plain(plain) => {
                plain.current = track.0.into();
                plain.switched = Some(now);
            }
        }
    }

    pub(super) fn poll_wish(&mut self, now: Instant) -> Option<Wish> {
        match self {
            Self::Headwater(abr) => abr.poll_output().map(|output| match output {
                abr::Output::Select(selection) => Wish::Select(selection),
                abr::Output::Probe(request) => Wish::Probe(request),
            }),
            Self::Plain(plain) => plain.poll(now).map(Wish::Select),
        }
    }
}

impl Plain {
    fn poll(&mut self, now: Instant) -> Option<Selection> {
        let renditions = renditions();
        let needs = |at: usize| {
            let rate = renditions.get(at)?.bitrate.0 + SOUND_RATE.0;
            Some(rate + rate / 20)
        };
        let to = match (self.policy, self.estimate) {
            (_, None) | (Policy::Headwater, _) => self.current,
            (Policy::Throughput, Some(estimate)) => (0..renditions.len())
                .rev()
                .find(|at| needs(*at).is_some_and(|need| need <= estimate.rate.0))
                .unwrap_or(0),
            (Policy::NextKeyframe, Some(estimate)) => {
                let cools = self
                    .switched
                    .is_some_and(|at| now.saturating_duration_since(at) < COOLDOWN);
                if cools {
                    self.current
                } else if needs(self.current).is_some_and(|need| need > estimate.rate.0) {
                    self.current.saturating_sub(1)
                } else if needs(self.current + 1).is_some_and(|need| need <= estimate.rate.0) {
                    self.current + 1
                } else {
                    self.current
                }
            }
        };
        if self.selected == Some(to) {
            return None;
        }
        self.selected = Some(to);
        let track = renditions.get(to)?.track;
        Some(Selection {
            target: Choice::Video(track),
            also: SmallVec::new(),
            shed: false,
        })
    }
}
