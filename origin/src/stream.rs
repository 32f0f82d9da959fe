//! `StreamActor`: one live stream. Owns its [`Stream`] core, its subscribers, its audio transcode and
//! its ladder.
//!
//! Its parent is the registry, which starts it and alone decides when it ends ([`Stop`]). It receives a publisher's units
//! ([`Deliver`], perishable: on a full mailbox the publication drops to the next keyframe), the transcoder's Opus, the
//! ladder's renditions, and subscribers. Each subscriber has a bounded queue of its own; one that is full loses units, which its session notices by
//! their sequence, so a slow subscriber never slows the publisher or a neighbour.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, AsyncContext, Context, Handler, Message, MessageResult, SpawnHandle,
};
use headwater_media::codec::aac;
use headwater_media::id::{Epoch, StreamName, TrackId};
use headwater_media::replication::Position;
use headwater_media::stream::{Attachment, Dropped, Stream};
use headwater_media::track::Configuration;
use headwater_media::unit::{AccessUnit, IngestUnit, MediaKind, SourceTrack};
use headwater_node::actor::Sender;
use headwater_node::clock::Clock;
use headwater_node::replication::{EndReason, Item, Outlet};
use metrics::counter;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::audio::{self, Transcoder};
use crate::config::OriginConfig;
use crate::describe;
use crate::ingest::Ingest;
use crate::ladder;
use crate::metrics as names;
use crate::registry::HoldExpired;

pub(crate) mod contributors;

use contributors::Roll;

/// Messages that may wait for a stream (count): a burst of two seconds of a busy publisher with its Opus.
const MAILBOX: usize = 512;

/// Messages that may wait for one subscriber's session (count). The session always drains it; this covers its scheduling.
const SUBSCRIBER_QUEUE: usize = 1024;

/// How often rates are measured and told.
const INFO_INTERVAL: Duration = Duration::from_secs(1);

/// A publisher begins, the first one or one that returns or takes over.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Begin {
    pub(crate) epoch: Epoch,
    pub(crate) publisher: describe::Publisher,
}

/// See [`crate::registry::Publication::configure`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Configure {
    pub(crate) epoch: Epoch,
    pub(crate) track: SourceTrack,
    pub(crate) configuration: Configuration,
}

/// See [`crate::registry::Publication::end`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct End {
    pub(crate) epoch: Epoch,
    pub(crate) track: SourceTrack,
}

/// One access unit of the publisher.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Deliver {
    pub(crate) epoch: Epoch,
    /// Units of its track were dropped before it.
    pub(crate) after_loss: bool,
    pub(crate) unit: IngestUnit,
}

/// The publisher's `onMetaData`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Metadata {
    pub(crate) epoch: Epoch,
    pub(crate) metadata: serde_json::Value,
}

/// The publisher left.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Leave {
    pub(crate) epoch: Epoch,
}

/// What the audio transcoder made.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Audio {
    generation: u64,
    event: audio::Event,
}

/// A subscriber comes. It gets its number, what it begins with, and what follows.
#[derive(Message)]
#[rtype(result = "(u64, Attachment, mpsc::Receiver<Item>)")]
pub(crate) struct Attach {
    pub(crate) have: Vec<Position>,
    /// See [`headwater_media::replication::Want::adaptive`].
    pub(crate) adaptive: bool,
}

/// A subscriber wants further tracks: it gets an [`Item::Backlog`] of them.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Backlog {
    pub(crate) subscriber: u64,
    pub(crate) tracks: Vec<TrackId>,
}

/// A subscriber has viewers for renditions now, or no longer. One that goes needs no message: its queue closes.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Adapt {
    pub(crate) subscriber: u64,
    pub(crate) adaptive: bool,
}

/// The stream for the API.
#[derive(Message)]
#[rtype(result = "serde_json::Value")]
pub(crate) struct Describe;

/// What [`Stat`] answers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Status {
    pub(crate) epoch: Epoch,
    pub(crate) publishing: bool,
}

/// The stream in short.
#[derive(Message)]
#[rtype(result = "Status")]
pub(crate) struct Stat;

/// Ends the stream: subscribers are told, the actor stops.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stop {
    pub(crate) reason: EndReason,
}

#[derive(Debug)]
struct Subscriber {
    id: u64,
    outlet: Outlet,
    adaptive: bool,
}

/// See the module.
pub(crate) struct StreamActor {
    core: Stream,
    config: OriginConfig,
    audio: audio::Config,
    clock: Clock,
    registry: Sender<HoldExpired>,
    publisher: Option<describe::Publisher>,
    roll: Roll,
    started: Instant,
    subscribers: Vec<Subscriber>,
    next_subscriber: u64,
    transcoder: Option<Transcoder>,
    generation: u64,
    ladder: ladder::Link,
    hold: Option<SpawnHandle>,
    dropped_units: u64,
    ingest: Ingest,
}

impl StreamActor {
    pub(crate) fn new(
        name: StreamName,
        config: OriginConfig,
        audio: audio::Config,
        ladder: ladder::Shared,
        clock: Clock,
        registry: Sender<HoldExpired>,
    ) -> Self {
        Self {
            core: Stream::new(name, config.stream()),
            config,
            audio,
            started: clock.now(),
            clock,
            registry,
            publisher: None,
            roll: Roll::default(),
            subscribers: Vec::new(),
            next_subscriber: 0,
            transcoder: None,
            generation: 0,
            ladder: ladder::Link::new(ladder),
            hold: None,
            dropped_units: 0,
            ingest: Ingest::default(),
        }
    }

    /// A message of a publisher that has been replaced since.
    fn outdated(&self, epoch: Epoch) -> bool {
        epoch != self.core.epoch()
    }

    /// Tells subscribers what changed, if something did; call it before the units it concerns.
    fn pump(&mut self) {
        if self.core.poll_changed() {
            self.tell_info();
        }
    }

    fn tell_info(&mut self) {
        let info = Arc::new(self.core.info(self.clock.now()));
        self.tell(&Item::Info(info));
    }

    fn tell(&mut self, item: &Item) {
        let mut info = || Some(Arc::new(self.core.info(self.clock.now())));
        self.subscribers
            .retain_mut(|subscriber| subscriber.outlet.tell(item, &mut info));
    }

    fn emit(&mut self, unit: Arc<AccessUnit>) {
        self.pump();
        self.tell(&Item::Unit(unit));
    }

    /// The ladder hears what it is to work on, and whether anybody wants it.
    fn tell_ladder(&mut self, ctx: &Context<Self>) {
        let mut subscribers = self.subscribers.iter();
        let demanded = subscribers.any(|entry| entry.adaptive && !entry.outlet.is_closed());
        let now = self.clock.now();
        let info = self.core.info(now);
        let since = self.publisher.as_ref().map(|publisher| publisher.since);
        let made = || Sender::new(&ctx.address());
        self.ladder
            .handle_info(now, demanded, &info, since, &mut self.core, made);
    }

    fn count_drop(&mut self, dropped: Dropped) {
        self.dropped_units += 1;
        let reason = match dropped {
            Dropped::NoConfiguration => "no_configuration",
            Dropped::AwaitingKeyframe => "awaiting_keyframe",
            Dropped::Empty => "empty",
            Dropped::NotPublishing => "not_publishing",
            Dropped::Aligning => "aligning",
            Dropped::Unaligned => "unaligned",
        };
        counter!(names::UNITS_DROPPED, "reason" => reason).increment(1);
    }

    fn start_audio(&mut self, source: aac::Configuration, ctx: &Context<Self>) {
        if !self.audio.enabled {
            let problem = "AAC to Opus is switched off in this origin's configuration";
            self.core.handle_audio_problem(problem.into());
            return;
        }
        if let Some(transcoder) = &self.transcoder {
            transcoder.configure(source);
            return;
        }
        self.generation += 1;
        let generation = self.generation;
        let link = Sender::<Audio>::new(&ctx.address());
        let output = move |event: audio::Event| {
            let message = Audio { generation, event };
            match &message.event {
                audio::Event::Unit { .. } => {
                    if link.try_send(message).is_err() {
                        counter!(names::UNITS_DROPPED, "reason" => "overflow").increment(1);
                    }
                }
                audio::Event::Configured(_) | audio::Event::Failed(_) => {
                    link.post(message);
                }
            }
        };
        self.transcoder = Some(Transcoder::spawn(&self.audio, source, Box::new(output)));
    }
}

impl Actor for StreamActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(INFO_INTERVAL, |actor, ctx| {
            actor.core.handle_timeout(actor.clock.now());
            if actor.transcoder.is_some() && !actor.core.has_source_audio() {
                actor.transcoder = None;
            }
            actor.core.poll_changed();
            actor.tell_info();
            actor.tell_ladder(ctx);
        });
    }
}

impl Handler<Begin> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Begin, ctx: &mut Self::Context) {
        if let Some(hold) = self.hold.take() {
            ctx.cancel_future(hold);
        }
        info!(
            stream = %self.core.name(), epoch = %message.epoch, publisher = %message.publisher.peer,
            encoder = message.publisher.encoder.as_deref().unwrap_or("unknown"), "publisher begins"
        );
        self.core.handle_begin(message.epoch);
        self.publisher = Some(message.publisher);
        self.pump();
        self.tell_ladder(ctx);
    }
}

impl Handler<Configure> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Configure, ctx: &mut Self::Context) {
        if self.outdated(message.epoch) {
            return;
        }
        if let Configuration::Aac(source) = &message.configuration {
            self.start_audio(source.clone(), ctx);
        }
        let configured = self
            .core
            .handle_configuration(message.track, message.configuration);
        if let Err(error) = configured {
            counter!(names::RENDITIONS_REFUSED, "reason" => "too_many").increment(1);
            warn!(stream = %self.core.name(), track = message.track.0, %error, "a rendition is not taken");
        }
        self.pump();
        self.tell_ladder(ctx);
    }
}

impl Handler<End> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: End, _: &mut Self::Context) {
        if !self.outdated(message.epoch) {
            self.core.handle_end(message.track);
            self.pump();
        }
    }
}

impl Handler<Deliver> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Deliver, ctx: &mut Self::Context) {
        if self.outdated(message.epoch) {
            return;
        }
        let kind = message.unit.kind;
        if message.after_loss {
            self.core.handle_loss(kind, message.unit.track);
        }
        let bytes = u64::try_from(message.unit.payload.len()).unwrap_or(u64::MAX);
        counter!(names::INGEST_BYTES, "kind" => kind.as_str()).increment(bytes);
        match self.core.handle_unit(self.clock.now(), message.unit) {
            Ok(unit) => {
                self.ingest.handle_unit(kind, &unit);
                if kind == MediaKind::Audio
                    && let Some(transcoder) = &self.transcoder
                {
                    // A full queue is counted by the transcoder, a failed one has said so.
                    let _ = transcoder.push(Arc::clone(&unit));
                }
                self.ladder.handle_unit(&unit);
                // That there are B-frames, the pictures tell.
                if self.core.poll_changed() {
                    self.tell_info();
                    self.tell_ladder(ctx);
                }
                self.tell(&Item::Unit(unit));
            }
            Err(dropped) => self.count_drop(dropped),
        }
    }
}

impl Handler<Metadata> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Metadata, _: &mut Self::Context) {
        if !self.outdated(message.epoch)
            && let Some(publisher) = &mut self.publisher
        {
            publisher.metadata = Some(message.metadata);
        }
    }
}

impl Handler<Leave> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Leave, ctx: &mut Self::Context) {
        if self.outdated(message.epoch) || !self.core.publishing() {
            return;
        }
        info!(stream = %self.core.name(), epoch = %message.epoch, "publisher left; the stream is held");
        self.core.handle_leave();
        self.pump();
        self.tell_ladder(ctx);
        self.hold = Some(ctx.run_later(self.config.hold(), move |actor, _| {
            actor.registry.post(HoldExpired {
                name: actor.core.name().clone(),
                epoch: message.epoch,
            });
        }));
    }
}

impl Handler<Audio> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Audio, _: &mut Self::Context) {
        if message.generation != self.generation || self.transcoder.is_none() {
            return;
        }
        match message.event {
            audio::Event::Configured(configuration) => {
                self.core.handle_opus_configuration(configuration);
                self.pump();
            }
            audio::Event::Unit {
                pts,
                payload,
                ingest_time,
                discontinuity,
            } => {
                let now = self.clock.now();
                let unit = self
                    .core
                    .handle_opus(now, pts, payload, ingest_time, discontinuity);
                match unit {
                    Ok(unit) => self.emit(unit),
                    Err(dropped) => self.count_drop(dropped),
                }
            }
            audio::Event::Failed(problem) => {
                warn!(stream = %self.core.name(), %problem, "no audio for WebRTC viewers");
                counter!(names::AUDIO_PROBLEMS).increment(1);
                self.core.handle_audio_problem(problem);
                self.pump();
            }
        }
    }
}

impl Handler<ladder::Made> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: ladder::Made, _: &mut Self::Context) {
        let now = self.clock.now();
        match self.ladder.handle_made(now, message, &mut self.core) {
            ladder::Outcome::Nothing => self.pump(),
            ladder::Outcome::Unit(unit) => self.emit(unit),
            ladder::Outcome::Dropped(dropped) => self.count_drop(dropped),
        }
    }
}

impl Handler<Attach> for StreamActor {
    type Result = MessageResult<Attach>;

    fn handle(&mut self, message: Attach, ctx: &mut Self::Context) -> Self::Result {
        self.pump();
        let attachment = self.core.attach(self.clock.now(), &message.have);
        let (items, receiver) = mpsc::channel(SUBSCRIBER_QUEUE);
        self.next_subscriber += 1;
        let subscriber = self.next_subscriber;
        self.subscribers.push(Subscriber {
            id: subscriber,
            outlet: Outlet::new(items),
            adaptive: message.adaptive,
        });
        if message.adaptive {
            self.tell_ladder(ctx);
        }
        MessageResult((subscriber, attachment, receiver))
    }
}

impl Handler<Backlog> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Backlog, _: &mut Self::Context) {
        let units = self.core.backlog(&message.tracks);
        let mut subscribers = self.subscribers.iter();
        if let Some(subscriber) = subscribers.find(|entry| entry.id == message.subscriber) {
            subscriber.outlet.give(units);
        }
    }
}

impl Handler<Adapt> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Adapt, ctx: &mut Self::Context) {
        let mut subscribers = self.subscribers.iter_mut();
        if let Some(subscriber) = subscribers.find(|entry| entry.id == message.subscriber) {
            subscriber.adaptive = message.adaptive;
        }
        self.tell_ladder(ctx);
    }
}

impl Handler<Describe> for StreamActor {
    type Result = MessageResult<Describe>;

    fn handle(&mut self, _: Describe, _: &mut Self::Context) -> Self::Result {
        let now = self.clock.now();
        self.subscribers
            .retain(|subscriber| !subscriber.outlet.is_closed());
        let info = self.core.info(now);
        let observed = self.core.observe(now);
        MessageResult(describe::stream(&describe::Facts {
            info: &info,
            observed: &observed,
            publisher: self.publisher.as_ref(),
            roll: &self.roll,
            aligned: self
                .core
                .contributors()
                .filter(|(.., aligned)| *aligned)
                .map(|(id, ..)| id)
                .collect(),
            now,
            started: self.started,
            subscribers: self.subscribers.len(),
            adaptive_subscribers: self.subscribers.iter().filter(|s| s.adaptive).count(),
            dropped_units: self.dropped_units,
            ladder: &self.ladder.describe(),
            repaired: self.ladder.enabled(),
        }))
    }
}

impl Handler<Stat> for StreamActor {
    type Result = MessageResult<Stat>;

    fn handle(&mut self, _: Stat, _: &mut Self::Context) -> Self::Result {
        MessageResult(Status {
            epoch: self.core.epoch(),
            publishing: self.core.publishing(),
        })
    }
}

impl Handler<Stop> for StreamActor {
    type Result = ();

    fn handle(&mut self, message: Stop, ctx: &mut Self::Context) {
        info!(stream = %self.core.name(), reason = ?message.reason, "stream ends");
        self.tell(&Item::End(message.reason));
        self.subscribers.clear();
        self.transcoder = None;
        self.ladder.end();
        ctx.stop();
    }
}
