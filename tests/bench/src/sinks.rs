//! Sockets that take the floor's packets as viewers would, and count them.

use std::time::Duration;

use anyhow::Result;
use headwater_bench::time::{now, pause};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

use crate::load::socket::{Receiver, Socket};
use crate::{floor, load};

/// See the module.
pub(crate) struct Sinks {
    epoll: Epoll,
    sockets: Vec<Socket>,
    receiver: Receiver,
    packets: u64,
}

impl Sinks {
    /// `count` of them, connected to the floor's port as viewers are to an edge's.
    pub(crate) fn open(count: usize, port: u16) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let sockets = (0..count)
            .map(|number| {
                let socket = Socket::open(&epoll, number as u64)?;
                socket.connect(floor::address(port))?;
                Ok(socket)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            epoll,
            sockets,
            receiver: Receiver::new(),
            packets: 0,
        })
    }

    /// Their ports.
    pub(crate) fn ports(&self) -> Result<Vec<u16>> {
        self.sockets.iter().map(Socket::port).collect()
    }

    /// Takes packets for a while, in rounds as long as the load's. Returns how many came.
    pub(crate) fn run(&mut self, span: Duration) -> Result<u64> {
        let before = self.packets;
        let end = now() + span;
        while now() < end {
            let began = now();
            let mut events = [EpollEvent::empty(); load::EVENTS];
            let timeout = EpollTimeout::try_from(load::ROUND)?;
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..count] {
                if let Some(socket) = self.sockets.get(usize::try_from(event.data())?) {
                    let packets = &mut self.packets;
                    self.receiver.receive(socket, |_, _, _| *packets += 1);
                }
            }
            pause(load::ROUND.saturating_sub(began.elapsed()));
        }
        Ok(self.packets - before)
    }
}
