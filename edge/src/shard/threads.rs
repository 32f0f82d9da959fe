//! The shards' threads: bound, started and ended together.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use actix_rt::Arbiter;
use futures_util::FutureExt;
use headwater_media::ice;
use headwater_media::rtp::ring::Limits;
use headwater_media::sdp::Candidate;
use headwater_node::clock::Clock;
use headwater_node::listen;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::shard::connection::{CLAIMED_QUEUE, Connections};
use crate::shard::core::{Core, Options};
use crate::shard::load::{Board, Capacity, Meter};
use crate::shard::run::{Control, Shell};
use crate::shard::socket::{self, Socket};
use crate::shard::{Ended, Failed, ShardHandle, Shards, tag};
use crate::transport::dtls::{self, Identity};
use crate::transport::tcp::{Listener, Serving};

/// Batches and other news of replicas waiting for a shard (count): two seconds of a hundred streams.
const MEDIA_QUEUE: usize = 16_384;

/// Commands of a shard's actors waiting (count).
const COMMAND_QUEUE: usize = 4096;

/// The shards' threads. They end by [`Threads::stop`].
#[derive(Debug)]
pub(crate) struct Threads {
    shards: Shards,
    arbiters: Vec<Arbiter>,
    addresses: Vec<SocketAddr>,
    /// The TCP port of all shards.
    tcp: Option<Serving>,
}

/// Why an edge can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A port can't be had.
    #[error(transparent)]
    Listen(#[from] listen::Error),
    /// More shards than user fragments can name.
    #[error("{0} shards are more than any machine needs")]
    TooMany(usize),
    /// Media ports past 65535.
    #[error("{shards} shards don't fit above media port {port}")]
    Ports {
        /// The first port.
        port: u16,
        /// How many.
        shards: usize,
    },
    /// There is no address that viewers could reach.
    #[error("no address to offer to viewers; set public_ip")]
    NoAddress,
    /// The DTLS certificate can't be made.
    #[error("the DTLS certificate can't be made: {0}")]
    Identity(String),
    /// A thread could not be set up.
    #[error("a shard's thread did not start")]
    Thread,
}

impl Threads {
    /// Binds the media ports and starts a thread for each; TCP connections are accepted on `io`. `ended` is told of every viewer that
    /// ended, on its shard's thread, and `failed` of a shard that panicked.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) async fn start(
        config: &Config,
        clock: &Clock,
        io: &Handle,
        ended: Ended,
        failed: Failed,
    ) -> Result<Self, StartError> {
        let identity = Identity::generate()
            .map_err(|error: dtls::Error| StartError::Identity(error.to_string()))?;
        let identity = Arc::new(identity);
        let count = match config.shards {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            shards => shards,
        };
        let capacity = Capacity {
            viewers: config.viewers_per_shard,
            egress: egress_of_one(config, count),
        };
        let options = Options {
            viewers_max: config.viewers_per_shard,
            ring: Limits {
                bytes: config.ring_bytes,
                age: Duration::from_secs(config.ring_seconds),
            },
            playout_delay_ms: config.playout_delay_ms,
            ice: ice::Options::default(),
        };
        if count > tag::SHARDS_MAX {
            return Err(StartError::TooMany(count));
        }
        let ips = public_ips(config)?;
        let failed_tcp = |address| listen::Error::of("media over TCP", address);
        let listener = config
            .media_tcp()
            .map(|address| Listener::bind(address).map_err(failed_tcp(address)))
            .transpose()?;
        let tcp_port = listener.as_ref().map(|listener| listener.address().port());
        let mut shards = Vec::with_capacity(count);
        let mut arbiters = Vec::with_capacity(count);
        let mut addresses = Vec::with_capacity(count);
        for number in 0..count {
            let address = media_address(config.media, number, count)?;
            let unbound = listen::Error::of("media", address);
            let socket = socket::bind(
                address,
                config.send_buffer_bytes,
                config.receive_buffer_bytes,
            )
            .map_err(&unbound)?;
            let address = socket.local_addr().map_err(&unbound)?;
            let at = |port| ips.iter().map(move |ip| SocketAddr::new(*ip, port));
            let candidates: Arc<[Candidate]> = at(address.port())
                .map(Candidate::udp)
                .chain(tcp_port.into_iter().flat_map(at).map(Candidate::tcp))
                .collect();
            let (handle, arbiter, started) = spawn(
                Seat {
                    number,
                    options,
                    capacity,
                    socket,
                    candidates,
                },
                Arc::clone(&identity),
                clock.clone(),
                Arc::clone(&ended),
                Arc::clone(&failed),
            );
            started
                .await
                .map_err(|_| StartError::Thread)?
                .map_err(unbound)?;
            shards.push(handle);
            arbiters.push(arbiter);
            addresses.push(address);
        }
        let shards = Shards {
            shards: shards.into(),
            fingerprint: identity.fingerprint(),
        };
        let serve = |listener: Listener| {
            let address = listener.address();
            listener
                .serve(shards.clone(), io)
                .map_err(failed_tcp(address))
        };
        let tcp = listener.map(serve).transpose()?;
        Ok(Self {
            shards,
            arbiters,
            addresses,
            tcp,
        })
    }

    /// The shards.
    pub(crate) const fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where they listen for TCP, if they do.
    pub(crate) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(Serving::address)
    }

    /// Ends all viewers and the threads, within a bounded time.
    pub(crate) async fn stop(self) {
        const STOP_WITHIN: Duration = Duration::from_secs(2);
        drop(self.tcp);
        for shard in self.shards.shards.iter() {
            let (reply, stopped) = oneshot::channel();
            if shard.control.send(Control::Stop { reply }).is_ok() {
                let _ = tokio::time::timeout(STOP_WITHIN, stopped).await;
            }
        }
        for arbiter in self.arbiters {
            arbiter.stop();
            // The loop is over, so the thread ends at once.
            let _ = tokio::task::spawn_blocking(move || arbiter.join()).await;
        }
    }
}

/// What one shard is made of.
struct Seat {
    number: usize,
    options: Options,
    capacity: Capacity,
    socket: std::net::UdpSocket,
    candidates: Arc<[Candidate]>,
}

fn spawn(
    seat: Seat,
    identity: Arc<Identity>,
    clock: Clock,
    ended: Ended,
    failed: Failed,
) -> (ShardHandle, Arbiter, oneshot::Receiver<io::Result<()>>) {
    let (control, control_receiver) = mpsc::unbounded_channel();
    let (claimed, claimed_receiver) = mpsc::channel(CLAIMED_QUEUE);
    let viewers = Arc::new(AtomicUsize::new(0));
    let board = Arc::new(Board::new(seat.capacity, clock.now()));
    let handle = ShardHandle {
        number: seat.number,
        candidates: Arc::clone(&seat.candidates),
        control,
        claimed,
        viewers: Arc::clone(&viewers),
        waiting: Arc::default(),
        board: Arc::clone(&board),
    };
    let (started, wait) = oneshot::channel();
    let arbiter = Arbiter::new();
    arbiter.spawn_fn(move || {
        let socket = match Socket::new(seat.socket) {
            Ok(socket) => socket,
            Err(error) => {
                let _ = started.send(Err(error));
                return;
            }
        };
        let (media_sender, media) = mpsc::channel(MEDIA_QUEUE);
        let (command_sender, commands) = mpsc::channel(COMMAND_QUEUE);
        let random = StdRng::from_os_rng();
        let shell = Shell {
            number: seat.number,
            core: Core::new(seat.options, identity, random, clock.now()),
            socket,
            connections: Connections::new(seat.number, clock.clone(), claimed_receiver),
            control: control_receiver,
            media,
            media_sender,
            commands,
            command_sender,
            viewers,
            meter: Meter::new(clock.now()),
            board,
            clock,
            ended,
        };
        actix_rt::spawn(async move {
            // The hook has logged where it was.
            if AssertUnwindSafe(shell.run()).catch_unwind().await.is_err() {
                failed(seat.number);
            }
        });
        let _ = started.send(Ok(()));
    });
    (handle, arbiter, wait)
}

/// What each of `shards` may send of what the edge may (bits per second).
fn egress_of_one(config: &Config, shards: usize) -> Option<f64> {
    let megabits = (config.egress_mbps_max > 0).then_some(config.egress_mbps_max)?;
    let shards = u32::try_from(shards.max(1)).unwrap_or(u32::MAX);
    Some(f64::from(megabits) * 1e6 / f64::from(shards))
}

/// The address of shard `number` of `count`.
fn media_address(first: SocketAddr, number: usize, count: usize) -> Result<SocketAddr, StartError> {
    if first.port() == 0 {
        return Ok(first);
    }
    let port = u16::try_from(number)
        .ok()
        .and_then(|number| first.port().checked_add(number));
    let port = port.ok_or_else(|| StartError::Ports {
        port: first.port(),
        shards: count,
    })?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// What viewers are told: the configured addresses, else the one that is bound.
fn public_ips(config: &Config) -> Result<Vec<IpAddr>, StartError> {
    if !config.public_ip.is_empty() {
        return Ok(config.public_ip.clone());
    }
    let bound = config.media.ip();
    if !bound.is_unspecified() {
        return Ok(vec![bound]);
    }
    // Which interfaces viewers reach is a question of the deployment: whoever starts the edge answers it.
    Err(StartError::NoAddress)
}
