//! What viewers' links carried, by the networks they are in: the best guess for the next viewer from there.
//!
//! Bounded by two generations of entries: the younger takes what is learned, and takes the older one's place when it is full or old. Loopback
//! says nothing of a link.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use headwater_media::id::Bitrate;

/// Networks of a generation (count): 24 bytes each, or so.
const NETWORKS_MAX: usize = 16_384;
/// How long a generation learns. What is known is between this and twice as old when it is forgotten.
const GENERATION: Duration = Duration::from_secs(30 * 60);

/// Addresses that are likely to share a way into the internet: an IPv4 /24, or an IPv6 /48, as a number. 0 is none of them.
pub(crate) type Network = u64;

/// The network of an address.
pub(crate) fn network_of(address: IpAddr) -> Network {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return 0;
    }
    match address {
        IpAddr::V4(v4) => (4 << 56) | u64::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            (6 << 56) | (u64::from(a) << 32) | (u64::from(b) << 16) | u64::from(c)
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LinkMemory {
    younger: HashMap<Network, Bitrate>,
    older: HashMap<Network, Bitrate>,
    since: Instant,
}

impl LinkMemory {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            younger: HashMap::new(),
            older: HashMap::new(),
            since: now,
        }
    }

    /// A viewer's link carried so much. One that carried less than its neighbour's counts by half: it may be the exception.
    pub(crate) fn handle_carried(&mut self, now: Instant, network: Network, carried: Bitrate) {
        if network == 0 || carried.0 == 0 {
            return;
        }
        let full = self.younger.len() >= NETWORKS_MAX && !self.younger.contains_key(&network);
        if full || now.saturating_duration_since(self.since) > GENERATION {
            self.older = std::mem::take(&mut self.younger);
            self.since = now;
        }
        let before = self.assumed(now, network);
        let learned = match before {
            Some(before) if carried < before => Bitrate(before.0.midpoint(carried.0)),
            _ => carried,
        };
        self.younger.insert(network, learned);
    }

    /// What to assume of a link from there.
    pub(crate) fn assumed(&self, now: Instant, network: Network) -> Option<Bitrate> {
        let age = now.saturating_duration_since(self.since);
        let known = |generation: &HashMap<_, _>, until| {
            (age <= until).then(|| generation.get(&network).copied())?
        };
        known(&self.younger, 2 * GENERATION).or_else(|| known(&self.older, GENERATION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_network_and_loopback_has_none() {
        let of = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(of("192.0.2.1"), of("192.0.2.254"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.7"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:ffff::4"));
        assert_ne!(of("2001:db8:1::"), of("2001:db8:2::"));
        for nowhere in ["127.0.0.5", "::1", "0.0.0.0"] {
            assert_eq!(of(nowhere), 0, "{nowhere}");
        }
    }

    #[test]
    fn the_newest_is_remembered_for_a_while_within_bounds() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
        let start = Instant::now();
        let mut memory = LinkMemory::new(start);
        memory.handle_carried(start, 1, Bitrate(500));
        memory.handle_carried(start, 1, Bitrate(700));
        memory.handle_carried(start, 0, Bitrate(700));
        assert_eq!(memory.assumed(start, 1), Some(Bitrate(700)));
        memory.handle_carried(start, 1, Bitrate(300));
        assert_eq!(memory.assumed(start, 1), Some(Bitrate(500)));
        memory.handle_carried(start, 1, Bitrate(700));
        assert_eq!(memory.assumed(start, 0), None);
        // A full generation makes room, and what it had is still known.
        for network in 2..=NETWORKS_MAX as u64 + 1 {
            memory.handle_carried(start, network, Bitrate(1));
        }
        assert_eq!(memory.assumed(start, 1), Some(Bitrate(700)));
        assert_eq!(memory.younger.len() + memory.older.len(), NETWORKS_MAX + 1);
        let later = start + GENERATION + Duration::from_secs(1);
        assert_eq!(memory.assumed(later, 1), None, "of the older generation");
        let newest = NETWORKS_MAX as u64 + 1;
        assert_eq!(memory.assumed(later, newest), Some(Bitrate(1)));
        assert_eq!(memory.assumed(later + GENERATION, newest), None);
    }
}
