//! The queue in the network, by one-way delays: how long it is, and whether it grows.
//!
//! The first packet of a group finds the queue as it is, whatever the size of its own group. Its delay above the least of the last seconds is
//! the queue; the slope of these delays over the last groups, against a threshold that adapts to how much they shake anyway, tells growth
//! (draft-ietf-rmcat-gcc-02 section 5.4, with a line through the last groups in place of the filter, as libwebrtc has it).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Group;

/// The fastest packet is looked for in the present and the last window of this length: clocks drift apart, and routes change.
const WINDOW: Duration = Duration::from_secs(10);
/// A larger leap is of a clock, not of the network (units of 125 µs: 5 s).
const LEAP: u64 = 40_000;

/// Groups that the line is drawn through (count), and how old they may be (ms).
const LINE_GROUPS: usize = 20;
const LINE_MILLIS: f64 = 500.0;
/// Fewer groups make no line (count).
const LINE_GROUPS_MIN: usize = 5;
/// The slope is judged by what it makes the queue grow in so long (ms): libwebrtc's 60 groups with a gain of 4.
const OUTLOOK: f64 = 240.0;

/// The threshold, in ms of growth over [`OUTLOOK`]: at first, its bounds, and how fast it follows, per ms
/// (draft-ietf-rmcat-gcc-02 section 5.4).
const THRESHOLD: f64 = 12.5;
const THRESHOLD_MIN: f64 = 6.0;
const THRESHOLD_MAX: f64 = 600.0;
const THRESHOLD_UP: f64 = 0.0087;
const THRESHOLD_DOWN: f64 = 0.039;
/// What is beyond the threshold by more than this does not raise it (ms).
const THRESHOLD_OUTLIER: f64 = 15.0;

/// The queue must have grown for so long (units of 250 µs: 10 ms).
const OVER_SPAN: i64 = 40;

/// With this much of a queue the link has no pause between packets (units of 125 µs: 10 ms).
const BUSY: i64 = 80;

/// How the queue in the network changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Usage {
    /// It grows.
    Over,
    /// It doesn't change much.
    #[default]
    Normal,
    /// It drains.
    Under,
}

/// See the module. 0.5 KB.
#[derive(Debug)]
pub(super) struct Delay {
    fastest: Option<Fastest>,
    /// (arrival, smoothed delay above the fastest then known), in ms.
    line: VecDeque<(f64, f64)>,
    /// Where the times in `line` begin: arrival and delay.
    origin: (i64, i64),
    threshold: f64,
    growth: f64,
    newest: i64,
    /// Since when it grows, by arrival.
    over_since: Option<i64>,
    usage: Usage,
    queue: i64,
    /// Arrival of the group since which the link was busy without a pause.
    busy_since: Option<i64>,
}

/// The least delay of the present and of the last window.
#[derive(Debug, Clone, Copy)]
struct Fastest {
    since: Instant,
    present: i64,
    last: i64,
}

impl Default for Delay {
    fn default() -> Self {
        Self {
            fastest: None,
            line: VecDeque::with_capacity(LINE_GROUPS),
            origin: (0, 0),
            threshold: THRESHOLD,
            growth: 0.0,
            newest: 0,
            over_since: None,
            usage: Usage::Normal,
            queue: 0,
            busy_since: None,
        }
    }
}

impl Delay {
    /// Takes a group in.
    pub(super) fn handle_group(&mut self, now: Instant, group: &Group) {
        self.queue = self.above_fastest(now, group.delay);
        // The first packet's arrival, by its delay: the last one's would be that of its own group's size.
        let arrived = group.arrived;
        let step = arrived.saturating_sub(self.newest);
        if self.line.is_empty() || step.unsigned_abs() > LEAP {
            self.line.clear();
            self.origin = (arrived, group.delay);
            self.busy_since = None;
            self.over_since = None;
        }
        self.newest = arrived;
        if self.queue < BUSY {
            self.busy_since = None;
        } else if self.busy_since.is_none() {
            self.busy_since = Some(arrived);
        }
        self.draw(arrived, group.delay);
        self.judge(arrived, step.clamp(0, 400));
    }

    /// How the queue changes.
    pub(super) const fn usage(&self) -> Usage {
        self.usage
    }

    /// The queue, in units of 125 µs.
    pub(super) const fn queue(&self) -> i64 {
        self.queue
    }

    /// Arrival of the group since which the link was busy without a pause, in units of 250 µs.
    pub(super) const fn busy_since(&self) -> Option<i64> {
        self.busy_since
    }

    /// Adds a point to the line.
    fn draw(&mut self, arrived: i64, delay: i64) {
        let x = millis(arrived.saturating_sub(self.origin.0), 4.0);
        let y = millis(delay.saturating_sub(self.origin.1), 8.0);
        let smoothed = match self.line.back() {
            Some((_, before)) => f64::midpoint(*before, y),
            None => y,
        };
        while self.line.len() >= LINE_GROUPS
            || self
                .line
                .front()
                .is_some_and(|(first, _)| x - first > LINE_MILLIS)
        {
            self.line.pop_front();
        }
        self.line.push_back((x, smoothed));
    }

    /// What the queue grows by in [`OUTLOOK`], in ms, if it goes on like this: least squares.
    fn outlook(&self) -> Option<f64> {
        if self.line.len() < LINE_GROUPS_MIN {
            return None;
        }
        let count = f64::from(u32::try_from(self.line.len()).ok()?);
        let (sum_x, sum_y) = self
            .line
            .iter()
            .fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        let (mean_x, mean_y) = (sum_x / count, sum_y / count);
        let (mut above, mut below) = (0.0, 0.0);
        for (x, y) in &self.line {
            above += (x - mean_x) * (y - mean_y);
            below += (x - mean_x) * (x - mean_x);
        }
        (below > 1.0).then(|| above / below * OUTLOOK * (count / 20.0).min(1.0))
    }

    fn judge(&mut self, arrived: i64, step: i64) {
        let before = self.growth;
        let Some(growth) = self.outlook() else {
            self.usage = Usage::Normal;
            return;
        };
        self.growth = growth;
        if growth > self.threshold {
            let since = *self.over_since.get_or_insert(arrived);
            if arrived.saturating_sub(since) >= OVER_SPAN && growth >= before {
                self.usage = Usage::Over;
            } else if self.usage == Usage::Under {
                self.usage = Usage::Normal;
            }
        } else {
            self.over_since = None;
            self.usage = if growth < -self.threshold {
                Usage::Under
            } else {
                Usage::Normal
            };
        }
        let size = growth.abs();
        if size <= self.threshold + THRESHOLD_OUTLIER {
            let gain = if size < self.threshold {
                THRESHOLD_DOWN
            } else {
                THRESHOLD_UP
            };
            let changed = self.threshold + gain * (size - self.threshold) * millis(step, 4.0);
            self.threshold = changed.clamp(THRESHOLD_MIN, THRESHOLD_MAX);
        }
    }

    /// How much longer than the fastest lately a packet took.
    fn above_fastest(&mut self, now: Instant, delay: i64) -> i64 {
        let fastest = self
            .fastest
            .filter(|fastest| delay.abs_diff(fastest.present.min(fastest.last)) < LEAP);
        let mut fastest = fastest.unwrap_or(Fastest {
            since: now,
            present: delay,
            last: delay,
        });
        if now.saturating_duration_since(fastest.since) >= WINDOW {
            fastest = Fastest {
                since: now,
                present: delay,
                last: fastest.present,
            };
        }
        fastest.present = fastest.present.min(delay);
        self.fastest = Some(fastest);
        delay.saturating_sub(fastest.present.min(fastest.last))
    }
}

/// A count of units as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "differences of seconds at most")]
const fn millis(units: i64, per_milli: f64) -> f64 {
    units as f64 / per_milli
}
