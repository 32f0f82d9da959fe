//! An origin and subscriptions to it in this process, over real gRPC on loopback: attach, resume, slow neighbours, hold, takeover, end.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Context, Handler};
use bytes::Bytes;
use headwater_bench::programme::Layout;
use headwater_edge::replica::{Feed, UpstreamState};
use headwater_edge::subscriber;
use headwater_media::codec::h264;
use headwater_media::id::{NodeId, StreamName, TrackId};
use headwater_media::replication::Want;
use headwater_media::time::MediaTime;
use headwater_media::track::Configuration;
use headwater_media::unit::{AccessUnit, IngestUnit, MediaKind, SourceTrack};
use headwater_node::Node;
use headwater_node::actor::Sender;
use headwater_node::clock::Clock;
use headwater_node::directory::Directory;
use headwater_node::directory::fixed::FixedDirectory;
use headwater_node::directory::memory::MemoryDirectory;
use headwater_origin::Origin;
use headwater_origin::registry::{Publication, PublishError, PublishRequest, Revoked};
use headwater_proto::replication as wire;
use headwater_proto::replication::replication_client::ReplicationClient;
use headwater_proto::replication::{to_edge, to_origin};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::harness::Stamped;

/// x264, Main profile, 1280x720, no B-frames.
const AVCC: &[u8] = &[
    0x01, 0x4d, 0x40, 0x1f, 0xff, 0xe1, 0x00, 0x17, 0x67, 0x4d, 0x40, 0x1f, 0xda, 0x01, 0x40, 0x16,
    0xec, 0x04, 0x40, 0x00, 0x00, 0x03, 0x00, 0x40, 0x00, 0x00, 0x0f, 0x03, 0xc6, 0x0c, 0xa8, 0x01,
    0x00, 0x04, 0x68, 0xef, 0x3c, 0x80,
];

const GOP: u64 = 30;

/// Longer than anything here takes, but it must end.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(async {
        tokio::time::timeout(3 * PATIENCE, test)
            .await
            .expect("the test ends in time");
    });
}

fn node(id: &str, directory: Arc<dyn Directory>, io: &tokio::runtime::Runtime) -> Node {
    Node {
        id: id.parse().expect("an id"),
        clock: Clock::system(),
        directory,
        io: io.handle().clone(),
        shutdown: CancellationToken::new(),
    }
}

fn name() -> StreamName {
    "live/demo".parse().expect("a name")
}

pub(crate) struct Cluster {
    // Dropped last: it carries the others' tasks.
    io: Option<tokio::runtime::Runtime>,
    origin: Option<Origin>,
    pub(crate) edge: Node,
    /// Further nodes get their views of it.
    directory: MemoryDirectory,
}

impl Cluster {
    pub(crate) async fn start(settings: impl FnOnce(&mut headwater_origin::Config)) -> Self {
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let origin_id: NodeId = "o1".parse().expect("an id");
        let directory = MemoryDirectory::new(origin_id);
        let view = directory.view("e1".parse().expect("an id"));
        let own = directory.view("o1".parse().expect("an id"));
        let origin = start(node("o1", Arc::new(own), &io), settings).await;
        Self {
            origin: Some(origin),
            edge: node("e1", Arc::new(view), &io),
            io: Some(io),
            directory,
        }
    }

    /// Another origin of the cluster.
    pub(crate) async fn another(&self, id: &str) -> Origin {
        let view = self.directory.view(id.parse().expect("an id"));
        let io = self.io.as_ref().expect("it runs");
        start(node(id, Arc::new(view), io), |_| {}).await
    }

    pub(crate) fn origin(&self) -> &Origin {
        self.origin.as_ref().expect("it runs")
    }

    async fn try_publish(&self) -> Result<Publication, PublishError> {
        try_publish(self.origin()).await
    }

    pub(crate) async fn publish(&self) -> Publisher {
        Publisher::new(self.try_publish().await.expect("accepted"))
    }

    pub(crate) fn subscribe(&self, node: &Node) -> Subscription {
        let (feed, inbox) = mpsc::unbounded_channel();
        let collector = Collector { feed }.start();
        let wants = Want {
            tracks: vec![TrackId::SOURCE_VIDEO],
            adaptive: false,
        };
        let (wants, receiver) = watch::channel(wants);
        Subscription {
            _handle: subscriber::spawn(
                node,
                name(),
                &receiver,
                Sender::new(&collector),
                subscriber::Options::default(),
            ),
            wants,
            inbox,
            waiting: VecDeque::new(),
        }
    }

    pub(crate) async fn stop(mut self) {
        self.edge.shutdown.cancel();
        if let Some(origin) = self.origin.take() {
            origin.stop().await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A runtime that is just dropped would wait, which must not be within another.
        if let Some(io) = self.io.take() {
            io.shutdown_background();
        }
    }
}

async fn start(node: Node, settings: impl FnOnce(&mut headwater_origin::Config)) -> Origin {
    let mut config = headwater_origin::Config::default();
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    config.origin.grpc = any;
    config.rtmp.listen = any;
    settings(&mut config);
    let origin = headwater_origin::start(config, node).await;
    origin.expect("an origin")
}

pub(crate) async fn try_publish(origin: &Origin) -> Result<Publication, PublishError> {
    let request = PublishRequest {
        name: name(),
        peer: "127.0.0.1:1".parse().expect("an address"),
        encoder: Some("a test".to_owned()),
    };
    origin.registry().publish(request).await
}

pub(crate) struct Publisher {
    pub(crate) publication: Publication,
    clock: Clock,
    next: u64,
}

impl Publisher {
    /// One that was accepted and has said what it sends.
    pub(crate) fn new(publication: Publication) -> Self {
        let avcc = Bytes::from_static(AVCC);
        let video = h264::Configuration::parse(avcc).expect("valid");
        publication.configure(SourceTrack::DEFAULT, Configuration::H264(video));
        Self {
            publication,
            clock: Clock::system(),
            next: 0,
        }
    }

    /// Sends pictures of `bytes` each, as fast as the stream takes them.
    pub(crate) async fn send(&mut self, frames: u64, bytes: usize) {
        for _ in 0..frames {
            let dts = MediaTime::from_millis(i64::try_from(self.next * 33).expect("small"));
            let keyframe = self.next.is_multiple_of(GOP);
            let mut payload = vec![0; bytes.max(5)];
            let length = u32::try_from(payload.len() - 4).expect("small");
            payload[..4].copy_from_slice(&length.to_be_bytes());
            payload[4] = if keyframe { 0x65 } else { 0x41 };
            self.publication.deliver(IngestUnit {
                kind: MediaKind::Video,
                track: SourceTrack::DEFAULT,
                dts,
                pts: dts,
                keyframe,
                discardable: false,
                payload: payload.into(),
                ingest_time: self.clock.wall(),
            });
            self.next += 1;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Collector {
    feed: mpsc::UnboundedSender<Feed>,
}

impl Actor for Collector {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<Feed> for Collector {
    type Result = ();

    fn handle(&mut self, message: Feed, _: &mut Self::Context) {
        let _ = self.feed.send(message);
    }
}

pub(crate) struct Subscription {
    _handle: subscriber::Handle,
    pub(crate) wants: watch::Sender<Want>,
    inbox: mpsc::UnboundedReceiver<Feed>,
    /// Units that came while something else was waited for.
    waiting: VecDeque<Arc<AccessUnit>>,
}

impl Subscription {
    pub(crate) async fn feed(&mut self) -> Feed {
        tokio::time::timeout(PATIENCE, self.inbox.recv())
            .await
            .expect("something comes")
            .expect("the subscription lives")
    }

    pub(crate) async fn unit(&mut self) -> Arc<AccessUnit> {
        if let Some(unit) = self.waiting.pop_front() {
            return unit;
        }
        loop {
            match self.feed().await {
                Feed::Unit { unit, .. } => return unit,
                Feed::Gap { lost, .. } => panic!("{lost} units are lost"),
                Feed::Info(_) | Feed::Upstream(_) => {}
            }
        }
    }

    pub(crate) async fn state(&mut self, wanted: UpstreamState) {
        loop {
            match self.feed().await {
                Feed::Upstream(state) if state == wanted => return,
                Feed::Unit { unit, .. } => self.waiting.push_back(unit),
                Feed::Gap { .. } | Feed::Info(_) | Feed::Upstream(_) => {}
            }
        }
    }

    /// Takes units up to `last`, which must follow each other from `first`.
    async fn expect(&mut self, first: u64, last: u64) {
        for sequence in first..=last {
            assert_eq!(self.unit().await.sequence, sequence);
        }
    }
}

/// A way to the origin that can be cut.
struct Relay {
    address: SocketAddr,
    cut: watch::Sender<u64>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (cut, cuts) = watch::channel(0);
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let mut cuts = cuts.clone();
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await.expect("the origin");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut }
    }
}

#[test]
fn an_edge_gets_the_gop_and_resumes_without_a_gap_after_a_cut() {
    run(async {
        let cluster = Cluster::start(|_| {}).await;
        let relay = Relay::start(cluster.origin().grpc_addr()).await;
        let fixed = FixedDirectory::new(vec![format!("http://{}", relay.address)]);
        let edge = Node {
            directory: Arc::new(fixed),
            ..cluster.edge.clone()
        };
        let mut publisher = cluster.publish().await;
        publisher.send(75, 2000).await;
        let mut subscription = cluster.subscribe(&edge);
        let first = subscription.unit().await;
        assert!(first.keyframe);
        assert_eq!(first.sequence, 60, "the newest keyframe");
        assert!(first.ingest_time.unix_micros() > 0, "on this node's clock");
        publisher.send(10, 2000).await;
        subscription.expect(61, 84).await;

        for round in 0..3 {
            relay.cut.send_modify(|cuts| *cuts += 1);
            publisher.send(40, 2000).await;
            subscription.state(UpstreamState::Connected).await;
            let next = 85 + round * 40;
            subscription.expect(next, next + 39).await;
        }
        edge.shutdown.cancel();
        cluster.stop().await;
    });
}

#[test]
fn renditions_of_a_publisher_reach_the_edge_with_keyframes_at_the_same_times() {
    run(async {
        let cluster = Cluster::start(|_| {}).await;
        let rtmp = cluster.origin().rtmp_addr().port();
        let publisher = tokio::task::spawn_blocking(move || {
            Stamped::ladder(rtmp, "live", "demo", Layout::OneTrack)
        });
        let publisher = publisher.await.expect("it publishes");
        let renditions = [0, 16, 17].map(TrackId);
        let edge = cluster.edge.clone();
        let mut subscription = cluster.subscribe(&edge);
        subscription
            .wants
            .send_modify(|wants| wants.tracks = renditions.to_vec());
        let mut keyframes: HashMap<TrackId, Vec<MediaTime>> = HashMap::new();
        let mut next: HashMap<TrackId, u64> = HashMap::new();
        while renditions
            .iter()
            .any(|track| keyframes.get(track).is_none_or(|k| k.len() < 3))
        {
            let unit = subscription.unit().await;
            let next = next.entry(unit.track).or_insert(unit.sequence);
            assert_eq!(unit.sequence, *next, "{}", unit.track);
            *next += 1;
            if unit.keyframe {
                keyframes.entry(unit.track).or_default().push(unit.dts);
            }
        }
        let source = &keyframes[&renditions[0]];
        for track in &renditions[1..] {
            let times = &keyframes[track];
            let common = source.iter().filter(|time| times.contains(time)).count();
            assert!(common >= 2, "{track}: {times:?}, the source {source:?}");
        }
        tokio::task::spawn_blocking(|| drop(publisher))
            .await
            .expect("it ends");
        edge.shutdown.cancel();
        cluster.stop().await;
    });
}

#[test]
fn the_origin_knows_who_has_viewers_for_renditions() {
    run(async {
        let cluster = Cluster::start(|_| {}).await;
        let mut publisher = cluster.publish().await;
        let edge = cluster.edge.clone();
        let subscription = cluster.subscribe(&edge);
        let _other = cluster.subscribe(&edge);
        let report = cluster.origin().report();
        let mut reaches = async |adaptive: u64| {
            let reached = async {
                loop {
                    // Who is gone is noticed with the next unit.
                    publisher.send(1, 1000).await;
                    let streams = report.streams().await;
                    if streams[0]["adaptive_subscribers"] == adaptive {
                        return;
                    }
                }
            };
            tokio::time::timeout(PATIENCE, reached)
                .await
                .expect("the origin notices");
        };
        let tell = |adaptive| subscription.wants.send_modify(|w| w.adaptive = adaptive);
        reaches(0).await;
        tell(true);
        reaches(1).await;
        tell(false);
        reaches(0).await;
        tell(true);
        reaches(1).await;
        drop(subscription);
        reaches(0).await;
        cluster.stop().await;
    });
}

#[test]
fn a_subscriber_that_stalls_skips_and_its_neighbour_never_notices() {
    run(async {
        let cluster = Cluster::start(|config| config.origin.window_bytes = 1 << 20).await;
        let mut publisher = cluster.publish().await;
        publisher.send(1, 1000).await;

        // Two calls on one connection, with the windows of an edge.
        let url = format!("http://{}", cluster.origin().grpc_addr());
        let channel = tonic::transport::Endpoint::from_shared(url)
            .expect("an address")
            .initial_stream_window_size(256 << 10)
            .initial_connection_window_size(4 << 20)
            .connect()
            .await
            .expect("a connection");
        let open = async || {
            let (outbound, requests) = mpsc::channel(1024);
            let subscribe = wire::Subscribe {
                stream: name().to_string(),
                want: Some(wire::Want {
                    track_ids: vec![0],
                    adaptive: false,
                }),
                ..wire::Subscribe::default()
            };
            let message = |message| wire::ToOrigin {
                message: Some(message),
            };
            outbound
                .send(message(to_origin::Message::Subscribe(subscribe)))
                .await
                .expect("an open call");
            let mut client = ReplicationClient::new(channel.clone());
            let call = client.subscribe(ReceiverStream::new(requests)).await;
            (outbound, call.expect("accepted").into_inner())
        };
        let (stalled_outbound, mut stalled) = open().await;
        let (outbound, mut lively) = open().await;

        let neighbour = tokio::spawn(async move {
            let (mut sequences, mut units) = (Vec::new(), 0);
            while let Ok(Some(message)) = lively.message().await {
                match message.message {
                    Some(to_edge::Message::Unit(unit)) => {
                        units += 1;
                        sequences.push(unit.sequence);
                        let ack = to_origin::Message::Ack(wire::Ack { units });
                        let ack = wire::ToOrigin { message: Some(ack) };
                        outbound.send(ack).await.expect("an open call");
                        if unit.sequence == 300 {
                            break;
                        }
                    }
                    Some(to_edge::Message::Gap(gap)) => panic!("{gap:?}"),
                    _ => {}
                }
            }
            sequences
        });
        publisher.send(300, 20_000).await;
        let sequences = tokio::time::timeout(PATIENCE, neighbour)
            .await
            .expect("the neighbour gets everything")
            .expect("no gap");
        assert_eq!(sequences, (0..=300).collect::<Vec<_>>());

        // The one that stalled reads on: first what was sent before its window closed, then a gap, then a keyframe.
        let mut units = 0;
        let mut gap = None;
        loop {
            let message = tokio::time::timeout(PATIENCE, stalled.message()).await;
            let message = message.expect("in time").expect("no error").expect("open");
            match message.message {
                Some(to_edge::Message::Unit(unit)) => {
                    if gap.is_some() {
                        assert!(unit.keyframe, "what follows a gap begins at a keyframe");
                        break;
                    }
                    assert_eq!(unit.sequence, units);
                    units += 1;
                    let ack = to_origin::Message::Ack(wire::Ack { units });
                    let ack = wire::ToOrigin { message: Some(ack) };
                    stalled_outbound.send(ack).await.expect("an open call");
                }
                Some(to_edge::Message::Gap(found)) => gap = Some(found),
                _ => {}
            }
        }
        assert!(units < 60, "{units} units of 20 kB in a window of 1 MiB");
        assert!(gap.is_some_and(|gap| gap.reason() == wire::GapReason::Overflow));
        cluster.stop().await;
    });
}

#[test]
fn a_publisher_returns_within_the_hold_time_and_the_stream_ends_after_it() {
    run(async {
        let cluster = Cluster::start(|config| config.origin.hold_seconds = 1).await;
        let mut subscription = cluster.subscribe(&cluster.edge);
        subscription.state(UpstreamState::NotFound).await;
        let mut publisher = cluster.publish().await;
        publisher.send(10, 1000).await;
        subscription.expect(0, 8).await;
        let last = subscription.unit().await;
        drop(publisher);

        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut publisher = cluster.publish().await;
        publisher.send(5, 1000).await;
        let first = subscription.unit().await;
        assert!(first.epoch > last.epoch);
        assert_eq!((first.sequence, first.configuration_id), (0, 0));
        assert!(first.discontinuity && first.keyframe);
        let away = first.dts.since(last.dts);
        assert!(
            away >= Duration::from_millis(290),
            "the time away passed: {away:?}"
        );
        assert!(away < Duration::from_secs(5), "{away:?}");

        drop(publisher);
        subscription.state(UpstreamState::Ended).await;
        let directory = &cluster.edge.directory;
        let mut changes = directory.changes();
        let free = async {
            while !directory.streams().is_empty() {
                changes.changed().await.expect("a directory");
            }
        };
        let free = tokio::time::timeout(PATIENCE, free);
        free.await.expect("the name is free");
        let mut publisher = cluster.publish().await;
        publisher.send(5, 1000).await;
        subscription.state(UpstreamState::Connected).await;
        cluster.stop().await;
    });
}

#[test]
fn a_newer_publisher_replaces_a_silent_one_only() {
    run(async {
        let cluster = Cluster::start(|config| config.origin.takeover_seconds = 1).await;
        let mut first = cluster.publish().await;
        first.send(5, 1000).await;
        let refused = cluster.try_publish().await;
        assert_eq!(refused.err(), Some(PublishError::Busy));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let second = cluster
            .try_publish()
            .await
            .expect("the first one is silent");
        assert!(second.epoch() > first.publication.epoch());
        let revoked = tokio::time::timeout(PATIENCE, first.publication.revoked()).await;
        assert_eq!(revoked.ok(), Some(Revoked::Replaced));
        // What the replaced one still does has no effect.
        drop(first);
        assert_eq!(
            cluster.try_publish().await.err(),
            Some(PublishError::Busy),
            "the second one is there"
        );
        let streams = cluster.origin().report().streams().await;
        assert_eq!(streams.len(), 1);
        assert_eq!(streams[0]["name"], "live/demo");
        assert_eq!(streams[0]["publishing"], true);
        assert_eq!(streams[0]["encoder"], "a test");
        cluster.stop().await;
    });
}

#[test]
fn a_stopping_origin_sends_its_publishers_and_edges_away() {
    run(async {
        let mut cluster = Cluster::start(|_| {}).await;
        let mut publisher = cluster.publish().await;
        publisher.send(3, 1000).await;
        let mut subscription = cluster.subscribe(&cluster.edge);
        subscription.expect(0, 2).await;
        let registry = cluster.origin().registry().clone();
        cluster.origin.take().expect("it runs").stop().await;
        subscription.state(UpstreamState::Lost).await;
        assert_eq!(publisher.publication.revoked().await, Revoked::Stopping);
        assert!(cluster.edge.directory.streams().is_empty());
        let request = PublishRequest {
            name: name(),
            peer: "127.0.0.1:1".parse().expect("an address"),
            encoder: None,
        };
        let refused = registry.publish(request).await;
        assert_eq!(refused.err(), Some(PublishError::Stopping));
        cluster.stop().await;
    });
}
