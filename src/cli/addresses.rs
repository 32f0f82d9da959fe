//! The machine's own addresses, for candidates when nobody says which ones viewers reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

/// The addresses at which a socket bound to `media` is reached: the bound one, or those of all interfaces that are up and of
/// a family the socket serves. Loopback only if asked for; link-local ones never, since candidates can't carry their zone.
pub(super) fn reachable(media: SocketAddr, loopback: bool) -> anyhow::Result<Vec<IpAddr>> {
    if !media.ip().is_unspecified() {
        return Ok(vec![media.ip()]);
    }
    let interfaces = getifaddrs().context("the addresses of the interfaces")?;
    let mut found: Vec<IpAddr> = interfaces
        .filter(|interface| interface.flags.contains(InterfaceFlags::IFF_UP))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|&ip| is_candidate(ip, media.is_ipv6(), loopback))
        .collect();
    // Loopback last: whoever reads only the first candidate gets one that works from elsewhere, too.
    found.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6(), *ip));
    found.dedup();
    if found.is_empty() {
        found.push(if media.is_ipv6() {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        });
    }
    Ok(found)
}

fn is_candidate(ip: IpAddr, both_families: bool, loopback: bool) -> bool {
    let of_family = ip.is_ipv4() || both_families;
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    of_family && !link_local && (loopback || !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_the_only_one() {
        let bound: SocketAddr = "127.0.0.1:8700".parse().expect("valid");
        assert_eq!(reachable(bound, false).expect("found"), [bound.ip()]);
    }

    #[test]
    fn loopback_is_there_if_asked_for() {
        let any: SocketAddr = "0.0.0.0:8700".parse().expect("valid");
        let found = reachable(any, true).expect("found");
        assert!(
            found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)),
            "{found:?}"
        );
        assert!(found.iter().all(IpAddr::is_ipv4), "{found:?}");
    }

    #[test]
    fn addresses_that_candidates_cannot_carry_are_left_out() {
        for (ip, both, loopback, expected) in [
            ("10.0.0.1", false, false, true),
            ("127.0.0.1", false, false, false),
            ("127.0.0.1", false, true, true),
            ("169.254.1.1", true, true, false),
            ("fe80::1", true, true, false),
            ("2001:db8::1", true, false, true),
            ("2001:db8::1", false, false, false),
            ("::1", true, false, false),
        ] {
            let ip = ip.parse().expect("valid");
            assert_eq!(is_candidate(ip, both, loopback), expected, "{ip}");
        }
    }
}
