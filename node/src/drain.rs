//! Stopping: signals become a cancelled token, and what follows has a deadline.

use std::future::Future;
use std::time::Duration;

use metrics::gauge;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::telemetry::DRAINING;

/// Cancels `shutdown` on the first SIGTERM or SIGINT and ends the process on the second.
///
/// Must be called within a tokio runtime; the task ends with the process.
///
/// # Errors
/// If the system refuses the signal handlers.
pub fn on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        let draining = gauge!(DRAINING);
        draining.set(0.0);
        asked.cancelled().await;
        draining.set(1.0);
    });
    tokio::spawn(async move {
        let mut next = async move || {
            tokio::select! {
                _ = terminate.recv() => ("SIGTERM", 143),
                _ = interrupt.recv() => ("SIGINT", 130),
            }
        };
        let (name, _) = next().await;
        info!(
            signal = name,
            "stopping; a second signal ends the process at once"
        );
        shutdown.cancel();
        let (name, code) = next().await;
        warn!(signal = name, "second signal: ending at once");
        // The shell's convention: 128 + the signal's number.
        std::process::exit(code);
    });
    Ok(())
}

/// Runs one step of stopping for at most `deadline`; false if it did not end in time.
pub async fn within(
    deadline: Duration,
    what: &'static str,
    step: impl Future<Output = ()>,
) -> bool {
    let done = tokio::time::timeout(deadline, step).await.is_ok();
    if !done {
        warn!(
            what,
            deadline_seconds = deadline.as_secs_f64(),
            "did not stop in time; going on without it"
        );
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_that_hangs_is_left_behind() {
        assert!(within(Duration::from_secs(20), "quick", async {}).await);
        assert!(!within(Duration::from_millis(20), "hung", std::future::pending()).await);
    }

    #[tokio::test]
    async fn the_first_signal_cancels() {
        let shutdown = CancellationToken::new();
        on_signals(shutdown.clone()).expect("handlers");
        let own = nix::unistd::Pid::this();
        nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGTERM).expect("signal");
        shutdown.cancelled().await;
    }
}
