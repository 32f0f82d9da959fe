//! Whether a rendition that comes by a connection of its own fits the source: its keyframes must be at the source's times.
//!
//! The outputs of one encoder count on one clock, but for a constant: ffmpeg moves an output by the priming of its sound. So the clock is
//! taken to be the source's, that constant is found where a keyframe of both is nearly at one time, and from then on each keyframe of the
//! source must have one in the rendition, which may have more. Which of the two arrives first doesn't matter.

use std::collections::VecDeque;

use crate::time::MediaTime;

/// How far a rendition's clock may be from the source's. The priming of AAC is 21 to 85 ms; a GOP is longer.
const SHIFT_MAX: MediaTime = MediaTime::from_millis(100);

/// Keyframes are at one time if they are no further apart than this: both clocks are rounded to a millisecond.
const TOLERANCE: MediaTime = MediaTime::from_millis(4);

/// How far from the source's present a picture may arrive. Beyond it the timestamps have nothing to do with the source's.
const LAG_MAX: MediaTime = MediaTime::from_millis(1500);

/// An aligned rendition further off than this has a clock that jumped.
const LOST_MAX: MediaTime = MediaTime::from_millis(5000);

/// Keyframes that are remembered of each side (count). Lower rungs may have four for one of the source.
const REMEMBERED: usize = 16;

/// So many keyframes of both sides without one at the same time, and the rendition is refused (count).
const UNMATCHED_MAX: u32 = 3;

/// As many of the source alone, when the rendition has hardly any.
const SOURCE_UNMATCHED_MAX: u32 = 8;

/// So many keyframes of the source in a row that an aligned rendition lacks, and it is refused (count). One may be lost on the way.
const MISSED_MAX: u32 = 2;

/// What becomes of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is not known yet where it belongs.
    Searching,
    /// Add this to its times.
    Place(MediaTime),
    /// The rendition does not fit the source.
    Refused,
}

/// A picture's times on the publisher's own clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) dts: MediaTime,
    pub(super) pts: MediaTime,
    pub(super) keyframe: bool,
}

/// What is known of the source at this moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source {
    /// Timeline minus its clock.
    pub(super) offset: MediaTime,
    /// Where the timeline is by the time of arrival.
    pub(super) present: MediaTime,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Aligner {
    /// Keyframes of the source; once aligned, those that have no counterpart yet.
    source: VecDeque<MediaTime>,
    /// Keyframes of the rendition, on the timeline.
    own: VecDeque<MediaTime>,
    /// It has sent something: keyframes of the source count from then on.
    begun: bool,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Searching { source: u32, own: u32 },
    Aligned { offset: MediaTime, missed: u32 },
    Refused,
}

impl Aligner {
    pub(super) const fn new() -> Self {
        Self {
            source: VecDeque::new(),
            own: VecDeque::new(),
            begun: false,
            state: State::Searching { source: 0, own: 0 },
        }
    }

    /// Another publisher of the source begins, or its clock jumped.
    pub(super) fn reset(&mut self) {
        if !matches!(self.state, State::Refused) {
            *self = Self::new();
        }
    }

    /// Units of the rendition were lost here: keyframes that are missing say nothing about it.
    pub(super) fn forgive(&mut self) {
        self.source.clear();
    }

    pub(super) const fn aligned(&self) -> bool {
        matches!(self.state, State::Aligned { .. })
    }

    /// The source has a keyframe that is shown at `pts`.
    pub(super) fn handle_source_keyframe(&mut self, pts: MediaTime) {
        remember(&mut self.source, pts);
        if let State::Searching { source, .. } = &mut self.state
            && self.begun
        {
            *source = source.saturating_add(1);
        }
    }

    /// The rendition has a picture.
    pub(super) fn handle_picture(&mut self, times: Times, source: Source) -> Verdict {
        self.begun = true;
        if let State::Aligned { offset, .. } = self.state
            && distance(times.dts + offset, source.present) > LOST_MAX
        {
            self.reset();
        }
        if let State::Searching { .. } = self.state {
            self.search(times, source);
        }
        match self.state {
            State::Searching { .. } => Verdict::Searching,
            State::Aligned { offset, .. } => self.check(times, offset),
            State::Refused => Verdict::Refused,
        }
    }

    fn search(&mut self, times: Times, source: Source) {
        let State::Searching {
            source: sources,
            own,
        } = &mut self.state
        else {
            return;
        };
        let mapped = times.pts + source.offset;
        if times.keyframe {
            *own = own.saturating_add(1);
            if distance(mapped, source.present) <= LAG_MAX {
                remember(&mut self.own, mapped);
            }
        }
        let pairs = self
            .own
            .iter()
            .flat_map(|own| self.source.iter().map(move |source| *source - *own));
        let shift = pairs.min_by_key(|shift| distance(*shift, MediaTime::ZERO));
        if let Some(shift) = shift.filter(|shift| distance(*shift, MediaTime::ZERO) <= SHIFT_MAX) {
            self.state = State::Aligned {
                offset: source.offset + shift,
                missed: 0,
            };
            for own in &mut self.own {
                *own = *own + shift;
            }
            // What came before has no say.
            let now = times.dts + source.offset + shift;
            self.source.retain(|source| *source > now);
        } else if (*sources >= UNMATCHED_MAX && *own >= UNMATCHED_MAX)
            || *sources >= SOURCE_UNMATCHED_MAX
        {
            self.state = State::Refused;
        }
    }

    fn check(&mut self, times: Times, offset: MediaTime) -> Verdict {
        if times.keyframe {
            remember(&mut self.own, times.pts + offset);
        }
        let State::Aligned { missed, .. } = &mut self.state else {
            return Verdict::Refused;
        };
        let (own, passed) = (&self.own, times.dts + offset);
        self.source.retain(|source| {
            let found = own.iter().any(|own| distance(*own, *source) <= TOLERANCE);
            let lacking = !found && passed > *source + TOLERANCE;
            if found {
                *missed = 0;
            } else if lacking {
                *missed = missed.saturating_add(1);
            }
            !found && !lacking
        });
        if *missed >= MISSED_MAX {
            self.state = State::Refused;
            return Verdict::Refused;
        }
        Verdict::Place(offset)
    }
}

fn remember(times: &mut VecDeque<MediaTime>, time: MediaTime) {
    if times.len() >= REMEMBERED {
        times.pop_front();
    }
    times.push_back(time);
}

fn distance(a: MediaTime, b: MediaTime) -> MediaTime {
    if a > b { a - b } else { b - a }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source of 25 pictures per second with a keyframe every second, whose clock began at 7000 ms when the timeline was at 0, and a
    /// rendition.
    struct Bench {
        aligner: Aligner,
        /// Milliseconds on the timeline.
        now: i64,
        /// The rendition arrives before the source.
        first: bool,
        /// The rendition's clock minus the source's.
        ahead: i64,
        /// Between keyframes of the rendition, and the time of one (ms).
        interval: i64,
        phase: i64,
    }

    impl Bench {
        fn new(ahead: i64, interval: i64, phase: i64) -> Self {
            Self {
                aligner: Aligner::new(),
                now: 0,
                first: false,
                ahead,
                interval,
                phase,
            }
        }

        fn rendition(&mut self) -> Verdict {
            let time = MediaTime::from_millis(self.now + 7000 + self.ahead);
            let times = Times {
                dts: time,
                pts: time,
                keyframe: (self.now - self.phase).rem_euclid(self.interval) == 0,
            };
            let source = Source {
                offset: MediaTime::from_millis(-7000),
                present: MediaTime::from_millis(self.now),
            };
            self.aligner.handle_picture(times, source)
        }

        /// Runs this long and returns the last verdict.
        fn run(&mut self, millis: i64) -> Verdict {
            let mut verdict = Verdict::Searching;
            let end = self.now + millis;
            while self.now < end {
                if self.first {
                    verdict = self.rendition();
                }
                if self.now % 1000 == 0 {
                    let pts = MediaTime::from_millis(self.now);
                    self.aligner.handle_source_keyframe(pts);
                }
                if !self.first {
                    verdict = self.rendition();
                }
                self.now += 40;
            }
            verdict
        }
    }

    fn place(millis: i64) -> Verdict {
        Verdict::Place(MediaTime::from_millis(millis))
    }

    #[test]
    fn outputs_of_one_encoder_are_aligned_whichever_comes_first() {
        for first in [false, true] {
            for ahead in [0, 23, -85] {
                for interval in [1000, 200] {
                    let mut bench = Bench::new(ahead, interval, 0);
                    bench.first = first;
                    assert_eq!(bench.run(1200), place(-7000 - ahead), "{ahead}");
                    assert_eq!(bench.run(60_000), place(-7000 - ahead), "{ahead}");
                }
            }
        }
    }

    #[test]
    fn one_that_begins_late_has_its_time() {
        let mut bench = Bench::new(0, 1000, 0);
        for second in 0..60 {
            let pts = MediaTime::from_millis(second * 1000);
            bench.aligner.handle_source_keyframe(pts);
        }
        bench.now = 60_200;
        assert_eq!(bench.run(2000), place(-7000));
    }

    #[test]
    fn keyframes_elsewhere_are_refused() {
        for (interval, phase) in [(1000, 480), (1240, 520), (100_000, 40)] {
            let mut bench = Bench::new(0, interval, phase);
            assert_eq!(bench.run(60_000), Verdict::Refused, "{interval} {phase}");
        }
        // A longer interval lacks every other keyframe of the source.
        assert_eq!(Bench::new(0, 3000, 0).run(10_000), Verdict::Refused);
    }

    #[test]
    fn another_clock_is_refused_though_its_keyframes_fall_together() {
        assert_eq!(Bench::new(-4000, 1000, 0).run(10_000), Verdict::Refused);
        assert_eq!(Bench::new(90_000, 1000, 0).run(10_000), Verdict::Refused);
    }

    #[test]
    fn an_aligned_rendition_that_goes_astray_is_refused_but_not_for_one_keyframe() {
        let mut bench = Bench::new(0, 1000, 0);
        bench.run(5000);
        bench.phase = 480;
        assert_eq!(bench.run(1000), place(-7000));
        bench.phase = 0;
        assert_eq!(bench.run(5000), place(-7000));
        bench.phase = 480;
        assert_eq!(bench.run(3000), Verdict::Refused);
    }

    #[test]
    fn a_loss_here_is_forgiven_and_a_jump_is_searched_anew() {
        let mut bench = Bench::new(0, 1000, 0);
        bench.run(5000);
        for _ in 0..5 {
            // Its keyframe is among those that are lost.
            bench.now += 1080;
            bench
                .aligner
                .handle_source_keyframe(MediaTime::from_millis(bench.now - 80));
            bench.aligner.forgive();
            assert_eq!(bench.run(920), place(-7000));
        }
        bench.ahead = 50_000;
        assert_eq!(bench.run(80), Verdict::Searching);
        bench.ahead = 20;
        assert_eq!(bench.run(3000), place(-7020));
        bench.aligner.reset();
        assert!(!bench.aligner.aligned());
        assert_eq!(bench.run(2000), place(-7020));
    }
}
