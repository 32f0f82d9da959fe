//! A publisher that brings its own renditions: they are tracks of one stream, and nothing is transcoded.

use headwater_bench::programme::Layout;
use serde_json::Value;

use super::harness::{Cluster, Directory, Options, Stamped, eventually, number, probe, seconds};

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
            (name, number(track, "/height"), number(track, "/bitrate"))
        })
        .filter(|(_, _, bitrate)| *bitrate > 0)
        .collect()
}

#[test]
fn the_tracks_of_a_multitrack_publisher_are_renditions_without_transcoding() {
    let mut cluster = Cluster::split(Directory::Static, &Options::default());
    let rtmp = cluster.origin().rtmp;
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

        let (code, report) = probe(&cluster.whep_url(&name), seconds(4), &[]);
        assert_eq!(code, 0, "{key}: {report}");
        let children = cluster.origin().process.children();
        assert_eq!(children, Vec::<String>::new(), "{key}");
    }
}
