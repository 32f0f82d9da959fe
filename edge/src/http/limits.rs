//! What one address may ask for: a token bucket per address, in a table that can't grow without end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use headwater_node::address::network_of;
use serde::{Deserialize, Serialize};

/// Limits of the edge's HTTP side, `[edge.limits]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// HTTP threads (count); 0: two, or as many as the machine has cores if that is fewer.
    pub workers: usize,
    /// Open connections per HTTP thread (count); more wait in the kernel's backlog.
    pub connections_per_worker: usize,
    /// Open connections that one address may have (count); more are closed at once. 0: no limit. Counted like
    /// `requests_per_second`.
    pub connections_per_address: usize,
    /// How long a client may take to send a request's head (milliseconds); also how long it may take for its body.
    pub request_timeout_ms: u64,
    /// How long an idle connection stays open (seconds).
    pub keep_alive_seconds: u64,
    /// POST, PATCH and DELETE requests that one address may send per second on average; 0: no limit. An IPv6 /64 counts as
    /// one address. Behind a reverse proxy all viewers have the proxy's address: limit there, and set 0 here.
    pub requests_per_second: u32,
    /// How many of them it may send at once (count): many viewers may share an address.
    pub requests_burst: u32,
    /// Reports of players (`POST /qoe`) that this edge takes per second (count), so that what it counts is a sample; 0: players aren't asked for
    /// any. What one address may send of them is limited as other requests are.
    pub reports_per_second: u32,
    /// Loopback addresses are limited too, in requests and connections. Off by default: a proxy or a load test on the same machine is no flood.
    pub limit_loopback: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            connections_per_worker: 32_768,
            connections_per_address: 1024,
            request_timeout_ms: 5000,
            keep_alive_seconds: 15,
            requests_per_second: 50,
            requests_burst: 250,
            reports_per_second: 100,
            limit_loopback: false,
        }
    }
}

/// Addresses that are remembered (count). 65,536 of them take about 3 MB.
const ADDRESSES_MAX: usize = 65_536;
/// Between two sweeps of a full table at least, so that a flood from many addresses doesn't cost a sweep per request.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Decides who has asked too often.
///
/// When the table is full of addresses that still recover, new ones share one bucket: that is unkind to some, and bounded.
#[derive(Debug)]
pub(crate) struct Limiter {
    /// Tokens per second; 0: no limit.
    rate: f64,
    burst: f64,
    loopback: bool,
    buckets: HashMap<IpAddr, Tokens>,
    shared: Option<Tokens>,
    swept: Option<Instant>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tokens {
    left: f64,
    at: Instant,
}

impl Tokens {
    pub(crate) const fn full(now: Instant, burst: f64) -> Self {
        Self {
            left: burst,
            at: now,
        }
    }

    /// Takes one; false if there is none.
    pub(crate) fn take(&mut self, now: Instant, rate: f64, burst: f64) -> bool {
        *self = self.refilled(now, rate, burst);
        let any = self.left >= 1.0;
        if any {
            self.left -= 1.0;
        }
        any
    }

    fn refilled(self, now: Instant, rate: f64, burst: f64) -> Self {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        Self {
            left: elapsed.mul_add(rate, self.left).min(burst),
            at: now,
        }
    }
}

impl Limiter {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            rate: f64::from(config.requests_per_second),
            burst: f64::from(config.requests_burst.max(1)),
            loopback: config.limit_loopback,
            buckets: HashMap::new(),
            shared: None,
            swept: None,
        }
    }

    /// Takes a token for `address`; false if it has none left.
    pub(crate) fn handle_request(&mut self, now: Instant, address: IpAddr) -> bool {
        if self.rate == 0.0 || (address.is_loopback() && !self.loopback) {
            return true;
        }
        let (rate, burst) = (self.rate, self.burst);
        let key = network_of(address);
        let full = Tokens::full(now, burst);
        if self.buckets.len() >= ADDRESSES_MAX && !self.buckets.contains_key(&key) {
            self.sweep(now);
        }
        let bucket = if self.buckets.len() < ADDRESSES_MAX || self.buckets.contains_key(&key) {
            self.buckets.entry(key).or_insert(full)
        } else {
            self.shared.get_or_insert(full)
        };
        bucket.take(now, rate, burst)
    }

    /// Forgets addresses whose bucket is full again: a new one would be the same.
    fn sweep(&mut self, now: Instant) {
        if self
            .swept
            .is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_INTERVAL)
        {
            return;
        }
        self.swept = Some(now);
        let (rate, burst) = (self.rate, self.burst);
        self.buckets
            .retain(|_, bucket| bucket.refilled(now, rate, burst).left < burst);
    }
}

/// Counts open connections per address, so that one address can't hold all that a thread has: actix-web times out the head
/// of a connection's first request only, so a slow sender could keep a connection for as long as it likes.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// 0: no limit.
    per_address: usize,
    loopback: bool,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One counted connection; dropped with it.
#[derive(Debug)]
pub(crate) struct Counted {
    address: IpAddr,
    connections: Arc<Connections>,
}

impl Connections {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            per_address: config.connections_per_address,
            loopback: config.limit_loopback,
            open: Mutex::default(),
        }
    }

    /// At most `per_address` of each.
    pub(crate) fn up_to(per_address: usize) -> Self {
        Self {
            per_address,
            loopback: true,
            open: Mutex::default(),
        }
    }

    /// Counts a connection; none if its address has as many as it may.
    pub(crate) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Counted> {
        let free = self.per_address == 0 || (address.is_loopback() && !self.loopback);
        let address = network_of(address);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(address).or_default();
        if *count >= self.per_address && !free {
            return None;
        }
        *count += 1;
        drop(open);
        Some(Counted {
            address,
            connections: Arc::clone(self),
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "an arbitrary start; the tests add to it"
)]
mod tests {
    use super::*;

    fn limiter(rate: u32, burst: u32) -> Limiter {
        Limiter::new(&Config {
            requests_per_second: rate,
            requests_burst: burst,
            ..Config::default()
        })
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let mut limiter = limiter(10, 5);
        let start = Instant::now();
        let address: IpAddr = "192.0.2.1".parse().expect("an address");
        let passed = (0..20)
            .filter(|_| limiter.handle_request(start, address))
            .count();
        assert_eq!(passed, 5);
        let later = start + Duration::from_millis(250);
        let passed = (0..20)
            .filter(|_| limiter.handle_request(later, address))
            .count();
        assert_eq!(passed, 2);
        let other: IpAddr = "192.0.2.2".parse().expect("an address");
        assert!(limiter.handle_request(later, other));
    }

    #[test]
    fn neighbours_in_a_64_share_a_bucket_and_loopback_is_free() {
        let mut limiter = limiter(1, 1);
        let now = Instant::now();
        let ask = |limiter: &mut Limiter, text: &str| {
            limiter.handle_request(now, text.parse().expect("an address"))
        };
        assert!(ask(&mut limiter, "2001:db8::1"));
        assert!(!ask(&mut limiter, "2001:db8::2"));
        assert!(ask(&mut limiter, "2001:db8:0:1::1"));
        assert!(ask(&mut limiter, "192.0.2.1"));
        assert!(!ask(&mut limiter, "::ffff:192.0.2.1"));
        for _ in 0..100 {
            assert!(ask(&mut limiter, "127.0.0.1"));
            assert!(ask(&mut limiter, "::1"));
        }
    }

    #[test]
    fn no_limit_means_none() {
        let mut limiter = limiter(0, 1);
        let now = Instant::now();
        let address = "192.0.2.1".parse().expect("an address");
        assert!((0..1000).all(|_| limiter.handle_request(now, address)));
        assert!(limiter.buckets.is_empty());
    }

    #[test]
    fn the_table_is_bounded_and_recovers() {
        let mut limiter = limiter(1, 2);
        let start = Instant::now();
        for i in 0..u32::try_from(ADDRESSES_MAX).expect("fits") + 1000 {
            limiter.handle_request(start, IpAddr::V4(i.into()));
        }
        assert_eq!(limiter.buckets.len(), ADDRESSES_MAX);
        let stranger = "203.0.113.9".parse().expect("an address");
        assert!(!limiter.handle_request(start, stranger));
        let later = start + Duration::from_secs(3);
        assert!(limiter.handle_request(later, stranger));
        assert_eq!(limiter.buckets.len(), 1);
    }
}
