//! `[ladder]`: settings of the renditions that an origin makes.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use headwater_media::id::Bitrate;
use serde::{Deserialize, Serialize};

/// Settings of the renditions that an origin makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Make renditions at all. Without it every viewer gets what the publisher sends, and B-frames nobody gets over WebRTC.
    pub enabled: bool,
    /// The renditions of a full ladder; those below a source's height are made. At most eight are.
    pub rungs: Vec<Step>,
    /// Who encodes.
    pub encoder: Encoder,
    /// Speed preset of `libx264`, from `ultrafast` to `placebo`; other encoders have presets of their own.
    pub preset: String,
    /// The GPU that `h264_vaapi` and `h264_qsv` use.
    pub device: PathBuf,
    /// How long a ladder is made after the last viewer who would take it (seconds).
    pub linger_seconds: u64,
    /// Streams whose renditions this origin makes at a time (count); 0: twice as many as the machine has cores.
    pub streams_max: usize,
    /// The ffmpeg that makes them: a path, or a name looked up in `PATH`.
    pub ffmpeg: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        let step = |height, kbps: u64| Step {
            height,
            bitrate: Bitrate(kbps * 1000),
        };
        Self {
            enabled: true,
            rungs: vec![step(720, 2500), step(480, 1000), step(240, 400)],
            encoder: Encoder::Libx264,
            preset: "superfast".to_owned(),
            device: PathBuf::from("/dev/dri/renderD128"),
            linger_seconds: 30,
            streams_max: 0,
            ffmpeg: PathBuf::from("ffmpeg"),
        }
    }
}

/// What is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// ffmpeg would refuse it, once for each stream.
    #[error("ladder.preset is one of {list}, not {0:?}", list = PRESETS.join(", "))]
    Preset(String),
    /// Which of the two would be made?
    #[error("ladder.rungs: {0} lines are there twice")]
    Twice(u16),
}

/// What x264 calls its speeds, the fastest first.
const PRESETS: [&str; 10] = [
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
];

impl Config {
    /// Checks what the keys' types let through.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn check(&self) -> Result<(), Error> {
        if self.encoder == Encoder::Libx264 && !PRESETS.contains(&self.preset.as_str()) {
            return Err(Error::Preset(self.preset.clone()));
        }
        let mut seen = Vec::new();
        for height in self.rungs.iter().map(|rung| rung.height) {
            if seen.contains(&height) {
                return Err(Error::Twice(height));
            }
            seen.push(height);
        }
        Ok(())
    }

    /// See [`Self::linger_seconds`].
    pub const fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds)
    }

    /// See [`Self::streams_max`].
    pub fn children(&self) -> usize {
        if self.streams_max > 0 {
            return self.streams_max;
        }
        2 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    }
}

/// Who encodes, by its name in ffmpeg.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Encoder {
    /// x264, on the CPU.
    #[serde(rename = "libx264")]
    Libx264,
    /// NVIDIA's; decodes and scales on the GPU too.
    #[serde(rename = "h264_nvenc")]
    Nvenc,
    /// Intel's and AMD's by VA-API.
    #[serde(rename = "h264_vaapi")]
    Vaapi,
    /// Intel's Quick Sync.
    #[serde(rename = "h264_qsv")]
    Qsv,
}

impl Encoder {
    /// Its name in ffmpeg.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Libx264 => "libx264",
            Self::Nvenc => "h264_nvenc",
            Self::Vaapi => "h264_vaapi",
            Self::Qsv => "h264_qsv",
        }
    }
}

/// A rung as it is configured: `480:1000` is 480 lines at 1000 kbit/s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Step {
    /// Lines; of a picture that stands upright, columns.
    pub height: u16,
    /// What it may use at most.
    pub bitrate: Bitrate,
}

/// The text is no [`Step`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a rung is HEIGHT:KBIT/S such as \"480:1000\", with an even height of 64 to 4320 and 50 to 100000 kbit/s"
)]
pub struct InvalidStep;

impl FromStr for Step {
    type Err = InvalidStep;

    fn from_str(text: &str) -> Result<Self, InvalidStep> {
        let (height, kbps) = text.trim().split_once(':').ok_or(InvalidStep)?;
        let height: u16 = height.trim().parse().map_err(|_| InvalidStep)?;
        let kbps: u64 = kbps.trim().parse().map_err(|_| InvalidStep)?;
        let valid = (64..=4320).contains(&height)
            && height.is_multiple_of(2)
            && (50..=100_000).contains(&kbps);
        valid
            .then_some(Self {
                height,
                bitrate: Bitrate(kbps * 1000),
            })
            .ok_or(InvalidStep)
    }
}

impl TryFrom<String> for Step {
    type Error = InvalidStep;

    fn try_from(text: String) -> Result<Self, InvalidStep> {
        text.parse()
    }
}

impl From<Step> for String {
    fn from(step: Step) -> Self {
        step.to_string()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.height, self.bitrate.0 / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_are_written_as_height_and_rate() {
        let step: Step = "480:1000".parse().expect("a rung");
        assert_eq!((step.height, step.bitrate), (480, Bitrate(1_000_000)));
        assert_eq!(step.to_string(), "480:1000");
        for wrong in [
            "480",
            "480p:1000",
            "481:1000",
            "480:49",
            "480:-1",
            "0:1000",
            ":",
        ] {
            assert_eq!(wrong.parse::<Step>(), Err(InvalidStep), "{wrong}");
        }
    }

    #[test]
    fn a_preset_that_x264_has_not_and_a_rung_that_is_there_twice_are_refused() {
        Config::default().check().expect("the defaults");
        let config = Config {
            preset: "fastest".to_owned(),
            ..Config::default()
        };
        let told = config.check().expect_err("no preset").to_string();
        assert!(told.contains("ultrafast, superfast"), "{told}");
        let of_another = Config {
            encoder: Encoder::Nvenc,
            ..config
        };
        of_another.check().expect("only x264 is given one");
        let rungs = ["720:2500", "480:1000", "480:800"];
        let config = Config {
            rungs: rungs.map(|rung| rung.parse().expect("a rung")).into(),
            ..Config::default()
        };
        assert_eq!(config.check(), Err(Error::Twice(480)));
    }
}
