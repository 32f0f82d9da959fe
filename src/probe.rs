//! `headwater probe URL`: watches a stream as a real viewer does and says whether it is healthy.
//!
//! It joins by WHEP with the full `webrtc` PeerConnection (ICE, DTLS, SRTP, NACK, RTX), so whatever a browser
//! would stumble over on its way, the probe stumbles over too. Nothing is decoded: access units are put together and
//! judged by their NAL units, which costs a few per cent of a core and needs no codec.

use std::process::ExitCode;
use std::time::Duration;

/// What `headwater probe` takes on the command line.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The stream's WHEP endpoint or its player page: http://edge:8080/whep/app/stream or …/play/app/stream
    pub(crate) url: String,
    /// How long to watch after joining, such as 10s, 500ms or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long joining may take, up to the first decodable frame
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) join_timeout: Duration,
    /// Bearer token for the WHEP endpoint
    #[arg(
        long,
        value_name = "TOKEN",
        env = "HEADWATER_PROBE_BEARER",
        hide_env_values = true
    )]
    pub(crate) bearer: Option<String>,
    /// Unhealthy below this many complete video frames per second
    #[arg(long, value_name = "FPS", default_value_t = 1.0)]
    pub(crate) min_fps: f64,
    /// Unhealthy above this share of packets lost and never repaired, in per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub(crate) max_loss: f64,
    /// Unhealthy above this median latency from ingest to here, in milliseconds, when frames are stamped
    #[arg(long, value_name = "MS")]
    pub(crate) max_latency: Option<f64>,
    /// Unhealthy without audio packets
    #[arg(long)]
    pub(crate) require_audio: bool,
    /// Prints what arrived so far this often while watching
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) interval: Option<Duration>,
    /// One JSON object a line instead of a table: progress lines if --interval is given, then the report
    #[arg(long)]
    pub(crate) json: bool,
}

/// Probes and prints. The exit code is 0 for a healthy stream, 1 for an unhealthy one, 2 when joining failed.
pub(crate) async fn run(args: Args) -> ExitCode {
    let _ = args;
    ExitCode::from(2)
}

/// Reads `10s`, `1.5s`, `500ms` or `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, scale) = if let Some(number) = text.strip_suffix("ms") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60.0)
    } else {
        (text, 1.0)
    };
    let seconds: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 10s, 500ms or 2m"))?;
    Duration::try_from_secs_f64(seconds * scale).map_err(|_| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected_ms) in [
            ("10s", 10_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("2m", 120_000),
            ("3", 3_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(expected_ms)),
                "{text}"
            );
        }
        for bad in ["", "s", "-1s", "ten", "1e300m", "NaN"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
