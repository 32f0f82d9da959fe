//! A shard's UDP socket: many datagrams in by one call, many runs out by one call.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use metrics::{Counter, counter};
use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
};
use rustix::net::AddressFamily;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use smallvec::SmallVec;
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::metrics::{SEND_DROPPED, SEND_SYSCALLS};
use crate::shard::outbox::{Message, Outbox};

/// Datagrams read by one call (count).
const RECEIVE_BATCH: usize = 32;

/// Bytes of a datagram that a viewer may send; longer ones are cut and then refused by who reads them.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// Messages sent by one call (count).
const SEND_BATCH: usize = 64;

/// How often a full send buffer is waited for before what is left is dropped (count), and how long each time. The buffer holds
/// megabytes; when it stays full this long, sending more only adds to the queue.
const FULL_RETRIES: usize = 3;
const FULL_WAIT: Duration = Duration::from_millis(2);

/// What one call sends, on the stack.
type Slices<'a> = SmallVec<[[IoSlice<'a>; 1]; SEND_BATCH]>;

/// The socket and its reusable buffers.
pub(crate) struct Socket {
    socket: UdpSocket,
    receive_headers: MultiHeaders<SockaddrStorage>,
    receive_buffers: Vec<[u8; DATAGRAM_BYTES_MAX]>,
    plain_headers: MultiHeaders<SockaddrStorage>,
    segmented_headers: MultiHeaders<SockaddrStorage>,
    addresses: Vec<Option<SockaddrStorage>>,
    /// Looked up once: it counts every call.
    syscalls: Counter,
    /// The kernel or the device refused a segmented message; we cut them ourselves from then on.
    unsegmented: bool,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// Binds a media socket with buffers of about the sizes asked for. The kernel may grant less (net.core.wmem_max).
///
/// # Errors
/// If the address can't be bound.
pub(crate) fn bind(
    address: SocketAddr,
    send_buffer_bytes: usize,
    receive_buffer_bytes: usize,
) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    // Best effort: small buffers cost drops under load, not correctness.
    let _ = socket.set_send_buffer_size(send_buffer_bytes);
    let _ = socket.set_recv_buffer_size(receive_buffer_bytes);
    // A packet that may not be fragmented needs no number of its own in IPv4, and to find one costs the kernel as much as finding the
    // route. Paths too narrow for our packets are found out by ICMP, and `send_cut` serves them.
    let _ = allow_fragments(&socket, false);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether routers, and this machine, may fragment what leaves by `socket`.
fn allow_fragments(socket: impl AsFd, allowed: bool) -> io::Result<()> {
    let fd = socket.as_fd();
    let (v4, v6) = if allowed {
        (Ipv4PathMtuDiscovery::DONT, Ipv6PathMtuDiscovery::DONT)
    } else {
        (Ipv4PathMtuDiscovery::DO, Ipv6PathMtuDiscovery::DO)
    };
    if sockopt::socket_domain(fd)? == AddressFamily::INET6 {
        sockopt::set_ipv6_mtu_discover(fd, v6)?;
    }
    // Of an IPv6 socket it holds for the IPv4 addresses mapped into it.
    sockopt::set_ip_mtu_discover(fd, v4)?;
    Ok(())
}

impl Socket {
    /// Takes a socket of [`bind`] over, on the runtime it will be used on.
    ///
    /// # Errors
    /// If the runtime can't watch it.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        Ok(Self {
            socket: UdpSocket::from_std(socket)?,
            receive_headers: MultiHeaders::preallocate(RECEIVE_BATCH, None),
            receive_buffers: (0..RECEIVE_BATCH)
                .map(|_| [0; DATAGRAM_BYTES_MAX])
                .collect(),
            plain_headers: MultiHeaders::preallocate(SEND_BATCH, None),
            segmented_headers: MultiHeaders::preallocate(SEND_BATCH, Some(nix::cmsg_space!(u16))),
            addresses: Vec::with_capacity(SEND_BATCH),
            syscalls: counter!(SEND_SYSCALLS),
            unsegmented: false,
        })
    }

    /// Waits until there is something to read.
    ///
    /// # Errors
    /// If the runtime is going away.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Reads a batch, if there is one, and passes each datagram on. Returns how many there were.
    pub(crate) fn receive(&mut self, mut each: impl FnMut(SocketAddr, &mut [u8])) -> usize {
        let fd = self.socket.as_raw_fd();
        let headers = &mut self.receive_headers;
        let mut lengths = [(0_usize, None); RECEIVE_BATCH];
        let received = {
            let mut slices: Vec<[IoSliceMut<'_>; 1]> = self
                .receive_buffers
                .iter_mut()
                .map(|buffer| [IoSliceMut::new(&mut buffer[..])])
                .collect();
            self.socket.try_io(Interest::READABLE, || {
                let results =
                    recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None)
                        .map_err(io::Error::from)?;
                let mut count = 0;
                for (slot, message) in lengths.iter_mut().zip(results) {
                    *slot = (
                        message.bytes,
                        message.address.as_ref().and_then(std_address),
                    );
                    count += 1;
                }
                Ok(count)
            })
        };
        let Ok(received) = received else {
            // Nothing there; or an ICMP error of an earlier send, which only concerns that viewer.
            return 0;
        };
        for (buffer, (length, from)) in self.receive_buffers.iter_mut().zip(lengths).take(received)
        {
            if let (Some(from), Some(datagram)) = (from, buffer.get_mut(..length)) {
                each(from, datagram);
            }
        }
        received
    }

    /// Sends everything in `outbox` and empties it. Waits a little for a full buffer, then drops the rest and counts it.
    pub(crate) async fn send(&mut self, outbox: &mut Outbox) {
        let (messages, bytes) = outbox.messages();
        let mut sent = 0;
        let mut retries = 0;
        while sent < messages.len() {
            match self.send_some(&messages[sent..], bytes) {
                Ok(count) => {
                    sent += count;
                    retries = 0;
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS) if retries < FULL_RETRIES => {
                    retries += 1;
                    // tokio's readiness is told by try_io below; the timeout bounds a wait for a buffer that stays full.
                    let _ = self
                        .socket
                        .try_io(Interest::WRITABLE, || -> io::Result<()> {
                            Err(io::ErrorKind::WouldBlock.into())
                        });
                    let _ = tokio::time::timeout(FULL_WAIT, self.socket.writable()).await;
                }
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    let dropped = messages.len() - sent;
                    counter!(SEND_DROPPED, "reason" => "full")
                        .increment(u64::try_from(dropped).unwrap_or(u64::MAX));
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(error @ (Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE))
                    if error == Errno::EMSGSIZE
                        || (!self.unsegmented && messages[sent].segment.is_some()) =>
                {
                    // EIO: this interface can't. Else it is the way to this viewer, whose MTU is below a segment: its datagrams are
                    // fragmented, and the other viewers keep their segmentation.
                    let message = &messages[sent];
                    let segment = usize::from(message.segment.unwrap_or(u16::MAX));
                    let narrow = error != Errno::EIO;
                    if narrow {
                        let _ = allow_fragments(&self.socket, true);
                    }
                    let result = self.send_cut(message, segment, bytes);
                    if narrow {
                        let _ = allow_fragments(&self.socket, false);
                    }
                    if result.is_err() {
                        counter!(SEND_DROPPED, "reason" => "refused").increment(1);
                    } else if error == Errno::EIO {
                        tracing::warn!(
                            "the kernel refuses UDP segmentation here, so datagrams go one by one"
                        );
                        self.unsegmented = true;
                    }
                    sent += 1;
                }
                Err(_) => {
                    // This viewer's address is no good (unreachable, not permitted); its checks will end, and so will it.
                    counter!(SEND_DROPPED, "reason" => "refused").increment(1);
                    sent += 1;
                }
            }
        }
        outbox.clear();
    }

    /// Sends the messages at the front that one call can take: neighbours that one segment size fits. Returns how many.
    fn send_some(&mut self, messages: &[Message], bytes: &[u8]) -> Result<usize, Errno> {
        let Some(first) = messages.first() else {
            return Ok(0);
        };
        if let (true, Some(segment)) = (self.unsegmented, first.segment) {
            return self.send_cut(first, usize::from(segment), bytes);
        }
        let segment = segment_of(messages).filter(|_| !self.unsegmented);
        let batch = messages
            .iter()
            .take(SEND_BATCH)
            .take_while(|message| fits(message, segment));
        match self.send_batch(&messages[..batch.count()], segment, bytes) {
            // What refuses the others' segment size need not refuse a datagram that isn't cut.
            Err(Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE)
                if segment.is_some() && first.segment.is_none() =>
            {
                self.send_batch(&messages[..1], None, bytes)
            }
            result => result,
        }
    }

    /// Sends messages by one call, all with one segment size. Returns how many left.
    fn send_batch(
        &mut self,
        batch: &[Message],
        segment: Option<u16>,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let fd = self.socket.as_raw_fd();
        self.addresses.clear();
        self.addresses.extend(
            batch
                .iter()
                .map(|m| Some(SockaddrStorage::from(m.to.address))),
        );
        let slices: Slices<'_> = batch
            .iter()
            .map(|m| [IoSlice::new(&bytes[m.range.clone()])])
            .collect();
        self.syscalls.increment(1);
        let results = match &segment {
            Some(segment) => sendmmsg(
                fd,
                &mut self.segmented_headers,
                slices.iter(),
                &self.addresses,
                [ControlMessage::UdpGsoSegments(segment)],
                MsgFlags::MSG_DONTWAIT,
            )?,
            None => sendmmsg(
                fd,
                &mut self.plain_headers,
                slices.iter(),
                &self.addresses,
                [],
                MsgFlags::MSG_DONTWAIT,
            )?,
        };
        Ok(results.count())
    }

    /// Sends a run as single datagrams.
    fn send_cut(
        &mut self,
        message: &Message,
        segment: usize,
        bytes: &[u8],
    ) -> Result<usize, Errno> {
        let slices: Slices<'_> = bytes[message.range.clone()]
            .chunks(segment)
            .take(SEND_BATCH)
            .map(|datagram| [IoSlice::new(datagram)])
            .collect();
        self.addresses.clear();
        self.addresses.resize(
            slices.len(),
            Some(SockaddrStorage::from(message.to.address)),
        );
        // What a full buffer keeps back of the run counts as lost on the way; NACK brings it.
        sendmmsg(
            self.socket.as_raw_fd(),
            &mut self.plain_headers,
            slices.iter(),
            &self.addresses,
            [],
            MsgFlags::MSG_DONTWAIT,
        )?;
        Ok(1)
    }
}

/// The segment size by which the messages at the front can leave together: that of the first run, if what stands before it fits one segment.
/// The kernel cuts nothing that does, so pictures that begin with a small packet of their own (an SEI) share a call with their
/// fragments and with other viewers'.
fn segment_of(messages: &[Message]) -> Option<u16> {
    let segment = messages
        .iter()
        .take(SEND_BATCH)
        .find_map(|message| message.segment)?;
    let first = messages.first()?;
    fits(first, Some(segment)).then_some(segment)
}

/// Whether a message can leave in a call with this segment size.
fn fits(message: &Message, segment: Option<u16>) -> bool {
    match (message.segment, segment) {
        (None, Some(segment)) => message.range.len() <= usize::from(segment),
        (own, segment) => own == segment,
    }
}

fn std_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port()));
    }
    let v6 = storage.as_sockaddr_in6()?;
    Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port()))
}

#[cfg(test)]
mod tests {
    use headwater_media::ice::Path;

    use super::*;

    fn pair() -> (Socket, Socket, SocketAddr, SocketAddr) {
        let make = || {
            let socket = bind("127.0.0.1:0".parse().unwrap(), 1 << 20, 1 << 20).unwrap();
            let address = socket.local_addr().unwrap();
            (Socket::new(socket).unwrap(), address)
        };
        let ((a, a_address), (b, b_address)) = (make(), make());
        (a, b, a_address, b_address)
    }

    async fn receive_all(socket: &mut Socket, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut received = Vec::new();
        while received.len() < count {
            socket.readable().await.unwrap();
            socket.receive(|from, datagram| received.push((from, datagram.to_vec())));
        }
        received
    }

    #[tokio::test]
    async fn runs_arrive_as_single_datagrams_in_order_with_and_without_segmentation() {
        for unsegmented in [false, true] {
            let (mut a, mut b, from, to) = pair();
            a.unsegmented = unsegmented;
            let mut outbox = Outbox::default();
            for i in 0..100_u8 {
                let size = match i % 10 {
                    0 => 60,
                    9 => 300,
                    _ => 1200,
                };
                outbox.push(Path::udp(to), &vec![i; size]);
            }
            a.send(&mut outbox).await;
            assert!(outbox.is_empty());
            let received = receive_all(&mut b, 100).await;
            for (i, (sender, datagram)) in received.iter().enumerate() {
                assert_eq!(*sender, from);
                assert_eq!(usize::from(datagram[0]), i);
                let size = match i % 10 {
                    0 => 60,
                    9 => 300,
                    _ => 1200,
                };
                assert_eq!(datagram.len(), size);
            }
        }
    }

    #[tokio::test]
    async fn sending_allocates_nothing() {
        let (mut a, mut b, _, to) = pair();
        let mut outbox = Outbox::default();
        let mut count = u64::MAX;
        // The first rounds grow buffers to their working size.
        for _ in 0..3 {
            for i in 0..200 {
                outbox.push(
                    Path::udp(to),
                    &[0; 1000][..if i % 10 == 9 { 300 } else { 1000 }],
                );
            }
            let (messages, bytes) = outbox.messages();
            let counted = allocation_counter::measure(|| {
                let mut sent = 0;
                while sent < messages.len() {
                    sent += a.send_some(&messages[sent..], bytes).unwrap();
                }
            });
            outbox.clear();
            receive_all(&mut b, 200).await;
            count = counted.count_total;
        }
        assert_eq!(count, 0);
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_reached_costs_only_its_own_messages() {
        let (mut a, mut b, _, to) = pair();
        let mut outbox = Outbox::default();
        outbox.push(Path::udp(to), b"one");
        outbox.push(Path::udp("0.0.0.1:1".parse().unwrap()), b"nobody");
        outbox.push(Path::udp(to), b"two");
        a.send(&mut outbox).await;
        let received = receive_all(&mut b, 2).await;
        assert_eq!(received[1].1, b"two");
    }
}
