//! The shell of one stream's transcode: a bounded queue in front of a [`Pipeline`], run by the [`pool`](super::pool).
//!
//! Owned by a stream actor. Units come by [`Transcoder::push`]; when the queue is full they are dropped and counted, and
//! the timeline treats the next as following a loss. Dropping it ends it: what waits is forgotten, a child is killed.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use metrics::{counter, gauge};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use headwater_media::codec::aac;
use headwater_media::unit::AccessUnit;
use headwater_node::actor::Undelivered;
use headwater_node::clock::Clock;

use crate::audio::Event;
use crate::audio::child::{Child, Owner};
use crate::audio::config::Config;
use crate::audio::metrics::{
    ANCHORED, DROPPED, FAILURES, GIVEN_UP, PACKETS, RESTARTS, TRANSCODES, UNITS, describe,
};
use crate::audio::pipeline::{FailureKind, Note, Output, Path, Pipeline};
use crate::audio::pool::{Job, Pool, pool};

/// Inputs that one turn takes (count): about 0.1 ms each, so a turn stays around a millisecond.
const INPUTS_PER_TURN: usize = 8;

/// Payload bytes of units that may wait: 26 s at 320 kbit/s.
const QUEUE_BYTES_MAX: usize = 1 << 20;

/// Pieces of a child's samples that may wait (count); then the child's pipe fills, and then its input.
const PCM_WAITING_MAX: usize = 64;

/// One stream's AAC to Opus transcode. Dropping it stops it.
pub struct Transcoder {
    task: Arc<Task>,
}

impl Transcoder {
    /// Starts a transcode of what `source` describes. `output` is called on a thread of the pool: it should hand the
    /// event on and not work.
    pub fn spawn(
        config: &Config,
        source: aac::Configuration,
        output: Box<dyn Fn(Event) + Send + Sync>,
    ) -> Self {
        describe();
        let pool = pool(config.threads);
        let clock = Clock::system();
        let task = Arc::new_cyclic(|this| Task {
            inbox: Mutex::new(Inbox::default()),
            work: Mutex::new(Work {
                pipeline: Pipeline::new(clock.now(), config.clone(), source),
                child: None,
                counted: None,
            }),
            clock,
            pool,
            config: config.clone(),
            output,
            this: Weak::clone(this),
            pcm_room: Arc::new(Semaphore::new(PCM_WAITING_MAX)),
            ended: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        // Its first outputs wait to be performed.
        task.wake(&mut task.inbox());
        Self { task }
    }

    /// Queues one AAC access unit. Never waits.
    ///
    /// # Errors
    /// [`Undelivered::Full`]: the unit is dropped and counted, the next one is treated as following a gap.
    /// [`Undelivered::Closed`]: the transcode has been given up; see [`Event::Failed`].
    pub fn push(&self, unit: Arc<AccessUnit>) -> Result<(), Undelivered> {
        if self.task.ended.load(Ordering::Acquire) {
            return Err(Undelivered::Closed);
        }
        let mut inbox = self.task.inbox();
        let full =
            inbox.units >= self.task.config.queue_units.max(1) || inbox.bytes >= QUEUE_BYTES_MAX;
        if full {
            counter!(DROPPED, "reason" => "queue_full").increment(1);
            return Err(Undelivered::Full);
        }
        inbox.units += 1;
        inbox.bytes = inbox.bytes.saturating_add(unit.payload.len());
        inbox.items.push_back(Input::Unit(unit));
        self.task.wake(&mut inbox);
        Ok(())
    }

    /// The units pushed from now on are coded as `source` says. The Opus timeline goes on without a break, and a
    /// transcode that was given up starts anew. Prefer it to a new transcoder when a publisher changes its AAC
    /// configuration or returns.
    pub fn configure(&self, source: aac::Configuration) {
        self.task.ended.store(false, Ordering::Release);
        let mut inbox = self.task.inbox();
        // A publisher that sends nothing but configurations must not fill the queue.
        if let Some(Input::Configuration(last)) = inbox.items.back_mut() {
            *last = source;
        } else {
            inbox.items.push_back(Input::Configuration(source));
        }
        self.task.wake(&mut inbox);
    }
}

impl Drop for Transcoder {
    fn drop(&mut self) {
        self.task.closed.store(true, Ordering::Release);
        let mut inbox = self.task.inbox();
        inbox.items.clear();
        inbox.units = 0;
        inbox.bytes = 0;
        // A child must not wait for a turn that never comes; the last turn drops it.
        self.task.pcm_room.close();
        self.task.wake(&mut inbox);
    }
}

impl fmt::Debug for Transcoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transcoder").finish_non_exhaustive()
    }
}

enum Input {
    Unit(Arc<AccessUnit>),
    Configuration(aac::Configuration),
    Pcm {
        generation: u64,
        bytes: Bytes,
    },
    ChildEnded {
        generation: u64,
        kind: FailureKind,
        reason: String,
    },
}

#[derive(Default)]
struct Inbox {
    items: VecDeque<Input>,
    /// Units among them.
    units: usize,
    /// Their payload.
    bytes: usize,
    /// The pool has the task, or is about to look at it again.
    scheduled: bool,
}

struct Task {
    inbox: Mutex<Inbox>,
    work: Mutex<Work>,
    clock: Clock,
    pool: Arc<Pool>,
    config: Config,
    output: Box<dyn Fn(Event) + Send + Sync>,
    this: Weak<Self>,
    pcm_room: Arc<Semaphore>,
    /// Given up.
    ended: AtomicBool,
    /// The owner has gone.
    closed: AtomicBool,
}

/// What only the thread whose turn it is touches.
struct Work {
    pipeline: Pipeline,
    child: Option<Child>,
    /// As what it counts among the running transcodes.
    counted: Option<Path>,
}

impl Task {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, inbox: &mut Inbox) {
        if !inbox.scheduled
            && let Some(this) = self.this.upgrade()
        {
            inbox.scheduled = true;
            self.pool.run(this);
        }
    }

    fn take(&self, input: Input, work: &mut Work) {
        let now = self.clock.now();
        let Work { pipeline, .. } = work;
        let outcome = catch_unwind(AssertUnwindSafe(|| match input {
            Input::Unit(unit) => {
                counter!(UNITS).increment(1);
                pipeline.handle_unit(now, &unit);
            }
            Input::Configuration(source) => pipeline.handle_configuration(now, source),
            Input::Pcm { generation, bytes } => {
                self.pcm_room.add_permits(1);
                pipeline.handle_pcm(now, generation, &bytes);
            }
            Input::ChildEnded {
                generation,
                kind,
                reason,
            } => pipeline.handle_child_ended(now, generation, kind, &reason),
        }));
        if outcome.is_err() {
            pipeline.handle_panic(now);
        }
    }

    fn perform(&self, work: &mut Work) {
        // Before the outputs, so that who hears of the end finds `push` closed.
        let ended = work.pipeline.ended();
        self.ended.store(ended, Ordering::Release);
        while let Some(output) = work.pipeline.poll_output() {
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            match output {
                Output::Event(event) => {
                    match &event {
                        Event::Unit { .. } => counter!(PACKETS).increment(1),
                        Event::Failed(_) => counter!(GIVEN_UP).increment(1),
                        Event::Configured(_) => {}
                    }
                    (self.output)(event);
                }
                Output::StartChild { generation, header } => {
                    work.child = None;
                    work.child = self.start_child(generation, header);
                }
                Output::FeedChild(tag) => {
                    if !work.child.as_ref().is_some_and(|child| child.feed(tag)) {
                        counter!(DROPPED, "reason" => "ffmpeg_queue_full").increment(1);
                    }
                }
                Output::StopChild => work.child = None,
                Output::Note(note) => count(&note),
            }
        }
        work.count_as((!ended).then(|| work.pipeline.path()));
    }

    fn start_child(&self, generation: u64, header: Bytes) -> Option<Child> {
        let owner = Link {
            task: Weak::clone(&self.this),
            room: Arc::clone(&self.pcm_room),
        };
        let Some(runtime) = self.pool.children() else {
            owner.ended(
                generation,
                FailureKind::FfmpegEnded,
                "no thread for it".to_owned(),
            );
            return None;
        };
        let ffmpeg = self.config.ffmpeg.clone();
        Some(Child::spawn(runtime, ffmpeg, generation, header, owner))
    }
}

impl Job for Task {
    fn turn(self: Arc<Self>) -> bool {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..INPUTS_PER_TURN {
            let input = {
                let mut inbox = self.inbox();
                let input = inbox.items.pop_front();
                if let Some(Input::Unit(unit)) = &input {
                    inbox.units = inbox.units.saturating_sub(1);
                    inbox.bytes = inbox.bytes.saturating_sub(unit.payload.len());
                }
                input
            };
            let Some(input) = input else {
                break;
            };
            self.take(input, &mut work);
            self.perform(&mut work);
        }
        self.perform(&mut work);
        if self.closed.load(Ordering::Acquire) {
            work.child = None;
            work.count_as(None);
        }
        drop(work);
        let mut inbox = self.inbox();
        inbox.scheduled = !inbox.items.is_empty();
        inbox.scheduled
    }
}

impl Work {
    fn count_as(&mut self, path: Option<Path>) {
        if self.counted == path {
            return;
        }
        if let Some(before) = self.counted {
            gauge!(TRANSCODES, "path" => before.label()).decrement(1.0);
        }
        if let Some(path) = path {
            gauge!(TRANSCODES, "path" => path.label()).increment(1.0);
        }
        self.counted = path;
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.count_as(None);
    }
}

/// How a child reaches its transcode, without keeping it alive.
struct Link {
    task: Weak<Task>,
    room: Arc<Semaphore>,
}

impl Link {
    fn deliver(&self, input: Input) -> bool {
        let Some(task) = self.task.upgrade() else {
            return false;
        };
        let mut inbox = task.inbox();
        inbox.items.push_back(input);
        task.wake(&mut inbox);
        true
    }
}

impl Owner for Link {
    async fn pcm(&self, generation: u64, bytes: Bytes) -> bool {
        // The permit comes back when the samples are taken.
        let Ok(permit) = self.room.acquire().await else {
            return false;
        };
        permit.forget();
        self.deliver(Input::Pcm { generation, bytes })
    }

    fn ended(&self, generation: u64, kind: FailureKind, reason: String) {
        self.deliver(Input::ChildEnded {
            generation,
            kind,
            reason,
        });
    }
}

fn count(note: &Note) {
    match note {
        Note::FrameLost => counter!(DROPPED, "reason" => "undecodable").increment(1),
        Note::Waiting => counter!(DROPPED, "reason" => "restarting").increment(1),
        Note::Anchored => counter!(ANCHORED).increment(1),
        Note::Restarted(path) => counter!(RESTARTS, "path" => path.label()).increment(1),
        Note::HeAacFound => info!("the AAC is HE-AAC, though its configuration doesn't say so"),
        Note::Failed {
            kind,
            path,
            reason,
            given_up,
        } => {
            counter!(FAILURES, "reason" => kind.label()).increment(1);
            let path = path.label();
            if *given_up {
                warn!(path, %reason, "audio transcode given up: WebRTC viewers hear nothing");
            } else {
                warn!(path, %reason, "audio decoder failed; it starts again");
            }
        }
    }
}
