//! One stream's ladder as a pure core: when a child runs and with which rungs, what it is fed, and what its pictures become.
//!
//! A child runs while somebody would take its renditions, and for the lingering time after. It begins with the newest GOP, so that
//! renditions are there at once. What it yields gets the times of its source, and each rendition begins with a keyframe, later than all
//! that went out of it before. When it ends, its renditions go, so that viewers are moved, and it is started again: soon the first time,
//! then ever later. One that lags (no CPU) gets no more until it has caught up, and then goes on at a keyframe of the source. One whose rungs
//! no longer fit the source's bitrate is replaced at a keyframe.
//!
//! Feed it (`handle_*`), then take [`Supervisor::poll_output`] until none, then ask [`Supervisor::poll_timeout`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use headwater_media::codec::h264;
use headwater_media::flv::writer;
use headwater_media::id::Epoch;
use headwater_media::time::MediaTime;
use headwater_media::unit::{AccessUnit, IngestUnit, RenditionUnit};
use headwater_node::backoff::Backoff;

use crate::ladder::arguments::arguments;
use crate::ladder::config::Config;
use crate::ladder::gop::Gop;
use crate::ladder::output::{Dropped, Failure, Output, State, Status};
use crate::ladder::rating::Rating;
use crate::ladder::run::{Feeding, Run, RungState};
use crate::ladder::rungs::{self, Rung, rungs};
use crate::ladder::source::Source;
use crate::ladder::times::Times;

/// First and longest wait before a child is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// A child that ran for so long was well: the next wait is the first again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// How often it is tried again whether ffmpeg is installed, or another ladder has ended.
const RETRY_ELSEWHERE: Duration = Duration::from_secs(5);

/// A child that yields nothing for so long, though it was fed, is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervisor {
    config: Config,
    source: Option<Source>,
    /// Until when it is wanted; none: as long as the viewers are there.
    lingers_until: Option<Instant>,
    gop: Gop,
    rating: Rating,
    run: Option<Run>,
    generation: u64,
    backoff: Backoff,
    retry_at: Option<Instant>,
    /// How the last child failed, as long as none has yielded a picture since.
    failing: Option<Failure>,
    /// What the stream was told of, and the time of the last picture it got.
    renditions: HashMap<Arc<str>, Rendition>,
    /// The next unit of the source, in an epoch.
    next: Option<(Epoch, u64)>,
    failures: u64,
    last_error: Option<Arc<str>>,
    dropped: u64,
    outputs: VecDeque<Output>,
}

/// What the stream has of a rendition.
#[derive(Debug, Clone, Copy, Default)]
struct Rendition {
    listed: bool,
    last: Option<MediaTime>,
}

impl Supervisor {
    /// For a ladder that is wanted now.
    pub(crate) fn new(config: Config, backoff_seed: u64) -> Self {
        let (first, max) = BACKOFF;
        Self {
            config,
            source: None,
            lingers_until: None,
            gop: Gop::default(),
            rating: Rating::default(),
            run: None,
            generation: 0,
            backoff: Backoff::seeded(first, max, backoff_seed),
            retry_at: None,
            failing: None,
            renditions: HashMap::new(),
            next: None,
            failures: 0,
            last_error: None,
            dropped: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Viewers who would take renditions are there, or no longer.
    pub(crate) fn handle_demand(&mut self, now: Instant, demanded: bool) {
        if demanded {
            self.lingers_until = None;
        } else if self.lingers_until.is_none() {
            self.lingers_until = Some(now + self.config.linger());
        }
        self.advance(now);
    }

    /// What the source is now; none while nobody publishes, or no pictures.
    pub(crate) fn handle_source(&mut self, now: Instant, source: Option<Source>) {
        let coding = source.as_ref().map(Source::coding);
        self.gop.keep_only(coding);
        self.source = source;
        let outdated = match (&self.run, &self.source) {
            (Some(run), Some(source)) => !run.source.same(source),
            // What is listed stays, for the publisher to return.
            (Some(_), None) => true,
            (None, _) => false,
        };
        if outdated {
            self.stop();
        }
        if let Some(source) = &self.source {
            self.rating.handle_source(source, &self.gop);
        }
        self.judge(now);
        self.advance(now);
    }

    /// Sees whether the child still fits its source.
    fn judge(&mut self, now: Instant) {
        let Some((_, wanted)) = self.plan() else {
            return;
        };
        if let Some(run) = self.run.as_mut().filter(|run| run.caught_up) {
            let made = run.rungs.iter().map(|state| &state.rung);
            run.outgrown |= self.rating.judge(now, made, &wanted);
        }
    }

    /// The next picture of the source.
    pub(crate) fn handle_unit(&mut self, now: Instant, unit: &Arc<AccessUnit>) {
        let Some(source) = &self.source else {
            return;
        };
        if (unit.epoch, unit.configuration_id) != source.coding() {
            return;
        }
        let missing = match self.next {
            Some((epoch, next)) if epoch == unit.epoch => unit.sequence.saturating_sub(next),
            Some(_) | None => 0,
        };
        self.next = Some((unit.epoch, unit.sequence + 1));
        if missing > 0 {
            self.drop_units(Dropped::Mailbox, missing);
            self.gop.clear();
            if let Some(run) = &mut self.run {
                run.pause(Feeding::FromKeyframe);
            }
        }
        self.gop.push(unit);
        if unit.keyframe && self.run.as_ref().is_some_and(|run| run.outgrown) {
            self.stop();
        }
        self.feed(now, unit, true);
        if self.run.as_ref().is_some_and(|run| run.late(now)) {
            self.withdraw();
        }
        self.advance(now);
    }

    /// The source's newest GOP, before its next picture.
    pub(crate) fn handle_backlog(&mut self, now: Instant, units: &[Arc<AccessUnit>]) {
        let wanted = self.source.as_ref().map(Source::coding);
        for unit in units {
            if Some((unit.epoch, unit.configuration_id)) == wanted {
                self.gop.push(unit);
                self.next = Some((unit.epoch, unit.sequence + 1));
            }
        }
        self.advance(now);
    }

    /// The child says how a rung is coded.
    pub(crate) fn handle_configuration(
        &mut self,
        generation: u64,
        rung: usize,
        configuration: h264::Configuration,
    ) {
        if let Some(run) = self.run.as_mut().filter(|_| generation == self.generation)
            && let Some(state) = run.rungs.get_mut(rung)
        {
            state.configuration = Some(configuration);
            state.announced = false;
            state.awaiting_keyframe = true;
        }
    }

    /// The child yields a picture of a rung, in its own time.
    pub(crate) fn handle_picture(
        &mut self,
        now: Instant,
        generation: u64,
        rung: usize,
        picture: IngestUnit,
    ) {
        let Some(run) = self.run.as_mut().filter(|_| generation == self.generation) else {
            return;
        };
        let millis = picture.pts.as_millis();
        let fed = run.times.find(millis).copied();
        let late = run.late(now);
        let Some(state) = run.rungs.get_mut(rung) else {
            return;
        };
        state.last_millis = state.last_millis.max(Some(millis));
        run.alive = now;
        run.yielded = true;
        self.failing = None;
        let Some(fed) = fed else {
            self.outputs.extend(state.interrupt());
            self.drop_units(Dropped::Untimed, 1);
            return;
        };
        let known = self
            .renditions
            .entry(Arc::clone(&state.rung.name))
            .or_default();
        // After a restart, what went out before is made again.
        let rises = known.last.is_none_or(|last| fed.pts > last);
        let begins = picture.keyframe || !state.awaiting_keyframe;
        if !rises || late {
            self.outputs.extend(state.interrupt());
        } else if begins && let Some(configuration) = &state.configuration {
            let rendition = Arc::clone(&state.rung.name);
            if !std::mem::replace(&mut state.announced, true) || !known.listed {
                known.listed = true;
                self.outputs.push_back(Output::Configured {
                    rendition: Arc::clone(&rendition),
                    configuration: configuration.clone(),
                });
                if known.last.is_some() {
                    let rendition = Arc::clone(&rendition);
                    self.outputs.push_back(Output::Lost { rendition });
                }
            }
            state.awaiting_keyframe = false;
            known.last = Some(fed.pts);
            let took = now.saturating_duration_since(fed.at);
            self.outputs.push_back(Output::Unit {
                rendition,
                unit: RenditionUnit {
                    dts: fed.pts,
                    pts: fed.pts,
                    keyframe: picture.keyframe,
                    discardable: picture.discardable,
                    payload: picture.payload,
                    ingest_time: fed.ingest_time,
                },
                lag: fed.live.then_some(took),
            });
        }
        run.settle(now);
        if late {
            self.withdraw();
            self.drop_units(Dropped::Late, 1);
        }
    }

    /// The stream did not take a picture of a rendition.
    pub(crate) fn handle_refused(&mut self, rendition: &str) {
        let Some(run) = &mut self.run else {
            return;
        };
        let mut rungs = run.rungs.iter_mut();
        if let Some(state) = rungs.find(|state| *state.rung.name == *rendition) {
            self.outputs.extend(state.interrupt());
            self.drop_units(Dropped::Refused, 1);
        }
    }

    /// The child's queue took no more.
    pub(crate) fn handle_overflow(&mut self) {
        if let Some(run) = &mut self.run {
            run.pause(Feeding::CaughtUp);
            self.drop_units(Dropped::Slow, 1);
        }
    }

    /// The child has ended, or did not start.
    pub(crate) fn handle_ended(
        &mut self,
        now: Instant,
        generation: u64,
        failure: Failure,
        error: &str,
    ) {
        if generation != self.generation {
            return;
        }
        let Some(run) = self.run.take() else {
            return;
        };
        let wait = match failure {
            Failure::Missing | Failure::Busy => RETRY_ELSEWHERE,
            Failure::Exited | Failure::Stuck | Failure::Garbled => {
                if run.yielded && now.saturating_duration_since(run.started) >= HEALTHY_AFTER {
                    self.backoff.reset();
                }
                self.backoff.wait()
            }
        };
        self.retry_at = Some(now + wait);
        self.failing = Some(failure);
        self.failures += u64::from(failure != Failure::Busy);
        let error: Arc<str> = error.into();
        self.last_error = Some(Arc::clone(&error));
        self.outputs.push_back(Output::Failed { failure, error });
        self.remove(|_| true);
    }

    /// Time passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let stuck = self.run.as_mut().is_some_and(|run| {
            run.see_idle(now);
            now.saturating_duration_since(run.alive) >= STUCK_AFTER
        });
        if stuck {
            self.outputs.push_back(Output::Stop);
            self.handle_ended(
                now,
                self.generation,
                Failure::Stuck,
                "it is fed, but yields nothing",
            );
        }
        self.advance(now);
    }

    /// What to do next.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let stuck = self.run.as_ref().map(|run| run.alive + STUCK_AFTER);
        let retry = self.retry_at;
        [self.lingers_until, stuck, retry]
            .into_iter()
            .flatten()
            .min()
    }

    /// For the API.
    pub(crate) fn status(&self) -> Status {
        let state = if self.run.as_ref().is_some_and(|run| run.yielded) {
            State::Running
        } else if let Some(failure) = self.failing {
            match failure {
                Failure::Busy => State::Waiting,
                Failure::Missing | Failure::Exited | Failure::Stuck | Failure::Garbled => {
                    State::Failing
                }
            }
        } else if self.run.is_none() && self.plan().is_some_and(|(_, rungs)| rungs.is_empty()) {
            State::Nothing
        } else {
            State::Starting
        };
        let rungs = self.run.iter().flat_map(|run| &run.rungs);
        Status {
            state,
            rungs: rungs.map(|state| state.rung.clone()).collect(),
            failures: self.failures,
            last_error: self.last_error.clone(),
            dropped: self.dropped,
        }
    }

    /// Ends what is not wanted, starts what is.
    fn advance(&mut self, now: Instant) {
        if self.lingers_until.is_some_and(|until| now >= until) {
            self.stop();
            self.remove(|_| true);
            self.outputs.push_back(Output::Done);
            return;
        }
        if self.run.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        if let Some((source, rungs)) = self.plan()
            && let Some(first) = self.gop.first()
        {
            let first = first.dts;
            let kept: Vec<Arc<str>> = rungs.iter().map(|rung| Arc::clone(&rung.name)).collect();
            self.remove(|name| !kept.contains(name));
            if !rungs.is_empty() {
                self.start(now, source, rungs, first);
            }
        }
    }

    /// The rungs to make, once enough is known of the source.
    fn plan(&self) -> Option<(rungs::Source, Vec<Rung>)> {
        let source = self.source.as_ref()?;
        let (frame_rate, bitrate) = self.rating.rates(source, &self.gop)?;
        let source = rungs::Source {
            width: source.configuration.width,
            height: source.configuration.height,
            frame_rate,
            bitrate,
            reordered: source.reordered,
            has_lower: source.has_lower,
        };
        Some((source, rungs(&source, &self.config.rungs)))
    }

    fn start(&mut self, now: Instant, source: rungs::Source, rungs: Vec<Rung>, first: MediaTime) {
        let Some(described) = self.source.clone() else {
            return;
        };
        self.generation += 1;
        self.outputs.push_back(Output::Start {
            generation: self.generation,
            arguments: arguments(&self.config, source.decoder_threads(), &rungs),
            outputs: rungs.len(),
            again: matches!(
                self.failing,
                Some(Failure::Exited | Failure::Stuck | Failure::Garbled)
            ),
        });
        let mut header = BytesMut::new();
        writer::header(&mut header, false, true);
        // Parameter sets are bounded far below what a tag holds.
        let _ = writer::h264_configuration(&mut header, 0, &described.configuration.avcc);
        self.outputs.push_back(Output::Feed(header.freeze()));
        let rungs = rungs.into_iter().map(|rung| RungState {
            rung,
            configuration: None,
            announced: false,
            awaiting_keyframe: true,
            last_millis: None,
        });
        self.run = Some(Run {
            source: described,
            rungs: rungs.collect(),
            times: Times::new(first),
            started: now,
            alive: now,
            feeding: Feeding::On,
            caught_up: false,
            yielded: false,
            outgrown: false,
        });
        for unit in self.gop.units() {
            self.feed(now, &unit, false);
        }
    }

    fn feed(&mut self, now: Instant, unit: &AccessUnit, live: bool) {
        let Some(run) = &mut self.run else {
            return;
        };
        run.see_idle(now);
        if run.feeding == Feeding::On && run.lags(now) {
            run.pause(Feeding::CaughtUp);
        }
        match run.feeding {
            Feeding::On => {}
            Feeding::FromKeyframe if unit.keyframe => run.feeding = Feeding::On,
            Feeding::FromKeyframe | Feeding::CaughtUp => {
                self.drop_units(Dropped::Slow, 1);
                return;
            }
        }
        let Some((millis, offset)) = run.times.add(now, live, unit) else {
            // The child is too old for the format, or time leapt: another one begins at the next keyframe.
            self.stop();
            self.gop.clear();
            return;
        };
        let mut tag = BytesMut::new();
        let written =
            writer::h264_unit(&mut tag, millis, offset, unit.keyframe, &unit.payload).is_ok();
        if written {
            self.outputs.push_back(Output::Feed(tag.freeze()));
        }
    }

    /// Ends the child, if there is one. What it made stays listed.
    fn stop(&mut self) {
        if self.run.take().is_some() {
            self.outputs.push_back(Output::Stop);
        }
    }

    /// What is made comes too late for anybody: its viewers are to take something else, until it has caught up.
    fn withdraw(&mut self) {
        for state in self.run.iter_mut().flat_map(|run| &mut run.rungs) {
            state.awaiting_keyframe = true;
        }
        self.remove(|_| true);
    }

    fn remove(&mut self, gone: impl Fn(&Arc<str>) -> bool) {
        for (name, known) in &mut self.renditions {
            if known.listed && gone(name) {
                known.listed = false;
                self.outputs.push_back(Output::Removed {
                    rendition: Arc::clone(name),
                });
            }
        }
    }

    fn drop_units(&mut self, reason: Dropped, units: u64) {
        self.dropped += units;
        self.outputs.push_back(Output::Dropped { reason, units });
    }
}

#[cfg(test)]
mod tests;
