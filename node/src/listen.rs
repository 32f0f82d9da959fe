//! Listening TCP ports.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel holds until they are accepted (count).
const BACKLOG: i32 = 1024;

/// A port that can't be had.
#[derive(Debug, thiserror::Error)]
#[error("{what} can't listen on {address}: {source}")]
pub struct Error {
    what: &'static str,
    address: SocketAddr,
    source: io::Error,
}

impl Error {
    /// Makes what the system says of `address` an error that names who was to listen there.
    pub fn of(what: &'static str, address: SocketAddr) -> impl Fn(io::Error) -> Self {
        move |source| Self {
            what,
            address,
            source,
        }
    }
}

/// Listens at `address`; an IPv6 one takes IPv4 too. It doesn't block, as tokio's listeners want it.
///
/// # Errors
/// If the port can't be had.
pub fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of the process before us may linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};
    use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};

    use super::*;

    #[test]
    fn a_port_is_had_once_and_again_though_connections_linger() {
        let listener = tcp((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let taken = tcp(address).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse);

        // Who closes first is left in TIME_WAIT.
        let mut client = TcpStream::connect(address).unwrap();
        let (ours, _) = listener.accept().unwrap();
        ours.shutdown(Shutdown::Both).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        drop((client, ours, listener));
        tcp(address).unwrap();
    }

    #[test]
    fn an_ipv6_port_takes_ipv4_too() {
        let Ok(listener) = tcp((Ipv6Addr::UNSPECIFIED, 0).into()) else {
            // This machine has no IPv6.
            return;
        };
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
