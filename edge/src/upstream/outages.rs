//! Which upstreams can't be used, as the log hears of it: at once, and then once a minute for as long as somebody needs them.
//!
//! A stream's subscription tries again several times a second, and an upstream may have thousands of streams.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater_node::Node;
use tonic::Status;
use tracing::warn;

/// An upstream's next line waits so long.
const QUIET: Duration = Duration::from_secs(60);

/// Upstreams that the log tells of within [`QUIET`] (count); of more, the metrics do.
const UPSTREAMS_MAX: usize = 256;

/// Of the process, as its log is.
static OUTAGES: LazyLock<Mutex<Outages>> = LazyLock::new(Mutex::default);

/// See the module.
#[derive(Debug, Default)]
struct Outages {
    upstreams: HashMap<String, Outage>,
}

#[derive(Debug)]
struct Outage {
    said_at: Instant,
    /// Attempts since then (count).
    unsaid: u64,
}

impl Outages {
    /// An attempt failed. How many did since the log was told, if it is to be told now.
    fn handle_failure(&mut self, now: Instant, url: &str) -> Option<u64> {
        if let Some(outage) = self.upstreams.get_mut(url) {
            outage.unsaid += 1;
            if now.saturating_duration_since(outage.said_at) < QUIET {
                return None;
            }
            outage.said_at = now;
            return Some(std::mem::take(&mut outage.unsaid));
        }
        if self.upstreams.len() >= UPSTREAMS_MAX {
            self.upstreams
                .retain(|_, outage| now.saturating_duration_since(outage.said_at) < QUIET);
        }
        if self.upstreams.len() >= UPSTREAMS_MAX {
            return None;
        }
        let outage = Outage {
            said_at: now,
            unsaid: 0,
        };
        self.upstreams.insert(url.to_owned(), outage);
        Some(1)
    }
}

/// The upstream at `url` could not be used, for this `reason`.
pub(crate) fn report(node: &Node, url: &str, reason: &str) {
    let mut outages = OUTAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let due = outages.handle_failure(node.clock.now(), url);
    drop(outages);
    if let Some(attempts) = due {
        warn!(
            upstream = url,
            reason, attempts, "an upstream can't be used"
        );
    }
}

/// What an error says with its causes, of which the last is usually the one that matters ("Connection refused").
pub(crate) fn chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error)
}

/// The same of a call that was refused or broke.
pub(crate) fn refusal(status: &Status) -> String {
    let said = match status.message() {
        "" => status.code().description(),
        message => message,
    };
    with_causes(said.to_owned(), status)
}

fn with_causes(mut text: String, error: &dyn Error) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some wrappers repeat what they wrap.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use headwater_node::clock::Clock;

    use super::*;

    #[test]
    fn an_upstream_is_named_at_once_and_then_once_a_minute() {
        let mut outages = Outages::default();
        let start = Clock::system().now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(outages.handle_failure(at(0), "http://a:1"), Some(1));
        assert_eq!(outages.handle_failure(at(0), "http://b:1"), Some(1));
        for second in 1..60 {
            assert_eq!(outages.handle_failure(at(second), "http://a:1"), None);
        }
        assert_eq!(outages.handle_failure(at(60), "http://a:1"), Some(60));
        assert_eq!(outages.handle_failure(at(61), "http://a:1"), None);
        assert_eq!(outages.handle_failure(at(500), "http://b:1"), Some(1));
    }

    #[test]
    fn what_is_remembered_of_upstreams_is_bounded() {
        let mut outages = Outages::default();
        let start = Clock::system().now();
        let url = |n: usize| format!("http://e{n}:1");
        let said = (0..2 * UPSTREAMS_MAX).filter_map(|n| outages.handle_failure(start, &url(n)));
        assert_eq!(said.count(), UPSTREAMS_MAX);
        let later = start + QUIET;
        assert_eq!(outages.handle_failure(later, "http://new:1"), Some(1));
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let cut = || std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let wrapped = std::io::Error::other(cut());
        assert_eq!(chain(&wrapped), "connection refused");
        assert_eq!(refusal(&Status::unavailable("full")), "full");
        let status = Status::from_error(Box::new(cut()));
        let told = refusal(&status);
        assert!(told.ends_with("connection refused"), "{told}");
        assert!(!told.contains("code:"), "{told}");
    }
}
