//! What a probe does beyond counting: opens the video, puts the pictures together and reads when they were sent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use headwater_bench::time::{now, wall};
use headwater_media::rtp::assembler::{Assembler, Frame};
use headwater_media::rtp::sequence::Unwrapper;
use rtc_srtp::context::Context;

use super::reception::Header;

/// What was seen since it was last taken.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// From the publisher's socket to the last packet of the picture at this one, and never before the pictures in front of it (ms).
    pub(crate) latency_ms: Vec<f64>,
    /// The same, of keyframes only.
    pub(crate) keyframe_latency_ms: Vec<f64>,
    /// Pictures that no decoder could show, because they or one before them since the keyframe are not whole.
    pub(crate) undecodable: u64,
    /// Packets that could not be opened.
    pub(crate) forged: u64,
}

/// One probe.
pub(crate) struct Probe {
    opener: Context,
    unwrapper: Unwrapper,
    assembler: Assembler,
    /// The same moment on both clocks: the kernel's receive times are wall clock times.
    anchor: (Instant, Duration),
    released: Option<Instant>,
    /// When the first picture that a decoder can show was whole (since the Unix epoch).
    pub(crate) first_decodable: Option<Duration>,
    pub(crate) seen: Seen,
}

impl Probe {
    pub(crate) fn new(opener: Context) -> Self {
        Self {
            opener,
            unwrapper: Unwrapper::default(),
            assembler: Assembler::default(),
            anchor: (now(), wall()),
            released: None,
            first_decodable: None,
            seen: Seen::default(),
        }
    }

    /// A video packet came (`at` since the Unix epoch).
    pub(crate) fn handle_packet(&mut self, header: &Header, packet: &[u8], at: Duration) {
        let Ok(plain) = self.opener.decrypt_rtp(packet) else {
            self.seen.forged += 1;
            return;
        };
        let plain = plain.freeze();
        let padding = match (packet.first(), plain.last()) {
            (Some(first), Some(last)) if first & 0x20 != 0 => usize::from(*last),
            _ => 0,
        };
        let end = plain.len().saturating_sub(padding).max(header.bytes);
        let payload = if end <= plain.len() {
            plain.slice(header.bytes..end)
        } else {
            Bytes::new()
        };
        let index = self.unwrapper.unwrap(header.sequence).cast_signed();
        let (instant, since) = self.anchor;
        let arrived = instant + at.saturating_sub(since);
        self.assembler
            .handle_packet(arrived, index, header.timestamp, header.marker, payload);
        while let Some(frame) = self.assembler.poll_frame() {
            self.handle_frame(&frame);
        }
    }

    fn handle_frame(&mut self, frame: &Frame) {
        if !frame.decodable {
            // Before the first keyframe there was nothing to show yet.
            self.seen.undecodable += u64::from(self.first_decodable.is_some());
            return;
        }
        let released = self
            .released
            .map_or(frame.arrived, |before| before.max(frame.arrived));
        self.released = Some(released);
        let (instant, since) = self.anchor;
        let released = since + released.saturating_duration_since(instant);
        self.first_decodable.get_or_insert(released);
        if let Some(stamp) = frame.stamp {
            let latency = released.as_secs_f64() - Duration::from_micros(stamp).as_secs_f64();
            self.seen.latency_ms.push(1e3 * latency);
            if frame.keyframe {
                self.seen.keyframe_latency_ms.push(1e3 * latency);
            }
        }
    }
}
