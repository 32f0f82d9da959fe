//! One stream from what several upstreams send of it: by track, epoch and sequence, each unit once and in order.
//!
//! What one upstream skipped is awaited from another for a bounded time, while what came behind it waits; so a stream that comes by two
//! upstreams loses nothing when one of them dies. With one upstream nothing is ever awaited. After a loss a track goes on at a keyframe.
//!
//! Feed it what each upstream's [`Receiver`](super::Receiver) delivers, then take [`Merge::poll_unit`] until there is none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Position;
use crate::id::{Epoch, TrackId};
use crate::unit::AccessUnit;

/// How long a missing unit is awaited from another upstream. Viewers see a still picture meanwhile, which beats a skip to the
/// next keyframe only while it is short.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// Payload bytes of a track that wait for what is missing before them.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Names an upstream among those that are merged: 0, 1 …
pub type Leg = usize;

/// A unit to hand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// Units of its track that are missing before it (count).
    pub lost: u64,
    /// The unit.
    pub unit: Arc<AccessUnit>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Merge {
    epoch: Option<Epoch>,
    live: Vec<Leg>,
    tracks: Vec<Track>,
    ready: VecDeque<Merged>,
}

#[derive(Debug)]
struct Track {
    id: TrackId,
    /// What should come next.
    next: u64,
    /// Units lost since the last one handed on (count).
    lost: u64,
    awaiting_keyframe: bool,
    waiting: BTreeMap<u64, (Instant, Arc<AccessUnit>)>,
    waiting_bytes: usize,
    /// The newest that each upstream sent.
    newest: Vec<(Leg, u64)>,
}

impl Merge {
    /// An upstream begins to send.
    pub fn handle_up(&mut self, leg: Leg) {
        if !self.live.contains(&leg) {
            self.live.push(leg);
        }
        self.forget(leg);
    }

    /// An upstream is lost: what only it could have sent is not awaited any more.
    pub fn handle_down(&mut self, now: Instant, leg: Leg) {
        self.live.retain(|live| *live != leg);
        self.forget(leg);
        self.settle(now);
    }

    /// What an upstream says of the publisher. True: this is what counts from now on, or counted already.
    pub fn handle_epoch(&mut self, epoch: Epoch) -> bool {
        if self.epoch.is_some_and(|present| epoch < present) {
            return false;
        }
        if self.epoch != Some(epoch) {
            self.epoch = Some(epoch);
            self.tracks.clear();
        }
        true
    }

    /// Forgets everything: what comes has nothing to do with what was.
    pub fn reset(&mut self) {
        self.epoch = None;
        self.tracks.clear();
    }

    /// Only these tracks are wanted from now on: others are forgotten.
    pub fn handle_want(&mut self, want: &[TrackId]) {
        self.tracks.retain(|track| want.contains(&track.id));
    }

    /// A unit came by an upstream.
    pub fn handle_unit(&mut self, now: Instant, leg: Leg, unit: Arc<AccessUnit>) {
        if self.epoch != Some(unit.epoch) {
            return;
        }
        let sequence = unit.sequence;
        let at = self.tracks.iter().position(|track| track.id == unit.track);
        let at = at.unwrap_or_else(|| {
            self.tracks.push(Track::new(unit.track, sequence));
            self.tracks.len() - 1
        });
        let track = &mut self.tracks[at];
        match track.newest.iter_mut().find(|(known, _)| *known == leg) {
            Some((_, newest)) => *newest = sequence.max(*newest),
            None => track.newest.push((leg, sequence)),
        }
        if sequence >= track.next && !track.waiting.contains_key(&sequence) {
            track.waiting_bytes = track.waiting_bytes.saturating_add(unit.payload.len());
            track.waiting.insert(sequence, (now, unit));
        }
        track.settle(now, &self.live, &mut self.ready);
    }

    /// The next unit to hand on.
    pub fn poll_unit(&mut self) -> Option<Merged> {
        self.ready.pop_front()
    }

    /// Time passed: what is awaited for too long is given up.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.settle(now);
    }

    /// When to call [`Self::handle_timeout`]; none while nothing is awaited.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.tracks.iter().filter_map(Track::waiting_since);
        waiting.min().map(|since| since + WAIT_MAX)
    }

    /// Where an upstream is to go on: the last unit of each track that was handed on.
    pub fn have(&self) -> Vec<Position> {
        let Some(epoch) = self.epoch else {
            return Vec::new();
        };
        let positions = self.tracks.iter().filter_map(|track| {
            Some(Position {
                track: track.id,
                epoch,
                sequence: track.next.checked_sub(1)?,
            })
        });
        positions.collect()
    }

    /// The publisher's incarnation, if one is known.
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    fn forget(&mut self, leg: Leg) {
        for track in &mut self.tracks {
            track.newest.retain(|(known, _)| *known != leg);
        }
    }

    fn settle(&mut self, now: Instant) {
        for track in &mut self.tracks {
            track.settle(now, &self.live, &mut self.ready);
        }
    }
}

impl Track {
    const fn new(id: TrackId, next: u64) -> Self {
        Self {
            id,
            next,
            lost: 0,
            awaiting_keyframe: true,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            newest: Vec::new(),
        }
    }

    /// Hands on what can be: what follows, and what need not be waited for.
    fn settle(&mut self, now: Instant, live: &[Leg], ready: &mut VecDeque<Merged>) {
        while let Some(entry) = self.waiting.first_entry() {
            let sequence = *entry.key();
            let missing = sequence.saturating_sub(self.next);
            if missing > 0 && self.worth_waiting(now, live) {
                return;
            }
            let Some((_, (_, unit))) = self.waiting.pop_first() else {
                return;
            };
            self.waiting_bytes = self.waiting_bytes.saturating_sub(unit.payload.len());
            self.next = sequence.saturating_add(1);
            if missing > 0 {
                self.lost = self.lost.saturating_add(missing);
                self.awaiting_keyframe = true;
            }
            if self.awaiting_keyframe && !unit.keyframe {
                self.lost = self.lost.saturating_add(1);
                continue;
            }
            self.awaiting_keyframe = false;
            let lost = std::mem::take(&mut self.lost);
            ready.push_back(Merged { lost, unit });
        }
    }

    fn worth_waiting(&self, now: Instant, live: &[Leg]) -> bool {
        // Who has sent something newer has skipped it.
        let passed = |leg: &Leg| {
            let mut newest = self.newest.iter();
            newest.any(|(known, newest)| known == leg && *newest >= self.next)
        };
        let patient = self
            .waiting_since()
            .is_some_and(|since| now.saturating_duration_since(since) < WAIT_MAX);
        patient && self.waiting_bytes <= WAITING_BYTES_MAX && !live.iter().all(passed)
    }

    fn waiting_since(&self) -> Option<Instant> {
        let (_, (since, _)) = self.waiting.first_key_value()?;
        Some(*since)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testkit;
    use crate::time::MediaTime;

    const GOP: u64 = 10;

    fn unit(epoch: u64, sequence: u64) -> Arc<AccessUnit> {
        Arc::new(AccessUnit {
            keyframe: sequence.is_multiple_of(GOP),
            ..testkit::unit(TrackId::SOURCE_VIDEO, epoch, sequence, MediaTime::ZERO)
        })
    }

    fn merge(legs: usize) -> Merge {
        let mut merge = Merge::default();
        (0..legs).for_each(|leg| merge.handle_up(leg));
        assert!(merge.handle_epoch(Epoch(1)));
        merge
    }

    fn send(merge: &mut Merge, now: Instant, leg: Leg, sequences: &[u64]) -> Vec<(u64, u64)> {
        for sequence in sequences {
            merge.handle_unit(now, leg, unit(1, *sequence));
        }
        taken(merge)
    }

    fn taken(merge: &mut Merge) -> Vec<(u64, u64)> {
        let units = std::iter::from_fn(|| merge.poll_unit());
        units
            .map(|merged| (merged.lost, merged.unit.sequence))
            .collect()
    }

    #[test]
    fn each_unit_is_handed_on_once_whoever_sends_it_first() {
        let now = testkit::start();
        let mut merge = merge(2);
        assert_eq!(send(&mut merge, now, 0, &[0, 1]), [(0, 0), (0, 1)]);
        assert_eq!(send(&mut merge, now, 1, &[0, 1, 2]), [(0, 2)]);
        assert_eq!(send(&mut merge, now, 0, &[2, 3]), [(0, 3)]);
        assert_eq!(merge.have()[0].sequence, 3);
    }

    #[test]
    fn what_one_upstream_skips_is_awaited_from_the_other() {
        let now = testkit::start();
        let mut merge = merge(2);
        send(&mut merge, now, 0, &[0, 1]);
        send(&mut merge, now, 1, &[0]);
        assert_eq!(send(&mut merge, now, 0, &[10, 11]), []);
        assert_eq!(merge.poll_timeout(), Some(now + WAIT_MAX));
        let rest: Vec<(u64, u64)> = (2..=11).map(|sequence| (0, sequence)).collect();
        assert_eq!(send(&mut merge, now, 1, &[1, 2, 3, 4, 5, 6, 7, 8, 9]), rest);
        assert_eq!(merge.poll_timeout(), None);
    }

    #[test]
    fn what_nobody_can_send_any_more_is_not_awaited() {
        let now = testkit::start();
        // One upstream alone.
        let mut one = merge(1);
        send(&mut one, now, 0, &[0]);
        assert_eq!(send(&mut one, now, 0, &[5, 6]), []);
        assert_eq!(send(&mut one, now, 0, &[10]), [(9, 10)], "on at a keyframe");
        // Both have skipped it.
        let mut both = merge(2);
        send(&mut both, now, 0, &[0]);
        assert_eq!(send(&mut both, now, 0, &[10]), []);
        assert_eq!(send(&mut both, now, 1, &[20]), [(9, 10)]);
        assert_eq!(send(&mut both, now, 0, &[30]), [(9, 20)]);
        // The other one is lost while it is awaited.
        let mut lost = merge(2);
        send(&mut lost, now, 0, &[0]);
        assert_eq!(send(&mut lost, now, 0, &[10]), []);
        lost.handle_down(now, 1);
        assert_eq!(taken(&mut lost), [(9, 10)]);
        // It takes too long.
        let mut late = merge(2);
        send(&mut late, now, 0, &[0]);
        assert_eq!(send(&mut late, now, 0, &[10]), []);
        late.handle_timeout(now + WAIT_MAX);
        assert_eq!(taken(&mut late), [(9, 10)]);
        assert_eq!(
            send(&mut late, now, 1, &[1, 2]),
            [],
            "it is too late for those"
        );
    }

    #[test]
    fn epochs_are_never_mixed() {
        let now = testkit::start();
        let mut merge = merge(2);
        send(&mut merge, now, 0, &[0, 1]);
        assert!(merge.handle_epoch(Epoch(2)));
        assert!(
            !merge.handle_epoch(Epoch(1)),
            "the other one has not heard of it"
        );
        assert_eq!(send(&mut merge, now, 1, &[2]), []);
        merge.handle_unit(now, 0, unit(2, 0));
        assert_eq!(taken(&mut merge), [(0, 0)]);
        assert_eq!(merge.have()[0].epoch, Epoch(2));
    }

    proptest! {
        /// Whichever of two upstreams dies when, and however far the other lags: nothing is lost, nothing comes twice.
        #[test]
        fn nothing_is_lost_when_one_of_two_dies(
            total in 1u64..60, dies_after in 0u64..60, lag in 0u64..20, dies: bool,
            skips in 0u64..60, skipped in 0u64..12,
        ) {
            let now = testkit::start();
            let mut merge = merge(2);
            let (dead, living) = if dies { (0, 1) } else { (1, 0) };
            let mut out = Vec::new();
            for step in 0..total + lag {
                // The one that dies has skipped something before.
                if step < dies_after.min(total) && !(skips..skips + skipped).contains(&step) {
                    merge.handle_unit(now, dead, unit(1, step));
                }
                if step == dies_after {
                    merge.handle_down(now, dead);
                }
                if let Some(sequence) = step.checked_sub(lag).filter(|sequence| *sequence < total) {
                    merge.handle_unit(now, living, unit(1, sequence));
                }
                out.extend(taken(&mut merge));
            }
            // What began the stream was the first that anybody sent.
            let first = out.first().map(|(_, sequence)| *sequence);
            prop_assume!(first == Some(0));
            let expected: Vec<(u64, u64)> = (0..total).map(|sequence| (0, sequence)).collect();
            prop_assert_eq!(out, expected);
        }
    }
}
