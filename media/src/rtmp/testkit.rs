//! What tests send: chunks, commands and media as encoders write them.

use bytes::BytesMut;

use super::amf::{self, Value};

/// One message to be chunked.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) chunk_stream: u32,
    pub(crate) kind: u8,
    pub(crate) stream_id: u32,
    pub(crate) timestamp: u32,
    pub(crate) payload: Vec<u8>,
}

/// The chunks of a message: a type 0 header, then type 3, the extended timestamp repeated on each if `repeat`.
pub(crate) fn chunks(sent: &Sent, chunk_bytes: usize, repeat: bool) -> Vec<Vec<u8>> {
    let extended = sent.timestamp >= 0xFF_FFFF;
    let mut header = basic(0, sent.chunk_stream);
    header.extend_from_slice(&sent.timestamp.min(0xFF_FFFF).to_be_bytes()[1..]);
    header.extend_from_slice(&(sent.payload.len() as u32).to_be_bytes()[1..]);
    header.push(sent.kind);
    header.extend_from_slice(&sent.stream_id.to_le_bytes());
    if extended {
        header.extend_from_slice(&sent.timestamp.to_be_bytes());
    }
    let mut out = Vec::new();
    let mut parts = sent.payload.chunks(chunk_bytes);
    header.extend_from_slice(parts.next().unwrap_or_default());
    out.push(header);
    for part in parts {
        let mut chunk = basic(3, sent.chunk_stream);
        if extended && repeat {
            chunk.extend_from_slice(&sent.timestamp.to_be_bytes());
        }
        chunk.extend_from_slice(part);
        out.push(chunk);
    }
    out
}

/// A basic header in its shortest form.
pub(crate) fn basic(format: u8, chunk_stream: u32) -> Vec<u8> {
    let top = format << 6;
    match chunk_stream {
        2..=63 => vec![top | chunk_stream as u8],
        64..=319 => vec![top, (chunk_stream - 64) as u8],
        _ => {
            let [low, high] = ((chunk_stream - 64) as u16).to_le_bytes();
            vec![top | 1, low, high]
        }
    }
}

/// One message in 128-byte chunks.
pub(crate) fn message(
    chunk_stream: u32,
    kind: u8,
    stream_id: u32,
    timestamp: u32,
    payload: &[u8],
) -> Vec<u8> {
    sized(128, chunk_stream, kind, stream_id, timestamp, payload)
}

/// One message in chunks of a size.
pub(crate) fn sized(
    chunk_bytes: usize,
    chunk_stream: u32,
    kind: u8,
    stream_id: u32,
    timestamp: u32,
    payload: &[u8],
) -> Vec<u8> {
    let sent = Sent {
        chunk_stream,
        kind,
        stream_id,
        timestamp,
        payload: payload.to_vec(),
    };
    chunks(&sent, chunk_bytes, true).concat()
}

/// AMF0 values one after the other.
pub(crate) fn amf(values: &[Value]) -> Vec<u8> {
    let mut out = BytesMut::new();
    for value in values {
        amf::write(&mut out, value);
    }
    out.to_vec()
}

/// An AVCDecoderConfigurationRecord of x264's, 320x240, with one SPS and one PPS.
pub(crate) const AVCC: &[u8] = &[
    0x01, 0x42, 0xC0, 0x0D, 0xFF, 0xE1, 0x00, 0x18, 0x67, 0x42, 0xC0, 0x0D, 0xD9, 0x01, 0x41, 0xFB,
    0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x42, 0xA4, 0x80,
    0x01, 0x00, 0x05, 0x68, 0xCB, 0x83, 0xCB, 0x20,
];

/// AAC-LC, 48 kHz, stereo.
pub(crate) const ASC: &[u8] = &[0x11, 0x90];

/// A video tag body: sequence header.
pub(crate) fn video_configuration(avcc: &[u8]) -> Vec<u8> {
    [&[0x17, 0, 0, 0, 0], avcc].concat()
}

/// A video tag body: one slice of a picture, IDR or not, of this many bytes.
pub(crate) fn picture(keyframe: bool, composition: i32, slice_bytes: usize) -> Vec<u8> {
    let [_, a, b, c] = composition.to_be_bytes();
    let mut body = vec![if keyframe { 0x17 } else { 0x27 }, 1, a, b, c];
    body.extend_from_slice(&(slice_bytes as u32).to_be_bytes());
    body.push(if keyframe { 0x65 } else { 0x41 });
    body.resize(body.len() + slice_bytes - 1, 0xA5);
    body
}
