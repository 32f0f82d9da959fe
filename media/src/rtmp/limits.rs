//! The bounds of one RTMP connection: everything that a peer could make grow has its number here.

use std::time::Duration;

/// Bounds of one connection. The defaults are generous to every encoder seen and cheap for us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The longest message (bytes). 8 MiB is a keyframe of 2 seconds at 32 Mbit/s.
    pub message_bytes: usize,
    /// The longest command or data message (bytes): everything in AMF.
    pub amf_bytes: usize,
    /// The largest chunk size a peer may set (bytes). The format's own bound is 16777215.
    pub chunk_bytes: usize,
    /// Chunk streams in use (count).
    pub chunk_streams: usize,
    /// Memory held for messages that are not complete yet, over all chunk streams (bytes).
    pub reassembly_bytes: usize,
    /// Message streams that `createStream` made and nothing deleted (count).
    pub message_streams: usize,
    /// Nesting of AMF objects and arrays (count).
    pub amf_depth: usize,
    /// Values after the command's name, transaction and command object, at the top level (count).
    pub command_arguments: usize,
    /// AMF values in one message, at all levels (count).
    pub amf_values: usize,
    /// Replies that wait for the shell to send them (bytes). Beyond it the peer asks without reading.
    pub outbound_bytes: usize,
    /// From the first byte to the end of the handshake.
    pub handshake_timeout: Duration,
    /// From the end of the handshake to an accepted publish, and from the end of one publish to the next.
    pub publish_timeout: Duration,
    /// Silence after which the peer is pinged.
    pub ping_after: Duration,
    /// Silence after which the connection ends.
    pub silence_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 8 << 20,
            amf_bytes: 256 << 10,
            chunk_bytes: 16_777_215,
            chunk_streams: 64,
            reassembly_bytes: 16 << 20,
            message_streams: 8,
            amf_depth: 32,
            command_arguments: 32,
            amf_values: 4096,
            outbound_bytes: 256 << 10,
            handshake_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(15),
            ping_after: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(20),
        }
    }
}
