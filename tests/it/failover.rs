//! Each part is killed in turn: what remains goes on, what comes back is used again without a restart of the others.

use super::harness::{
    Cluster, Directory, Options, Picture, Publisher, Sound, Viewer, number, pause, probe, seconds,
};

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
    let _publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    // Two seconds of picture in the session that the viewer had before.
    viewer.await_frames(60, seconds(30));
    let report = viewer.last().expect("a report");
    assert_eq!(number(&report, "/video/lost"), 0, "{report:#}");
    assert_eq!(
        report["video"]["frames"], report["video"]["complete"],
        "packets go on with the next number: {report:#}"
    );
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
    // The old origin's lease (10 to 15 s) has to end before its streams are another's.
    viewer.await_frames(60, seconds(45));
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
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let whep = cluster.whep_url("live/demo");
    let mut viewer = Viewer::start(&whep, seconds(120), FLAGS);
    viewer.await_frames(30, seconds(30));
    cluster.etcd().kill();
    // Longer than the leases, which nobody can renew now.
    pause(seconds(17));
    viewer.await_frames(30, seconds(5));
    let (code, report) = probe(&whep, seconds(2), FLAGS);
    assert_eq!(code, 0, "{report:#}");
    cluster.restart_etcd();
    viewer.await_frames(30, seconds(5));
    let _second = Publisher::start(&cluster.rtmp_url("live/second"), Picture::Test, Sound::Tone);
    let (code, report) = probe(&cluster.whep_url("live/second"), seconds(2), FLAGS);
    assert_eq!(code, 0, "etcd is used again: {report:#}");
}
