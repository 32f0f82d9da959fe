//! What is left of a tree of edges after an origin that hung, and how those go on whose parent alone is cut off.

use super::harness::{Cluster, Options, Stamped, Viewer, eventually, metric, pause, seconds};

const STREAM: &str = "live/demo";

/// An origin that feeds one edge, which feeds a second, which feeds a third, with a viewer at each.
struct Chain {
    cluster: Cluster,
    viewers: Vec<Viewer>,
    _publisher: Stamped,
}

impl Chain {
    fn start(top: Options) -> Self {
        let one = |role: &str| (format!("HEADWATER_{role}__FANOUT"), "1".to_owned());
        let edge = |mut options: Options| {
            options.env.push(one("EDGE"));
            options
        };
        let mut origin = Options::default();
        origin.env.push(one("ORIGIN"));
        let edges = [top, Options::default(), Options::default()].map(edge);
        let mut cluster = Cluster::tree(&origin, &edges);
        let publisher = Stamped::start(cluster.origin().rtmp, "live", "demo");
        let mut chain = Self {
            cluster,
            viewers: Vec::new(),
            _publisher: publisher,
        };
        for edge in 1..=3 {
            let http = chain.cluster.nodes[edge].http;
            let url = format!("http://127.0.0.1:{http}/whep/{STREAM}");
            let mut viewer = Viewer::start(&url, seconds(120), &["--wait", "20s"]);
            viewer.await_frames(10, seconds(30));
            chain.viewers.push(viewer);
            assert_eq!(chain.upstreams_at(edge, edge), 1, "e{edge}");
        }
        chain
    }

    /// How many upstreams of an edge are so far from the publisher.
    fn upstreams_at(&self, edge: usize, depth: usize) -> u64 {
        let name = format!("headwater_edge_upstreams_by_depth{{depth=\"{depth}\"}}");
        metric(self.cluster.nodes[edge].admin, &name)
    }

    /// How often an edge has changed its upstream.
    fn reparented(&self, edge: usize) -> u64 {
        let admin = self.cluster.nodes[edge].admin;
        let to = |to| {
            let name = format!("headwater_edge_reparented_total{{to=\"{to}\"}}");
            metric(admin, &name)
        };
        to("origin") + to("edge")
    }

    /// How many the origin has sent to others.
    fn redirects(&self) -> u64 {
        metric(
            self.cluster.nodes[0].admin,
            "headwater_origin_redirects_total",
        )
    }
}

#[test]
fn a_tree_outlives_an_origin_that_hung() {
    let mut chain = Chain::start(Options::default());
    let redirects = chain.redirects();
    chain.cluster.origin().process.freeze();
    pause(seconds(11));
    chain.cluster.origin().process.thaw();
    for viewer in &mut chain.viewers {
        viewer.await_frames(60, seconds(15));
    }
    for edge in 1..=3 {
        eventually("each is where it was", seconds(5), || {
            (chain.upstreams_at(edge, edge) == 1).then_some(())
        });
    }
    let moved: Vec<u64> = (1..=3).map(|edge| chain.reparented(edge)).collect();
    assert_eq!(moved, [0, 0, 0]);
    assert_eq!(chain.redirects(), redirects, "nobody else asked");
}

#[test]
fn whose_parent_alone_is_cut_off_goes_to_another_with_all_below_it() {
    let mut chain = Chain::start(Options {
        own_way: true,
        ..Options::default()
    });
    let way = chain.cluster.nodes[1].way.as_ref().expect("its own");
    way.cut();
    chain.viewers[2].await_frames(300, seconds(40));
    assert_eq!(chain.upstreams_at(2, 1), 1, "e2 is fed by the origin");
    assert_eq!(chain.upstreams_at(3, 2), 1, "e3 by e2");
    let moved = [2, 3].map(|edge| chain.reparented(edge));
    assert_eq!(moved, [1, 0]);
}
