//! A stream as `/api/v1/streams` shows it.

use std::net::SocketAddr;
use std::time::Instant;

use headwater_media::id::ContributorId;
use headwater_media::stream::Observed;
use headwater_media::track::{Configuration, StreamInfo, Track};
use serde_json::{Map, Value, json};

use crate::stream::contributors::Roll;

/// A keyframe interval above this makes viewers wait, and costs them bytes when they join (seconds).
const KEYFRAME_INTERVAL_ADVISED: f64 = 4.0;

/// Who publishes.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    pub(crate) peer: SocketAddr,
    pub(crate) encoder: Option<String>,
    pub(crate) since: Instant,
    pub(crate) metadata: Option<Value>,
}

/// What is known of a stream.
pub(crate) struct Facts<'a> {
    pub(crate) info: &'a StreamInfo,
    pub(crate) observed: &'a [Observed],
    pub(crate) publisher: Option<&'a Publisher>,
    pub(crate) roll: &'a Roll,
    /// Contributors whose pictures have a place.
    pub(crate) aligned: Vec<ContributorId>,
    pub(crate) now: Instant,
    pub(crate) started: Instant,
    pub(crate) subscribers: usize,
    /// Those with viewers for renditions.
    pub(crate) adaptive_subscribers: usize,
    pub(crate) dropped_units: u64,
    /// Of the renditions made of it, as the API has it.
    pub(crate) ladder: &'a Value,
    /// Viewers who need a rendition without B-frames get one.
    pub(crate) repaired: bool,
}

/// The stream's JSON object.
pub(crate) fn stream(facts: &Facts<'_>) -> Value {
    let info = facts.info;
    let tracks: Vec<Value> = info
        .tracks
        .iter()
        .map(|entry| {
            let mut observed = facts.observed.iter();
            let observed = observed.find(|observed| observed.track == entry.id);
            track(entry, observed, facts.repaired)
        })
        .collect();
    let seconds = |since: Instant| facts.now.saturating_duration_since(since).as_secs();
    let publisher = facts.publisher.filter(|_| info.publishing);
    json!({
        "name": info.name.as_str(),
        "epoch": info.epoch.0,
        "publishing": info.publishing,
        "peer": publisher.map(|publisher| publisher.peer.to_string()),
        "encoder": publisher.and_then(|publisher| publisher.encoder.clone()),
        "publishing_seconds": publisher.map(|publisher| seconds(publisher.since)),
        "metadata": publisher.and_then(|publisher| publisher.metadata.clone()),
        "uptime_seconds": seconds(facts.started),
        "tracks": tracks,
        "contributors": facts.roll.present.iter().map(|known| json!({
            "rendition": known.rendition.as_str(),
            "peer": known.publisher.peer.to_string(),
            "encoder": known.publisher.encoder.as_deref(),
            "publishing_seconds": seconds(known.publisher.since),
            "aligned": facts.aligned.contains(&known.id),
        })).collect::<Vec<_>>(),
        "refused_renditions": facts.roll.refused.iter().map(|(known, reason, at)| json!({
            "rendition": known.rendition.as_str(),
            "peer": known.publisher.peer.to_string(),
            "reason": reason,
            "seconds_ago": seconds(*at),
        })).collect::<Vec<_>>(),
        "audio_problem": info.audio_problem.as_deref(),
        "subscribers": facts.subscribers,
        "adaptive_subscribers": facts.adaptive_subscribers,
        "dropped_units": facts.dropped_units,
        "ladder": facts.ladder,
    })
}

fn track(track: &Track, observed: Option<&Observed>, repaired: bool) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("id", json!(track.id.0));
    put("rendition", json!(track.rendition.as_ref()));
    put("codec", json!(track.configuration.codec()));
    put("bits_per_second", json!(track.bitrate.0));
    match track.configuration.as_ref() {
        Configuration::H264(h264) => {
            let [profile, constraints, level] = h264.profile_level_id;
            put(
                "profile_level_id",
                json!(format!("{profile:02x}{constraints:02x}{level:02x}")),
            );
            put("width", json!(h264.width));
            put("height", json!(h264.height));
            put("b_frames", json!(track.reordered));
            let interval = observed.and_then(|observed| observed.keyframe_interval);
            let interval = interval.map(|interval| interval.as_secs_f64());
            put(
                "fps",
                json!(observed.map(|observed| observed.units_per_second)),
            );
            put("keyframe_interval_seconds", json!(interval));
            let mut advice = Vec::new();
            if track.reordered {
                advice.push(if repaired {
                    "This encoder sends B-frames, which WebRTC viewers can't play. While somebody watches, this origin \
                     makes a rendition without them, at the cost of CPU, delay and some quality. Better switch them \
                     off: in OBS set \"Max B-frames\" to 0 or the x264 option bframes=0, in ffmpeg use -bf 0."
                } else {
                    "This encoder sends B-frames, which WebRTC viewers can't play. Switch them off: in OBS set \
                     \"Max B-frames\" to 0 or the x264 option bframes=0, in ffmpeg use -bf 0."
                });
            }
            if interval.is_some_and(|interval| interval > KEYFRAME_INTERVAL_ADVISED) {
                advice.push(
                    "Keyframes are far apart. Set the encoder's keyframe interval to 2 seconds, so that viewers \
                     start and recover fast.",
                );
            }
            put("advice", json!(advice));
        }
        Configuration::Aac(aac) => {
            put("sample_rate_hz", json!(aac.sample_rate_hz));
            put("channels", json!(aac.channels));
        }
        Configuration::Opus(opus) => {
            put("channels", json!(opus.channels));
        }
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use headwater_media::codec::h264;
    use headwater_media::id::{Bitrate, TrackId};
    use headwater_media::testkit;

    use super::*;

    #[test]
    fn b_frames_and_rare_keyframes_come_with_advice() {
        let video = h264::Configuration {
            avcc: Bytes::new(),
            sps: Vec::new(),
            pps: Vec::new(),
            profile_level_id: [0x64, 0, 0x1f],
            width: 1280,
            height: 720,
            max_reorder_frames: Some(2),
        };
        let track = Track {
            bitrate: Bitrate(1_500_000),
            reordered: true,
            ..testkit::track(TrackId::SOURCE_VIDEO, Configuration::H264(video))
        };
        let info = testkit::stream_info(1, vec![track]);
        let observed = [Observed {
            track: TrackId::SOURCE_VIDEO,
            units_per_second: 30.0,
            keyframe_interval: Some(Duration::from_secs(10)),
        }];
        let now = headwater_node::clock::Clock::system().now();
        let value = stream(&Facts {
            info: &info,
            observed: &observed,
            publisher: None,
            roll: &Roll::default(),
            aligned: Vec::new(),
            now,
            started: now,
            subscribers: 2,
            adaptive_subscribers: 1,
            dropped_units: 0,
            ladder: &Value::Null,
            repaired: true,
        });
        let track = &value["tracks"][0];
        assert_eq!(track["profile_level_id"], "64001f");
        assert_eq!(track["b_frames"], true);
        assert_eq!(track["advice"].as_array().map(Vec::len), Some(2));
        assert_eq!(value["subscribers"], 2);
    }
}
