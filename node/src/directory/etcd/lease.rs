//! Keeps this node's lease alive and its records under it.
//!
//! The lease is beaten every third of its time to live; a beat that isn't answered within two seconds moves to another
//! endpoint. When etcd says that the lease is gone, a new one is taken and everything this node wants to be in etcd is put
//! again: after a random wait, since the other nodes lost theirs at the same moment, many at once, and while the new lease is beaten: one by
//! one, the streams of a large origin would take a slow etcd longer than a lease lives.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error as EtcdError, PutOptions};
use futures_util::StreamExt;
use futures_util::future::ready;
use futures_util::stream;
use metrics::counter;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::calls::{CallError, Repeat};
use super::{Shared, claims};
use crate::backoff::{Backoff, jitter};

/// A beat not answered within this is lost.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Over how long the nodes of a cluster spread their return.
pub(super) const RETURN_SPREAD: Duration = Duration::from_secs(1);

/// Records that are put again at a time (count). etcd commits together what comes together.
const RESTORED_AT_ONCE: usize = 32;

/// Counter of leases that etcd let go.
pub(super) const LOST_TOTAL: &str = "headwater_directory_lost_leases_total";

/// Runs until it is dropped or the node withdraws.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
    let mut first = true;
    while !shared.own().withdrawn {
        let lease = match grant(&shared).await {
            Ok(lease) => lease,
            Err(error) => {
                debug!(%error, "no lease was granted");
                sleep(backoff.wait()).await;
                continue;
            }
        };
        backoff.reset();
        if !first {
            sleep(jitter(RETURN_SPREAD)).await;
        }
        first = false;
        shared.lease.send_replace(Some(lease));
        tokio::select! {
            () = Box::pin(beat(&shared, lease)) => {}
            () = Box::pin(keep_records(&shared, lease)) => {}
        }
        if shared.own().withdrawn {
            return;
        }
        shared.lease.send_replace(None);
        counter!(LOST_TOTAL).increment(1);
        warn!("the directory let this node's lease go; registering anew");
    }
}

async fn grant(shared: &Shared) -> Result<i64, CallError> {
    let ttl = i64::try_from(shared.lease_ttl.as_secs()).unwrap_or(i64::MAX);
    // A grant performed twice leaves a lease behind that nobody beats: it ends by itself.
    let granted = shared
        .calls
        .run(Repeat::Idempotent, async |client| {
            client.lease_client().grant(ttl, None).await
        })
        .await?;
    Ok(granted.id())
}

/// Keeps one lease until it is gone.
async fn beat(shared: &Shared, lease: i64) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        if shared.own().withdrawn {
            return;
        }
        let Ok(connection) = shared.calls.connection().await else {
            sleep(backoff.wait()).await;
            continue;
        };
        let mut client = connection.client.lease_client();
        let (mut keeper, mut answers) =
            match timeout(ANSWER_DEADLINE, client.keep_alive(lease)).await {
                Ok(Ok(opened)) => opened,
                Ok(Err(EtcdError::LeaseKeepAliveError(reason))) if reason.contains("not found") => {
                    return;
                }
                Ok(Err(_)) | Err(_) => {
                    shared.calls.leave(&connection).await;
                    sleep(backoff.wait()).await;
                    continue;
                }
            };
        loop {
            tokio::select! {
                () = sleep(shared.lease_ttl / 3) => {}
                // Many claims may say so at once.
                () = shared.doubt.notified() => sleep(jitter(Duration::from_millis(100))).await,
            }
            if shared.own().withdrawn {
                return;
            }
            let answered = async {
                keeper.keep_alive().await?;
                answers.message().await
            };
            match timeout(ANSWER_DEADLINE, answered).await {
                Ok(Ok(Some(answer))) if answer.ttl() > 0 => {
                    backoff.reset();
                    shared
                        .lease
                        .send_if_modified(|current| current.replace(lease).is_none());
                }
                Ok(Ok(Some(_))) => return,
                Ok(Ok(None) | Err(_)) | Err(_) => break,
            }
        }
        shared.calls.leave(&connection).await;
        sleep(backoff.wait()).await;
    }
}

/// Sees that all this node wants to be in etcd is there, under this lease. Never ends.
async fn keep_records(shared: &Shared, lease: i64) {
    loop {
        if restore(shared, lease).await {
            shared.repair.notified().await;
        } else {
            tokio::select! {
                () = sleep(shared.lease_ttl / 3) => {}
                () = shared.repair.notified() => {}
            }
        }
        // What is missing may have gone with the lease.
        shared.doubt.notify_one();
        // Let the events that belong together arrive, and don't spin while records are fought over.
        sleep(Duration::from_millis(50) + jitter(Duration::from_millis(50))).await;
    }
}

/// Puts what is missing or lies under another lease; false if something could not be done now.
async fn restore(shared: &Shared, lease: i64) -> bool {
    let (claims, releases) = {
        let own = shared.own();
        (own.claims.clone(), own.releases.clone())
    };
    if shared.own().node.is_some() && put_node(shared, lease).await.is_err() {
        return false;
    }
    let removals = releases.iter();
    let removals = removals.map(|(name, epoch)| claims::remove(shared, name, *epoch));
    if !all(removals.collect()).await {
        return false;
    }
    let count = claims.len();
    let puts = claims.iter();
    let puts = puts.map(|(name, claim)| claims::restore(shared, name, claim, lease));
    if !all(puts.collect()).await {
        return false;
    }
    if count > 0 {
        info!(streams = count, "stream records stand in the directory");
    }
    true
}

/// Performs calls, many at a time; false as soon as one fails.
async fn all<F: Future<Output = Result<(), CallError>>>(calls: Vec<F>) -> bool {
    let answers = stream::iter(calls).buffer_unordered(RESTORED_AT_ONCE);
    answers.all(|answer| ready(answer.is_ok())).await
}

/// Puts this node's record; putting it twice does no harm. One at a time: of two at once the older record might arrive last and stay. Each
/// attempt puts the record as it is by then, so that news doesn't wait for what a slow etcd still has to be told.
pub(super) async fn put_node(shared: &Shared, lease: i64) -> Result<(), CallError> {
    let _alone = shared.node_puts.lock().await;
    let key = shared.keys.node(&shared.own_run.id);
    shared
        .calls
        .run(Repeat::Idempotent, async |client| {
            let Some(record) = shared.own().node.clone() else {
                return Ok(());
            };
            let value = serde_json::to_vec(&record).unwrap_or_default();
            let options = PutOptions::new().with_lease(lease);
            let mut kv = client.kv_client();
            kv.put(key.as_str(), value, Some(options)).await?;
            Ok(())
        })
        .await
}
