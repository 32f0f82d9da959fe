//! Real time: what is measured here happens in real processes.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The time, for durations.
#[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
pub fn now() -> Instant {
    Instant::now()
}

/// The time by the wall clock, which the kernel stamps packets with (since the Unix epoch).
///
/// # Panics
/// If the clock stands before 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "stamps and the kernel's receive times are wall clock times"
)]
pub fn wall() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is set")
}

/// Lets real time pass.
#[expect(
    clippy::disallowed_methods,
    reason = "these threads have no runtime to block"
)]
pub fn pause(span: Duration) {
    std::thread::sleep(span);
}
