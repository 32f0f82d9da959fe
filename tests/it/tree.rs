//! Edges that feed edges: a stream finds its way by redirections, and keeps its viewers when a node on that way dies.

use serde_json::Value;

use super::harness::{
    Cluster, Options, Stamped, Viewer, eventually, get, number, pause, probe, seconds,
};

const STREAM: &str = "live/demo";

/// 90 kHz ticks from one picture to the next of what is published here: 30 a second.
const PICTURE_TICKS: u64 = 3000;

fn fanout(role: &str, count: usize) -> Options {
    let name = format!("HEADWATER_{role}__FANOUT");
    Options::default().env(&name, &count.to_string())
}

fn whep(cluster: &Cluster, node: usize) -> String {
    format!(
        "http://127.0.0.1:{}/whep/{STREAM}",
        cluster.nodes[node].http
    )
}

/// Watches at an edge for a moment, so that it has the stream.
fn watch(cluster: &Cluster, edge: usize) {
    let (code, report) = probe(&whep(cluster, edge), seconds(1), &["--wait", "20s"]);
    assert_eq!(code, 0, "{report:#}");
}

/// How many upstreams of an edge are so far from the publisher.
fn upstreams_at(cluster: &Cluster, edge: usize, depth: usize) -> usize {
    let text = get(cluster.nodes[edge].admin, "/metrics").map_or_else(String::new, |m| m.body);
    let name = format!("headwater_edge_upstreams_by_depth{{depth=\"{depth}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// Pictures that a viewer did not see between two reports, by the time that passed in the stream.
fn missing(before: &Value, after: &Value) -> i64 {
    let at = |report: &Value| u32::try_from(number(report, "/newest_timestamp")).expect("RTP");
    let ticks = u64::from(at(after).wrapping_sub(at(before)));
    let passed = (ticks + PICTURE_TICKS / 2) / PICTURE_TICKS;
    let seen = number(after, "/video/decodable") - number(before, "/video/decodable");
    i64::try_from(passed).expect("small") - i64::try_from(seen).expect("small")
}

fn longest_freeze_ms(report: &Value) -> f64 {
    let freeze = report.pointer("/video/longest_freeze_ms");
    freeze.and_then(Value::as_f64).expect("a number")
}

/// Kills `victim` while a viewer watches at `leaf`, and returns what that saw: pictures missing, and the longest freeze (ms).
fn killed(
    cluster: &mut Cluster,
    leaf: usize,
    depth: usize,
    upstreams: usize,
    victim: usize,
) -> (i64, f64) {
    let mut viewer = Viewer::start(&whep(cluster, leaf), seconds(60), &["--wait", "20s"]);
    viewer.await_frames(60, seconds(30));
    eventually("the leaf is where it shall be", seconds(15), || {
        (upstreams_at(cluster, leaf, depth) == upstreams).then_some(())
    });
    // Long enough for those between to have nobody left but whom they feed.
    pause(seconds(2));
    let before = viewer.last().expect("a report");
    cluster.nodes[victim].kill();
    viewer.await_frames(90, seconds(15));
    let after = viewer.last().expect("a report");
    assert_eq!(number(&after, "/video/lost"), 0, "{after:#}");
    (missing(&before, &after), longest_freeze_ms(&after))
}

#[test]
fn three_levels_of_edges_go_on_without_the_one_at_the_top() {
    let edge = || fanout("EDGE", 1).env("HEADWATER_EDGE__LINGER_SECONDS", "1");
    let mut cluster = Cluster::tree(&fanout("ORIGIN", 1), &[edge(), edge(), edge()]);
    let _publisher = Stamped::start(cluster.origin().rtmp, "live", "demo");
    for (edge, depth) in [(1, 1), (2, 2)] {
        watch(&cluster, edge);
        assert_eq!(upstreams_at(&cluster, edge, depth), 1, "e{edge}");
    }
    let (missing, freeze) = killed(&mut cluster, 3, 3, 1, 1);
    assert_eq!(missing, 0, "the window holds what was missed");
    assert!(freeze <= 1500.0, "{freeze} ms");
    assert_eq!(upstreams_at(&cluster, 2, 1), 1, "the origin feeds e2 now");
    // Their depth comes with the next description of the stream.
    eventually("e3 is a level higher", seconds(3), || {
        (upstreams_at(&cluster, 3, 2) == 1).then_some(())
    });
}

#[test]
fn with_two_upstreams_nothing_is_lost_when_one_dies() {
    let leaf = fanout("EDGE", 2).env("HEADWATER_EDGE__UPSTREAMS", "2");
    let edges = [fanout("EDGE", 2), fanout("EDGE", 2), leaf];
    let mut cluster = Cluster::tree(&fanout("ORIGIN", 2), &edges);
    let _publisher = Stamped::start(cluster.origin().rtmp, "live", "demo");
    // Those that feed the leaf are watched themselves.
    let mut others = Vec::new();
    for edge in [1, 2] {
        let mut viewer = Viewer::start(&whep(&cluster, edge), seconds(60), &["--wait", "20s"]);
        viewer.await_frames(10, seconds(30));
        assert_eq!(upstreams_at(&cluster, edge, 1), 1, "e{edge}");
        others.push(viewer);
    }
    let (missing, freeze) = killed(&mut cluster, 3, 2, 2, 1);
    assert_eq!(missing, 0);
    assert!(freeze <= 500.0, "{freeze} ms");
}
