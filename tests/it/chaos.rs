//! Faults in an order that a seed gives: after each, everybody sees pictures again within a bounded time, without help.
//!
//! `make test` runs a few of them, `make chaos` an hour; `HEADWATER_CHAOS_SEED` repeats a run, `HEADWATER_CHAOS_SECONDS` says how long it is.

use std::time::Duration;

use headwater_bench::time::now;

use super::harness::{
    Cluster, Node, Options, Picture, Publisher, Sound, Viewer, eventually, get, pause, seconds,
};

const STREAM: &str = "live/chaos";
const ORIGINS: usize = 2;
const EDGES: usize = 3;
/// The longest that anything here may take: the lease (12 s) of an origin that does not answer, and a moment for encoder and viewer.
const RECOVERY_MAX: Duration = seconds(20);
/// Between two faults.
const CALM: Duration = seconds(2);

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The publisher's process dies, and its supervisor starts it again a moment later.
    PublisherDies,
    /// The origin that has the stream dies; its publisher turns to the other one.
    OriginDies,
    /// An edge dies; its viewers turn to others.
    EdgeDies,
    /// An edge is told to stop; its viewers are sent elsewhere.
    EdgeDrains,
    /// The origin that has the stream hangs for three seconds, and its publisher with it.
    OriginHangs,
    /// An edge hangs for a second and a half.
    EdgeHangs,
    /// etcd dies, and comes back 5 s later.
    EtcdDies,
    /// etcd hangs for 8 s.
    EtcdHangs,
}

const FAULTS: [Fault; 8] = [
    Fault::EdgeDrains,
    Fault::OriginDies,
    Fault::EtcdDies,
    Fault::EdgeDies,
    Fault::PublisherDies,
    Fault::OriginHangs,
    Fault::EdgeHangs,
    Fault::EtcdHangs,
];

struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % bound
    }
}

struct Scene {
    cluster: Cluster,
    publisher: Publisher,
    /// The origin that the publisher is at.
    origin: usize,
    viewers: Vec<(usize, Viewer)>,
    rejoins: u64,
}

impl Scene {
    fn start() -> Self {
        let options = Options {
            public_url: true,
            ..Options::default()
        };
        let mut cluster = Cluster::fleet(ORIGINS, EDGES, &options);
        let publisher = publish(&mut cluster, 0);
        let viewers = (0..EDGES).map(|edge| (edge, watch(&mut cluster, edge)));
        let viewers = viewers.collect();
        Self {
            cluster,
            publisher,
            origin: 0,
            viewers,
            rejoins: 0,
        }
    }

    /// Everybody who should be there is, as supervisors and players see to: an encoder whose origin is gone turns to the next, a player whose
    /// edge is gone joins at another.
    fn tend(&mut self) {
        if !self.publisher.process().running() {
            self.origin = (self.origin + 1) % ORIGINS;
            self.publisher = publish(&mut self.cluster, self.origin);
        }
        for i in 0..self.viewers.len() {
            if !self.viewers[i].1.process.running() {
                let edge = (self.viewers[i].0 + 1) % EDGES;
                self.viewers[i] = (edge, watch(&mut self.cluster, edge));
                self.rejoins += 1;
            }
        }
    }

    /// Waits until everybody sees pictures, and says how long that took.
    fn recover(&mut self) -> Duration {
        let since = now();
        let before: Vec<u64> = self.viewers.iter().map(|(_, v)| v.frames()).collect();
        eventually("everybody sees pictures again", RECOVERY_MAX, || {
            self.tend();
            let mut pairs = self.viewers.iter().zip(&before);
            // A viewer that joined anew counts from nothing.
            let moves =
                |(now, before): (u64, u64)| now >= 15 && !(before..before + 15).contains(&now);
            pairs
                .all(|((_, viewer), before)| moves((viewer.frames(), *before)))
                .then_some(())
        });
        since.elapsed()
    }

    fn edge(&mut self, edge: usize) -> &mut Node {
        self.cluster.edges().nth(edge).expect("an edge")
    }

    fn inflict(&mut self, fault: Fault, random: usize) {
        let edge = random % EDGES;
        match fault {
            Fault::PublisherDies => {
                self.publisher.kill();
                pause(seconds(1));
            }
            Fault::OriginDies => {
                let at = self.origin;
                self.cluster.nodes[at].kill();
                // ffmpeg notices by its next packet.
                pause(seconds(1));
                self.publisher.kill();
                self.tend();
                pause(seconds(1));
                self.cluster.nodes[at].restart();
            }
            Fault::EdgeDies => {
                self.edge(edge).kill();
                // A player notices after two seconds without a picture. Who is at which edge, drains have changed.
                pause(Duration::from_millis(400));
                let seen: Vec<u64> = self.viewers.iter().map(|(_, v)| v.frames()).collect();
                pause(seconds(2));
                for ((_, viewer), seen) in self.viewers.iter_mut().zip(seen) {
                    if viewer.frames() == seen {
                        viewer.process.kill();
                    }
                }
                self.tend();
                self.edge(edge).restart();
            }
            Fault::EdgeDrains => {
                self.edge(edge).process.terminate();
                self.edge(edge).process.wait(seconds(45));
                self.edge(edge).restart();
            }
            Fault::OriginHangs => {
                let origin = &self.cluster.nodes[self.origin].process;
                origin.freeze();
                pause(seconds(3));
                origin.thaw();
            }
            Fault::EdgeHangs => {
                self.edge(edge).process.freeze();
                pause(Duration::from_millis(1500));
                self.edge(edge).process.thaw();
            }
            Fault::EtcdDies => {
                self.cluster.etcd().kill();
                pause(seconds(5));
                self.cluster.restart_etcd();
            }
            Fault::EtcdHangs => {
                self.cluster.etcd().freeze();
                pause(seconds(8));
                self.cluster.etcd().thaw();
            }
        }
    }
}

fn publish(cluster: &mut Cluster, origin: usize) -> Publisher {
    let url = format!("rtmp://127.0.0.1:{}/{STREAM}", cluster.nodes[origin].rtmp);
    Publisher::start(&url, Picture::Test, Sound::Tone)
}

fn watch(cluster: &mut Cluster, edge: usize) -> Viewer {
    let http = cluster.edges().nth(edge).expect("an edge").http;
    let url = format!("http://127.0.0.1:{http}/whep/{STREAM}");
    Viewer::start(
        &url,
        seconds(24 * 3600),
        &["--wait", "30s", "--join-timeout", "20s"],
    )
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a whole number"))
}

#[test]
fn whatever_fails_everybody_sees_pictures_again() {
    let seed = setting("HEADWATER_CHAOS_SEED", 1);
    let time = seconds(setting("HEADWATER_CHAOS_SECONDS", 25));
    let mut rng = Rng(seed);
    let mut scene = Scene::start();
    scene.recover();
    let (began, mut faults) = (now(), 0);
    let mut slowest = Duration::ZERO;
    while began.elapsed() < time {
        // Each kind once before the first comes again, so that a short run has different ones.
        let fault = FAULTS[(faults + usize::try_from(seed).unwrap_or(0)) % FAULTS.len()];
        eprintln!("seed {seed}, {:>4} s: {fault:?}", began.elapsed().as_secs());
        scene.inflict(fault, rng.below(1000));
        let took = scene.recover();
        slowest = slowest.max(took);
        eprintln!(
            "           everybody sees pictures again after {} ms",
            took.as_millis()
        );
        faults += 1;
        pause(CALM);
    }
    let rejoins = scene.rejoins;
    eprintln!(
        "{faults} faults, the slowest recovery took {} ms, {rejoins} rejoins",
        slowest.as_millis()
    );
    for node in &scene.cluster.nodes {
        let metrics = get(node.admin, "/metrics").expect("metrics").body;
        let panics = metrics
            .lines()
            .find(|line| line.starts_with("headwater_panics_total "));
        assert!(panics.is_none_or(|line| line.ends_with(" 0")), "{panics:?}");
    }
}
