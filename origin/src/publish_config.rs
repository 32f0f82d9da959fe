//! What OBS is to send as a stream with several renditions: the JSON document of its "Enhanced Broadcasting", which it takes from a
//! service's URL, or as an override in its settings.
//!
//! OBS encodes the source and each rung below it in one encoder group, which puts their keyframes at the same times, and sends them as
//! tracks of one connection. The document's shape is OBS's (frontend/utility/models/multitrack-video.hpp, schema 2024-06-04 and later):
//! fields that we don't care about have the values that OBS takes when they are missing.

use std::net::SocketAddr;

use headwater_media::id::{Bitrate, StreamName};
use headwater_node::admin::PublishConfigRequest;
use serde_json::{Value, json};

use crate::ladder::Step;

/// The schema that the fields are of.
const SCHEMA_VERSION: &str = "2025-01-25";

/// Seconds between keyframes: what viewers wait for at most when they join or change renditions.
const KEYFRAME_SECONDS: u32 = 2;

/// The sound, which becomes Opus at the origin (kbit/s).
const AUDIO_KBPS: u32 = 160;

/// The source's bitrate where there is no ladder to tell.
const SOURCE_UNKNOWN: Bitrate = Bitrate(4_500_000);

/// Frames per second that rungs' bitrates are meant for.
const USUAL_RATE: u32 = 30;

/// The document. `ladder` are the rungs of a full ladder, of which those below the picture that is asked for are sent beside it.
pub(crate) fn document(
    name: &StreamName,
    request: &PublishConfigRequest,
    rtmp: SocketAddr,
    ladder: &[Step],
) -> Value {
    let mut rungs: Vec<Step> = ladder.to_vec();
    rungs.retain(|rung| rung.height < request.height);
    rungs.sort_by_key(|rung| std::cmp::Reverse(rung.height));
    rungs.dedup_by_key(|rung| rung.height);
    rungs.insert(0, source(request.height, ladder));
    let encoders: Vec<Value> = rungs.iter().map(|rung| encoder(rung, request)).collect();
    json!({
        "meta": {
            "service": "headwater",
            "schema_version": SCHEMA_VERSION,
            "config_id": "headwater",
        },
        "status": { "result": "success" },
        "ingest_endpoints": [{
            "protocol": "RTMP",
            "url_template": format!("rtmp://{}:{}/{}/{{stream_key}}", request.host, rtmp.port(), name.app()),
            "authentication": name.stream(),
        }],
        "encoder_configurations": encoders,
        "audio_configurations": {
            "live": [{
                "codec": "aac",
                "track_id": 1,
                "channels": 2,
                "settings": { "bitrate": AUDIO_KBPS },
            }],
        },
    })
}

/// The picture as it is: a rung's bitrate where the ladder has its height, else by the pixels against the nearest one. Coders need less than
/// twice as much for twice as many.
fn source(height: u16, ladder: &[Step]) -> Step {
    let nearest = ladder
        .iter()
        .min_by_key(|rung| rung.height.abs_diff(height));
    let Some(nearest) = nearest else {
        return Step {
            height,
            bitrate: SOURCE_UNKNOWN,
        };
    };
    let ratio = f64::from(height) / f64::from(nearest.height.max(1));
    Step {
        height,
        bitrate: round_up(nearest.bitrate, ratio.powf(1.5)),
    }
}

/// To 100 kbit/s.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a bitrate of a ladder, clamped to what fits"
)]
fn round_up(bitrate: Bitrate, factor: f64) -> Bitrate {
    let hundreds = (bitrate.0 as f64 * factor / 100_000.0).ceil();
    Bitrate(hundreds.clamp(1.0, 1000.0) as u64 * 100_000)
}

fn encoder(rung: &Step, request: &PublishConfigRequest) -> Value {
    // 16:9, of an even width, as encoders want it.
    let width = (u32::from(rung.height) * 16 / 9).next_multiple_of(2);
    let kbps = rung.bitrate.0 / 1000;
    let faster = request.frames_per_second > USUAL_RATE;
    let kbps = if faster { kbps * 3 / 2 } else { kbps };
    let mut settings = json!({
        "rate_control": "CBR",
        "bitrate": kbps,
        "keyint_sec": KEYFRAME_SECONDS,
        "profile": "main",
        // Browsers can't show B-frames over WebRTC.
        "bf": 0,
    });
    if request.encoder == "obs_x264"
        && let Some(settings) = settings.as_object_mut()
    {
        settings.insert("preset".to_owned(), "veryfast".into());
        settings.insert("tune".to_owned(), "zerolatency".into());
    }
    json!({
        "type": request.encoder,
        "width": width,
        "height": rung.height,
        "framerate": { "numerator": request.frames_per_second, "denominator": 1 },
        "gpu_scale_type": "OBS_SCALE_BICUBIC",
        "colorspace": "VIDEO_CS_709",
        "range": "VIDEO_RANGE_PARTIAL",
        "format": "VIDEO_FORMAT_NV12",
        "canvas_index": 0,
        "settings": settings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(height: u16, frames_per_second: u32, encoder: &str) -> Value {
        let request = PublishConfigRequest {
            host: "media.example".to_owned(),
            height,
            frames_per_second,
            encoder: encoder.to_owned(),
        };
        let name = "live/show".parse().expect("a name");
        let rtmp = SocketAddr::from(([0, 0, 0, 0], 1936));
        document(
            &name,
            &request,
            rtmp,
            &crate::ladder::Config::default().rungs,
        )
    }

    /// Height, width and bitrate of the encoders.
    fn pictures(document: &Value) -> Vec<(u64, u64, u64)> {
        let encoders = document["encoder_configurations"].as_array();
        let encoders = encoders.expect("encoders").iter();
        let number = |value: &Value| value.as_u64().expect("a number");
        encoders
            .map(|encoder| {
                (
                    number(&encoder["height"]),
                    number(&encoder["width"]),
                    number(&encoder["settings"]["bitrate"]),
                )
            })
            .collect()
    }

    #[test]
    fn the_picture_and_the_rungs_below_it_are_encoded() {
        let rungs = [(720, 1280, 2500), (480, 854, 1000), (240, 426, 400)];
        assert_eq!(pictures(&asked(720, 30, "obs_x264")), rungs);
        let full = [&[(1080, 1920, 4600)], &rungs[..]].concat();
        assert_eq!(pictures(&asked(1080, 30, "obs_x264")), full);
        assert_eq!(pictures(&asked(480, 60, "obs_x264"))[0], (480, 854, 1500));
        assert_eq!(pictures(&asked(240, 30, "obs_x264")).len(), 1);
    }

    /// OBS parses each of these without a default: a document that lacks one is refused.
    #[test]
    fn it_has_what_obs_requires() {
        let document = asked(720, 30, "obs_nvenc_h264_tex");
        for pointer in ["/meta/service", "/meta/schema_version", "/meta/config_id"] {
            assert!(
                document.pointer(pointer).is_some_and(Value::is_string),
                "{pointer}"
            );
        }
        let endpoint = &document["ingest_endpoints"][0];
        assert_eq!(endpoint["protocol"], "RTMP");
        assert_eq!(
            endpoint["url_template"],
            "rtmp://media.example:1936/live/{stream_key}"
        );
        assert_eq!(endpoint["authentication"], "show");
        let encoder = &document["encoder_configurations"][0];
        assert_eq!(encoder["type"], "obs_nvenc_h264_tex");
        assert_eq!(
            encoder["framerate"],
            json!({ "numerator": 30, "denominator": 1 })
        );
        assert_eq!(encoder["settings"]["bf"], 0);
        assert_eq!(encoder["settings"]["keyint_sec"], 2);
        assert_eq!(encoder["settings"].get("preset"), None);
        let audio = &document["audio_configurations"]["live"][0];
        assert_eq!(audio["codec"], "aac");
        for number in ["track_id", "channels"] {
            assert!(audio[number].is_u64(), "{number}");
        }
        assert!(audio["settings"].is_object());
    }
}
