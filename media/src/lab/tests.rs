//! What the cores must achieve together: the estimate by itself in the cases of RFC 8867 and others, with the policy over traces, and the table.

mod estimate;
mod flows;
mod rfc8867;
mod tcp;

use std::time::{Duration, Instant};

use super::*;
use crate::id::TrackId;
use crate::testkit;

const LOW: TrackId = TrackId(0);
const MIDDLE: TrackId = TrackId(1);
const TOP: TrackId = TrackId(2);

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn headwater(trace: &Trace) -> Outcome {
    run(trace, Policy::Headwater, 1, testkit::start())
}

impl Outcome {
    /// What the first viewer saw at a time since the beginning.
    fn track_at(&self, time: Duration) -> Option<TrackId> {
        let at = self.began + time;
        let tracks = &self.seen[0].tracks;
        tracks
            .iter()
            .rev()
            .find(|(since, _)| *since <= at)
            .map(|(_, track)| *track)
    }

    /// The longest time without a new picture that begins in a span.
    fn longest_gap(&self, from: Duration, to: Duration) -> Duration {
        let span = self.began + from..self.began + to;
        let gaps = self.seen[0]
            .gaps
            .iter()
            .filter(|(since, _)| span.contains(since));
        gaps.map(|(from, to)| *to - *from).max().unwrap_or_default()
    }

    /// Of a span, the part that a rendition was shown (per cent).
    fn share(&self, track: TrackId, from: Duration, to: Duration) -> usize {
        let steps = (to - from).as_millis() / 100;
        let at = |i: u128| from + Duration::from_millis(100) * u32::try_from(i).unwrap();
        let shown = (0..steps)
            .filter(|i| self.track_at(at(*i)) == Some(track))
            .count();
        shown * 100 / usize::try_from(steps).unwrap()
    }

    /// When a rendition was shown first after a time.
    fn first(&self, track: TrackId, after: Duration) -> Option<Duration> {
        let at = self.began + after;
        let mut tracks = self.seen[0].tracks.iter();
        tracks
            .find(|(since, shown)| *since >= at && *shown == track)
            .map(|(since, _)| *since - at)
    }
}

#[test]
fn a_step_down_is_followed_within_a_second_and_the_way_back_within_ten() {
    let outcome = headwater(&Trace::step());
    let left = outcome.seen[0]
        .tracks
        .iter()
        .find(|(at, track)| *at > outcome.began + secs(31) && *track != TOP);
    let (at, _) = left.expect("it left the top");
    let after = *at - outcome.began - secs(31);
    // As shown, playout delay included.
    assert!(after < Duration::from_millis(1300), "{after:?}");
    let gap = outcome.longest_gap(secs(31), secs(61));
    assert!(gap < Duration::from_millis(500), "{gap:?}");
    assert_eq!(outcome.track_at(secs(45)), Some(MIDDLE));
    let back = outcome.first(TOP, secs(61)).expect("it came back");
    assert!(back < secs(10), "{back:?}");
    assert_eq!(outcome.longest_gap(secs(61), secs(99)), Duration::ZERO);
}

#[test]
fn every_rendition_has_its_link_and_sound_alone_has_a_way_back() {
    let outcome = headwater(&Trace::stairs());
    assert!(outcome.share(MIDDLE, secs(8), secs(31)) >= 90);
    assert!(outcome.share(LOW, secs(33), secs(61)) >= 95);
    // No picture while there is no room for one.
    assert!(outcome.longest_gap(secs(61), secs(66)) > secs(10));
    let gap_ends = outcome.seen[0]
        .gaps
        .iter()
        .map(|(_, to)| *to - outcome.began)
        .max()
        .unwrap();
    assert!(gap_ends < secs(81 + 8), "{gap_ends:?}");
    assert!(outcome.first(MIDDLE, secs(81)).expect("back") < secs(12));
}

#[test]
fn on_a_steady_link_it_stays_where_it_belongs() {
    let outcome = headwater(&Trace::steady());
    let share = outcome.share(MIDDLE, secs(0), secs(120));
    assert!(share >= 95, "{share}");
    let ups = outcome.seen[0]
        .tracks
        .iter()
        .skip(1)
        .filter(|(_, track)| *track == TOP)
        .count();
    assert!(ups <= 2, "{ups} failed");
}

#[test]
fn loss_that_is_not_congestion_costs_nothing() {
    let outcome = headwater(&Trace::random_loss());
    let share = outcome.share(TOP, secs(1), secs(120));
    assert!(share >= 95, "{share}");
}

#[test]
fn those_who_share_a_link_share_it() {
    let outcome = headwater(&Trace::competing());
    for seen in &outcome.seen {
        let shown: u64 = seen.shown.values().sum();
        assert!(shown > 100 * 30, "{seen:?}");
    }
    assert!(outcome.utilisation > 0.75, "{}", outcome.utilisation);
}

#[test]
fn a_long_way_is_no_obstacle() {
    for delay in [5, 100, 200] {
        let mut trace = Trace::step();
        for step in &mut trace.steps {
            step.delay = Duration::from_millis(delay);
        }
        let outcome = headwater(&trace);
        assert!(
            outcome.utilisation > 0.85,
            "{delay} ms: {}",
            outcome.utilisation
        );
        assert!(outcome.frozen < secs(3), "{delay} ms: {:?}", outcome.frozen);
        assert!(
            outcome.first(TOP, secs(61)).expect("back") < secs(15),
            "{delay} ms"
        );
    }
}

#[test]
fn it_beats_the_others() {
    let seeds = [1, 2, 6];
    for seed in seeds {
        let report = run_all(seed, testkit::start());
        let mean = |policy: Policy| report.mean[policy.name()];
        let ours = mean(Policy::Headwater);
        assert!(
            ours.utilisation >= 0.85,
            "seed {seed}\n{}",
            report.markdown()
        );
        for other in [Policy::Throughput, Policy::NextKeyframe].map(mean) {
            assert!(
                ours.utilisation >= other.utilisation,
                "{}",
                report.markdown()
            );
            assert!(ours.freezes * 2 <= other.freezes, "{}", report.markdown());
        }
    }
}

#[test]
fn it_repeats_from_its_seed() {
    let report = |after: u64| {
        let outcome = run(
            &Trace::lte(3),
            Policy::Headwater,
            3,
            testkit::start() + secs(after),
        );
        (
            outcome.freezes,
            outcome.frozen,
            outcome.switches,
            outcome.queue_p95,
        )
    };
    assert_eq!(report(0), report(7));
}
