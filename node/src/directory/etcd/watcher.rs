//! Keeps the copy of the directory current: list at revision R, watch from R+1, and distrust silence.
//!
//! A watch on a stopped etcd member says nothing and fails with nothing, so progress is asked for every few seconds and a
//! watch that stays silent is opened anew, at another endpoint. It resumes at the last event it saw; only when etcd has
//! compacted that away, or has gone back in time (restored from a backup), is everything listed again. By its revision alone that doesn't
//! show once as much has been written anew; so a watch is resumed only if etcd still has the newest record that was seen, at the revision it
//! was seen at. The copy stays as it is while etcd is away.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Event, EventType, GetOptions, KeyValue, WatchOptions, WatchResponse};
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

/// Up to where the copy shows what is in etcd.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) revision: i64,
    /// The newest record of it, as it was written.
    pub(super) newest: Option<KeyValue>,
}

/// How a watch ended.
enum Ended {
    /// Open it again behind this.
    Resume { seen: Seen, reason: &'static str },
    /// List again.
    Relist { reason: &'static str },
}

/// Runs until it is dropped.
pub(super) async fn run(shared: Arc<Shared>) {
    run_from(shared, None).await;
}

/// As [`run`], resuming behind what the copy shows.
pub(super) async fn run_from(shared: Arc<Shared>, mut seen: Option<Seen>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut told = false;
    loop {
        let from = match seen.take() {
            Some(known) => match has(&shared, &known).await {
                Ok(true) => known,
                Ok(false) => {
                    counter!(REOPENED_TOTAL, "reason" => "not_there").increment(1);
                    continue;
                }
                Err(error) => {
                    debug!(%error, "the watch is not resumed yet");
                    seen = Some(known);
                    sleep(backoff.wait()).await;
                    continue;
                }
            },
            None => match list(&shared).await {
                Ok(listed) => {
                    if told {
                        info!("the directory answers again");
                    }
                    told = false;
                    listed
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
        let reason = match follow(&shared, from).await {
            Ended::Resume { seen: last, reason } => {
                seen = Some(last);
                reason
            }
            Ended::Relist { reason } => reason,
        };
        counter!(REOPENED_TOTAL, "reason" => reason).increment(1);
        debug!(reason, "opening the watch anew");
        if opened.elapsed() > SILENCE_MAX {
            backoff.reset();
        }
        sleep(backoff.wait()).await;
    }
}

async fn list(shared: &Shared) -> Result<Seen, CallError> {
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
    let newest = answer.kvs().iter().max_by_key(|kv| kv.mod_revision());
    Ok(Seen {
        revision,
        newest: newest.cloned(),
    })
}

/// etcd has what was seen there.
async fn has(shared: &Shared, seen: &Seen) -> Result<bool, CallError> {
    let Some(newest) = &seen.newest else {
        return Ok(true);
    };
    let answer = shared
        .calls
        .run(Repeat::Idempotent, |client| async move {
            let options = GetOptions::new().with_revision(newest.mod_revision());
            client.kv_client().get(newest.key(), Some(options)).await
        })
        .await;
    match answer {
        Ok(answer) => Ok(answer.kvs().first().is_some_and(|kv| same(kv, newest))),
        // Such a revision is still to come, or is compacted away, and a watch behind it most likely too.
        Err(error) if error.is_out_of_range() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same write of the same record.
fn same(one: &KeyValue, other: &KeyValue) -> bool {
    let written = |kv: &KeyValue| (kv.create_revision(), kv.mod_revision(), kv.lease());
    written(one) == written(other) && one.value() == other.value()
}

async fn follow(shared: &Shared, mut seen: Seen) -> Ended {
    let resume = |seen, reason| Ended::Resume { seen, reason };
    let Ok(connection) = shared.calls.connection().await else {
        return resume(seen, "connect");
    };
    let options = WatchOptions::new()
        .with_prefix()
        .with_start_revision(seen.revision + 1)
        .with_progress_notify();
    let mut watching = connection
        .client
        .watch_client()
        .max_decoding_message_size(ANSWER_BYTES_MAX);
    let opening = watching.watch(shared.keys.prefix(), Some(options));
    let Ok(Ok(mut stream)) = timeout(CALL_DEADLINE, opening).await else {
        shared.calls.leave(&connection).await;
        return resume(seen, "open");
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
                    return resume(seen, "closed");
                }
                continue;
            }
        };
        let answer = match message {
            Ok(Ok(Some(answer))) => answer,
            Ok(Ok(None)) => {
                shared.calls.leave(&connection).await;
                return resume(seen, "closed");
            }
            Ok(Err(error)) => {
                debug!(%error, "the watch failed");
                shared.calls.leave(&connection).await;
                return resume(seen, "failed");
            }
            Err(_) => {
                shared.calls.leave(&connection).await;
                return resume(seen, "silent");
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
            return resume(seen, "canceled");
        }
        if went_back(&answer, seen.revision) {
            return Ended::Relist {
                reason: "went_back",
            };
        }
        // Only events move the point to resume at: in etcd before 3.4.25 an answer to a progress request may be ahead of
        // events that are still to come.
        let written = |event: &Event| event.kv().map(KeyValue::mod_revision);
        let puts = answer.events().iter();
        let puts = puts.filter(|event| event.event_type() == EventType::Put);
        let newest = puts
            .filter_map(Event::kv)
            .max_by_key(|kv| kv.mod_revision());
        if let Some(newest) = newest {
            seen.newest = Some(newest.clone());
        }
        if let Some(last) = answer.events().iter().filter_map(written).max() {
            let events = answer.events().iter().filter_map(|event| {
                let kv = event.kv()?;
                Some(match event.event_type() {
                    EventType::Put => (kv, true),
                    EventType::Delete => (kv, false),
                })
            });
            shared.apply(events);
            seen.revision = seen.revision.max(last);
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
