//! AbrActor: which rendition one viewer is sent.
//!
//! It owns the decision ([`Abr`]) and the estimate of what the viewer's link carries ([`Estimator`]), which the shard's pacer follows. Its
//! parent is the viewer's [`crate::viewer::ViewerActor`]; it lives on the shard's arbiter and ends when its parent lets go of it. It receives
//! [`Measured`], one for each report, which are dropped and counted when its mailbox is full, since the next ones say the same;
//! [`Switched`], [`RenditionsChanged`] and [`Choose`] always arrive. What it decides goes to the shard as [`Command`]s; one that the shard has no
//! room for is said again with the next report.

mod meter;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::{Actor, AsyncContext, Context, Handler, Message, SpawnHandle};
use headwater_media::abr::{Abr, Choice, Config, Output, Rendition, Selection};
use headwater_media::bwe::{Arrivals, Estimate, Estimator};
use headwater_media::id::{Bitrate, RenditionName, TrackId};
use headwater_media::rtt::Trust;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::mpsc;

use crate::metrics::{MAILBOX_FULL, PROBES, SWITCHES};
use crate::round_trip::RoundTrip;
use crate::shard::demand::Need;
use crate::shard::feedback::Sample;
use crate::shard::stream::{SharedInfo, SharedRings};
use crate::shard::{Command, Counters, Layers, NO_RENDITION, Preference, ViewerId};
use meter::Meter;

/// Reports waiting (count). Transport-wide feedback comes every 50 to 100 ms.
const MAILBOX: usize = 32;

/// The distance of keyframes as long as it is not known: what streaming services ask of encoders.
const KEYFRAME_INTERVAL: Duration = Duration::from_secs(2);

/// How a viewer receives, by one feedback message.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Measured {
    pub(crate) sample: Sample,
    /// How far its pictures are behind the live edge, by its own pace.
    pub(crate) wait: Duration,
}

/// The viewer is sent this rendition from now on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Switched {
    pub(crate) track: TrackId,
}

/// The stream has other renditions than before.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RenditionsChanged;

/// The viewer wants other renditions.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Choose {
    pub(crate) layers: Layers,
}

/// What an AbrActor must know of its viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receives {
    /// What it is sent at first; `None`: it gets sound only, and there is nothing to choose.
    pub(crate) video: Option<TrackId>,
    /// Its feedback tells how a probe came through, and probes can be sent.
    pub(crate) probes: bool,
    pub(crate) preference: Preference,
}

/// Who chooses for whom.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) viewer: ViewerId,
    pub(crate) rings: SharedRings,
    pub(crate) info: SharedInfo,
    pub(crate) receives: Receives,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AbrActor {
    watched: Watched,
    abr: Abr,
    estimator: Estimator,
    meter: Meter,
    round_trip: RoundTrip,
    counters: Arc<Counters>,
    clock: Clock,
    commands: mpsc::Sender<Command>,
    /// The renditions that `abr` knows.
    seen: Option<Arc<StreamInfo>>,
    /// A rendition is pinned by name, since its track may come and go.
    layers: Layers,
    pinned: Option<TrackId>,
    /// What the shard knows.
    told: Option<Estimate>,
    told_need: Need,
    /// What it was told to send last, and what it doesn't know yet.
    selected: Option<Selection>,
    untold: Option<Selection>,
    timer: Option<(Instant, SpawnHandle)>,
}

impl Layers {
    /// A rendition of this size may be sent.
    fn allow(&self, width: u16, height: u16) -> bool {
        self.width_max.is_none_or(|max| u32::from(width) <= max)
            && self.height_max.is_none_or(|max| u32::from(height) <= max)
    }
}

impl Actor for AbrActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        self.turn(ctx, |_, _| ());
    }
}

impl AbrActor {
    pub(crate) fn new(
        watched: Watched,
        round_trip: RoundTrip,
        counters: Arc<Counters>,
        clock: Clock,
        commands: mpsc::Sender<Command>,
    ) -> Self {
        let Preference { layers, assumed } = watched.receives.preference.clone();
        let config = Config {
            assumed,
            probes: watched.receives.probes,
        };
        Self {
            watched,
            abr: Abr::new(config),
            estimator: Estimator::default(),
            meter: Meter::default(),
            round_trip,
            counters,
            clock,
            commands,
            seen: None,
            layers,
            pinned: None,
            told: None,
            told_need: Need::default(),
            selected: None,
            untold: None,
            timer: None,
        }
    }

    /// Takes something in, then does what follows from it.
    fn turn(&mut self, ctx: &mut Context<Self>, input: impl FnOnce(&mut Self, Instant)) {
        let now = self.clock.now();
        if self.watched.receives.video.is_none() {
            input(self, now);
            return;
        }
        self.look(now);
        input(self, now);
        self.act();
        let due = self.abr.poll_timeout();
        if self.timer.as_ref().map(|(at, _)| *at) != due {
            if let Some((_, timer)) = self.timer.take() {
                ctx.cancel_future(timer);
            }
            self.timer = due.map(|at| {
                let wait = at.saturating_duration_since(now);
                (at, ctx.run_later(wait, Self::wake))
            });
        }
    }

    fn wake(&mut self, ctx: &mut Context<Self>) {
        self.timer = None;
        self.turn(ctx, |actor, now| actor.abr.handle_timeout(now));
    }

    /// Tells the policy what renditions there are, if that is news.
    fn look(&mut self, now: Instant) {
        let info = Arc::clone(&self.watched.info.borrow());
        if self
            .seen
            .as_ref()
            .is_some_and(|seen| Arc::ptr_eq(seen, &info))
        {
            return;
        }
        let rings = self.watched.rings.borrow();
        let renditions: Vec<Rendition> = info
            .renditions()
            .filter(|(_, h264)| self.layers.allow(h264.width, h264.height))
            .map(|(track, h264)| Rendition {
                track: track.id,
                bitrate: track.bitrate,
                height: h264.height.into(),
                keyframe_interval: rings
                    .get(track.id)
                    .and_then(|ring| ring.keyframe_interval())
                    .unwrap_or(KEYFRAME_INTERVAL),
            })
            .collect();
        drop(rings);
        let audio = info
            .tracks
            .iter()
            .find(|track| matches!(*track.configuration, Configuration::Opus(_)))
            .map_or(Bitrate(0), |track| track.bitrate);
        self.seen = Some(info);
        self.abr.handle_ladder(now, &renditions, audio);
        self.find_pinned(now);
    }

    /// Tells the policy which track is pinned, if that is news.
    fn find_pinned(&mut self, now: Instant) {
        let pinned = self.layers.pinned.as_ref().and_then(|name| {
            let mut renditions = self.seen.as_ref()?.renditions();
            renditions.find_map(|(track, _)| (track.rendition == *name).then_some(track.id))
        });
        if self.pinned != pinned {
            self.pinned = pinned;
            self.abr.handle_pin(now, pinned);
        }
    }

    /// Does what the policy wants done.
    fn act(&mut self) {
        while let Some(output) = self.abr.poll_output() {
            match output {
                Output::Select(selection) => {
                    if selection.target == Choice::AudioOnly {
                        self.show(None);
                    }
                    self.untold = Some(selection);
                }
                Output::Probe(request) => {
                    counter!(PROBES).increment(1);
                    let viewer = self.watched.viewer;
                    // One that doesn't leave is given up by the policy.
                    self.command(Command::Probe { viewer, request });
                }
            }
        }
        let viewer = self.watched.viewer;
        if let Some(selection) = self.untold.clone()
            && self.command(Command::Select { viewer, selection })
        {
            self.selected = self.untold.take();
        }
        let need = Need {
            tracks: self.abr.wanted(),
            adaptive: self.layers.pinned.as_deref() != Some(RenditionName::SOURCE),
        };
        let told = || {
            self.command(Command::Need {
                viewer,
                need: need.clone(),
            })
        };
        if self.told_need != need && told() {
            self.told_need = need;
        }
    }

    /// What the viewer is sent, for its API record.
    fn show(&self, track: Option<TrackId>) {
        let shown = track.map_or(NO_RENDITION, |track| track.0.into());
        let before = self.counters.rendition.swap(shown, Ordering::Relaxed);
        if before != shown && before != NO_RENDITION {
            self.counters.switches.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells the shard's pacer, if it matters.
    fn tell(&mut self, estimate: Estimate) {
        let rate = &self.counters.estimate;
        rate.store(estimate.rate.0, Ordering::Relaxed);
        if self.told.is_some_and(|told| is_same(told, estimate)) {
            return;
        }
        let viewer = self.watched.viewer;
        if self.command(Command::Estimate { viewer, estimate }) {
            self.told = Some(estimate);
        }
    }

    /// Whether the shard had room for it.
    fn command(&self, command: Command) -> bool {
        let sent = self.commands.try_send(command).is_ok();
        if !sent {
            counter!(MAILBOX_FULL, "link" => "commands").increment(1);
        }
        sent
    }

    fn handle_arrivals(&mut self, now: Instant, arrivals: &Arrivals) {
        if let Some(estimate) = self.estimator.handle_arrivals(now, arrivals) {
            self.tell(estimate);
            let queue = self.estimator.queue();
            self.abr.handle_estimate(now, estimate, queue);
            let carried = self.abr.carried().map_or(0, |carried| carried.0);
            self.counters.carried.store(carried, Ordering::Relaxed);
        }
        if let Some(probed) = self.estimator.poll_probed() {
            self.abr.handle_probed(now, &probed);
        }
    }
}

/// A pacer makes no difference between these two: the rate creeps with every message.
const fn is_same(told: Estimate, estimate: Estimate) -> bool {
    told.overused == estimate.overused && told.rate.0.abs_diff(estimate.rate.0) <= told.rate.0 / 32
}

impl Handler<Measured> for AbrActor {
    type Result = ();

    fn handle(&mut self, message: Measured, ctx: &mut Context<Self>) {
        self.meter.handle_sample(&message.sample);
        self.turn(ctx, |actor, now| {
            actor.abr.handle_wait(now, message.wait);
            match &message.sample {
                Sample::Arrivals(arrivals) => actor.handle_arrivals(now, arrivals),
                Sample::Report { rtt, fraction_lost } => {
                    if let Some(rtt) = *rtt {
                        actor.round_trip.note(Trust::Measured, rtt);
                        actor.estimator.handle_rtt(rtt);
                    }
                    if !actor.meter.has_arrivals() {
                        let permille = u32::from(*fraction_lost) * 1000 / 256;
                        actor.abr.handle_loss(now, permille);
                    }
                }
                Sample::AnsweredWithin(took) => actor.round_trip.note(Trust::AtMost, *took),
            }
        });
        let counters = &self.counters;
        let loss = self.meter.loss_permille();
        counters.loss_permille.store(loss, Ordering::Relaxed);
        if let Some(rate) = self.meter.receive_rate() {
            counters.receive_rate.store(rate, Ordering::Relaxed);
        }
    }
}

impl Handler<Switched> for AbrActor {
    type Result = ();

    fn handle(&mut self, message: Switched, ctx: &mut Context<Self>) {
        self.turn(ctx, |actor, now| {
            let name = |track: Option<TrackId>| {
                let info = actor.seen.as_ref()?;
                Some(Arc::clone(&info.track(track?)?.rendition))
            };
            let before = actor.counters.rendition.load(Ordering::Relaxed);
            let before = u16::try_from(before).ok().map(TrackId);
            if before != Some(message.track) {
                tracing::debug!(
                    viewer = %actor.watched.viewer, from = ?name(before), to = ?name(Some(message.track)),
                    estimate = actor.counters.estimate.load(Ordering::Relaxed), "rendition switched"
                );
                counter!(SWITCHES).increment(1);
            }
            actor.show(Some(message.track));
            actor.abr.handle_switched(now, message.track);
        });
    }
}

impl Handler<RenditionsChanged> for AbrActor {
    type Result = ();

    fn handle(&mut self, _: RenditionsChanged, ctx: &mut Context<Self>) {
        // Each turn looks at them first. A rendition that was gone for less time than until now is no news here, but the shard has taken the
        // viewer from it.
        self.turn(ctx, |actor, _| {
            if actor.untold.is_none() {
                actor.untold.clone_from(&actor.selected);
            }
        });
    }
}

impl Handler<Choose> for AbrActor {
    type Result = ();

    fn handle(&mut self, message: Choose, ctx: &mut Context<Self>) {
        self.layers = message.layers;
        self.seen = None;
        self.turn(ctx, |_, _| ());
    }
}
