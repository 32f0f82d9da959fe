//! A network of a test's own, in which packets can be dropped: connections then fare as the kernel lets them when a cable is pulled.

use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// What gets lost on the way to a port and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// What is sent to it.
    Requests,
    /// What it sends.
    Answers,
    Both,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network(());

impl Network {
    /// Takes this thread there, with all that it starts from now on. None where that isn't allowed, or the tools for it aren't there.
    pub(crate) fn enter() -> Option<Self> {
        let there = |tool: &str| run(tool, &["--version"]) || run(tool, &["-V"]);
        if !there("ip") || !there("iptables") || unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return None;
        }
        assert!(run("ip", &["link", "set", "lo", "up"]), "a loopback device");
        Some(Self(()))
    }

    /// From now on what is lost on the way to this TCP port is lost, and nobody is told.
    pub(crate) fn lose(&self, port: u16, lost: Lost) {
        for (flag, is_lost) in [
            ("--dport", lost != Lost::Answers),
            ("--sport", lost != Lost::Requests),
        ] {
            if is_lost {
                let port = port.to_string();
                drop_packets(&["-p", "tcp", flag, &port]);
            }
        }
    }

    /// Two in a hundred of the packets that this UDP port sends are lost.
    pub(crate) fn lose_some(&self, port: u16) {
        let port = port.to_string();
        let some = ["--mode", "random", "--probability", "0.02"];
        let packets = ["-p", "udp", "--sport", &port, "-m", "statistic"];
        drop_packets(&[&packets[..], &some].concat());
    }

    /// Everything arrives again.
    pub(crate) fn restore(&self) {
        assert!(run("iptables", &["-w", "-F", "INPUT"]), "rules are gone");
    }
}

fn drop_packets(which: &[&str]) {
    // Where they arrive: whoever sends one that is dropped on its way out is told.
    let rule = [&["-w", "-A", "INPUT"], which, &["-j", "DROP"]].concat();
    assert!(run("iptables", &rule), "iptables {rule:?}");
}

fn run(tool: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(tool);
    let quiet = command.args(arguments).stdout(Stdio::null());
    let status = quiet.stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
