//! The subscriber's half of a subscription: order, gaps, resume, acknowledgements, pings, and the verdict that an upstream is dead.
//!
//! One `Receiver` outlives many calls: [`Receiver::handle_connected`] begins each, and [`Receiver::have`] says where to resume. Feed
//! it everything that arrives, and take [`Receiver::poll_output`] after each input and at [`Receiver::poll_timeout`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Position;
use super::clock::{Exchange, OffsetFilter};
use crate::id::{Epoch, TrackId};
use crate::track::StreamInfo;
use crate::unit::AccessUnit;

/// How often units are acknowledged, at least.
pub const ACK_INTERVAL: Duration = Duration::from_millis(100);

/// How often the upstream is pinged.
pub const PING_INTERVAL: Duration = Duration::from_millis(500);

/// So many pings without any sign of life, and the upstream is dead (count).
const PINGS_MISSED_MAX: u32 = 3;

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// So many units were read from this call.
    Ack {
        /// Count since the call began.
        units: u64,
    },
    /// Ask for the upstream's clock. The owner stamps it with its own wall clock as it goes out.
    Ping,
}

/// What an upstream offers is older than what this node has: it no longer owns the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("epoch {offered} is older than {present}")]
pub struct StaleEpoch {
    /// The upstream's.
    pub offered: Epoch,
    /// What this node has.
    pub present: Epoch,
}

/// What becomes of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Hand it on.
    Deliver {
        /// Units of its track that are missing before it (count).
        lost: u64,
        /// The unit, its ingest time on this node's clock.
        unit: Arc<AccessUnit>,
    },
    /// It is of no use: a duplicate, of another epoch, or waiting for a keyframe.
    Discard,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Receiver {
    epoch: Option<Epoch>,
    /// The tracks the stream has; units of others are of no use.
    listed: Vec<TrackId>,
    /// Those that are asked for.
    wanted: Vec<TrackId>,
    tracks: Vec<TrackState>,
    clock: OffsetFilter,
    call: Option<Call>,
}

/// One call's state.
#[derive(Debug)]
struct Call {
    units: u64,
    /// Units came that aren't acknowledged: when they are to be.
    ack_at: Option<Instant>,
    ping_at: Instant,
    unanswered: u32,
}

#[derive(Debug)]
struct TrackState {
    id: TrackId,
    /// What should come next.
    next: u64,
    /// Units lost since the last one delivered (count).
    lost: u64,
    awaiting_keyframe: bool,
}

impl Receiver {
    /// A call begins.
    pub fn handle_connected(&mut self, now: Instant) {
        // Another upstream may have another clock.
        self.clock = OffsetFilter::default();
        self.call = Some(Call {
            units: 0,
            ack_at: None,
            ping_at: now + PING_INTERVAL,
            unanswered: 0,
        });
    }

    /// The call ended, however.
    pub fn handle_disconnected(&mut self) {
        self.call = None;
    }

    /// What follows these positions is what this node lacks: others have brought what was before.
    pub fn handle_positions(&mut self, epoch: Option<Epoch>, have: &[Position]) {
        self.epoch = epoch;
        let known = have.iter().filter(|position| Some(position.epoch) == epoch);
        self.tracks = known
            .map(|position| TrackState {
                id: position.track,
                next: position.sequence.saturating_add(1),
                lost: 0,
                awaiting_keyframe: false,
            })
            .collect();
        self.wanted = self.tracks.iter().map(|track| track.id).collect();
    }

    /// Forgets all positions: the next upstream has nothing to do with what was before.
    pub fn reset(&mut self) {
        self.epoch = None;
        self.tracks.clear();
    }

    /// The upstream says what the stream is.
    ///
    /// # Errors
    /// If its epoch is older than what this node has: leave it.
    pub fn handle_info(&mut self, info: &StreamInfo) -> Result<(), StaleEpoch> {
        self.handle_life();
        match self.epoch {
            Some(present) if info.epoch < present => {
                return Err(StaleEpoch {
                    offered: info.epoch,
                    present,
                });
            }
            Some(present) if info.epoch == present => {}
            Some(_) | None => self.tracks.clear(),
        }
        self.epoch = Some(info.epoch);
        self.listed = info.tracks.iter().map(|track| track.id).collect();
        self.tracks.retain(|track| info.track(track.id).is_some());
        Ok(())
    }

    /// A unit came.
    pub fn handle_unit(&mut self, now: Instant, mut unit: AccessUnit) -> Received {
        self.handle_life();
        if let Some(call) = &mut self.call {
            call.units += 1;
            call.ack_at.get_or_insert(now + ACK_INTERVAL);
        }
        if self.epoch != Some(unit.epoch) || !self.listed.contains(&unit.track) {
            return Received::Discard;
        }
        let track = match self.tracks.iter_mut().find(|track| track.id == unit.track) {
            Some(track) => track,
            None => {
                self.tracks.push(TrackState {
                    id: unit.track,
                    next: unit.sequence,
                    lost: 0,
                    awaiting_keyframe: true,
                });
                let at = self.tracks.len() - 1;
                &mut self.tracks[at]
            }
        };
        let Some(missing) = unit.sequence.checked_sub(track.next) else {
            return Received::Discard;
        };
        track.next = unit.sequence.saturating_add(1);
        if missing > 0 {
            track.lost = track.lost.saturating_add(missing);
            track.awaiting_keyframe = true;
        }
        if track.awaiting_keyframe && !unit.keyframe {
            track.lost = track.lost.saturating_add(1);
            return Received::Discard;
        }
        track.awaiting_keyframe = false;
        unit.ingest_time = self.clock.localize(unit.ingest_time);
        Received::Deliver {
            lost: std::mem::take(&mut track.lost),
            unit: Arc::new(unit),
        }
    }

    /// Only these tracks are wanted from now on: others are forgotten, and start anew if they are wanted again.
    pub fn handle_want(&mut self, want: &[TrackId]) {
        // What was under way when a track was given up has come since, and is no part of its new beginning.
        let stays = |id| want.contains(&id) && self.wanted.contains(&id);
        self.tracks.retain(|track| stays(track.id));
        self.wanted = want.to_vec();
    }

    /// The consumer refused the unit that was last delivered of this track: it goes on at the next keyframe.
    pub fn handle_refused(&mut self, id: TrackId) {
        if let Some(track) = self.tracks.iter_mut().find(|track| track.id == id) {
            track.lost = track.lost.saturating_add(1);
            track.awaiting_keyframe = true;
        }
    }

    /// A ping was answered.
    pub fn handle_pong(&mut self, now: Instant, exchange: Exchange) {
        self.handle_life();
        self.clock.handle_exchange(now, exchange);
    }

    /// Anything else came: the upstream lives, even if a pong queues behind a large unit.
    pub fn handle_life(&mut self) {
        if let Some(call) = &mut self.call {
            call.unanswered = 0;
        }
    }

    /// What to send next.
    pub fn poll_output(&mut self, now: Instant) -> Option<Output> {
        let call = self.call.as_mut()?;
        if call.ack_at.is_some_and(|at| at <= now) {
            call.ack_at = None;
            return Some(Output::Ack { units: call.units });
        }
        if call.ping_at <= now {
            // From now, not from when it was due: a process that was stopped must not count pings it never sent.
            call.ping_at = now + PING_INTERVAL;
            call.unanswered += 1;
            return Some(Output::Ping);
        }
        None
    }

    /// What [`Self::poll_output`] gave found no room. Units are acknowledged again in a while: the window may be closed until they are. A
    /// ping counts as sent: an upstream that takes none is dead.
    pub fn handle_unsent(&mut self, now: Instant, output: Output) {
        if let (Some(call), Output::Ack { .. }) = (&mut self.call, output) {
            call.ack_at.get_or_insert(now + ACK_INTERVAL);
        }
    }

    /// When to call [`Self::poll_output`] again if nothing comes; none without a call.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let call = self.call.as_ref()?;
        Some(
            call.ack_at
                .map_or(call.ping_at, |ack| ack.min(call.ping_at)),
        )
    }

    /// Three pings went unanswered, and nothing else came either.
    pub fn upstream_dead(&self) -> bool {
        let mut call = self.call.iter();
        call.any(|call| call.unanswered > PINGS_MISSED_MAX)
    }

    /// Where to resume: the last unit read of each track.
    pub fn have(&self) -> Vec<Position> {
        let Some(epoch) = self.epoch else {
            return Vec::new();
        };
        self.tracks
            .iter()
            .filter_map(|track| {
                Some(Position {
                    track: track.id,
                    epoch,
                    sequence: track.next.checked_sub(1)?,
                })
            })
            .collect()
    }

    /// What this node has.
    pub const fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// The offset to the upstream's clock.
    pub const fn clock(&self) -> &OffsetFilter {
        &self.clock
    }
}
