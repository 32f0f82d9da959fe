//! One RTP stream towards a viewer, with its RTX.
//!
//! Sequence numbers, timestamps and SSRCs are continuous whatever happens upstream: they are counted here, and only `position` refers
//! to the stream's packets. Any part of an access unit can leave at a time, so that the pacer can spread a keyframe.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use headwater_media::bwe::History;
use headwater_media::codec::opus;
use headwater_media::ice::Path;
use headwater_media::id::TrackId;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::header::{Layout, PacketFields, Template, UnitFields};
use headwater_media::rtp::packetizer::rtp_time;
use headwater_media::rtp::rtcp::SenderInfo;
use headwater_media::rtx::{self, Resend, Retransmitter, Sent};
use headwater_media::sdp::NegotiatedMedia;
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::MediaKind;

use crate::lateness::{Bounds, Lateness};
use crate::shard::outbox::Outbox;
use crate::shard::prefetch::prefetch;
use crate::shard::stream::Rings;
use crate::transport::srtp;

/// The RTP clock of video (RFC 6184 section 8.2.1).
const VIDEO_CLOCK_HZ: u32 = 90_000;

/// The playout delay of pictures that run up to the live edge (units of 10 ms): none is asked for, and a bound this low makes libwebrtc show pictures
/// as they come. By their timestamps they are seconds early, and after a step to a newer keyframe it would hold the next one back.
const RUN_UP_PLAYOUT_DELAY: (u16, u16) = (0, 40);
/// What libwebrtc assumes where nothing is said.
const PLAYOUT_DELAY: (u16, u16) = (0, 1000);
/// Access units after the run-up in which that still holds (count): as long as libwebrtc takes to forget how timestamps went before.
const UNITS_AFTER_RUN_UP: u64 = 90;
/// Access units after those in which it is taken back (count): any of them may be lost.
const UNITS_OF_RETURN: u64 = 60;

/// RTP time between pictures that repeat what the rendition before has shown (90 kHz): a player shows them faster than they were made, and
/// libwebrtc follows down to a third of the usual spacing without falling behind.
const OVERLAP_SPACING: u64 = 1000;

/// Pictures that are late leave with the time at which they leave: what was missed while a way was cut comes together, seconds late, and
/// libwebrtc, which learns from that how timestamps go with time, would show later pictures by what it has learned: seconds late at first,
/// and for half a minute up to half a second. Late is what is later than a link's own queue makes it where its rendition fits.
const LATE: Bounds = Bounds {
    late: Duration::from_millis(700),
    in_time: Duration::from_millis(100),
    usual_after: Duration::from_secs(3),
};
/// The same between pictures that came late and all at once, where their times are those at which they leave.
const LATE_SPACING: u64 = 90;

/// The P bit, and the most padding that one packet can have (RFC 3550 section 5.1).
const PADDING_FLAG: u8 = 0x20;
const PADDING_BYTES: u8 = 255;

/// The mid and playout-delay extensions are written in the first access units (count): a few seconds, until any viewer has mapped the
/// SSRC and heard the delay.
const UNITS_WITH_MID: u64 = 150;

/// About what a packet has besides its payload: framing, header, extensions and tag (bytes).
const PACKET_OVERHEAD: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) ssrc: u32,
    pub(crate) track: TrackId,
    pub(crate) kind: MediaKind,
    layout: Layout,
    playout_delay: Option<(u16, u16)>,
    rtx: Option<Rtx>,
    pub(crate) numbered: bool,
    clock_hz: u32,
    /// The next packet's sequence number; the upper bits are SRTP's rollover counter.
    sequence: u64,
    /// Added to a batch's `rtp_time`.
    timestamp_offset: u32,
    /// Index in the track of the next packet to send; `None`: wait for a keyframe.
    pub(crate) position: Option<u64>,
    /// The RTP time that the newest unit was given, without the offset, and the one it has by itself.
    time: u64,
    newest: u64,
    /// The rendition was switched: its first pictures may show what the one before did already, and yet time must go on.
    overlaps: bool,
    lateness: Lateness,
    units: u64,
    /// How many of them there will be when the effect of the run-up is over.
    settled_at: u64,
    packets: u32,
    payload_bytes: u32,
}

#[derive(Debug)]
struct Rtx {
    layout: Layout,
    sequence: u64,
    core: Rc<RefCell<Retransmitter>>,
}

/// What became of an RTX packet.
enum Pushed {
    /// It is in the outbox, with so many bytes.
    Sent(usize),
    /// It can't be made.
    Unsent,
    /// The path has no room for it, nor for others.
    Full,
}

impl Rtx {
    /// Sends a packet whose header and `body` bytes behind it `write` makes.
    fn push(
        &mut self,
        wire: &mut Wire<'_>,
        numbered: bool,
        timestamp: u32,
        marker: bool,
        body: usize,
        write: impl FnOnce(&mut [u8], &Template, &PacketFields) -> Option<()>,
    ) -> Pushed {
        let template = self.layout.template(&UnitFields {
            timestamp,
            capture_time: None,
            playout_delay: None,
            mid: true,
        });
        let fields = PacketFields {
            sequence: low16(self.sequence),
            transport_sequence: wire.numbers.next,
            marker,
        };
        let rollover = rollover(self.sequence);
        let header = template.len();
        let length = header + body + wire.session.media.tag_bytes();
        if !wire.outbox.has_room_for_control(wire.path, length) {
            return Pushed::Full;
        }
        let sent = wire.outbox.push_with(wire.path, length, |packet| {
            write(packet, &template, &fields)?;
            wire.session.media.seal(packet, header, rollover).ok()
        });
        if sent.is_none() {
            return Pushed::Unsent;
        }
        if numbered {
            wire.numbers.handle_sent(wire.now, length);
        }
        self.sequence += 1;
        Pushed::Sent(length)
    }
}

/// What packets to one viewer leave by.
pub(super) struct Wire<'a> {
    pub(super) now: Instant,
    /// The viewer runs up to the live edge.
    pub(super) runs_up: bool,
    pub(super) path: Path,
    pub(super) session: &'a srtp::Session,
    pub(super) numbers: &'a mut Numbers,
    pub(super) outbox: &'a mut Outbox,
}

/// What left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Left {
    /// Packets (count).
    pub(crate) packets: u64,
    /// Bytes with headers and tags.
    pub(crate) bytes: u64,
}

/// How much may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Packets (count).
    pub(crate) packets: u64,
    /// A packet may leave while this is above zero, whatever its size.
    pub(crate) bytes: u64,
}

impl Allowance {
    /// No bound.
    pub(crate) const ALL: Self = Self {
        packets: u64::MAX,
        bytes: u64::MAX,
    };

    pub(super) const fn less(self, left: Left) -> Self {
        Self {
            packets: self.packets.saturating_sub(left.packets),
            bytes: self.bytes.saturating_sub(left.bytes),
        }
    }

    pub(super) const fn is_empty(self) -> bool {
        self.packets == 0 || self.bytes == 0
    }
}

/// A viewer's transport-wide sequence numbers.
#[derive(Debug)]
pub(super) struct Numbers {
    next: u16,
    /// What was sent with the last of them, if the viewer wants any.
    pub(super) history: Option<History>,
}

impl Numbers {
    pub(super) fn new(wanted: bool, now: Instant) -> Self {
        Self {
            next: 0,
            history: wanted.then(|| History::new(now)),
        }
    }

    /// The packet with the next number left.
    fn handle_sent(&mut self, now: Instant, bytes: usize) {
        if let Some(history) = &mut self.history {
            history.handle_sent(now, self.next, bytes);
        }
        self.next = self.next.wrapping_add(1);
    }
}

impl Outgoing {
    /// For an accepted m-section. `random` starts sequence numbers and timestamps (RFC 3550 section 5.1).
    pub(crate) fn new(
        media: &NegotiatedMedia,
        track: TrackId,
        kind: MediaKind,
        playout_delay_ms: Option<[u16; 2]>,
        random: u64,
        now: Instant,
    ) -> Self {
        // Below 2^15, so that losing the first packets can't make a receiver guess a wrong rollover (RFC 3711 section 3.3.1).
        let sequence = random & 0x7fff;
        let rtx_sequence = (random >> 16) & 0x7fff;
        let rtx = Layout::rtx(media).filter(|_| media.nack).map(|layout| Rtx {
            layout,
            sequence: rtx_sequence,
            core: Rc::new(RefCell::new(Retransmitter::new(
                rtx::Options::default(),
                now,
            ))),
        });
        Self {
            ssrc: media.ssrc,
            track,
            kind,
            layout: Layout::new(media),
            playout_delay: playout_delay_ms.map(|[min, max]| (min / 10, max.div_ceil(10))),
            rtx,
            numbered: media.extensions.transport_sequence.is_some(),
            clock_hz: match kind {
                MediaKind::Video => VIDEO_CLOCK_HZ,
                MediaKind::Audio => opus::CLOCK_HZ,
            },
            sequence,
            timestamp_offset: low32(random >> 32),
            position: None,
            time: 0,
            newest: 0,
            overlaps: false,
            lateness: Lateness::new(&LATE),
            units: 0,
            settled_at: 0,
            packets: 0,
            payload_bytes: 0,
        }
    }

    /// What answers NACKs of this SSRC, if anything does. Without RTX nothing may: sealing the same sequence number again with other
    /// header extensions would repeat an AES-GCM nonce.
    pub(crate) fn retransmitter(&self) -> Option<Rc<RefCell<Retransmitter>>> {
        self.rtx.as_ref().map(|rtx| Rc::clone(&rtx.core))
    }

    /// Asks for what sending touches behind this structure.
    pub(super) fn prefetch(&self) {
        if let Some(rtx) = &self.rtx {
            prefetch(&*rtx.core);
        }
    }

    /// Sends packets of `batch`, from its `first`th on, and moves on behind them.
    pub(super) fn send(
        &mut self,
        wire: &mut Wire<'_>,
        batch: &PacketBatch,
        first: usize,
        allowance: Allowance,
    ) -> Left {
        let early = self.units < UNITS_WITH_MID;
        let playout_delay = self.playout_delay(wire.runs_up, early || batch.keyframe);
        let timestamp_offset = self.place(wire, batch.rtp_time, first);
        let template = self.layout.template(&UnitFields {
            timestamp: low32(batch.rtp_time).wrapping_add(timestamp_offset),
            capture_time: (batch.ingest_time != WallTime::default()).then_some(batch.ingest_time),
            playout_delay,
            mid: early,
        });
        let tag_bytes = wire.session.media.tag_bytes();
        let first_sequence = self.sequence;
        let mut left = Left::default();
        let mut payload_bytes = 0_usize;
        for i in first..batch.len() {
            if allowance.less(left).is_empty() {
                break;
            }
            let Some(payload) = batch.payload(i) else {
                break;
            };
            let last = i + 1 == batch.len();
            let fields = PacketFields {
                sequence: low16(self.sequence),
                transport_sequence: wire.numbers.next,
                marker: self.kind == MediaKind::Video && last,
            };
            let rollover = rollover(self.sequence);
            let length = template.len() + payload.len() + tag_bytes;
            wire.outbox.push_with(wire.path, length, |packet| {
                let header = template.write(packet, &fields)?;
                packet
                    .get_mut(header..header + payload.len())?
                    .copy_from_slice(payload);
                wire.session.media.seal(packet, header, rollover).ok()
            });
            if self.numbered {
                wire.numbers.handle_sent(wire.now, length);
            }
            self.sequence += 1;
            left.packets += 1;
            left.bytes += length as u64;
            payload_bytes += payload.len();
            self.units += u64::from(last);
        }
        let first_index = batch.first_index + first as u64;
        self.position = Some(first_index + left.packets);
        if left.packets == 0 {
            return left;
        }
        let payload_bytes = low32(payload_bytes as u64);
        self.packets = self.packets.wrapping_add(low32(left.packets));
        self.payload_bytes = self.payload_bytes.wrapping_add(payload_bytes);
        if let Some(rtx) = &self.rtx {
            rtx.core.borrow_mut().handle_sent(
                wire.now,
                &Sent {
                    first_sequence,
                    packets: low32(left.packets),
                    track: batch.track,
                    first_index,
                    timestamp_offset,
                    keyframe: batch.keyframe && first == 0 && self.kind == MediaKind::Video,
                    bytes: payload_bytes,
                },
            );
        }
        left
    }

    /// What to add to the RTP time of the unit that is sent now, from its `first`th packet on.
    fn place(&mut self, wire: &Wire<'_>, rtp_time: u64, first: usize) -> u32 {
        if first == 0 {
            let late = match self.kind {
                MediaKind::Video => self.lateness.handle(wire.now, micros(rtp_time)),
                MediaKind::Audio => None,
            };
            // Who runs up to the live edge does so by the original times.
            let late = late.filter(|_| !wire.runs_up);
            let (due, spacing) = match late {
                Some(late) => (rtp_time + ticks(late), LATE_SPACING),
                None => (rtp_time, OVERLAP_SPACING),
            };
            let least = self.time + spacing;
            self.overlaps = late.is_some() || (self.overlaps && due < least);
            self.time = if self.overlaps { due.max(least) } else { due };
            self.newest = rtp_time;
        }
        low32(self.time.wrapping_sub(rtp_time)).wrapping_add(self.timestamp_offset)
    }

    /// It goes on at this packet of another rendition, which begins a keyframe.
    pub(super) const fn handle_switch(&mut self, first_index: u64) {
        self.position = Some(first_index);
        self.overlaps = true;
    }

    /// It goes back to a keyframe that may have been sent before, with the time it had then.
    pub(super) const fn handle_rewind(&mut self, first_index: u64) {
        self.position = Some(first_index);
        self.overlaps = false;
    }

    /// When the last access unit began to leave.
    pub(super) fn last_left(&self) -> Option<Instant> {
        self.lateness.last()
    }

    /// It has sent something.
    pub(super) const fn has_sent(&self) -> bool {
        self.packets > 0
    }

    /// A unit of this RTP time is not older than the newest one by more than `overlap`.
    pub(super) fn is_fresh(&self, rtp_time: u64, overlap: MediaTime) -> bool {
        let overlap = u64::try_from(overlap.ticks()).unwrap_or(0);
        rtp_time.saturating_add(overlap) >= self.newest
    }

    /// What the packets of the next unit say of the playout delay, if anything.
    fn playout_delay(&mut self, runs_up: bool, remind: bool) -> Option<(u16, u16)> {
        if runs_up && self.kind == MediaKind::Video {
            self.settled_at = self.units + UNITS_AFTER_RUN_UP + UNITS_OF_RETURN;
        }
        if self.units + UNITS_OF_RETURN < self.settled_at {
            return Some(RUN_UP_PLAYOUT_DELAY);
        }
        if self.units < self.settled_at {
            return Some(self.playout_delay.unwrap_or(PLAYOUT_DELAY));
        }
        self.playout_delay.filter(|_| remind)
    }

    /// Sends packets again, by RTX (RFC 4588): those that the ring still has.
    pub(super) fn resend(
        &mut self,
        wire: &mut Wire<'_>,
        packets: &[Resend],
        rings: &Rings,
    ) -> Left {
        let Some(rtx) = &mut self.rtx else {
            return Left::default();
        };
        let mut left = Left::default();
        for resend in packets {
            let Some((batch, place)) = rings
                .get(resend.track)
                .and_then(|ring| ring.get(resend.index))
            else {
                continue;
            };
            let Some(payload) = batch.payload(place) else {
                continue;
            };
            let timestamp = low32(batch.rtp_time).wrapping_add(resend.timestamp_offset);
            let marker = self.kind == MediaKind::Video && place + 1 == batch.len();
            // The original sequence number goes between header and payload, and is encrypted with it.
            let body = 2 + payload.len();
            let write = |packet: &mut [u8], template: &Template, fields: &PacketFields| {
                let start = template.write_rtx(packet, fields, low16(resend.sequence))?;
                packet
                    .get_mut(start..start + payload.len())?
                    .copy_from_slice(payload);
                Some(())
            };
            match rtx.push(wire, self.numbered, timestamp, marker, body, write) {
                Pushed::Full => break,
                Pushed::Unsent => {}
                Pushed::Sent(length) => {
                    left.packets += 1;
                    left.bytes += length as u64;
                }
            }
        }
        left
    }

    /// Sends a packet of padding alone, by RTX (RFC 3550 section 5.1): there is nothing that could be sent again.
    pub(super) fn pad(&mut self, wire: &mut Wire<'_>) -> Left {
        let Some(rtx) = &mut self.rtx else {
            return Left::default();
        };
        let timestamp = low32(self.time).wrapping_add(self.timestamp_offset);
        let body = usize::from(PADDING_BYTES);
        let write = |packet: &mut [u8], template: &Template, fields: &PacketFields| {
            let header = template.write(packet, fields)?;
            *packet.first_mut()? |= PADDING_FLAG;
            let end = header + body;
            packet.get_mut(header..end)?.fill(0);
            *packet.get_mut(end - 1)? = PADDING_BYTES;
            Some(())
        };
        match rtx.push(wire, self.numbered, timestamp, false, body, write) {
            Pushed::Sent(length) => Left {
                packets: 1,
                bytes: length as u64,
            },
            Pushed::Full | Pushed::Unsent => Left::default(),
        }
    }

    /// What a sender report says of this stream, if it is `media_time` at `wall`.
    pub(super) fn sender_info(&self, wall: WallTime, media_time: MediaTime) -> SenderInfo {
        let time = low32(rtp_time(media_time, self.clock_hz));
        SenderInfo {
            ssrc: self.ssrc,
            ntp: wall.ntp(),
            rtp_time: time.wrapping_add(self.timestamp_offset),
            packets: self.packets,
            bytes: self.payload_bytes,
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn low32(value: u64) -> u32 {
    value as u32
}

/// A time of video in microseconds.
const fn micros(rtp_time: u64) -> i64 {
    rtp_time.cast_signed().saturating_mul(100) / 9
}

/// The same the other way round.
fn ticks(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX / 9) * 9 / 100
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn low16(value: u64) -> u16 {
    value as u16
}

/// About what a batch takes on the wire (bytes).
pub(super) fn wire_bytes(batch: &PacketBatch) -> usize {
    batch.payload_bytes() + batch.len() * PACKET_OVERHEAD
}

/// The rollover counter of an extended sequence number.
const fn rollover(sequence: u64) -> u32 {
    low32(sequence >> 16)
}
