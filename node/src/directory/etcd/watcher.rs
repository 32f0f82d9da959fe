//! Keeps the copy of the directory current: list at revision R, watch from R+1, and distrust silence.
//!
//! A watch on a stopped etcd member says nothing and fails with nothing, so progress is asked for every few seconds and a
//! watch that stays silent is opened anew, at another endpoint. It resumes at the last event it saw; only when etcd has
//! compacted that away, or has gone back in time (restored from a backup), is everything listed again. The copy stays as it
//! is while etcd is away.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
use metrics::counter;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use super::Shared;
use super::calls::{CALL_DEADLINE, CallError, Repeat};
use crate::backoff::Backoff;

/// How often a quiet watch is asked whether it lives.
const PROGRESS_PERIOD: Duration = Duration::from_secs(3);

/// A watch that says nothing for this long is dead; it had three chances to answer.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// The largest listing or batch of events (bytes): about 300,000 records.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Counter of watches opened anew, labelled by `reason`.
pub(super) const REOPENED_TOTAL: &str = "headwater_directory_watch_reopened_total";

/// How a watch ended.
enum Ended {
    /// Open it again behind this revision.
    Resume { revision: i64, reason: &'static str },
    /// List again.
    Relist { reason: &'static str },
}

/// Runs until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    run_from(shared, None).await;
}

/// As [`run`], resuming behind a revision whose state the copy shows.
pub(super) async fn run_from(shared: Arc<Shared>, mut seen: Option<i64>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut told = false;
    loop {
        let revision = match seen {
            Some(revision) => revision,
            None => match list(&shared).await {
                Ok(revision) => {
                    if told {
                        info!("the directory answers again");
                    }
                    told = false;
                    revision
                }
                Err(error) => {
                    if !told {
                        warn!(%error, "the directory does not answer; going on with what is known");
                        told = true;
                    }
                    sleep(backoff.wait()).await;
                    continue;
                }
            },
        };
        let opened = Instant::from_std(shared.clock.now());
        let reason = match follow(&shared, revision).await {
            Ended::Resume { revision, reason } => {
                seen = Some(revision);
                reason
            }
            Ended::Relist { reason } => {
                seen = None;
                reason
            }
        };
        counter!(REOPENED_TOTAL, "reason" => reason).increment(1);
        debug!(reason, "opening the watch anew");
        if opened.elapsed() > SILENCE_MAX {
            backoff.reset();
        }
        sleep(backoff.wait()).await;
    }
}

async fn list(shared: &Shared) -> Result<i64, CallError> {
    let answer = shared
        .calls
        .run(Repeat::Idempotent, |client| async move {
            let mut kv = client
                .kv_client()
                .max_decoding_message_size(ANSWER_BYTES_MAX);
            let options = GetOptions::new().with_prefix();
            kv.get(shared.keys.prefix(), Some(options)).await
        })
        .await?;
    let revision = answer.header().map_or(0, |header| header.revision());
    shared.replace(answer.kvs());
    Ok(revision)
}

async fn follow(shared: &Shared, from: i64) -> Ended {
    let mut revision = from;
    let resume = |revision, reason| Ended::Resume { revision, reason };
    let Ok(connection) = shared.calls.connection().await else {
        return resume(revision, "connect");
    };
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(revision + 1)
        .with_progress_notify();
    let mut watching = connection
        .client
        .watch_client()
        .max_decoding_message_size(ANSWER_BYTES_MAX);
    let opening = watching.watch(shared.keys.prefix(), Some(options));
    let Ok(Ok(mut stream)) = timeout(CALL_DEADLINE, opening).await else {
        shared.calls.leave(&connection).await;
        return resume(revision, "open");
    };

    let mut progress = interval(PROGRESS_PERIOD);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::from_std(shared.clock.now());
    loop {
        let message = tokio::select! {
            message = timeout_at(heard + SILENCE_MAX, stream.message()) => message,
            _ = progress.tick() => {
                // The queue to the stream holds far more than a silent stream's worth of requests.
                if stream.request_progress().await.is_err() {
                    shared.calls.leave(&connection).await;
                    return resume(revision, "closed");
                }
                continue;
            }
        };
        let answer = match message {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => {
                shared.calls.leave(&connection).await;
                return resume(revision, "closed");
            }
            Ok(Err(error)) => {
                debug!(%error, "the watch failed");
                shared.calls.leave(&connection).await;
                return resume(revision, "failed");
            }
            Err(_) => {
                shared.calls.leave(&connection).await;
                return resume(revision, "silent");
            }
        };
        heard = Instant::from_std(shared.clock.now());
        if answer.canceled() {
            // Compaction comes as a cancel with an empty reason; the revision it names is not always there.
            let compacted = answer.compact_revision() > 0 || answer.cancel_reason().is_empty();
            if compacted {
                return Ended::Relist {
                    reason: "compacted",
                };
            }
            // A member that lost its leader cancels every watch; another one may have it.
            debug!(reason = answer.cancel_reason(), "etcd canceled the watch");
            shared.calls.leave(&connection).await;
            return resume(revision, "canceled");
        }
        if went_back(&answer, revision) {
            return Ended::Relist {
                reason: "went_back",
            };
        }
        // Only events move the point to resume at: in etcd before 3.4.25 an answer to a progress request may be ahead of
        // events that are still to come.
        let newest = answer
            .events()
            .iter()
            .filter_map(|event| event.kv())
            .map(KeyValue::mod_revision)
            .max();
        if let Some(newest) = newest {
            let events = answer.events().iter().filter_map(|event| {
                let kv = event.kv()?;
                Some(match event.event_type() {
                    EventType::Put => (kv, true),
                    EventType::Delete => (kv, false),
                })
            });
            shared.apply(events);
            revision = revision.max(newest);
        }
    }
}

/// etcd's revision is below one we saw: its data was restored or wiped.
fn went_back(answer: &WatchResponse, revision: i64) -> bool {
    answer.header().is_some_and(|header| {
        // A watcher on a lagging follower may get a header a little behind the leader that answered the listing, but its
        // progress catches up before it can be asked; a created answer is the one that comes at once.
        !answer.created() && header.revision() > 0 && header.revision() < revision
    })
}
