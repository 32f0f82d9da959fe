//! `headwater probe` as the viewer.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{Process, eventually, seconds};

/// Watches for `duration` and returns the exit code and the last line of JSON.
pub(crate) fn probe(url: &str, duration: Duration, flags: &[&str]) -> (i32, Value) {
    let mut viewer = Viewer::start(url, duration, flags);
    let status = viewer.process.wait(duration + seconds(40));
    let report = viewer.last().expect("a probe prints a report");
    (status.code().unwrap_or(-1), report)
}

/// A probe that watches in the background and tells what it sees every 200 ms.
pub(crate) struct Viewer {
    pub(crate) process: Process,
}

impl Viewer {
    /// Joins `url` and watches for `duration`.
    pub(crate) fn start(url: &str, duration: Duration, flags: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
        let duration = format!("{}ms", duration.as_millis());
        command.args([
            "probe",
            url,
            "--json",
            "--interval",
            "200ms",
            "--duration",
            &duration,
        ]);
        command.args(flags);
        Self {
            process: Process::start("probe", &mut command),
        }
    }

    /// The newest line it printed.
    pub(crate) fn last(&self) -> Option<Value> {
        let mut first = self.process.printed();
        // The newest lines may be pictures, or half a second's log.
        while first > 0 {
            first = first.saturating_sub(200);
            let lines = self.process.lines_from(first);
            let mut values = lines.iter().rev().map(|line| serde_json::from_str(line));
            let report = |value: &Value| value["kind"] != "picture";
            if let Some(found) = values.find_map(|value| value.ok().filter(report)) {
                return Some(found);
            }
        }
        None
    }

    /// Decodable frames so far, of the present session.
    pub(crate) fn frames(&self) -> u64 {
        self.last()
            .map_or(0, |line| number(&line, "/video/decodable"))
    }

    /// Waits until `more` decodable frames came since now.
    pub(crate) fn await_frames(&mut self, more: u64, limit: Duration) {
        Self::all_await_frames(std::slice::from_mut(self), more, limit);
    }

    /// Waits until so many came to each of `viewers`.
    pub(crate) fn all_await_frames(viewers: &mut [Self], more: u64, limit: Duration) {
        let mut progress: Vec<(u64, u64)> =
            viewers.iter().map(|viewer| (viewer.frames(), 0)).collect();
        eventually(&format!("{more} more frames arrive"), limit, || {
            let mut all = true;
            for (viewer, (before, seen)) in viewers.iter_mut().zip(&mut progress) {
                let frames = viewer.frames();
                // One that goes over to another edge counts anew there.
                *seen += frames.checked_sub(*before).unwrap_or(frames);
                *before = frames;
                let arrived = *seen >= more;
                assert!(arrived || viewer.process.running(), "the probe ended");
                all &= arrived;
            }
            all.then_some(())
        });
    }

    /// Leaves as who closes the page does, and waits for its end.
    pub(crate) fn leave(&mut self) {
        self.process.interrupt();
        self.process.wait(seconds(20));
    }
}

/// An unsigned number of a report, 0 if it lacks.
pub(crate) fn number(report: &Value, pointer: &str) -> u64 {
    report.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
}
