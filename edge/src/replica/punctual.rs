//! Whether sound comes in time.
//!
//! What an upstream sends after its way was cut, or a publisher after its network stood still, comes all at once. Pictures of that are decoded
//! as fast as they come, up to the newest. Sound is played as slowly as it was made: browsers hurry by a few per cent at most, so it would
//! stay as late as the cut was long, and pictures would wait for it. What comes too late is therefore not sent.

use std::time::{Duration, Instant};

use headwater_media::time::WallTime;
use headwater_media::unit::AccessUnit;

/// How much later than usual sound may come from its publisher's socket: more than the ways between nodes differ.
const REPLICATED_LATE: Duration = Duration::from_millis(300);
/// And how much later than its timestamps say: publishers send it in pieces of their own length.
const SENT_LATE: Duration = Duration::from_secs(1);
/// What is late for so long is how it comes now.
const USUAL_AFTER: Duration = Duration::from_secs(2);
/// The usual follows what comes later than it by this share of the difference, so that clocks may drift.
const SMOOTHING: u32 = 1024;

/// One track's punctuality.
#[derive(Debug)]
pub(super) struct Punctual {
    replicated: Usual,
    sent: Usual,
}

impl Default for Punctual {
    fn default() -> Self {
        Self {
            replicated: Usual::new(REPLICATED_LATE),
            sent: Usual::new(SENT_LATE),
        }
    }
}

impl Punctual {
    /// The next unit came; false: too late.
    pub(super) fn takes(&mut self, now: Instant, unit: &AccessUnit) -> bool {
        let micros = i64::try_from(unit.ingest_time.unix_micros()).unwrap_or(i64::MAX);
        let known = unit.ingest_time != WallTime::default();
        let replicated = !known || self.replicated.takes(now, micros);
        let sent = self
            .sent
            .takes(now, unit.dts.as_millis().saturating_mul(1000));
        replicated && sent
    }
}

/// How late things usually are.
#[derive(Debug)]
struct Usual {
    late: Duration,
    /// One that was as punctual as they get: when it came, and its own time (µs).
    reference: Option<(Instant, i64)>,
    late_since: Option<Instant>,
}

impl Usual {
    const fn new(late: Duration) -> Self {
        Self {
            late,
            reference: None,
            late_since: None,
        }
    }

    /// Something of the time `micros` came; false: it is late.
    fn takes(&mut self, now: Instant, micros: i64) -> bool {
        let here = (now, micros);
        let (came, time) = *self.reference.get_or_insert(here);
        let elapsed = now.saturating_duration_since(came);
        let due = u64::try_from(micros.saturating_sub(time)).unwrap_or(0);
        let later = elapsed.saturating_sub(Duration::from_micros(due));
        if later.is_zero() {
            self.reference = Some(here);
        }
        if later <= self.late {
            self.late_since = None;
            if let Some((came, _)) = &mut self.reference {
                *came += later / SMOOTHING;
            }
            return true;
        }
        let since = *self.late_since.get_or_insert(now);
        let usual = now.saturating_duration_since(since) >= USUAL_AFTER;
        if usual {
            self.reference = Some(here);
            self.late_since = None;
        }
        usual
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::id::TrackId;
    use headwater_media::testkit;
    use headwater_media::time::MediaTime;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    struct Listener {
        start: Instant,
        punctual: Punctual,
    }

    impl Listener {
        fn new() -> Self {
            Self {
                start: testkit::start(),
                punctual: Punctual::default(),
            }
        }

        /// How many are taken of frames that come at such a time, with such an ingest time and such a timestamp (ms).
        fn taken(&mut self, frames: impl Iterator<Item = (u64, u64, u64)>) -> usize {
            let mut take = |(came, ingest, time): (u64, u64, u64)| {
                let time = MediaTime::from_millis(i64::try_from(time).unwrap());
                let mut unit = testkit::unit(TrackId::OPUS, 1, 0, time);
                unit.ingest_time = WallTime::from_unix_micros((1_000_000 + ingest) * 1000);
                let now = self.start + MILLISECOND * u32::try_from(came).unwrap();
                self.punctual.takes(now, &unit)
            };
            frames.filter(|frame| take(*frame)).count()
        }
    }

    /// One each 20 ms, as it is made.
    fn live(frames: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64, u64)> {
        frames.map(|frame| (20 * frame, 20 * frame, 20 * frame))
    }

    #[test]
    fn what_was_missed_over_a_cut_link_is_not_sent_late() {
        let mut listener = Listener::new();
        assert_eq!(listener.taken(live(0..100)), 100);
        // Three seconds come together; those of the last 300 ms are in time.
        let flood = (100..250).map(|frame| (5000, 20 * frame, 20 * frame));
        assert_eq!(listener.taken(flood), 15);
        assert_eq!(listener.taken(live(250..300)), 50);
    }

    #[test]
    fn nor_is_what_a_publisher_sends_together_after_a_pause() {
        let mut listener = Listener::new();
        assert_eq!(listener.taken(live(0..100)), 100);
        let flood = (100..250).map(|frame| (5000, 5000, 20 * frame));
        assert_eq!(listener.taken(flood), 50);
        assert_eq!(listener.taken(live(250..300)), 50);
    }

    #[test]
    fn who_sends_in_pieces_of_a_second_is_heard_whole() {
        let mut listener = Listener::new();
        let pieces = (0..500).map(|frame: u64| {
            let piece = 1000 * (frame / 50 + 1);
            (piece, piece, 20 * frame)
        });
        assert_eq!(listener.taken(pieces), 500);
    }

    #[test]
    fn a_longer_way_becomes_usual() {
        let mut listener = Listener::new();
        assert_eq!(listener.taken(live(0..100)), 100);
        let later = (100..300).map(|frame| (20 * frame + 2000, 20 * frame, 20 * frame));
        // Two seconds of it are missed.
        assert_eq!(listener.taken(later), 100);
    }

    #[test]
    fn clocks_that_drift_stay_in_time() {
        let mut listener = Listener::new();
        // The publisher's is slow by a thousandth: 3.6 s an hour, ten times what clocks do.
        let hour = (0..180_000).map(|frame: u64| (20 * frame + frame / 50, 20 * frame, 20 * frame));
        assert_eq!(listener.taken(hour), 180_000);
    }
}
