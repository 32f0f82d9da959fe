//! The viewers' TCP connections of a shard: what the listener hands over, reading and writing them.
//!
//! Each has a small task on the shard's thread that reads, writes what the kernel didn't take at once, and ends it when its time is
//! over. [`Connections`] is the shell's side: it writes what the outbox has, and yields what came in as [`Arrival`]s. A connection that
//! takes nothing only fills its own backlog; one that floods is read at the pace of the shard's queue, in turn with the others.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use headwater_node::clock::Clock;
use metrics::{Counter, Gauge, counter, gauge};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::metrics::{TCP_BYTES_SENT, TCP_CLOSED, TCP_OPEN};
use crate::shard::backlog::Backlog;
use crate::shard::outbox::Outbox;
use crate::transport::framing::{FRAME_BYTES_MAX, Frames};

/// Connections on their way from the listener to a shard (count).
pub(super) const CLAIMED_QUEUE: usize = 256;

/// Frames read and not yet handled by the shard (count). Full, the connections wait.
const FRAME_QUEUE: usize = 512;

/// A frame that has begun is complete this long after, or somebody plays with us.
const FRAME_WITHIN: Duration = Duration::from_secs(10);

/// A connection without a frame for this long is dead: viewers check every few seconds, and are gone after 30 s without.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// What is queued and not taken for this long never will be.
const STALLED_MAX: Duration = Duration::from_secs(10);

/// How long the last bytes of a connection that is being closed may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// A connection that a viewer opened and said its name on.
#[derive(Debug)]
pub(crate) struct Claimed {
    /// It.
    pub(crate) stream: std::net::TcpStream,
    /// The viewer's end.
    pub(crate) from: SocketAddr,
    /// The first frame: a check that names a viewer. Whether it is authentic the shard finds out.
    pub(crate) first: BytesMut,
    /// What was read behind it.
    pub(crate) frames: Frames,
}

/// What comes from connections.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A new one.
    Claimed(Claimed),
    /// A datagram.
    Frame { from: SocketAddr, frame: BytesMut },
    /// One is no more.
    Closed { from: SocketAddr, id: u64 },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Connections {
    clock: Clock,
    open: HashMap<SocketAddr, Connection>,
    next_id: u64,
    claimed: mpsc::Receiver<Claimed>,
    arrivals: mpsc::Receiver<Arrival>,
    arrivals_sender: mpsc::Sender<Arrival>,
    /// To be closed once the outbox is written.
    disused: Vec<SocketAddr>,
    sent: Counter,
    count: Gauge,
}

#[derive(Debug)]
struct Connection {
    id: u64,
    link: Rc<Link>,
}

/// What a connection's task shares with the shell.
#[derive(Debug)]
struct Link {
    stream: TcpStream,
    backlog: Rc<Backlog>,
    state: Cell<State>,
    /// The backlog has something, or the state changed.
    wake: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Nobody is at its end any more: end it once the backlog is written, or at this time.
    Closing(Instant),
    /// A write failed.
    Broken,
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The other side closed it.
    Peer,
    /// It failed.
    Failed,
    /// Its viewer is gone, or has too many.
    Disused,
    /// Its bytes are no frames.
    Framing,
    /// A frame did not become complete.
    SlowFrame,
    /// Nothing came.
    Silent,
    /// Nothing was taken.
    Stalled,
}

impl Reason {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Failed => "failed",
            Self::Disused => "disused",
            Self::Framing => "framing",
            Self::SlowFrame => "slow_frame",
            Self::Silent => "silent",
            Self::Stalled => "stalled",
        }
    }
}

impl Connections {
    /// None yet; the listener hands them over by `claimed`.
    pub(super) fn new(shard: usize, clock: Clock, claimed: mpsc::Receiver<Claimed>) -> Self {
        let (arrivals_sender, arrivals) = mpsc::channel(FRAME_QUEUE);
        Self {
            clock,
            open: HashMap::new(),
            next_id: 0,
            claimed,
            arrivals,
            arrivals_sender,
            disused: Vec::new(),
            sent: counter!(TCP_BYTES_SENT),
            count: gauge!(TCP_OPEN, "shard" => shard.to_string()),
        }
    }

    /// Waits for what comes next. Cancelling it loses nothing.
    pub(super) async fn receive(&mut self) -> Arrival {
        tokio::select! {
            Some(arrival) = self.arrivals.recv() => arrival,
            Some(claimed) = self.claimed.recv() => Arrival::Claimed(claimed),
            else => std::future::pending().await,
        }
    }

    /// What came, if anything did.
    pub(super) fn try_receive(&mut self) -> Option<Arrival> {
        let arrival = self.arrivals.try_recv().ok();
        arrival.or_else(|| self.claimed.try_recv().ok().map(Arrival::Claimed))
    }

    /// Opens a connection, so that the outbox has a place for what is sent to it.
    ///
    /// # Errors
    /// If the runtime can't watch it, or there is one from that address. That is another one's to a second address of ours, or its end is
    /// still to be heard of; it must not suffer, and whoever opened this one tries again.
    pub(super) fn open(
        &mut self,
        stream: std::net::TcpStream,
        from: SocketAddr,
        outbox: &mut Outbox,
    ) -> io::Result<Opened> {
        if self.open.contains_key(&from) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let stream = TcpStream::from_std(stream)?;
        let backlog = Rc::new(Backlog::default());
        outbox.open(from, Rc::clone(&backlog));
        let link = Rc::new(Link {
            stream,
            backlog,
            state: Cell::new(State::Open),
            wake: Notify::new(),
        });
        Ok(Opened { from, link })
    }

    /// It is a viewer's: read it from now on.
    pub(super) fn keep(&mut self, opened: Opened, frames: Frames) {
        let Opened { from, link } = opened;
        self.next_id += 1;
        let id = self.next_id;
        actix_rt::spawn(serve(
            Rc::clone(&link),
            id,
            from,
            frames,
            self.arrivals_sender.clone(),
            self.clock.clone(),
        ));
        self.open.insert(from, Connection { id, link });
        self.publish();
    }

    /// The one that ended is forgotten; false if it was already.
    pub(super) fn forget(&mut self, from: SocketAddr, id: u64, outbox: &mut Outbox) -> bool {
        let known = self.open.get(&from).is_some_and(|open| open.id == id);
        if known {
            self.open.remove(&from);
            outbox.close(from);
            self.publish();
        }
        known
    }

    /// Nobody is there any more: close it after the next [`Self::send`].
    pub(super) fn disuse(&mut self, address: SocketAddr) {
        self.disused.push(address);
    }

    /// Something may still be sent to it, and what comes from it counts.
    pub(super) fn is_open(&self, address: SocketAddr) -> bool {
        self.open.contains_key(&address)
    }

    /// Writes what the outbox has for connections, without waiting: what the kernel doesn't take stays in their backlogs. Returns those that
    /// are closed for being disused.
    pub(super) fn send(&mut self, outbox: &mut Outbox) -> Vec<SocketAddr> {
        let now = self.clock.now();
        let (messages, bytes) = outbox.framed();
        let mut sent = 0;
        for message in messages {
            if let Some(connection) = self.open.get(&message.to) {
                sent += connection.link.send(now, &bytes[message.range.clone()]);
            }
        }
        self.sent.increment(sent as u64);
        let disused = std::mem::take(&mut self.disused);
        if disused.is_empty() {
            return disused;
        }
        for address in &disused {
            if let Some(connection) = self.open.remove(address) {
                outbox.close(*address);
                let link = connection.link;
                link.state.set(State::Closing(now + CLOSE_WITHIN));
                link.wake.notify_one();
            }
        }
        self.publish();
        disused
    }

    fn publish(&self) {
        let open = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        self.count.set(f64::from(open));
    }
}

/// A connection of which it isn't known yet whether it is a viewer's. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Opened {
    from: SocketAddr,
    link: Rc<Link>,
}

impl Opened {
    /// Gives it up, with what the outbox may have for it.
    pub(super) fn close(self, outbox: &mut Outbox) {
        outbox.close(self.from);
    }
}

impl Link {
    /// Writes `data` as far as it goes behind what waits already. Returns the bytes written.
    fn send(&self, now: Instant, data: &[u8]) -> usize {
        let mut written = 0;
        while self.backlog.is_empty() && written < data.len() {
            match self.stream.try_write(&data[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.state.set(State::Broken);
                    break;
                }
            }
        }
        self.backlog.take_in(now, data, written);
        if written < data.len() {
            self.wake.notify_one();
        }
        written
    }
}

/// Reads a connection and writes its backlog, until it ends.
async fn serve(
    link: Rc<Link>,
    id: u64,
    from: SocketAddr,
    frames: Frames,
    arrivals: mpsc::Sender<Arrival>,
    clock: Clock,
) {
    let reason = carry(&link, from, frames, &arrivals, &clock).await;
    counter!(TCP_CLOSED, "reason" => reason.as_str()).increment(1);
    tracing::debug!(%from, reason = reason.as_str(), "connection closed");
    // The shell is gone only when everything is.
    let _ = arrivals.send(Arrival::Closed { from, id }).await;
}

async fn carry(
    link: &Link,
    from: SocketAddr,
    mut frames: Frames,
    arrivals: &mpsc::Sender<Arrival>,
    clock: &Clock,
) -> Reason {
    let written = counter!(TCP_BYTES_SENT);
    let mut heard = clock.now();
    let mut begun: Option<Instant> = None;
    loop {
        loop {
            match frames.next() {
                Ok(Some(frame)) => {
                    let arrival = Arrival::Frame { from, frame };
                    if arrivals.send(arrival).await.is_err() {
                        return Reason::Disused;
                    }
                    heard = clock.now();
                    begun = None;
                }
                Ok(None) => break,
                Err(_) => return Reason::Framing,
            }
        }
        let now = clock.now();
        begun = frames.is_partial().then(|| begun.unwrap_or(now));

        let mut end = (heard + SILENT_MAX, Reason::Silent);
        let mut sooner = |at: Instant, reason| {
            if at < end.0 {
                end = (at, reason);
            }
        };
        if let Some(begun) = begun {
            sooner(begun + FRAME_WITHIN, Reason::SlowFrame);
        }
        let oldest = link.backlog.oldest();
        if let Some(oldest) = oldest {
            sooner(oldest + STALLED_MAX, Reason::Stalled);
        }
        match link.state.get() {
            State::Open => {}
            State::Closing(_) if oldest.is_none() => return Reason::Disused,
            State::Closing(at) => sooner(at, Reason::Disused),
            State::Broken => return Reason::Failed,
        }
        if now >= end.0 {
            return end.1;
        }

        let interest = match oldest {
            Some(_) => Interest::READABLE | Interest::WRITABLE,
            None => Interest::READABLE,
        };
        let ready = tokio::select! {
            ready = link.stream.ready(interest) => match ready {
                Ok(ready) => ready,
                Err(_) => return Reason::Failed,
            },
            () = link.wake.notified() => continue,
            () = tokio::time::sleep_until(end.0.into()) => continue,
        };
        if ready.is_writable() {
            match link
                .backlog
                .write_to(|bytes| link.stream.try_write_vectored(bytes))
            {
                Ok(count) => written.increment(count as u64),
                Err(_) => return Reason::Failed,
            }
        }
        if ready.is_readable() {
            match read(&link.stream, &mut frames) {
                Ok(0) => return Reason::Peer,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Reason::Failed,
            }
        }
    }
}

/// Reads once. The buffer is on the stack, so that an idle connection has none.
pub(crate) fn read(stream: &TcpStream, frames: &mut Frames) -> io::Result<usize> {
    let mut bytes = [0; FRAME_BYTES_MAX];
    let count = stream.try_read(&mut bytes)?;
    frames.push(&bytes[..count]);
    Ok(count)
}
