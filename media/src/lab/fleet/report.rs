//! What came of a fleet, and the table of several.

use std::fmt;

use serde::Serialize;

/// What is assumed of a stream, for an origin's egress (Mbit/s).
const STREAM_MBPS: f64 = 2.5;

/// What came of a fleet. Times are in microseconds.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Outcome {
    /// Streams at edges, at the end (count).
    pub subscriptions: u64,
    /// Of those, the ones that no origin's media reaches (count).
    pub unfed_at_end: u64,
    /// How far from the publisher each of them is (count).
    pub depths: Vec<u64>,
    /// The farthest that one ever was (count).
    pub depth_max: usize,
    /// Subscriptions that each edge feeds at the end, over all streams (count).
    pub feeds: Vec<u64>,
    /// The most that an edge ever fed with one stream (count).
    pub fanout_edge_max: usize,
    /// The most that an origin ever fed with one stream (count).
    pub fanout_origin_max: usize,
    /// Subscriptions that each origin feeds now, and the most it ever fed (count).
    pub origins: Vec<(i64, i64)>,
    /// Calls of edges to upstreams (count).
    pub asked: u64,
    /// Of those, redirected (count).
    pub redirected: u64,
    /// Of those, refused by a node that lives (count).
    pub refused: u64,
    /// Searches that found no upstream, and were begun anew (count).
    pub failed_searches: u64,
    /// Viewers that no edge took (count).
    pub refused_viewers: u64,
    /// From the first viewer of a stream at an edge until it comes.
    pub joins: Vec<u64>,
    /// Edges that failed (count).
    pub failures: u64,
    /// Subscriptions whose upstream failed (count).
    pub reparented: u64,
    /// From the death of an upstream until the next one feeds.
    pub gaps: Vec<u64>,
    /// Subscriptions that left a node which found no upstream (count).
    pub left_orphans: u64,
    /// Subscriptions that an origin had taken past its fan-out, and sent on later (count).
    pub shed: u64,
    /// Subscriptions that would have fed themselves (count).
    pub cycles: u64,
    /// Subscriptions that left because they were too far from the publisher (count).
    pub left: u64,
}

impl Outcome {
    pub(super) fn new(origins: usize) -> Self {
        Self {
            origins: vec![(0, 0); origins],
            ..Self::default()
        }
    }

    /// An origin feeds more or fewer, and so many with one stream.
    pub(super) fn fed_by_origin(&mut self, origin: usize, more: i64, with_one: usize) {
        if let Some((now, most)) = self.origins.get_mut(origin) {
            *now += more;
            *most = (*most).max(*now);
        }
        self.fanout_origin_max = self.fanout_origin_max.max(with_one);
    }

    pub(super) fn sort(&mut self) {
        for list in [
            &mut self.depths,
            &mut self.feeds,
            &mut self.joins,
            &mut self.gaps,
        ] {
            list.sort_unstable();
        }
    }

    /// At the end, and at the most.
    fn origin_egress_gbps(&self) -> (f64, f64) {
        let gbps = |feeds: Option<i64>| {
            let feeds = u32::try_from(feeds.unwrap_or(0)).unwrap_or(u32::MAX);
            f64::from(feeds) * STREAM_MBPS / 1000.0
        };
        let now = self.origins.iter().map(|(now, _)| *now).max();
        let most = self.origins.iter().map(|(_, most)| *most).max();
        (gbps(now), gbps(most))
    }
}

/// The value that so many per cent of a sorted list don't exceed.
fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(0)
}

/// Several fleets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    outcomes: Vec<(&'static str, Outcome)>,
}

impl Report {
    pub(super) const fn new(outcomes: Vec<(&'static str, Outcome)>) -> Self {
        Self { outcomes }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.outcomes.iter().map(|(name, _)| *name);
        writeln!(f, "| | {} |", names.collect::<Vec<_>>().join(" | "))?;
        writeln!(f, "|---|{}", "---:|".repeat(self.outcomes.len()))?;
        let mut row = |what: &str, value: &dyn Fn(&Outcome) -> String| {
            let values = self.outcomes.iter().map(|(_, outcome)| value(outcome));
            writeln!(f, "| {what} | {} |", values.collect::<Vec<_>>().join(" | "))
        };
        let three = |list: &[u64], unit: u64| {
            let at = |percent| percentile(list, percent) / unit;
            format!("{} / {} / {}", at(50), at(99), at(100))
        };
        row("streams at edges", &|o| o.subscriptions.to_string())?;
        row("depth p50 / p99 / max", &|o| three(&o.depths, 1))?;
        row("deepest ever", &|o| o.depth_max.to_string())?;
        row("fed with one stream: by an origin, by an edge, max", &|o| {
            format!("{}, {}", o.fanout_origin_max, o.fanout_edge_max)
        })?;
        row("fed by an edge over all streams p50 / p99 / max", &|o| {
            three(&o.feeds, 1)
        })?;
        row(
            "busiest origin's egress, peak and at the end (Gbit/s)",
            &|o| {
                let (now, most) = o.origin_egress_gbps();
                format!("{most:.1}, {now:.1}")
            },
        )?;
        row("from first viewer to stream p50 / p99 / max (ms)", &|o| {
            three(&o.joins, 1000)
        })?;
        row("calls, redirected, refused", &|o| {
            format!("{}, {}, {}", o.asked, o.redirected, o.refused)
        })?;
        row("searches without success", &|o| {
            o.failed_searches.to_string()
        })?;
        row("viewers refused", &|o| o.refused_viewers.to_string())?;
        row("edges failed, upstreams lost by it", &|o| {
            format!("{}, {}", o.failures, o.reparented)
        })?;
        row("gap until the next upstream p50 / p99 / max (ms)", &|o| {
            three(&o.gaps, 1000)
        })?;
        row("sent on by an origin once others had room", &|o| {
            o.shed.to_string()
        })?;
        row("left an orphan, cycles left, too deep", &|o| {
            format!("{}, {}, {}", o.left_orphans, o.cycles, o.left)
        })?;
        row("without media at the end", &|o| o.unfed_at_end.to_string())
    }
}
