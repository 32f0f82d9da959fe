//! Transport-wide feedback: which packets arrived when (draft-holmer-rmcat-transport-wide-cc-extensions-01 section 3.1).

use super::{Error, Fields};

/// Packets that one message may report on. Viewers send one every 50 to 250 ms, so this is over 300 Mbit/s; without a bound, twenty
/// bytes could make us walk 65,535 packets.
const PACKETS_MAX: u16 = 8192;
/// 64 ms, the unit of the reference time, in units of 250 µs.
const REFERENCE_TICKS: i64 = 256;

/// A transport-wide feedback message.
#[derive(Debug, Clone, Copy)]
pub struct TransportFeedback<'a> {
    /// First transport-wide sequence number reported on.
    pub base_sequence: u16,
    /// How many are reported on.
    pub packet_count: u16,
    /// Counts the messages, to see lost ones.
    pub feedback_count: u8,
    /// The base for arrival times, in units of 64 ms; 24 bits, signed, on the viewer's own clock. Wraps every 12 days.
    pub reference_time: i32,
    chunks: &'a [u8],
    deltas: &'a [u8],
}

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its transport-wide sequence number.
    pub sequence: u16,
    /// When it arrived, in units of 250 µs on the viewer's clock, counted as `reference_time` is; `None` if it did not.
    pub received: Option<i64>,
}

impl<'a> TransportFeedback<'a> {
    /// From what follows the SSRCs.
    pub(super) fn read(fields: &mut Fields<'a>) -> Result<Self, Error> {
        let base_sequence = fields.u16()?;
        let packet_count = fields.u16()?;
        let [a, b, c] = fields.take()?;
        let feedback_count = fields.u8()?;
        if packet_count > PACKETS_MAX {
            return Err(Error::Excessive(packet_count));
        }
        // The chunks end where they have told of every packet, and the deltas begin there.
        let chunks = fields.0;
        let mut told = 0_u16;
        while told < packet_count {
            told = told.saturating_add(Chunk::new(fields.u16()?).left);
        }
        Ok(Self {
            base_sequence,
            packet_count,
            feedback_count,
            // Shifted down again to carry the sign.
            reference_time: i32::from_be_bytes([a, b, c, 0]) >> 8,
            chunks,
            deltas: fields.0,
        })
    }

    /// One for each packet reported on, in sequence order. Ends early where the message is malformed.
    pub fn arrivals(&self) -> Arrivals<'a> {
        Arrivals {
            sequence: self.base_sequence,
            left: self.packet_count,
            time: i64::from(self.reference_time).saturating_mul(REFERENCE_TICKS),
            chunk: Chunk::new(0),
            chunks: Fields(self.chunks),
            deltas: Fields(self.deltas),
        }
    }
}

/// Iterator of [`TransportFeedback::arrivals`].
#[derive(Debug, Clone)]
pub struct Arrivals<'a> {
    sequence: u16,
    left: u16,
    time: i64,
    chunk: Chunk,
    chunks: Fields<'a>,
    deltas: Fields<'a>,
}

impl Iterator for Arrivals<'_> {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        self.left = self.left.checked_sub(1)?;
        let arrival = self.arrival();
        if arrival.is_none() {
            self.left = 0;
        }
        arrival
    }
}

impl Arrivals<'_> {
    fn arrival(&mut self) -> Option<Arrival> {
        let symbol = loop {
            match self.chunk.next() {
                Some(symbol) => break symbol,
                None => self.chunk = Chunk::new(self.chunks.u16().ok()?),
            }
        };
        let delta = match symbol {
            0 => None,
            1 => Some(i64::from(self.deltas.u8().ok()?)),
            2 => Some(i64::from(self.deltas.u16().ok()?.cast_signed())),
            _ => return None, // reserved
        };
        if let Some(delta) = delta {
            self.time = self.time.saturating_add(delta);
        }
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        Some(Arrival {
            sequence,
            received: delta.map(|_| self.time),
        })
    }
}

/// A packet status chunk, and how many of its symbols are left.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    word: u16,
    left: u16,
}

impl Chunk {
    /// An empty run is a chunk without symbols; the draft doesn't forbid it, and it costs its two bytes.
    const fn new(word: u16) -> Self {
        let left = match word >> 14 {
            0 | 1 => word & 0x1fff,
            2 => 14,
            _ => 7,
        };
        Self { word, left }
    }
}

impl Iterator for Chunk {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.left = self.left.checked_sub(1)?;
        Some(match self.word >> 14 {
            0 | 1 => self.word >> 13 & 0b11,
            2 => self.word >> self.left & 1,
            _ => self.word >> self.left.wrapping_mul(2) & 0b11,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Packet, packets};
    use super::*;

    /// A whole message of these chunks and deltas.
    fn message(base: u16, count: u16, reference: i32, chunks: &[u16], deltas: &[u8]) -> Vec<u8> {
        let mut out = vec![0x8f, 205, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9];
        out.extend(base.to_be_bytes());
        out.extend(count.to_be_bytes());
        out.extend(&reference.to_be_bytes()[1..]);
        out.push(77);
        out.extend(chunks.iter().flat_map(|chunk| chunk.to_be_bytes()));
        out.extend(deltas);
        out.resize(out.len().next_multiple_of(4), 0);
        let words = u16::try_from(out.len() / 4 - 1).expect("short");
        out[2..4].copy_from_slice(&words.to_be_bytes());
        out
    }

    fn arrivals(message: &[u8]) -> Result<Vec<(u16, Option<i64>)>, Error> {
        match packets(message).next() {
            Some(Ok(Packet::TransportFeedback(feedback))) => {
                assert_eq!(feedback.feedback_count, 77);
                Ok(feedback
                    .arrivals()
                    .map(|arrival| (arrival.sequence, arrival.received))
                    .collect())
            }
            Some(Err(error)) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_kind_of_chunk_is_read() {
        // Run of 2 small deltas; one-bit 1 0 1…; two-bit 2 0 1 …; the rest of the last is beyond the count.
        let chunks = [
            0x2002,
            0x8000 | 0b10_1000_0000_0000,
            0xc000 | 0b10_00_01_00_00_00_00,
        ];
        let deltas = [1, 2, 3, 4, 0xff, 0xfe, 5];
        let read = arrivals(&message(65_534, 19, -1, &chunks, &deltas)).expect("valid");
        let received: Vec<_> = read
            .iter()
            .filter_map(|(sequence, time)| time.map(|time| (*sequence, time + 256)))
            .collect();
        assert_eq!(
            received,
            [(65_534, 1), (65_535, 3), (0, 6), (2, 10), (14, 8), (16, 13)]
        );
        assert_eq!(read.len(), 19);
        assert_eq!(read.last().map(|(sequence, _)| *sequence), Some(16));
    }

    #[test]
    fn malformed_messages_end_early_or_are_refused() {
        let cut = arrivals(&message(0, 5, 0, &[0x2005], &[1, 2])).expect("header is whole");
        assert_eq!(cut.len(), 2, "as many as there are deltas");
        let reserved = arrivals(&message(0, 2, 0, &[0x6002], &[0; 4])).expect("header is whole");
        assert_eq!(reserved, []);
        assert_eq!(
            arrivals(&message(0, 9, 0, &[0x0001], &[])),
            Err(Error::Truncated)
        );
        assert_eq!(
            arrivals(&message(0, 9, 0, &[0; 2], &[])),
            Err(Error::Truncated)
        );
        assert_eq!(
            arrivals(&message(0, 8193, 0, &[0x1fff, 0x1fff], &[])),
            Err(Error::Excessive(8193))
        );
        let most = arrivals(&message(0, 8192, 0, &[0x1fff, 0x1fff], &[])).expect("allowed");
        assert_eq!(most.len(), 8192);
    }

    /// Packs as a plain encoder does: two-bit vectors, or runs where `runs` says so.
    fn encode(base: u16, reference: i32, statuses: &[Option<i16>], runs: bool) -> Vec<u8> {
        let symbol = |status: &Option<i16>| match status {
            None => 0_u16,
            Some(0..=255) => 1,
            Some(_) => 2,
        };
        let chunks: Vec<u16> = if runs {
            statuses
                .chunk_by(|a, b| symbol(a) == symbol(b))
                .map(|run| symbol(&run[0]) << 13 | u16::try_from(run.len()).expect("short"))
                .collect()
        } else {
            statuses
                .chunks(7)
                .map(|seven| {
                    (0..7).fold(0b11, |word, i| word << 2 | seven.get(i).map_or(0, symbol))
                })
                .collect()
        };
        let deltas: Vec<u8> = statuses
            .iter()
            .flatten()
            .flat_map(|delta| match u8::try_from(*delta) {
                Ok(small) => vec![small],
                Err(_) => delta.to_be_bytes().to_vec(),
            })
            .collect();
        let count = u16::try_from(statuses.len()).expect("short");
        message(base, count, reference, &chunks, &deltas)
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(base: u16, reference in -0x80_0000..0x80_0000_i32, statuses in proptest::collection::vec(proptest::option::of(prop_oneof![0..256_i16, any::<i16>()]), 0..200), runs: bool) {
            let read = arrivals(&encode(base, reference, &statuses, runs)).expect("valid");
            let mut time = i64::from(reference) * 256;
            let mut sequence = base;
            let expected: Vec<_> = statuses.iter().map(|status| {
                time += i64::from(status.unwrap_or(0));
                let arrival = (sequence, status.map(|_| time));
                sequence = sequence.wrapping_add(1);
                arrival
            }).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
