//! What the lab found, as a table and as data.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::policy::Policy;
use super::scene::Outcome;

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Each trace with each policy.
    pub traces: Vec<Line>,
    /// Each policy over all traces.
    pub mean: BTreeMap<&'static str, Mean>,
}

/// One trace with one policy.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The trace.
    pub name: &'static str,
    /// The policy.
    pub policy: &'static str,
    /// See [`Outcome`].
    pub utilisation: f64,
    /// See [`Outcome`].
    pub freezes: u64,
    /// See [`Outcome`].
    pub freeze_ms: u64,
    /// See [`Outcome`].
    pub switches: u64,
    /// See [`Outcome`].
    pub p95_queue_ms: u64,
}

/// One policy over all traces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub utilisation: f64,
    /// The sum.
    pub freezes: u64,
    /// The sum.
    pub freeze_ms: u64,
    /// The sum.
    pub switches: u64,
    /// The mean.
    pub p95_queue_ms: u64,
}

impl Report {
    pub(super) fn new(outcomes: &[(&'static str, Policy, Outcome)]) -> Self {
        let traces: Vec<Line> = outcomes
            .iter()
            .map(|(name, policy, outcome)| Line {
                name,
                policy: policy.name(),
                utilisation: (outcome.utilisation * 1000.0).round() / 1000.0,
                freezes: outcome.freezes,
                freeze_ms: millis(outcome.frozen),
                switches: outcome.switches,
                p95_queue_ms: millis(outcome.queue_p95),
            })
            .collect();
        let mean = Policy::ALL.map(|policy| {
            let lines: Vec<&Line> = traces
                .iter()
                .filter(|line| line.policy == policy.name())
                .collect();
            (policy.name(), Mean::of(&lines))
        });
        Self {
            mean: mean.into(),
            traces,
        }
    }

    /// As a table, in markdown.
    pub fn markdown(&self) -> String {
        let heads = [
            "trace",
            "policy",
            "utilisation",
            "freezes",
            "frozen ms",
            "switches",
            "queue p95 ms",
        ];
        let mut out = String::new();
        row(&mut out, &heads.map(ToOwned::to_owned));
        out.push_str("|---|---|---:|---:|---:|---:|---:|\n");
        for line in &self.traces {
            let figures = Mean {
                utilisation: line.utilisation,
                freezes: line.freezes,
                freeze_ms: line.freeze_ms,
                switches: line.switches,
                p95_queue_ms: line.p95_queue_ms,
            };
            row(&mut out, &figures.cells(line.name, line.policy));
        }
        for policy in Policy::ALL {
            if let Some(mean) = self.mean.get(policy.name()) {
                row(&mut out, &mean.cells("**all**", policy.name()));
            }
        }
        out
    }
}

/// Padded, so that it reads well as it is.
fn row(out: &mut String, cells: &[String; 7]) {
    let widths = [11, 13, 11, 7, 9, 8, 12];
    for (place, (cell, width)) in cells.iter().zip(widths).enumerate() {
        // Writing to a String can't fail.
        let _ = if place < 2 {
            write!(out, "| {cell:width$} ")
        } else {
            write!(out, "| {cell:>width$} ")
        };
    }
    out.push_str("|\n");
}

impl Mean {
    fn cells(&self, trace: &str, policy: &str) -> [String; 7] {
        [
            trace.to_owned(),
            policy.to_owned(),
            format!("{:.3}", self.utilisation),
            self.freezes.to_string(),
            self.freeze_ms.to_string(),
            self.switches.to_string(),
            self.p95_queue_ms.to_string(),
        ]
    }

    #[expect(clippy::cast_precision_loss, reason = "a count of traces")]
    fn of(lines: &[&Line]) -> Self {
        let count = lines.len().max(1);
        let sum: f64 = lines.iter().map(|line| line.utilisation).sum();
        let queues: u64 = lines.iter().map(|line| line.p95_queue_ms).sum();
        Self {
            utilisation: (sum / count as f64 * 1000.0).round() / 1000.0,
            freezes: lines.iter().map(|line| line.freezes).sum(),
            freeze_ms: lines.iter().map(|line| line.freeze_ms).sum(),
            switches: lines.iter().map(|line| line.switches).sum(),
            p95_queue_ms: queues / u64::try_from(count).unwrap_or(1),
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
