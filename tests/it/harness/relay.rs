//! A bad network between players and an edge.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use headwater_media::testkit::{Conditions, Link};

use super::{now, pause};

/// What IP and UDP add to a datagram (bytes).
const OVERHEAD: usize = 28;

/// Carries datagrams both ways until it is dropped.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Datagrams towards players that did not arrive (count).
    lost: AtomicU64,
}

impl Relay {
    /// Between whoever sends to `front` and an edge at `edge`, which sees each player at an address of its own. Both ways are
    /// under `conditions`; what is lost repeats from `seed`.
    pub(crate) fn start(
        front: SocketAddr,
        edge: SocketAddr,
        conditions: Conditions,
        seed: u64,
    ) -> Self {
        let began = now();
        let mut carrier = Carrier {
            front: open(front),
            edge,
            players: HashMap::new(),
            up: Link::new(conditions, seed, began),
            down: Link::new(conditions, seed + 1, began),
        };
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                carrier.turn();
                seen.lost
                    .store(carrier.down.lost().packets, Ordering::Relaxed);
                pause(Duration::from_millis(1));
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Datagrams towards players that did not arrive so far (count).
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Carrier {
    front: UdpSocket,
    edge: SocketAddr,
    /// Towards the edge, by the player's address.
    players: HashMap<SocketAddr, UdpSocket>,
    up: Link<(SocketAddr, Vec<u8>)>,
    down: Link<(SocketAddr, Vec<u8>)>,
}

impl Carrier {
    fn turn(&mut self) {
        let now = now();
        let mut buffer = [0; 2048];
        while let Ok((count, player)) = self.front.recv_from(&mut buffer) {
            let datagram = buffer[..count].to_vec();
            self.up.send(now, count + OVERHEAD, (player, datagram));
        }
        for (player, socket) in &self.players {
            while let Ok(count) = socket.recv(&mut buffer) {
                let datagram = buffer[..count].to_vec();
                self.down.send(now, count + OVERHEAD, (*player, datagram));
            }
        }
        // What can't be sent is lost as well.
        while let Some((_, (player, datagram))) = self.up.poll_arrived(now) {
            let socket = self.players.entry(player).or_insert_with(|| {
                let socket = open((Ipv4Addr::LOCALHOST, 0).into());
                socket.connect(self.edge).expect("an address");
                socket
            });
            let _ = socket.send(&datagram);
        }
        while let Some((_, (player, datagram))) = self.down.poll_arrived(now) {
            let _ = self.front.send_to(&datagram, player);
        }
    }
}

fn open(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).expect("a free port");
    socket.set_nonblocking(true).expect("a socket");
    socket
}
