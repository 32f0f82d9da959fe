//! The page for operators in a real Chromium, driven by `tests/browser/admin.mjs`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::harness::{
    Cluster, Options, Picture, Process, Publisher, Sound, Viewer, eventually, get, number, request,
    seconds,
};

const STREAM: &str = "live/show";

/// What the script saw. Its screenshots lie in `target/tmp` for people to look at.
fn operate(mode: &str, admin: u16) -> Value {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
    let mut command = Command::new("node");
    command
        .arg(directory.join("admin.mjs"))
        .args([mode, &format!("http://127.0.0.1:{admin}/admin")])
        .arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("admin"));
    let mut process = Process::start("chromium", &mut command);
    let status = process.wait(seconds(60));
    let seen: Value = process
        .lines()
        .iter()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok())
        .unwrap_or_default();
    assert!(status.success(), "{seen:#}");
    assert_eq!(seen["errors"], json!([]), "errors in the page: {seen:#}");
    seen
}

/// The texts of one column, by its place.
fn column(seen: &Value, table: &str, at: usize) -> Vec<String> {
    let rows = seen[table].as_array().into_iter().flatten();
    rows.map(|row| row[at].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn an_operator_sees_who_watches_kicks_one_and_drains_the_node() {
    let options = Options {
        public_url: true,
        ..Options::default()
    };
    let options = options.env("HEADWATER_AUTH__ADMIN_TOKEN", "open-sesame");
    let mut cluster = Cluster::fleet(1, 2, &options);
    let mut publisher = Publisher::start(&cluster.rtmp_url(STREAM), Picture::Test, Sound::Tone);
    // They are many for an edge that may have none to send on: nobody is placed elsewhere.
    let url = cluster.whep_url(STREAM);
    let mut watching: Vec<Viewer> = (0..3)
        .map(|_| Viewer::start(&url, seconds(120), &["--wait", "20s"]))
        .collect();
    Viewer::all_await_frames(&mut watching, 60, seconds(30));
    let origin = cluster.origin().admin;
    let edges: Vec<u16> = cluster.edges().map(|edge| edge.admin).collect();

    let seen = operate("edge", edges[0]);
    let mut nodes = column(&seen, "nodes", 0);
    assert_eq!(nodes[0], "e1", "itself first: {seen:#}");
    nodes.sort();
    assert_eq!(nodes, ["e1", "e2", "o1"]);
    assert_eq!(column(&seen, "streams", 0), [STREAM]);
    assert_eq!(column(&seen, "streams", 2), ["3"], "viewers: {seen:#}");
    let viewers = seen["viewers"].as_array().cloned().unwrap_or_default();
    assert_eq!(viewers.len(), 3);
    for viewer in &viewers {
        let text = |at: usize| viewer[at].as_str().unwrap_or_default();
        assert_eq!(text(1), STREAM);
        assert_eq!(text(2), "source", "the rendition: {viewer}");
        assert!(text(3).ends_with("bit/s"), "what it is sent: {viewer}");
        assert_eq!(text(5), "0.0 %", "its loss: {viewer}");
        assert_eq!(text(9), "connected, udp");
    }
    assert_eq!(seen["filtered"], json!([viewers[0][0]]), "{seen:#}");
    assert_eq!(seen["none"], true, "{seen:#}");
    assert_eq!(seen["sorted"], "ascending");
    assert_eq!(seen["ascending"], json!(["1", "2", "3"]));
    assert_eq!(seen["cancelled"], true, "cancelling kicks nobody: {seen:#}");
    assert_eq!(seen["kicked"], "Viewer 3 was kicked.");
    assert_eq!(seen["drained"], "The node drains.");
    let metrics = get(edges[1], "/metrics").expect("metrics").body;
    assert!(
        metrics.contains("headwater_draining 0"),
        "the other one stays"
    );
    let status = cluster.edge().process.wait(seconds(15));
    assert_eq!(status.code(), Some(0), "{status}");
    // Of the three, one was kicked, and the drain moved the others.
    let moved = watching.iter().filter_map(Viewer::last);
    let moved = moved.filter(|report| number(report, "/moved") == 1).count();
    assert_eq!(moved, 2);

    let seen = operate("origin", origin);
    assert_eq!(column(&seen, "streams", 1), ["live"]);
    assert!(column(&seen, "streams", 5)[0].contains("Lavf"), "{seen:#}");
    assert_eq!(
        seen["kicked"],
        format!("The publisher of {STREAM} was kicked.")
    );
    eventually("the encoder is sent away", seconds(10), || {
        (!publisher.process().running()).then_some(())
    });
    let again = |headers: &[(&str, &str)]| {
        let path = format!("/api/v1/streams/{STREAM}/kick");
        request(origin, "POST", &path, headers, "").map(|answer| answer.status)
    };
    assert_eq!(again(&[]), Some(401));
    assert_eq!(again(&[("Authorization", "Bearer sesame")]), Some(401));
    let token = [("Authorization", "Bearer open-sesame")];
    assert_eq!(again(&token), Some(404));
}

#[test]
fn the_page_stands_a_crowd_and_names_that_are_markup() {
    let mut cluster = Cluster::standalone(&Options::default());
    let seen = operate("crowd", cluster.edge().admin);
    assert_eq!(seen["rows"], 50, "rows in the document: {seen:#}");
    assert_eq!(seen["count"], "2,000 viewers");
    assert_eq!(seen["page"], "2 / 40");
    assert_eq!(seen["filtered"], "4 of 2,000 viewers", "{seen:#}");
    let losses = seen["losses"].as_array().cloned().unwrap_or_default();
    assert!(
        losses.iter().take(40).all(|loss| loss == "4.9 %"),
        "{seen:#}"
    );
    assert_eq!(
        (&seen["broken"], &seen["markup"]),
        (&Value::Null, &json!(0))
    );
    assert!(
        seen["text"]
            .as_str()
            .is_some_and(|text| text.contains("<img"))
    );
}
