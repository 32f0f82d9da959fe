//! The HTTP side's metrics: names and help texts.

use headwater_node::telemetry::{start_at_zero, start_at_zero_by};
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// See [`describe`].
pub(crate) const REQUESTS: &str = "headwater_edge_http_requests_total";
/// See [`describe`].
pub(crate) const CONNECTIONS_REFUSED: &str = "headwater_edge_http_connections_refused_total";
/// See [`describe`].
pub(crate) const JOINS: &str = "headwater_edge_joins_total";
/// See [`describe`].
pub(crate) const JOIN: &str = "headwater_edge_join_seconds";
/// See [`describe`].
pub(crate) const ICE_RESTARTS: &str = "headwater_edge_ice_restarts_total";
/// See [`describe`].
pub(crate) const FORWARDED: &str = "headwater_edge_http_forwarded_total";
/// See [`describe`].
pub(crate) const SESSIONS: &str = "headwater_edge_sessions";

/// See [`describe`].
pub(crate) const PLAYER_REPORTS: &str = "headwater_edge_player_reports_total";
/// See [`describe`].
pub(crate) const PLAYER_FIRST_FRAME: &str = "headwater_edge_player_first_frame_seconds";
/// See [`describe`].
pub(crate) const PLAYER_PLAYED: &str = "headwater_edge_player_played_seconds_total";
/// See [`describe`].
pub(crate) const PLAYER_FROZEN: &str = "headwater_edge_player_frozen_seconds_total";
/// See [`describe`].
pub(crate) const PLAYER_FREEZES: &str = "headwater_edge_player_freezes_total";
/// See [`describe`].
pub(crate) const PLAYER_LATENCY: &str = "headwater_edge_player_latency_seconds";

/// Registers the help texts. Call once, after the recorder is installed.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, "HTTP requests, by route and class of status");
    describe_counter!(
        CONNECTIONS_REFUSED,
        "HTTP connections closed because their address had too many"
    );
    describe_counter!(
        JOINS,
        "WHEP offers, by result: ok, redirected or forwarded to another edge, or the kind of problem"
    );
    describe_histogram!(
        JOIN,
        Unit::Seconds,
        "accepted WHEP offers, by phase: offer (read and parsed), open (the stream), shard (viewer taken in), total (answered), first_media (the first packet of media left)"
    );
    describe_counter!(ICE_RESTARTS, "ICE restarts answered");
    describe_counter!(
        FORWARDED,
        "requests handed to the edge that they are for, by result: ok (answered), refused, unreachable"
    );
    describe_gauge!(SESSIONS, "WHEP sessions, connecting ones included");
    describe_counter!(
        PLAYER_REPORTS,
        "reports of players, by result: ok, sampled (enough of them), or the kind of problem"
    );
    describe_histogram!(
        PLAYER_FIRST_FRAME,
        Unit::Seconds,
        "from a player's request to its first frame on the screen, as players report"
    );
    describe_counter!(
        PLAYER_PLAYED,
        Unit::Seconds,
        "time in which players were to show pictures, as they report"
    );
    describe_counter!(
        PLAYER_FROZEN,
        Unit::Seconds,
        "part of that in which pictures stood still"
    );
    describe_counter!(
        PLAYER_FREEZES,
        "times pictures stood still, as players report"
    );
    describe_histogram!(
        PLAYER_LATENCY,
        Unit::Seconds,
        "from the publisher's socket at the origin to the screen, of some frames, as players report"
    );
    start_at_zero(&[
        CONNECTIONS_REFUSED,
        ICE_RESTARTS,
        PLAYER_PLAYED,
        PLAYER_FROZEN,
        PLAYER_FREEZES,
    ]);
    start_at_zero_by(
        PLAYER_REPORTS,
        "result",
        &["ok", "sampled", "rate-limit", "malformed"],
    );
    start_at_zero_by(FORWARDED, "result", &["ok", "refused", "unreachable"]);
    start_at_zero_by(
        JOINS,
        "result",
        &[
            "ok",
            "redirected",
            "forwarded",
            "not-live",
            "full",
            "egress",
            "overloaded",
            "no-upstream",
            "too-many-streams",
            "draining",
        ],
    );
}
