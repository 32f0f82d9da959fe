//! What came out: a table for people, JSON for machines, and what must be reached.

use std::fmt::Write as _;

use serde::Serialize;

use crate::floor::Pattern;
use crate::load::Window;
use crate::process::usage::Facts;
use crate::stats::Summary;

/// Everything of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) version: String,
    pub(crate) machine: Facts,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
    pub(crate) seconds: f64,
    /// The figures of the table.
    pub(crate) figures: Vec<Figure>,
    /// What they were taken from.
    pub(crate) stages: Vec<Stage>,
    /// What whoever reads this should know.
    pub(crate) remarks: Vec<String>,
}

/// What a stage measured.
#[derive(Debug, Serialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Viewers in a steady state.
    Watching { name: String, window: Box<Window> },
    /// From the POST to the first picture that can be shown.
    Joining { rate: f64, milliseconds: Summary },
    /// The floor program.
    Floor {
        pattern: Pattern,
        viewers: usize,
        packets_per_second: f64,
        cores: f64,
        nanoseconds_per_packet: f64,
    },
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// What it must be; `None`: it is only told.
    pub(crate) must: Option<Must>,
    pub(crate) reached: bool,
}

/// A bound that a figure must keep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Must {
    AtMost(f64),
    AtLeast(f64),
    Within(f64, f64),
}

/// The figures that `--check` insists on, on a machine of two cores of 2024 or later: this is the edge's side of the bargain that
/// ARCHITECTURE.md makes. Names are those of [`Report::add`].
const MUSTS: &[(&str, Must)] = &[
    (names::RATIO, Must::AtMost(1.35)),
    (names::PER_PACKET, Must::AtMost(3100.0)),
    (names::PACED_RATIO, Must::AtMost(1.6)),
    (names::PACED_KEYFRAME_P99, Must::AtMost(150.0)),
    (names::CAPACITY, Must::AtLeast(1200.0)),
    (names::LATENCY_1_P50, Must::AtMost(0.6)),
    (names::LATENCY_1_P99, Must::AtMost(2.0)),
    (names::LATENCY_400_P50, Must::AtMost(5.0)),
    (names::LATENCY_400_P99, Must::AtMost(25.0)),
    (names::MEMORY, Must::AtMost(64.0)),
    (names::JOIN_P50, Must::AtMost(6.0)),
    (names::JOIN_P95, Must::AtMost(15.0)),
    (names::SHARDS, Must::Within(0.9, 1.1)),
    (names::LOSS, Must::AtMost(0.0)),
];

/// Names of figures.
pub(crate) mod names {
    pub(crate) const FLOOR: &str = "floor, CPU per packet";
    pub(crate) const PER_PACKET: &str = "edge, CPU per packet";
    pub(crate) const STAMPED_FLOOR: &str = "the same with the stamps in datagrams of their own";
    pub(crate) const RATIO: &str = "edge to floor";
    pub(crate) const STAMPED_RATIO: &str = "edge to floor with stamps";
    pub(crate) const PACED: &str = "edge with transport-wide feedback (paced), CPU per packet";
    pub(crate) const PACED_RATIO: &str = "paced edge to floor";
    pub(crate) const PACED_KEYFRAME_P99: &str = "paced, keyframe latency p99";
    pub(crate) const CAPACITY: &str = "viewers on one core";
    pub(crate) const CAPACITY_PER_PACKET: &str = "CPU per packet with that many";
    pub(crate) const CAPACITY_P99: &str = "latency p99 with that many";
    pub(crate) const LATENCY_1_P50: &str = "latency p50, 1 viewer";
    pub(crate) const LATENCY_1_P99: &str = "latency p99, 1 viewer";
    pub(crate) const LATENCY_100_P50: &str = "latency p50, 100 viewers";
    pub(crate) const LATENCY_100_P99: &str = "latency p99, 100 viewers";
    pub(crate) const LATENCY_400_P50: &str = "latency p50, 400 viewers";
    pub(crate) const LATENCY_400_P99: &str = "latency p99, 400 viewers";
    pub(crate) const MEMORY: &str = "memory per viewer";
    pub(crate) const JOIN_P50: &str = "first decodable picture after the POST, p50";
    pub(crate) const JOIN_P95: &str = "first decodable picture after the POST, p95";
    pub(crate) const SHARDS: &str = "CPU per packet, 2 shards to 1";
    pub(crate) const LOSS: &str = "packets lost, before the capacity is reached";
}

impl Report {
    /// Adds a figure, judged by what it must be.
    pub(crate) fn add(&mut self, name: &'static str, value: f64, unit: &'static str) {
        let must = MUSTS
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, must)| *must);
        self.figures.push(Figure {
            name,
            value,
            unit,
            must,
            reached: must.is_none_or(|must| must.is_kept_by(value)),
        });
    }

    /// A figure that was added.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let figure = self.figures.iter().find(|figure| figure.name == name)?;
        Some(figure.value)
    }

    /// All that must be reached is.
    pub(crate) fn reached(&self) -> bool {
        self.figures.iter().all(|figure| figure.reached)
    }

    /// As text.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let machine = &self.machine;
        let _ = writeln!(
            out,
            "{}\n{}, {} cores, Linux {}; server on core {}, load on core {}\n",
            self.version,
            machine.cpu,
            machine.cores,
            machine.kernel,
            self.server_core,
            self.load_core
        );
        let width = self.figures.iter().map(|f| f.name.chars().count()).max();
        let width = width.unwrap_or(0);
        for figure in &self.figures {
            let must = match (figure.must, figure.reached) {
                (None, _) => String::new(),
                (Some(must), true) => must.text(),
                (Some(must), false) => format!("{}  MISSED", must.text()),
            };
            let value = number(figure.value);
            let line = format!(
                "{:width$}  {value:>8} {:<9}  {must}",
                figure.name, figure.unit
            );
            let _ = writeln!(out, "{}", line.trim_end());
        }
        for remark in &self.remarks {
            let _ = writeln!(out, "\n{remark}");
        }
        out
    }
}

impl Must {
    fn is_kept_by(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
            Self::Within(least, most) => (least..=most).contains(&value),
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(most)),
            Self::AtLeast(least) => format!("≥ {}", number(least)),
            Self::Within(least, most) => format!("{} to {}", number(least), number(most)),
        }
    }
}

/// Three digits are as many as two runs agree in.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        small if small < 9.995 => 2,
        middle if middle < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            version: "headwater 1".to_owned(),
            machine: Facts::read(),
            server_core: 0,
            load_core: 1,
            seconds: 1.0,
            figures: Vec::new(),
            stages: Vec::new(),
            remarks: vec!["a remark".to_owned()],
        }
    }

    #[test]
    fn figures_are_judged_and_shown() {
        let mut report = report();
        report.add(names::FLOOR, 1234.0, "ns");
        report.add(names::RATIO, 1.35, "");
        report.add(names::CAPACITY, 1200.0, "viewers");
        assert!(report.reached());
        assert_eq!(report.value(names::RATIO), Some(1.35));
        report.add(names::SHARDS, 1.2, "");
        assert!(!report.reached());
        let table = report.table();
        let line = |name: &str| table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line(names::FLOOR).ends_with("1234 ns"), "{table}");
        assert!(line(names::RATIO).contains("1.35") && line(names::RATIO).ends_with("≤ 1.35"));
        assert!(line(names::SHARDS).ends_with("0.90 to 1.10  MISSED"));
        assert!(table.contains("a remark"));
    }

    #[test]
    fn every_must_is_a_bound_of_one_figure() {
        for (i, (name, _)) in MUSTS.iter().enumerate() {
            assert!(
                MUSTS[i + 1..].iter().all(|(other, _)| other != name),
                "{name}"
            );
        }
    }

    #[test]
    fn numbers_have_as_many_digits_as_mean_something() {
        for (value, expected) in [
            (0.0, "0"),
            (0.567, "0.57"),
            (12.34, "12.3"),
            (99.96, "100"),
            (1663.4, "1663"),
        ] {
            assert_eq!(number(value), expected);
        }
    }
}
