//! The hot state of one viewer: its transport, and what it was sent so far.
//!
//! All of it is plain data in the shard's slab. Sequence numbers, timestamps and SSRCs towards the viewer are continuous whatever happens
//! upstream: [`Outgoing`] counts them by itself and only its `position` refers to the stream's packets.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwater_media::codec::opus;
use headwater_media::ice::{self, Path};
use headwater_media::id::{StreamName, TrackId};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::header::{Layout, PacketFields, UnitFields};
use headwater_media::rtp::packetizer::rtp_time;
use headwater_media::rtp::rtcp::{self, SenderInfo};
use headwater_media::rtx::{self, Resend, Retransmitter, Sent};
use headwater_media::sdp::NegotiatedMedia;
use headwater_media::time::WallTime;
use headwater_media::unit::MediaKind;

use crate::registry::ReplicaHandle;
use crate::shard::outbox::Outbox;
use crate::shard::stream::{Rings, Timeline};
use crate::shard::{Counters, ViewerId, ViewerState};
use crate::transport::{dtls, srtp};

/// How often a sender report leaves.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The RTP clock of video (RFC 6184 section 8.2.1).
const VIDEO_CLOCK_HZ: u32 = 90_000;

/// The mid extension is written in the first access units (count): a few seconds, until any viewer has mapped the SSRC.
const UNITS_WITH_MID: u64 = 150;

/// Transport-wide sequence numbers whose sizes are remembered (count, a power of two): two seconds of 500 packets.
const SIZES: usize = 1024;

/// One viewer.
pub(crate) struct Peer {
    pub(crate) id: ViewerId,
    pub(crate) stream: StreamName,
    pub(crate) ice: ice::Agent,
    pub(crate) dtls: dtls::Association,
    /// Its DTLS datagrams that wait for their turn (count).
    pub(crate) handshakes_waiting: u8,
    /// Present once the handshake is complete.
    pub(crate) session: Option<Box<srtp::Session>>,
    pub(crate) video: Option<Outgoing>,
    pub(crate) audio: Option<Outgoing>,
    /// The CNAME of all our SSRCs, as the answer has it: it binds them for lip sync (RFC 3550 section 6.5.1).
    cname: Box<str>,
    pub(crate) counters: Arc<Counters>,
    /// The next transport-wide sequence number.
    transport_sequence: u16,
    /// Sizes of the packets with the last transport-wide sequence numbers.
    sizes: Option<Box<[u16; SIZES]>>,
    pub(crate) next_report: Option<Instant>,
    /// When the wheel will call.
    pub(crate) wake_at: Option<Instant>,
    /// A job that sends what the ring has since `video.position` is waiting its turn.
    pub(crate) catching_up: bool,
    /// When that job goes on, if it pauses.
    pub(crate) catch_up_at: Option<Instant>,
    /// Keeps the stream for as long as the viewer is here.
    _replica: ReplicaHandle,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer")
            .field("id", &self.id)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// What a viewer is made of.
pub(crate) struct PeerParts {
    pub(crate) id: ViewerId,
    pub(crate) stream: StreamName,
    pub(crate) ice: ice::Agent,
    pub(crate) fingerprint: [u8; 32],
    pub(crate) cname: Box<str>,
    pub(crate) video: Option<Outgoing>,
    pub(crate) audio: Option<Outgoing>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) replica: ReplicaHandle,
}

/// One RTP stream towards a viewer, with its RTX.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) ssrc: u32,
    pub(crate) track: TrackId,
    kind: MediaKind,
    layout: Layout,
    rtx: Option<Rtx>,
    numbered: bool,
    clock_hz: u32,
    /// The next packet's sequence number; the upper bits are SRTP's rollover counter.
    sequence: u64,
    /// Added to a batch's `rtp_time`.
    timestamp_offset: u32,
    /// Index in the track of the next packet to send; `None`: wait for a keyframe.
    pub(crate) position: Option<u64>,
    units: u64,
    packets: u32,
    payload_bytes: u32,
}

#[derive(Debug)]
struct Rtx {
    layout: Layout,
    sequence: u64,
    core: Rc<RefCell<Retransmitter>>,
}

impl Outgoing {
    /// For an accepted m-section. `random` starts sequence numbers and timestamps (RFC 3550 section 5.1).
    pub(crate) fn new(
        media: &NegotiatedMedia,
        track: TrackId,
        kind: MediaKind,
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
            rtx,
            numbered: media.extensions.transport_sequence.is_some(),
            clock_hz: match kind {
                MediaKind::Video => VIDEO_CLOCK_HZ,
                MediaKind::Audio => opus::CLOCK_HZ,
            },
            sequence,
            timestamp_offset: low32(random >> 32),
            position: None,
            units: 0,
            packets: 0,
            payload_bytes: 0,
        }
    }

    /// What answers NACKs of this SSRC, if anything does. Without RTX nothing may: sealing the same sequence number again with other
    /// header extensions would repeat an AES-GCM nonce.
    pub(crate) fn retransmitter(&self) -> Option<Rc<RefCell<Retransmitter>>> {
        self.rtx.as_ref().map(|rtx| Rc::clone(&rtx.core))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn low32(value: u64) -> u32 {
    value as u32
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
const fn low16(value: u64) -> u16 {
    value as u16
}

/// The rollover counter of an extended sequence number.
const fn rollover(sequence: u64) -> u32 {
    low32(sequence >> 16)
}

impl Peer {
    /// A viewer that joins now.
    pub(crate) fn new(parts: PeerParts) -> Self {
        let PeerParts {
            id,
            stream,
            ice,
            fingerprint,
            cname,
            video,
            audio,
            counters,
            replica,
        } = parts;
        let numbered = [&video, &audio]
            .into_iter()
            .flatten()
            .any(|outgoing| outgoing.numbered);
        Self {
            id,
            stream,
            ice,
            dtls: dtls::Association::new(fingerprint),
            handshakes_waiting: 0,
            session: None,
            video,
            audio,
            cname,
            counters,
            transport_sequence: 0,
            sizes: numbered.then(|| Box::new([0; SIZES])),
            next_report: None,
            wake_at: None,
            catching_up: false,
            catch_up_at: None,
            _replica: replica,
        }
    }

    /// The RTP stream of a kind.
    pub(crate) fn outgoing(&mut self, kind: MediaKind) -> Option<&mut Outgoing> {
        match kind {
            MediaKind::Video => self.video.as_mut(),
            MediaKind::Audio => self.audio.as_mut(),
        }
    }

    /// The RTP stream with this SSRC.
    pub(crate) fn kind_of(&self, ssrc: u32) -> Option<MediaKind> {
        [&self.video, &self.audio]
            .into_iter()
            .flatten()
            .find(|outgoing| outgoing.ssrc == ssrc)
            .map(|outgoing| outgoing.kind)
    }

    /// When something is due: a DTLS flight, a report, the next piece of a GOP, or the end.
    pub(crate) fn poll_timeout(&self) -> Instant {
        let ice = self.ice.poll_timeout();
        [self.dtls.poll_timeout(), self.next_report, self.catch_up_at]
            .into_iter()
            .flatten()
            .fold(ice, Instant::min)
    }

    /// Shows how far the viewer is.
    pub(crate) fn set_state(&self, state: ViewerState) {
        self.counters.state.store(state as u8, Ordering::Relaxed);
    }

    /// Sends a batch's packets and moves on behind it. Returns packets and bytes sent.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        kind: MediaKind,
        batch: &PacketBatch,
        outbox: &mut Outbox,
    ) -> (u64, u64) {
        let (Some(session), Some(path)) = (&self.session, self.ice.selected()) else {
            return (0, 0);
        };
        let outgoing = match kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        let Some(outgoing) = outgoing else {
            return (0, 0);
        };
        let template = outgoing.layout.template(&UnitFields {
            timestamp: low32(batch.rtp_time).wrapping_add(outgoing.timestamp_offset),
            capture_time: (batch.ingest_time != WallTime::default()).then_some(batch.ingest_time),
            playout_delay: None,
            mid: outgoing.units < UNITS_WITH_MID,
        });
        let tag_bytes = session.media.tag_bytes();
        let first_sequence = outgoing.sequence;
        let mut packets = 0;
        let mut bytes = 0;
        for i in 0..batch.len() {
            let Some(payload) = batch.payload(i) else {
                break;
            };
            let fields = PacketFields {
                sequence: low16(outgoing.sequence),
                transport_sequence: self.transport_sequence,
                marker: kind == MediaKind::Video && i + 1 == batch.len(),
            };
            let rollover = rollover(outgoing.sequence);
            let length = template.len() + payload.len() + tag_bytes;
            outbox.push_with(path, length, |packet| {
                let header = template.write(packet, &fields)?;
                packet
                    .get_mut(header..header + payload.len())?
                    .copy_from_slice(payload);
                session.media.seal(packet, header, rollover).ok()
            });
            if outgoing.numbered {
                note_size(&mut self.sizes, self.transport_sequence, length);
                self.transport_sequence = self.transport_sequence.wrapping_add(1);
            }
            outgoing.sequence += 1;
            packets += 1;
            bytes += length as u64;
        }
        outgoing.position = Some(batch.first_index + packets);
        outgoing.units += 1;
        outgoing.packets = outgoing.packets.wrapping_add(low32(packets));
        let payload_bytes = low32(batch.payload_bytes() as u64);
        outgoing.payload_bytes = outgoing.payload_bytes.wrapping_add(payload_bytes);
        if let Some(rtx) = &outgoing.rtx {
            rtx.core.borrow_mut().handle_sent(
                now,
                &Sent {
                    first_sequence,
                    packets: low32(packets),
                    track: batch.track,
                    first_index: batch.first_index,
                    timestamp_offset: outgoing.timestamp_offset,
                    keyframe: batch.keyframe && kind == MediaKind::Video,
                    bytes: payload_bytes,
                },
            );
        }
        self.count(packets, bytes);
        (packets, bytes)
    }

    /// Sends packets again, by RTX (RFC 4588). Returns how many the ring still had.
    pub(crate) fn resend(
        &mut self,
        kind: MediaKind,
        packets: &[Resend],
        rings: &Rings,
        outbox: &mut Outbox,
    ) -> u64 {
        let (Some(session), Some(path)) = (&self.session, self.ice.selected()) else {
            return 0;
        };
        let outgoing = match kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        let Some(outgoing) = outgoing else {
            return 0;
        };
        let numbered = outgoing.numbered;
        let Some(rtx) = &mut outgoing.rtx else {
            return 0;
        };
        let tag_bytes = session.media.tag_bytes();
        let mut count = 0;
        let mut bytes = 0;
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
            let template = rtx.layout.template(&UnitFields {
                timestamp: low32(batch.rtp_time).wrapping_add(resend.timestamp_offset),
                capture_time: None,
                playout_delay: None,
                mid: true,
            });
            let fields = PacketFields {
                sequence: low16(rtx.sequence),
                transport_sequence: self.transport_sequence,
                marker: kind == MediaKind::Video && place + 1 == batch.len(),
            };
            let rollover = rollover(rtx.sequence);
            // The original sequence number goes between header and payload, and is encrypted with it.
            let header = template.len();
            let length = header + 2 + payload.len() + tag_bytes;
            let sent = outbox.push_with(path, length, |packet| {
                let start = template.write_rtx(packet, &fields, low16(resend.sequence))?;
                packet
                    .get_mut(start..start + payload.len())?
                    .copy_from_slice(payload);
                session.media.seal(packet, header, rollover).ok()
            });
            if sent.is_none() {
                continue;
            }
            if numbered {
                note_size(&mut self.sizes, self.transport_sequence, length);
                self.transport_sequence = self.transport_sequence.wrapping_add(1);
            }
            rtx.sequence += 1;
            count += 1;
            bytes += length as u64;
        }
        add(&self.counters.resent, count);
        self.count(count, bytes);
        count
    }

    /// Sends a sender report for each RTP stream (RFC 3550 section 6.4.1), if the stream's timeline is known, with a BYE when `bye`.
    pub(crate) fn report(
        &mut self,
        wall: WallTime,
        timeline: &Timeline,
        bye: bool,
        outbox: &mut Outbox,
    ) {
        let (Some(session), Some(path)) = (&mut self.session, self.ice.selected()) else {
            return;
        };
        let Some(media_time) = timeline.media_time(wall) else {
            return;
        };
        for outgoing in [&self.video, &self.audio].into_iter().flatten() {
            let mut compound = Vec::with_capacity(128);
            let time = low32(rtp_time(media_time, outgoing.clock_hz));
            let sender = SenderInfo {
                ssrc: outgoing.ssrc,
                ntp: wall.ntp(),
                rtp_time: time.wrapping_add(outgoing.timestamp_offset),
                packets: outgoing.packets,
                bytes: outgoing.payload_bytes,
            };
            rtcp::write_sender_report(&mut compound, &sender, &self.cname);
            if bye {
                rtcp::write_bye(&mut compound, &[outgoing.ssrc]);
            }
            if session.control.seal(&mut compound).is_ok() {
                outbox.push(path, &compound);
            }
        }
    }

    /// The bytes of the packet that last had this transport-wide sequence number.
    pub(crate) fn size_of(&self, transport_sequence: u16) -> u64 {
        self.sizes.as_ref().map_or(0, |sizes| {
            u64::from(sizes[usize::from(transport_sequence) % SIZES])
        })
    }

    /// Queues what the DTLS association wants sent.
    pub(crate) fn flush_dtls(&mut self, to: Path, outbox: &mut Outbox) {
        while let Some(datagram) = self.dtls.poll_transmit() {
            outbox.push(to, &datagram);
        }
    }

    fn count(&self, packets: u64, bytes: u64) {
        add(&self.counters.packets, packets);
        add(&self.counters.bytes, bytes);
    }
}

fn note_size(sizes: &mut Option<Box<[u16; SIZES]>>, transport_sequence: u16, length: usize) {
    if let Some(sizes) = sizes {
        sizes[usize::from(transport_sequence) % SIZES] = u16::try_from(length).unwrap_or(u16::MAX);
    }
}

/// Only the shard writes a viewer's counters, so a load and a store are an increment, without the locked instruction.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
