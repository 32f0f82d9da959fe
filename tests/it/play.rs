//! A stream that was pushed can be watched: through every kind of cluster, and with every reason why not.

use super::harness::{
    Cluster, Directory, Options, Picture, Publisher, Sound, Stamped, Viewer, eventually, get,
    number, probe, request, seconds,
};

/// What any healthy stream of the test's publisher looks like at the viewer.
const HEALTHY: &[&str] = &[
    "--wait",
    "15s",
    "--min-fps",
    "27",
    "--max-loss",
    "0",
    "--require-audio",
];

#[test]
fn standalone_plays_what_ffmpeg_pushes() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let (code, report) = probe(&cluster.whep_url("live/demo"), seconds(4), HEALTHY);
    assert_eq!(code, 0, "{report:#}");
    assert!(number(&report, "/video/keyframes") >= 3, "{report:#}");
    // 50 packets of 20 ms a second.
    assert!(number(&report, "/audio/packets") >= 150, "{report:#}");
    let behind = report["video_behind_audio_ms"]
        .as_f64()
        .expect("sender reports came");
    assert!(
        behind.abs() <= 80.0,
        "picture and sound are {behind} ms apart"
    );
}

#[test]
fn origin_and_edge_find_each_other_by_etcd_and_stay_quick() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let _publisher = Stamped::start(cluster.origin().rtmp, "live", "stamped");
    let mut flags = HEALTHY.to_vec();
    // The goal of 3 ms is measured elsewhere on a quiet machine; here it must only not be queued somewhere.
    flags.extend(["--max-latency", "40"]);
    let (code, report) = probe(&cluster.whep_url("live/stamped"), seconds(4), &flags);
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["latency"]["source"], "stamp", "{report:#}");
    assert!(number(&report, "/latency/samples") >= 80, "{report:#}");
    let first = report["join"]["first_frame_ms"].as_f64();
    assert!(first.is_some_and(|ms| ms < 1000.0), "{report:#}");
}

#[test]
fn an_edge_with_a_list_of_origins_needs_no_directory() {
    let mut cluster = Cluster::split(Directory::Static, &Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let (code, report) = probe(&cluster.whep_url("live/demo"), seconds(3), HEALTHY);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn two_streams_do_not_disturb_each_other() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _first = Publisher::start(&cluster.rtmp_url("live/first"), Picture::Test, Sound::Tone);
    let mut second = Publisher::start(
        &cluster.rtmp_url("other/second"),
        Picture::Test,
        Sound::Silence,
    );
    let mut silent = Viewer::start(
        &cluster.whep_url("other/second"),
        seconds(60),
        &["--wait", "15s"],
    );
    silent.await_frames(30, seconds(20));
    second.kill();
    let (code, report) = probe(&cluster.whep_url("live/first"), seconds(3), HEALTHY);
    assert_eq!(code, 0, "{report:#}");
    let seen = silent.last().expect("a report");
    assert!(
        seen["audio"].is_null(),
        "a stream without sound has none: {seen:#}"
    );
}

#[test]
fn a_stream_that_is_not_live_says_so_and_plays_as_soon_as_it_is() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.whep_url("live/later");
    let (code, report) = probe(&url, seconds(1), &[]);
    assert_eq!(code, 2, "{report:#}");
    assert!(
        report["reasons"][0]
            .as_str()
            .is_some_and(|why| why.contains("not live")),
        "{report:#}"
    );
    let http = cluster.edge().http;
    let offer = [("Content-Type", "application/sdp")];
    let answer = request(http, "POST", "/whep/live/later", &offer, OFFER).expect("an answer");
    assert_eq!(answer.status, 409, "{answer:?}");
    assert!(answer.header("Retry-After").is_some(), "{answer:?}");
    let answer = request(http, "POST", "/whep/live/..", &offer, OFFER).expect("an answer");
    assert_eq!(answer.status, 404, "{answer:?}");

    let mut viewer = Viewer::start(&url, seconds(2), HEALTHY);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/later"), Picture::Test, Sound::Tone);
    let status = viewer.process.wait(seconds(40));
    assert!(status.success(), "{:#}", viewer.last().unwrap_or_default());
}

#[test]
fn b_frames_are_refused_with_their_reason_where_nothing_is_made_without_them() {
    let options = Options::default().env("HEADWATER_LADDER__ENABLED", "false");
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/b"), Picture::BFrames, Sound::Tone);
    let url = cluster.whep_url("live/b");
    // Whether frames are reordered shows only in the pictures, so the very first offers may come too early.
    let (code, report) = eventually("B-frames are noticed", seconds(20), || {
        let (code, report) = probe(&url, seconds(1), &["--wait", "10s"]);
        report
            .to_string()
            .contains("B-frames")
            .then_some((code, report))
    });
    assert_eq!(code, 2, "{report:#}");
    let record = cluster
        .origin()
        .stream("live/b")
        .expect("the stream's record");
    assert!(record.to_string().contains("B-frames"), "{record:#}");
}

#[test]
fn a_publisher_may_have_b_frames_or_return_with_them() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.rtmp_url("live/b");
    let mut publisher = Publisher::start(&url, Picture::BFrames, Sound::Tone);
    let flags = ["--wait", "15s", "--min-fps", "27", "--max-loss", "0"];
    let (code, report) = probe(&cluster.whep_url("live/b"), seconds(3), &flags);
    assert_eq!(code, 0, "{report:#}");

    publisher.kill();
    let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(&cluster.whep_url("live/b"), seconds(120), HEALTHY);
    viewer.await_frames(30, seconds(30));
    publisher.kill();
    let _publisher = Publisher::start(&url, Picture::BFrames, Sound::Tone);
    // In the same session.
    viewer.await_frames(120, seconds(30));
}

#[test]
fn a_publisher_that_returns_with_b_frames_loses_its_webrtc_viewers_where_nothing_is_made_without_them()
 {
    let options = Options::default().env("HEADWATER_LADDER__ENABLED", "false");
    let mut cluster = Cluster::standalone(&options);
    let url = cluster.rtmp_url("live/b");
    let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(&cluster.whep_url("live/b"), seconds(120), HEALTHY);
    viewer.await_frames(30, seconds(30));
    publisher.kill();
    let _publisher = Publisher::start(&url, Picture::BFrames, Sound::Tone);
    let admin = cluster.edge().admin;
    eventually("the viewer is sent away", seconds(20), || {
        let viewers = get(admin, "/api/v1/viewers")?.body;
        (!viewers.contains("live/b")).then_some(())
    });
    let (code, report) = probe(&cluster.whep_url("live/b"), seconds(1), &[]);
    assert_eq!(code, 2, "{report:#}");
    assert!(report.to_string().contains("B-frames"), "{report:#}");
}

#[test]
fn a_token_opens_the_door_for_viewers() {
    let options = Options::default().env("HEADWATER_AUTH__PLAY_TOKEN", "open-sesame");
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let url = cluster.whep_url("live/demo");
    for (flags, status) in [(&[][..], "401"), (&["--bearer", "wrong"][..], "40")] {
        let (code, report) = probe(&url, seconds(1), flags);
        assert_eq!(code, 2, "{report:#}");
        let why = report["reasons"][0].as_str().unwrap_or_default();
        assert!(why.contains(&format!("refused with {status}")), "{why}");
    }
    let mut flags = HEALTHY.to_vec();
    flags.extend(["--bearer", "open-sesame"]);
    let (code, report) = probe(&url, seconds(2), &flags);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn surround_sound_without_ffmpeg_costs_the_sound_and_nothing_else() {
    // The origin finds no ffmpeg on this PATH.
    let empty = tempfile::tempdir().expect("a directory");
    let options = Options::default().env("PATH", &empty.path().display().to_string());
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(
        &cluster.rtmp_url("live/5.1"),
        Picture::Test,
        Sound::Surround,
    );
    let flags = ["--wait", "15s", "--min-fps", "27", "--max-loss", "0"];
    let (code, report) = probe(&cluster.whep_url("live/5.1"), seconds(3), &flags);
    assert_eq!(code, 0, "{report:#}");
    assert!(report["audio"].is_null(), "{report:#}");
    let record = cluster
        .origin()
        .stream("live/5.1")
        .expect("the stream's record");
    assert!(record.to_string().contains("ffmpeg"), "{record:#}");
}

#[test]
fn surround_sound_plays_through_the_ffmpeg_child() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(
        &cluster.rtmp_url("live/5.1"),
        Picture::Test,
        Sound::Surround,
    );
    let (code, report) = probe(&cluster.whep_url("live/5.1"), seconds(4), HEALTHY);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn the_pages_list_what_is_live() {
    let mut cluster = Cluster::standalone(&Options::default());
    let http = cluster.edge().http;
    let page = get(http, "/").expect("the index page");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("/assets/index.js"), "{}", page.body);
    let page = get(http, "/play/live/demo").expect("the player page");
    assert!(page.body.contains("/assets/player.js"), "{}", page.body);
    for asset in ["index.js", "player.js", "style.css", "favicon.svg"] {
        let answer = get(http, &format!("/assets/{asset}")).expect("an asset");
        assert_eq!(
            (answer.status, answer.body.is_empty()),
            (200, false),
            "{asset}"
        );
    }
    let live = || {
        let streams = get(http, "/api/v1/streams")?.json();
        Some(
            streams["streams"]
                .as_array()?
                .iter()
                .any(|stream| stream["name"] == "live/demo"),
        )
    };
    assert_eq!(live(), Some(false));
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    eventually("the stream is listed", seconds(15), || {
        live().filter(|live| *live)
    });
}

/// The least that is an offer.
const OFFER: &str = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 102\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\n\
    a=setup:actpass\r\na=ice-ufrag:abcd\r\na=ice-pwd:abcdefghijklmnopqrstuvwx\r\n\
    a=fingerprint:sha-256 00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF\r\n\
    a=rtpmap:102 H264/90000\r\na=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n";
