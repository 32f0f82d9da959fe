//! Names of RTMP ingest's metrics, with their help texts.

use headwater_node::telemetry::start_at_zero;
use metrics::{Unit, describe_counter, describe_gauge};

/// Open connections.
pub(super) const CONNECTIONS: &str = "headwater_origin_rtmp_connections";
/// Connections refused before a byte was read, by `reason`.
pub(super) const REJECTED: &str = "headwater_origin_rtmp_rejected_total";
/// Failed accepts.
pub(super) const ACCEPT_ERRORS: &str = "headwater_origin_rtmp_accept_errors_total";
/// Publish requests, by `result`.
pub(super) const PUBLISHES: &str = "headwater_origin_rtmp_publishes_total";
/// Ended connections, by `reason`.
pub(super) const CLOSES: &str = "headwater_origin_rtmp_closes_total";
/// Connections ended because the peer broke the protocol, a limit or a deadline, by `reason`.
pub(super) const FAULTS: &str = "headwater_origin_rtmp_faults_total";
/// Publishers that were asked to reconnect elsewhere.
pub(super) const RECONNECTS: &str = "headwater_origin_rtmp_reconnect_requests_total";
/// Bytes read.
pub(super) const RECEIVED: &str = "headwater_origin_rtmp_received_bytes_total";
/// Audio and video messages that could not be used, by `kind` and `reason`.
pub(super) const SKIPPED: &str = "headwater_origin_rtmp_skipped_total";

/// Registers the help texts.
pub(super) fn describe() {
    describe_gauge!(CONNECTIONS, "Open RTMP connections");
    describe_counter!(
        REJECTED,
        "RTMP connections refused for their number, by limit"
    );
    describe_counter!(ACCEPT_ERRORS, "Failed accepts on the RTMP port");
    describe_counter!(PUBLISHES, "RTMP publish requests, by result");
    describe_counter!(CLOSES, "Ended RTMP connections, by who ended them and why");
    describe_counter!(
        FAULTS,
        "RTMP connections ended because the peer broke the protocol, a limit or a deadline"
    );
    describe_counter!(
        RECONNECTS,
        "Publishers that were asked to reconnect because this origin stops"
    );
    describe_counter!(RECEIVED, Unit::Bytes, "Bytes received by RTMP");
    describe_counter!(
        SKIPPED,
        "RTMP audio and video messages that could not be used, by reason"
    );
    start_at_zero(&[ACCEPT_ERRORS, RECEIVED]);
}
