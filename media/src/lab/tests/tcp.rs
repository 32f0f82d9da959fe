//! A TCP sender as far as its neighbours on a link feel it: NewReno (RFC 5681, RFC 6582) with selective acknowledgments, an initial window of ten
//! segments (RFC 6928) and a retransmission timer (RFC 6298). Each segment is acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::lab::Rng;

/// A segment and an acknowledgment on the wire (bytes).
pub(super) const SEGMENT_BYTES: usize = 1500;
pub(super) const ACK_BYTES: usize = 52;
const PAYLOAD_BYTES: u64 = 1448;
const INITIAL_WINDOW: f64 = 10.0;
/// Segments that arrive after one that didn't, for that to be lost (count).
const REORDERED: usize = 3;
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_FIRST: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Tcp {
    /// When it has something to send again.
    pub(super) wakes: Instant,
    pub(super) acked_bytes: u64,
    /// Transfers that came to their end (count).
    pub(super) transfers: u64,
    download: Option<Download>,
    /// Segments of the transfer that have to leave still; a lost one counts again.
    unsent: u64,
    window: f64,
    threshold: f64,
    /// (number, when it left), by number.
    in_flight: VecDeque<(u64, Instant)>,
    next: u64,
    /// Losses of segments before this one have been answered.
    recovered_at: u64,
    srtt: Option<Duration>,
    deviation: Duration,
    backoff: u32,
    /// When the timer was set anew.
    since: Instant,
}

/// Files one after another, with pauses.
#[derive(Debug)]
pub(super) struct Download {
    pub(super) rng: Rng,
    pub(super) bytes_min: u32,
    pub(super) bytes_max: u32,
    /// Evenly spread up to twice this.
    pub(super) pause_ms: u32,
}

impl Tcp {
    /// One transfer without end.
    pub(super) fn endless(wakes: Instant) -> Self {
        Self {
            wakes,
            acked_bytes: 0,
            transfers: 0,
            download: None,
            unsent: u64::MAX / 2,
            window: INITIAL_WINDOW,
            threshold: f64::INFINITY,
            in_flight: VecDeque::new(),
            next: 0,
            recovered_at: 0,
            srtt: None,
            deviation: Duration::ZERO,
            backoff: 0,
            since: wakes,
        }
    }

    pub(super) fn downloads(wakes: Instant, download: Download) -> Self {
        Self {
            unsent: 0,
            download: Some(download),
            ..Self::endless(wakes)
        }
    }

    /// The number of a segment that may leave now.
    pub(super) fn poll_segment(&mut self, now: Instant) -> Option<u64> {
        if now < self.wakes {
            return None;
        }
        if self.unsent == 0 && self.in_flight.is_empty() {
            self.begin(now);
        }
        if !self.in_flight.is_empty() && now >= self.since + self.timeout() {
            // All that is under way counts as lost.
            self.unsent += self.in_flight.len() as u64;
            self.threshold = (self.under_way() / 2.0).max(2.0);
            self.window = 1.0;
            self.in_flight.clear();
            self.recovered_at = self.next;
            self.backoff += 1;
        }
        if self.unsent == 0 || self.under_way() >= self.window.floor() {
            return None;
        }
        if self.in_flight.is_empty() {
            self.since = now;
        }
        let number = self.next;
        self.in_flight.push_back((number, now));
        self.next += 1;
        self.unsent -= 1;
        Some(number)
    }

    /// A segment arrived, says its receiver.
    pub(super) fn handle_ack(&mut self, now: Instant, number: u64) {
        let Ok(at) = self.in_flight.binary_search_by_key(&number, |(n, _)| *n) else {
            return;
        };
        let Some((_, sent)) = self.in_flight.remove(at) else {
            return;
        };
        self.measure(now.saturating_duration_since(sent));
        self.since = now;
        self.backoff = 0;
        self.acked_bytes += PAYLOAD_BYTES;
        if self.window < self.threshold {
            self.window += 1.0;
        } else {
            self.window += 1.0 / self.window;
        }
        let lost = self
            .in_flight
            .iter()
            .take_while(|(n, _)| n + REORDERED as u64 <= number);
        let lost: Vec<u64> = lost.map(|(n, _)| *n).collect();
        self.in_flight.drain(..lost.len());
        self.unsent += lost.len() as u64;
        if lost.iter().any(|n| *n >= self.recovered_at) {
            self.threshold = (self.window / 2.0).max(2.0);
            self.window = self.threshold;
            self.recovered_at = self.next;
        }
        if self.unsent == 0 && self.in_flight.is_empty() {
            self.transfers += 1;
            let pause = self.download.as_mut();
            let pause = pause.map_or(0, |download| download.rng.below(2 * download.pause_ms));
            self.wakes = now + Duration::from_millis(pause.into());
        }
    }

    /// The next file, over a connection of its own.
    fn begin(&mut self, now: Instant) {
        let Some(download) = &mut self.download else {
            return;
        };
        let more = download.rng.below(download.bytes_max - download.bytes_min);
        self.unsent = u64::from(download.bytes_min + more).div_ceil(PAYLOAD_BYTES);
        self.window = INITIAL_WINDOW;
        self.threshold = f64::INFINITY;
        self.recovered_at = self.next;
        self.srtt = None;
        self.backoff = 0;
        self.since = now;
    }

    fn under_way(&self) -> f64 {
        f64::from(u32::try_from(self.in_flight.len()).unwrap())
    }

    fn measure(&mut self, rtt: Duration) {
        let Some(srtt) = self.srtt else {
            self.srtt = Some(rtt);
            self.deviation = rtt / 2;
            return;
        };
        self.deviation = (self.deviation * 3 + srtt.abs_diff(rtt)) / 4;
        self.srtt = Some((srtt * 7 + rtt) / 8);
    }

    fn timeout(&self) -> Duration {
        let timeout = self
            .srtt
            .map_or(RTO_FIRST, |srtt| (srtt + self.deviation * 4).max(RTO_MIN));
        timeout * (1 << self.backoff.min(6))
    }
}
