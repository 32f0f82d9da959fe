//! `headwater lab`: how viewers' renditions are chosen over links that behave badly, against other ways to choose; and how a large fleet
//! of edges feeds itself.

use std::io::Write;
use std::process::ExitCode;

use headwater_media::lab;
use headwater_node::clock::Clock;

/// Flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Prints JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Simulates a fleet instead: 2,000 edges that feed each other, 2 million viewers at once, nodes that fail
    #[arg(long)]
    fleet: bool,
    /// What chance does on the links: the same number gives the same result
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.fleet {
        let report = lab::fleet::run_all(args.seed);
        return print(args.json, &report, &report.to_string());
    }
    // Any moment will do: the lab's time is its own.
    let report = lab::run_all(args.seed, Clock::system().now());
    print(args.json, &report, &report.markdown())
}

fn print(json: bool, report: &impl serde::Serialize, table: &str) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        writeln!(out)?;
    } else {
        out.write_all(table.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
