//! Starts the roles, waits for the signal, stops them.
//!
//! The main thread runs the actix System; gRPC, etcd and RTMP sockets live on a multi-thread runtime of their own; shards
//! and role threads start their own arbiters.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use headwater_edge::Edge;
use headwater_edge::config::MediaTcp;
use headwater_media::id::NodeId;
use headwater_node::Node;
use headwater_node::admin::{self, Report};
use headwater_node::clock::Clock;
use headwater_node::directory::Directory;
use headwater_node::directory::etcd::{self, EtcdDirectory};
use headwater_node::directory::fixed::FixedDirectory;
use headwater_node::directory::memory::MemoryDirectory;
use headwater_node::drain;
use headwater_node::telemetry::{self, Format, Metrics};
use headwater_node::trace::{self, Sampling};
use headwater_origin::Origin;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::args::Role;
use super::settings::Settings;
use super::summary::Started;
use super::{COMMIT, addresses, discover};
use crate::probe;

/// More threads than this gain nothing: the heavy work is on the shards.
const IO_THREADS_MAX: usize = 4;

/// How long withdrawing from the directory and ending the admin port may take, after the roles.
const LAST_STEPS_DEADLINE: Duration = Duration::from_secs(2);

/// Open files that are enough (count): every viewer by TCP and every HTTP client is one. Most systems start processes with 1024, and allow
/// them many more.
const OPEN_FILES: u64 = 1 << 20;

/// Whose keys a file is of that can't be read.
const TLS_FILES: &str = "directory.ca, cert or key";

/// What actors get to start in after a failed start, before all ends.
const UNWIND_TIME: Duration = Duration::from_millis(20);

/// Runs a node until it is told to stop.
pub(super) fn role(role: Role, settings: Settings) -> anyhow::Result<ExitCode> {
    telemetry::init_log(&settings.log)?;
    telemetry::install_panic_hook();
    let metrics = Metrics::install();
    metrics.build_info(env!("CARGO_PKG_VERSION"), COMMIT, role.name());
    allow_open_files();
    let io = io_runtime(settings.io_threads)?;
    let handle = io.handle().clone();
    let done = actix::System::new().block_on(async {
        let done = serve(role, settings, metrics, handle).await;
        if done.is_err() {
            // actix starts an actor even while its System is torn down, and then its timers find no runtime and panic. So
            // actors of a role that came up before another failed get the turn in which they start.
            tokio::time::sleep(UNWIND_TIME).await;
        }
        done
    });
    // What still runs there was given its time; threads blocked in a system call must not keep the process.
    io.shutdown_timeout(Duration::from_millis(500));
    done.map(|()| ExitCode::SUCCESS)
}

/// Raises the limit of open files as far as the system lets us.
fn allow_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = OPEN_FILES.min(hard).max(soft);
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)
    });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files stays as it is");
    }
}

/// Runs `headwater probe`.
pub(super) fn probe(args: probe::Args) -> anyhow::Result<ExitCode> {
    let io = io_runtime(0)?;
    let code = io.block_on(probe::run(args));
    io.shutdown_timeout(Duration::from_millis(500));
    Ok(code)
}

/// Whether the files of `tls` are there.
pub(super) fn read(tls: &etcd::Tls) -> anyhow::Result<()> {
    let io = io_runtime(1)?;
    io.block_on(tls.read()).context(TLS_FILES)?;
    Ok(())
}

fn io_runtime(threads: usize) -> anyhow::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = match threads {
        0 => cores.min(IO_THREADS_MAX),
        given => given,
    };
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("io")
        .enable_all()
        .build()
        .context("can't start the I/O threads")
}

/// The running parts of a node.
struct Running {
    origin: Option<Origin>,
    edge: Option<Edge>,
    admin: admin::Admin,
    directories: Vec<Arc<dyn Directory>>,
}

async fn serve(role: Role, settings: Settings, metrics: Metrics, io: Handle) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    {
        let _io = io.enter();
        drain::on_signals(shutdown.clone()).context("can't handle signals")?;
    }
    let (drain_time, deadline) = (settings.drain_time(), settings.stop_deadline());
    let format = settings.log.format;
    let (clock, service) = (
        Clock::system(),
        trace::Service {
            id: settings.node_id(role).to_string(),
            cluster: settings.cluster.to_string(),
            version: env!("CARGO_PKG_VERSION"),
        },
    );
    let traces = trace::install(&settings.trace, &service, &clock, &io)?;
    // A signal that comes while the roles start must not wait for them.
    let started = tokio::select! {
        started = start(role, settings, metrics, io, shutdown.clone()) => started?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (running, summary) = started;
    info!(
        role = role.name(), id = %summary.id, rtmp = ?summary.rtmp, grpc = ?summary.grpc, http = ?summary.http,
        media = ?summary.media, media_tcp = ?summary.media_tcp, admin = %summary.admin, directory = %summary.directory, "started"
    );
    if format == Format::Text {
        // Whoever reads standard output may have gone; that is no reason to stop.
        let _ = write!(std::io::stdout(), "{}", summary.text());
        let _ = std::io::stdout().flush();
    }
    shutdown.cancelled().await;
    let mut span = trace::start("drain", trace::Kind::Internal, None, Sampling::Always);
    let asked = clock.wall();
    let (least, most) = drain_time;
    // Whoever sends viewers here takes a moment to notice; until then they hear where to go.
    tokio::join!(running.drain(most), tokio::time::sleep(least));
    let drained = clock.wall();
    span.phase("viewers go elsewhere", asked, drained);
    running.stop(deadline).await;
    span.phase("roles stop", drained, clock.wall());
    span.set("role", role.name());
    drop(span);
    if let Some(traces) = traces {
        traces.stop().await;
    }
    info!("stopped");
    Ok(())
}

async fn start(
    role: Role,
    mut settings: Settings,
    metrics: Metrics,
    io: Handle,
    shutdown: CancellationToken,
) -> anyhow::Result<(Running, Started)> {
    let id = settings.node_id(role);
    let problems = [
        settings.unreachable_origin(role),
        settings.unreachable_edge(role),
    ];
    for problem in problems.into_iter().flatten() {
        warn!("{problem}");
    }
    let clock = Clock::system();
    let node = |id: NodeId, directory: Arc<dyn Directory>| Node {
        id,
        clock: clock.clone(),
        directory,
        io: io.clone(),
        shutdown: shutdown.clone(),
    };
    if let (Some(from), Role::Edge | Role::Standalone) = (&settings.edge.public_ip_from, role) {
        settings.edge.public_ip = discover::public_ips(from).await?;
    } else if settings.edge.public_ip.is_empty() {
        settings.edge.public_ip =
            addresses::reachable(settings.edge.media, settings.edge.loopback)?;
    }
    let edge_config = headwater_edge::config::Config {
        play_token: settings.auth.play_token.clone(),
        ..settings.edge.clone()
    };
    let origin_config = headwater_origin::Config {
        origin: settings.origin.clone(),
        rtmp: settings.rtmp.clone(),
        audio: settings.audio.clone(),
        ladder: settings.ladder.clone(),
        publish_token: settings.auth.publish_token.clone(),
    };

    let (origin_node, edge_node, directory) = match role {
        Role::Standalone => {
            // The two roles are two nodes of a cluster that happens to live in one process.
            let (origin_id, edge_id) = (sub_id(&id, "origin"), sub_id(&id, "edge"));
            let memory = MemoryDirectory::new(origin_id.clone());
            let view = memory.view(edge_id.clone());
            (
                Some(node(origin_id, Arc::new(memory))),
                Some(node(edge_id, Arc::new(view))),
                "in memory".to_owned(),
            )
        }
        Role::Origin | Role::Edge => {
            if let Some(tls) = settings.directory.tls() {
                // A file that is missing is a mistake of now; later ones are tried again.
                let read = io.spawn(async move { tls.read().await });
                read.await.context("this node stops")?.context(TLS_FILES)?;
            }
            let (directory, described) = directory(role, &settings, &id, &clock, &io);
            let node = node(id.clone(), directory);
            match role {
                Role::Edge => (None, Some(node), described),
                Role::Origin | Role::Standalone => (Some(node), None, described),
            }
        }
    };

    let listeners = Listeners::of(&settings);
    let origin = match &origin_node {
        Some(node) => Some(
            headwater_origin::start(origin_config, node.clone())
                .await
                .map_err(|error| listeners.explain(error.into()))?,
        ),
        None => None,
    };
    let edge = match &edge_node {
        Some(node) => Some(
            headwater_edge::start(edge_config, node.clone())
                .await
                .map_err(|error| listeners.explain(error.into()))?,
        ),
        None => None,
    };
    let reports: Vec<Arc<dyn Report>> = [
        origin.as_ref().map(Origin::report),
        edge.as_ref().map(Edge::report),
    ]
    .into_iter()
    .flatten()
    .collect();
    let nodes: Vec<Node> = [origin_node, edge_node].into_iter().flatten().collect();
    let any = nodes.first().context("a role runs at least one node")?;
    let admin_config = admin::Config {
        token: settings.auth.admin_token,
        ..settings.admin
    };
    let admin = admin::start(admin_config, any.clone(), metrics, reports)
        .map_err(|error| listeners.explain(error.into()))?;

    let summary = Started {
        role,
        id: id.to_string(),
        rtmp: origin.as_ref().map(Origin::rtmp_addr),
        grpc: origin.as_ref().map(Origin::grpc_addr),
        http: edge.as_ref().map(Edge::http_addr),
        media: edge.as_ref().map(Edge::media_addrs).unwrap_or_default(),
        media_tcp: edge.as_ref().and_then(Edge::media_tcp_addr),
        public_ip: settings.edge.public_ip,
        public_url: settings.edge.public_url,
        admin: admin.addr(),
        directory,
    };
    let directories = nodes.into_iter().map(|node| node.directory).collect();
    let running = Running {
        origin,
        edge,
        admin,
        directories,
    };
    Ok((running, summary))
}

impl Running {
    /// Viewers go elsewhere, as far as they can.
    async fn drain(&self, within: Duration) {
        if let Some(edge) = &self.edge {
            edge.drain(within).await;
        }
    }

    /// Viewers first, so that they are told while their streams still flow; then publishers; then the traces in the directory.
    async fn stop(self, deadline: Duration) {
        let roles = async {
            if let Some(edge) = self.edge {
                edge.stop().await;
            }
            if let Some(origin) = self.origin {
                origin.stop().await;
            }
        };
        drain::within(deadline, "the roles", roles).await;
        let rest = async {
            for directory in &self.directories {
                directory.withdraw().await;
            }
            self.admin.stop().await;
        };
        drain::within(
            LAST_STEPS_DEADLINE,
            "the directory and the admin port",
            rest,
        )
        .await;
    }
}

fn directory(
    role: Role,
    settings: &Settings,
    id: &NodeId,
    clock: &Clock,
    io: &Handle,
) -> (Arc<dyn Directory>, String) {
    let config = &settings.directory;
    if !config.etcd.is_empty() {
        let user = config.username.clone().zip(config.password.clone());
        let options = etcd::Options {
            endpoints: config.etcd.clone(),
            cluster: settings.cluster.clone(),
            user: user.map(|(name, password)| (name, password.reveal().to_owned())),
            tls: config.tls(),
            lease_ttl: etcd::LEASE_TTL,
        };
        let described = format!("etcd {}", config.etcd.join(", "));
        let directory = EtcdDirectory::start(options, id.clone(), clock.clone(), io);
        (Arc::new(directory), described)
    } else if role == Role::Edge {
        let described = format!("origins {}", config.origins.join(", "));
        (
            Arc::new(FixedDirectory::new(config.origins.clone())),
            described,
        )
    } else {
        let described = "in memory; edges name this origin with --origin".to_owned();
        (Arc::new(MemoryDirectory::new(id.clone())), described)
    }
}

/// The id of one role of a standalone node.
fn sub_id(id: &NodeId, role: &str) -> NodeId {
    // An id of the greatest length leaves no room: then the role alone has to do, unique within the process.
    let fallback = || role.parse().expect("role names are ids");
    format!("{id}-{role}")
        .parse()
        .unwrap_or_else(|_| fallback())
}

/// Which flag and key sets which address, to name them when one is taken.
struct Listeners(Vec<(SocketAddr, &'static str, &'static str)>);

impl Listeners {
    fn of(settings: &Settings) -> Self {
        let mut all = vec![
            (settings.rtmp.listen, "--rtmp", "rtmp.listen"),
            (settings.origin.grpc, "--grpc", "origin.grpc"),
            (settings.edge.http, "--http", "edge.http"),
            (settings.admin.listen, "--admin", "admin.listen"),
        ];
        all.extend(settings.edge.grpc.map(|addr| (addr, "--grpc", "edge.grpc")));
        if let MediaTcp::At(addr) = settings.edge.media_tcp {
            all.push((addr, "--media-tcp", "edge.media_tcp"));
        }
        let first = settings.edge.media;
        let shards = match settings.edge.shards {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        for shard in 0..u16::try_from(shards).unwrap_or(u16::MAX) {
            let addr = SocketAddr::new(first.ip(), first.port().wrapping_add(shard));
            all.push((addr, "--media", "edge.media"));
        }
        Self(all)
    }

    /// Adds what to do about it to an error about an address.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let io_kind = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<std::io::Error>())
            .map(std::io::Error::kind);
        let text = format!("{error:#}");
        // "127.0.0.1:80" must not be found in "127.0.0.1:8080".
        let named = self.0.iter().find(|(addr, _, _)| {
            text.match_indices(&addr.to_string()).any(|(at, found)| {
                let next = text
                    .get(at + found.len()..)
                    .and_then(|rest| rest.chars().next());
                !next.is_some_and(|c| c.is_ascii_digit())
            })
        });
        let Some((_, flag, key)) = named else {
            return error;
        };
        let hint = match io_kind {
            Some(std::io::ErrorKind::AddrInUse) => "something else listens there",
            Some(std::io::ErrorKind::PermissionDenied) => "ports below 1024 need a privilege",
            Some(std::io::ErrorKind::AddrNotAvailable) => "this machine does not have that address",
            _ => return error,
        };
        error.context(format!(
            "{hint}; choose another address with {flag} ADDR ({key})"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("HTTP can't listen on {address}")]
    struct Taken {
        address: SocketAddr,
        source: std::io::Error,
    }

    fn taken(address: &str, kind: std::io::ErrorKind) -> String {
        let error = Taken {
            address: address.parse().expect("valid"),
            source: kind.into(),
        };
        let explained = Listeners::of(&Settings::default()).explain(error.into());
        format!("{explained:#}")
    }

    #[test]
    fn a_taken_address_names_the_flag() {
        let text = taken("0.0.0.0:8080", std::io::ErrorKind::AddrInUse);
        assert!(text.starts_with("something else listens there; choose another address with --http ADDR (edge.http): "), "{text}");
        assert!(taken("0.0.0.0:1935", std::io::ErrorKind::AddrInUse).contains("--rtmp"));
        assert!(taken("0.0.0.0:8700", std::io::ErrorKind::AddrInUse).contains("--media"));
        let other = taken(
            "0.0.0.0:80801".trim_end_matches('1'),
            std::io::ErrorKind::ConnectionReset,
        );
        assert!(!other.contains("--http"), "{other}");
    }

    #[test]
    fn a_file_of_etcds_tls_that_is_missing_is_named() {
        let tls = etcd::Tls {
            ca: "/nonexistent/ca.crt".into(),
            identity: None,
        };
        let told = format!("{:#}", read(&tls).expect_err("missing"));
        assert!(
            told.contains("directory.ca") && told.contains("/nonexistent/ca.crt"),
            "{told}"
        );
    }

    #[test]
    fn the_roles_of_a_standalone_node_have_ids_of_their_own() {
        let id: NodeId = "s1".parse().expect("valid");
        assert_eq!(sub_id(&id, "edge").as_str(), "s1-edge");
        let long: NodeId = "x".repeat(63).parse().expect("valid");
        assert_eq!(sub_id(&long, "edge").as_str(), "edge");
    }
}
