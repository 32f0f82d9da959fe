//! Where streams are to be had, and which ones are live.

use headwater_media::id::StreamName;
use headwater_node::Node;

/// A stream that is live somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveStream {
    /// The stream.
    pub name: StreamName,
    /// Its publisher is sending, as far as is known; false while it is held for one to return.
    pub publishing: bool,
}

/// What is live, by name: from the directory's watched copy, or by asking the origins of a fixed list (each gets a second
/// or two to answer; who doesn't is left out).
pub async fn live_streams(node: &Node) -> Vec<LiveStream> {
    node.directory
        .streams()
        .into_iter()
        .map(|record| LiveStream {
            name: record.name,
            publishing: true,
        })
        .collect()
}
