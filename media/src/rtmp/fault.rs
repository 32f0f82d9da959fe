//! Why a connection is ended: one closed list, from which log texts and metric labels are made.

use super::amf;

/// What the peer did wrong, or failed to do in time. All of them end the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// The first byte is not RTMP's version 3.
    #[error("no RTMP handshake: {0}")]
    Handshake(Foreign),
    /// The handshake took too long.
    #[error("the handshake was not finished in time")]
    HandshakeTimeout,
    /// Nothing was published for too long.
    #[error("nothing was published in time")]
    PublishTimeout,
    /// Nothing came for too long, not even the answer to a ping.
    #[error("the peer fell silent")]
    Silent,
    /// A type 2 or 3 chunk on a chunk stream that had no message yet.
    #[error("a chunk that continues nothing")]
    ChunkWithoutHeader,
    /// A chunk with a new message header while the chunk stream's message is incomplete.
    #[error("a message header within a message")]
    HeaderWithinMessage,
    /// Set Chunk Size of 0 or above the limit.
    #[error("a chunk size out of range")]
    ChunkSize,
    /// Too many chunk streams.
    #[error("too many chunk streams")]
    ChunkStreams,
    /// A message longer than its kind may be.
    #[error("a message is too long")]
    MessageTooLong,
    /// Too many large messages begun at once.
    #[error("too much memory in incomplete messages")]
    ReassemblyFull,
    /// A protocol control or user control message that is too short.
    #[error("a malformed control message")]
    Control,
    /// An aggregate message whose tags do not fit in it.
    #[error("a malformed aggregate message")]
    Aggregate,
    /// A command whose AMF can't be read.
    #[error("malformed AMF")]
    Amf,
    /// Objects nested too deeply.
    #[error("AMF is nested too deeply")]
    AmfDepth,
    /// Too many values in one message.
    #[error("too many AMF values")]
    AmfValues,
    /// A command without name, or without the arguments it needs.
    #[error("a malformed command")]
    Command,
    /// A command with too many arguments.
    #[error("a command has too many arguments")]
    CommandArguments,
    /// A command that only makes sense after `connect`.
    #[error("a command before connect")]
    BeforeConnect,
    /// `createStream` too often.
    #[error("too many message streams")]
    MessageStreams,
    /// Sequence headers that change and change.
    #[error("the tracks' configurations change too often")]
    Configurations,
    /// The peer makes us answer and does not read the answers.
    #[error("the peer does not read our replies")]
    OutboundFull,
}

/// What a connection seems to be that is not RTMP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Foreign {
    /// A TLS ClientHello: RTMPS towards a plain port.
    Tls,
    /// An HTTP request.
    Http,
    /// RTMPE, encrypted RTMP, version 6.
    Rtmpe,
    /// Something else.
    Unknown,
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tls => "the peer speaks TLS (rtmps://), this port does not",
            Self::Http => "the peer speaks HTTP",
            Self::Rtmpe => "the peer speaks RTMPE, which is not supported",
            Self::Unknown => "the version byte is not 3",
        })
    }
}

impl Foreign {
    /// From the connection's first byte.
    pub(crate) const fn from_first_byte(byte: u8) -> Self {
        match byte {
            0x16 => Self::Tls,
            b'A'..=b'Z' => Self::Http,
            6 | 8 => Self::Rtmpe,
            _ => Self::Unknown,
        }
    }
}

impl Fault {
    /// The value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Handshake(_) => "handshake",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::PublishTimeout => "publish_timeout",
            Self::Silent => "silent",
            Self::ChunkWithoutHeader => "chunk_without_header",
            Self::HeaderWithinMessage => "header_within_message",
            Self::ChunkSize => "chunk_size",
            Self::ChunkStreams => "chunk_streams",
            Self::MessageTooLong => "message_too_long",
            Self::ReassemblyFull => "reassembly_full",
            Self::Control => "control",
            Self::Aggregate => "aggregate",
            Self::Amf => "amf",
            Self::AmfDepth => "amf_depth",
            Self::AmfValues => "amf_values",
            Self::Command => "command",
            Self::CommandArguments => "command_arguments",
            Self::BeforeConnect => "before_connect",
            Self::MessageStreams => "message_streams",
            Self::Configurations => "configurations",
            Self::OutboundFull => "outbound_full",
        }
    }
}

impl From<amf::Error> for Fault {
    fn from(error: amf::Error) -> Self {
        match error {
            amf::Error::Truncated | amf::Error::Marker(_) => Self::Amf,
            amf::Error::TooDeep => Self::AmfDepth,
            amf::Error::TooMany => Self::AmfValues,
        }
    }
}
