//! From a publisher's clock to the stream's timeline: one timeline for all its tracks, never backwards, continued when a
//! publisher returns, and unimpressed by clocks that jump.
//!
//! A publisher's clock differs from the timeline by an offset. Its tracks normally share it. It is chosen anew when a time
//! can't be meant (far back, or ahead by more than the time that really passed): the timeline then goes on from where it would be by
//! the time of arrival. The tracks that meet a jump later adopt the offset that the first one found, which keeps them together.

use std::time::{Duration, Instant};

use crate::id::TrackId;
use crate::time::MediaTime;

/// A clock ahead of its own last time by more than this and the time that really passed has jumped. Publishers that drop frames
/// from a full send buffer stay below it.
const AHEAD_MAX: Duration = Duration::from_secs(3);

/// A clock further back than this has jumped; up to it, times are repaired to go on by one tick.
const BACK_MAX: MediaTime = MediaTime::from_millis(1000);

/// How far apart the first picture and the first sound may be; beyond it, the two count from different zeros.
const SKEW_MAX: MediaTime = MediaTime::from_millis(5000);

/// The smallest step of DTS within a track.
const STEP: MediaTime = MediaTime::from_ticks(1);

/// Where a unit goes on the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Its decode time on the timeline, above that of the unit before it.
    pub(super) dts: MediaTime,
    /// Timeline minus publisher clock; the same for its presentation time.
    pub(super) offset: MediaTime,
    /// The publisher's clock jumped before it.
    pub(super) jumped: bool,
    /// Its time had to be moved to keep the order.
    pub(super) repaired: bool,
}

/// The mapping. One per stream.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    lanes: Vec<Lane>,
    /// The latest unit that arrived, of any publisher: where the timeline is by the time of arrival.
    front: Option<(MediaTime, Instant)>,
}

/// A track.
#[derive(Debug, Clone, Copy)]
struct Lane {
    track: TrackId,
    offset: Option<MediaTime>,
    /// Of the present publisher or of one before it: the track never goes back.
    last: Option<MediaTime>,
    last_at: Option<Instant>,
}

impl Timeline {
    /// Another publisher begins, with another clock.
    pub(super) fn begin(&mut self) {
        for lane in &mut self.lanes {
            lane.offset = None;
            lane.last_at = None;
        }
    }

    /// A track is gone for good.
    pub(super) fn forget(&mut self, track: TrackId) {
        self.lanes.retain(|lane| lane.track != track);
    }

    /// Timeline minus clock of a track of the present publisher; none before its first unit.
    pub(super) fn offset(&self, track: TrackId) -> Option<MediaTime> {
        self.lanes.iter().find(|lane| lane.track == track)?.offset
    }

    /// Where the timeline is by the time of arrival; none before the first unit.
    pub(super) fn present(&self, now: Instant) -> Option<MediaTime> {
        let (front, at) = self.front?;
        Some(front + span(now.saturating_duration_since(at)))
    }

    /// Places a unit.
    pub(super) fn map(&mut self, now: Instant, track: TrackId, dts: MediaTime) -> Mapped {
        let at = self.lane(track);
        let own = self.lanes[at];
        let fits = |offset: &MediaTime| self.fits(now, &own, dts + *offset);
        let known = own.offset;
        let offset = known
            .filter(fits)
            .or_else(|| {
                // Who heard from the publisher last knows its clock best.
                let others = self.lanes.iter().filter(|lane| lane.track != track);
                let fitting = others.filter(|lane| lane.offset.as_ref().is_some_and(fits));
                fitting.max_by_key(|lane| lane.last_at)?.offset
            })
            .unwrap_or_else(|| self.expected(now, &own) - dts);

        let wanted = dts + offset;
        let dts = own.last.map_or(wanted, |last| wanted.max(last + STEP));
        if self.front.is_none_or(|(front, _)| dts >= front) {
            self.front = Some((dts, now));
        }
        self.lanes[at] = Lane {
            track,
            offset: Some(offset),
            last: Some(dts),
            last_at: Some(now),
        };
        Mapped {
            dts,
            offset,
            jumped: known.is_some_and(|known| known != offset),
            repaired: dts != wanted,
        }
    }

    fn lane(&mut self, track: TrackId) -> usize {
        let known = self.lanes.iter().position(|lane| lane.track == track);
        known.unwrap_or_else(|| {
            self.lanes.push(Lane {
                track,
                offset: None,
                last: None,
                last_at: None,
            });
            self.lanes.len() - 1
        })
    }

    /// Where a unit that arrives now belongs by the time of arrival: after its own track's last one, or the publisher's first.
    fn expected(&self, now: Instant, own: &Lane) -> MediaTime {
        let reference = own.last.zip(own.last_at).or(self.front);
        reference.map_or(MediaTime::ZERO, |(last, at)| {
            last + span(now.saturating_duration_since(at))
        })
    }

    fn fits(&self, now: Instant, own: &Lane, mapped: MediaTime) -> bool {
        let front = self.front.map_or(MediaTime::ZERO, |(front, _)| front);
        match (own.last, own.last_at) {
            (Some(last), Some(at)) => {
                let ahead = span(now.saturating_duration_since(at) + AHEAD_MAX);
                mapped > last - BACK_MAX && mapped <= last.max(front) + ahead
            }
            _ => mapped > front - SKEW_MAX && mapped < front + SKEW_MAX,
        }
    }
}

fn span(duration: Duration) -> MediaTime {
    let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
    MediaTime::from_samples(micros, 1_000_000)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Bench {
        timeline: Timeline,
        start: Instant,
        now_ms: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                timeline: Timeline::default(),
                start: headwater_test_now(),
                now_ms: 0,
            }
        }

        fn at(&mut self, now_ms: u64, track: TrackId, dts_ms: i64) -> (i64, bool) {
            self.now_ms = now_ms;
            let now = self.start + Duration::from_millis(now_ms);
            let mapped = self
                .timeline
                .map(now, track, MediaTime::from_millis(dts_ms));
            (mapped.dts.as_millis(), mapped.jumped)
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant to start from")]
    fn headwater_test_now() -> Instant {
        Instant::now()
    }

    const VIDEO: TrackId = TrackId::SOURCE_VIDEO;
    const AUDIO: TrackId = TrackId::SOURCE_AUDIO;
    const LOWER: TrackId = TrackId::FIRST_RENDITION;

    #[test]
    fn picture_and_sound_share_an_offset() {
        let mut bench = Bench::new();
        assert_eq!(bench.at(0, VIDEO, 7000), (0, false));
        assert_eq!(bench.at(1, AUDIO, 7010), (10, false));
        assert_eq!(bench.at(33, VIDEO, 7033), (33, false));
    }

    #[test]
    fn sound_with_another_zero_is_placed_by_its_arrival() {
        let mut bench = Bench::new();
        bench.at(0, VIDEO, 4_000_000);
        assert_eq!(bench.at(20, AUDIO, 0), (20, false));
        assert_eq!(bench.at(33, VIDEO, 4_000_033), (33, false));
        assert_eq!(bench.at(43, AUDIO, 23), (43, false));
    }

    #[test]
    fn a_jump_of_the_clock_moves_both_tracks_alike() {
        for jump in [-3_000_000, 3_000_000] {
            let mut bench = Bench::new();
            bench.at(0, VIDEO, 0);
            bench.at(0, AUDIO, 5);
            assert_eq!(bench.at(40, VIDEO, 40 + jump), (40, true), "{jump}");
            assert_eq!(bench.at(41, AUDIO, 28), (28, false), "{jump}: a straggler");
            assert_eq!(bench.at(50, AUDIO, 51 + jump), (51, true), "{jump}");
            assert_eq!(bench.at(80, VIDEO, 80 + jump), (80, false), "{jump}");
        }
    }

    #[test]
    fn renditions_stay_together_whichever_meets_the_jump_first() {
        for (first, second) in [(VIDEO, LOWER), (LOWER, VIDEO)] {
            let mut bench = Bench::new();
            bench.at(0, VIDEO, 500);
            bench.at(9, LOWER, 500);
            let (front, jumped) = bench.at(40, first, 9_000_540);
            assert!(jumped);
            assert_eq!(bench.at(51, second, 9_000_540), (front, true));
            assert_eq!(bench.at(80, second, 9_000_580), (front + 40, false));
            assert_eq!(bench.at(81, first, 9_000_580), (front + 40, false));
        }
    }

    #[test]
    fn a_pause_is_no_jump() {
        let mut bench = Bench::new();
        bench.at(0, VIDEO, 0);
        assert_eq!(bench.at(60_000, VIDEO, 60_010), (60_010, false));
        // A stalled connection that delivers late, in one go.
        assert_eq!(bench.at(70_000, VIDEO, 60_050), (60_050, false));
        assert_eq!(bench.at(70_000, VIDEO, 60_090), (60_090, false));
    }

    #[test]
    fn a_returning_publisher_goes_on_after_the_time_it_was_away() {
        let mut bench = Bench::new();
        bench.at(0, VIDEO, 500);
        bench.at(0, AUDIO, 520);
        bench.timeline.begin();
        assert_eq!(bench.at(10_000, AUDIO, 0), (10_020, false));
        assert_eq!(bench.at(10_000, VIDEO, 10), (10_030, false));
    }

    proptest! {
        #[test]
        fn whatever_the_clock_does_each_track_only_goes_forward(
            steps in proptest::collection::vec((0u64..5000, 0usize..3, any::<i64>()), 1..200),
        ) {
            let mut bench = Bench::new();
            let mut last = [None; 3];
            let mut now = bench.start;
            for (wait, track, ticks) in steps {
                now += Duration::from_millis(wait);
                let id = [VIDEO, AUDIO, LOWER][track];
                let mapped = bench.timeline.map(now, id, MediaTime::from_ticks(ticks >> 8));
                let last = &mut last[track];
                prop_assert!(last.is_none_or(|last| mapped.dts > last));
                *last = Some(mapped.dts);
            }
        }
    }
}
