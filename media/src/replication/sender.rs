//! The upstream's half of a subscription: which units go out when, and what is skipped for a subscriber that is too slow.
//!
//! Two bounds hold at all times: what was sent and is not acknowledged, and what waits to be sent, each within
//! [`Config::bytes`] and [`Config::span`]. When what waits outgrows its bound, each video track skips to its newest keyframe in it, with
//! the audio from the earliest of those on, or everything is dropped if that is not enough; tracks then go on at their next keyframe,
//! behind a [`Output::Gap`].
//!
//! A subscriber that says nothing at all has stopped, and nobody is served by skipping for it: what waits is kept for [`SILENT_MAX`], as it
//! would be if the call had broken and it came back to go on from the resume window. When it acknowledges again, what waits has just come.
//!
//! Feed it (`handle_*`), then take [`Sender::poll_output`] as long as the transport accepts more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Position;
use crate::id::{Epoch, TrackId};
use crate::time::MediaTime;
use crate::track::StreamInfo;
use crate::unit::{AccessUnit, MediaKind};

/// How long units wait for a subscriber that doesn't acknowledge anything. With the two seconds that are sent before they wait, it is what
/// a resume window holds by default; the bytes are bounded as ever.
pub const SILENT_MAX: Duration = Duration::from_secs(8);

/// Bounds of a [`Sender`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Payload bytes that may be unacknowledged, and as many that may wait. A backlog at the start may exceed it: the caches that
    /// it comes from have their own bound.
    pub bytes: usize,
    /// How long a unit may be unacknowledged before no more are sent, and how long one may wait before units are skipped, unless the
    /// subscriber is silent.
    pub span: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bytes: 8 << 20,
            span: Duration::from_secs(2),
        }
    }
}

/// Why units were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapReason {
    /// The subscriber was too slow.
    Overflow,
    /// It did not want the track for a while, or what it missed is not kept.
    NotKept,
}

/// What to send next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// What the stream is.
    Info(Arc<StreamInfo>),
    /// A unit.
    Unit(Arc<AccessUnit>),
    /// Units that will not come.
    Gap {
        /// Their track.
        track: TrackId,
        /// Their epoch.
        epoch: Epoch,
        /// How many (count).
        lost: u64,
        /// Why.
        reason: GapReason,
    },
}

/// An acknowledgement of units that were never sent: the peer is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{acked} units acknowledged of {sent} sent")]
pub struct AckAhead {
    /// What the peer says.
    pub acked: u64,
    /// What is true.
    pub sent: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Sender {
    config: Config,
    want: Vec<TrackId>,
    tracks: Vec<TrackState>,
    queue: VecDeque<Entry>,
    /// Payload bytes of live units in `queue`.
    waiting_bytes: usize,
    in_flight: VecDeque<(Instant, usize)>,
    in_flight_bytes: usize,
    /// The last acknowledgement of something.
    acked_at: Option<Instant>,
    /// It has been silent for so long that units were skipped: keeping more than for anybody serves nothing.
    given_up: bool,
    sent_units: u64,
    acked_units: u64,
    skipped_units: u64,
    overflows: u64,
}

#[derive(Debug)]
enum Entry {
    Info(Arc<StreamInfo>),
    Unit {
        at: Instant,
        /// Not of a backlog.
        live: bool,
        unit: Arc<AccessUnit>,
    },
}

#[derive(Debug)]
struct TrackState {
    id: TrackId,
    kind: Option<MediaKind>,
    epoch: Epoch,
    /// What the queue takes next; none before the first unit.
    queue_next: Option<u64>,
    /// What the subscriber expects next; none before the first unit.
    send_next: Option<u64>,
    awaiting_keyframe: bool,
    overflowed: bool,
}

impl Sender {
    /// For a subscriber that wants `want` and has the positions `have`, if the stream resumes there; else none.
    pub fn new(config: Config, want: Vec<TrackId>, have: &[Position]) -> Self {
        let tracks = have.iter().map(|position| TrackState {
            id: position.track,
            kind: None,
            epoch: position.epoch,
            queue_next: position.sequence.checked_add(1),
            send_next: position.sequence.checked_add(1),
            awaiting_keyframe: false,
            overflowed: false,
        });
        Self {
            config,
            want,
            tracks: tracks.collect(),
            queue: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            acked_at: None,
            given_up: false,
            sent_units: 0,
            acked_units: 0,
            skipped_units: 0,
            overflows: 0,
        }
    }

    /// The stream changed, or a second passed. Goes out in order with the units.
    pub fn handle_info(&mut self, info: Arc<StreamInfo>) {
        for track in &info.tracks {
            let state = self.track(track.id, info.epoch);
            state.kind = Some(track.configuration.kind());
        }
        if let Some(Entry::Info(last)) = self.queue.back_mut() {
            *last = info;
        } else {
            self.queue.push_back(Entry::Info(info));
        }
    }

    /// Units from the stream's caches: at the start, and for tracks that [`Self::handle_want`] named.
    pub fn handle_backlog(&mut self, now: Instant, units: Vec<Arc<AccessUnit>>) {
        for unit in units {
            self.enqueue(now, unit, false);
        }
    }

    /// The next unit of the stream.
    pub fn handle_unit(&mut self, now: Instant, unit: Arc<AccessUnit>) {
        self.enqueue(now, unit, true);
        if self.overflowing(now) {
            self.skip(now);
        }
    }

    /// Other tracks are wanted from now on. Returns those that are new: the owner gives their backlog, if it has one.
    pub fn handle_want(&mut self, want: Vec<TrackId>) -> Vec<TrackId> {
        let fresh: Vec<TrackId> = want
            .iter()
            .copied()
            .filter(|id| !self.want.contains(id))
            .collect();
        self.want = want;
        let want = &self.want;
        let mut dropped_bytes = 0;
        self.queue.retain(|entry| match entry {
            Entry::Unit { unit, live, .. } if !want.contains(&unit.track) => {
                dropped_bytes += if *live { unit.payload.len() } else { 0 };
                false
            }
            Entry::Unit { .. } | Entry::Info(_) => true,
        });
        self.waiting_bytes = self.waiting_bytes.saturating_sub(dropped_bytes);
        for track in &mut self.tracks {
            if !self.want.contains(&track.id) || fresh.contains(&track.id) {
                // The subscriber forgets it as well, and begins with the GOP again that it may have had a part of.
                track.queue_next = None;
                track.send_next = None;
                track.awaiting_keyframe = true;
            }
        }
        fresh
    }

    /// The subscriber has read this many units since the start.
    ///
    /// # Errors
    /// If it claims more than were sent: end the call.
    pub fn handle_ack(&mut self, now: Instant, units: u64) -> Result<(), AckAhead> {
        if units > self.sent_units {
            return Err(AckAhead {
                acked: units,
                sent: self.sent_units,
            });
        }
        if self.acked_units < units {
            if self.silent(now) {
                self.restart_waits(now);
            }
            self.acked_at = Some(now);
            self.given_up = false;
        }
        while self.acked_units < units {
            self.acked_units += 1;
            if let Some((_, bytes)) = self.in_flight.pop_front() {
                self.in_flight_bytes = self.in_flight_bytes.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    /// What to send next; none until more comes in or is acknowledged.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        let open = self.in_flight.front().is_none_or(|(since, _)| {
            self.in_flight_bytes < self.config.bytes
                && now.saturating_duration_since(*since) < self.config.span
        });
        match self.queue.front()? {
            Entry::Info(_) => {}
            Entry::Unit { .. } if !open => return None,
            Entry::Unit { unit, .. } => {
                if let Some(gap) = self.gap_before(&Arc::clone(unit)) {
                    return Some(gap);
                }
            }
        }
        match self.queue.pop_front()? {
            Entry::Info(info) => Some(Output::Info(info)),
            Entry::Unit { unit, live, .. } => {
                let bytes = unit.payload.len();
                if live {
                    self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes);
                }
                self.in_flight.push_back((now, bytes));
                self.in_flight_bytes = self.in_flight_bytes.saturating_add(bytes);
                self.sent_units += 1;
                let track = self.track(unit.track, unit.epoch);
                if track.epoch == unit.epoch {
                    // Else the track is in a newer epoch already, whose sequence this one says nothing about.
                    track.send_next = Some(unit.sequence + 1);
                }
                Some(Output::Unit(unit))
            }
        }
    }

    /// Units skipped because the subscriber was too slow (count).
    pub const fn skipped_units(&self) -> u64 {
        self.skipped_units
    }

    /// How often units were skipped (count).
    pub const fn overflows(&self) -> u64 {
        self.overflows
    }

    /// Payload bytes that are sent and not acknowledged, and that wait.
    pub const fn held_bytes(&self) -> (usize, usize) {
        (self.in_flight_bytes, self.waiting_bytes)
    }

    fn gap_before(&mut self, unit: &AccessUnit) -> Option<Output> {
        let track = self.track(unit.track, unit.epoch);
        if track.epoch != unit.epoch {
            return None;
        }
        let lost = unit.sequence.checked_sub(track.send_next?)?;
        if lost == 0 {
            return None;
        }
        track.send_next = Some(unit.sequence);
        let reason = if std::mem::take(&mut track.overflowed) {
            GapReason::Overflow
        } else {
            GapReason::NotKept
        };
        Some(Output::Gap {
            track: unit.track,
            epoch: unit.epoch,
            lost,
            reason,
        })
    }

    fn enqueue(&mut self, now: Instant, unit: Arc<AccessUnit>, live: bool) {
        if !self.want.contains(&unit.track) {
            return;
        }
        let track = self.track(unit.track, unit.epoch);
        if unit.epoch < track.epoch || track.queue_next.is_some_and(|next| unit.sequence < next) {
            // A backlog overlaps with what went out before it.
            return;
        }
        if track.queue_next.is_some_and(|next| unit.sequence > next) {
            track.awaiting_keyframe = true;
        }
        if track.awaiting_keyframe && !unit.keyframe {
            if track.overflowed {
                self.skipped_units += 1;
            }
            return;
        }
        track.awaiting_keyframe = false;
        track.queue_next = Some(unit.sequence + 1);
        if live {
            self.waiting_bytes = self.waiting_bytes.saturating_add(unit.payload.len());
        }
        self.queue.push_back(Entry::Unit {
            at: now,
            live,
            unit,
        });
    }

    fn overflowing(&self, now: Instant) -> bool {
        let oldest = self.queue.iter().find_map(|entry| match entry {
            Entry::Unit { at, .. } => Some(*at),
            Entry::Info(_) => None,
        });
        let patience = if self.silent(now) && !self.given_up {
            self.config.span.max(SILENT_MAX)
        } else {
            self.config.span
        };
        self.waiting_bytes > self.config.bytes
            || oldest.is_some_and(|at| now.saturating_duration_since(at) > patience)
    }

    /// The subscriber has said nothing for as long as a unit may be unacknowledged. One that is only slow says what it has read.
    fn silent(&self, now: Instant) -> bool {
        let oldest = self.in_flight.front().map(|(since, _)| *since);
        oldest.max(self.acked_at).is_some_and(|since| {
            oldest.is_some() && now.saturating_duration_since(since) >= self.config.span
        })
    }

    /// What waits has just come, as it would have with a new call.
    fn restart_waits(&mut self, now: Instant) {
        for entry in &mut self.queue {
            if let Entry::Unit { at, .. } = entry {
                *at = now;
            }
        }
    }

    /// Skips each video track to its newest keyframe that waits, and what has none to its end; if they are the oldest units already, or
    /// that is still too much, over all of it.
    fn skip(&mut self, now: Instant) {
        self.overflows += 1;
        self.given_up = self.silent(now);
        // Of each video track with units that wait.
        let mut newest: Vec<(TrackId, Option<MediaTime>)> = Vec::new();
        for entry in self.queue.iter().rev() {
            let Entry::Unit { unit, .. } = entry else {
                continue;
            };
            if !self.is_video(unit.track) {
                continue;
            }
            let keyframe = unit.keyframe.then_some(unit.dts);
            match newest.iter_mut().find(|(track, _)| *track == unit.track) {
                Some((_, found)) => *found = found.or(keyframe),
                None => newest.push((unit.track, keyframe)),
            }
        }
        let earliest = newest.iter().filter_map(|(_, keyframe)| *keyframe).min();
        if let Some(earliest) = earliest {
            self.drop_waiting(|unit| {
                let video = newest.iter().find(|(track, _)| *track == unit.track);
                video.map_or(unit.dts < earliest, |(_, keyframe)| {
                    keyframe.is_none_or(|keyframe| unit.dts < keyframe)
                })
            });
        }
        if earliest.is_none() || self.overflowing(now) {
            self.drop_waiting(|_| true);
        }
    }

    fn drop_waiting(&mut self, drop: impl Fn(&AccessUnit) -> bool) {
        let mut queue = std::mem::take(&mut self.queue);
        queue.retain(|entry| {
            let Entry::Unit { unit, live, .. } = entry else {
                return true;
            };
            if !drop(unit) {
                return true;
            }
            self.skipped_units += 1;
            if *live {
                self.waiting_bytes = self.waiting_bytes.saturating_sub(unit.payload.len());
            }
            let next = unit.sequence + 1;
            let track = self.track(unit.track, unit.epoch);
            if track.epoch == unit.epoch {
                track.overflowed = true;
                // Whether nothing of the track waits behind it.
                track.awaiting_keyframe |= track.queue_next == Some(next);
            }
            false
        });
        self.queue = queue;
    }

    fn is_video(&self, id: TrackId) -> bool {
        let mut tracks = self.tracks.iter();
        tracks.any(|track| track.id == id && track.kind == Some(MediaKind::Video))
    }

    fn track(&mut self, id: TrackId, epoch: Epoch) -> &mut TrackState {
        let at = self
            .tracks
            .iter()
            .position(|track| track.id == id)
            .unwrap_or_else(|| {
                self.tracks.push(TrackState {
                    id,
                    kind: None,
                    epoch,
                    queue_next: None,
                    send_next: None,
                    awaiting_keyframe: true,
                    overflowed: false,
                });
                self.tracks.len() - 1
            });
        let track = &mut self.tracks[at];
        if epoch > track.epoch {
            track.epoch = epoch;
            track.queue_next = None;
            track.send_next = None;
            track.awaiting_keyframe = true;
            track.overflowed = false;
        }
        track
    }
}
