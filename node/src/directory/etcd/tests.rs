//! The suite on real etcd servers, and what only etcd can do: restart, hang, compact, lose a lease or its quorum.
//!
//! Each test starts its own `etcd` (Debian's `etcd-server`; `HEADWATER_TEST_ETCD` names another) on free loopback ports.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, CompactionOptions};
use headwater_bench::ports;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::Node;
use crate::announce::{self, Announcement, Reading};
use crate::backoff::Backoff;
use crate::directory::EPOCHS_PER_CLAIM;
use crate::directory::Role;
use crate::directory::suite::{
    self, Cluster as _, claim, name, record, until, until_gone, until_owner,
};

mod secure;

/// The shortest lease that etcd grants is 2 s.
const TTL: Duration = Duration::from_secs(3);

/// An etcd server of one or more members; killed on drop.
struct Etcd {
    members: Vec<Member>,
    _data: TempDir,
}

struct Member {
    arguments: Vec<String>,
    url: String,
    child: Child,
}

impl Etcd {
    async fn start(count: usize) -> Self {
        let etcd = Self::spawn(count, "http", &[]);
        etcd.client().await;
        etcd
    }

    /// Members whose clients come by `scheme`, with further arguments; they need not be up yet.
    fn spawn(count: usize, scheme: &str, further: &[String]) -> Self {
        let data = tempfile::tempdir().expect("tempdir");
        let ports: Vec<u16> = (0..count * 2).map(|_| ports::free(1)).collect();
        let peer = |n: usize| format!("http://127.0.0.1:{}", ports[n * 2 + 1]);
        let cluster: Vec<_> = (0..count).map(|n| format!("m{n}={}", peer(n))).collect();
        let members = (0..count).map(|n| {
            let url = format!("{scheme}://127.0.0.1:{}", ports[n * 2]);
            let directory = data.path().join(format!("m{n}"));
            let mut arguments = vec![
                format!("--name=m{n}"),
                format!("--data-dir={}", directory.display()),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={}", peer(n)),
                format!("--initial-advertise-peer-urls={}", peer(n)),
                format!("--initial-cluster={}", cluster.join(",")),
                "--log-level=error".to_owned(),
            ];
            arguments.extend_from_slice(further);
            Member {
                child: spawn(&arguments),
                arguments,
                url,
            }
        });
        Self {
            members: members.collect(),
            _data: data,
        }
    }

    /// A client of the whole cluster that has had an answer.
    async fn client(&self) -> Client {
        let urls: Vec<_> = self.members.iter().map(|m| m.url.clone()).collect();
        let ready = async {
            let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(200));
            loop {
                if let Ok(mut client) = Client::connect(&urls, None).await
                    && client.get("ready", None).await.is_ok()
                {
                    return client;
                }
                tokio::time::sleep(backoff.wait()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ready)
            .await
            .expect("etcd comes up")
    }

    fn signal(&self, member: usize, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.members[member].child.id()).expect("a pid"));
        kill(pid, signal).expect("a signal to our own child");
        if signal == Signal::SIGSTOP {
            // Its threads stop one by one, and until then some may answer.
            let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED));
            assert!(
                matches!(stopped, Ok(WaitStatus::Stopped(..))),
                "{stopped:?}"
            );
        }
    }

    fn kill(&mut self, member: usize) {
        let child = &mut self.members[member].child;
        child.kill().expect("our own child");
        child.wait().expect("it ended");
    }

    /// Ends the only member, and starts it again once its data has been dealt with.
    async fn restart_around(&mut self, deal: impl FnOnce(&Path, &Path)) {
        self.kill(0);
        let data = self._data.path();
        deal(&data.join("m0"), &data.join("backup"));
        self.restart(0);
        self.client().await;
    }

    /// Makes a backup, at the cost of a restart.
    async fn back_up(&mut self) {
        self.restart_around(copy).await;
    }

    /// Puts the backup in place of all that came after it.
    async fn restore(&mut self) {
        self.restart_around(|data, backup| {
            std::fs::remove_dir_all(data).expect("its data");
            copy(backup, data);
        })
        .await;
    }

    fn restart(&mut self, member: usize) {
        let member = &mut self.members[member];
        member.child = spawn(&member.arguments);
    }

    fn port(&self) -> u16 {
        let port = self.members[0].url.rsplit(':').next().expect("a port");
        port.parse().expect("a number")
    }

    fn options(&self) -> Options {
        Options {
            endpoints: self.members.iter().map(|m| m.url.clone()).collect(),
            cluster: ClusterName::default(),
            user: None,
            tls: None,
            lease_ttl: TTL,
        }
    }

    fn directory(&self, id: &str) -> EtcdDirectory {
        start(self.options(), id)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

impl suite::Cluster for Etcd {
    fn node(&self, id: &str) -> Arc<dyn Directory> {
        Arc::new(self.directory(id))
    }
}

fn start(options: Options, id: &str) -> EtcdDirectory {
    let io = tokio::runtime::Handle::current();
    EtcdDirectory::start(options, id.parse().expect("valid"), Clock::system(), &io)
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn spawn(arguments: &[String]) -> Child {
    let program = std::env::var("HEADWATER_TEST_ETCD").unwrap_or_else(|_| "etcd".to_owned());
    Command::new(&program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} (Debian: etcd-server) does not start: {error}"))
}

/// Where nobody listens.
fn dead_url() -> String {
    format!("http://127.0.0.1:{}", ports::free(1))
}

#[tokio::test]
async fn the_suite_holds() {
    let etcd = Etcd::start(1).await;
    suite::claims_are_exclusive_and_epochs_only_grow(&etcd).await;
    suite::a_release_is_of_one_epoch(&etcd).await;
    suite::a_void_claim_is_taken_over_once(&etcd).await;
    suite::a_restarted_node_reclaims_and_its_earlier_run_loses(&etcd).await;
    suite::changes_wake_who_waits(&etcd).await;
    suite::nodes_come_change_and_go(&etcd).await;
    suite::concurrent_claims_have_one_winner(&etcd).await;
    suite::a_dead_node_leaves_nothing(&etcd).await;
}

#[tokio::test]
async fn clusters_of_different_names_do_not_see_each_other() {
    let etcd = Etcd::start(1).await;
    let (ours, other) = (
        etcd.node("a"),
        Options {
            cluster: "other".parse().expect("valid"),
            ..etcd.options()
        },
    );
    let other: Arc<dyn Directory> = Arc::new(start(other, "a"));
    claim(&ours, "live/x").await.expect("free");
    claim(&other, "live/x").await.expect("free there too");
    let epoch = claim(&other, "live/y").await.expect("free");
    until_owner(&other, "live/y", "a", epoch).await;
    assert!(ours.upstreams(&name("live/y")).is_empty());
}

#[tokio::test]
async fn a_restart_of_etcd_costs_nothing() {
    let mut etcd = Etcd::start(1).await;
    let (a, b) = (etcd.node("a"), etcd.node("b"));
    a.announce(record("a", 0.0)).await.expect("announced");
    let epoch = claim(&a, "live/r").await.expect("free");
    until_owner(&b, "live/r", "a", epoch).await;

    etcd.kill(0);
    let refused = claim(&b, "live/new").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(b.synced(), "what is known stays known");
    assert_eq!(b.upstreams(&name("live/r")).len(), 1);

    etcd.restart(0);
    etcd.client().await;
    let new = claim_patiently(&b, "live/new").await;
    assert!(new > epoch);
    until_owner(&a, "live/new", "b", new).await;
    until_owner(&b, "live/r", "a", epoch).await;
    until(&b, "a is still announced", |d| {
        d.nodes().iter().any(|n| n.id.as_str() == "a")
    })
    .await;
}

#[tokio::test]
async fn a_hung_etcd_is_noticed_and_taken_up_again() {
    let etcd = Etcd::start(1).await;
    let (a, b) = (etcd.node("a"), etcd.node("b"));
    let epoch = claim(&a, "live/h").await.expect("free");
    until_owner(&b, "live/h", "a", epoch).await;

    etcd.signal(0, Signal::SIGSTOP);
    let refused = claim(&b, "live/new").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert_eq!(b.upstreams(&name("live/h")).len(), 1);

    etcd.signal(0, Signal::SIGCONT);
    let new = claim_patiently(&b, "live/new").await;
    until_owner(&a, "live/new", "b", new).await;
    // Its lease may have run out while etcd stood; then the record is put again, with the epoch it had.
    until_owner(&b, "live/h", "a", epoch).await;
}

#[tokio::test]
async fn dead_and_hung_endpoints_are_gone_around() {
    let etcd = Etcd::start(1).await;
    // Accepts connections into its backlog and never says a word, as a stopped member does.
    let hung = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent = format!("http://{}", hung.local_addr().expect("bound"));
    let mut options = etcd.options();
    options.endpoints.extend([silent, dead_url()]);
    let nodes: Vec<Arc<dyn Directory>> = (0..4)
        .map(|n| Arc::new(start(options.clone(), &format!("n{n}"))) as Arc<dyn Directory>)
        .collect();
    for (n, node) in nodes.iter().enumerate() {
        let stream = format!("live/{n}");
        let epoch = claim_patiently(node, &stream).await;
        for other in &nodes {
            until_owner(other, &stream, &format!("n{n}"), epoch).await;
        }
    }
}

#[tokio::test]
async fn a_stopped_leader_of_three_is_gone_around() {
    let etcd = Etcd::start(3).await;
    let nodes: Vec<_> = (0..3).map(|n| etcd.node(&format!("n{n}"))).collect();
    let epoch = claim_patiently(&nodes[0], "live/before").await;
    for node in &nodes {
        until_owner(node, "live/before", "n0", epoch).await;
    }
    let mut client = etcd.client().await;
    let status = client.status().await.expect("status");
    let leader = status.leader();
    let mut stopped = None;
    for (n, member) in etcd.members.iter().enumerate() {
        let mut one = Client::connect([&member.url], None).await.expect("client");
        let id = one
            .status()
            .await
            .expect("status")
            .header()
            .map(|h| h.member_id());
        if id == Some(leader) {
            stopped = Some(n);
        }
    }
    let stopped = stopped.expect("one of them leads");
    etcd.signal(stopped, Signal::SIGSTOP);
    let mut last = epoch;
    for (n, node) in nodes.iter().enumerate() {
        let stream = format!("live/after{n}");
        last = claim_patiently(node, &stream).await;
        assert!(last > epoch);
        for other in &nodes {
            until_owner(other, &stream, &format!("n{n}"), last).await;
        }
    }
    until_owner(&nodes[2], "live/before", "n0", epoch).await;
    etcd.signal(stopped, Signal::SIGCONT);
    assert!(claim_patiently(&nodes[0], "live/end").await > last);
}

#[tokio::test]
async fn without_a_quorum_what_is_known_stays_and_nothing_new_is_granted() {
    let mut etcd = Etcd::start(3).await;
    let (a, b) = (etcd.node("a"), etcd.node("b"));
    let epoch = claim_patiently(&a, "live/q").await;
    until_owner(&b, "live/q", "a", epoch).await;
    etcd.kill(0);
    etcd.signal(1, Signal::SIGSTOP);
    let refused = claim(&b, "live/new").await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(a.owns(&name("live/q"), epoch), "nobody can have claimed it");
    assert_eq!(b.upstreams(&name("live/q")).len(), 1);

    etcd.signal(1, Signal::SIGCONT);
    let new = claim_patiently(&b, "live/new").await;
    assert!(new > epoch);
    until_owner(&a, "live/new", "b", new).await;
    until_owner(&b, "live/q", "a", epoch).await;
}

#[tokio::test]
async fn a_lost_lease_is_replaced_and_its_records_put_again() {
    let etcd = Etcd::start(1).await;
    let (a, b) = (etcd.directory("a"), etcd.node("b"));
    let a = Arc::new(a);
    let seen: Arc<dyn Directory> = a.clone();
    a.announce(record("a", 0.0)).await.expect("announced");
    let kept = claim(&seen, "live/kept").await.expect("free");
    let given_up = claim(&seen, "live/given-up").await.expect("free");
    a.release(name("live/given-up"), given_up)
        .await
        .expect("released");
    until_owner(&b, "live/kept", "a", kept).await;
    until_gone(&b, "live/given-up").await;

    let client = etcd.client().await;
    let lease = a.shared.lease.borrow().expect("a lease");
    let mut gone = b.changes();
    client.lease_client().revoke(lease).await.expect("revoked");
    gone.changed().await.expect("lives");
    until_owner(&b, "live/kept", "a", kept).await;
    until(&b, "a is announced again", |d| {
        d.nodes() == [record("a", 0.0)]
    })
    .await;
    assert_ne!(a.shared.lease.borrow().expect("a lease"), lease);
    until_gone(&b, "live/given-up").await;
}

/// Carries connections to `port` of this machine, and what goes over them late by what `late` says, each way; returns its own URL.
async fn slow_way(port: u16, late: watch::Receiver<Duration>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let carry = |mut from: tokio::net::tcp::OwnedReadHalf,
                 mut to: tokio::net::tcp::OwnedWriteHalf,
                 late: watch::Receiver<Duration>| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (sender, mut queue) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some((due, bytes)) = queue.recv().await {
                tokio::time::sleep_until(due).await;
                let bytes: Vec<u8> = bytes;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = tokio::time::Instant::from_std(Clock::system().now()) + *late.borrow();
            if sender.send((due, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    };
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else {
                continue;
            };
            let (near, far) = (near.into_split(), far.into_split());
            tokio::spawn(carry(near.0, far.1, late.clone()));
            tokio::spawn(carry(far.0, near.1, late.clone()));
        }
    });
    url
}

#[tokio::test]
async fn the_streams_of_a_large_origin_are_put_again_within_a_lease_on_a_slow_etcd() {
    const STREAMS: usize = 300;
    let etcd = Etcd::start(1).await;
    let mut options = etcd.options();
    let (_late, late) = watch::channel(Duration::from_millis(20));
    options.endpoints = vec![slow_way(etcd.port(), late).await];
    let (a, b) = (Arc::new(start(options, "a")), etcd.node("b"));
    let names = (0..STREAMS).map(|n| name(&format!("live/{n}")));
    let claims = names.map(|name| a.claim(name, "http://a:1".to_owned(), None));
    for claimed in futures_util::future::join_all(claims).await {
        claimed.expect("free");
    }
    let streams = async |count: usize| {
        until(&b, "all streams stand", |d| d.streams().len() == count).await;
    };
    streams(STREAMS).await;
    let lease = a.shared.lease.borrow().expect("a lease");
    let client = etcd.client().await;
    client.lease_client().revoke(lease).await.expect("revoked");
    streams(0).await;
    // Two round trips each, one by one, are eight times as long.
    let since = Clock::system().now();
    streams(STREAMS).await;
    let took = Clock::system().now() - since;
    assert!(took < TTL + lease::RETURN_SPREAD, "{took:?}");
}

#[tokio::test]
async fn a_drain_does_not_wait_for_news_that_a_slow_etcd_still_has_to_be_told() {
    let etcd = Etcd::start(1).await;
    let (slow, late) = watch::channel(Duration::ZERO);
    let mut options = etcd.options();
    options.endpoints = vec![slow_way(etcd.port(), late).await];
    options.lease_ttl = Duration::from_secs(20);
    let (a, b) = (Arc::new(start(options, "a")), etcd.node("b"));
    let shutdown = CancellationToken::new();
    let node = Node {
        id: "a".parse().expect("valid"),
        clock: Clock::system(),
        directory: a,
        io: tokio::runtime::Handle::current(),
        shutdown: shutdown.clone(),
    };
    let announcement = Announcement {
        role: Role::Edge,
        grpc_url: String::new(),
        public_url: None,
    };
    let (load, reading) = watch::channel(0.0);
    let told = announce::spawn(&node, announcement, move || {
        let reading = Reading {
            load: *reading.borrow(),
            ..Reading::default()
        };
        std::future::ready(reading)
    });
    until(&b, "it is announced", |d| d.nodes().len() == 1).await;
    // An answer takes longer than it is waited for, so that each call is tried again.
    slow.send_replace(calls::CALL_DEADLINE * 3 / 5);
    load.send_replace(0.5);
    until(&b, "its load is told", |d| d.nodes()[0].load > 0.4).await;
    let mut client = etcd.client().await;
    let mut puts = async || {
        let record = client.get("/headwater/default/nodes/a", None).await;
        record.expect("an answer").kvs()[0].version()
    };
    let before = puts().await;
    shutdown.cancel();
    until(&b, "that it drains is told", |d| d.nodes()[0].draining).await;
    assert_eq!(puts().await, before + 1, "the very next attempt says so");
    told.abort();
}

#[tokio::test]
async fn a_claim_that_nobody_waited_for_leaves_no_record() {
    let etcd = Etcd::start(1).await;
    let (a, b) = (Arc::new(etcd.directory("a")), etcd.node("b"));
    let seen: Arc<dyn Directory> = a.clone();
    claim(&seen, "live/warm").await.expect("free");
    let mut dropped = Vec::new();
    for n in 0..30u32 {
        let stream = format!("live/{n}");
        let patience = Duration::from_micros(200) * n;
        if tokio::time::timeout(patience, claim(&seen, &stream))
            .await
            .is_err()
        {
            dropped.push(stream);
        }
    }
    assert!(!dropped.is_empty());
    tokio::time::sleep(Duration::from_millis(500)).await;
    for stream in &dropped {
        until_gone(&b, stream).await;
        claim(&b, stream).await.expect("nobody holds it");
    }
}

#[tokio::test]
async fn what_an_unanswered_claim_wrote_goes_with_the_claim_before_it() {
    let etcd = Etcd::start(1).await;
    let (a, b) = (Arc::new(etcd.directory("a")), etcd.node("b"));
    let seen: Arc<dyn Directory> = a.clone();
    let epoch = claim(&seen, "live/d").await.expect("free");
    let mut client = etcd.client().await;
    let run = a.incarnation().0;
    let record = format!(r#"{{"origin":"a","incarnation":{run},"grpc_url":"http://a:1"}}"#);
    let written = client
        .put("/headwater/default/streams/live/d", record, None)
        .await
        .expect("put");
    let revision = written.header().expect("header").revision();
    let newer = records::epoch_of(revision);
    drop(claims::InDoubt::begin(&a.shared, &name("live/d")));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The stream lives on under its old claim and must be found.
    until_owner(&b, "live/d", "a", newer).await;
    a.release(name("live/d"), epoch).await.expect("released");
    until_gone(&b, "live/d").await;
}

#[tokio::test]
async fn a_record_that_somebody_deleted_comes_back_and_a_taken_one_does_not() {
    let etcd = Etcd::start(1).await;
    let (a, b) = (etcd.node("a"), etcd.node("b"));
    let epoch = claim(&a, "live/k").await.expect("free");
    until_owner(&b, "live/k", "a", epoch).await;
    let mut client = etcd.client().await;
    let key = "/headwater/default/streams/live/k";
    let mut changes = b.changes();
    client.delete(key, None).await.expect("deleted");
    changes.changed().await.expect("lives");
    until_owner(&b, "live/k", "a", epoch).await;

    let stolen = r#"{"origin":"thief","grpc_url":"http://thief:1"}"#;
    client.put(key, stolen, None).await.expect("put");
    until(&a, "it is the thief's", |d| {
        d.streams()
            .iter()
            .any(|record| record.origin.as_str() == "thief")
    })
    .await;
    client.delete(key, None).await.expect("deleted");
    until_gone(&a, "live/k").await;
    let again = claim(&b, "live/k").await.expect("nobody holds it");
    assert!(again > epoch);
}

#[tokio::test]
async fn a_watch_behind_a_compaction_lists_again() {
    let etcd = Etcd::start(1).await;
    let a = etcd.node("a");
    let b = etcd.directory("b");
    let first = claim(&a, "live/1").await.expect("free");
    let b = Arc::new(b);
    let seen: Arc<dyn Directory> = b.clone();
    until_owner(&seen, "live/1", "a", first).await;

    // The watch loop is put to sleep over writes that are compacted away, as a long partition would.
    etcd.signal(0, Signal::SIGSTOP);
    for task in &b.tasks {
        task.abort();
    }
    etcd.signal(0, Signal::SIGCONT);
    let second = claim_patiently(&a, "live/2").await;
    a.release(name("live/1"), first).await.expect("released");
    let mut client = etcd.client().await;
    let revision = client
        .get("x", None)
        .await
        .expect("answer")
        .header()
        .expect("header")
        .revision();
    let physical = CompactionOptions::new().with_physical();
    client
        .compact(revision, Some(physical))
        .await
        .expect("compacted");
    assert_eq!(
        seen.upstreams(&name("live/1")).len(),
        1,
        "it has not seen the release"
    );

    let behind = i64::try_from(first.0 / EPOCHS_PER_CLAIM).expect("a revision");
    let shared = Arc::clone(&b.shared);
    let seen_then = watcher::Seen {
        revision: behind,
        newest: None,
    };
    let resumed = tokio::spawn(watcher::run_from(shared, Some(seen_then)));
    until_owner(&seen, "live/2", "a", second).await;
    until_gone(&seen, "live/1").await;
    resumed.abort();
}

#[tokio::test]
async fn an_etcd_that_lost_its_data_is_filled_again() {
    let mut etcd = Etcd::start(1).await;
    let (a, b) = (etcd.node("a"), etcd.node("b"));
    a.announce(record("a", 0.0)).await.expect("announced");
    let mut epoch = claim(&a, "live/w").await.expect("free");
    for _ in 0..20 {
        epoch = claim(&a, "live/w").await.expect("its own");
    }
    until_owner(&b, "live/w", "a", epoch).await;
    etcd.kill(0);
    let data = etcd._data.path().join("m0");
    std::fs::remove_dir_all(&data).expect("its data");
    etcd.restart(0);
    etcd.client().await;
    // A node that never saw the old data finds the record, with the epoch it had.
    let c = etcd.node("c");
    until_owner(&c, "live/w", "a", epoch).await;
    until_owner(&b, "live/w", "a", epoch).await;
    let next = claim_patiently(&a, "live/w").await;
    assert!(next > epoch, "epochs grow although revisions began anew");
    // Nor does whoever knew an epoch forget it with the record.
    let other = claim_patiently(&b, "live/other").await;
    assert!(other > epoch, "the name may have been given at any epoch");
}

#[tokio::test]
async fn an_etcd_restored_from_a_backup_is_told_what_has_changed_since() {
    let mut etcd = Etcd::start(1).await;
    // The leases of before outlive it, so that nothing is put again for another reason.
    let options = Options {
        lease_ttl: Duration::from_secs(30),
        ..etcd.options()
    };
    let view = |id: &str| -> Arc<dyn Directory> { Arc::new(start(options.clone(), id)) };
    let (a, b) = (view("a"), view("b"));
    b.announce(record("b", 0.1)).await.expect("announced");
    let before = claim(&a, "live/moved").await.expect("free");
    let over = claim(&a, "live/over").await.expect("free");
    let kept = claim(&a, "live/kept").await.expect("free");
    until_owner(&b, "live/moved", "a", before).await;
    etcd.back_up().await;

    let moved = async {
        loop {
            let claimed = b.claim(name("live/moved"), "http://b:1".to_owned(), Some(before));
            match claimed.await {
                Ok(epoch) => return epoch,
                Err(Error::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let moved = moved.await;
    a.release(name("live/over"), over).await.expect("released");
    b.announce(record("b", 0.7)).await.expect("announced");
    until_owner(&a, "live/moved", "b", moved).await;
    assert!(!a.owns(&name("live/moved"), before));
    etcd.restore().await;

    for known in [view("c"), a.clone(), b.clone()] {
        until_owner(&known, "live/moved", "b", moved).await;
        until_owner(&known, "live/kept", "a", kept).await;
        until_gone(&known, "live/over").await;
        until(&known, "b says what it said last", |d| {
            d.nodes() == [record("b", 0.7)]
        })
        .await;
    }
}

#[tokio::test]
async fn a_watch_of_an_etcd_that_has_another_history_by_now_lists_again() {
    let mut etcd = Etcd::start(1).await;
    etcd.back_up().await;
    let b = Arc::new(etcd.directory("b"));
    let seen: Arc<dyn Directory> = b.clone();
    let mut client = etcd.client().await;
    let ghost = "/headwater/default/streams/live/ghost";
    let value = r#"{"origin":"x","grpc_url":"http://x:1"}"#;
    client.put(ghost, value, None).await.expect("put");
    until(&seen, "it sees the ghost", |d| d.streams().len() == 1).await;
    let read = client.get(ghost, None).await.expect("an answer");
    let newest = read.kvs()[0].clone();
    // It watches again when the restored etcd has come farther than it has seen.
    for task in &b.tasks {
        task.abort();
    }
    etcd.restore().await;
    let mut client = etcd.client().await;
    loop {
        let put = client.put("elsewhere", "", None).await.expect("put");
        if put.header().expect("header").revision() > newest.mod_revision() + 5 {
            break;
        }
    }
    let behind = watcher::Seen {
        revision: newest.mod_revision(),
        newest: Some(newest),
    };
    let resumed = tokio::spawn(watcher::run_from(Arc::clone(&b.shared), Some(behind)));
    until_gone(&seen, "live/ghost").await;
    resumed.abort();
}

#[tokio::test]
async fn without_etcd_nothing_blocks_and_nothing_is_synced() {
    let options = Options {
        endpoints: vec![dead_url()],
        cluster: ClusterName::default(),
        user: None,
        tls: None,
        lease_ttl: TTL,
    };
    let alone: Arc<dyn Directory> = Arc::new(start(options, "a"));
    assert!(!alone.synced());
    assert!(matches!(
        claim(&alone, "live/x").await,
        Err(Error::Unavailable(_))
    ));
    assert!(matches!(
        alone.announce(record("a", 0.0)).await,
        Err(Error::Unavailable(_))
    ));
    tokio::time::timeout(Duration::from_secs(2), alone.withdraw())
        .await
        .expect("bounded");
}

#[test]
fn options_do_not_show_the_password() {
    let options = Options {
        endpoints: vec!["http://e:2379".into()],
        cluster: ClusterName::default(),
        user: Some(("headwater".into(), "s3cret".into())),
        tls: None,
        lease_ttl: TTL,
    };
    assert!(!format!("{options:?}").contains("s3cret"));
}

/// Claims as a publisher that tries again would.
async fn claim_patiently(directory: &Arc<dyn Directory>, stream: &str) -> Epoch {
    let tried = async {
        loop {
            match claim(directory, stream).await {
                Ok(epoch) => return epoch,
                Err(Error::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(40), tried)
        .await
        .expect("etcd is taken up again")
}
