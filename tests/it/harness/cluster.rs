//! Nodes and the directory they share.

use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::Value;

use super::{Etcd, Process, Wire, eventually, free_ports, get, seconds};

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
    /// Other nodes reach its gRPC by a way that can be cut ([`Node::link`]).
    pub(crate) linked: bool,
    /// This edge reaches the origin by a way of its own, which can be cut ([`Node::way`]).
    pub(crate) own_way: bool,
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
    /// The way by which other nodes reach it, if that can be cut.
    pub(crate) link: Option<Wire>,
    /// Its own way to the origin, if it has one.
    pub(crate) way: Option<Wire>,
}

impl Node {
    fn start(role: Role, id: &str, directory: &[String], options: &Options) -> Self {
        let [rtmp, http, admin, grpc, media] = [(); 5].map(|()| free_ports(1));
        let link = options.linked.then(|| Wire::to(grpc));
        let advertised = link.as_ref().map_or(grpc, Wire::port);
        let local = |port: u16| format!("127.0.0.1:{port}");
        let mut command: Vec<String> = Vec::new();
        let mut flag = |name: &str, value: String| command.extend([name.to_owned(), value]);
        if role != Role::Standalone {
            flag("--id", id.to_owned());
            flag("--grpc", local(grpc));
            flag("--advertise", format!("http://127.0.0.1:{advertised}"));
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
            link,
            way: None,
        };
        node.await_ready();
        node
    }

    /// Where other nodes reach it.
    fn grpc_url(&self) -> String {
        let port = self.link.as_ref().map_or(self.grpc, Wire::port);
        format!("http://127.0.0.1:{port}")
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(link) = &self.link {
            link.refuse();
        }
        self.process.kill();
    }

    /// Starts it again after its end, on the same ports.
    pub(crate) fn restart(&mut self) {
        if let Some(link) = &self.link {
            link.accept();
        }
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
    // The environment of whoever runs the tests must not configure the nodes, but for what they log.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HEADWATER_") {
            command.env_remove(variable);
        }
    }
    if let Some(filter) = std::env::var_os("HEADWATER_TEST_LOG") {
        command.env("HEADWATER_LOG__FILTER", filter);
    }
    command.envs(env.iter().map(|(name, value)| (name, value)));
    Process::start(name, &mut command)
}

/// A whole cluster.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    etcd: Option<Etcd>,
    /// The ways of each node of [`Self::scattered`] to the members of etcd.
    directory_links: Vec<Vec<Wire>>,
}

impl Cluster {
    /// `headwater standalone`.
    pub(crate) fn standalone(options: &Options) -> Self {
        let node = Node::start(Role::Standalone, "standalone", &[], options);
        Self {
            nodes: vec![node],
            etcd: None,
            directory_links: Vec::new(),
        }
    }

    /// An origin and an edge in processes of their own.
    pub(crate) fn split(directory: Directory, options: &Options) -> Self {
        if directory == Directory::Etcd {
            return Self::fleet(1, 1, options);
        }
        Self::listed(1, options)
    }

    /// Origins `o1`, … that know nothing of each other, and an edge that is told of them.
    pub(crate) fn listed(origins: usize, options: &Options) -> Self {
        let ids = (1..=origins).map(|n| format!("o{n}"));
        let mut nodes: Vec<Node> = ids
            .map(|id| Node::start(Role::Origin, &id, &[], options))
            .collect();
        let urls = nodes
            .iter()
            .map(|origin| format!("http://127.0.0.1:{}", origin.grpc));
        let flags: Vec<String> = urls.flat_map(|url| ["--origin".to_owned(), url]).collect();
        nodes.push(Node::start(Role::Edge, "e1", &flags, options));
        Self {
            nodes,
            etcd: None,
            directory_links: Vec::new(),
        }
    }

    /// Two origins and an edge. The first origin reaches etcd by a way that can be cut.
    pub(crate) fn two_origins(options: &Options) -> (Self, Wire) {
        let etcd = Etcd::start(1);
        let url = etcd.url(0);
        let wire = Wire::to(etcd.port(0));
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
            directory_links: Vec::new(),
        };
        (cluster, wire)
    }

    /// Origins `o1`, … and edges `e1`, …, which find each other by etcd.
    pub(crate) fn fleet(origins: usize, edges: usize, options: &Options) -> Self {
        let etcd = Etcd::start(1);
        let flags = ["--etcd".to_owned(), etcd.url(0)];
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
            directory_links: Vec::new(),
        }
    }

    /// As [`Self::fleet`], with an etcd of three members, and every way from node to node and from node to etcd can be cut.
    pub(crate) fn scattered(nodes: &[(Role, Options)]) -> Self {
        let etcd = Etcd::start(3);
        let (mut origins, mut edges) = (0, 0);
        let mut directory_links = Vec::new();
        let start = |(role, options): &(Role, Options)| {
            let id = if *role == Role::Origin {
                origins += 1;
                format!("o{origins}")
            } else {
                edges += 1;
                format!("e{edges}")
            };
            let links: Vec<Wire> = (0..etcd.members())
                .map(|n| Wire::to(etcd.port(n)))
                .collect();
            let flag = |link: &Wire| {
                [
                    "--etcd".to_owned(),
                    format!("http://127.0.0.1:{}", link.port()),
                ]
            };
            let flags: Vec<String> = links.iter().flat_map(flag).collect();
            directory_links.push(links);
            let options = Options {
                linked: true,
                ..options.clone()
            };
            Node::start(*role, &id, &flags, &options)
        };
        let nodes = nodes.iter().map(start).collect();
        Self {
            nodes,
            etcd: Some(etcd),
            directory_links,
        }
    }

    /// The ways of a node to etcd.
    pub(crate) fn directory_links(&self, node: usize) -> &[Wire] {
        &self.directory_links[node]
    }

    /// All that serve viewers.
    pub(crate) fn edges(&mut self) -> impl Iterator<Item = &mut Node> {
        let mut nodes = self.nodes.iter_mut();
        std::iter::from_fn(move || nodes.find(|node| node.role == Role::Edge))
    }

    /// An origin, and edges that are told of it: first in `nodes`, then those, in order.
    pub(crate) fn tree(origin: &Options, edges: &[Options]) -> Self {
        let origin = Node::start(Role::Origin, "o1", &[], origin);
        let (url, grpc) = (origin.grpc_url(), origin.grpc);
        let mut nodes = vec![origin];
        for (index, options) in edges.iter().enumerate() {
            let way = options.own_way.then(|| Wire::to(grpc));
            let own = way
                .as_ref()
                .map(|way| format!("http://127.0.0.1:{}", way.port()));
            let flags = ["--origin".to_owned(), own.unwrap_or_else(|| url.clone())];
            let id = format!("e{}", index + 1);
            let node = Node::start(Role::Edge, &id, &flags, options);
            nodes.push(Node { way, ..node });
        }
        Self {
            nodes,
            etcd: None,
            directory_links: Vec::new(),
        }
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

    /// The directory's members.
    pub(crate) fn members(&mut self) -> &mut Etcd {
        self.etcd.as_mut().expect("a cluster with etcd")
    }

    /// The first member of the directory as a process, to be killed.
    pub(crate) fn etcd(&mut self) -> &mut Process {
        self.members().member(0)
    }

    /// Starts that member again, with its data.
    pub(crate) fn restart_etcd(&mut self) {
        self.members().restart(0);
    }
}
