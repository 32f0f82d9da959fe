//! Where new viewers go, and when nowhere.

use std::sync::atomic::AtomicUsize;

use tokio::sync::mpsc;

use super::*;
use crate::shard::load::{Board, Capacity, Reading};
use crate::shard::run::Control;
use crate::shard::{ShardHandle, Shards};

const CAPACITY: Capacity = Capacity {
    viewers: 100,
    egress: Some(100e6),
};

struct Placement {
    shards: Shards,
    /// The shards' ends.
    ends: Vec<Option<mpsc::UnboundedReceiver<Control>>>,
    now: Instant,
}

impl Placement {
    fn new(count: usize) -> Self {
        let now = testkit::start();
        let (handles, ends): (Vec<_>, Vec<_>) = (0..count)
            .map(|number| {
                let (control, end) = mpsc::unbounded_channel();
                let (claimed, _) = mpsc::channel(1);
                let handle = ShardHandle {
                    number,
                    candidates: Arc::new([]),
                    control,
                    claimed,
                    viewers: Arc::new(AtomicUsize::new(0)),
                    waiting: Arc::default(),
                    board: Arc::new(Board::new(CAPACITY, now)),
                };
                (handle, Some(end))
            })
            .unzip();
        Self {
            shards: Shards {
                shards: handles.into(),
                fingerprint: [0; 32],
            },
            ends,
            now,
        }
    }

    /// What a shard says of itself: this busy and sending this much, with these viewers.
    fn set(&self, shard: usize, busy: f64, egress: f64, viewers: usize) {
        let handle = &self.shards.shards[shard];
        handle.viewers.store(viewers, Ordering::Relaxed);
        let reading = Reading {
            busy,
            lag_seconds: 0.0,
            egress,
            viewers: f64::from(u32::try_from(viewers).unwrap()),
        };
        handle.board.write(self.now, &reading);
    }

    /// Which shard the next viewer goes to, who is then there.
    fn place(&self) -> Result<usize, JoinError> {
        let picked = self.shards.pick(self.now)?;
        picked.viewers.fetch_add(1, Ordering::Relaxed);
        let same = |shard: &ShardHandle| Arc::ptr_eq(&shard.viewers, &picked.viewers);
        Ok(self.shards.shards.iter().position(same).unwrap())
    }
}

#[test]
fn equally_loaded_shards_take_viewers_by_turns() {
    let placement = Placement::new(3);
    let mut taken = [0; 3];
    for _ in 0..60 {
        taken[placement.place().unwrap()] += 1;
    }
    assert_eq!(taken, [20; 3]);
}

#[test]
fn the_least_loaded_shard_takes_the_next_viewer_whatever_loads_it() {
    let placement = Placement::new(3);
    placement.set(0, 0.7, 10e6, 10);
    placement.set(1, 0.2, 60e6, 20);
    placement.set(2, 0.3, 20e6, 30);
    assert_eq!(placement.place(), Ok(2));
    assert!((placement.shards.load(placement.now) - 0.34).abs() < 0.02);
}

#[test]
fn joins_are_refused_for_what_fills_the_least_loaded_shard() {
    let placement = Placement::new(2);
    placement.set(0, 0.99, 0.0, 50);
    for (busy, egress, viewers, expected) in [
        (0.1, 0.0, 100, JoinError::Full),
        (0.1, 101e6, 10, JoinError::Egress),
        (0.92, 0.0, 10, JoinError::Overloaded),
        // Not yet well below.
        (0.85, 0.0, 10, JoinError::Overloaded),
    ] {
        placement.set(1, busy, egress, viewers);
        assert_eq!(placement.place(), Err(expected));
        assert!(placement.shards.load(placement.now) > 0.9);
    }
    placement.set(1, 0.7, 0.0, 10);
    assert_eq!(placement.place(), Ok(1));
}

#[test]
fn a_shard_that_recovers_does_not_keep_others_from_taking_viewers() {
    let placement = Placement::new(2);
    placement.set(0, 0.95, 0.0, 10);
    placement.set(1, 0.85, 0.0, 10);
    assert_eq!(placement.place(), Ok(1));
    placement.set(1, 0.95, 0.0, 10);
    assert_eq!(placement.place(), Err(JoinError::Overloaded));
    // The first was late a moment ago, as was the second; a third of the time is free on neither.
    placement.set(0, 0.83, 0.0, 10);
    assert_eq!(placement.place(), Err(JoinError::Overloaded));
    placement.set(0, 0.75, 0.0, 10);
    assert_eq!(placement.place(), Ok(0));
}

#[test]
fn shards_that_have_ended_take_nobody() {
    let mut placement = Placement::new(2);
    placement.set(1, 0.5, 0.0, 50);
    placement.ends[0] = None;
    assert_eq!(placement.place(), Ok(1));
    placement.ends[1] = None;
    assert_eq!(placement.place(), Err(JoinError::Stopping));
    assert!((placement.shards.load(placement.now) - 1.0).abs() < 0.001);
}
