//! A viewer whose every picture is kept.

use std::time::Duration;

use serde_json::Value;

use super::{Shown, Viewer, eventually, seconds};

/// See the module.
pub(crate) struct Watcher {
    viewer: Viewer,
    /// Lines that were read (count).
    read: usize,
    shown: Vec<Shown>,
    /// Where its session is.
    url: String,
}

impl Watcher {
    /// Joins `url` and goes wherever it is sent.
    pub(crate) fn start(url: &str) -> Self {
        let flags = ["--wait", "30s", "--join-timeout", "20s", "--pictures"];
        Self {
            viewer: Viewer::start(url, seconds(24 * 3600), &flags),
            read: 0,
            shown: Vec::new(),
            url: url.to_owned(),
        }
    }

    /// It still runs.
    pub(crate) fn running(&mut self) -> bool {
        self.viewer.process.running()
    }

    /// As a player that gives up, or a browser that is closed.
    pub(crate) fn kill(&mut self) {
        self.viewer.process.kill();
    }

    /// All it was shown so far.
    pub(crate) fn shown(&mut self) -> &[Shown] {
        let lines = self.viewer.process.lines_from(self.read);
        self.read += lines.len();
        for line in lines {
            if let Some(shown) = Shown::parse(&line) {
                self.shown.push(shown);
            } else if let Ok(report) = serde_json::from_str::<Value>(&line)
                && let Some(url) = report["url"].as_str()
            {
                url.clone_into(&mut self.url);
            }
        }
        &self.shown
    }

    /// Waits until something came that was made after `since` (µs of Unix time).
    pub(crate) fn await_newer(&mut self, since: u64, limit: Duration) {
        eventually("newer pictures come", limit, || {
            let newest = self.shown().last().map_or(0, |shown| shown.stamp);
            (newest > since).then_some(())
        });
    }

    /// When the last picture came (µs of Unix time), 0 if none has.
    pub(crate) fn last_arrival(&mut self) -> u64 {
        self.shown().last().map_or(0, |shown| shown.arrived)
    }

    /// Whether its session is at the edge that has this HTTP port.
    pub(crate) fn is_at(&mut self, port: u16) -> bool {
        self.shown();
        self.url.contains(&format!(":{port}/"))
    }
}

/// µs of Unix time.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
