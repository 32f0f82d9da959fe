//! Edges that feed edges: a stream finds its way by redirections, and keeps its viewers when a node on that way dies.

use std::time::Duration;

use headwater_bench::time::wall;
use serde_json::Value;

use super::harness::{
    Cluster, Options, Stamped, Viewer, Watcher, eventually, get, judge, micros, number, pause,
    probe, seconds,
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

/// A counter of a node.
fn counter(cluster: &Cluster, node: usize, name: &str) -> u64 {
    let text = get(cluster.nodes[node].admin, "/metrics")
        .expect("metrics")
        .body;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("it is counted")
        .trim()
        .parse()
        .expect("a number")
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
fn whoever_an_origin_took_past_its_fan_out_goes_to_an_edge_with_room_and_its_viewers_see_everything()
 {
    let leaf = Options::default().env("HEADWATER_EDGE__SUBSCRIBERS_MAX", "0");
    let edges = [leaf, fanout("EDGE", 2), fanout("EDGE", 2)];
    let mut cluster = Cluster::tree(&fanout("ORIGIN", 1), &edges);
    let _publisher = Stamped::start(cluster.origin().rtmp, "live", "demo");
    let watch = |edge| {
        let mut viewer = Viewer::start(&whep(&cluster, edge), seconds(60), &["--wait", "20s"]);
        viewer.await_frames(30, seconds(30));
        viewer
    };
    // The first passes nothing on, so the origin takes the second as well.
    let first = watch(1);
    let _second = watch(2);
    assert_eq!([1, 2].map(|edge| upstreams_at(&cluster, edge, 1)), [1, 1]);
    let before = first.last().expect("a report");
    let _third = watch(3);
    assert_eq!(
        upstreams_at(&cluster, 3, 2),
        1,
        "the second feeds the third"
    );
    eventually("the second feeds the first too", seconds(10), || {
        (upstreams_at(&cluster, 1, 2) == 1).then_some(())
    });
    pause(seconds(1));
    let after = first.last().expect("a report");
    assert_eq!(missing(&before, &after), 0);
    assert_eq!(number(&after, "/video/lost"), 0, "{after:#}");
    let freeze = longest_freeze_ms(&after);
    assert!(freeze <= 500.0, "{freeze} ms");
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

#[test]
fn a_link_that_was_cut_for_three_seconds_costs_nothing_but_those() {
    let linked = Options {
        linked: true,
        ..Options::default()
    };
    let mut cluster = Cluster::tree(&linked, &[Options::default()]);
    let publisher = Stamped::start(cluster.origin().rtmp, "live", "demo");
    let mut viewer = Watcher::start(&whep(&cluster, 1));
    viewer.await_newer(micros(wall()), seconds(30));
    let link = cluster.nodes[0].link.as_ref().expect("a link");
    for outlived in [true, false] {
        // Its run-up is over, and so is what the cut before cost.
        pause(seconds(2));
        let calm = micros(wall());
        pause(seconds(1));
        let cut = micros(wall());
        let normal = judge(
            &publisher.published(),
            viewer.shown(),
            calm,
            calm - 2_000_000,
        );
        link.cut();
        pause(seconds(3));
        if outlived {
            link.mend();
        } else {
            link.heal();
        }
        let healed = micros(wall());
        viewer.await_newer(healed + 3_000_000, seconds(10));
        let verdict = judge(&publisher.published(), viewer.shown(), cut, healed);
        eprintln!("connections outlive it: {outlived}; before it {normal:?}, then {verdict:?}");
        let lost = counter(&cluster, 1, "headwater_edge_upstream_units_lost_total");
        assert_eq!(lost, 0, "the window holds them");
        assert_eq!(verdict.missing, [0_u64; 0], "{verdict:?}");
        assert_eq!(verdict.repeated, [0_u64; 0], "{verdict:?}");
        assert!(verdict.gap >= seconds(3), "it was cut: {verdict:?}");
        let usual = normal.late + Duration::from_millis(100);
        assert!(verdict.late <= usual, "{verdict:?}, before {normal:?}");
    }
}
