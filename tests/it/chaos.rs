//! Faults in an order that a seed gives. Whatever fails, a viewer whose edge lives misses only what died with a publisher or its origin; all else
//! comes, if late, and two seconds after the fault nothing is late any more. Nobody ever sees a picture twice, nor one of an older publisher after
//! one of a newer.
//!
//! `make test` runs a few of them, `make chaos` an hour, in which some come upon another that isn't over; `HEADWATER_CHAOS_SEED` repeats a run,
//! `HEADWATER_CHAOS_SECONDS` says how long it is, and `HEADWATER_CHAOS_FAULT` leaves one fault alone (`OriginHangs`).
//! Edges feed edges: the origin feeds one, and these two each. Every way from node to node and to etcd can be cut.

use std::time::Duration;

use headwater_bench::clip::{Clip, Settings};
use headwater_bench::publisher::Publisher;
use headwater_bench::time::{now, wall};
use tempfile::TempDir;

use super::harness::{
    Cluster, Node, Options, Published, Role, Shown, Watcher, eventually, get, judge, micros, pause,
    probe, seconds,
};

const STREAM: &str = "live/chaos";
const ORIGINS: usize = 2;
const EDGES: usize = 4;
/// The longest that anything here may take: the lease (12 s) of an origin that does not answer, and a moment for encoder and viewer.
const RECOVERY_MAX: Duration = seconds(20);
/// From the first keyframe of a publisher that came back to viewers' screens.
const BACK_MAX: Duration = seconds(1);
/// How late a picture may be two seconds after a fault.
const LATE_MAX: Duration = Duration::from_millis(250);
/// Between two faults, so that whatever waited somewhere has come, and viewers of a new session have run up to the live edge.
const CALM: Duration = Duration::from_millis(2500);

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The publisher's process dies, and its supervisor starts it again a moment later.
    PublisherDies,
    /// The origin that has the stream dies; its publisher turns to the other one.
    OriginDies,
    /// The origin that has the stream hangs for some seconds.
    OriginHangs,
    /// That origin can't reach etcd for longer than its lease, and its publisher stays.
    OriginWithoutEtcd,
    /// An edge dies; its viewers turn to others.
    EdgeDies,
    /// An edge is told to stop; its viewers are sent elsewhere.
    EdgeDrains,
    /// An edge hangs for a moment.
    EdgeHangs,
    /// An edge can't reach etcd for a while.
    EdgeWithoutEtcd,
    /// Nobody can reach a node that feeds others; connections outlive it.
    LinkFreezes,
    /// The same, and connections are lost.
    LinkBreaks,
    /// The member of etcd that leads dies, and comes back.
    LeaderDies,
    /// It hangs.
    LeaderHangs,
    /// Two members die, and come back.
    QuorumLost,
    /// All of etcd dies, and an edge with it.
    EtcdAndEdgeDie,
}

/// In this order where no seed is given, then as the seed says.
const FAULTS: [Fault; 14] = [
    Fault::LinkFreezes,
    Fault::EdgeDies,
    Fault::LeaderDies,
    Fault::EdgeDrains,
    Fault::OriginDies,
    Fault::QuorumLost,
    Fault::LinkBreaks,
    Fault::EtcdAndEdgeDie,
    Fault::PublisherDies,
    Fault::OriginHangs,
    Fault::EdgeHangs,
    Fault::LeaderHangs,
    Fault::EdgeWithoutEtcd,
    Fault::OriginWithoutEtcd,
];

impl Fault {
    /// Its publisher is another one afterwards. What died with the one before, or with its origin, may be missing.
    const fn ends_publisher(self) -> bool {
        matches!(self, Self::PublisherDies | Self::OriginDies)
    }

    /// The longest time without pictures for viewers whose edge is not what failed, of a fault that lasted so long.
    fn gap_max(self, lasted: Duration) -> Duration {
        match self {
            // Its publisher turns to the other one at once.
            Self::OriginDies => seconds(2),
            // An edge further up was lost: found out, replaced and caught up with.
            Self::EdgeDies | Self::EtcdAndEdgeDie => Duration::from_millis(1500),
            // As long as it was away, and until the next attempt.
            Self::PublisherDies
            | Self::OriginHangs
            | Self::EdgeHangs
            | Self::LinkFreezes
            | Self::LinkBreaks => lasted + Duration::from_millis(2500),
            Self::EdgeDrains
            | Self::OriginWithoutEtcd
            | Self::EdgeWithoutEtcd
            | Self::LeaderDies
            | Self::LeaderHangs
            | Self::QuorumLost => seconds(1),
        }
    }
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }

    /// A time from `least` to `most` (ms).
    fn millis(&mut self, least: usize, most: usize) -> Duration {
        let millis = least + self.below(most - least + 1);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

/// The one publisher, at whichever origin takes it.
struct Feed {
    clip: std::path::PathBuf,
    _directory: TempDir,
    publisher: Option<Publisher>,
    /// The origin it is at.
    origin: usize,
    /// What those before it sent.
    earlier: Published,
}

impl Feed {
    fn make() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clip");
        let clip = directory.path().join("clip.flv");
        Settings::SMALL.make(&clip).expect("ffmpeg makes a clip");
        Self {
            clip,
            _directory: directory,
            publisher: None,
            origin: 0,
            earlier: Published::default(),
        }
    }

    fn running(&self) -> bool {
        self.publisher.as_ref().is_some_and(Publisher::running)
    }

    fn stop(&mut self) {
        self.earlier = self.published();
        self.publisher = None;
    }

    /// Publishes at the origin that listens at `port`; false if it refuses.
    fn start(&mut self, port: u16) -> bool {
        self.stop();
        let clip = Clip::load(&self.clip).expect("the clip");
        self.publisher = Publisher::start(port, "live", "chaos", clip).ok();
        self.publisher.is_some()
    }

    fn published(&self) -> Published {
        let mut all = self.earlier.clone();
        let stamps = self
            .publisher
            .as_ref()
            .map_or_else(Vec::new, Publisher::stamps);
        all.begins.extend(stamps.first());
        all.stamps.extend(stamps);
        all
    }
}

struct Scene {
    cluster: Cluster,
    feed: Feed,
    viewers: Vec<Watcher>,
    rejoins: u64,
    /// Names of new streams that were asked for: one that an origin has had lately it takes back without etcd.
    names: u64,
    rng: Rng,
}

impl Scene {
    fn start(seed: u64) -> Self {
        let public = Options {
            public_url: true,
            ..Options::default()
        };
        let mut nodes = vec![
            (
                Role::Origin,
                Options::default().env("HEADWATER_ORIGIN__FANOUT", "1"),
            );
            ORIGINS
        ];
        for edge in 0..EDGES {
            // One of them takes the stream from two others.
            let upstreams = if edge == EDGES - 1 { "2" } else { "1" };
            let options = public
                .clone()
                .env("HEADWATER_EDGE__FANOUT", "2")
                .env("HEADWATER_EDGE__UPSTREAMS", upstreams);
            nodes.push((Role::Edge, options));
        }
        let cluster = Cluster::scattered(&nodes);
        let mut scene = Self {
            cluster,
            feed: Feed::make(),
            viewers: Vec::new(),
            rejoins: 0,
            names: 0,
            rng: Rng(seed),
        };
        scene.tend();
        for edge in 0..EDGES {
            let viewer = scene.watch(edge);
            scene.viewers.push(viewer);
        }
        scene
    }

    /// Everybody who should be there is, as supervisors and players see to: an encoder whose origin is gone turns to the next, a player whose
    /// edge is gone joins at another.
    fn tend(&mut self) {
        if !self.feed.running() {
            let origin = self.feed.origin;
            if !self.feed.start(self.cluster.nodes[origin].rtmp) {
                self.feed.origin = (origin + 1) % ORIGINS;
            }
        }
        for i in 0..self.viewers.len() {
            if !self.viewers[i].running() {
                let edge = self.rng.below(EDGES);
                self.viewers[i] = self.watch(edge);
                self.rejoins += 1;
            }
        }
    }

    /// Waits until everybody sees pictures that were made since `since`, and says how long that took.
    fn recover(&mut self, since: u64) -> Duration {
        let began = now();
        let mut told = false;
        eventually("everybody sees pictures again", RECOVERY_MAX, || {
            self.tend();
            if !told && began.elapsed() > RECOVERY_MAX / 2 {
                self.tell();
                told = true;
            }
            let newest = |viewer: &mut Watcher| viewer.shown().last().map_or(0, |s| s.stamp);
            let mut viewers = self.viewers.iter_mut();
            viewers.all(|viewer| newest(viewer) > since).then_some(())
        });
        began.elapsed()
    }

    /// Prints what each node knows, for whoever has to find out why.
    fn tell(&self) {
        for node in &self.cluster.nodes {
            for path in ["/api/v1/streams", "/api/v1/viewers"] {
                let known = get(node.admin, path).map(|answer| answer.body);
                eprintln!(
                    "{} {path}: {}",
                    node.process.name,
                    known.unwrap_or_default()
                );
            }
        }
    }

    fn edge(&mut self, edge: usize) -> &mut Node {
        &mut self.cluster.nodes[ORIGINS + edge]
    }

    fn url(&mut self, edge: usize) -> String {
        format!("http://127.0.0.1:{}/whep/{STREAM}", self.edge(edge).http)
    }

    fn watch(&mut self, edge: usize) -> Watcher {
        Watcher::start(&self.url(edge))
    }

    /// Players whose pictures stopped give up after two seconds, and join elsewhere.
    fn replace_stuck(&mut self) {
        // What was on its way has come.
        pause(Duration::from_millis(400));
        let before: Vec<u64> = self.viewers.iter_mut().map(Watcher::last_arrival).collect();
        pause(seconds(2));
        for (viewer, before) in self.viewers.iter_mut().zip(before) {
            if viewer.last_arrival() == before {
                viewer.kill();
            }
        }
        self.tend();
    }

    /// Does it, and yields the edge that died, if one did.
    fn inflict(&mut self, fault: Fault) -> Option<usize> {
        let edge = self.rng.below(EDGES);
        match fault {
            Fault::PublisherDies => {
                self.feed.stop();
                pause(self.rng.millis(200, 3000));
            }
            Fault::OriginDies => {
                let at = self.feed.origin;
                self.cluster.nodes[at].kill();
                self.feed.stop();
                self.feed.origin = (at + 1) % ORIGINS;
                self.tend();
                pause(self.rng.millis(500, 2000));
                self.cluster.nodes[at].restart();
            }
            Fault::OriginHangs => {
                let span = self.rng.millis(1000, 4000);
                let origin = &self.cluster.nodes[self.feed.origin].process;
                origin.freeze();
                pause(span);
                origin.thaw();
            }
            Fault::OriginWithoutEtcd => self.cut_from_etcd(self.feed.origin, seconds(16)),
            Fault::EdgeWithoutEtcd => {
                let span = self.rng.millis(2000, 16_000);
                self.cut_from_etcd(ORIGINS + edge, span);
            }
            Fault::EdgeDies => {
                self.edge(edge).kill();
                self.replace_stuck();
                self.edge(edge).restart();
                return Some(edge);
            }
            Fault::EdgeDrains => {
                self.edge(edge).process.terminate();
                self.edge(edge).process.wait(seconds(45));
                self.edge(edge).restart();
            }
            Fault::EdgeHangs => {
                let span = self.rng.millis(500, 1500);
                self.edge(edge).process.freeze();
                pause(span);
                self.edge(edge).process.thaw();
            }
            Fault::LinkFreezes | Fault::LinkBreaks => {
                // The origin's feeds all, an edge's perhaps nobody.
                let node = [self.feed.origin, ORIGINS + edge][self.rng.below(2)];
                let span = self.rng.millis(500, 3000);
                let link = self.cluster.nodes[node].link.as_ref().expect("a link");
                link.cut();
                pause(span);
                if fault == Fault::LinkFreezes {
                    link.mend();
                } else {
                    link.heal();
                }
            }
            Fault::LeaderDies => {
                let leader = self.cluster.members().leader();
                self.cluster.members().member(leader).kill();
                self.newcomer(edge);
                pause(self.rng.millis(500, 3000));
                self.cluster.members().restart(leader);
            }
            Fault::LeaderHangs => {
                let leader = self.cluster.members().leader();
                self.cluster.members().member(leader).freeze();
                self.newcomer(edge);
                pause(self.rng.millis(2000, 12_000));
                self.cluster.members().member(leader).thaw();
            }
            Fault::QuorumLost => {
                for member in [0, 1] {
                    self.cluster.members().member(member).kill();
                }
                self.newcomer(edge);
                self.refused();
                pause(setting_seconds("HEADWATER_CHAOS_QUORUM_SECONDS", 1));
                self.newcomer((edge + 1) % EDGES);
                for member in [0, 1] {
                    self.cluster.members().restart(member);
                }
            }
            Fault::EtcdAndEdgeDie => {
                for member in 0..3 {
                    self.cluster.members().member(member).kill();
                }
                self.edge(edge).kill();
                self.replace_stuck();
                for member in 0..3 {
                    self.cluster.members().restart(member);
                }
                self.edge(edge).restart();
                // It knows only what etcd says.
                self.newcomer(edge);
                return Some(edge);
            }
        }
        None
    }

    fn cut_from_etcd(&mut self, node: usize, span: Duration) {
        self.cluster
            .directory_links(node)
            .iter()
            .for_each(|link| link.cut());
        pause(span);
        self.cluster
            .directory_links(node)
            .iter()
            .for_each(|link| link.heal());
    }

    /// A new viewer of the stream is admitted, whatever state the directory is in.
    fn newcomer(&mut self, edge: usize) {
        if !self.feed.running() {
            // A fault before this one isn't over.
            return;
        }
        let url = self.url(edge);
        let (code, report) = probe(&url, Duration::from_millis(1500), &["--wait", "10s"]);
        assert_eq!(code, 0, "{report:#}");
    }

    /// A new stream is not, and its publisher is told so.
    fn refused(&mut self) {
        let clip = Clip::load(&self.feed.clip).expect("the clip");
        let port = self.cluster.nodes[self.feed.origin].rtmp;
        let began = now();
        let refused = Publisher::start(port, "live", &self.new_name(), clip);
        let error = refused.expect_err("nobody can claim a name");
        eprintln!(
            "           a new stream is refused after {} ms: {error:#}",
            began.elapsed().as_millis()
        );
    }

    /// Once etcd is back, new streams are taken without anybody's help.
    fn accepted(&mut self) {
        let port = self.cluster.nodes[self.feed.origin].rtmp;
        let name = self.new_name();
        eventually("a new stream is taken", RECOVERY_MAX, || {
            let clip = Clip::load(&self.feed.clip).expect("the clip");
            Publisher::start(port, "live", &name, clip).ok()
        });
    }

    fn new_name(&mut self) -> String {
        self.names += 1;
        format!("new{}", self.names)
    }

    /// Inflicts it and says what it cost whom, if that was too much.
    fn suffer(&mut self, fault: Fault) -> Vec<String> {
        let publishers = self.feed.published().begins.len();
        let sessions: Vec<u64> = self.viewers.iter_mut().map(first_stamp).collect();
        let at: Vec<Option<usize>> = (0..self.viewers.len()).map(|i| self.edge_of(i)).collect();
        let began = micros(wall());
        let died = self.inflict(fault);
        let healed = micros(wall());
        let lasted = Duration::from_micros(healed - began);
        self.settle(healed);
        if fault == Fault::QuorumLost {
            self.accepted();
        }
        let published = self.feed.published();
        let mut complaints = Vec::new();
        if !fault.ends_publisher() && published.begins.len() > publishers {
            complaints.push("the publisher was sent away".to_owned());
        }
        let newest = published.begins.last().copied().unwrap_or(0);
        for i in 0..self.viewers.len() {
            let shown = self.viewers[i].shown();
            let back = shown.iter().find(|shown| shown.stamp >= newest);
            let back =
                back.map(|shown| Duration::from_micros(shown.arrived.saturating_sub(newest)));
            let verdict = judge(&published, shown, began, healed);
            let stayed = first_stamp(&mut self.viewers[i]) == sessions[i];
            let name = at[i].map_or_else(String::new, |edge| format!(" at e{}", edge + 1));
            eprintln!(
                "           viewer {i}{name}: {} missing, {} repeated, gap {} ms, later {} ms behind{}",
                verdict.missing.len(),
                verdict.repeated.len(),
                verdict.gap.as_millis(),
                verdict.late.as_millis(),
                if stayed { "" } else { ", joined anew" },
            );
            // One that joins may be sent a keyframe again that it missed a packet of.
            let again = if stayed {
                &verdict.repeated
            } else {
                &verdict.mixed
            };
            if let Some(first) = again.first() {
                self.show(i, *first);
                complaints.push(format!("viewer {i} saw {again:?} again"));
            }
            if at[i].is_some() && at[i] == died {
                continue;
            }
            if !stayed {
                complaints.push(format!("viewer {i} lost its session"));
                continue;
            }
            let mut missing = verdict.missing;
            if fault.ends_publisher() {
                missing.retain(|stamp| *stamp >= newest);
                if back.is_none_or(|back| back > BACK_MAX) {
                    complaints.push(format!("viewer {i} waited {back:?} for the publisher"));
                }
            }
            if !missing.is_empty() {
                complaints.push(format!("viewer {i} missed {missing:?}"));
            }
            if verdict.gap > fault.gap_max(lasted) {
                complaints.push(format!("viewer {i} saw nothing for {:?}", verdict.gap));
            }
            if verdict.late > LATE_MAX {
                complaints.push(format!("viewer {i} is {:?} behind", verdict.late));
            }
        }
        complaints
    }

    /// Inflicts one, and another before it is over. Whatever that costs, it is over in time, and nothing comes in a wrong order.
    fn suffer_both(&mut self, faults: [Fault; 2]) -> Vec<String> {
        let began = micros(wall());
        for fault in faults {
            self.inflict(fault);
        }
        let healed = micros(wall());
        self.settle(healed);
        let published = self.feed.published();
        let mut complaints = Vec::new();
        for (i, viewer) in self.viewers.iter_mut().enumerate() {
            let verdict = judge(&published, viewer.shown(), began, healed);
            eprintln!(
                "           viewer {i}: {} missing, {} repeated, gap {} ms, later {} ms behind",
                verdict.missing.len(),
                verdict.repeated.len(),
                verdict.gap.as_millis(),
                verdict.late.as_millis(),
            );
            if !verdict.mixed.is_empty() {
                complaints.push(format!("viewer {i} saw {:?} again", verdict.mixed));
            }
            if verdict.late > LATE_MAX {
                complaints.push(format!("viewer {i} is {:?} behind", verdict.late));
            }
        }
        complaints
    }

    /// Waits until everybody sees what is made after a fault, and for what was late by then.
    fn settle(&mut self, healed: u64) {
        let took = self.recover(healed);
        pause(CALM);
        eprintln!(
            "           everybody sees pictures again after {} ms",
            took.as_millis()
        );
    }

    /// Prints what a viewer was shown around a picture that came again.
    fn show(&mut self, viewer: usize, stamp: u64) {
        let shown = self.viewers[viewer].shown();
        let again = shown
            .iter()
            .rposition(|shown| shown.stamp == stamp)
            .unwrap_or(0);
        let Some(around) = shown.get(again.saturating_sub(8)..) else {
            return;
        };
        for picture in around.iter().take(60) {
            let relative = |time: u64| (i128::from(time) - i128::from(stamp)) / 1000;
            eprintln!(
                "           session {} at {:>6} ms: the picture of {:>6} ms, RTP time {}",
                picture.session,
                relative(picture.arrived),
                relative(picture.stamp),
                picture.timestamp,
            );
        }
    }

    /// The edge that a viewer's session is at.
    fn edge_of(&mut self, viewer: usize) -> Option<usize> {
        let edges = self.cluster.nodes.iter().skip(ORIGINS);
        let ports: Vec<u16> = edges.map(|node| node.http).collect();
        ports
            .iter()
            .position(|port| self.viewers[viewer].is_at(*port))
    }
}

/// What tells a viewer from the one that took its place.
fn first_stamp(viewer: &mut Watcher) -> u64 {
    viewer
        .shown()
        .first()
        .map_or(0, |shown: &Shown| shown.stamp)
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let given = std::env::var(name).ok()?;
    Some(given.parse().expect("a whole number"))
}

fn setting_seconds(name: &str, default: u64) -> Duration {
    seconds(setting(name).unwrap_or(default))
}

#[test]
fn whatever_fails_viewers_lose_no_more_than_they_must() {
    let seed = setting("HEADWATER_CHAOS_SEED");
    let time = setting_seconds("HEADWATER_CHAOS_SECONDS", 20);
    let mut scene = Scene::start(seed.unwrap_or(1));
    scene.recover(micros(wall()));
    pause(CALM);
    let (began, mut faults) = (now(), 0);
    let mut order = FAULTS.to_vec();
    if let Ok(only) = std::env::var("HEADWATER_CHAOS_FAULT") {
        order.retain(|fault| format!("{fault:?}") == only);
        assert!(!order.is_empty(), "no fault is called {only}");
    }
    while began.elapsed() < time {
        if faults % order.len() == 0 && (seed.is_some() || faults > 0) {
            // Each kind once before the first comes again, so that a short run has different ones.
            for last in (1..order.len()).rev() {
                order.swap(last, scene.rng.below(last + 1));
            }
        }
        let fault = order[faults % order.len()];
        let at = began.elapsed().as_secs();
        eprintln!("seed {}, {at:>4} s: {fault:?}", seed.unwrap_or(1));
        let complaints = scene.suffer(fault);
        assert!(complaints.is_empty(), "{fault:?}: {complaints:#?}");
        faults += 1;
        if seed.is_some() && order.len() > 1 && faults % 4 == 0 {
            let both = [scene.rng.below(order.len()), scene.rng.below(order.len())];
            let both = both.map(|fault| order[fault]);
            let at = began.elapsed().as_secs();
            eprintln!("seed {}, {at:>4} s: {both:?}", seed.unwrap_or(1));
            let complaints = scene.suffer_both(both);
            assert!(complaints.is_empty(), "{both:?}: {complaints:#?}");
        }
    }
    eprintln!("{faults} faults, {} rejoins", scene.rejoins);
    for node in &scene.cluster.nodes {
        let metrics = get(node.admin, "/metrics").expect("metrics").body;
        let panics = metrics
            .lines()
            .find(|line| line.starts_with("headwater_panics_total "));
        assert!(panics.is_none_or(|line| line.ends_with(" 0")), "{panics:?}");
    }
}
