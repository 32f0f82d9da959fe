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

/// Packets that left within this of the first are one group (units of 125 µs: 5 ms, draft-ietf-rmcat-gcc-02 section 5.2).
const GROUP_SPAN: u32 = 40;
/// Groups taken from one feedback message (count); what comes beyond them belongs to the last. Pictures and sound make eight in 100 ms.
const GROUPS_MAX: usize = 16;

/// A packet's size stands in the lower bits of its field, its probe cluster in the upper two.
const BYTES_MASK: u16 = 0x3fff;
const CLUSTER_SHIFT: u32 = 14;

/// The unit of times here: half of the 250 µs of transport-wide feedback.
const UNITS_PER_SECOND: u64 = 8000;

/// The packets sent to one viewer lately, by transport-wide sequence number. 8 KB.
#[derive(Debug)]
pub struct History {
    began: Instant,
    packets: Box<[Packet; PACKETS]>,
    /// What leaves now belongs to it.
    cluster: Option<Cluster>,
}

/// A number for the packets of one probe. There are three, used in turn: a probe is over long before its number comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster(u8);

impl Cluster {
    /// The first one.
    pub const FIRST: Self = Self(1);

    /// The one after it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 % 3 + 1)
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Packet {
    /// When it left, in units since `began`; wraps after six days.
    sent: u32,
    /// Its size, and its cluster in the upper bits. 0: none yet.
    tagged_bytes: u16,
    sequence: u16,
}

impl Packet {
    const fn bytes(self) -> u16 {
        self.tagged_bytes & BYTES_MASK
    }

    const fn cluster(self) -> Option<Cluster> {
        match self.tagged_bytes >> CLUSTER_SHIFT {
            1 => Some(Cluster(1)),
            2 => Some(Cluster(2)),
            3 => Some(Cluster(3)),
            _ => None,
        }
    }
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
    /// What arrived, by the time it left; allocated once a message.
    pub groups: Vec<Group>,
    /// Bytes that did not arrive, as far as the packets are remembered.
    pub lost_bytes: u64,
    /// What was part of a probe.
    pub probe: Option<Box<ProbeArrivals>>,
}

/// Packets that left within 5 ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// When the first left, in units of 125 µs.
    pub sent: u32,
    /// The least time that one of them was on its way, as [`Arrivals::delay_min`].
    pub delay: i64,
    /// Arrival of the last, in units of 250 µs.
    pub arrived: i64,
    /// Bytes that arrived.
    pub bytes: u32,
}

/// What a message says of a probe's packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeArrivals {
    /// Which.
    pub cluster: Cluster,
    /// Packets that arrived, and that did not (count).
    pub received: u32,
    /// See `received`.
    pub lost: u32,
    /// Bytes that arrived.
    pub bytes: u64,
    /// Bytes of the first to arrive.
    pub first_bytes: u32,
    /// Arrival of the first and the last, in units of 250 µs.
    pub arrived: (i64, i64),
    /// When the first and the last of them left, in units of 125 µs.
    pub sent: (u32, u32),
    /// Bytes that left at that last moment.
    pub last_bytes: u32,
    /// The message speaks of packets that left after the probe.
    pub over: bool,
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
            cluster: None,
        }
    }

    /// From now on what leaves belongs to a probe, or no longer does.
    pub const fn set_cluster(&mut self, cluster: Option<Cluster>) {
        self.cluster = cluster;
    }

    /// A packet leaves.
    pub fn handle_sent(&mut self, now: Instant, sequence: u16, bytes: usize) {
        let elapsed = now.saturating_duration_since(self.began).as_micros();
        let units = elapsed * u128::from(UNITS_PER_SECOND) / 1_000_000;
        #[expect(clippy::cast_possible_truncation, reason = "it wraps")]
        let sent = units as u32;
        self.packets[usize::from(sequence) % PACKETS] = Packet {
            sent,
            tagged_bytes: u16::try_from(bytes).unwrap_or(u16::MAX).min(BYTES_MASK)
                | self.cluster.map_or(0, |cluster| u16::from(cluster.0)) << CLUSTER_SHIFT,
            sequence,
        };
    }

    /// What `feedback` says about the packets that are still remembered.
    pub fn arrivals(&self, feedback: &TransportFeedback<'_>) -> Arrivals {
        let mut arrivals = Arrivals::default();
        let mut open: Option<OpenTrain> = None;
        for arrival in feedback.arrivals() {
            let packet = self.packets[usize::from(arrival.sequence) % PACKETS];
            let known = packet.sequence == arrival.sequence && packet.tagged_bytes != 0;
            let Some(at) = arrival.received else {
                arrivals.lost += 1;
                if known {
                    arrivals.lose(packet);
                }
                continue;
            };
            arrivals.received += 1;
            arrivals.span = Some(arrivals.span.map_or((at, at), |(first, last): (i64, i64)| {
                (first.min(at), last.max(at))
            }));
            if !known {
                continue;
            }
            arrivals.bytes += u64::from(packet.bytes());
            arrivals.measure(packet, at);
            let delay = at.saturating_mul(2).saturating_sub(packet.sent.into());
            arrivals.delay_min = Some(arrivals.delay_min.map_or(delay, |min: i64| min.min(delay)));
            arrivals.group(packet, at, delay);
            match &mut open {
                Some(train) if train.sent == packet.sent => train.add(at, packet.bytes()),
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
    fn lose(&mut self, packet: Packet) {
        self.lost_bytes += u64::from(packet.bytes());
        if let Some(cluster) = packet.cluster() {
            self.probe(cluster, packet).lost += 1;
        }
    }

    /// Adds a packet to what is known of its probe, if it has one.
    fn measure(&mut self, packet: Packet, at: i64) {
        let bytes = u32::from(packet.bytes());
        let Some(cluster) = packet.cluster() else {
            if let Some(probe) = &mut self.probe {
                probe.over |= is_after(packet.sent, probe.sent.1);
            }
            return;
        };
        let probe = self.probe(cluster, packet);
        if probe.received == 0 || at < probe.arrived.0 {
            probe.arrived.0 = at;
            probe.first_bytes = bytes;
        }
        if probe.received == 0 || at > probe.arrived.1 {
            probe.arrived.1 = at;
        }
        probe.received += 1;
        probe.bytes += u64::from(bytes);
        if packet.sent == probe.sent.1 {
            probe.last_bytes += bytes;
        } else if is_after(packet.sent, probe.sent.1) {
            probe.sent.1 = packet.sent;
            probe.last_bytes = bytes;
        }
    }

    /// What is known of a probe, before `packet` is counted. A message speaks of one: the newest.
    fn probe(&mut self, cluster: Cluster, packet: Packet) -> &mut ProbeArrivals {
        let fresh = ProbeArrivals {
            cluster,
            received: 0,
            lost: 0,
            bytes: 0,
            first_bytes: 0,
            arrived: (0, 0),
            sent: (packet.sent, packet.sent),
            last_bytes: 0,
            over: false,
        };
        let probe = self.probe.get_or_insert_with(|| Box::new(fresh));
        if probe.cluster != cluster {
            **probe = fresh;
        }
        probe
    }

    fn group(&mut self, packet: Packet, at: i64, delay: i64) {
        let full = self.groups.len() >= GROUPS_MAX;
        let bytes = u32::from(packet.bytes());
        match self.groups.last_mut() {
            Some(group) if full || !is_after(packet.sent, group.sent.wrapping_add(GROUP_SPAN)) => {
                group.delay = group.delay.min(delay);
                group.arrived = group.arrived.max(at);
                group.bytes = group.bytes.saturating_add(bytes);
            }
            _ => {
                if self.groups.is_empty() {
                    self.groups.reserve_exact(GROUPS_MAX);
                }
                self.groups.push(Group {
                    sent: packet.sent,
                    delay,
                    arrived: at,
                    bytes,
                });
            }
        }
    }

    fn end(&mut self, train: Option<OpenTrain>) {
        let train = train.and_then(OpenTrain::end);
        if let Some(train) = train.filter(|_| self.trains.len() < TRAINS_MAX) {
            self.trains.push(train);
        }
    }
}

/// `a` comes after `b`, across the wrap.
const fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < 1 << 31
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
    fn a_probe_is_told_apart_from_what_left_before_and_after() {
        let now = testkit::start();
        let mut history = History::new(now);
        let cluster = Cluster::FIRST.next();
        for i in 0..12_u16 {
            history.set_cluster((3..9).contains(&i).then_some(cluster));
            let at = Duration::from_millis(5 * u64::from(i / 2));
            history.handle_sent(now + at, i, 1000 + usize::from(i));
        }
        let mut deltas = [Some(4); 12];
        deltas[6] = None;
        let arrivals = arrivals(&history, &message(0, &deltas));
        let probe = arrivals.probe.expect("one");
        assert_eq!((probe.cluster, probe.received, probe.lost), (cluster, 5, 1));
        assert_eq!(probe.bytes, 1003 + 1004 + 1005 + 1007 + 1008);
        assert_eq!((probe.first_bytes, probe.last_bytes), (1003, 1008));
        assert_eq!(probe.arrived, (256 + 16, 256 + 32));
        assert_eq!(probe.sent, (8 * 5, 8 * 20));
        assert!(probe.over);
        assert_eq!(arrivals.lost_bytes, 1006);
        // Each 5 ms two of them left, and two such pairs are a group.
        let groups: Vec<_> = arrivals.groups.iter().map(|group| group.sent).collect();
        assert_eq!(groups, [0, 8 * 10, 8 * 20]);
        let bytes: u64 = arrivals
            .groups
            .iter()
            .map(|group| u64::from(group.bytes))
            .sum();
        assert_eq!(bytes, arrivals.bytes);
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
