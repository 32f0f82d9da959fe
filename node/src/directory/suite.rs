//! What every writable directory promises, as tests that run on each of them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use headwater_media::id::{Epoch, StreamName};

use super::{Directory, Error, NodeRecord, Role};

/// A directory under test, seen by as many nodes as a test wants.
pub(crate) trait Cluster {
    /// The view of one more node. Dropping it without a withdrawal is the node's death.
    fn node(&self, id: &str) -> Arc<dyn Directory>;
}

/// Longer than any lease of the tests and a few failed calls.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn name(text: &str) -> StreamName {
    text.parse().expect("a stream name")
}

pub(crate) fn record(id: &str, load: f64) -> NodeRecord {
    NodeRecord {
        id: id.parse().expect("a node id"),
        role: Role::Origin,
        grpc_url: format!("http://{id}:7070"),
        public_url: None,
        load,
        draining: false,
        streams: Vec::new(),
        version: "1".to_owned(),
    }
}

/// Waits, woken by changes, until the directory's copy shows it.
pub(crate) async fn until(
    directory: &Arc<dyn Directory>,
    what: &str,
    shows: impl Fn(&dyn Directory) -> bool,
) {
    let mut changes = directory.changes();
    let shown = async {
        while !shows(directory.as_ref()) {
            changes.changed().await.expect("the directory lives");
        }
    };
    tokio::time::timeout(PATIENCE, shown)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}; {:?}", directory.streams()));
}

pub(crate) async fn claim(directory: &Arc<dyn Directory>, stream: &str) -> Result<Epoch, Error> {
    directory
        .claim(name(stream), "http://here:7070".to_owned(), None)
        .await
}

async fn take_over(
    directory: &Arc<dyn Directory>,
    stream: &str,
    over: Epoch,
) -> Result<Epoch, Error> {
    let url = "http://there:7070".to_owned();
    directory.claim(name(stream), url, Some(over)).await
}

fn owner(directory: &dyn Directory, stream: &str) -> Option<(String, Epoch)> {
    let wanted = name(stream);
    directory
        .streams()
        .into_iter()
        .find(|record| record.name == wanted)
        .map(|record| (record.origin.to_string(), record.epoch))
}

pub(crate) async fn until_owner(
    directory: &Arc<dyn Directory>,
    stream: &str,
    id: &str,
    epoch: Epoch,
) {
    let expected = Some((id.to_owned(), epoch));
    until(directory, &format!("{stream} is {id}'s at {epoch}"), |d| {
        owner(d, stream) == expected
    })
    .await;
}

pub(crate) async fn until_gone(directory: &Arc<dyn Directory>, stream: &str) {
    until(directory, &format!("{stream} is gone"), |d| {
        d.synced() && d.upstreams(&name(stream)).is_empty()
    })
    .await;
}

pub(crate) async fn claims_are_exclusive_and_epochs_only_grow(cluster: &impl Cluster) {
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let first = claim(&a, "live/x").await.expect("free");
    let again = claim(&a, "live/x").await.expect("its own");
    assert!(again > first);
    match claim(&b, "live/x").await {
        Err(Error::Held(held)) => {
            assert_eq!((held.origin.as_str(), held.epoch), ("a", again));
        }
        other => panic!("must be held: {other:?}"),
    }
    a.release(name("live/x"), again).await.expect("released");
    let other = claim(&b, "live/x").await.expect("free again");
    assert!(other > again, "epochs grow over releases and owners");
    until_owner(&a, "live/x", "b", other).await;
    let upstreams = a.upstreams(&name("live/x"));
    assert_eq!(upstreams.len(), 1);
    assert_eq!(upstreams[0].epoch, Some(other));
    assert_eq!(upstreams[0].grpc_url, "http://here:7070");
    b.withdraw().await;
    a.withdraw().await;
}

pub(crate) async fn a_release_is_of_one_epoch(cluster: &impl Cluster) {
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let first = claim(&a, "live/y").await.expect("free");
    let second = claim(&a, "live/y").await.expect("its own");
    a.release(name("live/y"), first)
        .await
        .expect("nothing to do");
    b.release(name("live/y"), second)
        .await
        .expect("nothing to do");
    assert!(matches!(claim(&b, "live/y").await, Err(Error::Held(_))));
    a.release(name("live/y"), second).await.expect("released");
    until_gone(&b, "live/y").await;
    a.withdraw().await;
    b.withdraw().await;
}

pub(crate) async fn a_void_claim_is_taken_over_once(cluster: &impl Cluster) {
    let (a, b, c) = (cluster.node("a"), cluster.node("b"), cluster.node("c"));
    let first = claim(&a, "live/v").await.expect("free");
    let taken = take_over(&b, "live/v", first).await.expect("void");
    assert!(taken > first);
    match take_over(&c, "live/v", first).await {
        Err(Error::Held(held)) => {
            assert_eq!((held.origin.as_str(), held.epoch), ("b", taken));
            assert_eq!(held.incarnation, b.incarnation());
        }
        other => panic!("it was taken over since: {other:?}"),
    }
    until(&a, "a has lost it", |a| !a.owns(&name("live/v"), first)).await;
    assert!(b.owns(&name("live/v"), taken));
    a.release(name("live/v"), first)
        .await
        .expect("nothing to do");
    assert!(matches!(claim(&a, "live/v").await, Err(Error::Held(_))));
    for node in [a, b, c] {
        node.withdraw().await;
    }
}

pub(crate) async fn a_restarted_node_reclaims_and_its_earlier_run_loses(cluster: &impl Cluster) {
    let (old, new) = (cluster.node("same"), cluster.node("same"));
    let first = claim(&old, "live/i").await.expect("free");
    let second = claim(&new, "live/i").await.expect("at once");
    assert!(second > first);
    until(&old, "the earlier run lost it", |old| {
        !old.owns(&name("live/i"), first)
    })
    .await;
    old.release(name("live/i"), first)
        .await
        .expect("nothing to do");
    assert!(new.owns(&name("live/i"), second));
    new.withdraw().await;
    old.withdraw().await;
}

pub(crate) async fn changes_wake_who_waits(cluster: &impl Cluster) {
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let waiting = async {
        until(&b, "live/z appears", |d| {
            !d.upstreams(&name("live/z")).is_empty()
        })
        .await;
    };
    let (claimed, ()) = tokio::join!(claim(&a, "live/z"), waiting);
    a.release(name("live/z"), claimed.expect("free"))
        .await
        .expect("released");
    until_gone(&b, "live/z").await;
    a.withdraw().await;
    b.withdraw().await;
}

pub(crate) async fn nodes_come_change_and_go(cluster: &impl Cluster) {
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    a.announce(record("a", 0.25)).await.expect("announced");
    until(&b, "a is there", |d| d.nodes() == [record("a", 0.25)]).await;
    a.announce(record("a", 0.5)).await.expect("announced");
    until(&b, "a has changed", |d| d.nodes() == [record("a", 0.5)]).await;
    let epoch = claim(&a, "live/n").await.expect("free");
    until_owner(&b, "live/n", "a", epoch).await;
    a.withdraw().await;
    until(&b, "a is gone with its streams", |d| {
        d.nodes().is_empty() && d.streams().is_empty()
    })
    .await;
    b.withdraw().await;
}

pub(crate) async fn concurrent_claims_have_one_winner(cluster: &impl Cluster) {
    let nodes: Vec<_> = (0..4).map(|n| cluster.node(&format!("n{n}"))).collect();
    let claims = join_all(nodes.iter().map(|node| claim(node, "live/c"))).await;
    let won: Vec<_> = claims.iter().flatten().collect();
    assert_eq!(won.len(), 1, "{claims:?}");
    for node in &nodes {
        node.withdraw().await;
    }
}

pub(crate) async fn a_dead_node_leaves_nothing(cluster: &impl Cluster) {
    let (a, b) = (cluster.node("dead"), cluster.node("b"));
    a.announce(record("dead", 0.0)).await.expect("announced");
    let epoch = claim(&a, "live/d").await.expect("free");
    until_owner(&b, "live/d", "dead", epoch).await;
    drop(a);
    until(&b, "the dead node is forgotten", |d| {
        d.nodes().is_empty() && d.streams().is_empty()
    })
    .await;
    let taken = claim(&b, "live/d").await.expect("free");
    assert!(taken > epoch);
    b.withdraw().await;
}
