//! The TCP port for viewers without UDP (RFC 6544, passive): accepts connections and hands each to the shard whose viewer it names.
//!
//! All shards share one port. A connection's first frame must be a binding request (RFC 6544 section 7.1); our user fragment in its
//! USERNAME begins with the number of the viewer's shard, so no table is asked. The request's integrity the shard checks, which
//! has the password. Until then a connection is nobody's: such are few, each has [`FIRST_FRAME_WITHIN`], and nothing is kept of them but
//! an incomplete frame.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_node::listen;
use metrics::counter;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::http::limits;
use crate::metrics::TCP_CONNECTIONS;
use crate::shard::Shards;
use crate::shard::connection::{self, Claimed};
use crate::transport::framing::Frames;
use crate::transport::stun;

/// Connections that haven't named a viewer yet (count), in all and of one address (IPv6: of one /64). A viewer needs a round trip, so
/// these are thousands of joins a second, and a NAT with hundreds of viewers behind it.
const UNCLAIMED_MAX: usize = 1024;
const UNCLAIMED_PER_ADDRESS: usize = 64;

/// How long the first frame may take.
const FIRST_FRAME_WITHIN: Duration = Duration::from_secs(5);

/// Pause after a failed accept: what fails is the process's file descriptors, and they need time to come free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Unsent bytes that the kernel may hold for a connection beyond what is on its way: more would be a queue that we can't see, in which
/// live pictures grow old.
const UNSENT_BYTES_MAX: u32 = 32 << 10;

/// A listening port.
#[derive(Debug)]
pub(crate) struct Listener {
    address: SocketAddr,
    socket: std::net::TcpListener,
}

/// A port that is served. Dropping it closes the port; connections that are claimed stay with their shards.
#[derive(Debug)]
pub(crate) struct Serving {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Listener {
    /// Opens the port.
    ///
    /// # Errors
    /// If it can't be had.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        // Who comes before the shards are there waits in the kernel.
        let socket = listen::tcp(address)?;
        let address = socket.local_addr()?;
        Ok(Self { address, socket })
    }

    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections for `shards` from now on, on `io`.
    ///
    /// # Errors
    /// If that runtime can't watch it.
    pub(crate) fn serve(self, shards: Shards, io: &Handle) -> io::Result<Serving> {
        let Self { address, socket } = self;
        let _runtime = io.enter();
        let stop = CancellationToken::new();
        let acceptor = Acceptor {
            listener: TcpListener::from_std(socket)?,
            shards,
            unclaimed: Arc::new(Semaphore::new(UNCLAIMED_MAX)),
            addresses: Arc::new(limits::Connections::up_to(UNCLAIMED_PER_ADDRESS)),
            stop: stop.clone(),
        };
        io.spawn(acceptor.run(io.clone()));
        Ok(Serving { address, stop })
    }
}

impl Serving {
    /// Where it listens.
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Acceptor {
    listener: TcpListener,
    shards: Shards,
    unclaimed: Arc<Semaphore>,
    addresses: Arc<limits::Connections>,
    stop: CancellationToken,
}

impl Acceptor {
    async fn run(self, io: Handle) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => self.admit(stream, from, &io),
                Err(error) => {
                    note("accept_failed");
                    warn!(%error, "a viewer's TCP connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: SocketAddr, io: &Handle) {
        let place = Arc::clone(&self.unclaimed).try_acquire_owned();
        let (Ok(place), Some(counted)) = (place, self.addresses.admit(from.ip())) else {
            return note("crowded");
        };
        if let Err(error) = tune(&stream) {
            // It may be closed already; whoever reads it will see.
            debug!(%from, %error, "socket options");
        }
        let (shards, stop) = (self.shards.clone(), self.stop.clone());
        io.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = introduce(stream, from, &shards) => {}
            }
            drop((place, counted));
        });
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}

/// Reads the first frame and hands the connection over.
async fn introduce(stream: TcpStream, from: SocketAddr, shards: &Shards) {
    let outcome = match tokio::time::timeout(FIRST_FRAME_WITHIN, claim(stream, from, shards)).await
    {
        // The shard says what became of it.
        Ok(Ok(())) => return,
        Ok(Err(refusal)) => refusal.as_str(),
        Err(_) => "late",
    };
    debug!(%from, outcome, "a TCP connection is nobody's");
    note(outcome);
}

/// Why a connection is nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// It was closed before it said anything.
    Gone,
    /// Its bytes are no frame that a check would come in.
    Framing,
    /// The frame is no binding request.
    NotStun,
    /// It names no shard, or one that is stopping.
    Nobody,
    /// The shard has too many to look at.
    Busy,
}

impl Refusal {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Framing => "framing",
            Self::NotStun => "not_stun",
            Self::Nobody => "nobody",
            Self::Busy => "busy",
        }
    }
}

async fn claim(stream: TcpStream, from: SocketAddr, shards: &Shards) -> Result<(), Refusal> {
    let mut frames = Frames::default();
    let first = loop {
        stream.readable().await.map_err(|_| Refusal::Gone)?;
        match connection::read(&stream, &mut frames) {
            Ok(0) => return Err(Refusal::Gone),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return Err(Refusal::Gone),
        }
        match frames.next() {
            Ok(Some(first)) => break first,
            Ok(None) => {}
            Err(_) => return Err(Refusal::Framing),
        }
    };
    let request = stun::Request::parse(&first).ok_or(Refusal::NotStun)?;
    let shard = shards
        .named_by(request.local_ufrag())
        .ok_or(Refusal::Nobody)?;
    let claimed = Claimed {
        stream: stream.into_std().map_err(|_| Refusal::Gone)?,
        from,
        first,
        frames,
    };
    shard.hand_over(claimed).map_err(|_| Refusal::Busy)
}

/// Counts a connection that did not become a viewer's, by why; those that did the shard counts.
fn note(outcome: &'static str) {
    counter!(TCP_CONNECTIONS, "outcome" => outcome).increment(1);
}
