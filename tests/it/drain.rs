//! A planned stop: viewers that listen go to another edge before they leave, and see nothing of it.

use serde_json::Value;

use super::browser::Browser;
use super::harness::{
    Answer, Cluster, Options, Picture, Publisher, Sound, Viewer, Wire, eventually, get, number,
    pause, request, seconds,
};

const STREAM: &str = "live/show";
const FLAGS: &[&str] = &["--wait", "20s", "--min-fps", "25"];
/// Of an edge, what its viewers may see of its end: less than the eye takes for a pause.
const FREEZE_MAX_MS: f64 = 250.0;

fn options() -> Options {
    Options {
        public_url: true,
        ..Options::default()
    }
}

fn post(port: u16, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(port, "POST", path, headers, body).expect("an answer")
}

fn viewers(admin: u16) -> Option<usize> {
    let record = get(admin, "/api/v1/viewers")?.json();
    record["viewers"].as_array().map(Vec::len)
}

fn freeze(report: &Value) -> f64 {
    report["video"]["longest_freeze_ms"]
        .as_f64()
        .unwrap_or(f64::NAN)
}

#[test]
fn all_edges_are_restarted_one_by_one_and_no_viewer_sees_it() {
    let cluster = Cluster::fleet(1, 2, &options());
    restart_all(cluster, |cluster| {
        cluster.edges().map(|edge| edge.http).collect()
    });
}

#[test]
fn nor_does_one_who_knows_a_single_address_for_all_edges() {
    let mut cluster = Cluster::fleet(1, 2, &Options::default());
    let wire = Wire::among(cluster.edges().map(|edge| edge.http).collect());
    restart_all(cluster, |_| vec![wire.port()]);
}

/// Restarts all edges one by one while viewers watch, who ask at the ports that `ask_at` gives, and looks at what those saw.
fn restart_all(mut cluster: Cluster, ask_at: impl FnOnce(&mut Cluster) -> Vec<u16>) {
    let _publisher = Publisher::start(&cluster.rtmp_url(STREAM), Picture::Test, Sound::Tone);
    let urls: Vec<String> = ask_at(&mut cluster)
        .iter()
        .map(|port| format!("http://127.0.0.1:{port}/whep/{STREAM}"))
        .collect();
    let mut watching: Vec<Viewer> = (0..4)
        .map(|i| Viewer::start(&urls[i % urls.len()], seconds(120), FLAGS))
        .collect();
    Viewer::all_await_frames(&mut watching, 60, seconds(30));
    for edge in cluster.edges() {
        let admin = edge.admin;
        assert!(viewers(admin).is_some_and(|count| count > 0));
        edge.process.terminate();
        eventually("it says so", seconds(3), || {
            get(admin, "/readyz").filter(|answer| answer.status == 503)
        });
        edge.process.wait(seconds(20));
        edge.restart();
        // Those that were moved watch on for a while.
        Viewer::all_await_frames(&mut watching, 60, seconds(5));
    }
    for viewer in &watching {
        let report = viewer.last().expect("a report");
        assert!(number(&report, "/moved") >= 1, "{report:#}");
        assert!(freeze(&report) <= FREEZE_MAX_MS, "{report:#}");
        assert_eq!(number(&report, "/video/lost"), 0, "{report:#}");
    }
}

#[test]
fn the_player_page_goes_over_without_a_pause() {
    let mut cluster = Cluster::fleet(1, 2, &options());
    let _publisher = Publisher::start(&cluster.rtmp_url(STREAM), Picture::Test, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/{STREAM}", cluster.edge().http);
    let mut browser = Browser::open("follow", &page, "drain");
    browser.await_state("live", seconds(30));
    browser.await_frames(150, seconds(12));
    let before = browser.last().unwrap_or_default();
    cluster.edge().process.terminate();
    cluster.edge().process.wait(seconds(20));
    // The new session counts from nothing.
    let after = eventually("the picture of the other edge moves", seconds(8), || {
        browser.last().filter(|seen| {
            number(seen, "/joins") == 2 && (60..150).contains(&number(seen, "/frames"))
        })
    });
    assert_eq!(
        after["history"], before["history"],
        "it was live all the time"
    );
    assert_eq!(after["errors"], serde_json::json!([]), "errors in the page");
    let since = before["at"].as_f64().unwrap_or_default();
    let pauses = after["pauses"].as_array().into_iter().flatten();
    let longest = pauses
        .filter(|pause| pause[0].as_f64().is_some_and(|at| at > since))
        .filter_map(|pause| pause[1].as_f64())
        .fold(0.0, f64::max);
    eprintln!("the longest pause between two pictures: {longest} ms");
    assert!(longest <= FREEZE_MAX_MS, "{after:#}");
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}

#[test]
fn a_viewer_without_events_stays_until_the_time_is_up() {
    let options = options().env("HEADWATER_DRAIN_SECONDS", "3");
    let mut cluster = Cluster::fleet(1, 2, &options);
    let _publisher = Publisher::start(&cluster.rtmp_url(STREAM), Picture::Test, Sound::Tone);
    let flags = [FLAGS, &["--stay"]].concat();
    let mut viewer = Viewer::start(&cluster.whep_url(STREAM), seconds(60), &flags);
    viewer.await_frames(60, seconds(30));
    let edge = cluster.edge();
    let (admin, http) = (edge.admin, edge.http);
    let asked = post(admin, "/api/v1/drain", &[], "");
    assert_eq!(asked.status, 202, "{}", asked.body);
    // Newcomers are sent to the other edge, which takes them.
    let whep = format!("/whep/{STREAM}");
    let newcomer = post(http, &whep, &[("Content-Type", "application/sdp")], "v=0");
    assert_eq!(newcomer.status, 307, "{}", newcomer.body);
    let location = newcomer.header("location").expect("where to");
    let second = cluster.edges().nth(1).expect("two edges").http;
    assert_eq!(
        location,
        format!("http://127.0.0.1:{second}{whep}?sent-by=e1")
    );
    viewer.await_frames(30, seconds(3));
    cluster.edge().process.wait(seconds(10));
    let report = viewer.last().expect("a report");
    assert_eq!(number(&report, "/moved"), 0, "{report:#}");
}

#[test]
fn a_node_answers_until_load_balancers_have_noticed() {
    let options = options().env("HEADWATER_DRAIN_MIN_SECONDS", "2");
    let mut cluster = Cluster::fleet(1, 2, &options);
    let edge = cluster.edge();
    let (admin, http) = (edge.admin, edge.http);
    edge.process.terminate();
    pause(seconds(1));
    assert_eq!(get(admin, "/readyz").map(|answer| answer.status), Some(503));
    let whep = format!("/whep/{STREAM}");
    let newcomer = post(http, &whep, &[("Content-Type", "application/sdp")], "v=0");
    assert_eq!(newcomer.status, 307, "{}", newcomer.body);
    cluster.edge().process.wait(seconds(8));
}

#[test]
fn an_edge_without_others_does_not_wait() {
    let mut cluster = Cluster::fleet(1, 1, &options());
    let _publisher = Publisher::start(&cluster.rtmp_url(STREAM), Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(&cluster.whep_url(STREAM), seconds(60), FLAGS);
    viewer.await_frames(60, seconds(30));
    cluster.edge().process.terminate();
    cluster.edge().process.wait(seconds(8));
}

#[test]
fn pages_cannot_drain_a_node() {
    let mut cluster = Cluster::standalone(&Options::default());
    let admin = cluster.edge().admin;
    for header in [
        ("Origin", "https://elsewhere.example"),
        ("Sec-Fetch-Site", "same-origin"),
    ] {
        assert_eq!(post(admin, "/api/v1/drain", &[header], "").status, 403);
    }
    assert_eq!(post(admin, "/api/v1/drain", &[], "").status, 202);
    cluster.edge().process.wait(seconds(10));
}
