//! Headwater: RTMP in, WebRTC out. Reads the command line and runs what it asks for.

mod cli;
mod probe;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
