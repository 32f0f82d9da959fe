//! `headwater-bench`: how much an edge costs, against the floor, on this machine.
//!
//! | module | what it does |
//! |---|---|
//! | `stages` | what is measured, in order |
//! | `cluster`, `process` | the origin, the edge and the publisher; child processes, their cores and their CPU |
//! | `load` | many viewers on one thread |
//! | `floor`, `sinks` | the least that sending can cost, and who takes it |
//! | `report`, `stats` | table, JSON, what must be reached |
//! | `publish` | a publisher by hand, of one track or several |

#![expect(clippy::print_stdout, reason = "the table is what the command is for")]

mod cluster;
mod floor;
mod load;
mod process;
mod publish;
mod report;
mod sinks;
mod stages;
mod stats;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use headwater_bench::time::now;

use crate::cluster::Place;
use crate::process::usage::Facts;
use crate::report::Report;
use crate::stages::{Options, Part, Run};

/// Measures an edge of Headwater against the floor: what encrypting and sending the same packets costs when nothing else is done.
///
/// Starts an origin, an edge, a publisher and up to thousands of viewers on this machine, tells what it measures as it goes, and prints a
/// table. Server and load get a core each; nothing else should run meanwhile. CPU is that of all the edge's threads, and on loopback it
/// includes the kernel's delivery to the viewers' sockets, for the floor too.
#[derive(Debug, Parser)]
#[command(
    name = "headwater-bench",
    version,
    args_conflicts_with_subcommands = true
)]
struct Arguments {
    #[command(subcommand)]
    inner: Option<Inner>,

    /// The server to measure.
    #[arg(long, default_value = "target/debug/headwater")]
    binary: PathBuf,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// For the clip and the logs of the servers.
    #[arg(long, default_value = "target/bench")]
    directory: PathBuf,
    /// Measure only these, separated by commas.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Viewers of fan-out, pacing and shards.
    #[arg(long, default_value_t = 500)]
    viewers: usize,
    /// Viewers at which the search for the capacity ends.
    #[arg(long, default_value_t = 4000)]
    viewers_max: usize,
    /// Seconds that each figure is measured.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    seconds: u64,
    /// The core of the edge and of the floor.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of everything else. Default: the next one.
    #[arg(long)]
    load_core: Option<usize>,
    /// Fail, with exit code 1, when a figure is missed that must be reached.
    #[arg(long)]
    check: bool,
}

/// What else the bench does, and what it starts itself as.
#[derive(Debug, Subcommand)]
enum Inner {
    /// Publishes FLV files, the second and further ones as tracks of the same stream (Enhanced RTMP v2, multitrack), in real time.
    Publish(publish::Arguments),
    /// The floor program; reads its task from its input.
    #[command(hide = true)]
    Floor,
    /// Becomes another program, on some cores, for as long as the parent lives.
    #[command(hide = true)]
    Become {
        parent: u32,
        #[arg(value_delimiter = ',')]
        cores: Vec<usize>,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let check = arguments.check;
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) if !check => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("headwater-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether all figures are reached.
fn run(arguments: Arguments) -> Result<bool> {
    match arguments.inner {
        None => {}
        Some(Inner::Publish(arguments)) => {
            publish::run(&arguments)?;
            return Ok(true);
        }
        Some(Inner::Floor) => {
            let mut task = String::new();
            std::io::stdin().read_to_string(&mut task)?;
            floor::run(&serde_json::from_str(&task)?)?;
            return Ok(true);
        }
        Some(Inner::Become {
            parent,
            cores,
            command,
        }) => {
            process::become_child(parent, &cores, &command)?;
            return Ok(true);
        }
    }
    let started = now();
    let machine = Facts::read();
    let server_core = arguments.server_core;
    let load_core = arguments
        .load_core
        .unwrap_or((server_core + 1) % machine.cores);
    let mut remarks = Vec::new();
    if load_core == server_core {
        remarks.push(
            "Server and load share a core: CPU per packet means something, latency and capacity don't.".to_owned(),
        );
    }
    let binary = arguments.binary.canonicalize().with_context(|| {
        format!(
            "{} isn't there; `make build` makes it",
            arguments.binary.display()
        )
    })?;
    std::fs::create_dir_all(&arguments.directory)?;
    let mut report = Report {
        version: version(&binary)?,
        machine,
        server_core,
        load_core,
        seconds: 0.0,
        figures: Vec::new(),
        stages: Vec::new(),
        remarks,
    };
    process::pin(&[load_core])?;
    let place = Place {
        binary,
        directory: arguments.directory,
        server_core,
        load_core,
    };
    let parts = match arguments.only.as_slice() {
        [] => vec![
            Part::Latency,
            Part::Joins,
            Part::Fanout,
            Part::Paced,
            Part::Capacity,
            Part::Shards,
        ],
        some => some.to_vec(),
    };
    let options = Options {
        parts,
        viewers: arguments.viewers.max(1),
        viewers_max: arguments.viewers_max,
        // Half a frame longer, so that a frame more or less doesn't look like a lower frame rate.
        window: Duration::from_millis(arguments.seconds * 1000 + 17),
    };
    Run::new(&place, &options, &mut report)?.run()?;
    report.seconds = started.elapsed().as_secs_f64().round();
    let json = serde_json::to_string_pretty(&report)?;
    std::fs::write(&arguments.json, json + "\n")
        .with_context(|| format!("writing {}", arguments.json.display()))?;
    println!("\n{}", report.table());
    eprintln!("details: {}", arguments.json.display());
    Ok(report.reached())
}

/// What the binary says of itself: version and commit.
fn version(binary: &Path) -> Result<String> {
    let output = Command::new(binary).arg("--version").output()?;
    ensure!(
        output.status.success(),
        "{} --version fails",
        binary.display()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
