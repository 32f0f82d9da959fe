//! The settings of RTMP ingest: `[rtmp]` in the configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use headwater_media::rtmp::Limits;
use headwater_proto::convert;
use serde::{Deserialize, Serialize};

/// Settings of `[rtmp]`. The limits protect the process from what one peer may send; the defaults suit every encoder seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where RTMP listens. `[::]:1935` takes IPv4 and IPv6.
    pub listen: SocketAddr,
    /// Where publishers that can be asked to reconnect are sent when this origin stops, `rtmp://host[:port]`; their application is put
    /// behind it. Empty: to where they connected.
    pub reconnect_url: String,
    /// Connections at once (count), publishing or not.
    pub connections_max: usize,
    /// Connections at once from one IPv4 address or IPv6 /64 (count).
    pub connections_per_ip_max: usize,
    /// From the accepted connection to the end of the handshake (milliseconds).
    pub handshake_timeout_ms: u64,
    /// From the handshake to an accepted publish, and between two (milliseconds).
    pub publish_timeout_ms: u64,
    /// Silence after which a publisher is pinged (milliseconds).
    pub ping_after_ms: u64,
    /// Silence after which a publisher is dropped (milliseconds).
    pub silence_timeout_ms: u64,
    /// The longest message (bytes): one coded picture. At most what replication carries, 15 MiB.
    pub message_bytes_max: usize,
    /// The longest command or metadata message (bytes).
    pub amf_bytes_max: usize,
    /// The largest chunk size that a publisher may set (bytes), at most 16777215.
    pub chunk_bytes_max: usize,
    /// Chunk streams of a connection (count).
    pub chunk_streams_max: usize,
    /// Memory for incomplete messages of a connection (bytes).
    pub reassembly_bytes_max: usize,
    /// Message streams of a connection that exist at once (count).
    pub message_streams_max: usize,
    /// Levels of nested objects in a command or metadata (count), at most 256.
    pub amf_depth_max: usize,
    /// Arguments of a command (count).
    pub command_arguments_max: usize,
    /// Values in a command or metadata, at all levels (count).
    pub amf_values_max: usize,
}

/// Reading AMF takes a stack frame per level, so this bound is no matter of taste (count).
pub const AMF_DEPTH_MAX: usize = 256;

/// An edge refuses a longer unit and resumes at it, so that one keyframe would break its calls for ever (bytes).
pub const MESSAGE_BYTES_MAX: usize = convert::PAYLOAD_BYTES_MAX;

/// The format's own bound of a chunk (bytes).
pub const CHUNK_BYTES_MAX: usize = 16_777_215;

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 1935)),
            reconnect_url: String::new(),
            connections_max: 1000,
            connections_per_ip_max: 100,
            handshake_timeout_ms: millis(limits.handshake_timeout),
            publish_timeout_ms: millis(limits.publish_timeout),
            ping_after_ms: millis(limits.ping_after),
            silence_timeout_ms: millis(limits.silence_timeout),
            message_bytes_max: limits.message_bytes,
            amf_bytes_max: limits.amf_bytes,
            chunk_bytes_max: limits.chunk_bytes,
            chunk_streams_max: limits.chunk_streams,
            reassembly_bytes_max: limits.reassembly_bytes,
            message_streams_max: limits.message_streams,
            amf_depth_max: limits.amf_depth,
            command_arguments_max: limits.command_arguments,
            amf_values_max: limits.amf_values,
        }
    }
}

impl Config {
    /// The limits of one connection.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            message_bytes: self.message_bytes_max.min(MESSAGE_BYTES_MAX),
            amf_bytes: self.amf_bytes_max,
            chunk_bytes: self.chunk_bytes_max,
            chunk_streams: self.chunk_streams_max,
            reassembly_bytes: self.reassembly_bytes_max,
            message_streams: self.message_streams_max,
            amf_depth: self.amf_depth_max.min(AMF_DEPTH_MAX),
            command_arguments: self.command_arguments_max,
            amf_values: self.amf_values_max,
            handshake_timeout: Duration::from_millis(self.handshake_timeout_ms),
            publish_timeout: Duration::from_millis(self.publish_timeout_ms),
            ping_after: Duration::from_millis(self.ping_after_ms),
            silence_timeout: Duration::from_millis(self.silence_timeout_ms),
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_cores_and_depth_and_messages_are_capped() {
        assert_eq!(Config::default().limits(), Limits::default());
        let deep = Config {
            amf_depth_max: 1_000_000,
            message_bytes_max: 64 << 20,
            ..Config::default()
        };
        assert_eq!(deep.limits().amf_depth, AMF_DEPTH_MAX);
        assert_eq!(deep.limits().message_bytes, MESSAGE_BYTES_MAX);
    }
}
