//! What numbers may be: one line a key. A number outside of its range would be clamped, overflow, or keep everybody out without a word.

use std::ops::RangeInclusive;

use anyhow::ensure;
use headwater_media::tree::PATH_NODES_MAX;
use headwater_origin::rtmp::config::{AMF_DEPTH_MAX, CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX};

use super::Settings;

/// A key, its value, and what it may be.
type Number = (String, u64, RangeInclusive<u64>);

const DAY: u64 = 24 * 3600;
const WEEK: u64 = 7 * DAY;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Of what there are as many as memory holds.
const COUNT: RangeInclusive<u64> = 1..=1_000_000_000;
const COUNT_OR_NONE: RangeInclusive<u64> = 0..=1_000_000_000;
const THREADS: RangeInclusive<u64> = 1..=1024;
const THREADS_OR_AUTO: RangeInclusive<u64> = 0..=1024;
const MILLIS: RangeInclusive<u64> = 100..=DAY * 1000;

/// `section.key: range`.
macro_rules! numbers {
    ($settings:ident; $($first:ident $(. $more:ident)*: $range:expr;)+) => {
        vec![$((
            [stringify!($first), $(stringify!($more)),*].join("."),
            u64::try_from($settings.$first$(.$more)*).unwrap_or(u64::MAX),
            $range,
        )),+]
    };
}

fn numbers(settings: &Settings) -> Vec<Number> {
    numbers! { settings;
        io_threads: THREADS_OR_AUTO;
        drain_seconds: 0..=DAY;
        drain_min_seconds: 0..=DAY;
        stop_seconds: 0..=DAY;

        origin.hold_seconds: 0..=WEEK;
        origin.takeover_seconds: 0..=WEEK;
        origin.streams_max: COUNT;
        origin.fanout: COUNT;
        origin.subscribers_max: COUNT_OR_NONE;
        origin.gop_cache_bytes: 0..=4 * GIB;
        origin.gop_cache_seconds: 0..=3600;
        origin.resume_seconds: 0..=3600;
        origin.resume_bytes: 0..=4 * GIB;
        // A window takes a keyframe, or no edge gets one.
        origin.window_bytes: MIB..=4 * GIB;
        origin.window_ms: 100..=60_000;
        origin.stream_threads: THREADS;

        rtmp.connections_max: COUNT;
        rtmp.connections_per_ip_max: COUNT;
        rtmp.handshake_timeout_ms: MILLIS;
        rtmp.publish_timeout_ms: MILLIS;
        rtmp.ping_after_ms: MILLIS;
        rtmp.silence_timeout_ms: MILLIS;
        rtmp.message_bytes_max: 65_536..=MESSAGE_BYTES_MAX as u64;
        rtmp.amf_bytes_max: 4096..=MESSAGE_BYTES_MAX as u64;
        rtmp.chunk_bytes_max: 128..=CHUNK_BYTES_MAX as u64;
        rtmp.chunk_streams_max: 4..=65_600;
        rtmp.reassembly_bytes_max: 65_536..=GIB;
        rtmp.message_streams_max: 1..=1000;
        rtmp.amf_depth_max: 4..=AMF_DEPTH_MAX as u64;
        rtmp.command_arguments_max: 4..=1_000_000;
        rtmp.amf_values_max: 64..=1_000_000;

        audio.threads: 1..=64;
        audio.stereo_bitrate: 6000..=510_000;
        audio.mono_bitrate: 6000..=510_000;
        audio.complexity: 0..=10;
        audio.expected_loss_percent: 0..=100;
        audio.queue_units: 1..=100_000;
        audio.restarts_max: COUNT_OR_NONE;
        audio.restart_window_seconds: 1..=DAY;

        ladder.linger_seconds: 0..=DAY;
        ladder.streams_max: 0..=10_000;

        edge.shards: THREADS_OR_AUTO;
        edge.fanout: COUNT;
        edge.subscribers_max: COUNT_OR_NONE;
        edge.depth_max: 1..=PATH_NODES_MAX as u64;
        // A third one protects from what has not been seen.
        edge.upstreams: 1..=3;
        edge.resume_seconds: 0..=3600;
        edge.resume_bytes: 0..=4 * GIB;
        edge.viewers_per_shard: COUNT;
        edge.egress_mbps_max: COUNT_OR_NONE;
        edge.streams_max: COUNT;
        edge.linger_seconds: 0..=DAY;
        edge.stream_lost_seconds: 0..=DAY;
        edge.open_timeout_ms: 100..=60_000;
        edge.ring_seconds: 1..=3600;
        // Less than a keyframe can be, and nobody gets a picture.
        edge.ring_bytes: MIB..=4 * GIB;
        edge.send_buffer_bytes: 65_536..=GIB;
        edge.receive_buffer_bytes: 65_536..=GIB;

        edge.limits.workers: THREADS_OR_AUTO;
        edge.limits.connections_per_worker: COUNT;
        edge.limits.connections_per_address: COUNT_OR_NONE;
        edge.limits.request_timeout_ms: MILLIS;
        edge.limits.keep_alive_seconds: 1..=DAY;
        edge.limits.requests_per_second: COUNT_OR_NONE;
        edge.limits.requests_burst: COUNT;
        edge.limits.reports_per_second: COUNT_OR_NONE;
    }
}

/// # Errors
/// At the first number that is none of its range.
pub(super) fn check(settings: &Settings) -> anyhow::Result<()> {
    for (key, value, range) in numbers(settings) {
        ensure!(
            range.contains(&value),
            "{key} is {} to {}, not {value}",
            range.start(),
            range.end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_range() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/headwater.toml");
        let text = std::fs::read_to_string(sample).expect("the sample");
        let table: toml::Table = text.parse().expect("TOML");
        let mut given = Vec::new();
        integers("", &table, &mut given);
        given.sort();
        let ranges = numbers(&Settings::default()).into_iter();
        let mut ranged: Vec<String> = ranges.map(|(key, _, _)| key).collect();
        ranged.sort();
        assert_eq!(ranged, given);
    }

    fn integers(section: &str, table: &toml::Table, found: &mut Vec<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Integer(_) => found.push(format!("{section}{key}")),
                toml::Value::Table(inner) => integers(&format!("{section}{key}."), inner, found),
                _ => {}
            }
        }
    }

    #[test]
    fn a_number_that_makes_no_sense_is_refused_with_its_key_and_range() {
        check(&Settings::default()).expect("the defaults");
        let mut settings = Settings::default();
        settings.edge.viewers_per_shard = 0;
        let told = check(&settings)
            .expect_err("nobody could watch")
            .to_string();
        assert_eq!(told, "edge.viewers_per_shard is 1 to 1000000000, not 0");
        let wrong: [fn(&mut Settings); 9] = [
            |s| s.edge.ring_bytes = 0,
            |s| s.edge.upstreams = 4,
            |s| s.origin.window_bytes = 10,
            |s| s.origin.streams_max = 0,
            |s| s.origin.hold_seconds = u64::MAX,
            |s| s.rtmp.message_bytes_max = 64 << 20,
            |s| s.rtmp.chunk_bytes_max = 999_999_999,
            |s| s.audio.stereo_bitrate = 5999,
            |s| s.audio.complexity = 11,
        ];
        for (at, change) in wrong.iter().enumerate() {
            let mut settings = Settings::default();
            change(&mut settings);
            assert!(check(&settings).is_err(), "{at}");
        }
    }
}
