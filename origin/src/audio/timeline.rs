//! When each Opus packet is to be heard: sample counting between the AAC access units that go in and the
//! 20 ms packets that come out.
//!
//! A publisher stamps its access units in milliseconds, off by up to one and sometimes by its network; its samples
//! come at its sound card's pace. So time is counted in samples from an anchor, the first unit's PTS, and the stamps
//! only steer: a jump of more than [`GAP`] anchors anew, a slow drift is followed by taking 959 or 961 decoded samples
//! for a packet instead of 960 ([`Step::Packet`]). Packets therefore lie exactly [`PACKET_TICKS`] apart until a
//! discontinuity, whatever the stamps do: a viewer's jitter buffer treats an odd spacing as loss.
//!
//! *Position* is a count of decoded samples at 48 kHz since the timeline began; it only grows. The feeding side
//! ([`Timeline::handle_unit`]) runs ahead of the reading side ([`Timeline::poll_step`]) by what the decoder holds.
//! No sound passes through here, and no clock is read.

use std::collections::VecDeque;
use std::time::Duration;

use headwater_media::codec::opus::CLOCK_HZ;
use headwater_media::time::{MediaTime, TICKS_PER_SECOND, WallTime};

/// Samples per Opus packet and channel: 20 ms at 48 kHz.
pub(crate) const PACKET_SAMPLES: u64 = 960;

/// A packet's length on the stream's timeline (90 kHz ticks).
pub(crate) const PACKET_TICKS: i64 = 1800;

/// A PTS further than this from the sample count is a gap or a jump, not noise (40 ms in ticks): two AAC frames.
const GAP: i64 = 40 * TICKS_PER_SECOND / 1000;

/// A PTS earlier than the sample count by more than this moves the anchor at once (1 s in ticks).
const JUMP_BACK: i64 = TICKS_PER_SECOND;

/// How long PTS must stay more than [`GAP`] early before the anchor moves. Some encoders give several frames one stamp,
/// which makes single stamps early without anything being wrong.
const EARLY_FOR: Duration = Duration::from_millis(200);

/// A unit marked as following a loss anchors anew when it is off by more than this (2 ms in ticks).
const MARKED_GAP: i64 = 2 * TICKS_PER_SECOND / 1000;

/// Time constant of the low-pass filter over the PTS' distance from the sample count. Millisecond rounding shrinks to
/// some microseconds in it, and 10 ms of network jitter to less than a millisecond.
const FILTER_SECONDS: f64 = 4.0;

/// The filtered distance at which correction starts (ticks, 2 ms); out of reach of rounding noise, far below what
/// anyone notices between sound and picture.
const CORRECT_FROM: f64 = 180.0;

/// The filtered distance at which correction ends (ticks, 0.25 ms).
const CORRECT_TO: f64 = 22.5;

/// Length of a sample at 48 kHz (ticks).
const TICKS_PER_SAMPLE: f64 = 1.875;

/// What the timeline must know of an access unit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    /// When its first decoded sample is to be heard.
    pub(crate) pts: MediaTime,
    /// See [`headwater_media::unit::AccessUnit::ingest_time`].
    pub(crate) ingest_time: WallTime,
    /// Samples per channel at the source's rate.
    pub(crate) samples: u32,
    /// Units before it may be missing.
    pub(crate) discontinuity: bool,
}

/// How an access unit follows the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Continuity {
    /// Its samples follow without a break.
    Continues,
    /// It starts anew at its own PTS: whatever a resampler still holds belongs to the past and must come out first.
    Restarts,
}

/// What to do with the decoded samples that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Drop so many samples: they would be heard at a time that has passed.
    Skip(u64),
    /// Make a packet.
    Packet {
        /// Take so many samples: 960, or one more or less to follow the publisher's clock. Fewer than 959 at the end of
        /// a segment, to be filled up with silence.
        take: u64,
        /// When a decoder's first sample of the packet is to be heard.
        pts: MediaTime,
        /// That of the access unit with the last sample taken.
        ingest_time: WallTime,
        /// The packet doesn't follow its predecessor.
        discontinuity: bool,
    },
}

/// Samples that share an anchor.
#[derive(Debug)]
struct Segment {
    /// Position of its first sample.
    start: u64,
    /// When that sample is to be heard.
    anchor: MediaTime,
    /// Samples taken beyond those sent, by correction.
    slip: i64,
    /// Its first packet has not been made.
    fresh: bool,
}

/// Which access unit a sample came from.
#[derive(Debug)]
struct Span {
    /// Position after its last sample.
    end: u64,
    ingest_time: WallTime,
}

/// The counter. Feed [`Self::handle_unit`], then poll [`Self::poll_step`] until `None` with what is decoded.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// The encoder's look-ahead in samples: what a decoder yields lags what the encoder was given by so much.
    lookahead: u16,
    rate_hz: u32,
    /// Position at which the present rate began.
    run_start: u64,
    /// Samples since then, at `rate_hz`.
    run_samples: u64,
    /// Position up to which samples were taken.
    read: u64,
    segments: VecDeque<Segment>,
    spans: VecDeque<Span>,
    /// Filtered distance of the PTS from the sample count (ticks); positive: the publisher's clock is ahead.
    distance: f64,
    /// The distance is being corrected.
    correcting: bool,
    /// For how long the PTS have been more than `GAP` early.
    early_for: Duration,
    last_ingest: WallTime,
    /// When the last packet ends.
    end: Option<MediaTime>,
}

impl Timeline {
    /// A timeline for units of `rate_hz`.
    pub(crate) fn new(rate_hz: u32) -> Self {
        Self {
            lookahead: 0,
            rate_hz: rate_hz.max(1),
            run_start: 0,
            run_samples: 0,
            read: 0,
            segments: VecDeque::new(),
            spans: VecDeque::new(),
            distance: 0.0,
            correcting: false,
            early_for: Duration::ZERO,
            last_ingest: WallTime::default(),
            end: None,
        }
    }

    /// Takes an access unit into account, before its samples are decoded.
    pub(crate) fn handle_unit(&mut self, unit: Unit) -> Continuity {
        let length = Duration::from_secs(1) * unit.samples / self.rate_hz;
        let continuity = if self.continues(&unit, length) {
            Continuity::Continues
        } else {
            self.anchor(unit.pts);
            Continuity::Restarts
        };
        self.run_samples += u64::from(unit.samples);
        self.spans.push_back(Span {
            end: self.fed(),
            ingest_time: unit.ingest_time,
        });
        continuity
    }

    /// The encoder looks ahead so many samples.
    pub(crate) const fn set_lookahead(&mut self, samples: u16) {
        self.lookahead = samples;
    }

    /// The units from now on have another sampling rate. Their samples follow without a break.
    pub(crate) fn set_rate(&mut self, rate_hz: u32) {
        self.run_start = self.fed();
        self.run_samples = 0;
        self.rate_hz = rate_hz.max(1);
    }

    /// What was fed and not read will never be decoded; the next unit starts anew.
    pub(crate) fn forget_pending(&mut self) {
        self.set_rate(self.rate_hz);
        self.read = self.run_start;
        self.segments.clear();
        self.spans.clear();
    }

    /// Says what to do with `available` decoded samples from the read position on.
    pub(crate) fn poll_step(&mut self, available: u64) -> Option<Step> {
        loop {
            let next = self.segments.get(1).map(|next| (next.start, next.anchor));
            let lookahead = self.lookahead_ticks();
            let corrected = match (self.correcting, next, self.distance > 0.0) {
                (true, None, true) => PACKET_SAMPLES - 1,
                (true, None, false) => PACKET_SAMPLES + 1,
                (false, ..) | (true, Some(_), _) => PACKET_SAMPLES,
            };
            let segment = self.segments.front_mut()?;
            if segment.fresh
                && let Some(end) = self.end
            {
                trim(segment, end + lookahead, next.map(|(start, _)| start));
            }
            if self.read < segment.start {
                let skip = (segment.start - self.read).min(available);
                self.advance(skip);
                return (skip > 0).then_some(Step::Skip(skip));
            }
            let sent = i64::try_from(self.read - segment.start).unwrap_or(i64::MAX) - segment.slip;
            let pts = segment.anchor + MediaTime::from_samples(sent, CLOCK_HZ) - lookahead;
            let mut take = corrected;
            if let Some((next_start, next_anchor)) = next {
                let rest = next_start.saturating_sub(self.read);
                if rest == 0 {
                    self.segments.pop_front();
                    continue;
                }
                if rest < take {
                    if available < rest {
                        return None;
                    }
                    let fits = pts + MediaTime::from_ticks(PACKET_TICKS) <= next_anchor - lookahead;
                    if !fits {
                        self.advance(rest);
                        return Some(Step::Skip(rest));
                    }
                    take = rest;
                }
            }
            if available < take {
                return None;
            }
            let discontinuity = segment.fresh && self.end.is_some();
            segment.fresh = false;
            if take == corrected && corrected != PACKET_SAMPLES {
                let slip = if corrected > PACKET_SAMPLES { 1 } else { -1 };
                segment.slip += slip;
                self.distance += if slip > 0 {
                    TICKS_PER_SAMPLE
                } else {
                    -TICKS_PER_SAMPLE
                };
                self.correcting = self.distance.abs() > CORRECT_TO;
            }
            self.end = Some(pts + MediaTime::from_ticks(PACKET_TICKS));
            return Some(Step::Packet {
                take,
                pts,
                ingest_time: self.advance(take),
                discontinuity,
            });
        }
    }

    /// Position after the last sample fed. A resampler that starts with each rate and each restart yields exactly up to here.
    pub(crate) fn fed(&self) -> u64 {
        self.run_start + resampled(self.run_samples, self.rate_hz)
    }

    /// Samples fed and not read.
    pub(crate) fn pending(&self) -> u64 {
        self.fed() - self.read.min(self.fed())
    }

    fn continues(&mut self, unit: &Unit, length: Duration) -> bool {
        let Some(off) = self.off(unit.pts) else {
            return false;
        };
        if !(-JUMP_BACK..=GAP).contains(&off) || (unit.discontinuity && off.abs() > MARKED_GAP) {
            return false;
        }
        if off < -GAP {
            self.early_for += length;
            return self.early_for <= EARLY_FOR;
        }
        self.early_for = Duration::ZERO;
        let seconds = length.as_secs_f64();
        #[expect(
            clippy::cast_precision_loss,
            reason = "within GAP, so a few thousand ticks"
        )]
        let off = off as f64;
        self.distance += (off - self.distance) * seconds / (FILTER_SECONDS + seconds);
        if self.distance.abs() > CORRECT_FROM {
            self.correcting = true;
        }
        true
    }

    /// How much later than the sample count says a PTS is, in ticks.
    fn off(&self, pts: MediaTime) -> Option<i64> {
        let segment = self.segments.back()?;
        let run = i64::try_from(self.run_start).unwrap_or(i64::MAX);
        let start = i64::try_from(segment.start).unwrap_or(i64::MAX);
        let counted = MediaTime::from_samples(run - start - segment.slip, CLOCK_HZ)
            + MediaTime::from_samples(
                i64::try_from(self.run_samples).unwrap_or(i64::MAX),
                self.rate_hz,
            );
        Some((pts - segment.anchor - counted).ticks())
    }

    fn anchor(&mut self, pts: MediaTime) {
        self.set_rate(self.rate_hz);
        self.segments.push_back(Segment {
            start: self.run_start,
            anchor: pts,
            slip: 0,
            fresh: true,
        });
        self.distance = 0.0;
        self.correcting = false;
        self.early_for = Duration::ZERO;
    }

    /// Moves the read position by `count` samples; yields the ingest time of the last of them.
    fn advance(&mut self, count: u64) -> WallTime {
        self.read += count;
        while let Some(span) = self.spans.front() {
            self.last_ingest = span.ingest_time;
            if span.end >= self.read {
                break;
            }
            self.spans.pop_front();
        }
        self.last_ingest
    }

    fn lookahead_ticks(&self) -> MediaTime {
        MediaTime::from_samples(i64::from(self.lookahead), CLOCK_HZ)
    }
}

/// How many samples `count` samples at `rate_hz` become at 48 kHz, rounded to the nearest.
pub(crate) fn resampled(count: u64, rate_hz: u32) -> u64 {
    let rate = u128::from(rate_hz.max(1));
    let scaled = u128::from(count) * u128::from(CLOCK_HZ);
    u64::try_from((scaled + rate / 2) / rate).unwrap_or(u64::MAX)
}

/// Moves a segment's start forward so that its sound begins at `earliest` or up to 0.17 ms after it, if that takes no
/// more than [`JUMP_BACK`]: viewers have heard what comes before. A bigger step back is taken as it is.
fn trim(segment: &mut Segment, earliest: MediaTime, next_start: Option<u64>) {
    // An earlier call may have moved the start past samples that turned out to be this segment's last.
    if let Some(next) = next_start {
        segment.start = segment.start.min(next);
    }
    let overlap = (earliest - segment.anchor).ticks();
    if !(1..=JUMP_BACK).contains(&overlap) {
        return;
    }
    // 8 samples at 48 kHz are exactly 15 ticks, so the anchor stays exact.
    let blocks = u64::try_from(overlap).unwrap_or(0).div_ceil(15);
    let start = segment.start + blocks * 8;
    segment.start = next_start.map_or(start, |next| start.min(next));
    segment.anchor = segment.anchor
        + MediaTime::from_ticks(i64::try_from(blocks).unwrap_or(0).saturating_mul(15));
}

#[cfg(test)]
mod tests {
    use super::*;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    const LOOKAHEAD: u16 = 312;

    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Packet {
        pts: i64,
        ingest: u64,
        discontinuity: bool,
        take: u64,
    }

    /// A publisher, a decoder that is done at once, and the packets that came out.
    struct Bench {
        timeline: Timeline,
        packets: Vec<Packet>,
        skipped: u64,
        available: u64,
    }

    impl Bench {
        fn new(rate_hz: u32) -> Self {
            let mut timeline = Timeline::new(rate_hz);
            timeline.set_lookahead(LOOKAHEAD);
            Self {
                timeline,
                packets: Vec::new(),
                skipped: 0,
                available: 0,
            }
        }

        fn unit(&mut self, pts_ticks: i64, ingest: u64, discontinuity: bool) -> Continuity {
            let before = self.timeline.fed();
            let continuity = self.timeline.handle_unit(Unit {
                pts: MediaTime::from_ticks(pts_ticks),
                ingest_time: WallTime::from_unix_micros(ingest),
                samples: 1024,
                discontinuity,
            });
            self.available += self.timeline.fed() - before;
            while let Some(step) = self.timeline.poll_step(self.available) {
                match step {
                    Step::Skip(count) => {
                        self.skipped += count;
                        self.available -= count;
                    }
                    Step::Packet {
                        take,
                        pts,
                        ingest_time,
                        discontinuity,
                    } => {
                        self.available -= take;
                        self.packets.push(Packet {
                            pts: pts.ticks(),
                            ingest: ingest_time.unix_micros(),
                            discontinuity,
                            take,
                        });
                    }
                }
            }
            continuity
        }
    }

    fn millis_of(samples: u64, rate: u64) -> i64 {
        i64::try_from((samples * 1000 + rate / 2) / rate).unwrap()
    }

    #[test]
    fn packets_are_exactly_20_ms_apart_whatever_the_rate() {
        for rate in [8_000, 11_025, 22_050, 32_000, 44_100, 48_000, 96_000] {
            let mut bench = Bench::new(rate);
            for n in 0..500_u64 {
                let millis = 1000 + millis_of(n * 1024, u64::from(rate));
                assert_eq!(
                    bench.unit(millis * 90, n, false) == Continuity::Restarts,
                    n == 0
                );
            }
            let first = 90_000 - 585;
            for (n, packet) in (0..).zip(&bench.packets) {
                assert_eq!(packet.pts, first + n * 1800, "packet {n} at {rate} Hz");
                assert_eq!(packet.take, 960);
                assert!(!packet.discontinuity);
            }
            let heard = u64::try_from(bench.packets.len()).unwrap() * 960;
            let sent = resampled(500 * 1024, rate);
            assert!(
                sent - heard < 960 + 480,
                "{heard} of {sent} samples at {rate} Hz"
            );
        }
    }

    #[test]
    fn the_unit_that_completes_a_packet_gives_its_ingest_time() {
        let mut bench = Bench::new(48_000);
        for n in 0..10 {
            bench.unit(i64::try_from(n).unwrap() * 1920, n, false);
        }
        for (n, packet) in (0..).zip(&bench.packets) {
            let last_sample: u64 = (n + 1) * 960 - 1;
            assert_eq!(packet.ingest, last_sample / 1024, "packet {n}");
        }
    }

    #[test]
    fn millisecond_noise_changes_nothing() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut bench = Bench::new(44_100);
        for n in 0..20_000 {
            let noise = rng.random_range(-1..=1);
            bench.unit((millis_of(n * 1024, 44_100) + noise) * 90, n, false);
        }
        assert!(bench.packets.iter().all(|packet| packet.take == 960));
        let spacing = |pair: &[Packet]| pair[1].pts - pair[0].pts;
        assert!(bench.packets.windows(2).all(|pair| spacing(pair) == 1800));
    }

    #[test]
    fn drift_of_100_ppm_is_followed_for_hours() {
        for (ppm, bound) in [(-100_i64, 270), (100, 270), (300, 360)] {
            let mut bench = Bench::new(48_000);
            let mut worst = 0;
            // Three hours.
            for n in 0..506_250_u64 {
                let nominal = n * 1024;
                let stretched = i64::try_from(nominal).unwrap() * (1_000_000 + ppm) / 1_000_000;
                let millis = (stretched + 24) / 48;
                assert_eq!(
                    bench.unit(millis * 90, n, false) == Continuity::Restarts,
                    n == 0
                );
                let Some(packet) = bench.packets.last() else {
                    continue;
                };
                // Samples that are fed and not packed yet, and the look-ahead, lie between the two.
                let waiting = i64::try_from(bench.available).unwrap() - 1024;
                let end = packet.pts + 1800 + 585 + waiting * 15 / 8;
                worst = worst.max((end - millis * 90).abs());
            }
            assert!(worst <= bound, "{worst} ticks off at {ppm} ppm");
            let spacing = |pair: &[Packet]| pair[1].pts - pair[0].pts;
            assert!(bench.packets.windows(2).all(|pair| spacing(pair) == 1800));
            assert!(bench.packets.iter().all(|packet| !packet.discontinuity));
        }
    }

    #[test]
    fn a_gap_ends_its_packet_with_silence_and_anchors_anew() {
        let mut bench = Bench::new(48_000);
        for n in 0..10 {
            bench.unit(n * 1920, 0, false);
        }
        assert_eq!(bench.packets.len(), 10);
        // 41 ms missing; 640 samples wait.
        let resumed = 10 * 1920 + 41 * 90;
        assert_eq!(bench.unit(resumed, 1, false), Continuity::Restarts);
        bench.unit(resumed + 1920, 2, false);
        let tail = bench.packets[10];
        assert_eq!((tail.take, tail.pts), (640, 18_000 - 585));
        let first = bench.packets[11];
        assert_eq!((first.take, first.pts), (960, resumed - 585));
        assert!(first.discontinuity && !tail.discontinuity);
        assert_eq!(bench.skipped, 0);
    }

    #[test]
    fn a_late_unit_below_the_threshold_is_only_followed() {
        let mut bench = Bench::new(48_000);
        bench.unit(0, 0, false);
        for n in 1..2000 {
            assert_eq!(
                bench.unit(n * 1920 + 39 * 90, 0, false),
                Continuity::Continues
            );
        }
        let last = bench.packets.last().unwrap();
        let samples: u64 = bench.packets.iter().map(|packet| packet.take).sum();
        let packed = i64::try_from(samples).unwrap() * 15 / 8 + 39 * 90 - 585;
        assert!((last.pts + 1800 - packed).abs() < 200, "39 ms were made up");
    }

    #[test]
    fn a_marked_loss_anchors_anew_unless_nothing_is_missing() {
        let mut bench = Bench::new(48_000);
        bench.unit(0, 0, false);
        assert_eq!(bench.unit(1920, 0, true), Continuity::Continues);
        assert_eq!(bench.unit(3 * 1920, 0, true), Continuity::Restarts);
    }

    #[test]
    fn frames_that_share_a_stamp_do_not_break_the_count() {
        let mut bench = Bench::new(48_000);
        for n in 0..300 {
            let continuity = bench.unit(n / 4 * 4 * 1920, 0, false);
            assert_eq!(continuity == Continuity::Restarts, n == 0);
        }
        assert!(bench.packets.iter().all(|packet| !packet.discontinuity));
    }

    #[test]
    fn time_heard_once_is_not_filled_again_after_a_step_back() {
        let mut bench = Bench::new(48_000);
        for n in 0..100 {
            bench.unit(n * 1920, 0, false);
        }
        // The publisher's clock stepped back by 100 ms and stays there.
        for n in 100..200 {
            bench.unit(n * 1920 - 9000, 0, false);
        }
        assert_eq!(
            bench
                .packets
                .iter()
                .filter(|packet| packet.discontinuity)
                .count(),
            1
        );
        for pair in bench.packets.windows(2) {
            assert!(pair[1].pts >= pair[0].pts + 1800, "{pair:?}");
        }
        let samples: u64 = bench.packets.iter().map(|packet| packet.take).sum();
        let packed = i64::try_from(samples + bench.skipped).unwrap() * 15 / 8;
        let last = bench.packets.last().unwrap();
        assert!((last.pts + 1800 + 585 - (packed - 9000)).abs() < 1800 + 90);
    }

    #[test]
    fn a_far_step_back_is_taken_as_it_is() {
        let mut bench = Bench::new(48_000);
        for n in 0..10 {
            bench.unit(9_000_000 + n * 1920, 0, false);
        }
        for n in 0..10 {
            bench.unit(n * 1920, 0, false);
        }
        let first = bench.packets.iter().find(|packet| packet.discontinuity);
        assert_eq!(first.unwrap().pts, -585);
    }

    #[test]
    fn a_new_rate_continues_without_a_break() {
        let mut bench = Bench::new(44_100);
        let mut pts = 0;
        for _ in 0..100 {
            bench.unit(pts / 90 * 90, 0, false);
            pts += 2090;
        }
        bench.timeline.set_rate(32_000);
        for _ in 0..100 {
            assert_eq!(bench.unit(pts / 90 * 90, 0, false), Continuity::Continues);
            pts += 2880;
        }
        let spacing = |pair: &[Packet]| pair[1].pts - pair[0].pts;
        assert!(bench.packets.windows(2).all(|pair| spacing(pair) == 1800));
    }

    #[test]
    fn forgetting_pending_samples_starts_anew() {
        let mut bench = Bench::new(48_000);
        for n in 0..10 {
            bench.unit(n * 1920, 0, false);
        }
        bench.timeline.forget_pending();
        bench.available = 0;
        assert_eq!(bench.timeline.pending(), 0);
        assert_eq!(bench.unit(10 * 1920, 0, false), Continuity::Restarts);
        bench.unit(11 * 1920, 0, false);
        let [.., before, first, _] = bench.packets[..] else {
            panic!("too few packets")
        };
        assert!(first.discontinuity);
        assert!(first.pts >= before.pts + 1800);
    }

    #[test]
    fn hostile_times_neither_panic_nor_go_far_back_in_small_steps() {
        let mut rng = StdRng::seed_from_u64(11);
        let mut bench = Bench::new(44_100);
        for n in 0..20_000 {
            let pts = match rng.random_range(0..6) {
                0 => rng.random(),
                1 => i64::MAX,
                2 => i64::MIN,
                _ => rng.random_range(-100_000..100_000),
            };
            bench.unit(pts, n, rng.random());
            assert!(bench.timeline.segments.len() <= 2 && bench.timeline.spans.len() <= 2);
        }
    }
}
