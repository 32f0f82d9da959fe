//! Viewers without UDP, and those who only pretend to be viewers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use super::harness::{
    Cluster, Directory, Options, Picture, Publisher, Sound, Viewer, eventually, get, metric,
    number, pause, probe, seconds,
};

const BY_TCP: &[&str] = &["--transport", "tcp", "--wait", "15s", "--require-audio"];

fn connections(admin: u16, outcome: &str) -> u64 {
    let name = "headwater_edge_tcp_connections_total";
    metric(admin, &format!("{name}{{outcome=\"{outcome}\"}}"))
}

#[test]
fn a_viewer_without_udp_gets_everything_by_tcp() {
    let mut cluster = Cluster::split(Directory::Static, &Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let url = cluster.whep_url("live/demo");
    let admin = cluster.edge().admin;
    let mut flags = BY_TCP.to_vec();
    flags.extend(["--min-fps", "27", "--max-loss", "0"]);
    let mut viewer = Viewer::start(&url, seconds(4), &flags);
    viewer.await_frames(30, seconds(20));
    let viewers = get(admin, "/api/v1/viewers").expect("viewers").body;
    assert!(viewers.contains(r#""transport":"tcp""#), "{viewers}");
    let status = viewer.process.wait(seconds(20));
    assert!(status.success(), "{:#}", viewer.last().unwrap_or_default());
    assert!(connections(admin, "taken") >= 1);
    // It goes with its viewer.
    eventually("the connection is closed", seconds(5), || {
        let open = metric(admin, "headwater_edge_tcp_connections_open{shard=\"0\"}");
        (open == 0).then_some(())
    });
}

#[test]
fn a_viewer_that_stops_reading_skips_alone_and_goes_on() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    // Its 430 kbit/s fill what the kernel holds in some four seconds; a lower rendition would take longer.
    let url = format!("{}?rendition=source", cluster.whep_url("live/demo"));
    let admin = cluster.edge().admin;
    let mut stalled = Viewer::start(&url, seconds(60), BY_TCP);
    stalled.await_frames(30, seconds(20));

    stalled.process.freeze();
    let neighbour = [BY_TCP, &["--min-fps", "27", "--max-loss", "0"]].concat();
    let (code, report) = probe(&url, seconds(8), &neighbour);
    stalled.process.thaw();
    assert_eq!(code, 0, "{report:#}");
    let skips = "headwater_edge_skips_to_keyframe_total{place=\"tcp\"}";
    assert!(metric(admin, skips) >= 1, "its buffers are bounded");
    stalled.await_frames(60, seconds(15));
    let seen = stalled.last().expect("a report");
    assert!(number(&seen, "/video/keyframes") >= 2, "{seen:#}");
}

#[test]
fn connections_that_are_no_viewers_are_closed_and_counted() {
    let mut cluster = Cluster::standalone(&Options::default());
    let _publisher = Publisher::start(&cluster.rtmp_url("live/demo"), Picture::Test, Sound::Tone);
    let url = cluster.whep_url("live/demo");
    let admin = cluster.edge().admin;
    let mut viewer = Viewer::start(&url, seconds(60), BY_TCP);
    viewer.await_frames(30, seconds(20));

    let port = cluster.edge().media;
    let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
    let is_closed = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(seconds(3))).expect("a time");
        match stream.read(&mut [0; 16]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        }
    };
    // A browser's greeting to an HTTP server reads as a frame of 18245 bytes.
    let huge = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    let noise = [&[0, 40][..], &[7; 40]].concat();
    for (bytes, outcome) in [(huge, "framing"), (noise, "not_stun")] {
        let mut stream = connect();
        stream.write_all(&bytes).expect("it takes bytes");
        eventually("it is counted", seconds(3), || {
            (connections(admin, outcome) >= 1).then_some(())
        });
        assert!(is_closed(&mut stream));
    }

    // One that sends a byte now and then, and many that send nothing: the port stays open to others.
    let mut slow = connect();
    let idle: Vec<_> = (0..80).map(|_| connect()).collect();
    for byte in [0, 100, 0, 1] {
        slow.write_all(&[byte]).expect("it takes bytes");
        pause(seconds(1));
    }
    assert!(connections(admin, "crowded") >= 1, "one address has many");
    eventually("they are given up", seconds(8), || {
        (connections(admin, "late") >= 60).then_some(())
    });
    assert!(is_closed(&mut slow));
    drop(idle);
    viewer.await_frames(30, seconds(5));
    let mut another = Viewer::start(&url, seconds(2), BY_TCP);
    another.await_frames(10, seconds(10));
}
