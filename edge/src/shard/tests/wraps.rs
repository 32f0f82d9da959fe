//! Numbers towards a viewer at their wraps: timestamps, and the sequence of retransmissions with its rollover counter.

use headwater_media::time::MediaTime;

use super::*;

/// Pictures sent before the timestamps wrap.
const BEFORE: i64 = 5;

/// Packets from `first_index` on, as the retransmit actor asks for them.
fn resends(
    video: &[Packet],
    sequences: &[u16],
    timestamp_offset: u32,
    batch: &PacketBatch,
) -> Vec<Resend> {
    let first = video
        .iter()
        .find(|packet| packet.payload == batch.payload(0).unwrap());
    let first = first.unwrap().sequence;
    sequences
        .iter()
        .map(|sequence| Resend {
            sequence: u64::from(*sequence),
            track: batch.track,
            index: batch.first_index + u64::from(sequence.wrapping_sub(first)),
            timestamp_offset,
        })
        .collect()
}

#[actix_rt::test]
async fn timestamps_go_on_across_their_wrap_and_copies_repeat_them() {
    for profile in [GCM, CM] {
        let mut world = World::new();
        let mut peer = world.join(1, vec![profile]);
        world.connect(&mut peer);
        let first = world.picture();
        let shift_base = u32::try_from(first.rtp_time & u64::from(u32::MAX)).unwrap();
        world.send_whole(first);
        world.exchange(&mut peer);
        let start = peer.of(VIDEO_SSRC)[0].timestamp;
        let offset = start.wrapping_sub(shift_base);

        // The publisher's timeline leaps to just before the wrap, at a keyframe.
        let shift = i64::from(u32::MAX) + 1 - i64::from(start) - BEFORE * 3000;
        let mut pictures = Vec::new();
        for unit in Video::new(VideoOptions::default(), 3).take(10) {
            let mut unit = unit;
            let moved = |time: MediaTime| MediaTime::from_ticks(time.ticks() + shift);
            (unit.pts, unit.dts) = (moved(unit.pts), moved(unit.dts));
            let picture = world
                .video_packets
                .packetize(&unit, &testkit::h264_configuration())
                .unwrap();
            let picture = Arc::new(picture);
            pictures.push(Arc::clone(&picture));
            world.send_whole(picture);
            world.exchange(&mut peer);
        }
        let video: Vec<Packet> = peer.of(VIDEO_SSRC).into_iter().cloned().collect();
        assert_continuous(&video.iter().collect::<Vec<_>>());
        let mut times: Vec<u32> = video.iter().map(|packet| packet.timestamp).collect();
        times.dedup();
        let wrapped: Vec<u32> = (0..10_i64)
            .map(|i| u32::try_from((i - BEFORE).rem_euclid(1 << 32) & 0xffff_ffff).unwrap())
            .map(|i| i.wrapping_mul(3000))
            .collect();
        assert_eq!(times[1..], wrapped, "{profile:?}");

        // Copies of packets on both sides of it.
        for picture in [&pictures[4], &pictures[5]] {
            let original = video
                .iter()
                .find(|packet| packet.payload == picture.payload(0).unwrap())
                .unwrap();
            let asked = resends(&video, &[original.sequence], offset, picture);
            peer.packets.clear();
            world.core.handle_resend(
                world.now,
                peer.id,
                MediaKind::Video,
                &asked,
                &mut world.outbox,
            );
            world.collect();
            world.exchange(&mut peer);
            let copy = peer.of(RTX_SSRC)[0];
            assert_eq!(copy.timestamp, original.timestamp);
            assert_eq!(copy.payload[2..], original.payload);
        }
    }
}

#[actix_rt::test]
async fn retransmissions_are_opened_across_the_rollover_of_their_sequence_number() {
    for profile in [GCM, CM] {
        let mut world = World::new();
        let mut peer = world.join(1, vec![profile]);
        world.connect(&mut peer);
        let picture = world.picture();
        world.send_whole(Arc::clone(&picture));
        world.exchange(&mut peer);
        let video: Vec<Packet> = peer.of(VIDEO_SSRC).into_iter().cloned().collect();
        let one = [video[0].sequence];
        let asked: Vec<Resend> = resends(&video, &one, 0, &picture).repeat(64);
        let (mut sent, mut newest) = (0, None::<u16>);
        // Twice around, from wherever it began.
        while sent < 140_000 {
            peer.packets.clear();
            let count = world.core.handle_resend(
                world.now,
                peer.id,
                MediaKind::Video,
                &asked,
                &mut world.outbox,
            );
            assert_eq!(count, 64);
            sent += count;
            world.collect();
            // Every packet is opened by rtc-srtp, which guesses the rollover for itself.
            world.exchange(&mut peer);
            let copies = peer.of(RTX_SSRC);
            assert_eq!(copies.len(), 64);
            assert_continuous(&copies);
            assert!(newest.is_none_or(|newest| copies[0].sequence == newest.wrapping_add(1)));
            newest = Some(copies[63].sequence);
            assert_eq!(copies[0].payload[2..], video[0].payload);
        }
    }
}
