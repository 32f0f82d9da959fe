//! Which packets to send again: NACKs in, decisions out (RFC 4585 section 6.2.1, RFC 4588).
//!
//! One [`Retransmitter`] for each SSRC of a viewer. It keeps no packets: a short list of segments maps the viewer's sequence numbers to
//! (track, ring index), and the packets are in the [`crate::rtp::ring::PacketRing`] that all viewers of a shard share. At most 7 KB a viewer, 3 of
//! them only once there was a loss.
//!
//! How many copies a lost packet gets: one for its first NACK. A NACK that comes a round trip or more after a copy says that the copy was lost
//! too; there is no time for a third such round, so it is answered twice. A NACK that comes sooner may have crossed the copy, and
//! most have: viewers repeat every 20 to 100 ms whatever the path. It is answered only if by the next one the picture would be late, and out of
//! a budget of its own, so that all copies together stay under one and a half times what was lost.

use std::collections::VecDeque;
use std::num::NonZeroU8;
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
/// Viewers ask again after 20 ms at the earliest, as they look for holes that often; libwebrtc, where it sends no media itself, after 100.
const REPEAT_MIN: Duration = Duration::from_millis(20);
const REPEAT_MAX: Duration = Duration::from_millis(100);
/// Bytes of spare copies that are there at first, and may be saved up: five packets, and a long burst of losses.
const SPARE_BYTES: u64 = 6000;
const SPARE_BYTES_MAX: u64 = 16_000;
/// Copies of a packet under way at once (count).
const COPIES_MAX: u8 = 2;

/// Bounds of retransmission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A packet that left longer ago than this, when its copy arrives, comes too late to be shown. At most 5 s.
    pub latest_useful: Duration,
    /// Bytes of retransmission earned by each 100 bytes sent: what the worst loss rate is that we repair for long.
    pub share_percent: u32,
    /// Bytes that may be saved up: what is repaired at once after a short blackout.
    pub burst_bytes: u32,
    /// A picture that comes this much later than it should have is seen as a freeze.
    pub patience: Duration,
    /// Bytes of spare copies, such as may turn out not to have been needed, earned by each 100 bytes of others.
    pub spare_percent: u32,
}

impl Default for Options {
    /// 128 KiB are a third of a second at 3 Mbit/s, or one large keyframe; 30 % repair 20 % loss, copies included. 200 ms between two pictures
    /// is a freeze for most who measure it (Chromium: 150 ms more than usual), and 33 to 40 of them are usual.
    fn default() -> Self {
        Self {
            latest_useful: Duration::from_secs(1),
            share_percent: 30,
            burst_bytes: 128 << 10,
            patience: Duration::from_millis(160),
            spare_percent: 35,
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

/// What came of NACKs so far, in packets where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Asked for.
    pub asked: u64,
    /// Sent again: copies of all kinds.
    pub sent: u64,
    /// Bytes of payload of all copies.
    pub sent_bytes: u64,
    /// Copies among them that were sent without knowing that one before was lost.
    pub spare: u64,
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
    /// The newest of each is here and not in its list, so that noting what was sent seldom reads memory elsewhere.
    segment: Option<Segment>,
    segments: VecDeque<Segment>,
    mark: Option<Mark>,
    marks: VecDeque<Mark>,
    /// Sequence number that the next packet will have.
    next_sequence: u64,
    /// Sequence number of the newest keyframe's first packet.
    keyframe: u64,
    /// Nobody needs what came before this one.
    useful_from: u64,
    budget_bytes: u64,
    /// Of the budget, what may go into spare copies.
    spare_bytes: u64,
    /// How soon the viewer asks again for what it still misses.
    repeat: Duration,
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

/// Of a packet, when it was last sent again. Numbers wrap, after weeks; what is compared with them is seconds old at most.
#[derive(Debug, Clone, Copy)]
struct LastCopy {
    /// Low 32 bits.
    sequence: u32,
    /// Milliseconds since `started`.
    at_millis: u32,
    /// How many may still be under way.
    copies: NonZeroU8,
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
            segment: None,
            segments: VecDeque::new(),
            mark: None,
            marks: VecDeque::new(),
            next_sequence: 0,
            keyframe: 0,
            useful_from: 0,
            budget_bytes: options.burst_bytes.into(),
            spare_bytes: SPARE_BYTES,
            repeat: REPEAT_MAX,
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

        self.note_time(now, sent.first_sequence);
        match &mut self.segment {
            Some(newest) if newest.continues_with(sent) => newest.packets += packets,
            newest => {
                let segment = Segment {
                    first_sequence: sent.first_sequence,
                    packets,
                    track: sent.track,
                    first_index: sent.first_index,
                    timestamp_offset: sent.timestamp_offset,
                };
                if let Some(before) = newest.replace(segment) {
                    self.forget(now);
                    self.segments.push_back(before);
                }
            }
        }
    }

    /// Answers a NACK. `size` says how many payload bytes a packet has, `None` when the ring no longer has it. What is to be sent again is
    /// appended to `out`, in the order asked; second copies follow all first ones, so that one burst of losses may spare either.
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
        let mut twins = Vec::new();
        for wire in lost.into_iter().take(LOST_MAX) {
            self.counters.asked += 1;
            let sequence = self.extend(wire);
            match self.decide(now, sequence, rtt, &mut size) {
                Decision::Resend { resend, twice } => {
                    out.push(resend);
                    if twice {
                        twins.push(resend);
                    }
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
        out.append(&mut twins);
        stuck.then_some(KeyframeWanted)
    }

    /// What was sent so far is of no use any more: the viewer goes on at a keyframe because its link could not carry what it had, and copies would
    /// only keep the queue full that has to drain.
    pub const fn handle_abandoned(&mut self) {
        self.useful_from = self.next_sequence;
    }

    /// A packet that was sent lately: the `back`th before the newest. Padding is made of these, so that it may be of use.
    pub fn sent_lately(&self, back: u64) -> Option<Resend> {
        let sequence = self.next_sequence.checked_sub(back.checked_add(1)?)?;
        self.locate(sequence)
    }

    /// How long ago the packet left by which the viewer can have noticed, at the earliest, that the newest of `lost` is missing: the round trip
    /// doesn't take longer than that.
    pub fn since_noticed(&self, now: Instant, lost: &[u16]) -> Option<Duration> {
        let newest = lost.iter().map(|wire| self.extend(*wire)).max()?;
        let next = newest.saturating_add(1);
        let left = (next < self.next_sequence).then(|| self.left_at(next))??;
        Some(now.saturating_duration_since(left))
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
        if sequence < self.useful_from {
            return Decision::TooLate;
        }
        // A copy that leaves now makes the packet this late, as both ways take the same time.
        let Some(late) = self
            .left_at(sequence)
            .map(|left| now.saturating_duration_since(left))
        else {
            return Decision::TooLate;
        };
        if late + rtt / 2 > self.options.latest_useful {
            return Decision::TooLate;
        }
        let Some(resend) = self.locate(sequence) else {
            return Decision::Unknown;
        };
        let at_millis = self.millis(now);
        let last = self.last_copy(sequence, at_millis);
        if let Some((elapsed, _)) = last {
            self.repeat = self.repeat.min(elapsed.max(REPEAT_MIN));
        }
        // By the next NACK for this packet its picture will be late.
        let last_chance = late.saturating_add(self.repeat) > self.options.patience;
        let (purpose, again) = match last {
            None => (Purpose::Needed, last_chance),
            Some((elapsed, _)) if elapsed >= rtt => (Purpose::Needed, true),
            Some((elapsed, copies))
                // What comes at once is the same request again, and what is sent at once is lost in the same burst.
                if last_chance && copies.get() < COPIES_MAX && elapsed >= rtt / 4 =>
            {
                (Purpose::Spare, false)
            }
            Some(_) => return Decision::Suppressed,
        };
        let Some(bytes) = size(resend.track, resend.index) else {
            return Decision::OutOfRing;
        };
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if !self.pay(bytes, purpose) {
            return match purpose {
                Purpose::Needed => Decision::OverBudget,
                Purpose::Spare => Decision::Suppressed,
            };
        }
        // Of spare copies two, while there are enough: in the worst case all of these are lost as well.
        let enough = purpose == Purpose::Spare && self.spare_bytes >= SPARE_BYTES;
        let twice = (again || enough) && self.pay(bytes, Purpose::Spare);
        self.remember(LastCopy {
            sequence: low_half(sequence),
            at_millis,
            copies: if twice || purpose == Purpose::Spare {
                NonZeroU8::MIN.saturating_add(1)
            } else {
                NonZeroU8::MIN
            },
        });
        Decision::Resend { resend, twice }
    }

    /// Takes a copy out of the budgets and counts it. False, and nothing happened: there is no room for it.
    fn pay(&mut self, bytes: u64, purpose: Purpose) -> bool {
        let Some(budget) = self.budget_bytes.checked_sub(bytes) else {
            return false;
        };
        self.spare_bytes = match purpose {
            Purpose::Needed => {
                let earned = bytes * u64::from(self.options.spare_percent) / 100;
                (self.spare_bytes + earned).min(SPARE_BYTES_MAX)
            }
            Purpose::Spare => {
                let Some(spare) = self.spare_bytes.checked_sub(bytes) else {
                    return false;
                };
                // Where so much is lost that it can hardly all be sent once, nothing is sent twice.
                if budget < u64::from(self.options.burst_bytes / 2) {
                    return false;
                }
                self.counters.spare += 1;
                spare
            }
        };
        self.budget_bytes = budget;
        self.counters.sent += 1;
        self.counters.sent_bytes += bytes;
        true
    }

    /// The packet that a viewer means.
    fn extend(&self, wire: u16) -> u64 {
        extend_u16(self.next_sequence.saturating_sub(1), wire)
    }

    fn note_time(&mut self, now: Instant, first_sequence: u64) {
        let due = self
            .mark
            .is_none_or(|newest| now.saturating_duration_since(newest.at) >= MARK_EVERY);
        if !due {
            return;
        }
        if let Some(before) = self.mark {
            if self.marks.len() == self.marks.capacity() {
                self.forget(now);
            }
            self.marks.push_back(before);
        }
        self.mark = Some(Mark {
            first_sequence,
            at: now,
        });
    }

    /// Makes room for another mark and another segment: what is too old to be sent again goes.
    fn forget(&mut self, now: Instant) {
        while self.marks.len() >= MARKS_MAX
            || self.marks.front().is_some_and(|oldest| {
                now.saturating_duration_since(oldest.at) > self.options.latest_useful
            })
        {
            self.marks.pop_front();
        }
        let oldest = self.marks.front().or(self.mark.as_ref());
        let oldest = oldest.map_or(0, |mark| mark.first_sequence);
        while self.segments.len() >= SEGMENTS_MAX
            || self
                .segments
                .front()
                .is_some_and(|segment| segment.end() <= oldest)
        {
            self.segments.pop_front();
        }
    }

    /// When the packet left, `None` if that is longer ago than we remember.
    fn left_at(&self, sequence: u64) -> Option<Instant> {
        let newest = self.mark.filter(|mark| mark.first_sequence <= sequence);
        let mark = newest.or_else(|| {
            let after = self
                .marks
                .partition_point(|mark| mark.first_sequence <= sequence);
            self.marks.get(after.checked_sub(1)?).copied()
        });
        mark.map(|mark| mark.at)
    }

    fn locate(&self, sequence: u64) -> Option<Resend> {
        let newest = self
            .segment
            .filter(|segment| segment.first_sequence <= sequence);
        let segment = newest.or_else(|| {
            let after = self
                .segments
                .partition_point(|segment| segment.first_sequence <= sequence);
            self.segments.get(after.checked_sub(1)?).copied()
        })?;
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

    /// How long before `at_millis` the packet was last sent again, and how many copies may be under way.
    fn last_copy(&self, sequence: u64, at_millis: u32) -> Option<(Duration, NonZeroU8)> {
        let sequence = low_half(sequence);
        let last = self.copies.as_ref()?.get(place(sequence)).copied()??;
        let elapsed = at_millis.wrapping_sub(last.at_millis);
        (last.sequence == sequence).then(|| (Duration::from_millis(elapsed.into()), last.copies))
    }

    fn remember(&mut self, copy: LastCopy) {
        let copies = self.copies.get_or_insert_with(|| Box::new([None; COPIES]));
        if let Some(last) = copies.get_mut(place(copy.sequence)) {
            *last = Some(copy);
        }
    }
}

/// Where a packet's last copy is remembered.
fn place(sequence: u32) -> usize {
    usize::try_from(sequence).unwrap_or(0) % COPIES
}

fn low_half(number: u64) -> u32 {
    let [a, b, c, d, ..] = number.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Why a copy is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The packet, or its last copy, is lost.
    Needed,
    /// There is another one under way that may be lost.
    Spare,
}

/// What to do about one packet.
enum Decision {
    Resend { resend: Resend, twice: bool },
    Suppressed,
    OverBudget,
    TooLate,
    OutOfRing,
    Unknown,
}

#[cfg(test)]
mod scenarios;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit;

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
            assert_eq!(scene.core.segments.len(), 0, "one, and that is the newest");
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
    fn no_second_copy_within_a_round_trip_and_two_after_it() {
        let mut scene = Scene::new(Options::default());
        scene.core.repeat = millis(20);
        scene.send(sent(0, 10, 0)).wait(55);
        assert_eq!(scene.nack(&[3, 3, 4]).0, [(VIDEO, 3), (VIDEO, 4)]);
        assert_eq!(scene.wait(49).nack(&[3]).0, []);
        assert_eq!(scene.core.counters().spare, 0);
        // Now it is known that the copies were lost: second copies come behind all first ones.
        let (found, _) = scene.wait(1).nack(&[3, 4]);
        let twice = [3, 4, 3, 4].map(|index| (VIDEO, index));
        assert_eq!(found, twice);
        assert_eq!(scene.wait(49).nack(&[3, 4]).0, []);
        let counters = scene.core.counters();
        assert_eq!((counters.suppressed, counters.sent), (4, 6));
        assert_eq!((counters.spare, counters.sent_bytes), (2, 6000));
    }

    #[test]
    fn a_nack_that_crossed_the_copy_is_answered_when_the_next_would_be_too_late() {
        let mut scene = Scene::new(Options::default());
        scene.core.repeat = millis(40);
        scene.send(sent(0, 10, 0)).wait(75);
        assert_eq!(scene.nack(&[3]).0, [(VIDEO, 3)]);
        // 115 ms late; by the next NACK 155.
        assert_eq!(scene.wait(40).nack(&[3]).0, []);
        let mut scene = Scene::new(Options::default());
        scene.core.repeat = millis(40);
        scene.send(sent(0, 10, 0)).wait(85);
        assert_eq!(scene.nack(&[3]).0, [(VIDEO, 3)]);
        assert_eq!(scene.wait(5).nack(&[3]).0, [], "the same NACK, repeated");
        scene.core.repeat = millis(40);
        scene.core.spare_bytes = SPARE_BYTES_MAX;
        assert_eq!(scene.wait(35).nack(&[3]).0, [(VIDEO, 3), (VIDEO, 3)]);
        assert_eq!(scene.wait(40).nack(&[3]).0, [], "enough are under way");
        assert_eq!(scene.core.counters().spare, 2);
    }

    #[test]
    fn a_viewer_that_seldom_asks_gets_its_second_copy_at_once_while_there_are_spare_ones() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(0, 100, 0)).wait(70);
        let all: Vec<u16> = (0..30).collect();
        let (found, _) = scene.nack(&all);
        // Six were saved up; thirty earn ten.
        assert_eq!(found.len(), 30 + 16);
        assert_eq!(scene.core.counters().spare, 16);
    }

    #[test]
    fn the_round_trip_is_no_longer_than_it_took_to_notice() {
        let mut scene = Scene::new(Options::default());
        scene.send(sent(65_534, 4, 0)).wait(33);
        scene.send(sent(65_538, 4, 4)).wait(60);
        let since = |scene: &Scene, lost: &[u16]| scene.core.since_noticed(scene.now, lost);
        assert_eq!(since(&scene, &[65_534]), Some(millis(93)));
        assert_eq!(since(&scene, &[1]), Some(millis(60)), "the next picture");
        assert_eq!(since(&scene, &[65_534, 3, 65_535]), Some(millis(60)));
        assert_eq!(since(&scene, &[5]), None, "nothing came after it");
        assert_eq!(since(&scene, &[6]), None, "nothing of the kind was sent");
        assert_eq!(since(&scene, &[]), None);
    }

    #[test]
    fn what_would_come_too_late_asks_for_a_keyframe_unless_one_followed() {
        let mut scene = Scene::new(Options {
            spare_percent: 0,
            ..Options::default()
        });
        scene.core.spare_bytes = 0;
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

    proptest! {
        /// Against a plain map of everything that was ever sent.
        #[test]
        fn every_packet_is_found_where_it_came_from(start in 0_u64..200_000, runs in proptest::collection::vec((1_u32..12, 0_u64..3, 0_u64..3, any::<bool>()), 1..40), probes in proptest::collection::vec(0_u64..600, 1..40)) {
            let mut scene = Scene::new(Options { burst_bytes: u32::MAX, patience: Duration::MAX, ..Options::default() });
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
