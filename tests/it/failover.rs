//! Each part is killed in turn: what remains goes on, what comes back is used again without a restart of the others.

use super::harness::{
    Cluster, Directory, Node, Options, Picture, Publisher, Sound, Viewer, eventually, get, number,
    pause, probe, request, seconds,
};
use super::whep::OFFER;

const FLAGS: &[&str] = &["--wait", "20s", "--min-fps", "20"];

#[test]
fn a_publisher_that_comes_back_continues_in_the_same_session() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/demo");
    let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(&cluster.whep_url("live/demo"), seconds(120), FLAGS);
    viewer.await_frames(30, seconds(30));
    publisher.kill();
    drop(publisher);
    // Long enough for whoever gives up on silence.
    pause(seconds(5));
    let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    // Two seconds of picture in the session that the viewer had before.
    viewer.await_frames(60, seconds(30));
    goes_on_without_loss(&viewer);
}

/// In the session it joined, with sequence numbers that go on.
fn goes_on_without_loss(viewer: &Viewer) {
    let report = viewer.last().expect("a report");
    assert_eq!(number(&report, "/video/lost"), 0, "{report:#}");
    // The newest one may be on its way.
    let [frames, complete] = ["/video/frames", "/video/complete"].map(|key| number(&report, key));
    assert!(
        frames - complete <= 1,
        "packets go on with the next number: {report:#}"
    );
}

/// Publishes `live/demo` at a node until it is accepted.
fn publish_patiently(node: &Node) -> Publisher {
    let url = format!("rtmp://127.0.0.1:{}/live/demo", node.rtmp);
    eventually("the publisher is accepted", seconds(40), || {
        let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
        eventually("it is accepted or refused", seconds(15), || {
            let accepted = publishes(node);
            (accepted || !publisher.process().running()).then_some(accepted)
        })
        .then_some(publisher)
    })
}

fn publishes(node: &Node) -> bool {
    node.stream("live/demo")
        .is_some_and(|stream| stream["publishing"] == true)
}

#[test]
fn an_origin_that_dies_loses_its_streams_to_the_other_at_once_and_viewers_stay() {
    let (mut cluster, _etcd) = Cluster::two_origins(&Options::default());
    let _publisher = publish_patiently(&cluster.nodes[0]);
    let mut viewer = Viewer::start(&cluster.whep_url("live/demo"), seconds(120), FLAGS);
    viewer.await_frames(30, seconds(30));
    cluster.nodes[0].kill();
    // Its lease has not ended, so the other one has to find out that it is gone.
    let url = format!("rtmp://127.0.0.1:{}/live/demo", cluster.nodes[1].rtmp);
    let mut second = Publisher::start(&url, Picture::Test, Sound::Tone);
    viewer.await_frames(60, seconds(10));
    assert!(second.process().running(), "it was accepted at once");
    goes_on_without_loss(&viewer);

    // The first one is back, and its name for the stream is of an earlier run.
    cluster.nodes[0].restart();
    drop(second);
    let _third = publish_patiently(&cluster.nodes[0]);
    viewer.await_frames(60, seconds(10));
    goes_on_without_loss(&viewer);
}

#[test]
fn a_publisher_is_found_at_another_origin_of_a_list() {
    let mut cluster = Cluster::listed(2, &Options::default());
    let whep = cluster.whep_url("live/demo");
    let mut viewers = Vec::new();
    for there in [0, 1, 0] {
        // Where it was before, the stream is held for half a minute.
        let url = format!("rtmp://127.0.0.1:{}/live/demo", cluster.nodes[there].rtmp);
        let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
        viewers.push(Viewer::start(&whep, seconds(60), FLAGS));
        Viewer::all_await_frames(&mut viewers, 60, seconds(12));
        viewers.iter().for_each(goes_on_without_loss);
    }
}

#[test]
fn an_origin_that_is_cut_off_from_etcd_keeps_its_stream_until_another_has_it() {
    let (mut cluster, etcd) = Cluster::two_origins(&Options::default());
    let mut first = publish_patiently(&cluster.nodes[0]);
    let mut viewer = Viewer::start(&cluster.whep_url("live/demo"), seconds(180), FLAGS);
    viewer.await_frames(30, seconds(30));
    etcd.cut();
    let other = format!("rtmp://127.0.0.1:{}/live/demo", cluster.nodes[1].rtmp);
    let mut early = Publisher::start(&other, Picture::Test, Sound::Tone);
    eventually(
        "it is refused: the owner's publisher sends",
        seconds(10),
        || (!early.process().running()).then_some(()),
    );
    viewer.await_frames(30, seconds(5));
    // Once the lease is over, nobody knows of the first origin any more.
    let mut second = publish_patiently(&cluster.nodes[1]);
    assert!(first.process().running(), "nobody has told it");
    viewer.await_frames(60, seconds(10));
    goes_on_without_loss(&viewer);

    etcd.heal();
    eventually("the first origin gives its stream up", seconds(20), || {
        cluster.nodes[0].stream("live/demo").is_none().then_some(())
    });
    eventually("its publisher is sent away", seconds(10), || {
        (!first.process().running()).then_some(())
    });
    assert!(second.process().running() && publishes(&cluster.nodes[1]));
    viewer.await_frames(30, seconds(5));
    goes_on_without_loss(&viewer);
}

#[test]
fn an_origin_that_comes_back_is_found_again_and_the_edge_keeps_its_viewers() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/demo");
    let publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let mut viewer = Viewer::start(&cluster.whep_url("live/demo"), seconds(180), FLAGS);
    viewer.await_frames(30, seconds(30));
    cluster.origin().kill();
    drop(publisher);
    assert!(cluster.edge().process.running(), "the edge lives on");
    cluster.origin().restart();
    let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    // It takes the stream again from its earlier run, whose lease has not ended.
    viewer.await_frames(60, seconds(10));
    let (code, report) = probe(&cluster.whep_url("live/demo"), seconds(2), FLAGS);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn an_edge_that_comes_back_serves_the_stream_that_went_on() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/demo");
    let mut publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let whep = cluster.whep_url("live/demo");
    let (code, report) = probe(&whep, seconds(2), FLAGS);
    assert_eq!(code, 0, "{report:#}");
    cluster.edge().kill();
    let (code, _) = probe(&whep, seconds(1), &[]);
    assert_eq!(code, 2, "a dead edge cannot be joined");
    assert!(publisher.process().running(), "the publisher never noticed");
    cluster.edge().restart();
    let (code, report) = probe(&whep, seconds(2), FLAGS);
    assert_eq!(code, 0, "{report:#}");
}

#[test]
fn without_etcd_what_plays_goes_on_and_new_viewers_join_it() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let url = cluster.rtmp_url("live/demo");
    let publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    let whep = cluster.whep_url("live/demo");
    let mut viewer = Viewer::start(&whep, seconds(120), FLAGS);
    viewer.await_frames(30, seconds(30));
    cluster.etcd().kill();
    // A publisher that comes back is taken by the claim that stands; a new stream would be refused.
    drop(publisher);
    let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    viewer.await_frames(30, seconds(20));
    let mut refused =
        Publisher::start(&cluster.rtmp_url("live/new"), Picture::Test, Sound::Silence);
    // Longer than the leases, which nobody can renew now.
    pause(seconds(17));
    viewer.await_frames(30, seconds(5));
    assert!(!refused.process().running(), "nobody can claim its name");
    let (code, report) = probe(&whep, seconds(2), FLAGS);
    assert_eq!(code, 0, "{report:#}");
    cluster.restart_etcd();
    viewer.await_frames(30, seconds(5));
    let _second = Publisher::start(&cluster.rtmp_url("live/second"), Picture::Test, Sound::Tone);
    let (code, report) = probe(&cluster.whep_url("live/second"), seconds(2), FLAGS);
    assert_eq!(code, 0, "etcd is used again: {report:#}");
}

#[test]
fn an_origin_that_cannot_be_reached_is_told_from_a_stream_that_nobody_publishes() {
    let linked = Options {
        linked: true,
        ..Options::default()
    };
    let mut dead = Cluster::split(Directory::Static, &Options::default());
    let mut lost = Cluster::split(Directory::Etcd, &linked);
    let _publisher = Publisher::start(&lost.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    for cluster in [&mut dead, &mut lost] {
        assert_eq!(join(cluster.edge(), "live/nobody"), (409, "not-live"));
    }
    // Nobody listens where `--origin` says, or at what the origin advertises.
    dead.origin().kill();
    let way = lost.origin().link.as_ref().expect("its way");
    way.cut();
    for (cluster, reason) in [(&mut dead, "Connection refused"), (&mut lost, "no answer")] {
        let edge = cluster.edge();
        assert_eq!(join(edge, "live/demo"), (503, "no-upstream"));
        assert!(counted(edge, 1));
        let lines = edge.process.lines();
        let said = lines
            .iter()
            .filter(|line| line.contains("an upstream can't be used"));
        let said: Vec<_> = said.collect();
        assert!(
            said.len() == 1 && said[0].contains("WARN") && said[0].contains(reason),
            "{said:?}"
        );
    }
    // Who waits is served as soon as the origin is reached.
    let mut viewer = Viewer::start(&lost.whep_url("live/demo"), seconds(60), FLAGS);
    let edge = lost.edge();
    eventually("the viewer was refused", seconds(15), || {
        counted(edge, 2).then_some(())
    });
    lost.origin().link.as_ref().expect("its way").heal();
    viewer.await_frames(30, seconds(20));
}

/// So many were refused since their stream's origin can't be reached.
fn counted(edge: &Node, refused: u64) -> bool {
    let metrics = get(edge.admin, "/metrics").expect("metrics").body;
    let line = format!("headwater_edge_joins_total{{result=\"no-upstream\"}} {refused}\n");
    metrics.contains(&line)
}

/// What a newcomer is told.
fn join(edge: &Node, stream: &str) -> (u16, &'static str) {
    let path = format!("/whep/{stream}");
    let headers = [("Content-Type", "application/sdp")];
    let answer = request(edge.http, "POST", &path, &headers, OFFER).expect("an answer");
    let kinds = ["not-live", "no-upstream"];
    let kind = kinds.into_iter().find(|kind| answer.body.contains(kind));
    (answer.status, kind.unwrap_or_default())
}
