//! A publisher that brings its own renditions: they are tracks of one stream, and nothing is transcoded.

use std::process::{Command, Stdio};

use headwater_bench::programme::Layout;
use serde_json::Value;

use super::harness::{
    Cluster, Directory, Options, Process, Stamped, eventually, get, number, probe, seconds,
};

/// Name, height and bitrate of the H.264 tracks of a record, none of which is still.
fn renditions(record: &Value) -> Vec<(String, u64, u64)> {
    let tracks = record.get("tracks").and_then(Value::as_array);
    let video = tracks
        .into_iter()
        .flatten()
        .filter(|track| track["codec"] == "h264");
    video
        .map(|track| {
            let name = track["rendition"].as_str().unwrap_or_default().to_owned();
            (
                name,
                number(track, "/height"),
                number(track, "/bits_per_second"),
            )
        })
        .filter(|(_, _, bitrate)| *bitrate > 0)
        .collect()
}

#[test]
fn the_tracks_of_a_multitrack_publisher_are_renditions_without_transcoding() {
    let mut cluster = Cluster::split(Directory::Static, &Options::default());
    let rtmp = cluster.origin().rtmp;
    // What OBS would be told to send.
    let document =
        get(cluster.origin().admin, "/api/v1/publish-config/live/one").expect("an answer");
    let document = document.json();
    let encoders = document["encoder_configurations"]
        .as_array()
        .expect("encoders");
    let heights: Vec<u64> = encoders
        .iter()
        .map(|encoder| number(encoder, "/height"))
        .collect();
    assert_eq!(heights, [1080, 720, 480, 240]);
    let endpoint = &document["ingest_endpoints"][0]["url_template"];
    assert_eq!(
        endpoint,
        &format!("rtmp://127.0.0.1:{rtmp}/live/{{stream_key}}")
    );
    for (key, layout) in [("one", Layout::OneTrack), ("many", Layout::ManyTracks)] {
        let _publisher = Stamped::ladder(rtmp, "live", key, layout);
        let name = format!("live/{key}");
        let found = eventually("three renditions flow", seconds(15), || {
            let record = cluster.origin().stream(&name)?;
            let found = renditions(&record);
            // Rates need a moment to fill their window.
            let settled = found.iter().all(|(_, _, bitrate)| *bitrate > 100_000);
            (found.len() == 3 && settled).then_some(found)
        });
        let names = found
            .iter()
            .map(|(name, height, _)| (name.as_str(), *height));
        let expected = [("source", 360), ("240p", 240), ("144p", 144)];
        assert_eq!(names.collect::<Vec<_>>(), expected, "{key}");
        let rates: Vec<u64> = found.iter().map(|(.., bitrate)| *bitrate).collect();
        assert!(
            rates[0] > rates[1] && rates[1] > rates[2],
            "{key}: {rates:?}"
        );

        let (code, report) = probe(&cluster.whep_url(&name), seconds(2), &[]);
        assert_eq!(code, 0, "{key}: {report}");
        let children = cluster.origin().process.children();
        assert_eq!(children, Vec::<String>::new(), "{key}");
    }
}

/// One ffmpeg with these outputs: what is behind the URL, size of the picture, pictures from one keyframe to the next.
fn encoder(url: &str, outputs: &[(&str, &str, u32)]) -> Process {
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "warning", "-nostdin", "-re"]);
    command.args(["-f", "lavfi", "-i", "testsrc2=size=640x360:rate=30"]);
    command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]);
    for (query, size, gop) in outputs {
        command.args(["-map", "0:v", "-s", size, "-c:v", "libx264"]);
        command.args(["-preset", "ultrafast", "-tune", "zerolatency", "-bf", "0"]);
        command.args(["-pix_fmt", "yuv420p", "-sc_threshold", "0"]);
        command.args(["-g", &gop.to_string(), "-keyint_min", &gop.to_string()]);
        if query.is_empty() {
            command.args(["-map", "1:a", "-c:a", "aac"]);
        }
        command.args(["-f", "flv", &format!("{url}{query}")]);
    }
    command.stdin(Stdio::null());
    Process::start("ffmpeg", &mut command)
}

#[test]
fn several_publishes_are_one_stream_if_their_keyframes_are_at_the_same_times() {
    let mut cluster = Cluster::split(Directory::Static, &Options::default());
    let url = cluster.rtmp_url("live/show");
    // One rendition comes before the source, with more keyframes; its sound's priming moves the source's clock.
    let outputs = [
        ("?rendition=240p", "426x240", 15),
        ("", "640x360", 30),
        ("?rendition=low", "256x144", 30),
    ];
    let mut publisher = encoder(&url, &outputs);
    let await_three = |cluster: &mut Cluster| {
        eventually("three renditions flow", seconds(15), || {
            let record = cluster.origin().stream("live/show")?;
            let mut found = renditions(&record);
            found.sort();
            let names: Vec<_> = found.iter().map(|(name, ..)| name.as_str()).collect();
            (names == ["240p", "low", "source"]).then_some(record)
        })
    };
    let record = await_three(&mut cluster);
    let aligned = |name: &str| {
        let all = record["contributors"].as_array().expect("contributors");
        all.iter()
            .any(|one| one["rendition"] == name && one["aligned"] == true)
    };
    assert!(aligned("240p") && aligned("low"), "{record}");

    // Another process has another clock: there is no saying which of its pictures belong where.
    let mut stray = encoder(&url, &[("?rendition=stray", "256x144", 25)]);
    stray.wait(seconds(20));
    let record = await_three(&mut cluster);
    let refused = &record["refused_renditions"][0];
    assert_eq!(refused["rendition"], "stray", "{record}");
    let reason = refused["reason"].as_str().expect("a reason");
    assert!(reason.contains("keyframes"), "{reason}");
    let metrics = get(cluster.origin().admin, "/metrics")
        .expect("metrics")
        .body;
    let counted = "headwater_origin_renditions_refused_total{reason=\"unaligned\"} 1";
    assert!(metrics.contains(counted), "{metrics}");

    assert!(publisher.running());
    let (code, report) = probe(&cluster.whep_url("live/show"), seconds(3), &[]);
    assert_eq!(code, 0, "{report}");
    assert_eq!(cluster.origin().process.children(), Vec::<String>::new());
}
