//! Ports for the processes that are started here.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, PoisonError};

/// The first port of the first block.
const FIRST: u16 = 12_000;
/// How many ports a process takes at once, and how many such blocks there are. All lie below the range that the kernel gives
/// to outgoing connections, so that nothing takes them while the server that they are for is down.
const BLOCK: u16 = 60;
const BLOCKS: u16 = 300;

/// Ports that no other process takes from here until this one ends: it has a name of the block, of which there is one.
struct Block {
    /// Abstract names of Unix sockets belong to the network namespace, as ports do, and end with their process.
    _name: UnixDatagram,
    /// The first port that was not given away, and the end of the block.
    next: u16,
    end: u16,
}

impl Block {
    fn take(number: u16) -> io::Result<Self> {
        // tests/deploy/ports.py knows these names too.
        let name = SocketAddr::from_abstract_name(format!("headwater-ports-{number}"))?;
        let next = FIRST + number * BLOCK;
        Ok(Self {
            _name: UnixDatagram::bind_addr(&name)?,
            next,
            end: next + BLOCK,
        })
    }

    fn ports(&mut self, count: u16) -> Option<u16> {
        let port = self.next;
        self.next = port.checked_add(count).filter(|next| *next <= self.end)?;
        Some(port)
    }
}

/// `count` neighbouring ports that nobody uses by TCP or UDP, and that no other call is given as long as this process runs.
///
/// # Panics
/// If there are none.
pub fn free(count: u16) -> u16 {
    static HELD: Mutex<Vec<Block>> = Mutex::new(Vec::new());
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        while let Some(port) = held.last_mut().and_then(|block| block.ports(count)) {
            if (port..port + count).all(is_free) {
                return port;
            }
        }
        assert!(count <= BLOCK, "{count} ports don't fit a block");
        held.push(another());
    }
}

/// Processes begin at different blocks: what knows the ports of one that ended may still ask there.
fn another() -> Block {
    let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or_default();
    let mut numbers = (0..BLOCKS).map(|n| (start + n) % BLOCKS);
    let block = numbers.find_map(|number| Block::take(number).ok());
    block.expect("a block of ports that nobody has")
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
        && UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Block, FIRST, another, free};

    #[test]
    fn nobody_is_given_a_port_twice() {
        let mut given: Vec<u16> = (0..BLOCK).map(|_| free(2)).collect();
        given.sort_unstable();
        assert!(given.windows(2).all(|pair| pair[0] + 2 <= pair[1]));
    }

    #[test]
    fn a_block_has_one_holder() {
        let held = another();
        let number = (held.next - FIRST) / BLOCK;
        assert!(Block::take(number).is_err(), "it is held");
    }
}
