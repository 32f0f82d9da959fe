//! The sockets that viewers and the floor's sinks have: UDP with receive offload and the kernel's receive times.
//!
//! What one sends with segmentation offload arrives here as it was sent, in one piece, as on a machine whose network card does that too.
//! Without it the kernel would cut the pieces up on the sender's account and every server would look dearer.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, UdpSocketState};

use headwater_bench::time::wall;

/// Receive buffer of each socket (bytes): a whole GOP fits, so that only a reader that is far too slow loses anything.
const RECEIVE_BUFFER_BYTES: usize = 2 << 20;

/// Messages taken by one call (count), and the bytes of the largest.
const BATCH: usize = 4;
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// One socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    /// On a free port of this machine, registered with `epoll` under `token`.
    pub(crate) fn open(epoll: &Epoll, token: u64) -> Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("a UDP socket")?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            // Without privileges it is as large as net.core.rmem_max allows.
            let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES);
        }
        let state = UdpSocketState::new((&socket).into()).context("receive offload")?;
        epoll.add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        Ok(Self { socket, state })
    }

    /// Its port.
    pub(crate) fn port(&self) -> Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// From now on it talks to this address only.
    pub(crate) fn connect(&self, address: SocketAddr) -> Result<()> {
        Ok(self.socket.connect(address)?)
    }

    /// Sends a datagram there. What a full buffer loses is lost on the way.
    pub(crate) fn send(&self, datagram: &[u8]) {
        let _ = self.socket.send(datagram);
    }
}

/// Buffers to receive into, shared by all sockets of a thread.
pub(crate) struct Receiver {
    buffers: Vec<Vec<u8>>,
    /// Reads so far (count).
    pub(crate) reads: u64,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Self {
            buffers: vec![vec![0; MESSAGE_BYTES_MAX]; BATCH],
            reads: 0,
        }
    }

    /// Takes what is there and passes on each datagram with the time at which the kernel had it (since the Unix epoch).
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        mut each: impl FnMut(&[u8], SocketAddr, Duration),
    ) {
        loop {
            let mut meta = [RecvMeta::default(); BATCH];
            let [a, b, c, d] = self.buffers.as_mut_slice() else {
                return;
            };
            let mut slices = [a, b, c, d].map(|buffer| IoSliceMut::new(buffer));
            self.reads += 1;
            let received = socket
                .state
                .recv((&socket.socket).into(), &mut slices, &mut meta);
            // Nothing there; or the server's port is closed, which shows in what doesn't come.
            let Ok(count) = received else {
                return;
            };
            for (buffer, meta) in self.buffers.iter().zip(&meta).take(count) {
                let at = meta.timestamp.unwrap_or_else(wall);
                let message = buffer.get(..meta.len).unwrap_or_default();
                for datagram in message.chunks(meta.stride.max(1)) {
                    each(datagram, meta.addr, at);
                }
            }
            if count < BATCH {
                return;
            }
        }
    }
}
