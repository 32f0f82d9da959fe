//! Announces a node in the directory, with its load, and keeps the record fresh. Stream records are the origin registry's.
//!
//! Every node reads every record, so one is written when it says something new, not by the clock: in a cluster of two thousand nodes, each
//! write is two thousand messages.

use std::future::Future;
use std::time::Duration;

use headwater_media::id::StreamName;
use tokio::task::JoinHandle;
use tracing::debug;

use crate::Node;
use crate::backoff::jitter;
use crate::directory::{Error, NodeRecord, Role};

/// How often the node looks whether it has something new to say.
const INTERVAL: Duration = Duration::from_secs(1);

/// Spread of that, so that many nodes don't write at once.
const JITTER: Duration = Duration::from_millis(200);

/// Looks after which a record is written that says nothing new (count): should the directory have lost it, it comes back.
const LOOKS_MAX: u32 = 30;

/// A load that differs by less is no news (of 1).
const LOAD_STEP: f64 = 0.05;

/// What of a node's record never changes.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// What it does.
    pub role: Role,
    /// See [`NodeRecord::grpc_url`]; empty if it has none.
    pub grpc_url: String,
    /// See [`NodeRecord::public_url`].
    pub public_url: Option<String>,
}

/// What of it does.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// 0 idle, 1 full.
    pub load: f64,
    /// See [`NodeRecord::streams`].
    pub streams: Vec<StreamName>,
}

impl Announcement {
    /// The node's record as it is now.
    pub fn record(&self, node: &Node, reading: Reading) -> NodeRecord {
        let Reading { load, mut streams } = reading;
        streams.truncate(NodeRecord::STREAMS_MAX);
        NodeRecord {
            id: node.id.clone(),
            role: self.role,
            grpc_url: self.grpc_url.clone(),
            public_url: self.public_url.clone(),
            load,
            draining: node.shutdown.is_cancelled(),
            streams,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Announces until the task is aborted, at once when the node begins to drain. `read` is asked before each time.
pub fn spawn<F, R>(node: &Node, announcement: Announcement, read: F) -> JoinHandle<()>
where
    F: Fn() -> R + Send + 'static,
    R: Future<Output = Reading> + Send,
{
    let io = node.io.clone();
    let node = node.clone();
    io.spawn(async move {
        let mut told: Option<NodeRecord> = None;
        let mut looks = 0;
        loop {
            let record = announcement.record(&node, read().await);
            let mut draining = record.draining;
            looks += 1;
            if looks > LOOKS_MAX || told.as_ref().is_none_or(|told| is_news(told, &record)) {
                let mut announcing = node.directory.announce(record.clone());
                let (record, announced) = tokio::select! {
                    announced = &mut announcing => (record, announced),
                    () = node.shutdown.cancelled(), if !draining => {
                        // What is under way isn't given up: it may arrive all the same, and would then be the last word. It says this
                        // instead where it has to be tried again.
                        draining = true;
                        let record = announcement.record(&node, read().await);
                        let again = node.directory.announce(record.clone());
                        let (_, announced) = tokio::join!(announcing, again);
                        (record, announced)
                    }
                };
                match announced {
                    Ok(()) => (told, looks) = (Some(record), 0),
                    // A fixed list of origins knows nobody else.
                    Err(Error::ReadOnly) => return,
                    // The node's work goes on without it; the directory logs its own state.
                    Err(error) => debug!(%error, "not announced"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL + jitter(JITTER)) => {}
                () = node.shutdown.cancelled(), if !draining => {}
            }
        }
    })
}

fn is_news(told: &NodeRecord, record: &NodeRecord) -> bool {
    let known = |name: &StreamName| told.streams.contains(name);
    (told.load - record.load).abs() >= LOAD_STEP
        || told.draining != record.draining
        || told.streams.len() != record.streams.len()
        || !record.streams.iter().all(known)
}

/// The share that `part` is of `whole` (counts), at most 1.
pub fn ratio(part: usize, whole: usize) -> f64 {
    let number = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    (number(part) / number(whole.max(1))).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::suite;

    #[test]
    fn small_changes_of_load_and_another_order_are_no_news() {
        let streams = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let mut told = suite::record("e1", 0.5);
        told.streams = streams(&["live/a", "live/b"]);
        let with = |change: fn(&mut NodeRecord)| {
            let mut record = told.clone();
            change(&mut record);
            is_news(&told, &record)
        };
        assert!(!with(|_| ()));
        assert!(!with(|record| record.load = 0.54));
        assert!(!with(|record| record.streams.reverse()));
        assert!(with(|record| record.load = 0.56));
        assert!(with(|record| record.draining = true));
        assert!(with(|record| record.streams.truncate(1)));
        assert!(with(|record| record.streams[0] = "live/c".parse().unwrap()));
    }
}
