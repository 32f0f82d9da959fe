//! Accepts RTMP connections within limits and runs a [`super::session`] for each.
//!
//! Owned by the origin. Dropping or stopping it ends all sessions; their publishers are told that the server stops.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headwater_node::auth::Token;
use headwater_node::{Node, address, listen};
use metrics::{counter, gauge};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::session::{self, Context};
use super::{Config, metrics as names};
use crate::registry::Registry;

/// Pause after a failed accept: what fails is the process's file descriptors, and they need time to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Unacknowledged data or keepalives older than this end a connection (RFC 5482): the half-open ones that a
/// publisher's reconnect leaves behind.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(15);
const TCP_KEEPALIVE: Duration = Duration::from_secs(5);
/// Publishers that are asked to reconnect have this long to do so: a connection and a claim elsewhere take well under a second.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// Sessions that are told to stop have this long to say goodbye.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// A listening RTMP port.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    drain: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Listens and accepts publishers from now on, on the node's I/O runtime.
    ///
    /// # Errors
    /// If the port can't be opened.
    pub fn start(
        config: &Config,
        publish_token: Option<Token>,
        registry: Registry,
        node: &Node,
    ) -> io::Result<Self> {
        names::describe();
        let socket = listen::tcp(config.listen)?;
        let _runtime = node.io.enter();
        let listener = TcpListener::from_std(socket)?;
        let address = listener.local_addr()?;
        // Not the process's: an edge beside it may have viewers who still watch.
        let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let acceptor = Acceptor {
            listener,
            context: Arc::new(Context {
                limits: config.limits(),
                publish_token,
                registry,
                clock: node.clock.clone(),
                reconnect_url: Some(config.reconnect_url.clone()).filter(|url| !url.is_empty()),
                drain: drain.clone(),
                stop: stop.clone(),
            }),
            slots: Arc::new(Slots {
                total_max: config.connections_max,
                per_ip_max: config.connections_per_ip_max,
                taken: Mutex::default(),
            }),
            tasks: tasks.clone(),
            runtime: node.io.clone(),
        };
        tasks.spawn_on(acceptor.run(), &node.io);
        Ok(Self {
            address,
            drain,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting and sends publishers elsewhere: those who know the request are asked to reconnect and have a moment for it, the
    /// others are told to leave.
    pub async fn drain(&self) {
        self.drain.cancel();
        self.tasks.close();
        // Whoever is left is told to leave by `stop`.
        let _ = tokio::time::timeout(RECONNECT_TIMEOUT, self.tasks.wait()).await;
    }

    /// Stops accepting, tells all publishers to leave, and waits a moment for that.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            warn!(
                sessions = self.tasks.len(),
                "RTMP sessions did not end in time"
            );
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Acceptor {
    listener: TcpListener,
    context: Arc<Context>,
    slots: Arc<Slots>,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
}

impl Acceptor {
    async fn run(self) {
        loop {
            let accepted = tokio::select! {
                () = self.context.drain.cancelled() => return,
                () = self.context.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    counter!(names::ACCEPT_ERRORS).increment(1);
                    warn!(%error, "an RTMP connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let slot = match Slots::take(&self.slots, peer.ip()) {
            Ok(slot) => slot,
            Err(limit) => {
                counter!(names::REJECTED, "reason" => limit).increment(1);
                debug!(%peer, limit, "an RTMP connection was refused");
                return;
            }
        };
        if let Err(error) = tune(&stream) {
            // The peer may have gone already; the session will see it.
            debug!(%peer, %error, "socket options");
        }
        let context = Arc::clone(&self.context);
        let session = async move {
            session::run(stream, peer, context).await;
            drop(slot);
        };
        self.tasks.spawn_on(session, &self.runtime);
    }
}

/// How many connections there are, in all and per address.
#[derive(Debug)]
struct Slots {
    total_max: usize,
    per_ip_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    per_ip: HashMap<IpAddr, usize>,
}

/// A connection's place; dropping it frees the place.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    ip: IpAddr,
}

impl Slots {
    fn take(slots: &Arc<Self>, ip: IpAddr) -> Result<Slot, &'static str> {
        let ip = address::network_of(ip);
        let mut taken = slots.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= slots.total_max {
            return Err("total");
        }
        let of_ip = taken.per_ip.get(&ip).copied().unwrap_or(0);
        if of_ip >= slots.per_ip_max {
            return Err("per_ip");
        }
        taken.per_ip.insert(ip, of_ip + 1);
        taken.total += 1;
        gauge!(names::CONNECTIONS).increment(1);
        Ok(Slot {
            slots: Arc::clone(slots),
            ip,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self
            .slots
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.total = taken.total.saturating_sub(1);
        if let Some(of_ip) = taken.per_ip.get_mut(&self.ip) {
            *of_ip = of_ip.saturating_sub(1);
            if *of_ip == 0 {
                taken.per_ip.remove(&self.ip);
            }
        }
        gauge!(names::CONNECTIONS).decrement(1);
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE)
            .with_interval(TCP_KEEPALIVE),
    )?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_per_address_and_freed() {
        let slots = Arc::new(Slots {
            total_max: 3,
            per_ip_max: 2,
            taken: Mutex::default(),
        });
        let ip = |text: &str| text.parse::<IpAddr>().expect("valid");
        let take = |text| Slots::take(&slots, ip(text));
        let first = take("192.0.2.1").expect("free");
        let _second = take("192.0.2.1").expect("free");
        assert_eq!(take("192.0.2.1").err(), Some("per_ip"));
        let _third = take("2001:db8::1").expect("free");
        assert_eq!(take("192.0.2.2").err(), Some("total"));
        drop(first);
        let _fourth = take("2001:db8::2").expect("freed");
        assert_eq!(
            slots.taken.lock().expect("whole").per_ip[&ip("2001:db8::")],
            2
        );
    }
}
