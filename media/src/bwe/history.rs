//! When which packet left, and what a feedback message says about them.

use std::time::Instant;

use smallvec::SmallVec;

use crate::rtp::rtcp::TransportFeedback;

/// Packets remembered (count, a power of two): 1.5 s at 6 Mbit/s, and feedback comes every 50 to 250 ms.
const PACKETS: usize = 1024;

/// Fewer packets than this tell little about the link (count), as do fewer bytes.
const TRAIN_PACKETS_MIN: u32 = 4;
const TRAIN_BYTES_MIN: u32 = 3000;

/// Trains taken from one feedback message (count). One of 100 ms holds three or four pictures.
const TRAINS_MAX: usize = 4;

/// The unit of times here: half of the 250 µs of transport-wide feedback.
const UNITS_PER_SECOND: u64 = 8000;

/// The packets sent to one viewer lately, by transport-wide sequence number. 8 KB.
#[derive(Debug)]
pub struct History {
    began: Instant,
    packets: Box<[Packet; PACKETS]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Packet {
    /// When it left, in units since `began`; wraps after six days.
    sent: u32,
    /// 0: none yet.
    bytes: u16,
    sequence: u16,
}

/// What one feedback message says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrivals {
    /// Packets that arrived (count).
    pub received: u32,
    /// Packets that did not (count); some of them may still be told of as arrived.
    pub lost: u32,
    /// Bytes that arrived, RTP headers included.
    pub bytes: u64,
    /// Arrival of the first and the last, in units of 250 µs on the viewer's clock.
    pub span: Option<(i64, i64)>,
    /// The least time that one of them was on its way, in units of 125 µs; the viewer's clock is another than ours, so only
    /// differences mean something.
    pub delay_min: Option<i64>,
    /// Packets that left together.
    pub trains: SmallVec<[Train; TRAINS_MAX]>,
}

/// Packets that left at the same time and arrived one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Train {
    /// Bytes that arrived after the first packet.
    pub bytes: u32,
    /// From the first packet's arrival to the last one's (microseconds).
    pub micros: u32,
}

impl History {
    /// Nothing has left yet.
    pub fn new(now: Instant) -> Self {
        Self {
            began: now,
            packets: Box::new([Packet::default(); PACKETS]),
        }
    }

    /// A packet leaves.
    pub fn handle_sent(&mut self, now: Instant, sequence: u16, bytes: usize) {
        let elapsed = now.saturating_duration_since(self.began).as_micros();
        let units = elapsed * u128::from(UNITS_PER_SECOND) / 1_000_000;
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        let sent = units as u32;
        self.packets[usize::from(sequence) % PACKETS] = Packet {
            sent,
            bytes: u16::try_from(bytes).unwrap_or(u16::MAX),
            sequence,
        };
    }

    /// What `feedback` says about the packets that are still remembered.
    pub fn arrivals(&self, feedback: &TransportFeedback<'_>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        let mut open: Option<OpenTrain> = None;
        for arrival in feedback.arrivals() {
            let Some(at) = arrival.received else {
                arrivals.lost += 1;
                continue;
            };
            arrivals.received += 1;
            arrivals.span = Some(arrivals.span.map_or((at, at), |(first, last): (i64, i64)| {
                (first.min(at), last.max(at))
            }));
            let packet = self.packets[usize::from(arrival.sequence) % PACKETS];
            if packet.sequence != arrival.sequence || packet.bytes == 0 {
                continue;
            }
            arrivals.bytes += u64::from(packet.bytes);
            let delay = at.saturating_mul(2).saturating_sub(packet.sent.into());
            arrivals.delay_min = Some(arrivals.delay_min.map_or(delay, |min: i64| min.min(delay)));
            match &mut open {
                Some(train) if train.sent == packet.sent => train.add(at, packet.bytes),
                _ => {
                    arrivals.end(open.take());
                    open = Some(OpenTrain::new(packet.sent, at));
                }
            }
        }
        arrivals.end(open);
        arrivals
    }
}

impl Arrivals {
    fn end(&mut self, train: Option<OpenTrain>) {
        let train = train.and_then(OpenTrain::end);
        if let Some(train) = train.filter(|_| self.trains.len() < TRAINS_MAX) {
            self.trains.push(train);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct OpenTrain {
    sent: u32,
    packets: u32,
    bytes: u32,
    first: i64,
    last: i64,
}

impl OpenTrain {
    const fn new(sent: u32, at: i64) -> Self {
        Self {
            sent,
            packets: 1,
            bytes: 0,
            first: at,
            last: at,
        }
    }

    fn add(&mut self, at: i64, bytes: u16) {
        self.packets += 1;
        self.bytes += u32::from(bytes);
        self.first = self.first.min(at);
        self.last = self.last.max(at);
    }

    fn end(self) -> Option<Train> {
        if self.packets < TRAIN_PACKETS_MIN || self.bytes < TRAIN_BYTES_MIN {
            return None;
        }
        let micros = self.last.saturating_sub(self.first).saturating_mul(250);
        Some(Train {
            bytes: self.bytes,
            micros: u32::try_from(micros).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rtp::rtcp::{self, Packet as Rtcp};
    use crate::testkit;

    /// A message about packets from `base` on: arrival in units of 250 µs after the one before, or lost.
    fn message(base: u16, deltas: &[Option<u8>]) -> Vec<u8> {
        let mut out = vec![0x8f, 205, 0, 0, 0, 0, 0, 1, 0, 0, 0, 9];
        out.extend(base.to_be_bytes());
        out.extend(u16::try_from(deltas.len()).unwrap().to_be_bytes());
        out.extend([0, 0, 1, 0]);
        for chunk in deltas.chunks(14) {
            let bits = chunk.iter().enumerate().fold(0, |bits, (i, delta)| {
                bits | u16::from(delta.is_some()) << (13 - i)
            });
            out.extend((0x8000 | bits).to_be_bytes());
        }
        out.extend(deltas.iter().flatten());
        out.resize(out.len().next_multiple_of(4), 0);
        let words = u16::try_from(out.len() / 4 - 1).unwrap();
        out[2..4].copy_from_slice(&words.to_be_bytes());
        out
    }

    fn arrivals(history: &History, message: &[u8]) -> Arrivals {
        match rtcp::packets(message).next() {
            Some(Ok(Rtcp::TransportFeedback(feedback))) => history.arrivals(&feedback),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn packets_that_left_together_are_a_train_also_across_the_wrap() {
        let now = testkit::start();
        let mut history = History::new(now);
        let base = 65_530_u16;
        for i in 0..12_u16 {
            // Six at 10 ms, six at 43 ms.
            let at = Duration::from_millis(if i < 6 { 10 } else { 43 });
            history.handle_sent(now + at, base.wrapping_add(i), 1200);
        }
        // 1200 B every 3.25 ms are 2.95 Mbit/s; one is lost.
        let mut deltas = [Some(13); 12];
        deltas[3] = None;
        let arrivals = arrivals(&history, &message(base, &deltas));
        assert_eq!(
            (arrivals.received, arrivals.lost, arrivals.bytes),
            (11, 1, 13_200)
        );
        // 64 ms of reference time, then 13 units for each arrival.
        assert_eq!(arrivals.span, Some((256 + 13, 256 + 13 * 11)));
        // The second six were faster: the first of them is the sixth to arrive.
        assert_eq!(arrivals.delay_min, Some(2 * (256 + 13 * 6) - 8 * 43));
        assert_eq!(
            arrivals.trains.to_vec(),
            [
                Train {
                    bytes: 4800,
                    micros: 4 * 3250
                },
                Train {
                    bytes: 6000,
                    micros: 5 * 3250
                }
            ]
        );
    }

    #[test]
    fn what_was_never_sent_or_is_forgotten_counts_but_measures_nothing() {
        let now = testkit::start();
        let mut history = History::new(now);
        history.handle_sent(now, 7, 1200);
        history.handle_sent(now, 7 + 1024, 1200);
        let arrivals = arrivals(&history, &message(7, &[Some(1), Some(1), None]));
        assert_eq!((arrivals.received, arrivals.lost), (2, 1));
        assert_eq!(
            (arrivals.bytes, arrivals.delay_min, arrivals.trains.len()),
            (0, None, 0)
        );
    }
}
