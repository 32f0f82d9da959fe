//! Scenarios of a shard's core under virtual time: viewers with real DTLS and SRTP, datagrams carried by hand.

#[cfg(test)]
mod allocations;
#[cfg(test)]
mod conformance;
pub(crate) mod crowd;
#[cfg(test)]
mod lifecycle;
mod pace;
mod paths;
mod placement;
#[cfg(test)]
mod renditions;
mod wraps;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use headwater_media::ice::{self, Path};
use headwater_media::id::{Bitrate, Epoch, StreamName, TrackId};
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::packetizer::{H264Packetizer, OpusPacketizer};
use headwater_media::rtp::ring::Limits;
use headwater_media::rtx::Resend;
use headwater_media::sdp::{ExtensionIds, Negotiated, NegotiatedMedia};
use headwater_media::testkit::{self, Audio, Video, VideoOptions};
use headwater_media::time::WallTime;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_media::unit::MediaKind;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_srtp::context::Context;

use super::backlog::Backlog;
use super::core::{Core, Event, Options};
use super::outbox::Outbox;
use super::{Counters, Credentials, EndReason, Join, JoinError, Preference, ViewerId, ViewerState};
use crate::latency::Timing;
use crate::registry;
use crate::replica::RTP_PAYLOAD_BYTES;
use crate::transport::dtls::Identity;
use crate::transport::dtls::tests::Client;
use crate::transport::framing::Frames;
use crate::transport::stun::tests::check;

const VIDEO_SSRC: u32 = 0x1111_1111;
const RTX_SSRC: u32 = 0x2222_2222;
const AUDIO_SSRC: u32 = 0x3333_3333;
const VIDEO_TYPE: u8 = 96;
const RTX_TYPE: u8 = 97;
const AUDIO_TYPE: u8 = 111;
const PWD: &str = "a password of 22 chars";

/// A shard, its stream and its time.
struct World {
    core: Core,
    outbox: Outbox,
    start: Instant,
    now: Instant,
    info: Arc<StreamInfo>,
    video: Video,
    audio: Audio,
    video_packets: H264Packetizer,
    audio_packets: OpusPacketizer,
    events: Vec<Event>,
    /// Datagrams on their way to viewers.
    wire: VecDeque<(Path, Vec<u8>)>,
    connections: HashMap<SocketAddr, Connection>,
}

/// A TCP connection.
#[derive(Default)]
struct Connection {
    backlog: Rc<Backlog>,
    /// It takes nothing by itself, only by [`World::drain`].
    stalled: bool,
    frames: Frames,
}

/// A viewer's end.
struct Peer {
    id: ViewerId,
    path: Path,
    ufrag: String,
    client: Client,
    counters: Arc<Counters>,
    srtp: Option<(Context, Context)>,
    packets: Vec<Packet>,
    reports: Vec<Vec<u8>>,
    /// Of the largest datagram with media (bytes).
    largest: usize,
    answers: usize,
    closed: bool,
}

/// An RTP packet as a viewer sees it, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    payload_type: u8,
    marker: bool,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    /// Header extension elements (RFC 8285): id and data.
    extensions: Vec<(u8, Vec<u8>)>,
    transport_sequence: Option<u16>,
    /// As it is on the wire: min and max in units of 10 ms, 12 bits each.
    playout_delay: Option<u32>,
    payload: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self::with(Options {
            viewers_max: 100,
            ring: Limits::default(),
            playout_delay_ms: None,
            ice: ice::Options::default(),
        })
    }

    fn with(options: Options) -> Self {
        let start = testkit::start();
        let identity = Arc::new(Identity::generate().unwrap());
        let video = Configuration::H264(testkit::h264_configuration());
        let video = testkit::track(TrackId::SOURCE_VIDEO, video);
        let info = Arc::new(StreamInfo {
            name: name(),
            ..testkit::stream_info(1, vec![video, testkit::opus_track()])
        });
        Self {
            core: Core::new(options, identity, StdRng::seed_from_u64(1), start),
            outbox: Outbox::default(),
            start,
            now: start,
            info,
            video: Video::new(VideoOptions::default(), 1),
            audio: Audio::new(TrackId::OPUS, Epoch(1), 2),
            video_packets: H264Packetizer::new(RTP_PAYLOAD_BYTES),
            audio_packets: OpusPacketizer::new(RTP_PAYLOAD_BYTES),
            events: Vec::new(),
            wire: VecDeque::new(),
            connections: HashMap::new(),
        }
    }

    fn wall(&self) -> WallTime {
        // The generator's first unit was read at this time.
        WallTime::from_unix_micros(1_767_225_600_000_000).after(self.now - self.start)
    }

    fn picture(&mut self) -> Arc<PacketBatch> {
        let unit = self.video.next().unwrap();
        let batch = self
            .video_packets
            .packetize(&unit, &testkit::h264_configuration())
            .unwrap();
        Arc::new(batch)
    }

    fn sound(&mut self) -> Arc<PacketBatch> {
        let unit = self.audio.next().unwrap();
        Arc::new(self.audio_packets.packetize(&unit).unwrap())
    }

    /// A batch arrives and is fanned out.
    fn send(&mut self, batch: Arc<PacketBatch>) {
        self.core
            .handle_batch(Timing::new(self.now, None), &name(), batch);
        self.work();
    }

    /// The same, and the time passes until the next comes: the end of a large one leaves a moment later.
    fn send_whole(&mut self, batch: Arc<PacketBatch>) {
        self.send(batch);
        self.pass(Duration::from_millis(20));
    }

    fn work(&mut self) {
        let wall = self.wall();
        while self.core.handle_job(self.now, wall, &mut self.outbox) {}
        self.collect();
    }

    /// What the core queued goes on the wire, runs cut as the kernel does.
    fn collect(&mut self) {
        let (framed, bytes) = self.outbox.framed();
        for message in framed {
            let connection = self.connections.get_mut(&message.to).unwrap();
            let data = &bytes[message.range.clone()];
            let taken = if connection.stalled { 0 } else { data.len() };
            connection.backlog.take_in(self.now, data, taken);
            connection.frames.push(&data[..taken]);
        }
        self.deframe();
        let (messages, bytes) = self.outbox.messages();
        for message in messages {
            let data = &bytes[message.range.clone()];
            let segment = message.segment.map_or(data.len(), usize::from);
            for datagram in data.chunks(segment) {
                self.wire.push_back((message.to, datagram.to_vec()));
            }
        }
        self.outbox.clear();
        while let Some(event) = self.core.poll_event() {
            self.events.push(event);
        }
    }

    /// What came out of connections goes on the wire.
    fn deframe(&mut self) {
        for (to, connection) in &mut self.connections {
            while let Some(frame) = connection.frames.next().unwrap() {
                self.wire.push_back((Path::tcp(*to), frame.to_vec()));
            }
        }
    }

    /// A connection is opened.
    fn open(&mut self, address: SocketAddr) {
        let connection = Connection::default();
        self.outbox.open(address, Rc::clone(&connection.backlog));
        self.connections.insert(address, connection);
    }

    /// A connection is closed.
    fn close(&mut self, address: SocketAddr) {
        self.connections.remove(&address);
        self.outbox.close(address);
        self.core.handle_disconnected(self.now, Path::tcp(address));
        self.collect();
    }

    /// A connection takes up to `budget` bytes of what waits. Returns how many it took.
    fn drain(&mut self, address: SocketAddr, mut budget: usize) -> usize {
        let connection = self.connections.get_mut(&address).unwrap();
        let frames = &mut connection.frames;
        let taken = connection.backlog.write_to(|slices| {
            let count = slices[0].len().min(budget);
            if count == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            budget -= count;
            frames.push(&slices[0][..count]);
            Ok(count)
        });
        self.deframe();
        taken.unwrap()
    }

    fn join(&mut self, number: u64, profiles: Vec<SrtpProtectionProfile>) -> Peer {
        self.join_with(number, profiles, |_| ())
    }

    /// Joins with something else negotiated.
    fn join_with(
        &mut self,
        number: u64,
        profiles: Vec<SrtpProtectionProfile>,
        change: impl FnOnce(&mut Negotiated),
    ) -> Peer {
        let port = 40_000 + u16::try_from(number).unwrap();
        let client = Client::connect(profiles, self.now);
        let counters = Arc::new(Counters::default());
        let peer = Peer {
            id: ViewerId(number),
            path: Path::udp(SocketAddr::from(([192, 0, 2, 1], port))),
            ufrag: format!("u{number}"),
            client,
            counters,
            srtp: None,
            packets: Vec::new(),
            reports: Vec::new(),
            largest: 0,
            answers: 0,
            closed: false,
        };
        let mut join = self.join_of(&peer);
        change(&mut join.negotiated);
        self.core
            .handle_join(self.now, join, &self.info.clone())
            .unwrap();
        self.collect();
        peer
    }

    fn join_of(&self, peer: &Peer) -> Join {
        let media = |payload_type, rtx: Option<u8>, ssrc| NegotiatedMedia {
            mid: "0".to_owned(),
            payload_type,
            rtx_payload_type: rtx,
            ssrc,
            rtx_ssrc: RTX_SSRC,
            transport_cc: false,
            nack: rtx.is_some(),
            extensions: ExtensionIds::default(),
        };
        Join {
            viewer: peer.id,
            stream: name(),
            replica: registry::tests::handle(&self.info),
            local_ufrag: peer.ufrag.clone(),
            local_pwd: PWD.to_owned(),
            preference: Preference::default(),
            negotiated: Negotiated {
                remote_ufrag: "remote".to_owned(),
                remote_pwd: "unused".to_owned(),
                remote_fingerprint: peer.client.fingerprint,
                cname: "cname".to_owned(),
                video: Some(media(VIDEO_TYPE, Some(RTX_TYPE), VIDEO_SSRC)),
                audio: Some(media(AUDIO_TYPE, None, AUDIO_SSRC)),
            },
            counters: Arc::clone(&peer.counters),
            asked: self.now,
        }
    }

    /// A datagram of a viewer comes in.
    fn receive(&mut self, from: Path, datagram: &[u8]) {
        let wall = self.wall();
        let mut datagram = datagram.to_vec();
        self.core
            .handle_datagram(self.now, wall, from, &mut datagram, &mut self.outbox);
        while self.core.has_handshakes() {
            self.core.handle_handshake(self.now, wall, &mut self.outbox);
        }
        self.collect();
    }

    fn check(&mut self, peer: &Peer) {
        let username = format!("{}:remote", peer.ufrag);
        self.receive(peer.path, &check(&username, PWD, true));
    }

    /// Carries datagrams both ways until nobody has any.
    fn exchange(&mut self, peer: &mut Peer) {
        loop {
            let mut idle = true;
            while let Some(datagram) = peer.client.poll_transmit() {
                idle = false;
                self.receive(peer.path, &datagram);
            }
            let wire = std::mem::take(&mut self.wire);
            for (to, datagram) in wire {
                if to == peer.path {
                    idle = false;
                    peer.handle(self.now, &datagram);
                } else {
                    self.wire.push_back((to, datagram));
                }
            }
            if idle {
                break;
            }
        }
    }

    /// Check, handshake and fast start.
    fn connect(&mut self, peer: &mut Peer) {
        self.check(peer);
        self.exchange(peer);
        assert!(self.connected(peer.id), "connected");
        self.work();
        self.run_up(peer);
    }

    /// The newest GOP comes at the pace of a viewer of whom nothing is known.
    fn run_up(&mut self, peer: &mut Peer) {
        let slot = self.core.slot(peer.id).unwrap();
        for _ in 0..500 {
            if !self.core.peers[slot].catching_up {
                break;
            }
            self.pass(Duration::from_millis(4));
        }
        assert!(!self.core.peers[slot].catching_up, "it is live within 2 s");
        self.exchange(peer);
    }

    fn connected(&self, viewer: ViewerId) -> bool {
        self.events
            .iter()
            .any(|event| matches!(event, Event::Connected { viewer: v } if *v == viewer))
    }

    fn ended(&self, viewer: ViewerId) -> Option<EndReason> {
        self.events.iter().find_map(|event| match event {
            Event::Ended {
                viewer: v, reason, ..
            } if *v == viewer => Some(*reason),
            _ => None,
        })
    }

    /// Time passes; timers are served when due.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            let wall = self.wall();
            self.core.handle_timeout(self.now, wall, &mut self.outbox);
            self.work();
        }
        self.now = end;
    }
}

/// Cuts a compound with a report of each SSRC before each SR.
fn of_each_ssrc(compound: &[u8]) -> Vec<Vec<u8>> {
    let mut reports: Vec<Vec<u8>> = Vec::new();
    let mut rest = compound;
    while let [_, kind, high, low, ..] = *rest {
        let words = usize::from(u16::from_be_bytes([high, low]));
        let (packet, after) = rest.split_at(4 * (words + 1));
        if kind == 200 {
            reports.push(Vec::new());
        }
        reports.last_mut().unwrap().extend_from_slice(packet);
        rest = after;
    }
    reports
}

impl Peer {
    fn handle(&mut self, now: Instant, datagram: &[u8]) {
        match datagram[0] {
            0..=3 => self.answers += 1,
            20..=63 => self.closed |= self.client.handle_datagram(now, datagram.into()),
            _ => {
                if self.srtp.is_none() {
                    self.srtp = Some(self.client.srtp());
                }
                let (opener, _) = self.srtp.as_mut().unwrap();
                if (192..224).contains(&datagram[1]) {
                    let report = opener.decrypt_rtcp(datagram).unwrap();
                    self.reports.extend(of_each_ssrc(&report));
                } else {
                    let plain = opener.decrypt_rtp(datagram).unwrap();
                    self.largest = self.largest.max(datagram.len());
                    self.packets.push(Packet::parse(&plain));
                }
            }
        }
    }

    /// A sealed feedback packet.
    fn feedback(&mut self, plain: &[u8]) -> Vec<u8> {
        let (_, sealer) = self.srtp.as_mut().expect("media came");
        sealer.encrypt_rtcp(plain).unwrap().to_vec()
    }

    fn of(&self, ssrc: u32) -> Vec<&Packet> {
        self.packets.iter().filter(|p| p.ssrc == ssrc).collect()
    }
}

impl Packet {
    fn parse(plain: &[u8]) -> Self {
        assert_eq!(
            plain[0] & 0xcf,
            0x80,
            "version 2, padding and extensions perhaps"
        );
        let word = |at: usize| u32::from_be_bytes(plain[at..at + 4].try_into().unwrap());
        let mut start = 12;
        let mut extensions = Vec::new();
        if plain[0] & 0x10 != 0 {
            assert_eq!(plain[12..14], [0xbe, 0xde], "one-byte elements");
            start = 16 + 4 * usize::from(u16::from_be_bytes([plain[14], plain[15]]));
            let mut rest = &plain[16..start];
            while let [head, tail @ ..] = rest {
                let length = usize::from(head & 0xf) + 1;
                // A zero is padding.
                if *head == 0 {
                    rest = tail;
                } else {
                    extensions.push((head >> 4, tail[..length].to_vec()));
                    rest = &tail[length..];
                }
            }
        }
        let of = |wanted: u8| {
            let mut elements = extensions.iter();
            elements.find_map(|(id, data)| (*id == wanted).then_some(&data[..]))
        };
        let transport_sequence =
            of(TRANSPORT_SEQUENCE).map(|data| u16::from_be_bytes(data.try_into().unwrap()));
        let playout_delay = of(PLAYOUT_DELAY).map(|data| match data {
            [a, b, c] => u32::from_be_bytes([0, *a, *b, *c]),
            other => panic!("{other:?}"),
        });
        Self {
            payload_type: plain[1] & 0x7f,
            marker: plain[1] & 0x80 != 0,
            sequence: u16::from_be_bytes([plain[2], plain[3]]),
            timestamp: word(4),
            ssrc: word(8),
            transport_sequence,
            playout_delay,
            extensions,
            payload: plain[start..].to_vec(),
        }
    }
}

fn name() -> StreamName {
    "live/a".parse().unwrap()
}

fn payloads(batch: &PacketBatch) -> Vec<Vec<u8>> {
    (0..batch.len())
        .map(|i| batch.payload(i).unwrap().to_vec())
        .collect()
}

fn assert_continuous(packets: &[&Packet]) {
    for pair in packets.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
    }
}

const GCM: SrtpProtectionProfile = SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm;
const CM: SrtpProtectionProfile = SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80;
const SECOND: Duration = Duration::from_secs(1);
/// Header extensions, where a test negotiates them.
const TRANSPORT_SEQUENCE: u8 = 4;
const PLAYOUT_DELAY: u8 = 5;

#[actix_rt::test]
async fn a_viewer_gets_the_newest_gop_then_every_unit_with_both_profiles() {
    for profiles in [vec![CM, GCM], vec![CM]] {
        let mut world = World::new();
        let mut peer = world.join(1, profiles);
        // 90 pictures: the newest GOP began with the 60th. They come while nobody is connected.
        let before: Vec<_> = (0..90).map(|_| world.picture()).collect();
        let sound = world.sound();
        let backlog: Vec<_> = before.iter().cloned().chain([sound]).collect();
        world.core.handle_backlog(world.now, &name(), &backlog);
        world.connect(&mut peer);

        let mut expected: Vec<Vec<u8>> = before[60..].iter().flat_map(|b| payloads(b)).collect();
        for _ in 0..30 {
            let picture = world.picture();
            expected.extend(payloads(&picture));
            world.send_whole(picture);
        }
        let sound = world.sound();
        world.send_whole(Arc::clone(&sound));
        world.exchange(&mut peer);

        let video = peer.of(VIDEO_SSRC);
        assert_eq!(
            video.iter().map(|p| &p.payload).collect::<Vec<_>>(),
            expected.iter().collect::<Vec<_>>()
        );
        assert_continuous(&video);
        assert!(video.iter().all(|p| p.payload_type == VIDEO_TYPE));
        assert_eq!(video.iter().filter(|p| p.marker).count(), 60);
        // Timestamps are the original ones, so the newest keyframe is a second before the live edge.
        let times: Vec<u32> = video
            .iter()
            .filter(|p| p.marker)
            .map(|p| p.timestamp)
            .collect();
        for pair in times.windows(2) {
            assert_eq!(pair[1].wrapping_sub(pair[0]), 3000);
        }
        // Sound begins at the live edge: what was before isn't sent.
        let audio = peer.of(AUDIO_SSRC);
        assert_eq!(audio.len(), 1);
        assert_eq!(audio[0].payload, payloads(&sound)[0]);
        assert_eq!(
            peer.counters.packets.load(Ordering::Relaxed),
            peer.packets.len() as u64
        );
        assert_eq!(
            peer.counters.state.load(Ordering::Relaxed),
            ViewerState::Connected as u8
        );
    }
}

#[actix_rt::test]
async fn a_gop_comes_in_pieces_that_a_small_receive_buffer_holds() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let gop: Vec<_> = (0..60).map(|_| world.picture()).collect();
    let total: usize = gop.iter().map(|batch| batch.len()).sum();
    world.core.handle_backlog(world.now, &name(), &gop);
    world.check(&peer);
    world.exchange(&mut peer);
    let mut largest = 0;
    let mut turns = 0;
    while peer.of(VIDEO_SSRC).len() < total {
        let before = peer.of(VIDEO_SSRC).len();
        world.work();
        world.pass(Duration::from_millis(2));
        world.exchange(&mut peer);
        largest = largest.max(peer.of(VIDEO_SSRC).len() - before);
        turns += 1;
        assert!(turns < 1000, "it arrives within the time of the GOP");
    }
    assert!(total > 300, "a burst that would overflow: {total}");
    // A piece, and the keyframe that may end it.
    assert!(largest < 90, "{largest}");
    assert_continuous(&peer.of(VIDEO_SSRC));
}

#[actix_rt::test]
async fn a_viewer_that_comes_before_the_first_keyframe_waits_for_it() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let _skipped = world.picture();
    for _ in 1..60 {
        let picture = world.picture();
        world.send_whole(picture);
    }
    world.exchange(&mut peer);
    assert!(peer.of(VIDEO_SSRC).is_empty());
    let keyframe = world.picture();
    world.send_whole(Arc::clone(&keyframe));
    world.exchange(&mut peer);
    let first = peer.of(VIDEO_SSRC)[0].payload.clone();
    assert_eq!(first, payloads(&keyframe)[0]);
}

#[actix_rt::test]
async fn many_viewers_all_get_everything_though_they_come_and_go() {
    let mut world = World::new();
    let mut peers: Vec<Peer> = (0..30).map(|i| world.join(i, vec![GCM])).collect();
    for peer in &mut peers {
        world.connect(peer);
    }
    let mut sent = Vec::new();
    for i in 0..60 {
        let picture = world.picture();
        sent.extend(payloads(&picture));
        world
            .core
            .handle_batch(Timing::new(world.now, None), &name(), picture);
        // One leaves in the middle of a fan-out.
        let wall = world.wall();
        world.core.handle_job(world.now, wall, &mut world.outbox);
        if i % 10 == 5 {
            let gone = peers.remove(usize::from(i % 3 == 0));
            let wall = world.wall();
            world
                .core
                .handle_leave(wall, gone.id, EndReason::Left, &mut world.outbox);
        }
        world.work();
        world.pass(Duration::from_millis(20));
    }
    // Whoever was skipped by the swap in the list is brought up with the next unit.
    let last = world.picture();
    sent.extend(payloads(&last));
    world.send_whole(last);
    for peer in &mut peers {
        world.exchange(peer);
        let got: Vec<_> = peer
            .of(VIDEO_SSRC)
            .iter()
            .map(|p| p.payload.clone())
            .collect();
        assert_eq!(got, sent, "{}", peer.id);
        assert_continuous(&peer.of(VIDEO_SSRC));
    }
    assert_eq!(world.core.viewers(), peers.len());
}

#[actix_rt::test]
async fn keys_fit_across_the_rollover_of_the_sequence_number() {
    for profile in [GCM, CM] {
        let mut world = World::new();
        let mut peer = world.join(1, vec![profile]);
        world.connect(&mut peer);
        let mut packets = 0;
        let mut newest = None;
        while packets < 140_000 {
            let picture = world.picture();
            packets += picture.len();
            world.send_whole(picture);
            // Every packet is opened by rtc-srtp, which guesses the rollover for itself.
            world.exchange(&mut peer);
            assert_continuous(&peer.of(VIDEO_SSRC));
            newest = peer.packets.pop().or(newest);
            peer.packets.clear();
            world.now += Duration::from_millis(1);
        }
        assert!(newest.is_some());
    }
}

#[actix_rt::test]
async fn lost_packets_come_again_on_the_rtx_ssrc() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    world.pass(Duration::from_millis(20));
    for _ in 0..10 {
        let picture = world.picture();
        world.send(picture);
    }
    world.exchange(&mut peer);
    let video: Vec<Packet> = peer.of(VIDEO_SSRC).into_iter().cloned().collect();
    let (lost, also) = (&video[3], &video[5]);

    // Generic NACK (RFC 4585 section 6.2.1): PID and a bitmask of what follows.
    let mut nack = vec![0x81, 205, 0, 3, 0, 0, 0, 1];
    nack.extend_from_slice(&VIDEO_SSRC.to_be_bytes());
    nack.extend_from_slice(&lost.sequence.to_be_bytes());
    nack.extend_from_slice(&[0, 0b10]);
    let nack = peer.feedback(&nack);
    world.receive(peer.path, &nack);
    let asked = world.events.iter().find_map(|event| match event {
        Event::Nacked { viewer, kind, lost } => Some((*viewer, *kind, lost.clone())),
        _ => None,
    });
    assert_eq!(
        asked,
        Some((
            peer.id,
            MediaKind::Video,
            vec![lost.sequence, also.sequence]
        ))
    );

    // What the retransmit actor does with it.
    let (core, rings) = world
        .events
        .iter()
        .find_map(|event| match event {
            Event::Joined {
                retransmitters,
                rings,
                ..
            } => Some((retransmitters.video.clone().unwrap(), rings.clone())),
            _ => None,
        })
        .unwrap();
    let mut resends: Vec<Resend> = Vec::new();
    core.borrow_mut().handle_nack(
        world.now,
        [lost.sequence, also.sequence],
        None,
        |track, index| rings.borrow().payload_bytes(track, index),
        &mut resends,
    );
    let count = world.core.handle_resend(
        world.now,
        peer.id,
        MediaKind::Video,
        &resends,
        &mut world.outbox,
    );
    assert_eq!(count, 2);
    world.collect();
    world.exchange(&mut peer);

    let again = peer.of(RTX_SSRC);
    assert_continuous(&again);
    for (original, copy) in [lost, also].into_iter().zip(again) {
        assert_eq!(copy.payload_type, RTX_TYPE);
        assert_eq!(copy.timestamp, original.timestamp);
        assert_eq!(copy.marker, original.marker);
        assert_eq!(copy.payload[..2], original.sequence.to_be_bytes());
        assert_eq!(copy.payload[2..], original.payload);
    }
    assert_eq!(peer.counters.resent.load(Ordering::Relaxed), 2);
}

#[actix_rt::test]
async fn a_wish_for_a_keyframe_is_answered_from_the_ring() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let gop: Vec<_> = (0..20).map(|_| world.picture()).collect();
    for picture in &gop {
        world.send_whole(Arc::clone(picture));
    }
    world.exchange(&mut peer);
    let before = peer.of(VIDEO_SSRC).len();

    let mut pli = vec![0x81, 206, 0, 2, 0, 0, 0, 1];
    pli.extend_from_slice(&VIDEO_SSRC.to_be_bytes());
    let pli = peer.feedback(&pli);
    world.receive(peer.path, &pli);
    assert!(matches!(
        world.events.last(),
        Some(Event::KeyframeAsked { viewer }) if *viewer == peer.id
    ));
    assert_eq!(world.core.handle_keyframe(world.now, peer.id), "resent");
    world.work();
    world.run_up(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    assert_continuous(&video);
    let again: Vec<_> = video[before..].iter().map(|p| p.payload.clone()).collect();
    let expected: Vec<_> = gop.iter().flat_map(|b| payloads(b)).collect();
    assert_eq!(again, expected);
}

#[actix_rt::test]
async fn who_has_all_gets_nothing_again_in_a_silence_and_what_was_missed_by_its_own_time() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let picture = world.picture();
    world.send_whole(picture);
    world.connect(&mut peer);
    for _ in 0..20 {
        let picture = world.picture();
        world.send(picture);
        world.pass(Duration::from_micros(33_333));
    }
    world.exchange(&mut peer);
    let sent = peer.of(VIDEO_SSRC).len();
    // The way to the origin is cut, and the player asks as it does after three seconds without a picture.
    world.pass(SECOND * 3);
    assert_eq!(
        world.core.handle_keyframe(world.now, peer.id),
        "nothing_new"
    );
    world.work();
    world.exchange(&mut peer);
    assert_eq!(peer.of(VIDEO_SSRC).len(), sent);
    let before = peer.of(VIDEO_SSRC)[sent - 1].timestamp;

    // What was missed comes at once.
    for _ in 0..90 {
        let picture = world.picture();
        world.send(picture);
        world.pass(Duration::from_millis(2));
    }
    world.exchange(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    assert_continuous(&video);
    let mut times: Vec<u32> = video[sent..]
        .iter()
        .map(|packet| packet.timestamp)
        .collect();
    times.dedup();
    let first = times[0].wrapping_sub(before);
    assert!(
        (270_000..=300_000).contains(&first),
        "as late as it left: {first}"
    );
    let rest = times[times.len() - 1].wrapping_sub(times[0]);
    assert!(rest <= 27_000, "no faster than they were sent: {rest}");
}

#[actix_rt::test]
async fn reports_map_both_clocks_to_one_time() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let (picture, sound) = (world.picture(), world.sound());
    world.core.handle_backlog(
        world.now,
        &name(),
        &[Arc::clone(&picture), Arc::clone(&sound)],
    );
    world.connect(&mut peer);
    // The first reports leave with the first packets, not a second later.
    assert_eq!(peer.reports.len(), 2);
    let next = world.sound();
    world.send(next);
    world.pass(SECOND * 3);
    world.exchange(&mut peer);
    assert!(peer.reports.len() >= 6, "{}", peer.reports.len());

    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    let video_time = peer.of(VIDEO_SSRC)[0].timestamp;
    let audio_time = peer.of(AUDIO_SSRC)[0].timestamp;
    for report in &peer.reports {
        assert_eq!(report[1], 200);
        let seconds = word(report, 8) - word(&peer.reports[0], 8);
        let fraction = f64::from(word(report, 12)) / f64::from(u32::MAX);
        let first_fraction = f64::from(word(&peer.reports[0], 12)) / f64::from(u32::MAX);
        let elapsed = f64::from(seconds) + fraction - first_fraction;
        // Picture 0 is from the stream's first moment, sound 1 from 20 ms later.
        let (rate, origin, offset) = match word(report, 4) {
            VIDEO_SSRC => (90_000.0, video_time, 0.0),
            AUDIO_SSRC => (48_000.0, audio_time, 0.02),
            other => panic!("{other:x}"),
        };
        let media = f64::from(word(report, 16).wrapping_sub(origin).cast_signed()) / rate;
        assert!(
            (media + offset - elapsed).abs() < 0.002,
            "{media} {elapsed}"
        );
    }
}

#[actix_rt::test]
async fn viewers_that_never_connect_or_fall_silent_are_gone_in_30_seconds() {
    let mut world = World::new();
    let never = world.join(1, vec![GCM]);
    let mut silent = world.join(2, vec![GCM]);
    let mut alive = world.join(3, vec![GCM]);
    world.connect(&mut silent);
    world.connect(&mut alive);
    for _ in 0..13 {
        world.pass(Duration::from_millis(2500));
        world.check(&alive);
    }
    assert_eq!(world.ended(never.id), Some(EndReason::NeverConnected));
    assert_eq!(world.ended(silent.id), Some(EndReason::Expired));
    assert_eq!(world.ended(alive.id), None);
    assert_eq!(world.core.viewers(), 1);
    assert_eq!(
        silent.counters.state.load(Ordering::Relaxed),
        ViewerState::Ended as u8
    );
}

#[actix_rt::test]
async fn a_restart_keeps_the_keys_and_voids_the_old_fragment() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let picture = world.picture();
    world.send_whole(picture);
    world.exchange(&mut peer);
    let before = peer.packets.len();

    let credentials = Credentials {
        local_ufrag: "new".to_owned(),
        local_pwd: PWD.to_owned(),
        remote_ufrag: "remote".to_owned(),
        remote_pwd: "unused".to_owned(),
    };
    world
        .core
        .handle_restart(world.now, peer.id, credentials)
        .unwrap();
    let answers = peer.answers;
    world.check(&peer);
    world.exchange(&mut peer);
    assert_eq!(peer.answers, answers, "the old fragment is void");

    // The viewer comes from another network now.
    peer.ufrag = "new".to_owned();
    peer.path = Path::udp("198.51.100.7:9".parse().unwrap());
    world.check(&peer);
    world.exchange(&mut peer);
    assert_eq!(peer.answers, answers + 1);
    let picture = world.picture();
    world.send_whole(picture);
    world.exchange(&mut peer);
    assert!(
        peer.packets.len() > before,
        "the same keys at the new address"
    );
    assert_continuous(&peer.of(VIDEO_SSRC));
    assert!(
        world
            .core
            .handle_restart(
                world.now,
                ViewerId(99),
                Credentials {
                    local_ufrag: "x".to_owned(),
                    local_pwd: PWD.to_owned(),
                    remote_ufrag: "y".to_owned(),
                    remote_pwd: "z".to_owned(),
                }
            )
            .is_err()
    );
}

#[actix_rt::test]
async fn goodbyes_are_said_both_ways() {
    let mut world = World::new();
    let mut left = world.join(1, vec![GCM]);
    let mut closed = world.join(2, vec![GCM]);
    let picture = world.picture();
    world.core.handle_backlog(world.now, &name(), &[picture]);
    world.connect(&mut left);
    world.connect(&mut closed);

    let wall = world.wall();
    world
        .core
        .handle_leave(wall, left.id, EndReason::Left, &mut world.outbox);
    world.collect();
    world.exchange(&mut left);
    // A BYE of both SSRCs ends the last compound.
    let (last, before) = left.reports.split_last().unwrap();
    assert_eq!(last[last.len() - 12..][..4], [0x82, 203, 0, 2]);
    let bye = |report: &Vec<u8>| report[report.len() - 12..].starts_with(&[0x82, 203]);
    assert!(!before.iter().any(bye));
    assert!(left.closed, "a close_notify came");

    closed.client.close(world.now);
    world.exchange(&mut closed);
    assert_eq!(world.ended(closed.id), Some(EndReason::Closed));
    assert!(
        world
            .events
            .iter()
            .any(|event| matches!(event, Event::StreamUnwanted { .. }))
    );
    assert_eq!(world.core.viewers(), 0);
}

#[actix_rt::test]
async fn a_hole_in_what_the_shard_gets_is_a_skip_to_the_keyframe() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let mut expected = Vec::new();
    for i in 0..130 {
        let picture = world.picture();
        // The queue was full for a while.
        if (20..30).contains(&i) {
            continue;
        }
        if !(20..60).contains(&i) {
            expected.extend(payloads(&picture));
        }
        world.send_whole(picture);
    }
    world.exchange(&mut peer);
    let video = peer.of(VIDEO_SSRC);
    let got: Vec<_> = video.iter().map(|p| p.payload.clone()).collect();
    assert_eq!(got, expected);
    assert_continuous(&video);
    assert_eq!(world.core.take_sent().skips, 1);
}

#[actix_rt::test]
async fn a_full_shard_and_a_taken_fragment_are_said() {
    let mut world = World::with(Options {
        viewers_max: 2,
        ring: Limits::default(),
        playout_delay_ms: None,
        ice: ice::Options::default(),
    });
    let first = world.join(1, vec![GCM]);
    let mut again = world.join_of(&first);
    again.viewer = ViewerId(2);
    let info = world.info.clone();
    assert_eq!(
        world.core.handle_join(world.now, again, &info),
        Err(JoinError::UfragTaken)
    );
    let second = world.join(2, vec![GCM]);
    let mut third = world.join_of(&second);
    third.viewer = ViewerId(3);
    third.local_ufrag = "u3".to_owned();
    assert_eq!(
        world.core.handle_join(world.now, third, &info),
        Err(JoinError::Full)
    );
}

#[actix_rt::test]
async fn strangers_get_no_answer_and_cost_nothing() {
    let mut world = World::new();
    let peer = world.join(1, vec![GCM]);
    let stranger = Path::udp("203.0.113.1:1".parse().unwrap());
    for datagram in [
        check("u1:remote", "another password", true),
        check("u1:somebody", PWD, true),
        check("nobody:remote", PWD, true),
        // A ClientHello, SRTCP and RTP from an address that passed no check.
        vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x80, 200, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        vec![0x80, 96, 0, 1],
        vec![],
        vec![255; 1500],
    ] {
        world.receive(stranger, &datagram);
    }
    assert!(world.wire.is_empty());
    assert_eq!(
        peer.counters.state.load(Ordering::Relaxed),
        ViewerState::New as u8
    );
}
