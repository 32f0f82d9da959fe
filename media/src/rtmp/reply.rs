//! What we send: control messages and commands, each as one type 0 chunk by `rml_rtmp`'s serializer.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use rml_rtmp::chunk_io::ChunkSerializer;
use rml_rtmp::messages::MessagePayload;
use rml_rtmp::time::RtmpTimestamp;

use super::amf::{self, Value};
use super::{Fault, Limits};

/// The chunk size we set (bytes). FFmpeg adopts the server's for its own chunks, and all of our replies fit in one.
pub(super) const CHUNK_BYTES: u32 = 60_000;

/// The window we ask the peer to acknowledge (bytes), which is also the bandwidth we announce.
pub(super) const WINDOW_BYTES: u32 = 2_500_000;

/// The queue of replies, bounded in bytes.
pub(super) struct Replies {
    serializer: ChunkSerializer,
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    bytes_max: usize,
}

impl Replies {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            serializer: ChunkSerializer::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            bytes_max: limits.outbound_bytes,
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let bytes = self.queue.pop_front()?;
        self.queued_bytes = self.queued_bytes.saturating_sub(bytes.len());
        Some(bytes)
    }

    /// Bytes that are no message: the handshake.
    pub(super) fn raw(&mut self, bytes: Vec<u8>) -> Result<(), Fault> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.queued_bytes = self.queued_bytes.saturating_add(bytes.len());
        if self.queued_bytes > self.bytes_max {
            return Err(Fault::OutboundFull);
        }
        self.queue.push_back(bytes.into());
        Ok(())
    }

    /// Set Chunk Size to [`CHUNK_BYTES`], from now on.
    pub(super) fn set_chunk_size(&mut self) -> Result<(), Fault> {
        match self
            .serializer
            .set_max_chunk_size(CHUNK_BYTES, RtmpTimestamp::new(0))
        {
            Ok(packet) => self.raw(packet.bytes),
            // The serializer fails only on messages and sizes beyond what the format can say.
            Err(_) => Err(Fault::OutboundFull),
        }
    }

    /// Acknowledgement (RTMP 1.0 section 5.4.3): all bytes received so far, modulo 2^32.
    pub(super) fn acknowledge(&mut self, received: u32) -> Result<(), Fault> {
        self.message(3, 0, Bytes::copy_from_slice(&received.to_be_bytes()))
    }

    /// Window Acknowledgement Size (RTMP 1.0 section 5.4.4).
    pub(super) fn window(&mut self, bytes: u32) -> Result<(), Fault> {
        self.message(5, 0, Bytes::copy_from_slice(&bytes.to_be_bytes()))
    }

    /// Set Peer Bandwidth (RTMP 1.0 section 5.4.5), limit type dynamic.
    pub(super) fn peer_bandwidth(&mut self, bytes: u32) -> Result<(), Fault> {
        let mut payload = BytesMut::with_capacity(5);
        payload.put_u32(bytes);
        payload.put_u8(2);
        self.message(6, 0, payload.freeze())
    }

    /// A user control message (RTMP 1.0 section 7.1.7) whose body is one number.
    pub(super) fn user_control(&mut self, event: u16, number: u32) -> Result<(), Fault> {
        let mut payload = BytesMut::with_capacity(6);
        payload.put_u16(event);
        payload.put_u32(number);
        self.message(4, 0, payload.freeze())
    }

    /// A command: its name, transaction, and all values behind them.
    pub(super) fn command(
        &mut self,
        stream_id: u32,
        name: &str,
        transaction: f64,
        values: &[Value],
    ) -> Result<(), Fault> {
        let mut payload = BytesMut::with_capacity(256);
        amf::write(&mut payload, &Value::from(name));
        amf::write(&mut payload, &Value::Number(transaction));
        for value in values {
            amf::write(&mut payload, value);
        }
        self.message(20, stream_id, payload.freeze())
    }

    /// `onStatus` on a message stream.
    pub(super) fn status(
        &mut self,
        stream_id: u32,
        level: &str,
        code: &str,
        description: &str,
    ) -> Result<(), Fault> {
        let info = status_info(level, code, description);
        self.command(stream_id, "onStatus", 0.0, &[Value::Null, info])
    }

    fn message(&mut self, kind: u8, stream_id: u32, data: Bytes) -> Result<(), Fault> {
        let message = MessagePayload {
            timestamp: RtmpTimestamp::new(0),
            type_id: kind,
            message_stream_id: stream_id,
            data,
        };
        match self.serializer.serialize(&message, true, false) {
            Ok(packet) => self.raw(packet.bytes),
            Err(_) => Err(Fault::OutboundFull),
        }
    }
}

/// The information object of `onStatus` and of `_error`.
pub(super) fn status_info(level: &str, code: &str, description: &str) -> Value {
    Value::object([
        ("level", level.into()),
        ("code", code.into()),
        ("description", description.into()),
    ])
}

impl std::fmt::Debug for Replies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replies")
            .field("queued_bytes", &self.queued_bytes)
            .finish_non_exhaustive()
    }
}
