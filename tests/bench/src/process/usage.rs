//! What processes and the machine use, from /proc.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// What a process used so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// CPU time of all its threads, by the scheduler's clock, in nanoseconds: the ticks of /proc/PID/stat are too coarse.
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
}

impl Usage {
    /// Of a process that runs.
    pub(crate) fn of(process: u32) -> Result<Self> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            // A thread may end while we look.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else {
                continue;
            };
            nanoseconds += first_number(&text).context("schedstat")?;
        }
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(first_number)
            .context("VmRSS")?;
        Ok(Self {
            cpu: Duration::from_nanos(nanoseconds),
            resident_bytes: resident * 1024,
        })
    }
}

/// What the machine did so far.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// CPU time of all cores that was not idle.
    pub(crate) busy: Duration,
    /// Datagrams dropped because a socket's receive buffer was full.
    pub(crate) udp_dropped: u64,
}

impl Machine {
    /// Now.
    pub(crate) fn read() -> Result<Self> {
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
        let stat = fs::read_to_string("/proc/stat")?;
        let ticks: u64 = stat
            .lines()
            .find_map(|line| line.strip_prefix("cpu "))
            .map(busy_ticks)
            .context("/proc/stat")?;
        let snmp = fs::read_to_string("/proc/net/snmp")?;
        Ok(Self {
            busy: Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64),
            udp_dropped: udp_dropped(&snmp).unwrap_or(0),
        })
    }
}

/// What kind of machine it is.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Facts {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) memory_mb: u64,
}

impl Facts {
    /// Of this machine.
    pub(crate) fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |line: &str| {
            Some(
                line.strip_prefix("model name")?
                    .split_once(':')?
                    .1
                    .trim()
                    .to_owned(),
            )
        };
        let memory = read("/proc/meminfo");
        let memory = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"));
        Self {
            cpu: cpuinfo
                .lines()
                .find_map(field)
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count()
                .max(1),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_mb: memory.and_then(first_number).unwrap_or(0) / 1024,
        }
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Everything but idle, iowait and what guests count twice (proc(5)); steal is nobody's work here.
fn busy_ticks(fields: &str) -> u64 {
    let numbers: Vec<u64> = fields
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    [0, 1, 2, 5, 6].iter().filter_map(|i| numbers.get(*i)).sum()
}

fn udp_dropped(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split(' ').position(|name| name == "RcvbufErrors")?;
    values.split(' ').nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_usage_is_seen_to_rise() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut work = 1_u64;
        let cpu = loop {
            for i in 0..1_000_000_u64 {
                work = std::hint::black_box(work.wrapping_mul(i | 1));
            }
            let now = Usage::of(std::process::id()).unwrap();
            if now.cpu > before.cpu {
                break now.cpu - before.cpu;
            }
        };
        assert!(cpu > Duration::ZERO && before.resident_bytes > 100_000);
        assert!(Machine::read().unwrap().busy > Duration::ZERO);
        assert!(Facts::read().cores > 0);
    }

    #[test]
    fn the_kernel_tables_are_read_by_name() {
        assert_eq!(busy_ticks(" 10 1 20 999 5 3 2 50 0 0"), 36);
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 5 6 7\n";
        assert_eq!(udp_dropped(snmp), Some(7));
        assert_eq!(udp_dropped("Udp: X\n"), None);
    }
}
