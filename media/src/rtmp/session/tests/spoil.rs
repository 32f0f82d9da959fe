//! Connections that behaved once, spoiled from a seed: whatever comes, the session ends or goes on, and never panics.

use super::*;

/// The seed of a mutated connection, so that a failing one can be repeated alone.
#[derive(Debug, Clone, Copy)]
struct Seed(u64);

impl Seed {
    /// xorshift64*: quick, and good enough to pick bytes.
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        (value as usize) % below.max(1)
    }
}

/// Connections that behave, to be spoiled: OBS's, and one with interleaving, aggregates, extended times, in-band parameter sets and
/// tracks of Enhanced RTMP.
fn corpus() -> Vec<Vec<Vec<u8>>> {
    let mut second = vec![handshake(), connect(&[]), create_stream(), publish("demo")];
    let big = 0x0100_0000;
    second.push(message(4, 9, 1, big, &video_configuration(AVCC)));
    second.push(message(5, 8, 1, big, &[&[0xAF, 0], ASC].concat()));
    let mut in_band = vec![0x17, 1, 0, 0, 0, 0, 0, 0, 24];
    in_band.extend_from_slice(&AVCC[8..32]);
    in_band.extend_from_slice(&[0, 0, 0, 5]);
    in_band.extend_from_slice(&AVCC[35..40]);
    in_band.extend_from_slice(&[0, 0, 0, 3, 0x65, 1, 2]);
    second.push(message(4, 9, 1, big + 40, &in_band));
    second.push(message(6, 9, 1, big + 80, &picture(false, -40, 700)));
    let mut file = bytes::BytesMut::new();
    use crate::flv::writer;
    writer::aac_frame(&mut file, 7, &[1, 2]).expect("short");
    writer::h264_unit(&mut file, 9, 40, false, &[0, 0, 0, 2, 0x41, 9]).expect("short");
    second.push(message(4, 22, 1, big + 90, &file));
    second.push(message(2, 2, 0, 0, &4u32.to_be_bytes()));
    second.push(message(5, 8, 1, big + 120, &[0x2F, 0xFF, 0xFB]));
    second.push(message(4, 9, 1, big + 120, &[0x90, b'h', b'v', b'c', b'1']));
    // Tracks of Enhanced RTMP: one, many, many of several codecs, behind a modifier, ended.
    let tracks = |head: &[u8], sized: bool, packets: &[(&[u8], &[u8])]| {
        let mut body = head.to_vec();
        for (name, packet) in packets {
            body.extend_from_slice(name);
            let length = (packet.len() as u32).to_be_bytes();
            body.extend_from_slice(if sized { &length[1..] } else { &[] });
            body.extend_from_slice(packet);
        }
        body
    };
    let slice = [0, 0, 0, 3, 0x65, 1, 2];
    for body in [
        tracks(b"\x96\x00avc1", false, &[(b"\x01", AVCC)]),
        tracks(b"\x96\x13avc1", true, &[(b"\0", &slice), (b"\x01", &slice)]),
        tracks(
            b"\x96\x23",
            true,
            &[(b"hvc1\x02", &slice), (b"avc1\x01", &slice)],
        ),
        tracks(b"\x97\x02\0\0\x01\x06\x03avc1", false, &[(b"\x01", &slice)]),
        tracks(b"\x96\x12avc1", true, &[(b"\x01", &[])]),
    ] {
        second.push(message(4, 9, 1, big + 130, &body));
    }
    let sound = [
        &[0x95, 0x10][..],
        b"mp4a\0\0\0\x02",
        ASC,
        b"\x01\0\0\x02",
        ASC,
    ]
    .concat();
    second.push(message(5, 8, 1, big + 130, &sound));
    second.push(message(
        4,
        18,
        1,
        0,
        &amf(&["onMetaData".into(), Value::Array(vec![1.0.into()])]),
    ));
    vec![obs(), second]
}

/// Runs one spoiled connection; returns whether it ended in a fault.
fn spoiled(corpus: &[Vec<Vec<u8>>], seed: u64) -> bool {
    let mut random = Seed(seed | 1);
    let mut parts = corpus[random.next(corpus.len())].clone();
    for _ in 0..=random.next(6) {
        let at = random.next(parts.len());
        let other = parts[random.next(parts.len())].clone();
        let part = &mut parts[at];
        let place = random.next(part.len());
        match random.next(8) {
            0 => part[place] ^= 1 << random.next(8),
            1 => part[place] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF][random.next(6)],
            2 => part.truncate(place),
            3 => {
                let stretch = random.next(200);
                let byte = random.next(256) as u8;
                part.splice(place..place, std::iter::repeat_n(byte, stretch));
            }
            4 => {
                part.splice(place.., other);
            }
            5 => parts.insert(at, other),
            6 => {
                parts.remove(at);
            }
            _ => {
                for byte in part.iter_mut().skip(place).take(8) {
                    *byte = random.next(256) as u8;
                }
            }
        }
        if parts.is_empty() || parts.iter().any(Vec::is_empty) {
            return false;
        }
    }
    let bytes = parts.concat();
    let mut server = Server::new();
    let mut from = 0;
    while from < bytes.len() {
        let to = (from + 1 + random.next(2000)).min(bytes.len());
        if server.feed(&bytes[from..to]).is_err() {
            return true;
        }
        for event in server.events.drain(..) {
            if matches!(event, Event::Publish(_)) {
                server.session.accept_publish().expect("room");
            }
        }
        from = to;
    }
    false
}

/// A bounded run in every `make test`; `HEADWATER_FUZZ_SECONDS=60` runs that long, and says how far it came.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "this test is bounded by real time on demand"
)]
#[expect(clippy::print_stdout, reason = "the count is what the run is for")]
fn spoiled_connections_never_panic() {
    let seconds = std::env::var("HEADWATER_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let corpus = corpus();
    let begin = Instant::now();
    let (mut runs, mut faults) = (0u64, 0u64);
    let base: u64 = 0x9E37_79B9_7F4A_7C15;
    loop {
        let enough = match seconds {
            Some(seconds) => begin.elapsed() >= Duration::from_secs(seconds),
            None => runs >= 20_000,
        };
        if enough {
            break;
        }
        let seed = base.wrapping_mul(runs + 1);
        let result = std::panic::catch_unwind(|| spoiled(&corpus, seed));
        match result {
            Ok(fault) => faults += u64::from(fault),
            Err(_) => panic!("seed {seed:#x} panics"),
        }
        runs += 1;
    }
    println!("{runs} spoiled connections, {faults} ended in a fault");
    assert!(faults > runs / 20, "{faults} of {runs}");
}
