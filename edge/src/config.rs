//! The edge's settings, `[edge]` in the configuration file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use headwater_media::gop_cache::Limits;
use headwater_media::stream;
use headwater_node::auth::Token;
use serde::{Deserialize, Serialize};

use crate::http::{IceServer, limits};

/// Settings of an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where HTTP listens: WHEP, the player and the API.
    pub http: SocketAddr,
    /// Where media (UDP) listens: shard i uses this port + i. Port 0 gives every shard a free port.
    pub media: SocketAddr,
    /// Where media over TCP listens, for viewers without UDP: one port for all shards.
    pub media_tcp: MediaTcp,
    /// Addresses that viewers reach the media ports at; they go into the answers as candidates. Empty: the
    /// addresses of the interfaces.
    pub public_ip: Vec<IpAddr>,
    /// Who knows those addresses, where nobody can write them down beforehand; asked at the start.
    pub public_ip_from: Option<PublicIpFrom>,
    /// Loopback addresses count as interface addresses when `public_ip` is empty.
    pub loopback: bool,
    /// Media threads (count), each with its own socket; 0: as many as the machine has cores.
    pub shards: usize,
    /// Where this edge's own gRPC listens, to pass streams on to other edges; none: it passes nothing on.
    pub grpc: Option<SocketAddr>,
    /// Where other nodes reach that gRPC, `http://host:port`; none: the address that `grpc` is bound to.
    pub advertise: Option<String>,
    /// Edges that get a stream from this one (count), per stream; further ones get it from those.
    pub fanout: usize,
    /// Subscriptions of edges that this one takes (count), over all streams.
    pub subscribers_max: usize,
    /// How far from the publisher an edge may be (count): 1 is fed by the origin. The same for all edges.
    pub depth_max: usize,
    /// Upstreams that a stream is taken from at a time (count): with 2 nothing is lost when one of them dies, at twice the traffic.
    pub upstreams: usize,
    /// How far back another edge may resume here without a gap (seconds).
    pub resume_seconds: u64,
    /// Most that is kept of a stream for that (bytes).
    pub resume_bytes: usize,
    /// Where viewers reach this edge's HTTP, `http(s)://host[:port]`, if it isn't where they asked.
    pub public_url: Option<String>,
    /// Viewers one shard takes (count); past it a join is refused with 503.
    pub viewers_per_shard: usize,
    /// What this edge may send to viewers (Mbit/s, UDP and IP headers included); past it a join is refused with 503. 0: no limit.
    pub egress_mbps_max: u32,
    /// Streams this edge replicates at a time (count).
    pub streams_max: usize,
    /// How long a replica without viewers stays subscribed (seconds).
    pub linger_seconds: u64,
    /// How long the viewers of a stream that no upstream has any more are kept, in case it comes back (seconds).
    pub stream_lost_seconds: u64,
    /// How long a join waits for a stream that may be live (milliseconds).
    pub open_timeout_ms: u64,
    /// How much media a shard keeps per track for retransmission and for viewers who join (seconds). Holds at
    /// least the newest GOP, whatever it says, as long as `ring_bytes` allows.
    pub ring_seconds: u64,
    /// The same, in bytes.
    pub ring_bytes: usize,
    /// Send buffer asked of the kernel per media socket (bytes).
    pub send_buffer_bytes: usize,
    /// Receive buffer asked of the kernel per media socket (bytes).
    pub receive_buffer_bytes: usize,
    /// Limits of the HTTP side.
    pub limits: limits::Config,
    /// How long WebRTC players shall hold a picture back, at least and at most (milliseconds, in steps of 10 up to 40,950), where they
    /// negotiate the playout-delay extension; none: players decide by themselves. It holds from about three seconds after a join: until then
    /// pictures are shown as they come.
    pub playout_delay_ms: Option<[u16; 2]>,
    /// STUN and TURN servers that players are told of. This edge needs none.
    pub ice_servers: Vec<IceServer>,
    /// Who presents it may watch; none: everybody. Set from `[auth]`.
    #[serde(skip)]
    pub play_token: Option<Token>,
}

/// Who knows the address at which viewers reach an edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PublicIpFrom {
    /// `node:NAME`: Kubernetes, the ExternalIP of this node.
    Node(String),
    /// `service:NAMESPACE/NAME`: Kubernetes, the address of this Service's load balancer.
    Service {
        /// The Service's namespace.
        namespace: String,
        /// The Service's name.
        name: String,
    },
    /// `stun:HOST:PORT`: a STUN server, the address it sees.
    Stun(String),
}

impl TryFrom<String> for PublicIpFrom {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Names go into the path of a request.
        let name = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
            (!name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
        };
        let parsed = match text.split_once(':') {
            Some(("node", node)) => name(node).map(Self::Node),
            Some(("service", service)) => {
                service.split_once('/').and_then(|(namespace, service)| {
                    let (namespace, name) = (name(namespace)?, name(service)?);
                    Some(Self::Service { namespace, name })
                })
            }
            Some(("stun", server)) => server
                .rsplit_once(':')
                .filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
                .map(|_| Self::Stun(server.to_owned())),
            _ => None,
        };
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is none of \"node:NAME\", \"service:NAMESPACE/NAME\", \"stun:HOST:PORT\""
            )
        })
    }
}

impl fmt::Display for PublicIpFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node:{name}"),
            Self::Service { namespace, name } => write!(f, "service:{namespace}/{name}"),
            Self::Stun(server) => write!(f, "stun:{server}"),
        }
    }
}

impl From<PublicIpFrom> for String {
    fn from(from: PublicIpFrom) -> Self {
        from.to_string()
    }
}

/// Where media over TCP listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MediaTcp {
    /// `same`: at the address and the first port of media over UDP, which doesn't clash.
    #[default]
    Same,
    /// `off`: nowhere.
    Off,
    /// `ADDRESS:PORT`.
    At(SocketAddr),
}

impl TryFrom<String> for MediaTcp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "same" => Ok(Self::Same),
            "off" => Ok(Self::Off),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| format!("{text:?} is neither ADDRESS:PORT nor \"same\" nor \"off\"")),
        }
    }
}

impl From<MediaTcp> for String {
    fn from(tcp: MediaTcp) -> Self {
        match tcp {
            MediaTcp::Same => "same".to_owned(),
            MediaTcp::Off => "off".to_owned(),
            MediaTcp::At(address) => address.to_string(),
        }
    }
}

/// The longest GOP that is kept for other edges, and the most of one: what an origin keeps by default.
const GOP_LIMITS: Limits = Limits {
    bytes: 24 << 20,
    span: Duration::from_secs(20),
};

impl Config {
    /// What is kept of a stream for other edges.
    pub const fn store(&self) -> stream::Config {
        stream::Config {
            gop: GOP_LIMITS,
            resume: Limits {
                bytes: self.resume_bytes,
                span: Duration::from_secs(self.resume_seconds),
            },
        }
    }

    /// Where media over TCP listens, if it does.
    pub const fn media_tcp(&self) -> Option<SocketAddr> {
        match self.media_tcp {
            MediaTcp::Same => Some(self.media),
            MediaTcp::Off => None,
            MediaTcp::At(address) => Some(address),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            http: SocketAddr::new(any, 8080),
            media: SocketAddr::new(any, 8700),
            media_tcp: MediaTcp::Same,
            public_ip: Vec::new(),
            public_ip_from: None,
            loopback: false,
            shards: 0,
            grpc: None,
            advertise: None,
            fanout: 16,
            subscribers_max: 2000,
            depth_max: 5,
            upstreams: 1,
            resume_seconds: 10,
            resume_bytes: 16 << 20,
            public_url: None,
            viewers_per_shard: 4000,
            egress_mbps_max: 0,
            streams_max: 1000,
            linger_seconds: 10,
            stream_lost_seconds: 30,
            open_timeout_ms: 3000,
            ring_seconds: 4,
            ring_bytes: 32 << 20,
            send_buffer_bytes: 8 << 20,
            receive_buffer_bytes: 4 << 20,
            limits: limits::Config::default(),
            playout_delay_ms: None,
            ice_servers: Vec::new(),
            play_token: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_knows_the_address_is_read_and_told() {
        for text in [
            "node:ip-10-0-0-1.internal",
            "service:media/live-edge-0",
            "stun:stun.example.com:3478",
            "stun:[2001:db8::1]:3478",
        ] {
            let read = PublicIpFrom::try_from(text.to_owned()).expect(text);
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "",
            "node:",
            "node:a/../b",
            "service:media",
            "service:/x",
            "stun:host",
            "stun::1",
            "dns:x",
        ] {
            assert!(PublicIpFrom::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
