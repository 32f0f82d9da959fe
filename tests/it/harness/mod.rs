//! Starts, feeds, watches and ends clusters. Everything started here ends when its handle is dropped.

mod cluster;
mod http;
mod process;
mod publisher;
mod stamped;
mod viewer;

use std::time::{Duration, Instant};

pub(crate) use cluster::{Cluster, Directory, Options};
pub(crate) use http::{Answer, get, request};
pub(crate) use process::{Process, free_ports};
pub(crate) use publisher::{Picture, Publisher, Sound};
pub(crate) use stamped::Stamped;
pub(crate) use viewer::{Viewer, number, probe};

/// The time. Tests measure real processes in real time.
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Lets real time pass. Only for what is about time itself; to wait for something, use [`eventually`].
#[expect(
    clippy::disallowed_methods,
    reason = "test threads have no runtime to block"
)]
pub(crate) fn pause(span: Duration) {
    std::thread::sleep(span);
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
