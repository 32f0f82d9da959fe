//! Keys and values in etcd: `/headwater/<cluster>/nodes/<id>` and `/headwater/<cluster>/streams/<app>/<stream>`, JSON.

use headwater_media::id::{Epoch, NodeId, StreamName};
use serde::{Deserialize, Serialize};

use crate::directory::{ClusterName, EPOCHS_PER_CLAIM, Incarnation, StreamRecord};

/// The keys of one cluster.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

/// What a key is about.
#[derive(Debug, PartialEq)]
pub(super) enum Subject {
    Node(NodeId),
    Stream(StreamName),
}

impl Keys {
    pub(super) fn new(cluster: &ClusterName) -> Self {
        Self {
            prefix: format!("/headwater/{cluster}/"),
        }
    }

    /// All keys start with it.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn node(&self, id: &NodeId) -> String {
        format!("{}nodes/{id}", self.prefix)
    }

    pub(super) fn stream(&self, name: &StreamName) -> String {
        format!("{}streams/{name}", self.prefix)
    }

    /// None for keys that are not ours, such as those of a later version.
    pub(super) fn parse(&self, key: &[u8]) -> Option<Subject> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?;
        let (kind, rest) = key.split_once('/')?;
        match kind {
            "nodes" => rest.parse().ok().map(Subject::Node),
            "streams" => rest.parse().ok().map(Subject::Stream),
            _ => None,
        }
    }
}

/// The value of a stream's key.
///
/// The epoch comes from the revision at which etcd committed the claim, which the claimant can't know when it writes: so the value
/// of a fresh claim leaves it out, and readers take the key's modification revision. Revisions of an etcd cluster only
/// grow and belong to one write each, so no epoch is given twice, even when the key was deleted in between, and no counter
/// keys pile up. A record that is put again for another reason (its lease was lost) states its epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StreamValue {
    pub(super) origin: NodeId,
    /// Zero in records of nodes that don't know it.
    #[serde(default)]
    pub(super) incarnation: Incarnation,
    pub(super) grpc_url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) epoch: Option<Epoch>,
}

impl StreamValue {
    pub(super) fn record(self, name: StreamName, mod_revision: i64) -> StreamRecord {
        StreamRecord {
            name,
            epoch: self.epoch.unwrap_or_else(|| epoch_of(mod_revision)),
            origin: self.origin,
            incarnation: self.incarnation,
            grpc_url: self.grpc_url,
        }
    }
}

/// The first epoch of a claim that was committed at `revision`; revisions start at 1.
pub(super) fn epoch_of(revision: i64) -> Epoch {
    let revision = u64::try_from(revision).unwrap_or(0);
    Epoch(revision.saturating_mul(EPOCHS_PER_CLAIM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_and_read() {
        let keys = Keys::new(&"eu-1".parse().expect("valid"));
        let node: NodeId = "e1".parse().expect("valid");
        let stream: StreamName = "live/demo".parse().expect("valid");
        assert_eq!(keys.node(&node), "/headwater/eu-1/nodes/e1");
        assert_eq!(keys.stream(&stream), "/headwater/eu-1/streams/live/demo");
        assert_eq!(
            keys.parse(keys.node(&node).as_bytes()),
            Some(Subject::Node(node))
        );
        assert_eq!(
            keys.parse(keys.stream(&stream).as_bytes()),
            Some(Subject::Stream(stream))
        );
        for foreign in [
            "/headwater/eu/nodes/e1",
            "/headwater/eu-1/nodes/",
            "/headwater/eu-1/streams/x",
            "/headwater/eu-1/new/x",
            "\u{fffd}",
        ] {
            assert_eq!(keys.parse(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_fresh_claim_takes_its_revision_as_epoch() {
        let name: StreamName = "live/demo".parse().expect("valid");
        let fresh: StreamValue =
            serde_json::from_str(r#"{"origin":"o1","grpc_url":"http://o1:7070","later":1}"#)
                .expect("json");
        assert_eq!(
            fresh.clone().record(name.clone(), 7).epoch,
            Epoch(7 * EPOCHS_PER_CLAIM)
        );
        let again = StreamValue {
            epoch: Some(Epoch(7)),
            ..fresh
        };
        let text = serde_json::to_string(&again).expect("json");
        let read: StreamValue = serde_json::from_str(&text).expect("json");
        assert_eq!(read.record(name, 12).epoch, Epoch(7));
    }
}
