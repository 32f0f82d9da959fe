//! What a viewer tells the server: receiver reports (RFC 3550 section 6.4.2) and transport-wide feedback.

use std::time::Duration;

use headwater_media::rtp::sequence::Unwrapper;

use super::reception::Reception;

/// The unit of arrival times in transport-wide feedback, and that of its reference time, which is 256 of them
/// (draft-holmer-rmcat-transport-wide-cc-extensions-01 section 3.1).
const TICK: Duration = Duration::from_micros(250);
const REFERENCE_TICKS: u64 = 256;

/// Packets that one message reports on at most (count); at 100 ms it is 30 or so.
const REPORTED_MAX: usize = 1000;

/// Writes a receiver report on these streams; `told` has what the last one said of each.
pub(crate) fn receiver_report(
    own_ssrc: u32,
    streams: [&Option<Reception>; 2],
    told: &mut [(u64, u64); 2],
    out: &mut Vec<u8>,
) {
    out.clear();
    let count = streams.iter().filter(|stream| stream.is_some()).count();
    let header = 0x80 | u8::try_from(count).unwrap_or(0);
    let words = u16::try_from(1 + 6 * count).unwrap_or(0);
    out.extend_from_slice(&[header, 201]);
    out.extend_from_slice(&words.to_be_bytes());
    out.extend_from_slice(&own_ssrc.to_be_bytes());
    for (stream, told) in streams.into_iter().zip(told) {
        let Some(stream) = stream else {
            continue;
        };
        let counts = stream.counts;
        let lost = counts.expected.saturating_sub(counts.packets);
        let expected_now = counts.expected - told.0;
        let lost_now = lost.saturating_sub(told.1);
        *told = (counts.expected, lost);
        let fraction = (lost_now * 256 / expected_now.max(1)).min(255);
        out.extend_from_slice(&stream.ssrc.to_be_bytes());
        let losses = u32::try_from(fraction << 24 | lost.min(0x7f_ffff)).unwrap_or(u32::MAX);
        out.extend_from_slice(&losses.to_be_bytes());
        // The unwrapped number began one cycle up.
        let newest = stream.newest.saturating_sub(1 << 16) & u64::from(u32::MAX);
        out.extend_from_slice(&u32::try_from(newest).unwrap_or(0).to_be_bytes());
        // Jitter, LSR and DLSR: nobody measures the round trip of loopback.
        out.extend_from_slice(&[0; 12]);
    }
}

/// Notes when numbered packets came, and writes it down.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    unwrapper: Unwrapper,
    /// Unwrapped number and arrival in ticks, since the last message.
    arrived: Vec<(u64, u64)>,
    /// The first number that was not reported on yet.
    next: Option<u64>,
    messages: u8,
}

impl Recorder {
    /// A packet with this transport-wide number came (`at` since the Unix epoch).
    pub(crate) fn handle_packet(&mut self, number: u16, at: Duration) {
        let number = self.unwrapper.unwrap(number);
        let next = *self.next.get_or_insert(number);
        // What was told as lost stays so: on loopback nothing overtakes.
        if number >= next && self.arrived.len() < REPORTED_MAX {
            let ticks = at.as_micros() / TICK.as_micros();
            self.arrived
                .push((number, u64::try_from(ticks).unwrap_or(u64::MAX)));
        }
    }

    /// Writes what came since the last message. False if nothing did.
    pub(crate) fn write(&mut self, own_ssrc: u32, media_ssrc: u32, out: &mut Vec<u8>) -> bool {
        out.clear();
        self.arrived.sort_unstable();
        self.arrived.dedup_by_key(|(number, _)| *number);
        let (Some(base), Some(&(_, first)), Some(&(newest, _))) =
            (self.next, self.arrived.first(), self.arrived.last())
        else {
            return false;
        };
        let reference = first / REFERENCE_TICKS;
        let count = newest + 1 - base;
        let Ok(count16) = u16::try_from(count) else {
            // A hole of 65,536 packets: begin anew behind it.
            self.arrived.clear();
            self.next = Some(newest + 1);
            return false;
        };
        let low = |value: u64| {
            let [.., a, b, c] = value.to_be_bytes();
            [a, b, c]
        };
        out.extend_from_slice(&[0x8f, 205, 0, 0]);
        out.extend_from_slice(&own_ssrc.to_be_bytes());
        out.extend_from_slice(&media_ssrc.to_be_bytes());
        out.extend_from_slice(&low(base)[1..]);
        out.extend_from_slice(&count16.to_be_bytes());
        out.extend_from_slice(&low(reference));
        out.push(self.messages);
        self.messages = self.messages.wrapping_add(1);

        let mut deltas = Vec::with_capacity(2 * self.arrived.len());
        let mut symbols = Vec::with_capacity(usize::from(count16));
        let mut time = reference * REFERENCE_TICKS;
        let mut arrived = self.arrived.iter().peekable();
        for number in base..=newest {
            let Some((_, at)) = arrived.next_if(|(arrived, _)| *arrived == number) else {
                symbols.push(0);
                continue;
            };
            let delta = at.wrapping_sub(time).cast_signed();
            if let Ok(small) = u8::try_from(delta) {
                symbols.push(1);
                deltas.push(small);
                time = *at;
            } else {
                let large = delta.clamp(i16::MIN.into(), i16::MAX.into());
                symbols.push(2);
                deltas.extend_from_slice(&i16::try_from(large).unwrap_or(0).to_be_bytes());
                time = time.wrapping_add_signed(large);
            }
        }
        write_chunks(&symbols, out);
        out.extend_from_slice(&deltas);
        out.resize(out.len().next_multiple_of(4), 0);
        let words = u16::try_from(out.len() / 4 - 1).unwrap_or(0);
        out[2..4].copy_from_slice(&words.to_be_bytes());
        self.arrived.clear();
        self.next = Some(newest + 1);
        true
    }
}

/// Packet status chunks: a run where one is longer than a vector, else seven two-bit symbols.
fn write_chunks(mut symbols: &[u16], out: &mut Vec<u8>) {
    while let Some(&first) = symbols.first() {
        let run = symbols
            .iter()
            .take_while(|symbol| **symbol == first)
            .count();
        let (chunk, told) = if run >= 7 || run == symbols.len() {
            let run = run.min(0x1fff);
            (first << 13 | u16::try_from(run).unwrap_or(0), run)
        } else {
            let vector = (0..7).fold(0b11, |chunk, i| {
                chunk << 2 | symbols.get(i).copied().unwrap_or(0)
            });
            (vector, symbols.len().min(7))
        };
        out.extend_from_slice(&chunk.to_be_bytes());
        symbols = &symbols[told..];
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::rtp::rtcp::{Packet, packets};

    use super::*;
    use crate::load::reception::Header;

    /// What the edge reads of a message: number and arrival in ticks.
    fn read(message: &[u8]) -> Vec<(u16, Option<i64>)> {
        let Some(Ok(Packet::TransportFeedback(feedback))) = packets(message).next() else {
            panic!("no transport-wide feedback");
        };
        feedback
            .arrivals()
            .map(|arrival| (arrival.sequence, arrival.received))
            .collect()
    }

    #[test]
    fn the_edge_reads_what_is_written() {
        let mut recorder = Recorder::default();
        let mut out = Vec::new();
        assert!(!recorder.write(1, 2, &mut out));
        let start = Duration::from_secs(1_000_000);
        let ticks = |ticks: u32| start + TICK * ticks;
        // Around the wrap: a run, a hole, a long pause, one that overtook.
        let sent: Vec<(u16, u32)> = (0..20_u16)
            .map(|i| (65_530_u16.wrapping_add(i), u32::from(i) * 3))
            .filter(|(number, _)| *number != 4)
            .chain([(15, 5000), (14, 5001)])
            .collect();
        for (number, at) in &sent {
            recorder.handle_packet(*number, ticks(*at));
        }
        assert!(recorder.write(1, 2, &mut out));
        let arrivals = read(&out);
        assert_eq!(arrivals.len(), 22);
        assert_eq!(arrivals[10], (4, None));
        let base = arrivals[0].1.expect("arrived");
        for (number, at) in sent {
            let (_, received) = arrivals.iter().find(|(n, _)| *n == number).unwrap();
            assert_eq!(*received, Some(base + i64::from(at)), "{number}");
        }

        // The next message goes on where this one ended, a loss at the seam included.
        recorder.handle_packet(17, ticks(6000));
        assert!(recorder.write(1, 2, &mut out));
        let arrivals = read(&out);
        assert_eq!((arrivals[0], arrivals[1].0), ((16, None), 17));
    }

    #[test]
    fn reports_count_what_is_lost_since_the_last() {
        let mut stream = Some(Reception::new(7));
        let mut told = [(0, 0); 2];
        let mut out = Vec::new();
        let mut report = |sequences: &[u16]| {
            for sequence in sequences {
                let packet = [0x80, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
                let mut header = Header::parse(&packet, None).unwrap();
                header.sequence = *sequence;
                stream.as_mut().unwrap().handle_packet(&header, 1);
            }
            receiver_report(1, [&None, &stream], &mut told, &mut out);
            let Some(Ok(Packet::ReceiverReport { ssrc: 1, reports })) = packets(&out).next() else {
                panic!("no receiver report");
            };
            let report = reports.into_iter().next().unwrap();
            (report.ssrc, report.fraction_lost, report.cumulative_lost)
        };
        assert_eq!(report(&[10, 11, 13, 14]), (7, 51, 1));
        assert_eq!(report(&[15, 16]), (7, 0, 1));
    }
}
