//! gRPC connections to other nodes, shared by all subscriptions and forwarded requests of a node.
//!
//! HTTP/2's flow control must never be what stops a stream: the connection's window is the sum of the windows of all calls it may
//! carry, and subscribers read always. So a stalled call uses up its own window only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use headwater_media::id::NodeId;
use headwater_node::Node;
use headwater_proto::convert::MESSAGE_BYTES_MAX;
use headwater_proto::replication::replication_client::ReplicationClient;
use headwater_proto::sessions::sessions_client::SessionsClient;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint};

pub(crate) mod outages;

/// Calls that share a connection (count); below what an origin allows per connection.
const CALLS_PER_CONNECTION: usize = 500;

/// Window of a call (bytes): 160 Mbit/s at 100 ms round trip.
const CALL_WINDOW_BYTES: u32 = 2 << 20;

/// Window of a connection (bytes): enough for all its calls to stall.
const CONNECTION_WINDOW_BYTES: u32 = 500 * CALL_WINDOW_BYTES;

/// An upstream that takes longer to accept a connection is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where nothing arrives, the kernel asks again after one second, and then after two more. A way that is whole again is noticed
/// sooner by asking anew, so often.
const CONNECT_AGAIN: Duration = Duration::from_millis(250);

/// HTTP/2 keepalive, for connections that carry no call just now; calls have their own pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection, or one that is being made. Lives as long as a call holds it.
#[derive(Debug)]
pub(crate) struct Connection {
    key: Key,
    channel: OnceCell<Channel>,
}

/// What a connection is for. A storm of short requests must not disturb streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// Subscriptions.
    Streams,
    /// Requests of viewers.
    Sessions,
}

/// Nodes of one process (tests) don't share connections: they may be on different runtimes.
type Key = (NodeId, String, Purpose);

/// Connections by upstream, process-wide because subscriptions are started one by one. Only weak links: what nobody uses closes.
static CONNECTIONS: LazyLock<Mutex<HashMap<Key, Vec<Weak<Connection>>>>> =
    LazyLock::new(Mutex::default);

impl Connection {
    /// A connection to `grpc_url` with room for a call.
    pub(crate) fn shared(node: &Node, grpc_url: &str, purpose: Purpose) -> Arc<Self> {
        let key = (node.id.clone(), grpc_url.to_owned(), purpose);
        let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|_, list| {
            list.retain(|connection| connection.strong_count() > 0);
            !list.is_empty()
        });
        let list = connections.entry(key.clone()).or_default();
        let free = list.iter().find_map(|connection| {
            let calls = connection.strong_count();
            connection
                .upgrade()
                .filter(|_| calls < CALLS_PER_CONNECTION)
        });
        free.unwrap_or_else(|| {
            let connection = Arc::new(Self {
                key,
                channel: OnceCell::new(),
            });
            list.push(Arc::downgrade(&connection));
            connection
        })
    }

    /// To subscribe to streams, once it is connected. Must run on the node's I/O runtime.
    ///
    /// # Errors
    /// If nobody answers there.
    pub(crate) async fn replication(
        &self,
    ) -> Result<ReplicationClient<Channel>, tonic::transport::Error> {
        let client = ReplicationClient::new(self.channel().await?);
        Ok(client.max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// To hand viewers' requests on, otherwise the same.
    ///
    /// # Errors
    /// If nobody answers there.
    pub(crate) async fn sessions(
        &self,
    ) -> Result<SessionsClient<Channel>, tonic::transport::Error> {
        Ok(SessionsClient::new(self.channel().await?))
    }

    async fn channel(&self) -> Result<Channel, tonic::transport::Error> {
        let channel = self
            .channel
            .get_or_try_init(|| async {
                let endpoint = Endpoint::from_shared(self.key.1.clone())?
                    .connect_timeout(CONNECT_TIMEOUT)
                    .tcp_nodelay(true)
                    .initial_stream_window_size(CALL_WINDOW_BYTES)
                    .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                    .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
                    .keep_alive_timeout(KEEPALIVE_TIMEOUT)
                    .keep_alive_while_idle(true);
                connect(&endpoint).await
            })
            .await?;
        Ok(channel.clone())
    }

    /// It broke, or its upstream is dead: whoever asks next gets another.
    pub(crate) fn discard(self: &Arc<Self>) {
        let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = connections.get_mut(&self.key) {
            list.retain(|connection| connection.as_ptr() != Arc::as_ptr(self));
        }
    }
}

/// Connects, by the first of several attempts that gets an answer, whatever that is. A name is asked for once: looking it up has a thread of
/// its own until it is found out.
async fn connect(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    let host = endpoint.uri().host().unwrap_or_default();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let mut attempts = FuturesUnordered::from_iter([endpoint.connect()]);
    loop {
        tokio::select! {
            () = tokio::time::sleep(CONNECT_AGAIN), if is_address => attempts.push(endpoint.connect()),
            Some(answer) = attempts.next() => return answer,
        }
    }
}
