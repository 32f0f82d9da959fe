//! What all ffmpeg children have in common: what they say, and how they ended.

use std::io;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use headwater_node::clock::Clock;
use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;
use tracing::debug;

/// What is kept of a child's last words (bytes).
const KEPT_BYTES: usize = 512;

/// Lines that are handed on in [`LOG_INTERVAL`] (count); the rest is read and dropped.
const LINES_LOGGED: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Reads what a child says until it says no more, and returns the last line that is `severe`: what it died of, perhaps. `log` gets only
/// some of those, so that a child that complains about every picture doesn't fill the log; the others go to the log for debugging.
pub(crate) async fn read_stderr(
    mut stderr: ChildStderr,
    clock: &Clock,
    severe: impl Fn(&str) -> bool,
    log: impl Fn(&str),
) -> String {
    let mut buffer = [0; KEPT_BYTES];
    let mut line = Vec::new();
    let mut last = String::new();
    let (mut since, mut logged) = (clock.now(), 0);
    loop {
        // Whatever the error is, nothing more comes.
        let count = stderr.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return last;
        }
        for byte in buffer.iter().take(count) {
            if *byte != b'\n' {
                if line.len() < KEPT_BYTES {
                    line.push(*byte);
                }
                continue;
            }
            let said = String::from_utf8_lossy(&line).trim().to_owned();
            line.clear();
            if !severe(&said) {
                debug!(message = said, "ffmpeg says");
                continue;
            }
            let now = clock.now();
            if now.saturating_duration_since(since) >= LOG_INTERVAL {
                (since, logged) = (now, 0);
            }
            if logged < LINES_LOGGED {
                logged += 1;
                log(&said);
            }
            last = said;
        }
    }
}

/// Says how a child ended.
pub(crate) fn describe_end(status: io::Result<ExitStatus>, last_words: &str) -> String {
    let status = match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    if last_words.is_empty() {
        format!("it ended ({status})")
    } else {
        format!("it ended ({status}): {last_words}")
    }
}

/// Says why ffmpeg can't be run, and whether that is because it isn't there.
pub(crate) fn describe_missing(ffmpeg: &Path, error: &io::Error) -> (bool, String) {
    let missing = matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
    );
    (missing, format!("can't run {}: {error}", ffmpeg.display()))
}
