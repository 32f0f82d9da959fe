//! The command line: which role runs, with which settings.
//!
//! | module | what it does |
//! |---|---|
//! | [`args`] | flags, and the configuration keys they set |
//! | [`settings`] | the configuration's schema and what must hold across its sections |
//! | [`lab`] | simulates viewers on bad links |
//! | [`addresses`] | the machine's own addresses |
//! | [`run`] | starts the roles, waits for the signal, stops them |
//! | [`summary`] | what the operator is told once it runs |

mod addresses;
mod args;
mod discover;
mod lab;
mod run;
mod settings;
mod summary;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use headwater_node::config::{self, Layers};

use args::{Args, Command, Role};
use settings::Settings;

/// The binary's version, with the commit it was built from.
pub(crate) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("HEADWATER_BUILD_COMMIT"),
    ")"
);

/// The commit alone.
pub(crate) const COMMIT: &str = env!("HEADWATER_BUILD_COMMIT");

/// The exit code of a command line that makes no sense (`EX_USAGE` of sysexits.h): clap's own, 2, is what `headwater probe` says of a stream
/// that can't be joined.
const USAGE: u8 = 64;

/// Does what the command line asks for.
pub(crate) fn main() -> ExitCode {
    // Whoever does TLS first would choose a provider otherwise; it fails only if one is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(told) => {
            // Nothing is left to tell it to if that fails.
            let _ = told.print();
            return if told.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let done = match args.command {
        None => node(
            Role::Standalone,
            &args.standalone.shared,
            args.standalone.overrides(),
        ),
        Some(Command::Standalone(flags)) => {
            node(Role::Standalone, &flags.shared, flags.overrides())
        }
        Some(Command::Origin(flags)) => node(Role::Origin, &flags.shared, flags.overrides()),
        Some(Command::Edge(flags)) => node(Role::Edge, &flags.shared, flags.overrides()),
        Some(Command::Probe(probe)) => run::probe(probe),
        Some(Command::Lab(flags)) => lab::run(&flags),
    };
    done.unwrap_or_else(|error| {
        let _ = writeln!(std::io::stderr(), "headwater: {}", told(&error));
        ExitCode::FAILURE
    })
}

/// An error with its causes, each said once: some errors word their source themselves.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

fn node(
    role: Role,
    shared: &args::Shared,
    flags: Vec<config::Override>,
) -> anyhow::Result<ExitCode> {
    let layers = Layers {
        base: role.defaults(),
        file: shared.config.clone(),
        env: config::process_env(),
        flags,
    };
    let settings: Settings = config::load(&layers)?;
    let settings = settings.checked(role)?;
    if shared.check_config {
        if let Some(tls) = settings.directory.tls() {
            run::read(&tls)?;
        }
        let mut out = std::io::stdout();
        writeln!(out, "the configuration is valid for: {role}")?;
        return Ok(ExitCode::SUCCESS);
    }
    run::role(role, settings)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::told;

    #[test]
    fn causes_are_told_once() {
        let taken = || anyhow::anyhow!("address in use");
        let worded = Err::<(), _>(taken()).context("can't listen: address in use");
        let plain = Err::<(), _>(taken()).context("can't listen");
        for result in [worded, plain] {
            let error = result.expect_err("an error");
            assert_eq!(told(&error), "can't listen: address in use");
        }
    }
}
