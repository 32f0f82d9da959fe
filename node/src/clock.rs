//! The one place that reads the time.
//!
//! Monotonic time comes from tokio's clock, so that a test with paused time controls it; wall-clock time
//! is derived from it by an offset taken once, at start, so that stamps never jump. The price: later steps of the system's clock
//! are not followed, so wall time drifts from it by what the monotonic clock drifts, until the process starts anew.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use headwater_media::time::WallTime;

/// Reads the time. Cheap to clone; every actor has one.
#[derive(Debug, Clone)]
pub struct Clock {
    origin: Instant,
    origin_wall: WallTime,
}

impl Clock {
    /// A clock whose wall time starts at the system's.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the time"
    )]
    pub fn system() -> Self {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let micros = u64::try_from(unix.as_micros()).unwrap_or(u64::MAX);
        Self {
            origin: tokio::time::Instant::now().into_std(),
            origin_wall: WallTime::from_unix_micros(micros),
        }
    }

    /// Monotonic time.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that reads the time"
    )]
    pub fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    /// Wall-clock time; monotonic too.
    pub fn wall(&self) -> WallTime {
        self.wall_at(self.now())
    }

    /// The wall-clock time at a monotonic instant.
    pub fn wall_at(&self, now: Instant) -> WallTime {
        self.origin_wall
            .after(now.saturating_duration_since(self.origin))
    }
}
