//! Names and help of the origin's own metrics; RTMP and audio have theirs.

use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};

/// Streams this origin has, held ones included.
pub(crate) const STREAMS: &str = "headwater_origin_streams";
/// Subscriptions of edges.
pub(crate) const SUBSCRIBERS: &str = "headwater_origin_subscribers";
/// Payload bytes taken from publishers.
pub(crate) const INGEST_BYTES: &str = "headwater_origin_ingest_bytes_total";
/// Access units taken from publishers.
pub(crate) const INGEST_UNITS: &str = "headwater_origin_ingest_units_total";
/// Gaps in what publishers sent.
pub(crate) const INGEST_GAPS: &str = "headwater_origin_ingest_gaps_total";
/// From one keyframe of a publisher to its next.
pub(crate) const KEYFRAME_INTERVAL: &str = "headwater_origin_keyframe_interval_seconds";
/// Access units of publishers that were not taken.
pub(crate) const UNITS_DROPPED: &str = "headwater_origin_units_dropped_total";
/// Payload bytes sent to edges.
pub(crate) const REPLICATED_BYTES: &str = "headwater_origin_replicated_bytes_total";
/// Skips of slow subscribers.
pub(crate) const SUBSCRIBER_SKIPS: &str = "headwater_origin_subscriber_skips_total";
/// Units skipped for slow subscribers.
pub(crate) const UNITS_SKIPPED: &str = "headwater_origin_units_skipped_total";
/// Attachments of subscribers.
pub(crate) const ATTACHMENTS: &str = "headwater_origin_attachments_total";
/// Subscribers that were sent to an edge.
pub(crate) const REDIRECTS: &str = "headwater_origin_redirects_total";
/// Subscribers that were refused.
pub(crate) const SUBSCRIBERS_REFUSED: &str = "headwater_origin_subscribers_refused_total";
/// How replication counts here.
pub(crate) const REPLICATION: headwater_node::replication::Metrics =
    headwater_node::replication::Metrics {
        subscribers: SUBSCRIBERS,
        attachments: ATTACHMENTS,
        bytes: REPLICATED_BYTES,
        skips: SUBSCRIBER_SKIPS,
        skipped: UNITS_SKIPPED,
        redirects: REDIRECTS,
        refused: SUBSCRIBERS_REFUSED,
    };
/// Publishers that came and were accepted or refused.
pub(crate) const PUBLISHES: &str = "headwater_origin_publishes_total";
/// Streams taken over from another origin, by `reason`: `gone`, `other_run`, `no_publisher`.
pub(crate) const TAKEOVERS: &str = "headwater_origin_takeovers_total";
/// Streams whose audio could not be made into Opus.
pub(crate) const AUDIO_PROBLEMS: &str = "headwater_origin_audio_problems_total";
/// Renditions of publishers that were not taken.
pub(crate) const RENDITIONS_REFUSED: &str = "headwater_origin_renditions_refused_total";

/// ffmpeg children that make renditions.
pub(crate) const LADDER_CHILDREN: &str = "headwater_origin_ladder_children";
/// Children that failed, by `reason`: `exited`, `stuck`, `garbled`, `ffmpeg_missing`, `busy`.
pub(crate) const LADDER_FAILURES: &str = "headwater_origin_ladder_failures_total";
/// Children started again after a failure.
pub(crate) const LADDER_RESTARTS: &str = "headwater_origin_ladder_restarts_total";
/// Pictures that were dropped on their way into or out of a child, by `reason`: `slow`, `late`, `mailbox`, `refused`, `untimed`.
pub(crate) const LADDER_DROPPED: &str = "headwater_origin_ladder_units_dropped_total";
/// From a source picture to the rendition's.
pub(crate) const LADDER_LAG: &str = "headwater_origin_ladder_lag_seconds";
/// Contributors of renditions that came, by outcome.
pub(crate) const CONTRIBUTORS: &str = "headwater_origin_contributors_total";

/// Registers help texts and units.
pub(crate) fn describe() {
    describe_gauge!(
        STREAMS,
        Unit::Count,
        "Streams this origin has, held ones included"
    );
    describe_gauge!(SUBSCRIBERS, Unit::Count, "Subscriptions of edges");
    describe_counter!(
        INGEST_BYTES,
        Unit::Bytes,
        "Payload bytes taken from publishers, by kind"
    );
    describe_counter!(
        INGEST_UNITS,
        Unit::Count,
        "Access units (pictures, audio frames) taken from publishers, by kind"
    );
    describe_counter!(
        INGEST_GAPS,
        Unit::Count,
        "Times that media of a publisher was missing, or its clock jumped, by kind"
    );
    describe_histogram!(
        KEYFRAME_INTERVAL,
        Unit::Seconds,
        "From one keyframe of a publisher to its next, by their timestamps"
    );
    describe_counter!(
        UNITS_DROPPED,
        Unit::Count,
        "Access units of publishers that were not taken, by reason"
    );
    describe_counter!(REPLICATED_BYTES, Unit::Bytes, "Payload bytes sent to edges");
    describe_counter!(
        SUBSCRIBER_SKIPS,
        Unit::Count,
        "Times a slow subscriber was skipped to a keyframe"
    );
    describe_counter!(
        UNITS_SKIPPED,
        Unit::Count,
        "Access units skipped for slow subscribers"
    );
    describe_counter!(
        ATTACHMENTS,
        Unit::Count,
        "Attachments of subscribers, by whether they resumed"
    );
    describe_counter!(
        REDIRECTS,
        Unit::Count,
        "Subscribers that were sent to an edge which has the stream"
    );
    describe_counter!(
        SUBSCRIBERS_REFUSED,
        Unit::Count,
        "Subscribers that were refused, by reason"
    );
    describe_counter!(PUBLISHES, Unit::Count, "Publishers that came, by outcome");
    describe_counter!(
        TAKEOVERS,
        Unit::Count,
        "Streams taken over from another origin, by why it had no claim to them any more"
    );
    describe_counter!(
        AUDIO_PROBLEMS,
        Unit::Count,
        "Times a stream's audio could not be made into Opus"
    );
    describe_counter!(
        CONTRIBUTORS,
        Unit::Count,
        "Publishers of single renditions that came, by outcome"
    );
    describe_counter!(
        RENDITIONS_REFUSED,
        Unit::Count,
        "Renditions of publishers that were not taken, by reason"
    );
    describe_gauge!(
        LADDER_CHILDREN,
        Unit::Count,
        "ffmpeg children that make renditions"
    );
    describe_counter!(
        LADDER_FAILURES,
        Unit::Count,
        "ffmpeg children that ended or did not start, by reason"
    );
    describe_counter!(
        LADDER_RESTARTS,
        Unit::Count,
        "ffmpeg children started again after a failure"
    );
    describe_counter!(
        LADDER_DROPPED,
        Unit::Count,
        "Pictures dropped on their way into or out of an ffmpeg child, by reason"
    );
    describe_histogram!(
        LADDER_LAG,
        Unit::Seconds,
        "From a picture of the source to that of the rendition made of it"
    );
    for held in [STREAMS, SUBSCRIBERS, LADDER_CHILDREN] {
        gauge!(held).increment(0.0);
    }
    start_at_zero(&[
        REDIRECTS,
        SUBSCRIBERS_REFUSED,
        REPLICATED_BYTES,
        SUBSCRIBER_SKIPS,
        UNITS_SKIPPED,
        AUDIO_PROBLEMS,
        LADDER_RESTARTS,
    ]);
    start_at_zero_by(UNITS_DROPPED, "reason", &["overflow"]);
    for name in [INGEST_BYTES, INGEST_UNITS, INGEST_GAPS] {
        start_at_zero_by(name, "kind", &["video", "audio"]);
    }
    start_at_zero_by(
        PUBLISHES,
        "outcome",
        &[
            "accepted",
            "busy",
            "held_elsewhere",
            "directory_unavailable",
            "too_many_streams",
        ],
    );
    start_at_zero_by(
        LADDER_FAILURES,
        "reason",
        &["ffmpeg_missing", "busy", "exited", "stuck", "garbled"],
    );
    start_at_zero_by(
        LADDER_DROPPED,
        "reason",
        &["mailbox", "slow", "late", "refused", "untimed"],
    );
}
