//! Puts H.264 access units together from RTP (RFC 6184) and judges whether a decoder could show them.
//!
//! The receiving end, for `headwater probe` and the bench. Packets go in as they arrive; access units come out in order. A gap
//! is waited for, since a retransmission may fill it, and then given up. Nothing is decoded: an access unit counts as decodable if it is
//! complete and follows, without a broken one in between, a complete IDR picture that came with its SPS and PPS.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::h264::stamp;

/// How long a gap holds back what follows it.
///
/// Two NACK rounds at 150 ms RTT with the default interval of 100 ms between them.
const GAP_WAIT: Duration = Duration::from_millis(500);
/// Packets held behind a gap (count); at most one second of 8 Mbit/s.
const HELD_MAX: usize = 1024;

/// One access unit, as far as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its RTP timestamp.
    pub timestamp: u32,
    /// When its last packet came.
    pub arrived: Instant,
    /// Nothing is missing.
    pub complete: bool,
    /// It is an IDR picture with its SPS and PPS in front.
    pub keyframe: bool,
    /// A decoder that was given everything up to here shows it.
    pub decodable: bool,
    /// When it was made, in µs of Unix time, if the publisher stamped it.
    pub stamp: Option<u64>,
}

/// The packets' way to frames.
#[derive(Debug, Default)]
pub struct Assembler {
    held: BTreeMap<i64, Packet>,
    next: Option<i64>,
    gap_since: Option<Instant>,
    current: Option<Unit>,
    /// What was given up lay between the last access unit and the next packet.
    broken_start: bool,
    chain: bool,
    frames: VecDeque<Frame>,
}

#[derive(Debug)]
struct Packet {
    arrived: Instant,
    timestamp: u32,
    marker: bool,
    payload: Bytes,
}

#[derive(Debug)]
struct Unit {
    timestamp: u32,
    arrived: Instant,
    broken: bool,
    pictures: bool,
    idr: bool,
    sps: bool,
    pps: bool,
    stamp: Option<u64>,
    /// The NAL unit that FU-A fragments are being joined to. Only SEI is kept whole.
    fragment: Option<Fragment>,
}

#[derive(Debug)]
struct Fragment {
    kind: u8,
    sei: Vec<u8>,
}

impl Assembler {
    /// A packet arrived; `index` is its unwrapped sequence number. Drain [`Self::poll_frame`] afterwards.
    pub fn handle_packet(
        &mut self,
        now: Instant,
        index: i64,
        timestamp: u32,
        marker: bool,
        payload: Bytes,
    ) {
        let next = *self.next.get_or_insert(index);
        if index >= next {
            let packet = Packet {
                arrived: now,
                timestamp,
                marker,
                payload,
            };
            self.held.insert(index, packet);
        }
        self.advance(now);
    }

    /// Gives up gaps that are too old. Call it now and then; drain [`Self::poll_frame`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
    }

    /// The next access unit.
    pub fn poll_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Whether a decoder waits for a keyframe.
    pub fn wants_keyframe(&self) -> bool {
        !self.chain
    }

    fn advance(&mut self, now: Instant) {
        loop {
            while let Some(packet) = self.next.and_then(|next| self.held.remove(&next)) {
                self.next = self.next.map(|next| next + 1);
                self.gap_since = None;
                self.take(&packet);
            }
            let Some((&first, _)) = self.held.first_key_value() else {
                self.gap_since = None;
                return;
            };
            let since = *self.gap_since.get_or_insert(now);
            let waited = now.saturating_duration_since(since) >= GAP_WAIT;
            if !waited && self.held.len() <= HELD_MAX {
                return;
            }
            self.next = Some(first);
            self.gap_since = None;
            match &mut self.current {
                Some(unit) => unit.broken = true,
                None => self.broken_start = true,
            }
        }
    }

    fn take(&mut self, packet: &Packet) {
        // Padding that probes for bandwidth belongs to no picture.
        if packet.payload.is_empty() {
            return;
        }
        if self
            .current
            .as_ref()
            .is_some_and(|unit| unit.timestamp != packet.timestamp)
        {
            // Its marker got lost, and with it perhaps packets of the next access unit.
            self.broken_start |= self.current.as_ref().is_some_and(|unit| unit.broken);
            self.finish();
        }
        let broken = std::mem::take(&mut self.broken_start);
        let unit = self.current.get_or_insert(Unit {
            timestamp: packet.timestamp,
            arrived: packet.arrived,
            broken: false,
            pictures: false,
            idr: false,
            sps: false,
            pps: false,
            stamp: None,
            fragment: None,
        });
        unit.broken |= broken;
        unit.arrived = unit.arrived.max(packet.arrived);
        unit.handle_payload(&packet.payload);
        if packet.marker {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let Some(unit) = self.current.take() else {
            return;
        };
        let complete = !unit.broken && unit.fragment.is_none();
        // Parameter sets alone, or an SEI alone, are no picture.
        if complete && !unit.pictures {
            return;
        }
        let keyframe = unit.idr && unit.sps && unit.pps;
        self.chain = complete && (self.chain || keyframe);
        self.frames.push_back(Frame {
            timestamp: unit.timestamp,
            arrived: unit.arrived,
            complete,
            keyframe,
            decodable: self.chain,
            stamp: unit.stamp,
        });
    }
}

impl Unit {
    /// RFC 6184 section 5.2: a single NAL unit, a STAP-A or an FU-A.
    fn handle_payload(&mut self, payload: &[u8]) {
        let kind = payload.first().map_or(0, |first| first & 0x1f);
        if kind != 28 && self.fragment.take().is_some() {
            self.broken = true;
        }
        match kind {
            1..=23 => self.handle_nal(kind, payload),
            24 => self.handle_stap(payload.get(1..).unwrap_or_default()),
            28 => self.handle_fragment(payload),
            _ => self.broken = true,
        }
    }

    fn handle_stap(&mut self, mut rest: &[u8]) {
        while let Some((size, tail)) = rest.split_first_chunk::<2>() {
            let Some((nal, tail)) = tail.split_at_checked(usize::from(u16::from_be_bytes(*size)))
            else {
                self.broken = true;
                return;
            };
            if let Some(first) = nal.first() {
                self.handle_nal(first & 0x1f, nal);
            }
            rest = tail;
        }
        self.broken |= !rest.is_empty();
    }

    fn handle_fragment(&mut self, payload: &[u8]) {
        let &[indicator, header, ref rest @ ..] = payload else {
            self.broken = true;
            return;
        };
        let (start, end, kind) = (header & 0x80 != 0, header & 0x40 != 0, header & 0x1f);
        if start {
            self.broken |= self.fragment.is_some();
            let sei = if kind == 6 {
                vec![(indicator & 0xe0) | kind]
            } else {
                Vec::new()
            };
            self.fragment = Some(Fragment { kind, sei });
        }
        let Some(fragment) = &mut self.fragment else {
            self.broken = true;
            return;
        };
        self.broken |= fragment.kind != kind;
        if fragment.kind == 6 && fragment.sei.len() < 4096 {
            fragment.sei.extend_from_slice(rest);
        }
        if end && let Some(fragment) = self.fragment.take() {
            self.handle_nal(fragment.kind, &fragment.sei);
        }
    }

    /// `nal` is whole for everything but slices that came in fragments.
    fn handle_nal(&mut self, kind: u8, nal: &[u8]) {
        match kind {
            1..=4 => self.pictures = true,
            5 => (self.pictures, self.idr) = (true, true),
            6 => self.stamp = stamp::find(nal).or(self.stamp),
            7 => self.sps = true,
            8 => self.pps = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAP_PARAMETERS: &[u8] = &[0x78, 0, 2, 0x67, 1, 0, 2, 0x68, 2];
    const IDR: &[u8] = &[0x65, 9, 9];
    const SLICE: &[u8] = &[0x41, 9];

    struct Run {
        assembler: Assembler,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            Self {
                assembler: Assembler::default(),
                now: crate::testkit::start(),
            }
        }

        fn packet(&mut self, index: i64, timestamp: u32, marker: bool, payload: &[u8]) {
            let payload = Bytes::copy_from_slice(payload);
            self.assembler
                .handle_packet(self.now, index, timestamp, marker, payload);
        }

        /// Timestamp, complete, keyframe, decodable.
        fn frames(&mut self) -> Vec<(u32, bool, bool, bool)> {
            std::iter::from_fn(|| self.assembler.poll_frame())
                .map(|frame| {
                    (
                        frame.timestamp,
                        frame.complete,
                        frame.keyframe,
                        frame.decodable,
                    )
                })
                .collect()
        }
    }

    #[test]
    fn decoding_starts_at_a_keyframe_with_its_parameter_sets() {
        let mut run = Run::new();
        run.packet(1, 10, true, SLICE);
        run.packet(2, 20, true, IDR);
        run.packet(3, 30, false, STAP_PARAMETERS);
        run.packet(4, 30, true, IDR);
        run.packet(5, 40, true, SLICE);
        assert_eq!(
            run.frames(),
            [
                (10, true, false, false),
                (20, true, false, false),
                (30, true, true, true),
                (40, true, false, true)
            ]
        );
    }

    #[test]
    fn fragments_join_in_any_order_of_arrival() {
        let mut run = Run::new();
        run.packet(1, 30, false, STAP_PARAMETERS);
        run.packet(4, 30, true, &[0x7c, 0x45, 3]);
        run.packet(3, 30, false, &[0x7c, 0x05, 2]);
        assert_eq!(run.frames(), []);
        run.packet(2, 30, false, &[0x7c, 0x85, 1]);
        assert_eq!(run.frames(), [(30, true, true, true)]);
    }

    #[test]
    fn a_gap_is_given_up_and_breaks_the_chain_until_the_next_keyframe() {
        let mut run = Run::new();
        run.packet(1, 10, false, STAP_PARAMETERS);
        run.packet(2, 10, true, IDR);
        run.packet(4, 30, true, SLICE);
        assert_eq!(run.frames(), [(10, true, true, true)]);
        run.now += GAP_WAIT;
        run.assembler.handle_timeout(run.now);
        assert_eq!(run.frames(), [(30, false, false, false)]);
        assert!(run.assembler.wants_keyframe());
        run.packet(5, 40, false, STAP_PARAMETERS);
        run.packet(6, 40, true, IDR);
        assert_eq!(run.frames(), [(40, true, true, true)]);
        run.packet(3, 20, true, SLICE);
        assert_eq!(run.frames(), []);
    }

    #[test]
    fn what_is_held_behind_a_gap_is_bounded() {
        let mut run = Run::new();
        run.packet(0, 0, true, SLICE);
        for index in 2..(HELD_MAX as i64 + 10) {
            run.packet(index, 1, false, SLICE);
        }
        assert!(run.assembler.held.len() <= HELD_MAX);
    }

    #[test]
    fn garbage_is_a_broken_frame_and_no_panic() {
        let mut run = Run::new();
        for (payload, index) in [
            &[0x78_u8, 0][..],
            &[0x78, 0, 9, 1],
            &[0x7c],
            &[0x1f],
            &[0x7c, 0x05, 1],
        ]
        .into_iter()
        .zip(0_i64..)
        {
            run.packet(index, u32::try_from(index).unwrap(), true, payload);
        }
        assert!(run.frames().iter().all(|frame| !frame.3));
    }
}
