//! The threads that transcode: a few for the whole process, however many streams.
//!
//! A job is queued at most once however much waits for it, so the queue is as long as there are streams at most, and a
//! stream's turn is bounded ([`Job::turn`]), so none starves the others. ffmpeg children are looked after by a runtime
//! of their own, which starts with the first of them: a child's parent is then a thread that lives as long as the
//! process, and children need no runtime of whoever owns the stream.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};
use tracing::error;

/// Work that comes in turns.
pub(crate) trait Job: Send + Sync {
    /// Does a bounded part of what waits; true if there is more.
    fn turn(self: Arc<Self>) -> bool;
}

/// The threads and what waits for them.
pub(crate) struct Pool {
    queue: Mutex<VecDeque<Arc<dyn Job>>>,
    wake: Condvar,
    children: OnceLock<Option<Runtime>>,
}

static POOL: OnceLock<Arc<Pool>> = OnceLock::new();

/// The process's pool. The first call decides how many threads it has: they are the machine's, not a node's.
pub(crate) fn pool(threads: usize) -> Arc<Pool> {
    let pool = POOL.get_or_init(|| {
        let pool = Arc::new(Pool {
            queue: Mutex::new(VecDeque::new()),
            wake: Condvar::new(),
            children: OnceLock::new(),
        });
        for n in 0..threads.clamp(1, 64) {
            let worker = Arc::clone(&pool);
            let started = thread::Builder::new()
                .name(format!("audio-{n}"))
                .spawn(move || worker.work());
            if let Err(error) = started {
                error!(%error, "an audio thread did not start");
            }
        }
        pool
    });
    Arc::clone(pool)
}

impl Pool {
    /// Queues a job that isn't queued.
    pub(crate) fn run(&self, job: Arc<dyn Job>) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(job);
        self.wake.notify_one();
    }

    /// Where ffmpeg children are looked after. `None` if the system gives no thread for it.
    pub(crate) fn children(&self) -> Option<&Handle> {
        self.children
            .get_or_init(|| {
                Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("audio-ffmpeg")
                    .enable_all()
                    .build()
                    .inspect_err(|error| error!(%error, "the runtime for ffmpeg did not start"))
                    .ok()
            })
            .as_ref()
            .map(Runtime::handle)
    }

    fn work(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if let Some(job) = queue.pop_front() {
                        break job;
                    }
                    queue = self
                        .wake
                        .wait(queue)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            };
            let again = Arc::clone(&job);
            // Jobs catch their own panics; this keeps the thread if one slips through, even from a drop.
            match catch_unwind(AssertUnwindSafe(move || job.turn())) {
                Ok(true) => self.run(again),
                Ok(false) => drop(catch_unwind(AssertUnwindSafe(move || drop(again)))),
                Err(_) => error!("an audio job panicked"),
            }
        }
    }
}
