//! Which packets to send again: NACKs in, decisions out (RFC 4585 section 6.2.1, RFC 4588).
//!
//! One [`Retransmitter`] for each SSRC of a viewer. It keeps no packets: a short list of segments maps the viewer's sequence numbers to
//! (track, ring index), and the packets are in the [`crate::rtp::ring::PacketRing`] that all viewers of a shard share. At most 7 KB a viewer, 3 of
//! them only once there was a loss.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::id::TrackId;
use crate::rtp::sequence::extend_u16;

/// Runs of packets that map to the ring with one offset each. A new one begins at each switch, skip or dropped access unit; 64 cover the
/// last second even when every second picture of 60 a second is dropped.
const SEGMENTS_MAX: usize = 64;
/// How exactly it is known when a packet left.
const MARK_EVERY: Duration = Duration::from_millis(20);
/// Covers 5 s, more than anyone would wait for a retransmission.
const MARKS_MAX: usize = 256;
/// Packets whose last copy is remembered. Two that share a place make each other forgotten, which costs at most a copy too many.
const COPIES: usize = 256;
/// Sequence numbers looked at in one NACK; more than a second's worth at 10 Mbit/s.
const LOST_MAX: usize = 1024;
/// Until the first report. Chromium's assumption too.
const RTT_ASSUMED: Duration = Duration::from_millis(100);
/// Viewers look for holes every 20 ms at most, so two requests closer than this are one loss.
const RTT_MIN: Duration = Duration::from_millis(10);

/// Bounds of retransmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A packet that left longer ago than this, when its copy arrives, comes too late to be shown. At most 5 s.
    pub latest_useful: Duration,
    /// Bytes of retransmission earned by each 100 bytes sent: what the worst loss rate is that we repair for long.
    pub share_percent: u32,
    /// Bytes that may be saved up: what is repaired at once after a short blackout.
    pub burst_bytes: u32,
}

impl Default for Options {
    /// 128 KiB are a third of a second at 3 Mbit/s, or one large keyframe; 30 % repair 20 % loss, copies included.
    fn default() -> Self {
        Self {
            latest_useful: Duration::from_secs(1),
            share_percent: 30,
            burst_bytes: 128 << 10,
        }
    }
}

/// A run of packets that left for the viewer for the first time: consecutive sequence numbers, consecutive ring indices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The viewer's sequence number of the first, extended to 64 bits by the sender: its low 16 bits were on the wire.
    pub first_sequence: u64,
    /// How many.
    pub packets: u32,
    /// The track they came from.
    pub track: TrackId,
    /// The first's index in that track's ring.
    pub first_index: u64,
    /// What was added to [`crate::rtp::batch::PacketBatch::rtp_time`], modulo 2^32, to make the RTP timestamp.
    pub timestamp_offset: u32,
    /// They begin an access unit at which a decoder can start.
    pub keyframe: bool,
    /// Bytes of payload, together.
    pub bytes: u32,
}

/// A packet to send again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    /// The viewer's sequence number of the original: the OSN is its low 16 bits.
    pub sequence: u64,
    /// Where to find it.
    pub track: TrackId,
    /// Where to find it.
    pub index: u64,
    /// Added to the batch's `rtp_time` gives the original's RTP timestamp, which the copy repeats (RFC 4588 section 4).
    pub timestamp_offset: u32,
}

/// What came of NACKs so far, in packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Asked for.
    pub asked: u64,
    /// Sent again.
    pub sent: u64,
    /// Not sent, because a copy left less than a round trip ago.
    pub suppressed: u64,
    /// Not sent, because the token bucket was empty.
    pub over_budget: u64,
    /// Not sent, because they would come too late.
    pub too_late: u64,
    /// Not sent, because the ring no longer has them.
    pub out_of_ring: u64,
    /// Not sent, because we know no such packet.
    pub unknown: u64,
}

/// The viewer misses packets that can't be sent again, since the last keyframe: its decoder is stuck until the next. Answered like a
/// PLI, and rate-limited like one; it is said again with each NACK until a keyframe was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyframeWanted;

/// See the module.
#[derive(Debug)]
pub struct Retransmitter {
    options: Options,
    started: Instant,
    segments: VecDeque<Segment>,
    marks: VecDeque<Mark>,
    /// Sequence number that the next packet will have.
    next_sequence: u64,
    /// Sequence number of the newest keyframe's first packet.
    keyframe: u64,
    budget_bytes: u64,
    copies: Option<Box<[Option<LastCopy>; COPIES]>>,
    counters: Counters,
}

/// Packets with consecutive sequence numbers that map to the ring with one offset.
#[derive(Debug, Clone, Copy)]
struct Segment {
    first_sequence: u64,
    packets: u64,
    track: TrackId,
    first_index: u64,
    timestamp_offset: u32,
}

/// When the packets from `first_sequence` up to the next mark's left; up to [`MARK_EVERY`] later in truth.
#[derive(Debug, Clone, Copy)]
struct Mark {
    first_sequence: u64,
    at: Instant,
}

/// Of a packet, when it was last sent again. Both wrap, after weeks; what is compared with them is seconds old at most.
#[derive(Debug, Clone, Copy)]
struct LastCopy {
    /// Low 32 bits.
    sequence: u32,
    /// Milliseconds since `started`.
    at_millis: u32,
}

impl Segment {
    const fn end(&self) -> u64 {
        self.first_sequence.saturating_add(self.packets)
    }

    /// Whether `sent` goes on where this ends.
    fn continues_with(&self, sent: &Sent) -> bool {
        self.end() == sent.first_sequence
            && self.track == sent.track
            && self.first_index.saturating_add(self.packets) == sent.first_index
            && self.timestamp_offset == sent.timestamp_offset
    }
}

impl Retransmitter {
    /// With an empty history and a full token bucket.
    pub fn new(options: Options, now: Instant) -> Self {
        Self {
            options,
            started: now,
            segments: VecDeque::new(),
            marks: VecDeque::new(),
            next_sequence: 0,
            keyframe: 0,
            budget_bytes: options.burst_bytes.into(),
            copies: None,
            counters: Counters::default(),
        }
    }

    /// Notes packets that left. Their sequence numbers follow those noted before; numbers in between (padding) belong to no packet.
    pub fn handle_sent(&mut self, now: Instant, sent: &Sent) {
        debug_assert!(sent.first_sequence >= self.next_sequence, "{sent:?}");
        let packets = u64::from(sent.packets);
        self.next_sequence = sent.first_sequence.saturating_add(packets);
        if sent.keyframe {
            self.keyframe = sent.first_sequence;
        }
        let earned = u64::from(sent.bytes) * u64::from(self.options.share_percent) / 100;
        self.budget_bytes = (self.budget_bytes + earned).min(self.options.burst_bytes.into());

        self.mark(now, sent.first_sequence);
        match self.segments.back_mut() {
            Some(newest) if newest.continues_with(sent) => newest.packets += packets,
            _ => self.segments.push_back(Segment {
                first_sequence: sent.first_sequence,
                packets,
                track: sent.track,
                first_index: sent.first_index,
                timestamp_offset: sent.timestamp_offset,
            }),
        }
        // What left before the oldest mark is too old anyway.
        let oldest = self.marks.front().map_or(0, |mark| mark.first_sequence);
        while self.segments.len() > SEGMENTS_MAX
            || self
                .segments
                .front()
                .is_some_and(|segment| segment.end() <= oldest)
        {
            self.segments.pop_front();
        }
    }

    /// Answers a NACK. `size` says how many payload bytes a packet has, `None` when the ring no longer has it. What is to be sent again is
    /// appended to `out`, in the order asked.
    pub fn handle_nack(
        &mut self,
        now: Instant,
        lost: impl IntoIterator<Item = u16>,
        rtt: Option<Duration>,
        mut size: impl FnMut(TrackId, u64) -> Option<usize>,
        out: &mut Vec<Resend>,
    ) -> Option<KeyframeWanted> {
        let rtt = rtt.unwrap_or(RTT_ASSUMED).max(RTT_MIN);
        let mut stuck = false;
        for wire in lost.into_iter().take(LOST_MAX) {
            self.counters.asked += 1;
            let sequence = extend_u16(self.next_sequence.saturating_sub(1), wire);
            match self.decide(now, sequence, rtt, &mut size) {
                Decision::Resend(resend) => {
                    self.counters.sent += 1;
                    out.push(resend);
                }
                Decision::Suppressed => self.counters.suppressed += 1,
                Decision::OverBudget => self.counters.over_budget += 1,
                Decision::Unknown => self.counters.unknown += 1,
                Decision::TooLate => {
                    self.counters.too_late += 1;
                    stuck |= sequence >= self.keyframe;
                }
                Decision::OutOfRing => {
                    self.counters.out_of_ring += 1;
                    stuck |= sequence >= self.keyframe;
                }
            }
        }
        stuck.then_some(KeyframeWanted)
    }

    /// What came of NACKs so far.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    fn decide(
        &mut self,
        now: Instant,
        sequence: u64,
        rtt: Duration,
        size: &mut impl FnMut(TrackId, u64) -> Option<usize>,
    ) -> Decision {
        if sequence >= self.next_sequence {
            return Decision::Unknown;
        }
        // The copy arrives half a round trip from now.
        let arrives = now + rtt / 2;
        let in_time = self.left_at(sequence).is_some_and(|left| {
            arrives.saturating_duration_since(left) <= self.options.latest_useful
        });
        if !in_time {
            return Decision::TooLate;
        }
        let Some(resend) = self.locate(sequence) else {
            return Decision::Unknown;
        };
        let copy = LastCopy {
            sequence: low_half(sequence),
            at_millis: self.millis(now),
        };
        if self
            .since_last_copy(copy)
            .is_some_and(|elapsed| elapsed < rtt)
        {
            return Decision::Suppressed;
        }
        let Some(bytes) = size(resend.track, resend.index) else {
            return Decision::OutOfRing;
        };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let Some(rest) = self.budget_bytes.checked_sub(bytes) else {
            return Decision::OverBudget;
        };
        self.budget_bytes = rest;
        self.remember(copy);
        Decision::Resend(resend)
    }

    fn mark(&mut self, now: Instant, first_sequence: u64) {
        let due = self
            .marks
            .back()
            .is_none_or(|newest| now.saturating_duration_since(newest.at) >= MARK_EVERY);
        if due {
            self.marks.push_back(Mark {
                first_sequence,
                at: now,
            });
        }
        while self.marks.len() > MARKS_MAX
            || self.marks.front().is_some_and(|oldest| {
                now.saturating_duration_since(oldest.at) > self.options.latest_useful
            })
        {
            self.marks.pop_front();
        }
    }

    /// When the packet left, `None` if that is longer ago than we remember.
    fn left_at(&self, sequence: u64) -> Option<Instant> {
        let after = self
            .marks
            .partition_point(|mark| mark.first_sequence <= sequence);
        self.marks.get(after.checked_sub(1)?).map(|mark| mark.at)
    }

    fn locate(&self, sequence: u64) -> Option<Resend> {
        let after = self
            .segments
            .partition_point(|segment| segment.first_sequence <= sequence);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let place = sequence - segment.first_sequence;
        (place < segment.packets).then_some(Resend {
            sequence,
            track: segment.track,
            index: segment.first_index.saturating_add(place),
            timestamp_offset: segment.timestamp_offset,
        })
    }

    fn millis(&self, now: Instant) -> u32 {
        let millis = now.saturating_duration_since(self.started).as_millis();
        low_half(u64::try_from(millis).unwrap_or(0))
    }

    /// How long before `copy` the same packet was last sent again.
    fn since_last_copy(&self, copy: LastCopy) -> Option<Duration> {
        let last = self.copies.as_ref()?.get(place(copy)).copied()??;
        let elapsed = copy.at_millis.wrapping_sub(last.at_millis);
        (last.sequence == copy.sequence).then(|| Duration::from_millis(elapsed.into()))
    }

    fn remember(&mut self, copy: LastCopy) {
        let copies = self.copies.get_or_insert_with(|| Box::new([None; COPIES]));
        if let Some(last) = copies.get_mut(place(copy)) {
            *last = Some(copy);
        }
    }
}

/// Where a copy is remembered.
fn place(copy: LastCopy) -> usize {
    usize::try_from(copy.sequence).unwrap_or(0) % COPIES
}

fn low_half(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// What to do about one packet.
enum Decision {
    Resend(Resend),
    Suppressed,
    OverBudget,
    TooLate,
    OutOfRing,
    Unknown,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit::{self, Rng};

    const RTT: Option<Duration> = Some(Duration::from_millis(50));
    const VIDEO: TrackId = TrackId::SOURCE_VIDEO;
    const LOWER: TrackId = TrackId(7);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn sent(first_sequence: u64, packets: u32, first_index: u64) -> Sent {
        Sent {
            first_sequence,
            packets,
            track: VIDEO,
            first_index,
            timestamp_offset: 5,
            keyframe: false,
            bytes: packets * 1000,
        }
    }

    /// A retransmitter and everything around it.
    struct Scene {
        now: Instant,
        core: Retransmitter,
        /// Oldest index the ring still has.
        ring_from: u64,
    }

    impl Scene {
        fn new(options: Options) -> Self {
            let now = testkit::start();
            Self {
                now,
                core: Retransmitter::new(options, now),
                ring_from: 0,
            }
        }

        fn send(&mut self, sent: Sent) -> &mut Self {
            self.core.handle_sent(self.now, &sent);
            self
        }

        fn wait(&mut self, millis_: u64) -> &mut Self {
            self.now += millis(millis_);
            self
        }

        fn nack(&mut self, lost: &[u16]) -> (Vec<(TrackId, u64)>, bool) {
            let (mut out, from) = (Vec::new(), self.ring_from);
            let size = |_, index| (index >= from).then_some(1000);
            let wanted = self
                .core
                .handle_nack(self.now, lost.iter().copied(), RTT, size, &mut out);
            for resend in &out {
                assert_eq!(
                    resend.timestamp_offset,
                    if resend.track == VIDEO { 5 } else { 6 }
                );
            }
            let found = out.iter().map(|resend| (resend.track, resend.index));
            (found.collect(), wanted.is_some())
        }
    }

    #[test]
    fn sequence_numbers_map_to_the_ring_at_every_edge() {
        for first in [0_u64, 1, 32_767, 32_768, 65_535, 65_536, 5 * 65_536 - 2] {
            let mut scene = Scene::new(Options::default());
            scene
                .send(sent(first, 4, 100))
                .send(sent(first + 4, 1, 104));
            let wire = |offset: u64| u16::try_from((first + offset) & 0xffff).expect("masked");
            let (found, _) = scene.nack(&[wire(0), wire(4)]);
            assert_eq!(found, [(VIDEO, 100), (VIDEO, 104)], "from {first}");
            assert_eq!(scene.nack(&[wire(5)]), (vec![], false));
            assert_eq!(scene.core.counters().unknown, 1);
            assert_eq!(scene.core.segments.len(), 1);
        }
    }

    #[test]
    fn a_switch_a_skip_and_padding_begin_segments() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(10, 2, 100)); // 10, 11
        scene.send(sent(12, 2, 200)); // a skip
        scene.send(Sent {
            track: LOWER,
            timestamp_offset: 6,
            ..sent(14, 2, 202)
        });
        scene.send(Sent {
            track: LOWER,
            timestamp_offset: 6,
            ..sent(20, 2, 204)
        });
        let (found, wanted) = scene.nack(&[11, 12, 13, 14, 15, 16, 19, 20, 9]);
        assert_eq!(
            found,
            [
                (VIDEO, 101),
                (VIDEO, 200),
                (VIDEO, 201),
                (LOWER, 202),
                (LOWER, 203),
                (LOWER, 204)
            ]
        );
        // 16 and 19 were padding; 9 is from before our time, and the decoder may need it.
        assert_eq!(scene.core.counters().unknown, 2);
        assert_eq!((scene.core.counters().too_late, wanted), (1, true));
    }

    #[test]
    fn no_second_copy_within_a_round_trip() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(0, 10, 0)).wait(60);
        assert_eq!(scene.nack(&[3, 3, 4]).0, [(VIDEO, 3), (VIDEO, 4)]);
        assert_eq!(scene.wait(49).nack(&[3]).0, []);
        assert_eq!(scene.wait(1).nack(&[3]).0, [(VIDEO, 3)]);
        assert_eq!(scene.core.counters().suppressed, 2);
        assert_eq!(scene.core.counters().sent, 3);
    }

    #[test]
    fn what_would_come_too_late_asks_for_a_keyframe_unless_one_followed() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(0, 10, 0)).wait(970);
        assert_eq!(scene.nack(&[1]), (vec![(VIDEO, 1)], false));
        scene.wait(10).send(sent(10, 1, 10));
        assert_eq!(scene.nack(&[2]), (vec![], true));
        scene.send(Sent {
            keyframe: true,
            ..sent(11, 1, 11)
        });
        assert_eq!(scene.nack(&[2]), (vec![], false));
        assert_eq!(scene.core.counters().too_late, 2);
    }

    #[test]
    fn what_the_ring_lost_asks_for_a_keyframe() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(0, 10, 0));
        scene.ring_from = 5;
        assert_eq!(scene.nack(&[4, 5]), (vec![(VIDEO, 5)], true));
        assert_eq!(scene.core.counters().out_of_ring, 1);
    }

    #[test]
    fn the_budget_is_a_share_of_what_was_sent() {
        let mut scene = Scene::new(Options {
            burst_bytes: 10_000,
            share_percent: 20,
            ..Options::default()
        });
        scene.send(sent(0, 100, 0));
        let all: Vec<u16> = (0..100).collect();
        assert_eq!(scene.nack(&all).0.len(), 10, "the burst");
        assert_eq!(scene.core.counters().over_budget, 90);
        scene.wait(20).send(sent(100, 20, 100));
        assert_eq!(scene.nack(&all[10..]).0.len(), 4, "a fifth of twenty");
        scene.wait(20).send(sent(120, 1000, 120));
        assert_eq!(scene.nack(&all[20..]).0.len(), 10, "no more than the burst");
    }

    #[test]
    fn history_stays_bounded() {
        let mut scene = Scene::new(Options {
            latest_useful: Duration::from_secs(3600),
            ..Options::default()
        });
        // Every packet a segment of its own, for a minute.
        for i in 0..3000 {
            scene.send(sent(i * 2, 1, i)).wait(20);
        }
        assert!(scene.core.segments.len() <= SEGMENTS_MAX);
        assert!(scene.core.marks.len() <= MARKS_MAX);
        let mut scene = Scene::new(Options::default());
        for i in 0..3000 {
            scene.send(sent(i, 1, i * 2)).wait(100);
        }
        assert!(scene.core.segments.len() <= 12, "a second's worth");
        let flood = (0..=u16::MAX).cycle().take(200_000);
        let mut out = Vec::new();
        let now = scene.now;
        scene
            .core
            .handle_nack(now, flood, RTT, |_, _| Some(1), &mut out);
        assert_eq!(scene.core.counters().asked, LOST_MAX as u64);
    }

    /// A link that loses packets both of the first sending and of retransmission, and a viewer that asks for what it misses
    /// every 20 ms, again after each round trip: Chromium's behaviour in short.
    fn recovered(loss_percent: u32, seed: u64) -> (usize, usize, Counters) {
        let mut rng = Rng::new(seed);
        let mut scene = Scene::new(Options::default());
        let mut received = std::collections::BTreeSet::new();
        let mut asked_at = std::collections::BTreeMap::<u64, u64>::new();
        // (when, sequence) of packets on their way, (when, list) of NACKs on theirs.
        let (mut forward, mut back) = (Vec::new(), Vec::new());
        let total = 150 * 6;
        for now in 0..6500_u64 {
            if now % 40 == 0 && now < 6000 {
                let first = now / 40 * 6 + 65_000;
                scene.send(sent(first, 6, first));
                for sequence in first..first + 6 {
                    forward.push((now + 25, sequence));
                }
            }
            forward.retain(|(at, sequence)| {
                if *at == now && rng.below(100) >= loss_percent {
                    received.insert(*sequence);
                }
                *at > now
            });
            if now % 20 == 0 {
                let newest = received.last().copied().unwrap_or(65_000);
                let missing: Vec<u64> = (newest.saturating_sub(150).max(65_000)..newest)
                    .filter(|sequence| !received.contains(sequence))
                    .filter(|sequence| asked_at.get(sequence).is_none_or(|at| at + 50 <= now))
                    .collect();
                for sequence in &missing {
                    asked_at.insert(*sequence, now);
                }
                back.push((now + 25, missing));
            }
            let mut resent = Vec::new();
            back.retain(|(at, missing)| {
                if *at == now {
                    let wire = missing
                        .iter()
                        .map(|sequence| u16::try_from(sequence & 0xffff).expect("masked"));
                    let wire: Vec<u16> = wire.collect();
                    resent.extend(scene.nack(&wire).0);
                }
                *at > now
            });
            forward.extend(resent.into_iter().map(|(_, index)| (now + 25, index)));
            scene.wait(1);
        }
        (received.len(), total, scene.core.counters())
    }

    #[test]
    fn ten_percent_loss_is_repaired_without_waste() {
        for seed in 0..5 {
            let (received, total, counters) = recovered(10, seed);
            // The last unit has no successor that would show its loss.
            assert!(received + 6 >= total, "seed {seed}: {received} of {total}");
            let needed = total as u64 / 10;
            assert!(counters.sent < needed * 3 / 2, "seed {seed}: {counters:?}");
            assert_eq!(counters.too_late + counters.out_of_ring, 0, "seed {seed}");
        }
    }

    proptest! {
        /// Against a plain map of everything that was ever sent.
        #[test]
        fn every_packet_is_found_where_it_came_from(start in 0_u64..200_000, runs in proptest::collection::vec((1_u32..12, 0_u64..3, 0_u64..3, any::<bool>()), 1..40), probes in proptest::collection::vec(0_u64..600, 1..40)) {
            let mut scene = Scene::new(Options { burst_bytes: u32::MAX, ..Options::default() });
            let mut plain = std::collections::BTreeMap::new();
            let (mut sequence, mut index) = (start, 0);
            for (packets, padding, skipped, lower) in runs {
                sequence += padding;
                index += skipped;
                let (track, timestamp_offset) = if lower { (LOWER, 6) } else { (VIDEO, 5) };
                scene.send(Sent { track, timestamp_offset, ..sent(sequence, packets, index) }).wait(10);
                for _ in 0..packets {
                    plain.insert(sequence, (track, index));
                    sequence += 1;
                    index += 1;
                }
            }
            for probe in probes {
                let probe = (start + probe).min(sequence + 5);
                let wire = u16::try_from(probe & 0xffff).expect("masked");
                let expected: Vec<_> = plain.get(&probe).copied().into_iter().collect();
                // Copies forgotten, so that nothing is suppressed; half a second at most since the first, so that nothing is late.
                let mut fresh = Vec::new();
                let now = scene.now + millis(60);
                scene.core.copies = None;
                scene.core.handle_nack(now, [wire], RTT, |_, _| Some(1), &mut fresh);
                let found: Vec<_> = fresh.iter().map(|resend| (resend.track, resend.index)).collect();
                prop_assert_eq!(found, expected, "{}", probe);
            }
        }
    }
}
