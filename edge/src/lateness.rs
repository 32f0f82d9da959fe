//! How late something comes or leaves, by its own time, behind the most punctual of what came before it.

use std::time::{Duration, Instant};

/// What is late.
#[derive(Debug)]
pub(crate) struct Bounds {
    /// It is from here on.
    pub(crate) late: Duration,
    /// And what follows until it is no later than this.
    pub(crate) in_time: Duration,
    /// What is late for so long is how it comes now.
    pub(crate) usual_after: Duration,
}

/// What is always late a little is forgotten by this share each time, so that clocks may drift.
const FORGETTING: i64 = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Lateness {
    bounds: &'static Bounds,
    /// When the last one came, and its own time (µs).
    last: Option<(Instant, i64)>,
    /// Behind the most punctual one (µs).
    late: i64,
    since: Option<Instant>,
}

impl Lateness {
    /// Nothing has come yet.
    pub(crate) const fn new(bounds: &'static Bounds) -> Self {
        Self {
            bounds,
            last: None,
            late: 0,
            since: None,
        }
    }

    /// When the last one came.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.last.map(|(came, _)| came)
    }

    /// Something of the time `micros` comes, which may go back. Returns how late it is; none if it is in time.
    pub(crate) fn handle(&mut self, now: Instant, micros: i64) -> Option<Duration> {
        if let Some((came, time)) = self.last.replace((now, micros)) {
            let elapsed = now.saturating_duration_since(came).as_micros();
            let elapsed = i64::try_from(elapsed).unwrap_or(i64::MAX);
            let made = micros.saturating_sub(time);
            let late = self.late.saturating_add(elapsed).saturating_sub(made);
            self.late = late.max(0);
        }
        let late = Duration::from_micros(self.late.unsigned_abs());
        let least = match self.since {
            Some(_) => self.bounds.in_time,
            None => self.bounds.late,
        };
        if late <= least {
            self.since = None;
            self.late -= self.late / FORGETTING;
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.bounds.usual_after {
            self.since = None;
            self.late = 0;
            return None;
        }
        Some(late)
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::testkit;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        late: Duration::from_millis(700),
        in_time: Duration::from_millis(100),
        usual_after: Duration::from_secs(3),
    };

    struct Watch {
        start: Instant,
        lateness: Lateness,
    }

    impl Watch {
        fn new() -> Self {
            Self {
                start: testkit::start(),
                lateness: Lateness::new(&BOUNDS),
            }
        }

        /// How late what was `made` then is, when it comes (ms).
        fn late(&mut self, came: u64, made: i64) -> Option<u128> {
            let now = self.start + Duration::from_millis(came);
            let late = self.lateness.handle(now, made * 1000)?;
            Some(late.as_millis())
        }
    }

    #[test]
    fn what_comes_together_is_late_until_it_is_over() {
        let mut watch = Watch::new();
        assert!((0..50).all(|i| watch.late(40 * i, 40 * i.cast_signed()).is_none()));
        // Three seconds come within 150 ms.
        let flood = (50..125).map(|i| watch.late(5000 + 2 * (i - 50), 40 * i.cast_signed()));
        let late: Vec<_> = flood.collect();
        assert_eq!((late[0], late[10]), (Some(3000), Some(2620)));
        assert!(late[70].is_some());
        assert!((130..200).all(|i| watch.late(40 * i, 40 * i.cast_signed()).is_none()));
    }

    #[test]
    fn pauses_are_not_late_and_what_goes_back_is() {
        let mut watch = Watch::new();
        for made in [0, 40, 80, 4000, 4040, 9000] {
            assert_eq!(watch.late(made, made.cast_signed()), None);
        }
        assert_eq!(watch.late(9040, 8000), Some(1040));
    }

    #[test]
    fn what_stays_late_is_usual_then() {
        let mut watch = Watch::new();
        assert_eq!(watch.late(0, 0), None);
        let late: Vec<_> = (1..150)
            .map(|i| watch.late(2000 + 40 * i, 40 * i.cast_signed()))
            .collect();
        assert_eq!(
            (late[0], late[70], late[80]),
            (Some(2000), Some(2000), None)
        );
    }

    #[test]
    fn a_slow_clock_is_not_late() {
        let mut watch = Watch::new();
        let mut hour = (0..90_000).map(|i| watch.late(40 * i + i / 25, 40 * i.cast_signed()));
        assert!(hour.all(|late| late.is_none()));
    }
}
