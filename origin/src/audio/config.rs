//! `[audio]`: settings of the AAC to Opus transcode.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of the AAC to Opus transcode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Make Opus from AAC at all. Without it WebRTC viewers get no sound.
    pub enabled: bool,
    /// Threads that decode and encode, for all streams together. One serves more than a hundred streams. The first
    /// origin of a process decides.
    pub threads: usize,
    /// Opus bitrate of a stereo stream in bit/s, 6000 to 510000.
    pub stereo_bitrate: u32,
    /// Opus bitrate of a mono stream in bit/s, 6000 to 510000.
    pub mono_bitrate: u32,
    /// Opus encoder effort, 0 (cheapest) to 10.
    pub complexity: u8,
    /// Opus in-band forward error correction: lets a viewer rebuild a lost packet from the next one, where the
    /// encoder works in a mode that has it: see `expected_loss_percent`.
    pub fec: bool,
    /// Packet loss in percent that the encoder prepares for, 0 to 100. Up to 5 it keeps the mode that is best for music and
    /// has no error correction; above 8 it always works in the mode for speech, which has it, costs twice the CPU and is worse for music.
    pub expected_loss_percent: u8,
    /// AAC access units that may wait per stream; more are dropped. 1024 are 21 s at 48 kHz: what a publisher has kept while the way to it, or
    /// this process, stood still comes at once. At most 1 MiB, whatever this says.
    pub queue_units: usize,
    /// The ffmpeg that decodes what isn't AAC-LC in mono or stereo: a path, or a name looked up in `PATH`.
    pub ffmpeg: PathBuf,
    /// Restarts of a failed decoder or ffmpeg child within `restart_window_seconds` before the stream's sound is given up.
    pub restarts_max: u32,
    /// See `restarts_max`; in seconds.
    pub restart_window_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            threads: 1,
            stereo_bitrate: 96_000,
            mono_bitrate: 64_000,
            complexity: 5,
            fec: true,
            expected_loss_percent: 5,
            queue_units: 1024,
            ffmpeg: PathBuf::from("ffmpeg"),
            restarts_max: 5,
            restart_window_seconds: 60,
        }
    }
}
