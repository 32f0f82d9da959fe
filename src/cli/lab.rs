//! `headwater lab`: how viewers' renditions are chosen over links that behave badly, against other ways to choose.

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
    /// What chance does on the links: the same number gives the same result
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs it.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    // Any moment will do: the lab's time is its own.
    let report = lab::run_all(args.seed, Clock::system().now());
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(report.markdown().as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}
