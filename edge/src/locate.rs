//! Where streams are to be had, and which ones are live.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use headwater_media::id::{Epoch, StreamName};
use headwater_media::tree::Answer;
use headwater_node::Node;
use headwater_node::directory::Upstream;
use headwater_proto::replication::{ListStreamsRequest, LiveStream as WireStream};

use crate::upstream::{Connection, Purpose, outages};

/// An origin of a fixed list that takes longer to say what it has is left out.
const LIST_TIMEOUT: Duration = Duration::from_millis(1500);

/// Streams taken from one answer (count); an answer is bounded by the message size anyway.
const STREAMS_MAX: usize = 10_000;

/// A stream that is live somewhere in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveStream {
    /// The stream.
    pub name: StreamName,
    /// Its publisher is sending, as far as is known; false while it is held for one to return.
    pub publishing: bool,
}

/// What is live, by name: from the directory's watched copy, or by asking the origins of a fixed list (each gets a second
/// or two to answer; who doesn't is left out). May be called on any thread.
pub async fn live_streams(node: &Node) -> Vec<LiveStream> {
    let origins = node.directory.fixed_origins();
    if origins.is_empty() {
        let known = node.directory.streams().into_iter();
        let mut streams: Vec<LiveStream> = known
            .map(|record| LiveStream {
                name: record.name,
                publishing: true,
            })
            .collect();
        streams.sort_by(|a, b| a.name.cmp(&b.name));
        return streams;
    }
    let asked = origins.into_iter().map(|origin| {
        let task_node = node.clone();
        node.io.spawn(async move {
            let answer = tokio::time::timeout(LIST_TIMEOUT, ask(&task_node, &origin, None)).await;
            let answer = answer.unwrap_or_else(|_| {
                outages::report(&task_node, &origin, "no answer in time");
                None
            });
            answer.unwrap_or_default()
        })
    });
    let mut newest: BTreeMap<StreamName, (Epoch, bool)> = BTreeMap::new();
    for stream in join_all(asked).await.into_iter().flatten().flatten() {
        let Ok(name) = stream.stream.parse::<StreamName>() else {
            continue;
        };
        let found = (Epoch(stream.epoch), stream.publishing);
        let known = newest.entry(name).or_insert(found);
        if found.0 > known.0 {
            *known = found;
        }
    }
    let streams = newest.into_iter();
    streams
        .map(|(name, (_, publishing))| LiveStream { name, publishing })
        .collect()
}

/// What an origin has, of one stream or all; none if it doesn't say.
async fn ask(node: &Node, origin: &str, only: Option<&StreamName>) -> Option<Vec<WireStream>> {
    let connection = Connection::shared(node, origin, Purpose::Streams);
    let answer = async {
        let mut client = connection
            .replication()
            .await
            .map_err(|error| outages::chain(&error))?;
        let stream = only.map(ToString::to_string).unwrap_or_default();
        let answer = client.list_streams(ListStreamsRequest { stream }).await;
        answer.map_err(|status| outages::refusal(&status))
    };
    match answer.await {
        Ok(answer) => {
            let mut streams = answer.into_inner().streams;
            streams.truncate(STREAMS_MAX);
            Some(streams)
        }
        Err(error) => {
            connection.discard();
            outages::report(node, origin, &error);
            None
        }
    }
}

/// What those say of a stream whom the directory names for it. Must run on the node's I/O runtime.
pub(crate) async fn ask_owners(node: &Node, name: &StreamName) -> Answer {
    let owners = upstreams(node, name);
    if owners.is_empty() {
        return Answer::HasNot;
    }
    let asked = owners.iter().map(|owner| {
        let asked = ask(node, &owner.grpc_url, Some(name));
        tokio::time::timeout(LIST_TIMEOUT, asked)
    });
    // An older node names all that it has.
    let has = |stream: &WireStream| stream.stream == name.as_str();
    let mut all = Answer::HasNot;
    for (owner, answer) in owners.iter().zip(join_all(asked).await) {
        match answer {
            Ok(Some(streams)) if streams.iter().any(has) => return Answer::Has,
            Ok(Some(_)) => {}
            // It may be the one that has it.
            Ok(None) => all = Answer::Silent,
            Err(_) => {
                outages::report(node, &owner.grpc_url, "no answer in time");
                all = Answer::Silent;
            }
        }
    }
    all
}

/// Another origin of a fixed list than `present` that has the stream's publisher. Must run on the node's I/O runtime.
pub(crate) async fn publisher_elsewhere(
    node: &Node,
    name: &StreamName,
    present: &str,
) -> Option<String> {
    let mut others = node.directory.fixed_origins();
    others.retain(|origin| origin != present);
    let asked = others.iter().map(|origin| {
        let asked = ask(node, origin, Some(name));
        tokio::time::timeout(LIST_TIMEOUT, asked)
    });
    let publishes = |stream: &WireStream| stream.stream == name.as_str() && stream.publishing;
    let answers = join_all(asked).await;
    let at = answers.iter().position(|answer| {
        let streams = answer.as_ref().ok().and_then(Option::as_ref);
        streams.is_some_and(|streams| streams.iter().any(publishes))
    })?;
    Some(others.swap_remove(at))
}

/// Where to subscribe to a stream, best first.
pub(crate) fn upstreams(node: &Node, name: &StreamName) -> Vec<Upstream> {
    node.directory.upstreams(name)
}

/// The directory names another upstream than `present`, with a publisher newer than `epoch`: the stream has moved.
pub(crate) fn moved(node: &Node, name: &StreamName, present: &str, epoch: Option<Epoch>) -> bool {
    let best = node.directory.upstreams(name).into_iter().next();
    best.is_some_and(|best| best.grpc_url != present && best.epoch > epoch)
}
