//! The decisions.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::ascent::{Ascent, ProbeRequest, Step};
use super::ladder::{Ladder, RUNGS_MAX, Rendition};
use crate::bwe::{Estimate, Probed};
use crate::id::{Bitrate, TrackId};

/// Below this part of what a rendition needs (per cent), it doesn't fit. The estimate stays a bit below what the link carries.
const FITS_PERCENT: u64 = 85;
/// Below this, a lower rendition than the best that fits is welcome if its keyframe comes first.
const URGENT_PERCENT: u64 = 70;
/// What is gone down to may need so much of the estimate (per cent).
const DOWN_PERCENT: u64 = 105;
/// An estimate without a queue must stay low for so long to be believed.
const LOW_FOR: Duration = Duration::from_millis(900);
/// With a queue longer than this in the network, at once.
const QUEUE_GROWN: Duration = Duration::from_millis(60);
/// Pictures that wait for so long, while the estimate is near what they need, say that it doesn't fit; that long, in any case.
const WAIT_MAX: Duration = Duration::from_millis(350);
const WAIT_HOPELESS: Duration = Duration::from_millis(700);
/// An estimate below this part of what is needed (per cent) is near it.
const NEAR_PERCENT: u64 = 110;

/// The lowest rendition is left for sound alone when the estimate is below this part of what it needs (per cent), for so long.
const LAST_RESORT_PERCENT: u64 = 75;
const LAST_RESORT_AFTER: Duration = Duration::from_millis(1500);

/// No probe as long as a queue longer than this stands, or pictures wait longer.
const CALM_QUEUE: Duration = Duration::from_millis(25);
const CALM_WAIT: Duration = Duration::from_millis(150);
/// It must have been calm for so long: where links are shared, others' keyframes make a queue every second or two, and a moment between them
/// shows no room.
const CALM_FOR: Duration = Duration::from_millis(1000);
/// And so long after a switch down, or up.
const REST_AFTER_DOWN: Duration = Duration::from_secs(2);
const REST_AFTER_UP: Duration = Duration::from_millis(1000);
/// A viewer that can't be probed goes up after so much calm.
const UNPROBED_CALM: Duration = Duration::from_secs(8);
/// A rendition above that is reckoned to fit at once (per cent of what it needs) is probed for directly.
const LEAP_PERCENT: u64 = 110;

/// A rendition that must be left within this time was one too many; after the longer time it has held.
const TRIAL: Duration = Duration::from_secs(8);
const HELD: Duration = Duration::from_secs(20);
/// A keyframe that is later than its interval and this doesn't come.
const KEYFRAME_LATE: Duration = Duration::from_secs(2);

/// Loss that a viewer without transport-wide feedback reports twice in a row for a rendition not to fit (of 1000 packets).
const REPORTED_LOSS_MAX: u32 = 100;

/// The link of a viewer of whom nothing is known (bits per second).
const ASSUMED: Bitrate = Bitrate(4_000_000);
/// Of what is assumed, a rendition to start with may need so much (per cent).
const START_PERCENT: u64 = 80;

/// What a viewer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// What its link is thought to carry: its own hint, or what its neighbours' did.
    pub assumed: Option<Bitrate>,
    /// Its feedback tells how a probe came through; else going up is a trial.
    pub probes: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            assumed: None,
            probes: true,
        }
    }
}

/// What a viewer gets to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Pictures of this track, from its next keyframe on.
    Video(TrackId),
    /// None, for now.
    AudioOnly,
}

/// Which rendition to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The one that is wanted.
    pub target: Choice,
    /// Those that will do until then, if their keyframe comes first.
    pub also: SmallVec<[TrackId; RUNGS_MAX]>,
    /// Until a switch, pictures that no others refer to are not worth sending.
    pub shed: bool,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this from now on: it replaces the selection before.
    Select(Selection),
    /// Probe the link.
    Probe(ProbeRequest),
}

/// The rendition gone up to last, or begun with, and when.
#[derive(Debug, Clone, Copy)]
struct Trial {
    track: TrackId,
    since: Instant,
    climbed: bool,
}

/// See [`crate::abr`]. After each call of a `handle_*`, drain [`Abr::poll_output`], then arm [`Abr::poll_timeout`].
#[derive(Debug)]
pub struct Abr {
    config: Config,
    ladder: Ladder,
    pin: Option<TrackId>,
    current: Option<Choice>,
    target: Option<Choice>,
    selected: Option<Selection>,
    estimate: Option<Estimate>,
    queue: Duration,
    wait: Duration,
    reported_losses: u32,
    /// Since when the estimate is too low, too low even for the lowest, and all is calm.
    low_since: Option<Instant>,
    desperate_since: Option<Instant>,
    calm_since: Option<Instant>,
    ascent: Ascent,
    /// When the way up was chosen, until it is reached.
    climbing_since: Option<Instant>,
    trial: Option<Trial>,
    failed_climbs: u64,
    outputs: VecDeque<Output>,
}

impl Abr {
    /// Nothing is chosen before the first ladder.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            ladder: Ladder::default(),
            pin: None,
            current: None,
            target: None,
            selected: None,
            estimate: None,
            queue: Duration::ZERO,
            wait: Duration::ZERO,
            reported_losses: 0,
            low_since: None,
            desperate_since: None,
            calm_since: None,
            ascent: Ascent::default(),
            climbing_since: None,
            trial: None,
            failed_climbs: 0,
            outputs: VecDeque::new(),
        }
    }

    /// These are the renditions now, and what sound takes.
    pub fn handle_ladder(&mut self, now: Instant, renditions: &[Rendition], audio: Bitrate) {
        let probed_for = self.ascent.rung().and_then(|rung| self.ladder.track(rung));
        self.ladder.set(renditions, audio);
        let still = probed_for.and_then(|track| self.ladder.position(track));
        if still != self.ascent.rung() {
            self.ascent.cancel();
        }
        let gone = |choice: Option<Choice>| match choice {
            Some(Choice::Video(track)) => self.ladder.position(track).is_none(),
            Some(Choice::AudioOnly) | None => false,
        };
        let (target_gone, current_gone) = (gone(self.target), gone(self.current));
        if current_gone || target_gone {
            // The shell has nothing of it any more, so it is told again even if the same comes back.
            self.selected = None;
        }
        if current_gone {
            self.current = None;
        }
        if target_gone || self.target.is_none() {
            self.target = None;
            self.begin();
        }
        self.decide(now);
    }

    /// What the link carries, and how long its queue is.
    pub fn handle_estimate(&mut self, now: Instant, estimate: Estimate, queue: Duration) {
        self.estimate = Some(estimate);
        self.queue = queue;
        self.decide(now);
    }

    /// How long the oldest picture that hasn't left is waiting; zero when none is, or while the viewer runs up to the live edge.
    pub fn handle_wait(&mut self, now: Instant, wait: Duration) {
        self.wait = wait;
        self.decide(now);
    }

    /// What a viewer without transport-wide feedback reports (of 1000 packets).
    pub fn handle_loss(&mut self, now: Instant, permille: u32) {
        self.reported_losses = if permille > REPORTED_LOSS_MAX {
            self.reported_losses.saturating_add(1)
        } else {
            0
        };
        self.decide(now);
    }

    /// A probe ended.
    pub fn handle_probed(&mut self, now: Instant, probed: &Probed) {
        let step = self.ascent.handle_probed(now, probed);
        self.step(now, step);
        self.decide(now);
    }

    /// The viewer is now sent this rendition: the first packet of its keyframe has left.
    pub fn handle_switched(&mut self, now: Instant, track: TrackId) {
        let before = self.rung(self.current);
        let starts = self.current.is_none();
        let to = self.ladder.position(track);
        self.current = Some(Choice::Video(track));
        if before != to {
            self.low_since = None;
            self.desperate_since = None;
            self.reported_losses = 0;
            // From a bridge up to what was gone down to is no climb.
            let climbed = self.climbing_since.is_some();
            if to > before && (starts || climbed) {
                self.trial = Some(Trial {
                    track,
                    since: now,
                    climbed,
                });
                self.ascent.handle_climbed();
                self.ascent.wait_until(now + REST_AFTER_UP);
            } else {
                self.ascent.cancel();
                self.ascent.wait_until(now + REST_AFTER_DOWN);
            }
        }
        if self.target == self.current {
            self.climbing_since = None;
        }
        self.decide(now);
    }

    /// The viewer wants this rendition, or whatever fits.
    pub fn handle_pin(&mut self, now: Instant, pin: Option<TrackId>) {
        self.pin = pin;
        self.climbing_since = None;
        self.ascent.cancel();
        self.decide(now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.ascent.handle_timeout(now);
        self.decide(now);
    }

    /// When to call [`Self::handle_timeout`], at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ascent.poll_timeout()
    }

    /// What to do; `None`: nothing more.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What the viewer is sent.
    pub const fn current(&self) -> Option<Choice> {
        self.current
    }

    /// What it shall be sent.
    pub const fn target(&self) -> Option<Choice> {
        self.target
    }

    /// Times a rendition had to be left soon after going up to it.
    pub const fn failed_climbs(&self) -> u64 {
        self.failed_climbs
    }

    /// What another viewer of this link may be assumed to have ([`Config::assumed`]): the estimate, and where what this one is sent fits, enough
    /// to begin with the same.
    pub fn carried(&self) -> Option<Bitrate> {
        let estimate = self.estimate?.rate.0;
        let need = self.rung(self.current).map_or(0, |at| self.ladder.need(at));
        if estimate < need / 100 * FITS_PERCENT {
            return Some(Bitrate(estimate));
        }
        Some(Bitrate(estimate.max((need / START_PERCENT + 1) * 100)))
    }

    /// The renditions that must flow for this viewer: what it has and shall have, those that will do until then, the one below, and the one
    /// that is probed for.
    pub fn wanted(&self) -> SmallVec<[TrackId; 4]> {
        let current = self.rung(self.current);
        let target = self.rung(self.target);
        let below = current
            .and_then(|at| at.checked_sub(1))
            .filter(|_| self.pinned().is_none());
        let mut wanted = SmallVec::new();
        for at in [current, target, below, self.ascent.rung()]
            .into_iter()
            .flatten()
        {
            if let Some(track) = self.ladder.track(at)
                && !wanted.contains(&track)
            {
                wanted.push(track);
            }
        }
        let also = self.selected.iter().flat_map(|selected| &selected.also);
        for track in also {
            if !wanted.contains(track) {
                wanted.push(*track);
            }
        }
        wanted
    }

    /// What to start with.
    fn begin(&mut self) {
        let known = self.estimate.map(|estimate| estimate.rate);
        let assumed = known.or(self.config.assumed).unwrap_or(ASSUMED);
        let at = self.ladder.fitting(assumed.0 / 100 * START_PERCENT);
        self.target = self.ladder.track(at.unwrap_or(0)).map(Choice::Video);
    }

    fn decide(&mut self, now: Instant) {
        if let Some(pinned) = self.pinned() {
            self.target = Some(Choice::Video(pinned));
        } else if self.current.is_some() {
            self.note(now);
            self.descend(now);
            self.ascend(now);
        }
        self.select();
    }

    fn pinned(&self) -> Option<TrackId> {
        self.pin
            .filter(|track| self.ladder.position(*track).is_some())
    }

    /// Keeps account of since when things are as they are.
    fn note(&mut self, now: Instant) {
        let set = |since: &mut Option<Instant>, holds: bool| {
            if !holds {
                *since = None;
            } else if since.is_none() {
                *since = Some(now);
            }
        };
        let rate = self.estimate.map(|estimate| estimate.rate.0);
        let overused = self.estimate.is_some_and(|estimate| estimate.overused);
        let need = self.rung(self.current).map(|at| self.ladder.need(at));
        let below = |percent: u64| {
            let pair = rate.zip(need);
            pair.is_some_and(|(rate, need)| rate < need / 100 * percent)
        };
        set(&mut self.low_since, below(FITS_PERCENT));
        let lowest = self.rung(self.current) == Some(0);
        let desperate = below(LAST_RESORT_PERCENT) || self.wait > WAIT_HOPELESS;
        set(&mut self.desperate_since, lowest && desperate);
        let calm = !overused
            && self.queue <= CALM_QUEUE
            && self.wait <= CALM_WAIT
            && self.reported_losses == 0;
        set(&mut self.calm_since, calm);
        if let Some(trial) = self.trial
            && now.saturating_duration_since(trial.since) > HELD
        {
            self.trial = None;
            if let Some(at) = self.ladder.position(trial.track) {
                self.ladder.handle_success(at);
            }
        }
    }

    /// Goes down if what the viewer has doesn't fit.
    fn descend(&mut self, now: Instant) {
        let Some(at) = self.rung(self.current) else {
            return;
        };
        let rate = self.estimate.map(|estimate| estimate.rate.0);
        let overused = self.estimate.is_some_and(|estimate| estimate.overused);
        let need = self.ladder.need(at);
        let queues = overused && self.queue > QUEUE_GROWN || self.wait > CALM_WAIT;
        let low = lasts(now, self.low_since, LOW_FOR) || (self.low_since.is_some() && queues);
        let near = rate.is_none_or(|rate| rate < need / 100 * NEAR_PERCENT);
        let waits = (self.wait > WAIT_MAX && near) || self.wait > WAIT_HOPELESS;
        if !low && !waits && self.reported_losses < 2 {
            return;
        }
        if at == 0 {
            if self.target != Some(Choice::AudioOnly) && self.target != self.current {
                self.target = self.current;
                self.climbing_since = None;
            }
            if lasts(now, self.desperate_since, LAST_RESORT_AFTER) {
                self.target = Some(Choice::AudioOnly);
                self.current = Some(Choice::AudioOnly);
                self.desperate_since = None;
                self.fail_trial(now);
                self.ascent.cancel();
                self.ascent.wait_until(now + REST_AFTER_DOWN);
            }
            return;
        }
        // What is chosen already stays, unless that doesn't fit either.
        let fits = rate.map_or(at - 1, |rate| {
            self.ladder.fitting(rate / 100 * DOWN_PERCENT).unwrap_or(0)
        });
        let to = fits.min(at - 1);
        let chosen = self.rung(self.target).filter(|chosen| *chosen < at);
        if chosen.is_none_or(|chosen| to < chosen) {
            self.target = self.ladder.track(to).map(Choice::Video);
            self.climbing_since = None;
            self.fail_trial(now);
            self.ascent.cancel();
            self.ascent.wait_until(now + REST_AFTER_DOWN);
        }
    }

    fn fail_trial(&mut self, now: Instant) {
        if let Some(trial) = self.trial.take()
            && now.saturating_duration_since(trial.since) < TRIAL
            && let Some(at) = self.ladder.position(trial.track)
        {
            self.failed_climbs += u64::from(trial.climbed);
            self.ladder.handle_failure(now, at);
        }
    }

    /// Looks for a way up.
    fn ascend(&mut self, now: Instant) {
        if let Some(since) = self.climbing_since {
            let interval = self
                .rung(self.target)
                .and_then(|at| self.ladder.get(at))
                .map_or(Duration::ZERO, |rung| rung.rendition.keyframe_interval);
            let late = now.saturating_duration_since(since) > interval + KEYFRAME_LATE;
            let calm = self.estimate.is_none_or(|estimate| !estimate.overused);
            if (late || !calm) && self.current != Some(Choice::AudioOnly) {
                self.climbing_since = None;
                self.target = self.current;
                self.ascent.wait_until(now + REST_AFTER_DOWN);
            }
            return;
        }
        if self.target != self.current || !self.ascent.is_idle(now) {
            return;
        }
        let at = self.rung(self.current);
        let next = at.map_or(0, |at| at + 1);
        if next >= self.ladder.len() {
            return;
        }
        let calm_for = if self.config.probes {
            CALM_FOR
        } else {
            UNPROBED_CALM
        };
        if !lasts(now, self.calm_since, calm_for) {
            return;
        }
        let rate = self.estimate.map_or(0, |estimate| estimate.rate.0);
        let known = self.ladder.fitting(rate / LEAP_PERCENT * 100);
        let rung = (next..=known.unwrap_or(next).max(next)).rev().find(|rung| {
            self.ladder
                .blocked_until(at, *rung)
                .is_none_or(|until| now >= until)
        });
        let Some(rung) = rung else {
            return;
        };
        let step = if self.config.probes {
            self.ascent.begin(now, rung, self.ladder.need(rung))
        } else {
            self.calm_since = None;
            Step::Climb(next)
        };
        self.step(now, step);
    }

    fn step(&mut self, now: Instant, step: Step) {
        match step {
            Step::Nothing => {}
            Step::Probe(request) => self.outputs.push_back(Output::Probe(request)),
            Step::Climb(rung) => {
                self.target = self.ladder.track(rung).map(Choice::Video);
                self.climbing_since = Some(now);
            }
        }
    }

    /// Tells the shell, if it is news.
    fn select(&mut self) {
        let Some(target) = self.target else {
            return;
        };
        let (to, at) = (self.rung(self.target), self.rung(self.current));
        let down = self.pinned().is_none() && to.is_some() && to < at;
        let mut also = SmallVec::new();
        if let (true, Some(to), Some(at), Some(estimate)) = (down, to, at, self.estimate)
            && estimate.rate.0 < self.ladder.need(at) / 100 * URGENT_PERCENT
        {
            also = (0..to)
                .rev()
                .filter_map(|rung| self.ladder.track(rung))
                .collect();
        }
        let selection = Selection {
            target,
            also,
            shed: down,
        };
        if self.selected.as_ref() != Some(&selection) {
            self.selected = Some(selection.clone());
            self.outputs.push_back(Output::Select(selection));
        }
    }

    fn rung(&self, choice: Option<Choice>) -> Option<usize> {
        match choice? {
            Choice::Video(track) => self.ladder.position(track),
            Choice::AudioOnly => None,
        }
    }
}

fn lasts(now: Instant, since: Option<Instant>, time: Duration) -> bool {
    since.is_some_and(|since| now.saturating_duration_since(since) >= time)
}
