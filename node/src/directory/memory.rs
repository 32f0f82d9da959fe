//! The directory of a cluster that lives in one process: standalone mode and tests.
//!
//! All views of one [`MemoryDirectory`] share a table; each acts for one node. Dropping a view is the loss of its node, as
//! the end of a lease would be: its records go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::{Epoch, NodeId, StreamName};
use tokio::sync::watch;

use crate::clock::Clock;

use super::{
    Claimant, Directory, Error, Incarnation, NodeRecord, StreamRecord, Upstream, next_claim,
};

/// One node's view of an in-process directory.
#[derive(Debug)]
pub struct MemoryDirectory {
    own: Claimant,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    table: Mutex<Table>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Table {
    nodes: BTreeMap<NodeId, NodeRecord>,
    streams: BTreeMap<StreamName, StreamRecord>,
    /// The last epoch given, for any stream: so an epoch is never given twice, whatever was released in between.
    epoch: Epoch,
}

impl MemoryDirectory {
    /// A new, empty directory, seen by node `id`.
    pub fn new(id: NodeId) -> Self {
        let shared = Shared {
            table: Mutex::new(Table {
                // Edges outlive an origin that keeps its directory in memory, and refuse epochs older than what they
                // have: so a restarted process must give higher ones than the one before it.
                epoch: Epoch(Clock::system().wall().unix_micros()),
                ..Table::default()
            }),
            changes: watch::Sender::new(0),
        };
        Self {
            own: Claimant::new(id),
            shared: Arc::new(shared),
        }
    }

    /// The same directory, seen by node `id`.
    pub fn view(&self, id: NodeId) -> Self {
        Self {
            own: Claimant::new(id),
            shared: Arc::clone(&self.shared),
        }
    }

    fn remove_own(&self) {
        let mut table = self.shared.table();
        table.nodes.remove(&self.own.id);
        table.streams.retain(|_, record| !self.own.wrote(record));
        drop(table);
        self.shared.changed();
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is a single insert or remove, so a poisoned table is still whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Drop for MemoryDirectory {
    fn drop(&mut self) {
        self.remove_own();
    }
}

impl Directory for MemoryDirectory {
    fn announce(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            self.shared
                .table()
                .nodes
                .insert(self.own.id.clone(), record);
            self.shared.changed();
            Ok(())
        }
        .boxed()
    }

    fn incarnation(&self) -> Incarnation {
        self.own.incarnation
    }

    fn claim(
        &self,
        name: StreamName,
        grpc_url: String,
        over: Option<Epoch>,
    ) -> BoxFuture<'_, Result<Epoch, Error>> {
        async move {
            let mut table = self.shared.table();
            if let Some(held) = table.streams.get(&name)
                && !self.own.may_claim(Some(held), over)
            {
                return Err(Error::Held(held.clone()));
            }
            table.epoch = next_claim(table.epoch);
            let epoch = table.epoch;
            let record = StreamRecord {
                name: name.clone(),
                origin: self.own.id.clone(),
                incarnation: self.own.incarnation,
                epoch,
                grpc_url,
            };
            table.streams.insert(name, record);
            drop(table);
            self.shared.changed();
            Ok(epoch)
        }
        .boxed()
    }

    fn release(&self, name: StreamName, epoch: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let mut table = self.shared.table();
            let ours = table
                .streams
                .get(&name)
                .is_some_and(|held| self.own.wrote(held) && held.epoch == epoch);
            if ours {
                table.streams.remove(&name);
                drop(table);
                self.shared.changed();
            }
            Ok(())
        }
        .boxed()
    }

    fn owns(&self, name: &StreamName, epoch: Epoch) -> bool {
        let table = self.shared.table();
        let record = table.streams.get(name);
        record.is_some_and(|record| self.own.wrote(record) && record.epoch >= epoch)
    }

    fn upstreams(&self, name: &StreamName) -> Vec<Upstream> {
        self.shared
            .table()
            .streams
            .get(name)
            .map(Upstream::from)
            .into_iter()
            .collect()
    }

    fn streams(&self) -> Vec<StreamRecord> {
        self.shared.table().streams.values().cloned().collect()
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        self.shared.table().nodes.values().cloned().collect()
    }

    fn node(&self, id: &NodeId) -> Option<NodeRecord> {
        self.shared.table().nodes.get(id).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn synced(&self) -> bool {
        true
    }

    fn withdraw(&self) -> BoxFuture<'_, ()> {
        async move { self.remove_own() }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::suite;

    struct Cluster(MemoryDirectory);

    impl suite::Cluster for Cluster {
        fn node(&self, id: &str) -> Arc<dyn Directory> {
            Arc::new(self.0.view(id.parse().expect("valid")))
        }
    }

    fn cluster() -> Cluster {
        Cluster(MemoryDirectory::new("observer".parse().expect("valid")))
    }

    #[tokio::test]
    async fn the_suite_holds() {
        suite::claims_are_exclusive_and_epochs_only_grow(&cluster()).await;
        suite::a_release_is_of_one_epoch(&cluster()).await;
        suite::a_void_claim_is_taken_over_once(&cluster()).await;
        suite::a_restarted_node_reclaims_and_its_earlier_run_loses(&cluster()).await;
        suite::changes_wake_who_waits(&cluster()).await;
        suite::nodes_come_change_and_go(&cluster()).await;
        suite::concurrent_claims_have_one_winner(&cluster()).await;
        suite::a_dead_node_leaves_nothing(&cluster()).await;
    }
}
