//! Media time: positions on a stream's timeline, and wall-clock readings that travel with media.
//!
//! The whole cluster speaks 90 kHz ticks ([`MediaTime`]); other clocks (RTMP milliseconds, audio
//! sample counts) are converted once, where they enter or leave. Nothing here reads a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Ticks per second of [`MediaTime`].
pub const TICKS_PER_SECOND: i64 = 90_000;

/// A position on, or a span of, a stream's timeline, in 90 kHz ticks.
///
/// Signed, because a composition offset may point before the timeline's start. 2^63 ticks are
/// three million years, so arithmetic saturates instead of wrapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MediaTime(i64);

impl MediaTime {
    /// The start of the timeline.
    pub const ZERO: Self = Self(0);

    /// From 90 kHz ticks.
    pub const fn from_ticks(ticks: i64) -> Self {
        Self(ticks)
    }

    /// From milliseconds, the unit of RTMP.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(TICKS_PER_SECOND / 1000))
    }

    /// From a count of samples at `rate_hz`, rounded to the nearest tick.
    pub fn from_samples(samples: i64, rate_hz: u32) -> Self {
        let rate = i128::from(rate_hz.max(1));
        let scaled = i128::from(samples) * i128::from(TICKS_PER_SECOND);
        let rounded = (scaled + rate / 2).div_euclid(rate);
        Self(i64::try_from(rounded).unwrap_or(if samples < 0 { i64::MIN } else { i64::MAX }))
    }

    /// 90 kHz ticks.
    pub const fn ticks(self) -> i64 {
        self.0
    }

    /// Whole milliseconds, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(TICKS_PER_SECOND / 1000)
    }

    /// The span from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        let ticks = u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0);
        Duration::from_nanos(ticks.saturating_mul(100_000) / 9)
    }
}

impl Add for MediaTime {
    type Output = Self;
    fn add(self, rhs: Self) -> Self {
        Self(self.0.saturating_add(rhs.0))
    }
}

impl Sub for MediaTime {
    type Output = Self;
    fn sub(self, rhs: Self) -> Self {
        Self(self.0.saturating_sub(rhs.0))
    }
}

impl fmt::Display for MediaTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.as_millis();
        write!(
            f,
            "{}.{:03}s",
            millis.div_euclid(1000),
            millis.rem_euclid(1000)
        )
    }
}

/// A wall-clock reading in microseconds since the Unix epoch (UTC).
///
/// Carried with media so that latency is measured, not guessed. Zero means "not known".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WallTime(u64);

impl WallTime {
    /// From microseconds since the Unix epoch.
    pub const fn from_unix_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    pub const fn unix_micros(self) -> u64 {
        self.0
    }

    /// The span from `earlier` to `self`, zero if `earlier` is later (clocks may be stepped).
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// `self` moved later by `span`.
    pub fn after(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)),
        )
    }

    /// The 64-bit NTP timestamp (RFC 5905 section 6): seconds since 1900 in 32.32 fixed point.
    pub fn ntp(self) -> u64 {
        const UNIX_TO_NTP_SECONDS: u64 = 2_208_988_800;
        let seconds = (self.0 / 1_000_000).wrapping_add(UNIX_TO_NTP_SECONDS);
        let fraction = ((self.0 % 1_000_000) << 32) / 1_000_000;
        (seconds << 32) | fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_round_to_the_nearest_tick_both_ways() {
        for (samples, rate, ticks) in [
            (0, 48_000, 0),
            (48_000, 48_000, 90_000),
            (1024, 48_000, 1920),
            (1024, 44_100, 2090),
            (-1024, 44_100, -2090),
            (1, 0, 90_000),
        ] {
            assert_eq!(
                MediaTime::from_samples(samples, rate).ticks(),
                ticks,
                "{samples} at {rate}"
            );
        }
    }

    #[test]
    fn arithmetic_saturates() {
        let end = MediaTime::from_ticks(i64::MAX);
        assert_eq!(end + MediaTime::from_millis(1), end);
        assert_eq!(MediaTime::ZERO.since(end), Duration::ZERO);
        assert_eq!(
            MediaTime::from_millis(1001).since(MediaTime::from_millis(1)),
            Duration::from_secs(1)
        );
    }

    #[test]
    fn ntp_has_the_unix_epoch_at_its_offset() {
        assert_eq!(WallTime::from_unix_micros(0).ntp(), 2_208_988_800 << 32);
        assert_eq!(
            WallTime::from_unix_micros(500_000).ntp() & 0xffff_ffff,
            1 << 31
        );
    }
}
