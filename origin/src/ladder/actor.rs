//! `LadderActor`: one stream's ladder. Owns its [`Supervisor`] core and its ffmpeg child.
//!
//! Its parent is the `StreamActor`, which starts it when a subscriber has viewers for renditions, on its own arbiter, and forgets it when
//! it says [`Event::Done`]. It receives the source's units ([`Feed`], perishable: on a full mailbox the core sees the jump in the
//! sequence and goes on at a keyframe), what the source is and whether it is wanted ([`Facts`]), and the child's reports, by a bounded
//! channel that is read as fast as the stream takes them. It ends when the core is done or its parent is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{
    Actor, ActorContext, AsyncContext, Context, Handler, Message, SpawnHandle, StreamHandler,
};
use headwater_media::codec::h264;
use headwater_media::id::StreamName;
use headwater_media::unit::{AccessUnit, RenditionUnit};
use headwater_node::actor::{Sender, Undelivered};
use metrics::{counter, histogram};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use crate::ladder::Shared;
use crate::ladder::child::{self, Child, Order, Report};
use crate::ladder::output::{Failure, Output, Status};
use crate::ladder::source::Source;
use crate::ladder::supervisor::Supervisor;
use crate::metrics as names;

/// Messages that may wait (count): two seconds of a fast source.
const MAILBOX: usize = 256;

/// Reports of the child that may wait (count); then its pipes aren't read.
const REPORTS: usize = 64;

/// The next picture of the source.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Feed {
    pub(crate) unit: Arc<AccessUnit>,
}

/// How things stand: after each change, and each second.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Facts {
    /// None while nobody publishes pictures.
    pub(crate) source: Option<Source>,
    /// A subscriber has viewers for renditions.
    pub(crate) demanded: bool,
}

/// The stream has ended, or forgets its ladder.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

/// What a ladder tells its stream. Units are perishable, the rest is control.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Made {
    /// Which of a stream's ladders.
    pub(crate) ladder: u64,
    pub(crate) event: Event,
}

/// See [`Made`].
#[derive(Debug)]
pub(crate) enum Event {
    /// There is such a rendition, coded like this.
    Configured {
        rendition: Arc<str>,
        configuration: h264::Configuration,
    },
    /// Its next picture.
    Unit {
        rendition: Arc<str>,
        unit: RenditionUnit,
    },
    /// Pictures of it are missing; it goes on at a keyframe.
    Lost { rendition: Arc<str> },
    /// It is made no longer.
    Removed { rendition: Arc<str> },
    /// For the API.
    Status(Status),
    /// The ladder has ended: nobody wants it.
    Done,
}

/// See the module.
pub(crate) struct LadderActor {
    name: StreamName,
    ladder: u64,
    core: Supervisor,
    shared: Shared,
    stream: Sender<Made>,
    /// The newest GOP of the source, until the actor has started.
    backlog: Vec<Arc<AccessUnit>>,
    child: Option<Child>,
    /// The right to have a child. Kept from one to the next, or another stream would get it between them.
    permit: Option<OwnedSemaphorePermit>,
    reports: mpsc::Sender<Report>,
    unread: Option<mpsc::Receiver<Report>>,
    timer: Option<(Instant, SpawnHandle)>,
    told: Option<Status>,
    /// What was logged last: the same again is no news.
    logged: Option<Failure>,
}

impl LadderActor {
    /// A ladder that is wanted. `facts` and `backlog` are the source so far.
    pub(crate) fn new(
        name: StreamName,
        ladder: u64,
        shared: Shared,
        stream: Sender<Made>,
        facts: Facts,
        backlog: Vec<Arc<AccessUnit>>,
    ) -> Self {
        let (reports, unread) = mpsc::channel(REPORTS);
        let now = shared.clock.now();
        let mut core = Supervisor::new(shared.config.as_ref().clone(), rand::random());
        core.handle_source(now, facts.source);
        core.handle_demand(now, facts.demanded);
        Self {
            name,
            ladder,
            core,
            shared,
            stream,
            backlog,
            child: None,
            permit: None,
            reports,
            unread: Some(unread),
            timer: None,
            told: None,
            logged: None,
        }
    }

    /// Performs what the core wants and arms the timer.
    fn pump(&mut self, now: Instant, ctx: &mut Context<Self>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Start {
                    generation,
                    arguments,
                    outputs,
                    again,
                } => {
                    if self.start(now, generation, arguments, outputs) && again {
                        counter!(names::LADDER_RESTARTS).increment(1);
                    }
                }
                Output::Feed(tag) => {
                    // Without a child its end is about to be told.
                    if self.child.as_ref().is_some_and(|child| !child.feed(tag)) {
                        self.core.handle_overflow();
                    }
                }
                Output::Stop => self.child = None,
                Output::Configured {
                    rendition,
                    configuration,
                } => self.tell(Event::Configured {
                    rendition,
                    configuration,
                }),
                Output::Unit {
                    rendition,
                    unit,
                    lag,
                } => self.deliver(&rendition, unit, lag),
                Output::Lost { rendition } => self.tell(Event::Lost { rendition }),
                Output::Removed { rendition } => self.tell(Event::Removed { rendition }),
                Output::Failed { failure, error } => self.report(failure, &error),
                Output::Dropped { reason, units } => {
                    counter!(names::LADDER_DROPPED, "reason" => reason.label()).increment(units);
                }
                Output::Done => {
                    self.child = None;
                    self.tell(Event::Done);
                    ctx.stop();
                }
            }
        }
        self.arm(now, ctx);
    }

    /// True if there was room for another child.
    fn start(
        &mut self,
        now: Instant,
        generation: u64,
        arguments: Vec<String>,
        outputs: usize,
    ) -> bool {
        self.child = None;
        if self.permit.is_none() {
            let children = Arc::clone(&self.shared.children);
            self.permit = children.try_acquire_owned().ok();
        }
        if self.permit.is_none() {
            let error = "this origin makes as many ladders as it may (ladder.streams_max)";
            self.core
                .handle_ended(now, generation, Failure::Busy, error);
            return false;
        }
        let order = Order {
            ffmpeg: self.shared.config.ffmpeg.clone(),
            generation,
            arguments,
            outputs,
        };
        info!(stream = %self.name, renditions = outputs, "making renditions");
        self.child = Some(Child::spawn(
            &self.shared.io,
            self.shared.clock.clone(),
            order,
            self.reports.clone(),
        ));
        true
    }

    fn deliver(&mut self, rendition: &Arc<str>, unit: RenditionUnit, lag: Option<Duration>) {
        let event = Event::Unit {
            rendition: Arc::clone(rendition),
            unit,
        };
        let ladder = self.ladder;
        match self.stream.try_send(Made { ladder, event }) {
            Ok(()) => {
                if let Some(lag) = lag {
                    histogram!(names::LADDER_LAG).record(lag.as_secs_f64());
                }
            }
            Err(Undelivered::Full) => self.core.handle_refused(rendition),
            // The stream has ended, and this actor's addresses go with it.
            Err(Undelivered::Closed) => {}
        }
    }

    fn tell(&self, event: Event) {
        let ladder = self.ladder;
        self.stream.post(Made { ladder, event });
    }

    fn tell_status(&mut self) {
        let status = self.core.status();
        if self.told.as_ref() != Some(&status) {
            self.told = Some(status.clone());
            self.tell(Event::Status(status));
        }
    }

    fn report(&mut self, failure: Failure, error: &str) {
        self.child = None;
        counter!(names::LADDER_FAILURES, "reason" => failure.label()).increment(1);
        let known = self.logged.replace(failure) == Some(failure);
        match failure {
            Failure::Missing | Failure::Busy if known => {
                debug!(stream = %self.name, error, "no renditions");
            }
            Failure::Missing => {
                warn!(stream = %self.name, error, "no renditions: install ffmpeg or set ladder.ffmpeg; the source plays on");
            }
            Failure::Busy => warn!(stream = %self.name, error, "no renditions"),
            Failure::Exited | Failure::Stuck | Failure::Garbled => {
                warn!(stream = %self.name, error, "ffmpeg failed; it starts again");
            }
        }
        self.tell_status();
    }

    fn arm(&mut self, now: Instant, ctx: &mut Context<Self>) {
        let Some(wanted) = self.core.poll_timeout() else {
            return;
        };
        if let Some((at, timer)) = self.timer {
            // One that fires early arms itself again.
            if at <= wanted {
                return;
            }
            ctx.cancel_future(timer);
        }
        let wait = wanted.saturating_duration_since(now);
        let timer = ctx.run_later(wait, |actor, ctx| {
            actor.timer = None;
            let now = actor.shared.clock.now();
            actor.core.handle_timeout(now);
            actor.pump(now, ctx);
            actor.tell_status();
        });
        self.timer = Some((wanted, timer));
    }
}

impl Actor for LadderActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        if let Some(unread) = self.unread.take() {
            ctx.add_stream(ReceiverStream::new(unread));
        }
        let now = self.shared.clock.now();
        let backlog = std::mem::take(&mut self.backlog);
        self.core.handle_backlog(now, &backlog);
        self.pump(now, ctx);
        self.tell_status();
    }
}

impl Handler<Feed> for LadderActor {
    type Result = ();

    fn handle(&mut self, message: Feed, ctx: &mut Self::Context) {
        let now = self.shared.clock.now();
        self.core.handle_unit(now, &message.unit);
        self.pump(now, ctx);
    }
}

impl Handler<Facts> for LadderActor {
    type Result = ();

    fn handle(&mut self, message: Facts, ctx: &mut Self::Context) {
        let now = self.shared.clock.now();
        self.core.handle_source(now, message.source);
        self.core.handle_demand(now, message.demanded);
        self.pump(now, ctx);
        self.tell_status();
    }
}

impl Handler<Stop> for LadderActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        self.child = None;
        ctx.stop();
    }
}

impl StreamHandler<Report> for LadderActor {
    fn handle(&mut self, report: Report, ctx: &mut Self::Context) {
        let now = self.shared.clock.now();
        let generation = report.generation;
        match report.event {
            child::Event::Configured {
                rung,
                configuration,
            } => self
                .core
                .handle_configuration(generation, rung, configuration),
            child::Event::Picture { rung, picture } => {
                self.core.handle_picture(now, generation, rung, picture);
            }
            child::Event::Ended { failure, error } => {
                self.core.handle_ended(now, generation, failure, &error);
            }
        }
        self.pump(now, ctx);
    }

    fn finished(&mut self, _: &mut Self::Context) {
        // Never while `reports` is held; actix's default would stop the actor.
    }
}
