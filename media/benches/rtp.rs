//! What the edge pays per access unit and per packet: `cargo bench -p headwater-media --features testkit`.
//!
//! The shard's floor is 1.8 µs a packet (encryption and the kernel), so what is measured here has to stay in the tens of
//! nanoseconds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use headwater_media::codec::h264;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::rtp::header::{HEADER_BYTES_MAX, Layout, PacketFields, UnitFields};
use headwater_media::rtp::packetizer::H264Packetizer;
use headwater_media::rtp::ring::{Limits, PacketRing};
use headwater_media::rtp::rtcp;
use headwater_media::rtx::{Options, Retransmitter, Sent};
use headwater_media::sdp::{ExtensionIds, NegotiatedMedia};
use headwater_media::testkit::{self, Video, VideoOptions};
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::AccessUnit;

fn main() {
    divan::main();
}

const MAX_PAYLOAD: usize = 1100;

/// Ten seconds of 2.5 Mbit/s.
fn units() -> Vec<AccessUnit> {
    Video::new(VideoOptions::default(), 1).take(300).collect()
}

fn batches() -> Vec<Arc<PacketBatch>> {
    let mut packetizer = H264Packetizer::new(MAX_PAYLOAD);
    let configuration = testkit::h264_configuration();
    let batches = units().into_iter();
    batches
        .filter_map(|unit| packetizer.packetize(&unit, &configuration))
        .map(Arc::new)
        .collect()
}

/// One access unit of the publisher's into ours: all kept, so no copy.
#[divan::bench]
fn normalize(bencher: Bencher<'_, '_>) {
    let units = units();
    let mut next = units.iter().cycle();
    bencher
        .with_inputs(|| next.next().map(|unit| unit.payload.clone()))
        .bench_local_values(|payload| payload.map(|payload| h264::normalize(payload, 4)));
}

/// Ten seconds of access units into packets.
#[divan::bench]
fn packetize(bencher: Bencher<'_, '_>) {
    let units = units();
    let configuration = testkit::h264_configuration();
    let bytes: usize = units.iter().map(|unit| unit.payload.len()).sum();
    let packets: usize = batches().iter().map(|batch| batch.len()).sum();
    bencher
        .counter(BytesCount::new(bytes))
        .counter(ItemsCount::new(packets))
        .bench_local(|| {
            let mut packetizer = H264Packetizer::new(MAX_PAYLOAD);
            for unit in &units {
                black_box(packetizer.packetize(unit, &configuration));
            }
        });
}

/// Ten seconds of batches into a ring that keeps three.
#[divan::bench]
fn ring_push(bencher: Bencher<'_, '_>) {
    let (batches, start) = (batches(), testkit::start());
    bencher
        .counter(ItemsCount::new(batches.len()))
        .bench_local(|| {
            let mut ring = PacketRing::new(Limits::default());
            for batch in &batches {
                let at = start + batch.pts.since(MediaTime::ZERO);
                ring.push(at, Arc::clone(batch));
            }
            ring
        });
}

/// One packet from the ring.
#[divan::bench]
fn ring_get(bencher: Bencher<'_, '_>) {
    let mut ring = PacketRing::new(Limits {
        age: Duration::from_secs(10),
        ..Limits::default()
    });
    let start = testkit::start();
    for batch in batches() {
        ring.push(start, batch);
    }
    let (from, to) = (ring.oldest_index(), ring.next_index());
    let indices: Vec<u64> = (from.unwrap_or(0)..to.unwrap_or(0)).collect();
    let mut next = indices.iter().cycle();
    bencher.bench_local(|| {
        let index = next.next().copied().unwrap_or(0);
        ring.get(black_box(index))
            .map(|(batch, at)| batch.payload(at).map(<[u8]>::len))
    });
}

fn media() -> NegotiatedMedia {
    NegotiatedMedia {
        mid: "0".to_owned(),
        payload_type: 102,
        rtx_payload_type: Some(103),
        ssrc: 1,
        rtx_ssrc: 2,
        transport_cc: true,
        nack: true,
        extensions: ExtensionIds {
            transport_sequence: Some(3),
            capture_time: Some(9),
            playout_delay: Some(5),
            mid: Some(4),
        },
    }
}

const UNIT: UnitFields = UnitFields {
    timestamp: 90_000,
    capture_time: Some(WallTime::from_unix_micros(1_767_225_600_000_000)),
    playout_delay: Some((0, 100)),
    mid: true,
};

/// What a viewer costs for each access unit.
#[divan::bench]
fn header_template(bencher: Bencher<'_, '_>) {
    let layout = Layout::new(&media());
    bencher.bench_local(|| layout.template(black_box(&UNIT)));
}

/// What a viewer costs for each packet, without copying the payload.
#[divan::bench]
fn header_write(bencher: Bencher<'_, '_>) {
    let template = Layout::new(&media()).template(&UNIT);
    let mut packet = PacketFields::default();
    let mut out = [0; HEADER_BYTES_MAX];
    bencher.bench_local(|| {
        packet.sequence = packet.sequence.wrapping_add(1);
        packet.transport_sequence = packet.transport_sequence.wrapping_add(1);
        black_box(&template).write(black_box(&mut out), &packet)
    });
}

/// A feedback datagram on 20 packets, as Chromium sends one every 60 ms, read to the last arrival.
#[divan::bench]
fn transport_feedback(bencher: Bencher<'_, '_>) {
    let mut message = vec![
        0x8f, 205, 0, 10, 0, 0, 0, 1, 0, 0, 0, 9, 0, 1, 0, 20, 0, 0, 9, 1, 0x20, 20,
    ];
    message.resize(44, 3);
    bencher.bench_local(|| {
        let mut latest = 0;
        for packet in rtcp::packets(black_box(&message)).flatten() {
            if let rtcp::Packet::TransportFeedback(feedback) = packet {
                for arrival in feedback.arrivals() {
                    latest = latest.max(arrival.received.unwrap_or(0));
                }
            }
        }
        latest
    });
}

/// What retransmission costs for each access unit sent.
#[divan::bench]
fn retransmitter_sent(bencher: Bencher<'_, '_>) {
    let mut now = testkit::start();
    let mut retransmitter = Retransmitter::new(Options::default(), now);
    let mut next = 0;
    bencher.bench_local(|| {
        now += Duration::from_millis(33);
        let sent = Sent {
            first_sequence: next,
            packets: 9,
            track: headwater_media::id::TrackId::SOURCE_VIDEO,
            first_index: next,
            timestamp_offset: 0,
            keyframe: false,
            bytes: 9000,
        };
        next += 9;
        retransmitter.handle_sent(now, &sent);
    });
}
