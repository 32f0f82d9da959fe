//! How what can go wrong is brought about.

use std::time::Duration;

use headwater_bench::clip::Clip;
use headwater_bench::publisher::Publisher;
use headwater_bench::time::now;

use super::super::harness::{Lost, Wire, eventually, metric, pause, probe, seconds};
use super::fault::Fault;
use super::{EDGES, ORIGINS, RECOVERY_MAX, Scene, setting_seconds};

impl Scene {
    /// Does it, and yields the edge that died, if one did.
    pub(super) fn inflict(&mut self, fault: Fault) -> Option<usize> {
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
                let node = self.feeder();
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
            Fault::LinkLosesAll => {
                let node = self.feeder();
                let link = self.cluster.nodes[node].link.as_ref().expect("a link");
                let port = link.port();
                let span = self.rng.millis(500, 4000);
                self.lose(&[port], span);
            }
            Fault::ViewersLoseSome => {
                let network = self.network.as_ref().expect("a network of our own");
                for edge in self.cluster.nodes.iter().skip(ORIGINS) {
                    network.lose_some(edge.media);
                }
                pause(self.rng.millis(2000, 4000));
                network.restore();
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

    /// The origin that has the stream, or an edge that passes it on.
    fn feeder(&mut self) -> usize {
        let nodes = &self.cluster.nodes;
        let feeds = |node: &usize| metric(nodes[*node].admin, "headwater_edge_subscribers") > 0;
        let edges = (ORIGINS..nodes.len()).filter(feeds);
        let feeders: Vec<usize> = std::iter::once(self.feed.origin).chain(edges).collect();
        feeders[self.rng.below(feeders.len())]
    }

    fn cut_from_etcd(&mut self, node: usize, span: Duration) {
        let links = self.cluster.directory_links(node);
        if self.network.is_some() && self.rng.below(2) == 0 {
            let ports: Vec<u16> = links.iter().map(Wire::port).collect();
            self.lose(&ports, span);
            return;
        }
        links.iter().for_each(Wire::cut);
        pause(span);
        links.iter().for_each(Wire::heal);
    }

    /// Loses what goes to these ports, comes from them, or both.
    fn lose(&mut self, ports: &[u16], span: Duration) {
        let lost = [Lost::Requests, Lost::Answers, Lost::Both][self.rng.below(3)];
        eprintln!("           {lost:?} are lost for {span:?}");
        let network = self.network.as_ref().expect("a network of our own");
        for port in ports {
            network.lose(*port, lost);
        }
        pause(span);
        network.restore();
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
    pub(super) fn accepted(&mut self) {
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
}
