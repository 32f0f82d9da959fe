//! Headwater: RTMP in, WebRTC out. Reads the command line and runs what it asks for.

mod cli;
mod probe;

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives back what viewers who left had, within seconds: the system's allocator keeps it for ever in fragments.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
