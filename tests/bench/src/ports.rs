//! Ports for the processes that are started here.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// `count` neighbouring ports that nobody uses by TCP or UDP.
///
/// They lie below the range that the kernel gives to outgoing connections, so that nothing takes them before the server
/// that they are for; other processes that look for some start elsewhere.
///
/// # Panics
/// If there are none.
pub fn free(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 12_000;
    const RANGE: u16 = 18_000;
    let start = u16::try_from(std::process::id() % u32::from(RANGE)).unwrap_or_default();
    for _ in 0..RANGE {
        let offset = NEXT.fetch_add(count, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(offset)) % RANGE;
        let free = (port..port + count).all(|port| {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
                && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        });
        if free {
            return port;
        }
    }
    panic!("no free port");
}
