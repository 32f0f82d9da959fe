//! The hot state of one viewer: its transport, and what it was sent so far.
//!
//! All of it is plain data in the shard's slab. Sequence numbers, timestamps and SSRCs towards the viewer are continuous whatever happens
//! upstream: [`Outgoing`] counts them by itself and only its `position` refers to the stream's packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headwater_media::abr::Selection;
use headwater_media::ice::{self, Path};
use headwater_media::id::{StreamName, TrackId};
use headwater_media::pacer::Pacer;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::rtcp;
use headwater_media::rtx::Resend;
use headwater_media::time::WallTime;
use headwater_media::unit::MediaKind;

use smallvec::SmallVec;

use crate::registry::ReplicaHandle;
use crate::shard::demand::Need;
use crate::shard::outbox::Outbox;
use crate::shard::outgoing::{Allowance, Left, Numbers, Outgoing, Wire, wire_bytes};
use crate::shard::prefetch::prefetch;
use crate::shard::probing::Probe;
use crate::shard::stream::{Rings, Timeline};
use crate::shard::{Counters, ViewerId, ViewerState};
use crate::transport::{dtls, srtp};

/// How long after one the next sender report leaves at the latest: less than a second (conformance of players that wait for it).
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_millis(950);

/// How much sooner it may leave, when it can ride in one message with a packet of sound.
const REPORT_EARLY: Duration = Duration::from_millis(200);

/// One viewer.
pub(crate) struct Peer {
    pub(crate) id: ViewerId,
    pub(crate) stream: StreamName,
    pub(crate) ice: ice::Agent,
    pub(crate) dtls: dtls::Association,
    /// Its DTLS datagrams that wait for their turn (count).
    pub(crate) handshakes_waiting: u8,
    /// Present once the handshake is complete.
    pub(crate) session: Option<srtp::Session>,
    pub(crate) video: Option<Outgoing>,
    pub(crate) audio: Option<Outgoing>,
    /// The CNAME of all our SSRCs, as the answer has it: it binds them for lip sync (RFC 3550 section 6.5.1).
    cname: Box<str>,
    pub(crate) counters: Arc<Counters>,
    pub(super) numbers: Numbers,
    pub(crate) pacer: Pacer,
    /// Since when pictures wait for the pacer at the live edge.
    pub(crate) waiting_since: Option<Instant>,
    /// The rendition whose audience it is in.
    pub(super) audience: Option<TrackId>,
    /// What it is to get, as long as it doesn't.
    pub(super) selection: Option<Box<Selection>>,
    /// Pictures that no others refer to are not sent for now.
    pub(super) sheds: bool,
    /// It gets sound alone: its link carries no more.
    pub(super) alone: bool,
    /// The tracks it needs.
    pub(super) need: Need,
    pub(super) probe: Option<Box<Probe>>,
    pub(crate) next_report: Option<Instant>,
    /// When the wheel will call.
    pub(crate) wake_at: Option<Instant>,
    /// A job that sends what the ring has since `video.position` is waiting its turn.
    pub(crate) catching_up: bool,
    /// When that job goes on, if it pauses.
    pub(crate) catch_up_at: Option<Instant>,
    /// When its request came, until it has been sent something.
    pub(super) asked: Option<Instant>,
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
    pub(crate) asked: Instant,
}

impl Peer {
    /// A viewer that joins now.
    pub(crate) fn new(parts: PeerParts, now: Instant) -> Self {
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
            asked,
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
            numbers: Numbers::new(numbered, now),
            pacer: Pacer::new(numbered, now),
            waiting_since: None,
            audience: None,
            selection: None,
            sheds: false,
            alone: false,
            need: Need::default(),
            probe: None,
            next_report: None,
            wake_at: None,
            catching_up: false,
            catch_up_at: None,
            asked: Some(asked),
            _replica: replica,
        }
    }

    /// Media can be sent: the handshake is complete, and there is a path.
    pub(crate) fn is_reachable(&self) -> bool {
        self.session.is_some() && self.ice.selected().is_some()
    }

    /// Asks for what sending touches behind this structure.
    pub(super) fn prefetch(&self) {
        prefetch(&self.counters.packets);
        for outgoing in [&self.video, &self.audio].into_iter().flatten() {
            outgoing.prefetch();
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
        // Without a path nothing can be sent again.
        let dtls = self.ice.selected().and_then(|_| self.dtls.poll_timeout());
        let probe = self.probe.as_ref().map(|probe| probe.piece_at);
        [dtls, self.next_report, self.catch_up_at, probe]
            .into_iter()
            .flatten()
            .fold(ice, Instant::min)
    }

    /// Shows how far the viewer is.
    pub(crate) fn set_state(&self, state: ViewerState) {
        self.counters.state.store(state as u8, Ordering::Relaxed);
    }

    /// A batch can be sent whole. A slow connection has no room; what it doesn't get takes no sequence numbers.
    pub(crate) fn has_room(&self, now: Instant, batch: &PacketBatch, outbox: &Outbox) -> bool {
        let path = self.ice.selected();
        path.is_some_and(|path| outbox.has_room(now, path, wire_bytes(batch)))
    }

    /// Its pictures go on at the next keyframe. Returns whether they did not already.
    pub(crate) fn skip_video(&mut self) -> bool {
        let video = self.video.as_mut();
        video.is_some_and(|video| video.position.take().is_some())
    }

    /// Its pictures go on at this packet, but not before `until`.
    pub(crate) fn hold(&mut self, position: u64, until: Instant) {
        if let Some(video) = &mut self.video {
            video.position = Some(position);
        }
        self.catching_up = true;
        self.catch_up_at = Some(until);
    }

    /// Sends packets of a batch, from its `first`th on.
    pub(crate) fn send(
        &mut self,
        now: Instant,
        kind: MediaKind,
        batch: &PacketBatch,
        first: usize,
        allowance: Allowance,
        outbox: &mut Outbox,
    ) -> Left {
        self.on_wire(now, kind, outbox, |outgoing, wire| {
            outgoing.send(wire, batch, first, allowance)
        })
    }

    /// Sends packets again, by RTX. Returns how many the ring still had.
    pub(crate) fn resend(
        &mut self,
        now: Instant,
        kind: MediaKind,
        packets: &[Resend],
        rings: &Rings,
        outbox: &mut Outbox,
    ) -> u64 {
        let left = self.copy(now, kind, packets, rings, outbox);
        add(&self.counters.resent, left.packets);
        left.packets
    }

    /// Sends copies of packets by RTX, whether they were lost or not.
    pub(crate) fn copy(
        &mut self,
        now: Instant,
        kind: MediaKind,
        packets: &[Resend],
        rings: &Rings,
        outbox: &mut Outbox,
    ) -> Left {
        self.on_wire(now, kind, outbox, |outgoing, wire| {
            outgoing.resend(wire, packets, rings)
        })
    }

    /// Sends a packet of padding.
    pub(crate) fn pad(&mut self, now: Instant, outbox: &mut Outbox) -> Left {
        self.on_wire(now, MediaKind::Video, outbox, Outgoing::pad)
    }

    /// Lets an RTP stream send, if the viewer is connected, and counts what left.
    fn on_wire(
        &mut self,
        now: Instant,
        kind: MediaKind,
        outbox: &mut Outbox,
        send: impl FnOnce(&mut Outgoing, &mut Wire<'_>) -> Left,
    ) -> Left {
        let outgoing = match kind {
            MediaKind::Video => &mut self.video,
            MediaKind::Audio => &mut self.audio,
        };
        let (Some(session), Some(path), Some(outgoing)) =
            (&self.session, self.ice.selected(), outgoing)
        else {
            return Left::default();
        };
        let mut wire = Wire {
            now,
            runs_up: self.pacer.is_starting(),
            path,
            session,
            numbers: &mut self.numbers,
            outbox,
        };
        let left = send(outgoing, &mut wire);
        self.pacer.handle_sent(now, left.bytes);
        add(&self.counters.packets, left.packets);
        add(&self.counters.bytes, left.bytes);
        left
    }

    /// A sender report may leave now, behind a packet of this kind.
    pub(crate) fn may_report(&self, now: Instant, behind: MediaKind) -> bool {
        (behind == MediaKind::Audio || self.audio.is_none())
            && self.next_report.is_some_and(|at| at <= now + REPORT_EARLY)
    }

    /// Sends a sender report for each RTP stream (RFC 3550 section 6.4.1), if the stream's timeline is known.
    pub(crate) fn report(
        &mut self,
        now: Instant,
        wall: WallTime,
        timeline: &Timeline,
        outbox: &mut Outbox,
    ) {
        self.next_report = Some(now + REPORT_INTERVAL);
        self.send_report(wall, timeline, false, outbox);
    }

    /// Sends the last sender reports, with a BYE (RFC 3550 section 6.6).
    pub(crate) fn say_goodbye(&mut self, wall: WallTime, timeline: &Timeline, outbox: &mut Outbox) {
        self.send_report(wall, timeline, true, outbox);
    }

    fn send_report(&mut self, wall: WallTime, timeline: &Timeline, bye: bool, outbox: &mut Outbox) {
        let (Some(session), Some(path)) = (&mut self.session, self.ice.selected()) else {
            return;
        };
        let Some(media_time) = timeline.media_time(wall) else {
            return;
        };
        let outgoings = [&self.video, &self.audio].into_iter().flatten();
        // One compound for all SSRCs (RFC 8108 section 5.3.1), so that it is one datagram.
        outbox.push_composed(path, |compound| {
            let mut ssrcs = SmallVec::<[u32; 2]>::new();
            for outgoing in outgoings {
                let sender = outgoing.sender_info(wall, media_time);
                rtcp::write_sender_report(compound, &sender, &self.cname);
                ssrcs.push(outgoing.ssrc);
            }
            if bye {
                rtcp::write_bye(compound, &ssrcs);
            }
            session.control.seal(compound).is_ok()
        });
    }

    /// Queues what the DTLS association wants sent.
    pub(crate) fn flush_dtls(&mut self, to: Path, outbox: &mut Outbox) {
        while let Some(datagram) = self.dtls.poll_transmit() {
            outbox.push(to, &datagram);
        }
    }
}

/// Only the shard writes a viewer's counters, so a load and a store are an increment, without the locked instruction.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
