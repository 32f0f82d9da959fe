//! Whether a report is good news, and how it is printed.

use std::fmt::Write as _;

use super::Args;
use super::tally::{Packets, Report};

/// Judges `report` by the limits of the command line.
pub(super) fn judge(report: &mut Report, args: &Args, lost: Option<&str>) {
    let mut reasons = Vec::new();
    if let Some(lost) = lost {
        reasons.push(format!("The connection was lost: {lost}."));
    }
    match &report.video {
        Some(video) => {
            if video.fps < args.min_fps {
                reasons.push(format!(
                    "Only {:.1} decodable frames per second arrived, {:.1} are wanted.",
                    video.fps, args.min_fps
                ));
            }
            check_loss(&mut reasons, "video", &video.packets, args.max_loss);
        }
        None if args.min_fps > 0.0 => reasons.push("No video arrived.".to_owned()),
        None => {}
    }
    match &report.audio {
        Some(audio) => check_loss(&mut reasons, "audio", audio, args.max_loss),
        None if args.require_audio => reasons.push("No audio arrived.".to_owned()),
        None => {}
    }
    if let Some(limit) = args.max_latency {
        match &report.latency {
            Some(latency) if latency.p50_ms > limit => reasons.push(format!(
                "Half of the frames took longer than {:.1} ms, at most {limit:.1} ms are wanted.",
                latency.p50_ms
            )),
            Some(_) => {}
            None => reasons.push("No frame carried a time, so latency is unknown.".to_owned()),
        }
    }
    report.healthy = reasons.is_empty();
    report.reasons = reasons;
}

fn check_loss(reasons: &mut Vec<String>, track: &str, packets: &Packets, limit: f64) {
    if packets.loss_percent > limit {
        reasons.push(format!(
            "{:.1} % of the {track} packets were lost for good, {limit:.1} % are allowed.",
            packets.loss_percent
        ));
    }
}

/// The report as a table for people.
pub(super) fn table(report: &Report) -> String {
    let mut text = String::new();
    let mut row = |label: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:<12}{value}");
    };
    row("stream", report.url.clone());
    let phase = |ms: Option<f64>| ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0} ms"));
    let join = &report.join;
    row(
        "join",
        format!(
            "answer {} · ICE {} · DTLS {} · first packet {} · first picture {}",
            phase(join.http_ms),
            phase(join.ice_ms),
            phase(join.dtls_ms),
            phase(join.first_packet_ms),
            phase(join.first_frame_ms)
        ),
    );
    row("watched", format!("{:.1} s", report.watched_seconds));
    if report.moved > 0 {
        row(
            "moved",
            format!("{} times, as the server asked", report.moved),
        );
    }
    let packets = |packets: &Packets| {
        format!(
            "{} packets · {} lost ({:.2} %) · {} repaired · jitter {:.1} ms · longest gap {:.0} ms",
            packets.packets,
            packets.lost,
            packets.loss_percent,
            packets.repaired,
            packets.jitter_ms,
            packets.longest_gap_ms
        )
    };
    if let Some(video) = &report.video {
        row(
            "video",
            format!(
                "{:.1} fps · {} frames, {} decodable, {} keyframes · {:.2} Mbit/s · longest freeze {:.0} ms",
                video.fps,
                video.frames,
                video.decodable,
                video.keyframes,
                video.bits_per_second / 1e6,
                video.longest_freeze_ms
            ),
        );
        row("", packets(&video.packets));
        row("", format!("{} NACKed · {} PLI", video.nacked, video.plis));
    }
    if let Some(audio) = &report.audio {
        row("audio", packets(audio));
    }
    if let Some(behind) = report.video_behind_audio_ms {
        row(
            "lip sync",
            format!("video arrives {behind:+.0} ms after its sound"),
        );
    }
    if let Some(latency) = &report.latency {
        row(
            "latency",
            format!(
                "p50 {:.1} · p95 {:.1} · p99 {:.1} · max {:.1} ms ({} of {} frames)",
                latency.p50_ms,
                latency.p95_ms,
                latency.p99_ms,
                latency.max_ms,
                latency.source,
                latency.samples
            ),
        );
    }
    row(
        "verdict",
        if report.healthy {
            "healthy".to_owned()
        } else {
            format!("UNHEALTHY: {}", report.reasons.join(" "))
        },
    );
    text
}
