//! What an operator relies on: signals, health, metrics, the API and the command line.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::harness::{
    Cluster, Directory, Options, Picture, Publisher, Sound, Viewer, eventually, get, seconds,
};

#[test]
fn sigterm_ends_every_role_in_order() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(
        &cluster.whep_url("live/demo"),
        seconds(60),
        &["--wait", "15s"],
    );
    viewer.await_frames(10, seconds(20));
    for node in cluster.nodes.iter_mut().rev() {
        node.process.terminate();
        let status = node.process.wait(seconds(15));
        assert_eq!(
            status.code(),
            Some(0),
            "{} ended by {status}",
            node.process.name
        );
        let panicked = node.process.said("panicked at");
        assert!(!panicked, "{} panicked on its way out", node.process.name);
    }
}

#[test]
fn sigterm_ends_standalone_with_a_publisher_and_a_viewer() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(
        &cluster.whep_url("live/demo"),
        seconds(60),
        &["--wait", "15s"],
    );
    viewer.await_frames(10, seconds(20));
    let node = cluster.edge();
    node.process.terminate();
    let status = node.process.wait(seconds(15));
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn metrics_and_api_tell_what_goes_on() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(
        &cluster.whep_url("live/demo"),
        seconds(60),
        &["--wait", "15s"],
    );
    viewer.await_frames(30, seconds(20));
    let node = cluster.edge();
    let record = node.stream("live/demo").expect("the stream's record");
    assert_eq!(record["name"], "live/demo");
    let viewers = get(node.admin, "/api/v1/viewers")
        .expect("the viewers")
        .body;
    assert!(viewers.contains("live/demo"), "{viewers}");
    assert_eq!(
        get(node.admin, "/healthz").map(|answer| answer.status),
        Some(200)
    );
    let text = get(node.admin, "/metrics").expect("the metrics").body;
    check_exposition(&text);
    for prefix in ["headwater_origin_", "headwater_edge_"] {
        assert!(text.contains(prefix), "no metric of {prefix}:\n{text}");
    }
    drop(viewer);
    // Nobody deletes the session of a viewer that was killed: the edge misses its STUN checks.
    eventually("the viewer is gone", seconds(45), || {
        let viewers = get(node.admin, "/api/v1/viewers")?.body;
        (!viewers.contains("live/demo")).then_some(())
    });
}

/// The rules of the Prometheus text format that break scrapes when broken, and our own for names.
fn check_exposition(text: &str) {
    let mut kinds = std::collections::HashMap::new();
    let mut helped = std::collections::HashSet::new();
    let mut series = std::collections::HashSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => {
                assert!(kinds.insert(name, kind).is_none(), "two types for {name}");
            }
            ["#", "HELP", name, ..] => {
                helped.insert(name);
            }
            [] | [""] => {}
            _ => {
                let (id, value) = line.rsplit_once(' ').expect("a series and its value");
                assert!(value.parse::<f64>().is_ok(), "no number: {line}");
                assert!(series.insert(id), "twice: {id}");
                let name = id.split('{').next().unwrap_or_default();
                assert!(
                    name.starts_with("headwater_") || name.starts_with("process_"),
                    "{line}"
                );
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| {
                        name.strip_suffix(suffix)
                            .filter(|base| kinds.contains_key(base))
                    })
                    .unwrap_or(name);
                let kind = kinds
                    .get(family)
                    .unwrap_or_else(|| panic!("no type for {name}"));
                assert!(helped.contains(family), "no help for {family}");
                assert!(
                    *kind != "counter" || family.ends_with("_total"),
                    "{family} is a counter"
                );
                for label in ["viewer=", "key=", "address=", "stream_key="] {
                    assert!(!id.contains(label), "a label without bound: {id}");
                }
            }
        }
    }
    assert!(!series.is_empty(), "no series at all");
}

#[test]
fn the_command_line_explains_itself_and_refuses_what_it_does_not_know() {
    let headwater = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_headwater"))
            .args(arguments)
            .output()
            .expect("headwater runs")
    };
    let version = headwater(&["--version"]);
    assert!(version.status.success());
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("headwater 0."));
    for role in ["standalone", "origin", "edge", "probe"] {
        assert!(
            headwater(&[role, "--help"]).status.success(),
            "{role} --help"
        );
    }
    let unknown = headwater(&["standalone", "--no-such-flag"]);
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("--no-such-flag"));
    let nonsense = headwater(&["probe", "rtmp://127.0.0.1/live/demo"]);
    assert_eq!(nonsense.status.code(), Some(2));
}

#[test]
fn metrics_of_an_idle_cluster_are_few_and_begin_at_zero() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    for admin in [cluster.edge().admin, cluster.origin().admin] {
        let text = get(admin, "/metrics").expect("the metrics").body;
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        // On eight cores: there is one shard here.
        let of_a_shard = text.matches("shard=\"0\"").count();
        let series = series + 7 * of_a_shard;
        assert!(series < 300, "{series} series:\n{text}");
        check_with_promtool(&text);
    }
    let text = get(cluster.edge().admin, "/metrics")
        .expect("the metrics")
        .body;
    for series in [
        "headwater_edge_joins_total{result=\"ok\"}",
        "headwater_edge_viewers_ended_total{reason=\"kicked\"}",
        "headwater_edge_join_seconds_count{phase=\"first_media\"}",
        "headwater_edge_join_seconds_bucket{phase=\"first_media\",le=\"1.5\"}",
        "headwater_edge_player_played_seconds_total",
        "headwater_edge_packets_sent_total{kind=\"video\"}",
    ] {
        let zero = format!("{series} 0");
        assert!(
            text.lines().any(|line| line == zero),
            "no {series}:\n{text}"
        );
    }
}

/// promtool finds nothing to say of it.
fn check_with_promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("promtool");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
