//! One ffmpeg child that decodes AAC: FLV in on its standard input, 48 kHz stereo samples out on its standard output.
//!
//! Raw samples rather than Ogg/Opus, because they keep the count: `aresample` places each decoded frame where its FLV
//! time says, to the sample, filling with silence what could not be decoded, so the n-th sample out is the n-th that the
//! timeline fed; and Opus is made by the same encoder as for every other stream. What it costs is a pipe of 384 kB/s.
//!
//! The child ends with its parent in any case: when the handle is dropped it is killed, and when this process is, its
//! standard input ends. It has a process group of its own, so that a Ctrl-C meant for us doesn't end it before us.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use headwater_node::clock::Clock;

use crate::audio::pipeline::FailureKind;
use crate::ffmpeg::{describe_end, describe_missing, read_stderr};

/// FLV tags that may wait for the child to read them (count), about 5 s.
const QUEUE_TAGS: usize = 256;

/// Samples are read in pieces of at most so much (bytes), 43 ms.
const READ_BYTES: usize = 16 * 1024;

/// `-probesize 32 -analyzeduration 0`: the first sample comes after 60 ms and the rest within a millisecond of their
/// tag; with ffmpeg's defaults it is 5 s. `min_hard_comp` below a frame's length: one undecodable frame is filled. No
/// `async` above 1, which would bend the sound to follow the millisecond rounding.
const ARGUMENTS: &str = "-hide_banner -nostats -nostdin -loglevel warning -threads 1 \
    -probesize 32 -analyzeduration 0 -f flv -i pipe:0 -map 0:a:0 \
    -af aresample=48000:async=1:min_hard_comp=0.015:first_pts=0 \
    -ac 2 -c:a pcm_f32le -f f32le -flush_packets 1 pipe:1";

/// Who is told about a child.
pub(crate) trait Owner: Send + Sync + 'static {
    /// Samples; see [`crate::audio::pipeline::Pipeline::handle_pcm`]. Waits while too much waits already; false: nobody
    /// wants them any more.
    fn pcm(&self, generation: u64, bytes: Bytes) -> impl Future<Output = bool> + Send;

    /// It has ended or could not be started. The last call.
    fn ended(&self, generation: u64, kind: FailureKind, reason: String);
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    input: mpsc::Sender<Bytes>,
    supervisor: JoinHandle<()>,
}

impl Child {
    /// Starts `ffmpeg` and writes `header` to it.
    pub(crate) fn spawn(
        runtime: &Handle,
        ffmpeg: PathBuf,
        generation: u64,
        header: Bytes,
        owner: impl Owner,
    ) -> Self {
        let (input, tags) = mpsc::channel(QUEUE_TAGS);
        let supervisor = runtime.spawn(async move {
            let (kind, reason) = run(ffmpeg, generation, header, tags, &owner).await;
            owner.ended(generation, kind, reason);
        });
        Self { input, supervisor }
    }

    /// Queues a tag; false if it had to be dropped.
    pub(crate) fn feed(&self, tag: Bytes) -> bool {
        self.input.try_send(tag).is_ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

async fn run(
    ffmpeg: PathBuf,
    generation: u64,
    header: Bytes,
    tags: mpsc::Receiver<Bytes>,
    owner: &impl Owner,
) -> (FailureKind, String) {
    let spawned = Command::new(&ffmpeg)
        .args(ARGUMENTS.split_ascii_whitespace())
        .env("AV_LOG_FORCE_NOCOLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let (missing, reason) = describe_missing(&ffmpeg, &error);
            return if missing {
                (FailureKind::FfmpegMissing, reason)
            } else {
                (FailureKind::FfmpegEnded, reason)
            };
        }
    };
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return (FailureKind::FfmpegEnded, "ffmpeg has no pipes".to_owned());
    };
    debug!(pid = child.id(), generation, "ffmpeg started");
    let clock = Clock::system();
    // Writing ends with the owner or with a pipe that nobody reads; reading ends with the child. Only the latter counts.
    let reading = async {
        tokio::join!(
            read_samples(stdout, generation, owner),
            read_stderr(
                stderr,
                &clock,
                |_| true,
                |message| debug!(generation, message, "ffmpeg says"),
            )
        )
    };
    let writing = async {
        if let Err(error) = write_tags(stdin, header, tags).await {
            debug!(%error, generation, "ffmpeg doesn't read");
        }
        std::future::pending::<()>().await;
    };
    let last_words = tokio::select! {
        ((), last_words) = reading => last_words,
        () = writing => String::new(),
    };
    let status = child.wait().await;
    (FailureKind::FfmpegEnded, describe_end(status, &last_words))
}

async fn write_tags(
    mut stdin: ChildStdin,
    header: Bytes,
    mut tags: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    stdin.write_all(&header).await?;
    while let Some(tag) = tags.recv().await {
        stdin.write_all(&tag).await?;
    }
    Ok(())
}

async fn read_samples(mut stdout: ChildStdout, generation: u64, owner: &impl Owner) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        match stdout.read_buf(&mut buffer).await {
            Ok(0) => return,
            Ok(_) => {
                if !owner.pcm(generation, buffer.split().freeze()).await {
                    return;
                }
            }
            Err(error) => {
                warn!(%error, generation, "reading from ffmpeg");
                return;
            }
        }
    }
}
