//! What ffmpeg is told: one FLV in on its standard input, one FLV per rung out, each on a pipe of its own.
//!
//! What is easily got wrong, all of it measured:
//! - `-copyts` with `-fps_mode passthrough -enc_time_base -1`: each picture that comes in goes out once, with its time. Without the
//!   latter two ffmpeg makes the frame rate even, and lost one picture of six.
//! - `-force_key_frames source` together with `-g`: keyframes where the source has them, and after them at least every `-g` pictures.
//! - `-probesize 32 -analyzeduration 0`: the first picture comes 0.1 s after it was fed, not 0.5. `-fflags nobuffer` would lose the
//!   first GOP.
//! - One decoder thread, or each further one delays pictures by a frame.
//! - `-profile:v main`: what every browser lists or decodes.

use std::path::Path;

use crate::ladder::config::{Config, Encoder};
use crate::ladder::rungs::Rung;

/// The descriptor that the first rung is written to; the others follow.
pub(crate) const FIRST_OUTPUT: i32 = 3;

/// The arguments for these rungs.
pub(crate) fn arguments(config: &Config, decoder_threads: u8, rungs: &[Rung]) -> Vec<String> {
    let mut arguments = Vec::new();
    let mut add = |text: &str| arguments.extend(text.split_ascii_whitespace().map(str::to_owned));
    add("-hide_banner -nostats -nostdin -loglevel level+warning -copyts");
    add(&decoding(config.encoder, &device(&config.device)));
    add(&format!("-threads {decoder_threads}"));
    add("-probesize 32 -analyzeduration 0 -f flv -i pipe:0");
    for (output, rung) in (FIRST_OUTPUT..).zip(rungs) {
        add("-map 0:v:0 -an -sn -dn -fps_mode passthrough -enc_time_base -1");
        if let Some(filter) = filter(config.encoder, rung) {
            add(&format!("-vf {filter}"));
        }
        add(&encoding(config.encoder, &config.preset, rung));
        let kbps = rung.bitrate.0 / 1000;
        add(&format!(
            "-b:v {kbps}k -maxrate {kbps}k -bufsize {}k",
            (kbps / 2).max(1)
        ));
        add(&format!(
            "-bf 0 -g {} -force_key_frames source",
            rung.keyframe_interval
        ));
        add("-flvflags no_duration_filesize -flush_packets 1 -f flv");
        add(&format!("pipe:{output}"));
    }
    arguments
}

/// A path that stays one argument, whatever is configured.
fn device(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Before the input: hardware decodes too, so that pictures needn't cross the bus.
fn decoding(encoder: Encoder, device: &str) -> String {
    match encoder {
        Encoder::Libx264 => String::new(),
        Encoder::Nvenc => "-hwaccel cuda -hwaccel_output_format cuda".to_owned(),
        Encoder::Vaapi => format!(
            "-init_hw_device vaapi=gpu:{device} -filter_hw_device gpu -hwaccel vaapi -hwaccel_device gpu \
             -hwaccel_output_format vaapi"
        ),
        Encoder::Qsv => format!(
            "-init_hw_device qsv=gpu,child_device={device} -filter_hw_device gpu -hwaccel qsv -hwaccel_device gpu \
             -hwaccel_output_format qsv"
        ),
    }
}

/// Scaling, where there is any, and the one pixel format that browsers decode. For VA-API and Quick Sync, pictures that the hardware
/// could not decode are uploaded.
fn filter(encoder: Encoder, rung: &Rung) -> Option<String> {
    let (width, height) = (rung.width, rung.height);
    match encoder {
        // Area averaging: what is cheapest is also what shrinks by a half or more without jagged edges.
        Encoder::Libx264 if rung.scaled => {
            Some(format!("scale={width}:{height}:flags=area,format=yuv420p"))
        }
        Encoder::Libx264 => Some("format=yuv420p".to_owned()),
        Encoder::Nvenc => Some(format!("scale_cuda={width}:{height}:format=yuv420p")),
        Encoder::Vaapi => Some(format!(
            "format=nv12|vaapi,hwupload,scale_vaapi=w={width}:h={height}:format=nv12"
        )),
        Encoder::Qsv => Some(format!(
            "format=nv12|qsv,hwupload=extra_hw_frames=16,scale_qsv=w={width}:h={height}:format=nv12"
        )),
    }
}

/// The encoder, told to keep no picture back and to make IDR pictures of forced keyframes.
fn encoding(encoder: Encoder, preset: &str, rung: &Rung) -> String {
    match encoder {
        Encoder::Libx264 => {
            let preset: String = preset.chars().filter(char::is_ascii_alphanumeric).collect();
            format!(
                "-c:v libx264 -threads:v {} -preset {preset} -tune zerolatency -profile:v main -sc_threshold 0",
                rung.threads
            )
        }
        Encoder::Nvenc => "-c:v h264_nvenc -preset p3 -tune ull -profile:v main -rc cbr -zerolatency 1 -delay 0 \
             -forced-idr 1 -no-scenecut 1"
            .to_owned(),
        Encoder::Vaapi => {
            "-c:v h264_vaapi -profile:v main -rc_mode CBR -async_depth 1 -idr_interval 0".to_owned()
        }
        Encoder::Qsv => "-c:v h264_qsv -preset veryfast -profile:v main -async_depth 1 -forced_idr 1 -idr_interval 0"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::id::Bitrate;

    use super::*;

    fn rung(scaled: bool) -> Rung {
        Rung {
            name: "480p".into(),
            width: 854,
            height: 480,
            scaled,
            bitrate: Bitrate(1_000_000),
            keyframe_interval: 30,
            threads: 1,
        }
    }

    #[test]
    fn each_rung_has_an_output_of_its_own() {
        let rungs = [rung(false), rung(true)];
        let text = arguments(&Config::default(), 1, &rungs).join(" ");
        for part in ["-i pipe:0", "-f flv pipe:3", "-f flv pipe:4"] {
            assert_eq!(text.matches(part).count(), 1, "{part} in {text}");
        }
        assert_eq!(text.matches("scale=854:480").count(), 1, "{text}");
        assert_eq!(
            text.matches("-b:v 1000k -maxrate 1000k -bufsize 500k")
                .count(),
            2
        );
    }

    #[test]
    fn every_encoder_gets_no_b_frames_and_the_sources_keyframes() {
        for encoder in [
            Encoder::Libx264,
            Encoder::Nvenc,
            Encoder::Vaapi,
            Encoder::Qsv,
        ] {
            let config = Config {
                encoder,
                ..Config::default()
            };
            let text = arguments(&config, 1, &[rung(true)]).join(" ");
            let name = encoder.name();
            for part in [
                &format!("-c:v {name} "),
                "-bf 0 -g 30 -force_key_frames source",
                "854",
            ] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }

    #[test]
    fn what_is_configured_adds_no_arguments() {
        let config = Config {
            encoder: Encoder::Vaapi,
            device: "/dev/dri/card 0 -y /etc/passwd".into(),
            preset: "fast -y /etc/passwd".to_owned(),
            ..Config::default()
        };
        let count = |config: &Config| arguments(config, 1, &[rung(true)]).len();
        let usual = Config {
            encoder: Encoder::Vaapi,
            ..Config::default()
        };
        assert_eq!(count(&config), count(&usual));
        let x264 = Config {
            encoder: Encoder::Libx264,
            ..config
        };
        assert_eq!(count(&x264), count(&Config::default()));
    }
}
