//! Starts, feeds, watches and ends clusters. Everything started here ends when its handle is dropped.

mod checker;
mod cluster;
mod etcd;
mod network;
mod process;
mod publisher;
mod relay;
mod stamped;
mod viewer;
mod watcher;
mod wire;

use std::time::Duration;

pub(crate) use headwater_bench::http::{Answer, get, request};
pub(crate) use headwater_bench::time::{now, pause};

pub(crate) use checker::{Published, Shown, judge};
pub(crate) use cluster::{Cluster, Directory, Node, Options, Role};
pub(crate) use etcd::Etcd;
pub(crate) use headwater_bench::ports::free as free_ports;
pub(crate) use network::{Lost, Network};
pub(crate) use process::Process;
pub(crate) use publisher::{Picture, Publisher, Sound};
pub(crate) use relay::Relay;
pub(crate) use stamped::{COUNTED, Stamped};
pub(crate) use viewer::{Viewer, number, probe};
pub(crate) use watcher::{Watcher, micros};
pub(crate) use wire::Wire;

/// A counter or gauge of the node with this admin port, named with its labels; 0 if it isn't there.
pub(crate) fn metric(admin: u16, series: &str) -> u64 {
    let page = get(admin, "/metrics").expect("metrics").body;
    let mut lines = page.lines();
    let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.map_or(0, |value| value.trim().parse().expect("a whole number"))
}

/// Asks until there is an answer.
///
/// # Panics
/// If there is none within `limit`.
pub(crate) fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let since = now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(since.elapsed() < limit, "not within {limit:?}: {what}");
        pause(Duration::from_millis(50));
    }
}

/// Seconds, shortly.
pub(crate) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
