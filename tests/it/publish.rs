//! Whoever publishes by RTMP is taken in with picture and sound: every client that is common, as it comes.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::harness::{Cluster, Options, Process, eventually, get, seconds};

/// A stream whose publisher is well has all of these tracks, and something in them.
const TRACKS: [&str; 3] = ["h264", "aac", "opus"];

/// The codecs of a stream's tracks that carry something at the moment.
fn flowing(record: &Value) -> Vec<&str> {
    let tracks = record.get("tracks").and_then(Value::as_array);
    tracks
        .into_iter()
        .flatten()
        .filter(|track| track.get("bits_per_second").and_then(Value::as_u64) > Some(0))
        .filter_map(|track| track.get("codec").and_then(Value::as_str))
        .collect()
}

fn await_flow(cluster: &mut Cluster, stream: &str, publisher: &mut Process) {
    let what = format!("{} flows as {TRACKS:?}", publisher.name);
    eventually(&what, seconds(20), || {
        assert!(publisher.running(), "{} ended", publisher.name);
        let record = cluster.origin().stream(stream)?;
        let flowing = flowing(&record);
        TRACKS
            .iter()
            .all(|codec| flowing.contains(codec))
            .then_some(())
    });
}

fn gstreamer(sink: &str) -> Process {
    let pipeline = format!(
        "flvmux name=mux streamable=true ! {sink} \
         videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=30/1 \
         ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 bitrate=500 \
         ! video/x-h264,profile=baseline ! h264parse ! queue ! mux. \
         audiotestsrc is-live=true ! audio/x-raw,rate=44100,channels=2 ! voaacenc \
         ! aacparse ! queue ! mux."
    );
    let mut command = Command::new("gst-launch-1.0");
    command.args(["-q", "-e"]).args(pipeline.split_whitespace());
    command.stdin(Stdio::null());
    Process::start("gst-launch-1.0", &mut command)
}

#[test]
fn gstreamers_rtmp2sink_is_understood() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.rtmp_url("live/rtmp2sink");
    let mut publisher = gstreamer(&format!("rtmp2sink location={url}"));
    await_flow(&mut cluster, "live/rtmp2sink", &mut publisher);
}

#[test]
fn librtmp_as_gstreamers_rtmpsink_is_understood() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.rtmp_url("live/rtmpsink");
    let mut publisher = gstreamer(&format!("rtmpsink location={url}"));
    await_flow(&mut cluster, "live/rtmpsink", &mut publisher);
}

/// ffmpeg with a tone in so many channels.
fn ffmpeg(tone: &str, channels: &str, url: &str) -> Process {
    let line = format!(
        "-hide_banner -loglevel warning -nostdin -re -f lavfi -i testsrc2=size=320x240:rate=25 \
         -re -f lavfi -i sine=frequency={tone} -c:a aac -ac {channels} \
         -c:v libx264 -preset ultrafast -tune zerolatency -g 25 -pix_fmt yuv420p -f flv {url}"
    );
    let mut command = Command::new("ffmpeg");
    command.args(line.split_whitespace()).stdin(Stdio::null());
    Process::start("ffmpeg", &mut command)
}

#[test]
fn ffmpeg_in_mono_at_an_odd_rate_is_understood() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.rtmp_url("live/mono");
    let mut publisher = ffmpeg("440:sample_rate=22050", "1", &url);
    await_flow(&mut cluster, "live/mono", &mut publisher);
}

/// The `ffmpeg` processes that `parent` has started.
fn ffmpegs_of(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(&format!("(ffmpeg) S {parent} "))
                || stat.contains(&format!("(ffmpeg) R {parent} "))
        })
        .collect()
}

/// A process runs; a zombie doesn't.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn an_origin_that_crashes_leaves_no_ffmpeg_behind() {
    let mut cluster = Cluster::standalone(&Options::default());
    let url = cluster.rtmp_url("live/surround");
    let mut publisher = ffmpeg("440", "6", &url);
    await_flow(&mut cluster, "live/surround", &mut publisher);
    let [child] = ffmpegs_of(cluster.origin().process.pid())[..] else {
        panic!("one stream needs one ffmpeg");
    };
    let metrics = get(cluster.origin().admin, "/metrics").expect("metrics");
    let running = "headwater_origin_audio_transcodes{path=\"ffmpeg\"} 1";
    assert!(metrics.body.contains(running), "{}", metrics.body);
    cluster.origin().kill();
    eventually("ffmpeg ends with its origin", seconds(10), || {
        (!runs(child)).then_some(())
    });
}
