//! The edge's metrics: names and help texts.

use headwater_node::replication;
use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};

/// See [`describe`].
const SUBSCRIBERS: &str = "headwater_edge_subscribers";
/// See [`describe`].
const ATTACHMENTS: &str = "headwater_edge_attachments_total";
/// See [`describe`].
const PASSED_BYTES: &str = "headwater_edge_passed_on_bytes_total";
/// See [`describe`].
const SUBSCRIBER_SKIPS: &str = "headwater_edge_subscriber_skips_total";
/// See [`describe`].
const SUBSCRIBER_UNITS_SKIPPED: &str = "headwater_edge_subscriber_units_skipped_total";
/// See [`describe`].
const REDIRECTS: &str = "headwater_edge_redirects_total";
/// See [`describe`].
const SUBSCRIBERS_REFUSED: &str = "headwater_edge_subscribers_refused_total";
/// How replication counts here.
pub(crate) const REPLICATION: replication::Metrics = replication::Metrics {
    subscribers: SUBSCRIBERS,
    attachments: ATTACHMENTS,
    bytes: PASSED_BYTES,
    skips: SUBSCRIBER_SKIPS,
    skipped: SUBSCRIBER_UNITS_SKIPPED,
    redirects: REDIRECTS,
    refused: SUBSCRIBERS_REFUSED,
};
/// See [`describe`].
pub(crate) const REPLICAS: &str = "headwater_edge_replicas";
/// See [`describe`].
pub(crate) const VIEWERS: &str = "headwater_edge_viewers";
/// See [`describe`].
pub(crate) const VIEWERS_JOINED: &str = "headwater_edge_viewers_joined_total";
/// See [`describe`].
pub(crate) const VIEWERS_ENDED: &str = "headwater_edge_viewers_ended_total";
/// See [`describe`].
pub(crate) const HANDSHAKES: &str = "headwater_edge_handshakes_total";
/// See [`describe`].
pub(crate) const PACKETS_SENT: &str = "headwater_edge_packets_sent_total";
/// See [`describe`].
pub(crate) const BYTES_SENT: &str = "headwater_edge_sent_bytes_total";
/// See [`describe`].
pub(crate) const RESENT: &str = "headwater_edge_packets_resent_total";
/// See [`describe`].
pub(crate) const RESENT_BYTES: &str = "headwater_edge_resent_bytes_total";
/// See [`describe`].
pub(crate) const RESENT_SPARE: &str = "headwater_edge_packets_resent_spare_total";
/// See [`describe`].
pub(crate) const NACKED: &str = "headwater_edge_packets_nacked_total";
/// See [`describe`].
pub(crate) const SEND_DROPPED: &str = "headwater_edge_sends_dropped_total";
/// See [`describe`].
pub(crate) const SEND_SYSCALLS: &str = "headwater_edge_send_calls_total";
/// See [`describe`].
pub(crate) const TCP_CONNECTIONS: &str = "headwater_edge_tcp_connections_total";
/// See [`describe`].
pub(crate) const TCP_CLOSED: &str = "headwater_edge_tcp_connections_closed_total";
/// See [`describe`].
pub(crate) const TCP_OPEN: &str = "headwater_edge_tcp_connections_open";
/// See [`describe`].
pub(crate) const TCP_BYTES_SENT: &str = "headwater_edge_tcp_sent_bytes_total";
/// See [`describe`].
pub(crate) const TRANSPORTS: &str = "headwater_edge_viewers_by_transport";
/// See [`describe`].
pub(crate) const DATAGRAMS_REFUSED: &str = "headwater_edge_datagrams_refused_total";
/// See [`describe`].
pub(crate) const FEEDBACK: &str = "headwater_edge_feedback_total";
/// See [`describe`].
pub(crate) const NACKS_UNANSWERED: &str = "headwater_edge_nacks_unanswered_total";
/// See [`describe`].
pub(crate) const KEYFRAMES_RESENT: &str = "headwater_edge_keyframes_resent_total";
/// See [`describe`].
pub(crate) const LATE_SOUND: &str = "headwater_edge_late_sound_total";
/// See [`describe`].
pub(crate) const SKIPPED: &str = "headwater_edge_skips_to_keyframe_total";
/// See [`describe`].
pub(crate) const MAILBOX_FULL: &str = "headwater_edge_mailboxes_full_total";
/// See [`describe`].
pub(crate) const BATCHES_DROPPED: &str = "headwater_edge_batches_dropped_total";
/// See [`describe`].
pub(crate) const LOAD: &str = "headwater_edge_load_ratio";
/// See [`describe`].
pub(crate) const SHARD_LOAD: &str = "headwater_edge_shard_load_ratio";
/// See [`describe`].
pub(crate) const SHARD_BUSY: &str = "headwater_edge_shard_busy_ratio";
/// See [`describe`].
pub(crate) const SHARD_LAG: &str = "headwater_edge_shard_lag_seconds";
/// See [`describe`].
pub(crate) const SHARD_EGRESS: &str = "headwater_edge_shard_egress_bytes_per_second";
/// See [`describe`].
pub(crate) const LATENCY: &str = "headwater_edge_latency_seconds";
/// See [`describe`].
pub(crate) const HOP: &str = "headwater_edge_latency_hop_seconds";
/// See [`describe`].
pub(crate) const CLOCK_OFFSET: &str = "headwater_edge_upstream_clock_offset_seconds";
/// See [`describe`].
pub(crate) const CLOCK_ERROR: &str = "headwater_edge_upstream_clock_error_seconds";
/// See [`describe`].
pub(crate) const PACED: &str = "headwater_edge_pacer_queue_seconds";

/// See [`describe`].
pub(crate) const SWITCHES: &str = "headwater_edge_rendition_switches_total";
/// See [`describe`].
pub(crate) const PROBES: &str = "headwater_edge_probes_total";

/// See [`describe`].
pub(crate) const VIEWERS_MAX: &str = "headwater_edge_viewers_max";
/// See [`describe`].
pub(crate) const EGRESS_MAX: &str = "headwater_edge_egress_max_bytes_per_second";
/// See [`describe`].
pub(crate) const ROUND_TRIP: &str = "headwater_edge_viewer_round_trip_seconds";
/// See [`describe`].
pub(crate) const LOSS: &str = "headwater_edge_viewer_loss_ratio";
/// See [`describe`].
pub(crate) const ESTIMATE: &str = "headwater_edge_viewer_estimate_bytes_per_second";
/// See [`describe`].
pub(crate) const VIEWED: &str = "headwater_edge_viewed_seconds_total";

/// Registers the help texts. Call once, after the recorder is installed.
pub(crate) fn describe() {
    describe_gauge!(
        SUBSCRIBERS,
        Unit::Count,
        "Edges that get a stream from this one, over all streams"
    );
    describe_counter!(
        ATTACHMENTS,
        Unit::Count,
        "Attachments of edges that get a stream from this one, by whether they resumed"
    );
    describe_counter!(
        PASSED_BYTES,
        Unit::Bytes,
        "Payload bytes passed on to other edges"
    );
    describe_counter!(
        SUBSCRIBER_SKIPS,
        Unit::Count,
        "Times a slow edge was skipped to a keyframe"
    );
    describe_counter!(
        SUBSCRIBER_UNITS_SKIPPED,
        Unit::Count,
        "Access units skipped for slow edges"
    );
    describe_counter!(
        REDIRECTS,
        Unit::Count,
        "Edges that were sent to one that this edge feeds"
    );
    describe_counter!(
        SUBSCRIBERS_REFUSED,
        Unit::Count,
        "Edges that asked for a stream and were refused, by reason"
    );
    crate::http::metrics::describe();
    crate::subscriber::describe_metrics();
    describe_gauge!(REPLICAS, "streams this edge replicates");
    describe_gauge!(VIEWERS, "WebRTC viewers by shard, connecting ones included");
    describe_counter!(VIEWERS_JOINED, "viewers taken in");
    describe_counter!(VIEWERS_ENDED, "viewers that ended, by reason");
    describe_counter!(HANDSHAKES, "DTLS handshakes completed, by SRTP profile");
    describe_counter!(
        PACKETS_SENT,
        "RTP packets sent for the first time, by kind of media"
    );
    describe_counter!(
        BYTES_SENT,
        Unit::Bytes,
        "RTP bytes sent for the first time, tags included, by kind of media"
    );
    describe_gauge!(VIEWERS_MAX, "viewers that this edge takes by configuration");
    describe_gauge!(
        EGRESS_MAX,
        "what this edge may send to viewers by configuration, UDP and IP headers included; 0: no limit"
    );
    describe_histogram!(
        ROUND_TRIP,
        Unit::Seconds,
        "round trips to viewers, each viewer's every ten seconds"
    );
    describe_histogram!(
        LOSS,
        "share of packets that viewers lost, by their last reports, each viewer's every ten seconds"
    );
    describe_histogram!(
        ESTIMATE,
        "what viewers' links are estimated to carry, each viewer's every ten seconds"
    );
    describe_counter!(
        VIEWED,
        Unit::Seconds,
        "time that connected viewers had each rendition; none: sound alone"
    );
    describe_counter!(RESENT, "packets sent again by RTX");
    describe_counter!(
        RESENT_BYTES,
        Unit::Bytes,
        "payload of the packets sent again by RTX"
    );
    describe_counter!(
        RESENT_SPARE,
        "packets sent again in addition, because another NACK would come too late"
    );
    describe_counter!(NACKED, "packets asked for by NACK, repetitions included");
    describe_counter!(
        SEND_DROPPED,
        "messages (datagrams or runs of them) not sent, by reason"
    );
    describe_counter!(SEND_SYSCALLS, "calls to sendmmsg");
    describe_counter!(
        TCP_CONNECTIONS,
        "connections to the media TCP port, by what became of them; taken: a viewer's"
    );
    describe_counter!(
        TCP_CLOSED,
        "connections of viewers that were closed, by reason"
    );
    describe_gauge!(TCP_OPEN, "connections of viewers, by shard");
    describe_counter!(
        TCP_BYTES_SENT,
        Unit::Bytes,
        "bytes written to viewers' connections, framing included"
    );
    describe_gauge!(
        TRANSPORTS,
        "viewers by the transport that carries their media and shard"
    );
    describe_counter!(DATAGRAMS_REFUSED, "datagrams nobody could use, by reason");
    describe_counter!(FEEDBACK, "RTCP feedback received, by kind");
    describe_counter!(
        NACKS_UNANSWERED,
        "packets asked for by NACK and not sent again, by reason"
    );
    describe_counter!(
        KEYFRAMES_RESENT,
        "requests for a keyframe, by how they were answered"
    );
    describe_counter!(
        SKIPPED,
        "times media was skipped to the next keyframe, by place"
    );
    describe_counter!(
        LATE_SOUND,
        "packets of sound that came too late from upstream to be sent"
    );
    describe_counter!(SWITCHES, "times a viewer was switched to another rendition");
    describe_counter!(
        PROBES,
        "probes of viewers' links, which are to show whether a higher rendition fits"
    );
    describe_counter!(MAILBOX_FULL, "messages refused by a full mailbox, by link");
    describe_histogram!(
        LATENCY,
        Unit::Seconds,
        "pictures from the publisher's socket at the origin to the socket of a shard's last viewer: the sum of the hops; links that hold pictures back are not in it"
    );
    describe_histogram!(
        HOP,
        Unit::Seconds,
        "the same pictures by hop: ingest (at the origin, transcoding included), replicate (to this node), queue (until a shard begins with it), wire (until the last viewer's send call)"
    );
    describe_gauge!(
        CLOCK_OFFSET,
        Unit::Seconds,
        "clock of an upstream less that of this node, of the upstream that is furthest off; latencies are corrected by it"
    );
    describe_gauge!(
        CLOCK_ERROR,
        Unit::Seconds,
        "half the round trip by which offsets of upstreams' clocks were measured, the largest: how wrong they may be"
    );
    describe_counter!(
        BATCHES_DROPPED,
        "access units that a shard had no room for in its queue of work"
    );
    describe_gauge!(
        LOAD,
        "load that a new viewer meets here, that of the least loaded shard: 0 idle, from 1 on joins are refused"
    );
    describe_gauge!(
        SHARD_LOAD,
        "load by shard: the largest of viewers and egress, each to its limit, and lateness; from 1 on it takes nobody"
    );
    describe_gauge!(
        SHARD_BUSY,
        "share of time that a shard's loop was at work, smoothed over a second; 0.9 is full load"
    );
    describe_gauge!(
        SHARD_LAG,
        Unit::Seconds,
        "how late access units reached their last viewer, smoothed over a second, by shard; 0.05 is full load"
    );
    describe_gauge!(
        SHARD_EGRESS,
        "what a shard sends, UDP and IP headers included, smoothed over a second"
    );
    describe_histogram!(
        PACED,
        Unit::Seconds,
        "how long a viewer's pictures waited for the pacer until it was at the live edge again"
    );
    start_at_zero(&[
        REDIRECTS,
        SUBSCRIBERS_REFUSED,
        VIEWERS_JOINED,
        RESENT,
        RESENT_BYTES,
        RESENT_SPARE,
        NACKED,
        BATCHES_DROPPED,
        LATE_SOUND,
        SWITCHES,
        PROBES,
    ]);
    start_at_zero_by(
        VIEWERS_ENDED,
        "reason",
        &[
            "left",
            "closed",
            "expired",
            "never_connected",
            "handshake_failed",
            "stream_ended",
            "kicked",
        ],
    );
    // Which others there are depends on publishers and ladders; they begin when they are first viewed.
    start_at_zero_by(VIEWED, "rendition", &["source", "none"]);
    start_at_zero_by(SEND_DROPPED, "reason", &["full", "refused"]);
    start_at_zero_by(SKIPPED, "place", &["replica", "shard"]);
    start_at_zero_by(
        MAILBOX_FULL,
        "link",
        &["shard", "commands", "viewer", "retransmit", "abr"],
    );
    start_at_zero_by(
        HANDSHAKES,
        "profile",
        &["aead_aes_128_gcm", "aes128_cm_sha1_80"],
    );
    start_at_zero_by(
        FEEDBACK,
        "kind",
        &["report", "transport", "nack", "pli", "fir"],
    );
    start_at_zero_by(
        NACKS_UNANSWERED,
        "reason",
        &[
            "no_rtx",
            "suppressed",
            "over_budget",
            "too_late",
            "out_of_ring",
            "unknown",
        ],
    );
    start_at_zero_by(
        KEYFRAMES_RESENT,
        "answer",
        &["resent", "no_gop", "nothing_new", "too_soon"],
    );
    start_at_zero_by(
        DATAGRAMS_REFUSED,
        "reason",
        &[
            "address",
            "protocol",
            "stun",
            "ufrag",
            "stun_integrity",
            "handshakes_full",
            "early",
            "srtcp",
            "rtcp",
        ],
    );
    start_at_zero_by(
        TCP_CONNECTIONS,
        "outcome",
        &[
            "taken",
            "refused",
            "failed",
            "accept_failed",
            "crowded",
            "late",
            "gone",
            "framing",
            "not_stun",
            "nobody",
            "busy",
        ],
    );
    start_at_zero_by(
        TCP_CLOSED,
        "reason",
        &[
            "peer",
            "failed",
            "disused",
            "framing",
            "slow_frame",
            "silent",
            "stalled",
        ],
    );
    gauge!(REPLICAS).increment(0.0);
}
