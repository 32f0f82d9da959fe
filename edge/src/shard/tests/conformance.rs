//! What players rely on in the media they get, as WebRTC has it: H.264 that can be joined at each IDR, packets that fit, reports, repairs within
//! bounds, and nothing that was not negotiated.

use headwater_media::bwe::Estimate;
use headwater_media::rtp::rtcp;

use super::super::feedback::Sample;
use super::*;

const CAPTURE_ID: u8 = 6;
const MID_ID: u8 = 9;
const PICTURE: Duration = Duration::from_micros(33_333);

/// A datagram that IPv6 carries everywhere: 1280 bytes less its header and UDP's (RFC 8200 section 5).
const DATAGRAM_BYTES_MAX: usize = 1232;
/// What WebRTC's implementations keep RTP payloads below.
const PAYLOAD_BYTES_MAX: usize = 1200;

/// NAL unit types (ITU-T H.264 table 7-1, RFC 6184 section 5.2).
const SLICE: u8 = 1;
const IDR: u8 = 5;
const SEI: u8 = 6;
const SPS: u8 = 7;
const PPS: u8 = 8;
const STAP_A: u8 = 24;
const FU_A: u8 = 28;

fn everything(negotiated: &mut Negotiated) {
    let media = [&mut negotiated.video, &mut negotiated.audio];
    for media in media.into_iter().flatten() {
        media.extensions = ExtensionIds {
            transport_sequence: Some(TRANSPORT_SEQUENCE),
            capture_time: Some(CAPTURE_ID),
            playout_delay: Some(PLAYOUT_DELAY),
            mid: Some(MID_ID),
        };
        media.mid = "sixteen bytes id".to_owned();
        media.transport_cc = true;
    }
}

fn with_playout_delay() -> World {
    World::with(Options {
        viewers_max: 100,
        ring: Limits::default(),
        playout_delay_ms: Some([100, 405]),
        ice: ice::Options::default(),
    })
}

/// The types of the NAL units that packets in order carry, each with its timestamp. Only packets of packetization mode 1 are known here.
fn nal_types(packets: &[&Packet]) -> Vec<(u32, u8)> {
    let mut found = Vec::new();
    let mut open = None;
    for packet in packets {
        let kind = packet.payload[0] & 0x1f;
        if kind != FU_A {
            assert_eq!(open, None, "fragments follow each other");
        }
        match kind {
            1..24 => found.push((packet.timestamp, kind)),
            STAP_A => {
                let mut rest = &packet.payload[1..];
                while let [a, b, tail @ ..] = rest {
                    let length = usize::from(u16::from_be_bytes([*a, *b]));
                    found.push((packet.timestamp, tail[0] & 0x1f));
                    rest = &tail[length..];
                }
            }
            FU_A => {
                let (start, end) = (packet.payload[1] & 0x80 != 0, packet.payload[1] & 0x40 != 0);
                assert!(!(start && end), "a fragment is not the whole");
                assert_eq!(start, open.is_none(), "fragments begin once");
                if start {
                    found.push((packet.timestamp, packet.payload[1] & 0x1f));
                    open = Some(packet.timestamp);
                }
                assert_eq!(open, Some(packet.timestamp));
                if end {
                    open = None;
                }
            }
            other => panic!("a packet of type {other}"),
        }
    }
    assert_eq!(open, None, "the last fragment");
    found
}

/// Publishes pictures and sound for some time, which passes.
fn publish(world: &mut World, peer: &mut Peer, time: Duration) {
    let end = world.now + time;
    while world.now < end {
        let picture = world.picture();
        world.send(picture);
        let sound = world.sound();
        world.send(sound);
        world.pass(PICTURE);
        world.work();
        world.exchange(peer);
    }
}

/// What the actors do with NACKs.
fn repair(world: &mut World, peer: &Peer) {
    let (core, rings) = world
        .events
        .iter()
        .find_map(|event| match event {
            Event::Joined {
                viewer,
                retransmitters,
                rings,
                ..
            } if *viewer == peer.id => Some((retransmitters.video.clone()?, rings.clone())),
            _ => None,
        })
        .expect("video with RTX");
    let mut resends: Vec<Resend> = Vec::new();
    world.events.retain(|event| {
        if let Event::Nacked { lost, .. } = event {
            core.borrow_mut().handle_nack(
                world.now,
                lost.iter().copied(),
                None,
                |track, index| rings.borrow().payload_bytes(track, index),
                &mut resends,
            );
        }
        !matches!(event, Event::Nacked { .. })
    });
    world.core.handle_resend(
        world.now,
        peer.id,
        MediaKind::Video,
        &resends,
        &mut world.outbox,
    );
    world.collect();
}

fn feedback(packet_type: u8, format: u8, media_ssrc: u32, rest: &[u8]) -> Vec<u8> {
    let words = u8::try_from(2 + rest.len() / 4).unwrap();
    let mut message = vec![0x80 | format, packet_type, 0, words, 0, 0, 0, 1];
    message.extend(media_ssrc.to_be_bytes());
    message.extend(rest);
    message
}

fn pli(media_ssrc: u32) -> Vec<u8> {
    feedback(206, 1, media_ssrc, &[])
}

/// The SSRC of media is 0 in a FIR; whom it means stands in its entries (RFC 5104 section 4.3.1).
fn fir(ssrc: u32, number: u8) -> Vec<u8> {
    let mut entry = ssrc.to_be_bytes().to_vec();
    entry.extend([number, 0, 0, 0]);
    feedback(206, 4, 0, &entry)
}

impl World {
    /// A feedback message of a viewer comes in; what it leads to.
    fn hear(&mut self, peer: &mut Peer, message: &[u8]) -> Vec<Event> {
        self.collect();
        let known = self.events.len();
        let sealed = peer.feedback(message);
        self.receive(peer.path, &sealed);
        self.events.split_off(known)
    }
}

/// The packets of a compound with whom they name: (packet type, SSRCs).
fn compound(mut rest: &[u8]) -> Vec<(u8, Vec<u32>)> {
    let word = |at: &[u8]| u32::from_be_bytes(at[..4].try_into().unwrap());
    let mut found = Vec::new();
    while !rest.is_empty() {
        let length = 4 * (1 + usize::from(u16::from_be_bytes([rest[2], rest[3]])));
        let (packet, count) = (&rest[4..length], usize::from(rest[0] & 0x1f));
        let ssrcs: Vec<u32> = match rest[1] {
            200 => vec![word(packet)],
            203 => packet[..4 * count].chunks(4).map(word).collect(),
            202 => {
                // Chunks of an SSRC, items of type, length and text, and zeros up to the next word.
                let (mut named, mut at) = (Vec::new(), 0);
                for _ in 0..count {
                    named.push(word(&packet[at..]));
                    assert_eq!(packet[at + 4], 1, "a CNAME");
                    at += 6 + usize::from(packet[at + 5]);
                    assert_eq!(packet[at], 0, "no other item");
                    at = (at + 1).next_multiple_of(4);
                }
                assert_eq!(at, packet.len());
                named
            }
            other => panic!("a packet of type {other}"),
        };
        found.push((rest[1], ssrcs));
        rest = &rest[length..];
    }
    found
}

fn byes(peer: &Peer) -> Vec<u32> {
    let mut ssrcs: Vec<u32> = peer
        .reports
        .iter()
        .flat_map(|report| compound(report))
        .filter(|(packet_type, _)| *packet_type == 203)
        .flat_map(|(_, ssrcs)| ssrcs)
        .collect();
    ssrcs.sort_unstable();
    ssrcs
}

#[actix_rt::test]
async fn each_idr_comes_behind_its_parameter_sets_and_no_packet_is_too_long() {
    for profile in [GCM, CM] {
        let mut world = with_playout_delay();
        world.video = Video::new(
            VideoOptions {
                slices: 3,
                gop: 20,
                ..VideoOptions::default()
            },
            4,
        );
        let mut peer = world.join_with(1, vec![profile], everything);
        // A link on which nothing is skipped.
        let wide = Estimate {
            rate: Bitrate(100_000_000),
            overused: false,
            limited: true,
        };
        world.core.handle_estimate(world.now, peer.id, wide);
        let backlog: Vec<_> = (0..30).map(|_| world.picture()).collect();
        world.core.handle_backlog(world.now, &name(), &backlog);
        world.connect(&mut peer);
        publish(&mut world, &mut peer, SECOND * 2);
        // Asked for in the middle of a GOP, and once again by NACK.
        assert_eq!(world.core.handle_keyframe(world.now, peer.id), "resent");
        world.work();
        world.run_up(&mut peer);
        let lost: Vec<u16> = peer.of(VIDEO_SSRC).iter().map(|p| p.sequence).collect();
        let mut pairs = Vec::new();
        for sequence in lost.iter().rev().take(40) {
            pairs.extend(sequence.to_be_bytes());
            pairs.extend([0, 0]);
        }
        let nack = peer.feedback(&feedback(205, 1, VIDEO_SSRC, &pairs));
        world.receive(peer.path, &nack);
        repair(&mut world, &peer);
        world.exchange(&mut peer);

        let video = peer.of(VIDEO_SSRC);
        assert_continuous(&video);
        let found = nal_types(&video);
        let keyframes = found.iter().filter(|(_, kind)| *kind == SPS).count();
        assert!(keyframes >= 4, "{keyframes}");
        for unit in found.chunk_by(|a, b| a.0 == b.0) {
            let kinds: Vec<u8> = unit.iter().map(|(_, kind)| *kind).collect();
            let expected: &[u8] = if kinds.contains(&IDR) {
                &[SPS, PPS, SEI, IDR, IDR, IDR]
            } else {
                &[SEI, SLICE, SLICE, SLICE]
            };
            assert_eq!(kinds, expected);
        }
        let again = peer.of(RTX_SSRC);
        assert!(again.len() >= 40, "{}", again.len());
        for packet in &peer.packets {
            assert!(packet.payload.len() <= PAYLOAD_BYTES_MAX);
        }
        assert!(peer.largest <= DATAGRAM_BYTES_MAX, "{}", peer.largest);
        assert!(peer.largest > 1100, "it is not cut needlessly");
    }
}

#[actix_rt::test]
async fn sound_is_one_packet_each_20_ms_on_the_clock_of_opus() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    for _ in 0..100 {
        let sound = world.sound();
        world.send(sound);
        world.pass(Duration::from_millis(20));
    }
    world.exchange(&mut peer);
    let audio = peer.of(AUDIO_SSRC);
    assert_eq!(audio.len(), 100);
    assert_continuous(&audio);
    for pair in audio.windows(2) {
        assert_eq!(pair[1].timestamp.wrapping_sub(pair[0].timestamp), 960);
    }
    let odd = |p: &&Packet| p.marker || p.payload_type != AUDIO_TYPE;
    assert!(!peer.of(AUDIO_SSRC).iter().any(odd));
}

#[actix_rt::test]
async fn each_source_reports_at_least_once_a_second_and_says_its_name() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let (picture, sound) = (world.picture(), world.sound());
    world
        .core
        .handle_backlog(world.now, &name(), &[picture, sound]);
    world.connect(&mut peer);
    let began = world.now;
    let mut last = HashMap::from([(VIDEO_SSRC, began), (AUDIO_SSRC, began)]);
    let mut seen = 0;
    for _ in 0..20_000 {
        world.pass(Duration::from_millis(1));
        if world.wire.is_empty() {
            continue;
        }
        world.exchange(&mut peer);
        for report in peer.reports.drain(..) {
            let packets = compound(&report);
            // A compound begins with a report and has a CNAME (RFC 3550 section 6.1).
            assert_eq!(packets[0].0, 200);
            let of = |wanted: u8| {
                let packets = packets.iter().filter(move |(kind, _)| *kind == wanted);
                packets.flat_map(|(_, ssrcs)| ssrcs.iter().copied())
            };
            for ssrc in of(200) {
                assert!(of(202).any(|named| named == ssrc), "it has a name");
                let before = last.insert(ssrc, world.now).expect("one of ours");
                assert!(world.now - before <= SECOND, "{:?}", world.now - before);
                seen += 1;
            }
        }
    }
    assert!((40..=60).contains(&seen), "{seen}");
    assert_eq!(last.len(), 2);
    for at in last.values() {
        assert!(world.now - *at <= SECOND);
    }
}

#[actix_rt::test]
async fn a_report_of_ours_and_its_answer_tell_the_round_trip() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    let picture = world.picture();
    world.core.handle_backlog(world.now, &name(), &[picture]);
    world.connect(&mut peer);
    world.pass(SECOND * 2);
    world.exchange(&mut peer);
    let report = peer.reports.last().expect("reports came").clone();
    let last_sr = report[10..14].to_vec();
    // When it left: the newest report is at most a second old.
    let ntp = u32::from_be_bytes(last_sr.clone().try_into().unwrap());
    let wall = world.wall().ntp().to_be_bytes();
    let now = u32::from_be_bytes(wall[2..6].try_into().unwrap());
    let age = Duration::from_secs_f64(f64::from(now.wrapping_sub(ntp)) / 65_536.0);

    world.pass(Duration::from_millis(150));
    let held = age + Duration::from_millis(90);
    let receiver_report = |ssrc: u32| {
        let mut block = vec![32, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0];
        block.extend(&last_sr);
        let held = u32::try_from(held.as_micros() * 65_536 / 1_000_000).unwrap();
        block.extend(held.to_be_bytes());
        feedback(201, 1, ssrc, &block)
    };
    let events = world.hear(&mut peer, &receiver_report(VIDEO_SSRC));
    let [
        Event::Measured {
            sample: Sample::Report { rtt, fraction_lost },
            ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    let rtt = rtt.expect("measured");
    assert!(
        rtt.abs_diff(Duration::from_millis(60)) < Duration::from_millis(1),
        "{rtt:?}"
    );
    assert_eq!(*fraction_lost, 32);
    // What is said of others is nothing to us.
    assert!(world.hear(&mut peer, &receiver_report(7)).is_empty());
}

#[actix_rt::test]
async fn only_who_misses_the_picture_is_heard_about_it() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    publish(&mut world, &mut peer, Duration::from_millis(200));
    for (message, expected) in [
        (pli(VIDEO_SSRC), true),
        (fir(VIDEO_SSRC, 1), true),
        (pli(AUDIO_SSRC), false),
        (pli(RTX_SSRC), false),
        (pli(0x7777_7777), false),
        (fir(AUDIO_SSRC, 2), false),
        (fir(0x7777_7777, 2), false),
    ] {
        let events = world.hear(&mut peer, &message);
        let asked = events
            .iter()
            .any(|event| matches!(event, Event::KeyframeAsked { viewer } if *viewer == peer.id));
        assert_eq!(asked, expected, "{message:02x?}");
    }
    // Losses of a source that isn't ours lead to nothing either.
    let strange = feedback(205, 1, 0x7777_7777, &[0, 1, 0, 0]);
    assert!(world.hear(&mut peer, &strange).is_empty());
}

#[actix_rt::test]
async fn a_viewer_that_misses_everything_is_sent_a_share_of_it_again() {
    let mut world = World::new();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    let (mut sent, mut again, mut asked) = (0_u64, 0_u64, 0_usize);
    let mut rtx: Option<u16> = None;
    for _ in 0..300 {
        publish(&mut world, &mut peer, PICTURE);
        let video = peer.of(VIDEO_SSRC);
        sent += video.iter().map(|p| p.payload.len() as u64).sum::<u64>();
        let mut pairs = Vec::new();
        for packet in &video {
            pairs.extend(packet.sequence.to_be_bytes());
            pairs.extend([0, 0]);
        }
        asked += video.len();
        for packet in peer.of(RTX_SSRC) {
            again += packet.payload.len() as u64 - 2;
            assert_ne!(packet.ssrc, VIDEO_SSRC);
            assert_eq!(packet.payload_type, RTX_TYPE);
            assert!(rtx.is_none_or(|last| packet.sequence == last.wrapping_add(1)));
            rtx = Some(packet.sequence);
        }
        peer.packets.clear();
        for some in pairs.chunks(4 * 200) {
            let nack = peer.feedback(&feedback(205, 1, VIDEO_SSRC, some));
            world.receive(peer.path, &nack);
        }
        repair(&mut world, &peer);
    }
    assert!(asked > 2000, "{asked}");
    // 30 %, and what was saved up.
    assert!(again > sent / 5, "{again} of {sent}");
    assert!(again <= sent * 3 / 10 + (128 << 10), "{again} of {sent}");
}

#[actix_rt::test]
async fn what_was_not_negotiated_is_neither_written_nor_heard() {
    let mut world = with_playout_delay();
    let mut peer = world.join(1, vec![GCM]);
    world.connect(&mut peer);
    publish(&mut world, &mut peer, SECOND);
    assert!(peer.packets.len() > 100);
    assert!(peer.packets.iter().all(|p| p.extensions.is_empty()));
    // Arrivals of numbers that nobody gave.
    let arrivals = feedback(
        205,
        15,
        VIDEO_SSRC,
        &[0, 0, 0, 1, 0, 0, 1, 1, 0x20, 1, 4, 0],
    );
    assert!(world.hear(&mut peer, &arrivals).is_empty());

    // Each on its own, in the packets that it belongs to.
    type Choose = fn(&mut ExtensionIds);
    let choices: [(u8, Choose); 4] = [
        (TRANSPORT_SEQUENCE, |ids| {
            ids.transport_sequence = Some(TRANSPORT_SEQUENCE)
        }),
        (CAPTURE_ID, |ids| ids.capture_time = Some(CAPTURE_ID)),
        (PLAYOUT_DELAY, |ids| ids.playout_delay = Some(PLAYOUT_DELAY)),
        (MID_ID, |ids| ids.mid = Some(MID_ID)),
    ];
    for (number, (id, choose)) in (2..).zip(choices) {
        let mut peer = world.join_with(number, vec![GCM], |negotiated| {
            if let Some(video) = &mut negotiated.video {
                choose(&mut video.extensions);
            }
        });
        world.connect(&mut peer);
        publish(&mut world, &mut peer, SECOND);
        let ids = |p: &Packet| p.extensions.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert!(peer.of(VIDEO_SSRC).len() > 100);
        for packet in peer.of(VIDEO_SSRC) {
            assert_eq!(ids(packet), [id]);
        }
        for packet in peer.of(AUDIO_SSRC) {
            assert!(packet.extensions.is_empty());
        }
    }
}

#[actix_rt::test]
async fn capture_time_and_playout_delay_say_what_they_should() {
    let mut world = with_playout_delay();
    let mut peer = world.join_with(1, vec![GCM], everything);
    world.connect(&mut peer);
    let picture = world.picture();
    let captured = picture.ingest_time;
    world.send(picture);
    world.exchange(&mut peer);
    let of = |packet: &Packet, wanted: u8| {
        let mut elements = packet.extensions.iter();
        elements
            .find(|(id, _)| *id == wanted)
            .map(|(_, data)| data.clone())
    };
    for packet in peer.of(VIDEO_SSRC) {
        let time = of(packet, CAPTURE_ID).expect("negotiated");
        assert_eq!(time, captured.ntp().to_be_bytes());
        // 12 bits each in steps of 10 ms, the upper one rounded up: 10 and 41.
        assert_eq!(of(packet, PLAYOUT_DELAY), Some(vec![0x00, 0xa0, 0x29]));
    }
    // Once it was said for a while, only keyframes say the delay again.
    publish(&mut world, &mut peer, SECOND * 8);
    peer.packets.clear();
    publish(&mut world, &mut peer, SECOND * 2);
    let units = peer.of(VIDEO_SSRC);
    let units: Vec<_> = units.chunk_by(|a, b| a.timestamp == b.timestamp).collect();
    let told: Vec<bool> = units
        .iter()
        .map(|unit| of(unit[0], PLAYOUT_DELAY).is_some())
        .collect();
    assert_eq!(told.iter().filter(|told| **told).count(), 1, "{told:?}");
}

#[actix_rt::test]
async fn the_end_of_a_stream_is_said_to_all_who_watch() {
    let mut world = World::new();
    let mut both = world.join(1, vec![GCM]);
    let mut sound_only = world.join_with(2, vec![CM], |negotiated| negotiated.video = None);
    let (picture, sound) = (world.picture(), world.sound());
    world
        .core
        .handle_backlog(world.now, &name(), &[picture, sound]);
    world.connect(&mut both);
    world.connect(&mut sound_only);
    let wall = world.wall();
    world
        .core
        .handle_stream_ended(wall, &name(), &mut world.outbox);
    world.collect();
    world.exchange(&mut both);
    world.exchange(&mut sound_only);
    assert_eq!(byes(&both), [VIDEO_SSRC, AUDIO_SSRC]);
    assert_eq!(byes(&sound_only), [AUDIO_SSRC]);
    assert!(both.closed && sound_only.closed, "a close_notify came");
    assert_eq!(world.ended(both.id), Some(EndReason::StreamEnded));
    // The compound is one that any reader understands.
    for report in &both.reports {
        assert!(rtcp::packets(report).all(|packet| packet.is_ok()));
    }
}
