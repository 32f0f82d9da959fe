//! The player page in a real Chromium, driven by `tests/browser/play.mjs`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use headwater_media::testkit::{Conditions, Loss};
use serde_json::Value;

use super::harness::{
    Cluster, Directory, Options, Picture, Process, Publisher, Relay, Sound, eventually, get,
    number, pause, seconds,
};

/// The screenshots lie in `target/tmp` for people to look at.
fn screenshot(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.png"))
}

pub(super) struct Browser {
    pub(super) process: Process,
    // Closing it asks the script to end.
    pub(super) stdin: Option<std::process::ChildStdin>,
}

impl Browser {
    pub(super) fn open(mode: &str, url: &str, name: &str) -> Self {
        Self::open_with(mode, url, name, &[])
    }

    fn open_with(mode: &str, url: &str, name: &str, env: &[(&str, &str)]) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser");
        assert!(
            directory.join("node_modules/playwright-core").exists(),
            "playwright-core is missing: run `npm --prefix tests/browser ci` or `make test`"
        );
        let mut command = Command::new("node");
        command
            .arg(directory.join("play.mjs"))
            .args([mode, url])
            .arg(screenshot(name))
            .envs(env.iter().copied())
            .stdin(Stdio::piped());
        let mut process = Process::start("chromium", &mut command);
        let stdin = process.stdin();
        Self { process, stdin }
    }

    pub(super) fn last(&self) -> Option<Value> {
        let lines = self.process.lines();
        lines.iter().rev().find_map(|line| {
            let value: Value = serde_json::from_str(line).ok()?;
            value.is_object().then_some(value)
        })
    }

    pub(super) fn await_state(&mut self, state: &str, limit: Duration) -> Value {
        eventually(&format!("the player is {state}"), limit, || {
            let seen = self.last();
            assert!(self.process.running(), "the browser ended: {seen:?}");
            seen.filter(|seen| seen["state"] == state)
        })
    }

    /// Waits until the picture moves on by `more` frames of the same session.
    pub(super) fn await_frames(&mut self, more: u64, limit: Duration) {
        let before = self.last().map_or(0, |seen| number(&seen, "/frames"));
        eventually("the picture moves", limit, || {
            let seen = self.last()?;
            (seen["state"] == "live" && number(&seen, "/frames") >= before + more).then_some(())
        });
    }
}

#[test]
fn what_a_player_reports_is_what_its_viewer_saw() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/qoe.mjs");
    let output = Command::new("node").arg(script).output().expect("node");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
}

#[test]
fn browser_sees_every_frame_in_order_and_hears_the_tone_in_sync() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/counter");
    let _publisher = Publisher::start(&url, Picture::Counter, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/live/counter", cluster.edge().http);
    let mut browser = Browser::open("measure", &page, "player");
    let status = browser.process.wait(seconds(80));
    let seen = browser.last().unwrap_or_default();
    assert!(status.success(), "{seen:#}");
    // For whoever runs it with --no-capture: these figures belong into the notes of a release.
    eprintln!("{seen:#}");
    assert_eq!(seen["errors"], serde_json::json!([]), "errors in the page");
    assert_eq!(seen["muted"], true, "it starts without sound: {seen:#}");
    assert_eq!(
        seen["unmuted"], true,
        "the button turns the sound on: {seen:#}"
    );
    assert_eq!(seen["statistics"], true, "i opens the statistics: {seen:#}");

    let float = |name: &str| seen[name].as_f64().unwrap_or(f64::NAN);
    let expected = 30.0 * float("seconds");
    assert!(
        float("decoded") >= 0.99 * expected - 2.0,
        "{expected} frames were sent: {seen:#}"
    );
    assert_eq!(seen["disorder"], 0, "{seen:#}");
    assert_eq!(seen["unreadable"], 0, "{seen:#}");
    assert!(
        float("read") >= 0.99 * (float("span") + 1.0),
        "frames are missing: {seen:#}"
    );
    assert!(float("read") >= 270.0, "{seen:#}");
    assert!(float("toneHeard") >= 0.9 * float("toneSamples"), "{seen:#}");
    assert!(float("offsetMs").abs() <= 80.0, "{seen:#}");
    assert_eq!(seen["stats"]["latencyKind"], "measured", "{seen:#}");
}

#[test]
fn browser_comes_back_by_itself_after_publisher_and_edge() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/demo");
    let page = format!("http://127.0.0.1:{}/play/live/demo", cluster.edge().http);

    let mut browser = Browser::open("follow", &page, "recovered");
    browser.await_state("waiting", seconds(30));
    let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    browser.await_state("live", seconds(20));

    // The publisher pauses: the session stays, and nothing is joined anew.
    let joins = number(&browser.last().unwrap_or_default(), "/joins");
    publisher.kill();
    browser.await_state("held", seconds(10));
    drop(publisher);
    let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    browser.await_state("live", seconds(20));
    browser.await_frames(30, seconds(10));
    let seen = browser.last().unwrap_or_default();
    assert_eq!(number(&seen, "/joins"), joins, "{seen:#}");

    // The edge dies: the player notices long before ICE does, and joins the new one.
    cluster.edge().kill();
    browser.await_state("reconnecting", seconds(5));
    cluster.edge().restart();
    browser.await_state("live", seconds(25));
    let seen = browser.last().unwrap_or_default();
    assert!(number(&seen, "/joins") > joins, "{seen:#}");
    assert_eq!(seen["errors"], serde_json::json!([]), "errors in the page");
    browser.await_frames(30, seconds(10));

    // Leaving the page ends the session at once, not after the consent timeout.
    let admin = cluster.edge().admin;
    let viewers = || Some(get(admin, "/api/v1/viewers")?.body.contains("live/demo"));
    assert_eq!(viewers(), Some(true));
    drop(browser.stdin.take());
    eventually("the session is deleted", seconds(5), || {
        viewers().filter(|any| !any)
    });
    // The edge that went away is told of as a freeze, to the one that came back.
    let metrics = eventually("the player reports", seconds(5), || {
        let text = get(admin, "/metrics")?.body;
        let none = "headwater_edge_player_reports_total{result=\"ok\"} 0\n";
        (!text.contains(none)).then_some(text)
    });
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or(f64::NAN)
    };
    let frozen = value("headwater_edge_player_frozen_seconds_total ");
    let played = value("headwater_edge_player_played_seconds_total ");
    assert!(frozen >= 2.0 && frozen <= played, "{frozen} of {played} s");
    assert!(value("headwater_edge_player_freezes_total ") >= 1.0);
    browser.process.wait(seconds(15));
}

#[test]
fn browser_without_udp_plays_by_tcp() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/tcp"), Picture::Test, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/live/tcp", cluster.edge().http);
    let mut browser = Browser::open_with("follow", &page, "tcp", &[("ONLY_TCP", "1")]);
    browser.await_state("live", seconds(20));
    browser.await_frames(150, seconds(8));
    let admin = cluster.edge().admin;
    let viewers = get(admin, "/api/v1/viewers").expect("viewers").body;
    assert!(viewers.contains(r#""transport":"tcp""#), "{viewers}");
    let seen = browser.last().unwrap_or_default();
    assert_eq!(number(&seen, "/joins"), 1, "{seen:#}");
    assert_eq!(seen["errors"], serde_json::json!([]), "errors in the page");
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}

#[test]
fn browser_gets_what_a_bad_network_loses_once_more() {
    // Players are told of the relay, which has the edge's port at another address of this machine.
    let relay_ip = Ipv4Addr::new(127, 0, 0, 2);
    let mut options = Options::default().env("HEADWATER_EDGE__MEDIA_TCP", "off");
    options.public_ip = Some(relay_ip);
    let mut cluster = Cluster::standalone(&options);
    let media = cluster.edge().media;
    let conditions = Conditions {
        delay: Duration::from_millis(30),
        loss: Loss::Random(30),
        ..Conditions::default()
    };
    let (front, edge) = ((relay_ip, media), (Ipv4Addr::LOCALHOST, media));
    let relay = Relay::start(front.into(), edge.into(), conditions, 5);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/lossy"), Picture::Test, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/live/lossy", cluster.edge().http);
    let mut browser = Browser::open("follow", &page, "lossy");
    browser.await_state("live", seconds(30));
    browser.await_frames(60, seconds(8));

    let (before, lost) = (browser.last().unwrap_or_default(), relay.lost());
    pause(seconds(15));
    let (after, lost) = (browser.last().unwrap_or_default(), relay.lost() - lost);
    let grown = |name: &str| {
        let of = |seen: &Value| seen["stats"][name].as_f64().unwrap_or(f64::NAN);
        of(&after) - of(&before)
    };
    let of = |seen: &Value| seen["at"].as_f64().unwrap_or(f64::NAN);
    let expected = (of(&after) - of(&before)) / 1000.0 * 30.0;
    // For whoever runs it with --no-capture, as above.
    let figures = ["nack", "repaired", "pli", "frames", "dropped", "freezes"];
    eprintln!(
        "of {expected:.0} pictures, {lost} datagrams lost: {:?}, {:.2} s frozen",
        figures.map(|name| (name, grown(name))),
        grown("frozenSeconds")
    );
    assert!(lost >= 20, "the network lost {lost}");
    assert_eq!(number(&after, "/joins"), 1, "{after:#}");
    assert!(grown("nack") > 0.0, "it asked: {after:#}");
    assert!(grown("repaired") > 0.0, "it was answered: {after:#}");
    // The figures are up to half a second old, before and after.
    let decoded = grown("frames");
    assert!(
        decoded >= 0.95 * (expected - 15.0),
        "{decoded} of {expected}: {after:#}"
    );
    assert!(grown("dropped") <= 0.05 * expected, "{after:#}");
    assert!(grown("frozenSeconds") <= 2.0, "{before:#} {after:#}");
    assert_eq!(after["errors"], serde_json::json!([]), "errors in the page");
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}

#[test]
fn browser_holds_pictures_back_as_configured() {
    let options = Options::default().env("HEADWATER_EDGE__PLAYOUT_DELAY_MS", "[500, 1000]");
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/calm"), Picture::Test, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/live/calm", cluster.edge().http);
    let mut browser = Browser::open("follow", &page, "calm");
    browser.await_state("live", seconds(20));
    // What was said for the run-up is taken back some seconds later.
    browser.await_frames(150, seconds(10));
    let held = |seen: Option<Value>| seen?["stats"]["bufferMs"].as_f64();
    eventually("pictures are held back", seconds(10), || {
        let now = held(browser.last())?;
        (400.0..1000.0).contains(&now).then_some(())
    });
    // And they stay so. Without the setting it is a few milliseconds.
    pause(seconds(2));
    let stays = held(browser.last()).unwrap_or_default();
    assert!((400.0..1000.0).contains(&stays), "{stays} ms");
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}

#[test]
fn browser_offers_the_qualities_there_are() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/menu"), Picture::Test, Sound::Tone);
    let page = format!("http://127.0.0.1:{}/play/live/menu", cluster.edge().http);
    let mut browser = Browser::open("quality", &page, "quality");
    let status = browser.process.wait(seconds(60));
    let seen = browser.last().unwrap_or_default();
    assert!(status.success(), "{seen:#}");
    assert_eq!(seen["labels"][0], "Auto", "{seen:#}");
    assert_eq!(seen["seen"][0], seen["seen"][2], "{seen:#}");
    assert_ne!(seen["seen"][0], seen["seen"][1], "{seen:#}");
    assert_eq!(number(&seen, "/joins"), 1, "in one session: {seen:#}");
    assert_eq!(seen["errors"], serde_json::json!([]), "errors in the page");
}

#[test]
fn browser_explains_b_frames() {
    let mut cluster =
        Cluster::standalone(&Options::default().env("HEADWATER_LADDER__ENABLED", "false"));
    let _publisher = Publisher::start(&cluster.rtmp_url("live/b"), Picture::BFrames, Sound::Tone);
    let origin = cluster.origin();
    eventually("B-frames are noticed", seconds(15), || {
        origin
            .stream("live/b")
            .filter(|record| record.to_string().contains("B-frames"))
    });
    let page = format!("http://127.0.0.1:{}/play/live/b", cluster.edge().http);
    let mut browser = Browser::open("follow", &page, "b-frames");
    let seen = browser.await_state("problem", seconds(20));
    let text = seen["text"].as_str().unwrap_or_default();
    assert!(
        text.contains("B-frames") && text.contains("OBS"),
        "{seen:#}"
    );
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}
