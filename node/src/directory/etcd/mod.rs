//! The directory in etcd, by the rules that etcd and its client ask for (see `ARCHITECTURE.md`).
//!
//! | module | what it does |
//! |---|---|
//! | [`calls`] | calls with deadlines and retries, one endpoint at a time |
//! | [`claims`] | transactions on stream records |
//! | [`lease`] | keeps this node's lease, and its records under it |
//! | [`records`] | keys and values |
//! | [`tls`] | certificates |
//! | [`watcher`] | the watched copy that all reads are answered from |
//!
//! Invariants: reads never make a round trip; the copy and this node's claims outlive any absence of etcd; every record of
//! this node lies under its lease, so it goes within its time to live ([`LEASE_TTL`]) of the node's death; epochs of a stream only grow.

mod calls;
mod claims;
mod lease;
mod records;
#[cfg(test)]
mod tests;
mod tls;
mod watcher;

pub use tls::Tls;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::KeyValue;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::{Epoch, NodeId, StreamName};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::{
    Claimant, ClusterName, Directory, Error, Incarnation, NodeRecord, StreamRecord, Upstream,
};
use crate::clock::Clock;
use crate::telemetry::{start_at_zero, start_at_zero_by};
use calls::{CallError, Calls, Repeat};
use records::{Keys, StreamValue, Subject};

/// How long the records of a node that died stay. Long enough to bridge an etcd election and a slow network, short enough
/// that a stream of a dead origin can be taken over soon.
pub const LEASE_TTL: Duration = Duration::from_secs(12);

/// How long [`Directory::withdraw`] tries.
const WITHDRAW_DEADLINE: Duration = Duration::from_millis(1500);

/// Gauge: 1 once the first listing has been seen.
const SYNCED: &str = "headwater_directory_synced";
/// Counter of records in etcd that can't be read.
const UNREADABLE_TOTAL: &str = "headwater_directory_unreadable_records_total";
/// Counter of stream claims that another node took while this one was away.
const LOST_CLAIMS_TOTAL: &str = "headwater_directory_lost_claims_total";

/// How etcd is reached.
#[derive(Clone)]
pub struct Options {
    /// Client URLs of the members, `http://host:port`, or all `https:` with [`Self::tls`]. Not empty.
    pub endpoints: Vec<String>,
    /// The cluster that this node belongs to.
    pub cluster: ClusterName,
    /// Name and password, if etcd asks for them.
    pub user: Option<(String, String)>,
    /// How `https:` endpoints are trusted.
    pub tls: Option<Tls>,
    /// How long the records of a node that died stay; [`LEASE_TTL`] unless there is a reason.
    pub lease_ttl: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("endpoints", &self.endpoints)
            .field("cluster", &self.cluster)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls)
            .field("lease_ttl", &self.lease_ttl)
            .finish()
    }
}

/// One node's view of the directory in etcd. Dropping it without [`Directory::withdraw`] leaves its records until the lease
/// runs out, as the death of the node would.
pub struct EtcdDirectory {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    /// This node, in the run that this view is of.
    own_run: Claimant,
    keys: Keys,
    clock: Clock,
    lease_ttl: Duration,
    calls: Calls,
    /// The lease that is believed to live.
    lease: watch::Sender<Option<i64>>,
    /// Wakes whoever keeps the records: some are missing, or releases are due.
    repair: Notify,
    /// Wakes whoever keeps the lease: etcd said that it is gone.
    doubt: Notify,
    own: Mutex<Own>,
    /// Held while the node's record is being put.
    node_puts: tokio::sync::Mutex<()>,
    copy: Mutex<Copy>,
    changes: watch::Sender<u64>,
    synced: AtomicBool,
}

/// What this node wants to be in etcd.
#[derive(Default)]
struct Own {
    node: Option<NodeRecord>,
    claims: BTreeMap<StreamName, Claim>,
    /// Given up, but perhaps still there. No epoch: what a claim wrote of which nobody knows whether it was performed.
    releases: BTreeMap<StreamName, Option<Epoch>>,
    /// Being claimed: records of these may be there before the claims are.
    claiming: BTreeSet<StreamName>,
    withdrawn: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Claim {
    epoch: Epoch,
    grpc_url: String,
}

/// What is in etcd, as far as is known.
#[derive(Default)]
struct Copy {
    nodes: BTreeMap<NodeId, NodeRecord>,
    streams: BTreeMap<StreamName, StreamRecord>,
    /// The highest epoch that was ever seen, of whichever stream: listings forget streams, and an etcd that lost its data all of them.
    newest: Epoch,
}

impl EtcdDirectory {
    /// Starts the view of node `id`; its tasks run on `io`. Doesn't wait for etcd: see [`Directory::synced`].
    pub fn start(options: Options, id: NodeId, clock: Clock, io: &tokio::runtime::Handle) -> Self {
        let shared = Arc::new(Shared {
            own_run: Claimant::new(id),
            keys: Keys::new(&options.cluster),
            clock,
            lease_ttl: options.lease_ttl,
            calls: Calls::new(options.endpoints, options.user, options.tls),
            lease: watch::Sender::new(None),
            repair: Notify::new(),
            doubt: Notify::new(),
            own: Mutex::default(),
            node_puts: tokio::sync::Mutex::default(),
            copy: Mutex::default(),
            changes: watch::Sender::new(0),
            synced: AtomicBool::new(false),
        });
        describe_metrics();
        gauge!(SYNCED).set(0.0);
        let tasks = vec![
            io.spawn(watcher::run(Arc::clone(&shared))),
            io.spawn(lease::run(Arc::clone(&shared))),
        ];
        Self { shared, tasks }
    }
}

impl Drop for EtcdDirectory {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Directory for EtcdDirectory {
    /// On [`Error::Unavailable`] the record is announced as soon as etcd answers.
    fn announce(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            self.shared.own().node = Some(record);
            let lease = self.shared.current_lease().await?;
            let announced = lease::put_node(&self.shared, lease).await;
            announced.map_err(|error| {
                self.shared.repair.notify_one();
                unavailable(&error)
            })
        }
        .boxed()
    }

    fn incarnation(&self) -> Incarnation {
        self.shared.own_run.incarnation
    }

    fn claim(
        &self,
        name: StreamName,
        grpc_url: String,
        over: Option<Epoch>,
    ) -> BoxFuture<'_, Result<Epoch, Error>> {
        claims::claim(&self.shared, name, grpc_url, over).boxed()
    }

    /// On [`Error::Unavailable`] the record is removed as soon as etcd answers.
    fn release(&self, name: StreamName, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        claims::release(&self.shared, name, epoch).boxed()
    }

    fn owns(&self, name: &StreamName, epoch: Epoch) -> bool {
        let own = self.shared.own();
        own.claims
            .get(name)
            .is_some_and(|claim| claim.epoch == epoch)
    }

    fn upstreams(&self, name: &StreamName) -> Vec<Upstream> {
        let copy = self.shared.copy();
        copy.streams
            .get(name)
            .map(Upstream::from)
            .into_iter()
            .collect()
    }

    fn streams(&self) -> Vec<StreamRecord> {
        self.shared.copy().streams.values().cloned().collect()
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        self.shared.copy().nodes.values().cloned().collect()
    }

    fn node(&self, id: &NodeId) -> Option<NodeRecord> {
        self.shared.copy().nodes.get(id).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn synced(&self) -> bool {
        self.shared.synced.load(Ordering::Acquire)
    }

    fn withdraw(&self) -> BoxFuture<'_, ()> {
        async move {
            {
                let mut own = self.shared.own();
                *own = Own {
                    withdrawn: true,
                    ..Own::default()
                };
            }
            let Some(lease) = self.shared.lease.send_replace(None) else {
                return;
            };
            // All records of the node go with its lease, in one step.
            let revoke = self.shared.calls.run(Repeat::Idempotent, async |client| {
                client.lease_client().revoke(lease).await
            });
            match tokio::time::timeout(WITHDRAW_DEADLINE, revoke).await {
                Ok(Ok(_)) => debug!("withdrawn from the directory"),
                Ok(Err(error)) if error.is_lease_gone() => {}
                Ok(Err(_)) | Err(_) => {
                    warn!(
                        ttl_seconds = self.shared.lease_ttl.as_secs(),
                        "could not withdraw from the directory; the lease will run out"
                    );
                }
            }
        }
        .boxed()
    }
}

impl Shared {
    fn own(&self) -> MutexGuard<'_, Own> {
        // Changes are single assignments, inserts or removes: a poisoned lock guards whole data.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy(&self) -> MutexGuard<'_, Copy> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease to write under, waiting for it as long as a call may take.
    async fn current_lease(&self) -> Result<i64, Error> {
        if self.own().withdrawn {
            return Err(Error::Unavailable("this node has withdrawn".into()));
        }
        let mut leases = self.lease.subscribe();
        let granted = leases.wait_for(Option::is_some);
        match tokio::time::timeout(calls::CALL_DEADLINE, granted).await {
            Ok(Ok(lease)) => lease.ok_or_else(|| Error::Unavailable("no lease".into())),
            Ok(Err(_)) | Err(_) => Err(Error::Unavailable("no lease was granted in time".into())),
        }
    }

    /// Takes a whole listing over.
    fn replace(&self, kvs: &[KeyValue]) {
        let mut fresh = Copy::default();
        for kv in kvs {
            fresh.put(&self.keys, kv);
        }
        {
            let mut own = self.own();
            for record in fresh.streams.values() {
                self.check_claim(&mut own, record);
            }
            let mut copy = self.copy();
            fresh.newest = fresh.newest.max(copy.newest);
            *copy = fresh;
        }
        self.synced.store(true, Ordering::Release);
        gauge!(SYNCED).set(1.0);
        self.check_own();
        self.check_restored();
        self.changed();
    }

    /// Takes events over; true means put, false deleted.
    fn apply<'k>(&self, events: impl Iterator<Item = (&'k KeyValue, bool)>) {
        {
            let mut own = self.own();
            let mut copy = self.copy();
            for (kv, put) in events {
                if put {
                    // One by one: who had a stream for a while only, while this node was away, has claimed it all the same.
                    if let Some(record) = copy.put(&self.keys, kv) {
                        self.check_claim(&mut own, record);
                    }
                } else {
                    copy.delete(&self.keys, kv);
                }
            }
        }
        self.check_own();
        self.changed();
    }

    /// Gives a claim up that another's record is newer than.
    fn check_claim(&self, own: &mut Own, record: &StreamRecord) {
        let claim = own.claims.get(&record.name);
        if claim.is_some_and(|claim| self.own_run.lost(claim.epoch, record)) {
            own.claims.remove(&record.name);
            counter!(LOST_CLAIMS_TOTAL).increment(1);
            warn!(stream = %record.name, owner = %record.origin, epoch = %record.epoch, "another node took the stream over");
        }
    }

    /// Looks for records of this node that are missing.
    fn check_own(&self) {
        let own = self.own();
        let copy = self.copy();
        let mut claims = own.claims.keys();
        let missing = own.node.is_some() && !copy.nodes.contains_key(&self.own_run.id)
            || claims.any(|name| !copy.streams.contains_key(name));
        drop(copy);
        drop(own);
        if missing {
            self.repair.notify_one();
        }
    }

    /// Corrects what a listing says of this node and isn't true any more, as that of an etcd that was restored from a backup may: a stream
    /// that this node took over is its former owner's there, one that it has released is there again, and so is what it once said of itself.
    fn check_restored(&self) {
        let mut own = self.own();
        let copy = self.copy();
        let old_node = own.node.is_some() && copy.nodes.get(&self.own_run.id) != own.node.as_ref();
        let old_claim = own.claims.iter().any(|(name, claim)| {
            let record = copy.streams.get(name);
            record.is_some_and(|record| record.epoch < claim.epoch)
        });
        let mut left: Vec<(StreamName, Option<Epoch>)> = Vec::new();
        for record in copy.streams.values() {
            let name = &record.name;
            let known = own.claims.contains_key(name)
                || own.claiming.contains(name)
                || own.releases.contains_key(name);
            if !own.withdrawn && !known && self.own_run.wrote(record) {
                left.push((name.clone(), Some(record.epoch)));
            }
        }
        drop(copy);
        let repair = old_node || old_claim || !left.is_empty();
        own.releases.extend(left);
        drop(own);
        if repair {
            self.repair.notify_one();
        }
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Copy {
    /// Takes a record over; yields it if it is a stream's.
    fn put(&mut self, keys: &Keys, kv: &KeyValue) -> Option<&StreamRecord> {
        let error = match keys.parse(kv.key())? {
            Subject::Node(id) => match serde_json::from_slice::<NodeRecord>(kv.value()) {
                Ok(record) => {
                    self.nodes.insert(id, record);
                    return None;
                }
                Err(error) => error,
            },
            Subject::Stream(name) => match serde_json::from_slice::<StreamValue>(kv.value()) {
                Ok(value) => {
                    let record = value.record(name.clone(), kv.mod_revision());
                    self.newest = self.newest.max(record.epoch);
                    self.streams.insert(name.clone(), record);
                    return self.streams.get(&name);
                }
                Err(error) => error,
            },
        };
        counter!(UNREADABLE_TOTAL).increment(1);
        debug!(key = kv.key_str().unwrap_or_default(), %error, "unreadable record");
        self.delete(keys, kv);
        None
    }

    fn delete(&mut self, keys: &Keys, kv: &KeyValue) {
        match keys.parse(kv.key()) {
            Some(Subject::Node(id)) => drop(self.nodes.remove(&id)),
            Some(Subject::Stream(name)) => drop(self.streams.remove(&name)),
            None => {}
        }
    }
}

fn describe_metrics() {
    describe_gauge!(SYNCED, "1 once the directory's first listing has been seen");
    describe_counter!(
        UNREADABLE_TOTAL,
        "Records in the directory that could not be read"
    );
    describe_counter!(
        LOST_CLAIMS_TOTAL,
        "Streams that another node took over while this one was away"
    );
    describe_counter!(
        lease::LOST_TOTAL,
        "Leases that the directory let go; all records were put again"
    );
    describe_counter!(calls::TOTAL, "Calls to the directory, failed ones included");
    describe_counter!(
        calls::FAILED_TOTAL,
        "Calls to the directory that failed, by reason"
    );
    describe_counter!(
        watcher::REOPENED_TOTAL,
        "Watches of the directory that were opened anew, by reason"
    );
    start_at_zero(&[UNREADABLE_TOTAL, LOST_CLAIMS_TOTAL, lease::LOST_TOTAL]);
    start_at_zero(&[calls::TOTAL]);
    start_at_zero_by(calls::FAILED_TOTAL, "reason", &["silent", "refused"]);
}

fn unavailable(error: &CallError) -> Error {
    Error::Unavailable(error.to_string().into())
}
