//! Several renditions: who is sent which, and how one takes over from another.

use std::collections::VecDeque;

use headwater_media::abr::{Choice, ProbeRequest, Selection};
use headwater_media::bwe::Cluster;

use super::*;

const LOW: TrackId = TrackId(16);
/// From one picture to the next.
const PICTURE: Duration = Duration::from_micros(33_333);

/// A stream in two renditions, the lower one with a keyframe every half second.
struct Ladder {
    world: World,
    low: Video,
    low_packets: H264Packetizer,
    /// Pictures of the lower rendition, and when they are made.
    made: VecDeque<(Instant, Arc<PacketBatch>)>,
    /// How many pictures each rendition has had.
    pictures: usize,
}

impl Ladder {
    fn new() -> Self {
        let mut world = World::new();
        let mut info = StreamInfo::clone(&world.info);
        let mut low = info.tracks[0].clone();
        low.id = LOW;
        low.rendition = "360p".into();
        info.tracks.push(low);
        world.info = Arc::new(info);
        Self {
            world,
            low: Video::new(
                VideoOptions {
                    track: LOW,
                    gop: 15,
                    bits_per_second: 400_000,
                    ..VideoOptions::default()
                },
                3,
            ),
            low_packets: H264Packetizer::new(RTP_PAYLOAD_BYTES),
            made: VecDeque::new(),
            pictures: 0,
        }
    }

    fn low(&mut self) -> Arc<PacketBatch> {
        let unit = self.low.next().unwrap();
        let configuration = testkit::h264_configuration();
        Arc::new(self.low_packets.packetize(&unit, &configuration).unwrap())
    }

    /// Plays so many pictures; the lower rendition is made from the source and comes `lag` later.
    fn play(&mut self, peer: &mut Peer, pictures: usize, lag: Duration) {
        for _ in 0..pictures {
            let source = self.world.picture();
            self.world.send(source);
            let (now, low) = (self.world.now, self.low());
            self.made.push_back((now + lag, low));
            while self.made.front().is_some_and(|(at, _)| *at < now + PICTURE) {
                let (at, low) = self.made.pop_front().unwrap();
                self.world.pass(at - self.world.now);
                self.world.send(low);
            }
            self.world.pass(now + PICTURE - self.world.now);
            self.pictures += 1;
        }
        self.world.exchange(peer);
    }

    fn join(&mut self) -> Peer {
        let mut peer = self.world.join(1, vec![GCM]);
        self.world.connect(&mut peer);
        peer
    }

    fn join_with_feedback(&mut self) -> Peer {
        let mut peer = self.world.join_with(1, vec![GCM], |negotiated| {
            let video = negotiated.video.as_mut().unwrap();
            video.transport_cc = true;
            video.extensions.transport_sequence = Some(TRANSPORT_SEQUENCE);
        });
        self.world.connect(&mut peer);
        peer
    }

    fn select(&mut self, peer: &Peer, target: Choice) {
        let selection = Selection {
            target,
            also: [].into_iter().collect(),
            shed: false,
        };
        let now = self.world.now;
        self.world.core.handle_select(now, peer.id, selection);
        self.world.collect();
    }

    fn switches(&mut self) -> Vec<TrackId> {
        let events = std::mem::take(&mut self.world.events);
        let tracks = events.iter().filter_map(|event| match event {
            Event::Switched { track, .. } => Some(*track),
            _ => None,
        });
        tracks.collect()
    }
}

/// The pictures a viewer got: timestamp, packets, and whether one begins with parameter sets.
fn pictures(peer: &Peer) -> Vec<(u32, usize, bool)> {
    let mut pictures: Vec<(u32, usize, bool)> = Vec::new();
    for packet in peer.of(VIDEO_SSRC) {
        match pictures.last_mut() {
            Some(last) if last.0 == packet.timestamp => last.1 += 1,
            // A STAP-A, with the SPS first.
            _ => pictures.push((
                packet.timestamp,
                1,
                packet.payload[0] & 0x1f == 24 && packet.payload[3] & 0x1f == 7,
            )),
        }
    }
    pictures
}

/// Checks what must hold whatever is switched: sequence numbers without a hole, time that goes on, a marker at each picture's end.
fn check_continuity(peer: &Peer) {
    let packets = peer.of(VIDEO_SSRC);
    for pair in packets.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
        assert_eq!(
            pair[0].marker,
            pair[0].timestamp != pair[1].timestamp,
            "{:?}",
            pair[0]
        );
        let step = pair[1].timestamp.wrapping_sub(pair[0].timestamp);
        assert!(step == 0 || (1000..=9000).contains(&step), "{step}");
    }
}

#[actix_rt::test]
async fn a_viewer_goes_over_at_the_next_keyframe_and_time_goes_on() {
    for lag in [0, 10, 20, 60].map(Duration::from_millis) {
        let mut ladder = Ladder::new();
        let mut peer = ladder.join();
        ladder.play(&mut peer, 20, lag);
        assert_eq!(ladder.switches(), [TrackId::SOURCE_VIDEO]);
        // Nothing of the other rendition was sent, and nothing of it is until its keyframe.
        ladder.select(&peer, Choice::Video(LOW));
        ladder.play(&mut peer, 9, lag);
        assert_eq!(ladder.switches(), []);
        ladder.play(&mut peer, 40, lag);
        assert_eq!(ladder.switches(), [LOW]);
        check_continuity(&peer);
        let before = pictures(&peer).len();
        // The source's keyframe is that of picture 120.
        ladder.select(&peer, Choice::Video(TrackId::SOURCE_VIDEO));
        ladder.play(&mut peer, 52, lag);
        assert_eq!(ladder.switches(), [TrackId::SOURCE_VIDEO]);
        check_continuity(&peer);
        let pictures = pictures(&peer);
        assert!(pictures.len() - before >= 50, "{}", pictures.len());
        let starts = pictures.iter().filter(|(_, _, starts)| *starts).count();
        // The first, three or four of the lower rendition, and that of the source.
        assert!((5..=8).contains(&starts), "{lag:?}: {starts}");
    }
}

#[actix_rt::test]
async fn the_keyframe_of_what_is_left_waits_for_the_other_one() {
    let lag = Duration::from_millis(20);
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 50, lag);
    ladder.select(&peer, Choice::Video(LOW));
    // The lower rendition's keyframes until then are suppressed by taking them out of the stream.
    let before = peer.of(VIDEO_SSRC).len();
    for _ in 0..10 {
        let source = ladder.world.picture();
        ladder.world.send(source);
        let _ = ladder.low();
        ladder.world.pass(PICTURE);
    }
    ladder.world.exchange(&mut peer);
    let between = peer.of(VIDEO_SSRC).len();
    assert!(between > before);
    // Picture 60 is a keyframe of both.
    let source = ladder.world.picture();
    assert!(source.keyframe);
    ladder.world.send(source);
    ladder.world.pass(lag);
    ladder.world.exchange(&mut peer);
    assert_eq!(peer.of(VIDEO_SSRC).len(), between, "held back");
    // It doesn't come, so the source goes on.
    ladder.world.pass(Duration::from_millis(300));
    ladder.world.exchange(&mut peer);
    let after = pictures(&peer);
    assert!(after.last().unwrap().2, "the held keyframe: {after:?}");
    check_continuity(&peer);
}

#[actix_rt::test]
async fn sound_alone_has_a_way_back() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 20, Duration::ZERO);
    ladder.select(&peer, Choice::AudioOnly);
    let before = (peer.of(VIDEO_SSRC).len(), peer.of(AUDIO_SSRC).len());
    for _ in 0..10 {
        let sound = ladder.world.sound();
        ladder.world.send(sound);
    }
    ladder.play(&mut peer, 30, Duration::ZERO);
    let asked = ladder.world.core.handle_keyframe(ladder.world.now, peer.id);
    assert_eq!(asked, "no_gop", "not even when it asks");
    ladder.play(&mut peer, 1, Duration::ZERO);
    assert_eq!(peer.of(VIDEO_SSRC).len(), before.0);
    assert_eq!(peer.of(AUDIO_SSRC).len(), before.1 + 10);
    ladder.switches();
    ladder.select(&peer, Choice::Video(LOW));
    ladder.play(&mut peer, 30, Duration::ZERO);
    assert_eq!(ladder.switches(), [LOW]);
    let packets = peer.of(VIDEO_SSRC);
    assert!(packets.len() > before.0);
    for pair in packets.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
    }
}

#[actix_rt::test]
async fn a_viewer_whose_rendition_is_gone_is_moved_at_once() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 20, Duration::ZERO);
    ladder.select(&peer, Choice::Video(LOW));
    ladder.play(&mut peer, 20, Duration::ZERO);
    let mut info = StreamInfo::clone(&ladder.world.info);
    info.tracks.retain(|track| track.id != LOW);
    ladder.world.core.handle_info(&name(), &Arc::new(info));
    ladder.world.collect();
    let told = |event: &Event| matches!(event, Event::RenditionsChanged { viewers } if viewers[..] == [ViewerId(1)]);
    assert!(ladder.world.events.iter().any(told));
    ladder.switches();
    let before = pictures(&peer).len();
    ladder.select(&peer, Choice::Video(TrackId::SOURCE_VIDEO));
    ladder.world.work();
    ladder.world.run_up(&mut peer);
    // The keyframe of picture 0 and all since then, though there is none for 20 pictures to come.
    let after = pictures(&peer);
    assert!(after[before].2, "{:?}", after[before]);
    assert_eq!(ladder.switches(), [TrackId::SOURCE_VIDEO]);
}

#[actix_rt::test]
async fn pictures_with_b_frames_never_leave() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 20, Duration::ZERO);
    let mut info = StreamInfo::clone(&ladder.world.info);
    info.tracks[0].reordered = true;
    ladder.world.core.handle_info(&name(), &Arc::new(info));
    ladder.world.collect();
    let before = peer.of(VIDEO_SSRC).len();
    ladder.play(&mut peer, 60, Duration::ZERO);
    ladder.world.core.handle_keyframe(ladder.world.now, peer.id);
    ladder.world.work();
    ladder.play(&mut peer, 1, Duration::ZERO);
    assert_eq!(peer.of(VIDEO_SSRC).len(), before);
    ladder.select(&peer, Choice::Video(LOW));
    ladder.play(&mut peer, 20, Duration::ZERO);
    assert!(peer.of(VIDEO_SSRC).len() > before);
}

#[actix_rt::test]
async fn a_probe_is_filled_up_with_copies_of_what_was_sent() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join_with_feedback();
    ladder.play(&mut peer, 30, Duration::ZERO);
    let request = ProbeRequest {
        cluster: Cluster::FIRST,
        rate: Bitrate(6_000_000),
        bytes: 60_000,
    };
    let start = ladder.world.now;
    ladder.world.core.handle_probe(start, peer.id, request);
    let sent = |peer: &Peer| peer.counters.bytes.load(Ordering::Relaxed);
    let before = sent(&peer);
    ladder.world.pass(Duration::from_millis(30));
    ladder.world.exchange(&mut peer);
    // Half of the 80 ms that it takes, to a piece and a packet.
    let part = sent(&peer) - before;
    assert!((18_000..=30_000).contains(&part), "{part}");
    ladder.play(&mut peer, 3, Duration::ZERO);
    let all = sent(&peer) - before;
    assert!(all >= 60_000, "{all}");
    let originals: Vec<u16> = peer.of(VIDEO_SSRC).iter().map(|p| p.sequence).collect();
    let copies = peer.of(RTX_SSRC);
    assert!(copies.len() > 20);
    for copy in copies {
        let original = u16::from_be_bytes([copy.payload[0], copy.payload[1]]);
        assert!(originals.contains(&original));
    }
    // It is over.
    let after = peer.of(RTX_SSRC).len();
    ladder.play(&mut peer, 10, Duration::ZERO);
    assert_eq!(peer.of(RTX_SSRC).len(), after);
}

#[actix_rt::test]
async fn a_probe_of_who_hears_sound_alone_is_padding() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join_with_feedback();
    ladder.play(&mut peer, 10, Duration::ZERO);
    ladder.select(&peer, Choice::AudioOnly);
    ladder.play(&mut peer, 200, Duration::ZERO);
    let before = peer.of(VIDEO_SSRC).len();
    let request = ProbeRequest {
        cluster: Cluster::FIRST,
        rate: Bitrate(500_000),
        bytes: 14_400,
    };
    let now = ladder.world.now;
    ladder.world.core.handle_probe(now, peer.id, request);
    let bytes = peer.counters.bytes.load(Ordering::Relaxed);
    ladder.world.pass(Duration::from_millis(400));
    ladder.world.exchange(&mut peer);
    assert!(peer.counters.bytes.load(Ordering::Relaxed) - bytes >= 14_400);
    assert_eq!(peer.of(VIDEO_SSRC).len(), before);
    let padding = peer.of(RTX_SSRC);
    assert!(padding.len() > 40, "{}", padding.len());
    for packet in padding {
        assert_eq!(packet.payload.last(), Some(&255), "its own length");
        assert_eq!(packet.payload.len(), 255);
    }
}

#[actix_rt::test]
async fn going_down_does_not_wait_if_a_keyframe_is_recent() {
    for pictures in [20, 29, 45] {
        let mut ladder = Ladder::new();
        let mut peer = ladder.join();
        // The lower rendition has a keyframe every 15 pictures.
        ladder.play(&mut peer, pictures, Duration::from_millis(10));
        ladder.switches();
        let selection = Selection {
            target: Choice::Video(LOW),
            also: [].into_iter().collect(),
            shed: true,
        };
        let now = ladder.world.now;
        ladder.world.core.handle_select(now, peer.id, selection);
        ladder.world.work();
        assert_eq!(ladder.switches(), [LOW], "{pictures}");
        ladder.play(&mut peer, 30, Duration::from_millis(10));
        check_continuity(&peer);
    }
}

#[actix_rt::test]
async fn going_down_waits_if_the_newest_keyframe_is_old() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 15, Duration::ZERO);
    // Its encoder makes no further keyframe for a second.
    for _ in 0..30 {
        let source = ladder.world.picture();
        ladder.world.send(source);
        let low = ladder.low();
        if !low.keyframe {
            ladder.world.send(low);
        }
        ladder.world.pass(PICTURE);
    }
    ladder.world.exchange(&mut peer);
    ladder.switches();
    let selection = Selection {
        target: Choice::Video(LOW),
        also: [].into_iter().collect(),
        shed: true,
    };
    let now = ladder.world.now;
    ladder.world.core.handle_select(now, peer.id, selection);
    ladder.world.work();
    assert_eq!(ladder.switches(), []);
    ladder.play(&mut peer, 1, Duration::ZERO);
    assert_eq!(ladder.switches(), [LOW], "the keyframe of picture 45");
    check_continuity(&peer);
}

#[actix_rt::test]
async fn nothing_is_held_back_on_the_way_up() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    let lag = Duration::from_millis(20);
    ladder.play(&mut peer, 5, lag);
    ladder.select(&peer, Choice::Video(LOW));
    ladder.play(&mut peer, 15, lag);
    ladder.select(&peer, Choice::Video(TrackId::SOURCE_VIDEO));
    // The lower rendition has keyframes at 30 and 45; the source's comes at 60, and each picture until then leaves at once.
    for _ in 20..60 {
        let before = pictures(&peer).len();
        ladder.play(&mut peer, 1, lag);
        assert_eq!(pictures(&peer).len(), before + 1);
    }
    ladder.switches();
    ladder.play(&mut peer, 1, lag);
    assert_eq!(ladder.switches(), [TrackId::SOURCE_VIDEO]);
}

#[actix_rt::test]
async fn nothing_of_the_publisher_before_is_shown_again() {
    let mut ladder = Ladder::new();
    let mut peer = ladder.join();
    ladder.play(&mut peer, 20, Duration::ZERO);
    ladder.switches();
    let before = peer.of(VIDEO_SSRC).len();

    // Another origin has the stream: first that alone is known, then what there will be, and its first keyframe takes a while.
    let mut info = StreamInfo::clone(&ladder.world.info);
    info.epoch = Epoch(2);
    let mut bare = info.clone();
    bare.tracks.clear();
    for info in [bare, info] {
        ladder.world.core.handle_info(&name(), &Arc::new(info));
    }
    ladder.select(&peer, Choice::Video(TrackId::SOURCE_VIDEO));
    ladder.world.pass(Duration::from_millis(100));
    ladder.world.exchange(&mut peer);
    assert_eq!(ladder.switches(), [TrackId::SOURCE_VIDEO]);
    assert_eq!(peer.of(VIDEO_SSRC).len(), before);

    let options = VideoOptions {
        epoch: Epoch(2),
        ..VideoOptions::default()
    };
    ladder.world.video = Video::new(options, 4);
    let keyframe = ladder.world.picture();
    ladder.world.send_whole(Arc::clone(&keyframe));
    ladder.world.exchange(&mut peer);
    let packets = peer.of(VIDEO_SSRC);
    assert_eq!(packets.len(), before + keyframe.len());
    assert_eq!(packets[before].payload, payloads(&keyframe)[0]);
}
