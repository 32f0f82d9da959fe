//! A TCP connection's way that can be cut as a network is: nothing arrives, and nobody is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::{free_ports, pause};

/// How soon a cut is noticed.
const TURN: Duration = Duration::from_millis(20);

/// Carries TCP connections to ports of this machine until it is dropped.
pub(crate) struct Wire {
    shared: Arc<Shared>,
    port: u16,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    cut: AtomicBool,
    /// Nobody listens at its far end, so that connections are refused.
    refuses: AtomicBool,
    /// How often it was healed: connections from before it are lost then.
    healed: AtomicU64,
}

impl Wire {
    /// To `port`.
    pub(crate) fn to(port: u16) -> Self {
        Self::among(vec![port])
    }

    /// To each of `ports` in turn, past those where nobody listens: a load balancer without affinity.
    pub(crate) fn among(mut ports: Vec<u16>) -> Self {
        let own = free_ports(1);
        let mut listener = Some(listen(own));
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        std::thread::spawn(move || {
            while !seen.stop.load(Ordering::Relaxed) {
                if seen.refuses.load(Ordering::Relaxed) {
                    listener = None;
                    pause(TURN);
                    continue;
                }
                let listener = listener.get_or_insert_with(|| listen(own));
                match listener.accept() {
                    Ok((near, _)) => {
                        carry(near, &ports, &seen);
                        ports.rotate_left(1);
                    }
                    Err(_) => pause(TURN),
                }
            }
        });
        Self { shared, port: own }
    }

    /// Where it takes connections.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Nobody listens behind it any more, which whoever connects is told.
    pub(crate) fn refuse(&self) {
        self.shared.refuses.store(true, Ordering::Relaxed);
        // It was accepting just now.
        pause(2 * TURN);
    }

    /// Somebody does again.
    pub(crate) fn accept(&self) {
        self.shared.refuses.store(false, Ordering::Relaxed);
    }

    /// From now on nothing arrives.
    pub(crate) fn cut(&self) {
        self.shared.cut.store(true, Ordering::Relaxed);
    }

    /// What waits arrives after all, as TCP sees to it that connections outlive a network that was away for a moment.
    pub(crate) fn mend(&self) {
        self.shared.cut.store(false, Ordering::Relaxed);
    }

    /// New connections get through again, and those from before the cut are lost.
    pub(crate) fn heal(&self) {
        self.shared.healed.fetch_add(1, Ordering::Relaxed);
        self.shared.cut.store(false, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn listen(port: u16) -> TcpListener {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a port of ours");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

fn carry(near: TcpStream, ports: &[u16], shared: &Arc<Shared>) {
    let healed = shared.healed.load(Ordering::Relaxed);
    if shared.cut.load(Ordering::Relaxed) {
        // Nobody answers while it is cut.
        let (shared, ports) = (Arc::clone(shared), ports.to_vec());
        std::thread::spawn(move || {
            shared.await_whole(healed);
            if shared.goes_on(healed) {
                join(&near, &ports, healed, &shared);
            }
        });
    } else {
        join(&near, ports, healed, shared);
    }
}

fn join(near: &TcpStream, ports: &[u16], healed: u64, shared: &Arc<Shared>) {
    let connect = |port: &u16| TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).ok();
    let Some(far) = ports.iter().find_map(connect) else {
        return;
    };
    for (from, to) in [(near, &far), (&far, near)] {
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else {
            return;
        };
        let shared = Arc::clone(shared);
        std::thread::spawn(move || copy(from, to, healed, &shared));
    }
}

impl Shared {
    fn await_whole(&self, healed: u64) {
        while self.cut.load(Ordering::Relaxed) && self.goes_on(healed) {
            pause(TURN);
        }
    }

    fn goes_on(&self, healed: u64) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.healed.load(Ordering::Relaxed) == healed
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, healed: u64, shared: &Shared) {
    let mut buffer = vec![0; 64 << 10];
    let _ = from.set_nodelay(true);
    let _ = from.set_read_timeout(Some(TURN));
    while shared.goes_on(healed) {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                shared.await_whole(healed);
                if !shared.goes_on(healed) || to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
