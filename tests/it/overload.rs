//! An edge that has as much as it may, and one whose viewers come and go: those who watch don't notice.

use super::harness::{
    Cluster, Options, Picture, Publisher, Sound, Viewer, eventually, get, request, seconds,
};

const OFFER: &str = include_str!("../../media/src/sdp/testdata/chromium-156-stereo.sdp");
const STREAM: &str = "/whep/live/demo";
const SDP: (&str, &str) = ("Content-Type", "application/sdp");

fn viewers(admin: u16) -> usize {
    let viewers = get(admin, "/api/v1/viewers").expect("viewers");
    viewers.body.matches("live/demo").count()
}

#[test]
fn an_edge_at_its_egress_limit_refuses_newcomers_and_serves_who_watches() {
    // One viewer takes more than the one megabit.
    let options = Options::default().env("HEADWATER_EDGE__EGRESS_MBPS_MAX", "1");
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let url = cluster.whep_url("live/demo");
    let mut viewer = Viewer::start(&url, seconds(120), &["--wait", "15s"]);
    viewer.await_frames(60, seconds(20));
    let (http, admin) = (cluster.edge().http, cluster.edge().admin);
    let refused = eventually("a newcomer is refused", seconds(5), || {
        // Not even an offer: it isn't read.
        let answer = request(http, "POST", STREAM, &[SDP], "x")?;
        (answer.status == 503).then_some(answer)
    });
    assert!(refused.body.contains("urn:headwater:problem:egress"));
    let after = refused.header("Retry-After").map(str::parse::<u16>);
    assert!(matches!(after, Some(Ok(4..=12))), "{refused:?}");
    viewer.await_frames(60, seconds(10));
    let metrics = get(admin, "/metrics").expect("the metrics").body;
    for line in [
        "headwater_edge_joins_total{result=\"egress\"}",
        "headwater_edge_load_ratio 1.",
        "headwater_edge_shard_load_ratio{shard=\"0\"} 1.",
    ] {
        assert!(metrics.contains(line), "no {line} in\n{metrics}");
    }
    let uncounted = "headwater_edge_joins_total{result=\"egress\"} 0\n";
    assert!(!metrics.contains(uncounted), "{metrics}");
    // When it has left there is room again.
    viewer.leave();
    eventually("a newcomer is let in", seconds(30), || {
        let answer = request(http, "POST", STREAM, &[SDP], OFFER)?;
        (answer.status == 201).then_some(())
    });
}

#[test]
fn viewers_who_come_and_go_leave_no_memory_behind() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let url = cluster.whep_url("live/demo");
    let mut viewer = Viewer::start(&url, seconds(90), &["--wait", "15s"]);
    viewer.await_frames(10, seconds(20));
    let node = cluster.edge();
    let (http, admin, pid) = (node.http, node.admin, node.process.pid());
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
        kilobytes.expect("the resident memory")
    };
    let come_and_go = |count: usize| {
        let sessions: Vec<String> = (0..count)
            .map(|_| {
                let answer = request(http, "POST", STREAM, &[SDP], OFFER).expect("an answer");
                assert_eq!(answer.status, 201, "{answer:?}");
                answer.header("Location").expect("a session").to_owned()
            })
            .collect();
        assert_eq!(viewers(admin), count + 1);
        for session in sessions {
            let answer = request(http, "DELETE", &session, &[], "").expect("an answer");
            assert_eq!(answer.status, 200);
        }
        assert_eq!(viewers(admin), 1);
    };
    // The first round fills what allocators keep.
    come_and_go(200);
    let before = resident();
    for _ in 0..4 {
        come_and_go(200);
    }
    let after = resident();
    assert!(
        after <= before + before / 20 + 2048,
        "{before} kB became {after} kB"
    );
    viewer.await_frames(30, seconds(10));
}
