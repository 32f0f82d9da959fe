//! Names, help texts and labels of the transcode's metrics.

use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use metrics::{Unit, describe_counter, describe_gauge};

use crate::audio::pipeline::{FailureKind, Path};

/// Transcodes running, by `path`: `in_process` or `ffmpeg`.
pub(crate) const TRANSCODES: &str = "headwater_origin_audio_transcodes";
/// Access units transcoded.
pub(crate) const UNITS: &str = "headwater_origin_audio_units_total";
/// Opus packets made.
pub(crate) const PACKETS: &str = "headwater_origin_audio_packets_total";
/// Access units that became no sound, by `reason`: `queue_full`, `undecodable`, `restarting`, `ffmpeg_queue_full`.
pub(crate) const DROPPED: &str = "headwater_origin_audio_units_dropped_total";
/// Times that a stream's sample count began anew, its first time included.
pub(crate) const ANCHORED: &str = "headwater_origin_audio_anchored_total";
/// Decoder failures, by `reason`.
pub(crate) const FAILURES: &str = "headwater_origin_audio_failures_total";
/// Decoders started again after a failure, by `path`.
pub(crate) const RESTARTS: &str = "headwater_origin_audio_restarts_total";
/// Transcodes given up.
pub(crate) const GIVEN_UP: &str = "headwater_origin_audio_given_up_total";

/// Tells the recorder what the metrics mean. Once per process is enough; more does no harm.
pub(crate) fn describe() {
    describe_gauge!(
        TRANSCODES,
        Unit::Count,
        "AAC to Opus transcodes running, by who decodes"
    );
    describe_counter!(UNITS, Unit::Count, "AAC access units taken for transcoding");
    describe_counter!(PACKETS, Unit::Count, "Opus packets made");
    describe_counter!(
        DROPPED,
        Unit::Count,
        "AAC access units that became no sound, by reason"
    );
    describe_counter!(
        ANCHORED,
        Unit::Count,
        "times a stream's audio sample count began anew: starts, gaps and clock jumps"
    );
    describe_counter!(FAILURES, Unit::Count, "failures of AAC decoders, by reason");
    describe_counter!(
        RESTARTS,
        Unit::Count,
        "AAC decoders started again after a failure, by who decodes"
    );
    describe_counter!(
        GIVEN_UP,
        Unit::Count,
        "transcodes given up: the stream has no sound for WebRTC"
    );
    start_at_zero(&[UNITS, PACKETS, ANCHORED, GIVEN_UP]);
    start_at_zero_by(
        FAILURES,
        "reason",
        &[
            "undecodable",
            "panic",
            "codec",
            "ffmpeg_missing",
            "ffmpeg_ended",
            "ffmpeg_stuck",
        ],
    );
    start_at_zero_by(
        DROPPED,
        "reason",
        &[
            "queue_full",
            "ffmpeg_queue_full",
            "undecodable",
            "restarting",
        ],
    );
}

impl Path {
    /// As a label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::Ffmpeg => "ffmpeg",
        }
    }
}

impl FailureKind {
    /// As a label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Panic => "panic",
            Self::Codec => "codec",
            Self::FfmpegMissing => "ffmpeg_missing",
            Self::FfmpegEnded => "ffmpeg_ended",
            Self::FfmpegStuck => "ffmpeg_stuck",
        }
    }
}
