//! etcd as the directory: one member, or several that elect a leader.

use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{Process, eventually, free_ports, get, request, seconds};

/// A running etcd; ends when dropped.
pub(crate) struct Etcd {
    members: Vec<Member>,
    _data: TempDir,
}

struct Member {
    process: Process,
    command: Vec<String>,
    port: u16,
}

impl Etcd {
    /// Starts it and waits until it answers.
    pub(crate) fn start(count: usize) -> Self {
        let data = tempfile::tempdir().expect("a directory for etcd");
        let ports: Vec<[u16; 2]> = (0..count).map(|_| [free_ports(1), free_ports(1)]).collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let peers = ports.iter().enumerate();
        let peers = peers.map(|(n, [_, peer])| format!("m{n}={}", url(*peer)));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let members = ports.iter().enumerate().map(|(n, &[client, peer])| {
            let command = vec![
                format!("--name=m{n}"),
                format!("--data-dir={}", data.path().join(format!("m{n}")).display()),
                format!("--listen-client-urls={}", url(client)),
                format!("--advertise-client-urls={}", url(client)),
                format!("--listen-peer-urls={}", url(peer)),
                format!("--initial-advertise-peer-urls={}", url(peer)),
                format!("--initial-cluster={cluster}"),
                "--log-level=warn".to_owned(),
            ];
            Member {
                process: run(n, &command),
                command,
                port: client,
            }
        });
        let etcd = Self {
            members: members.collect(),
            _data: data,
        };
        for n in 0..count {
            etcd.await_healthy(n);
        }
        etcd
    }

    /// How many there are.
    pub(crate) const fn members(&self) -> usize {
        self.members.len()
    }

    /// A member as a process.
    pub(crate) fn member(&mut self, n: usize) -> &mut Process {
        &mut self.members[n].process
    }

    /// Where a member answers.
    pub(crate) fn port(&self, n: usize) -> u16 {
        self.members[n].port
    }

    /// Where a member answers.
    pub(crate) fn url(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.port(n))
    }

    /// Starts a member again after its end, with its data.
    pub(crate) fn restart(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.process = run(n, &member.command);
    }

    /// Which member leads.
    pub(crate) fn leader(&self) -> usize {
        let status = |n: usize| -> Option<Value> {
            let answer = request(self.port(n), "POST", "/v3/maintenance/status", &[], "{}")?;
            serde_json::from_str(&answer.body).ok()
        };
        eventually("a member leads", seconds(15), || {
            (0..self.members()).find(|n| {
                status(*n).is_some_and(|status| {
                    let leader = status["leader"].as_str().filter(|id| *id != "0");
                    leader.is_some() && leader == status["header"]["member_id"].as_str()
                })
            })
        })
    }

    fn await_healthy(&self, n: usize) {
        eventually("etcd is healthy", seconds(15), || {
            get(self.port(n), "/health").filter(|answer| answer.body.contains("true"))
        });
    }
}

fn run(n: usize, arguments: &[String]) -> Process {
    let mut command = Command::new("etcd");
    // etcd 3.4 refuses to run on some CPUs without it.
    command
        .args(arguments)
        .env("ETCD_UNSUPPORTED_ARCH", "arm64");
    Process::start(&format!("etcd-{n}"), &mut command)
}
