//! Nodes and the directory they share.

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{Process, Wire, eventually, free_ports, get, seconds};

/// How nodes find each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Directory {
    /// A real etcd.
    Etcd,
    /// The edges are told their origins by `--origin`.
    Static,
}

/// Who a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Standalone,
    Origin,
    Edge,
}

/// What is unusual about a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Environment variables, `HEADWATER_…` or `PATH`.
    pub(crate) env: Vec<(String, String)>,
    /// The address that answers name to players, if it isn't the one that media listens at.
    pub(crate) public_ip: Option<Ipv4Addr>,
    /// Players can be sent to this edge by a URL of its own.
    pub(crate) public_url: bool,
}

impl Options {
    /// With one variable set.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A node and its ports, which it keeps over restarts.
pub(crate) struct Node {
    pub(crate) process: Process,
    role: Role,
    command: Vec<String>,
    env: Vec<(String, String)>,
    pub(crate) rtmp: u16,
    pub(crate) http: u16,
    pub(crate) admin: u16,
    pub(crate) grpc: u16,
    /// UDP and TCP.
    pub(crate) media: u16,
}

impl Node {
    fn start(role: Role, id: &str, directory: &[String], options: &Options) -> Self {
        let [rtmp, http, admin, grpc, media] = [(); 5].map(|()| free_ports(1));
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| command.extend([name.to_owned(), value]);
        if role != Role::Standalone {
            flag("--id", id.to_owned());
            flag("--grpc", local(grpc));
            flag("--advertise", format!("http://127.0.0.1:{grpc}"));
        }
        flag("--admin", local(admin));
        if role != Role::Edge {
            flag("--rtmp", local(rtmp));
        }
        if role != Role::Origin {
            flag("--http", local(http));
            flag("--media", local(media));
            let public_ip = options.public_ip.unwrap_or(Ipv4Addr::LOCALHOST);
            flag("--public-ip", public_ip.to_string());
            flag("--shards", "1".to_owned());
            if options.public_url {
                flag("--public-url", format!("http://127.0.0.1:{http}"));
            }
        }
        command.extend_from_slice(directory);
        command.insert(
            0,
            match role {
                Role::Standalone => "standalone",
                Role::Origin => "origin",
                Role::Edge => "edge",
            }
            .to_owned(),
        );
        let process = run(id, &command, &options.env);
        let mut node = Self {
            process,
            role,
            command,
            env: options.env.clone(),
            rtmp,
            http,
            admin,
            grpc,
            media,
        };
        node.await_ready();
        node
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again after its end, on the same ports.
    pub(crate) fn restart(&mut self) {
        self.process = run(&self.process.name, &self.command, &self.env);
        self.await_ready();
    }

    /// The record of a stream on its admin port.
    pub(crate) fn stream(&self, name: &str) -> Option<Value> {
        let streams = get(self.admin, "/api/v1/streams")?.json();
        let streams = streams
            .as_array()
            .or_else(|| streams.get("streams").and_then(Value::as_array))?;
        streams
            .iter()
            .find(|stream| stream.get("name").and_then(Value::as_str) == Some(name))
            .cloned()
    }

    fn await_ready(&mut self) {
        let admin = self.admin;
        let name = self.process.name.clone();
        eventually(&format!("{name} is ready"), seconds(15), || {
            assert!(self.process.running(), "{name} ended while starting");
            get(admin, "/readyz").filter(|answer| answer.status == 200)
        });
    }
}

fn run(name: &str, arguments: &[String], env: &[(String, String)]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_headwater"));
    command.args(arguments);
    // The environment of whoever runs the tests must not configure the nodes.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HEADWATER_") {
            command.env_remove(variable);
        }
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    Process::start(name, &mut command)
}

/// A whole cluster.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    etcd: Option<Etcd>,
}

struct Etcd {
    process: Process,
    command: Vec<String>,
    _data: TempDir,
}

impl Cluster {
    /// `headwater standalone`.
    pub(crate) fn standalone(options: &Options) -> Self {
        let node = Node::start(Role::Standalone, "standalone", &[], options);
        Self {
            nodes: vec![node],
            etcd: None,
        }
    }

    /// An origin and an edge in processes of their own.
    pub(crate) fn split(directory: Directory, options: &Options) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            etcd: None,
        };
        match directory {
            Directory::Etcd => {
                let (etcd, url) = start_etcd();
                cluster.etcd = Some(etcd);
                let flags = ["--etcd".to_owned(), url];
                for (role, id) in [(Role::Origin, "o1"), (Role::Edge, "e1")] {
                    cluster.nodes.push(Node::start(role, id, &flags, options));
                }
            }
            Directory::Static => {
                let origin = Node::start(Role::Origin, "o1", &[], options);
                let url = format!("http://127.0.0.1:{}", origin.grpc);
                cluster.nodes.push(origin);
                let flags = ["--origin".to_owned(), url];
                let edge = Node::start(Role::Edge, "e1", &flags, options);
                cluster.nodes.push(edge);
            }
        }
        cluster
    }

    /// Two origins and an edge. The first origin reaches etcd by a way that can be cut.
    pub(crate) fn two_origins(options: &Options) -> (Self, Wire) {
        let (etcd, url) = start_etcd();
        let port = url.rsplit(':').next().and_then(|port| port.parse().ok());
        let wire = Wire::to(port.expect("a URL with a port"));
        let cut = format!("http://127.0.0.1:{}", wire.port());
        let nodes = [
            (Role::Origin, "o1", &cut),
            (Role::Origin, "o2", &url),
            (Role::Edge, "e1", &url),
        ];
        let nodes = nodes.map(|(role, id, url)| {
            let directory = ["--etcd".to_owned(), url.clone()];
            Node::start(role, id, &directory, options)
        });
        let cluster = Self {
            nodes: nodes.into(),
            etcd: Some(etcd),
        };
        (cluster, wire)
    }

    /// Origins `o1`, … and edges `e1`, …, which find each other by etcd.
    pub(crate) fn fleet(origins: usize, edges: usize, options: &Options) -> Self {
        let (etcd, url) = start_etcd();
        let flags = ["--etcd".to_owned(), url];
        let start = |role, name: &str, count: usize| {
            let ids = (1..=count).map(move |n| format!("{name}{n}"));
            let node = |id: String| Node::start(role, &id, &flags, options);
            ids.map(node).collect::<Vec<_>>()
        };
        let mut nodes = start(Role::Origin, "o", origins);
        nodes.extend(start(Role::Edge, "e", edges));
        Self {
            nodes,
            etcd: Some(etcd),
        }
    }

    /// All that serve viewers.
    pub(crate) fn edges(&mut self) -> impl Iterator<Item = &mut Node> {
        let mut nodes = self.nodes.iter_mut();
        std::iter::from_fn(move || nodes.find(|node| node.role == Role::Edge))
    }

    /// An origin, and edges that are told of it: first in `nodes`, then those, in order.
    pub(crate) fn tree(origin: &Options, edges: &[Options]) -> Self {
        let origin = Node::start(Role::Origin, "o1", &[], origin);
        let url = format!("http://127.0.0.1:{}", origin.grpc);
        let flags = ["--origin".to_owned(), url];
        let mut nodes = vec![origin];
        for (index, options) in edges.iter().enumerate() {
            let id = format!("e{}", index + 1);
            nodes.push(Node::start(Role::Edge, &id, &flags, options));
        }
        Self { nodes, etcd: None }
    }

    /// The node that takes publishers.
    pub(crate) fn origin(&mut self) -> &mut Node {
        self.node(Role::Edge)
    }

    /// The node that serves viewers.
    pub(crate) fn edge(&mut self) -> &mut Node {
        self.node(Role::Origin)
    }

    /// The first that is standalone or not `other`.
    fn node(&mut self, other: Role) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.role != other)
            .expect("every cluster has both halves")
    }

    /// Where to publish `name`.
    pub(crate) fn rtmp_url(&mut self, name: &str) -> String {
        format!("rtmp://127.0.0.1:{}/{name}", self.origin().rtmp)
    }

    /// Where to watch `name`.
    pub(crate) fn whep_url(&mut self, name: &str) -> String {
        format!("http://127.0.0.1:{}/whep/{name}", self.edge().http)
    }

    /// The directory as a process, to be killed.
    pub(crate) fn etcd(&mut self) -> &mut Process {
        &mut self.etcd.as_mut().expect("a cluster with etcd").process
    }

    /// Starts the directory again, with its data.
    pub(crate) fn restart_etcd(&mut self) {
        let etcd = self.etcd.as_mut().expect("a cluster with etcd");
        etcd.process = run_etcd(&etcd.command);
    }
}

fn start_etcd() -> (Etcd, String) {
    let data = tempfile::tempdir().expect("a directory for etcd");
    let [client, peer] = [(); 2].map(|()| free_ports(1));
    let url = format!("http://127.0.0.1:{client}");
    let peers = format!("http://127.0.0.1:{peer}");
    let command = vec![
        format!("--data-dir={}", data.path().display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--log-level=warn".to_owned(),
    ];
    let process = run_etcd(&command);
    eventually("etcd is healthy", seconds(15), || {
        get(client, "/health").filter(|answer| answer.body.contains("true"))
    });
    let etcd = Etcd {
        process,
        command,
        _data: data,
    };
    (etcd, url)
}

fn run_etcd(arguments: &[String]) -> Process {
    let mut command = Command::new("etcd");
    // etcd 3.4 refuses to run on some CPUs without it.
    command
        .args(arguments)
        .env("ETCD_UNSUPPORTED_ARCH", "arm64");
    Process::start("etcd", &mut command)
}
