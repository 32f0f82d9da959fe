//! Faults in an order that a seed gives. Whatever fails, a viewer whose edge lives misses only what died with a publisher or its origin; all else
//! comes, if late, and two seconds after the fault nothing is late any more. Nobody ever sees a picture twice, nor one of an older publisher after
//! one of a newer.
//!
//! `make test` runs a few of them, `make chaos` an hour, in which some come upon another that isn't over; `HEADWATER_CHAOS_SEED` repeats a run,
//! `HEADWATER_CHAOS_SECONDS` says how long it is, and `HEADWATER_CHAOS_FAULT` leaves one fault alone (`OriginHangs`).
//! Edges feed edges: the origin feeds one, and these two each. Every way from node to node and to etcd can be cut, by
//! relays and, where this runs as root, by iptables.

use std::time::Duration;

use headwater_bench::time::{now, wall};

use super::harness::{
    Cluster, Network, Node, Options, Role, Shown, Watcher, eventually, get, judge, micros, pause,
    seconds,
};
use fault::{FAULTS, Fault};
use feed::Feed;

mod fault;
mod feed;
mod inflict;

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

struct Scene {
    cluster: Cluster,
    feed: Feed,
    viewers: Vec<Watcher>,
    rejoins: u64,
    /// Names of new streams that were asked for: one that an origin has had lately it takes back without etcd.
    names: u64,
    rng: Rng,
    /// Of the test's own, where packets can be lost.
    network: Option<Network>,
}

impl Scene {
    fn start(seed: u64) -> Self {
        // Before anything else is started.
        let network = Network::enter();
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
            network,
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
    if scene.network.is_none() {
        eprintln!("packets can't be dropped here: that takes root, ip and iptables");
        order.retain(|fault| !fault.needs_network());
    }
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
