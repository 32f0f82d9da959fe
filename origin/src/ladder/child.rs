//! One ffmpeg child: the source on its standard input, a rendition on each of its further pipes.
//!
//! Its tasks run on the I/O runtime. What it yields goes through a bounded channel to the [`LadderActor`](super::actor::LadderActor); while that is
//! full its pipes aren't read, so the child waits, and its owner sees it lag. The child ends with its parent in any case: when the handle is
//! dropped it is killed, and when this process is, its standard input ends. It has a process group of its own, so that a Ctrl-C meant for us
//! doesn't end it before us, and a lower priority than the media that passes through here.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use command_fds::{CommandFdExt, FdMapping};
use futures_util::future::join_all;
use headwater_media::codec::h264;
use headwater_media::flv::TagKind;
use headwater_media::flv::demux::{self, Demuxer};
use headwater_media::flv::reader::Reader;
use headwater_media::time::WallTime;
use headwater_media::track::Configuration;
use headwater_media::unit::IngestUnit;
use headwater_node::clock::Clock;
use metrics::gauge;
use rustix::process::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{ChildStdin, Command};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::ffmpeg::{describe_end, describe_missing, read_stderr};
use crate::ladder::arguments::FIRST_OUTPUT;
use crate::ladder::output::Failure;
use crate::metrics::LADDER_CHILDREN;

/// Tags that may wait for the child to read them (count): the GOP it begins with, and what comes while it works on that. What they hold is
/// bounded by [`super::run`].
const QUEUE_TAGS: usize = 2048;

/// A rung's output is read in pieces of at most so much (bytes).
const READ_BYTES: usize = 64 * 1024;

/// The longest picture that a rung may have (bytes).
const PICTURE_BYTES_MAX: usize = 8 << 20;

/// How much lower than ours the child's priority is: encoding waits for sockets, not the other way round.
const NICE: i32 = 5;

/// How ffmpeg marks what a person should see, told to do so by `-loglevel level+…`. It warns of much that is well.
const SEVERE: [&str; 3] = ["[error]", "[fatal]", "[panic]"];

/// What a child tells its owner.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) generation: u64,
    pub(crate) event: Event,
}

/// See [`Report`].
#[derive(Debug)]
pub(crate) enum Event {
    /// How a rung is coded.
    Configured {
        rung: usize,
        configuration: h264::Configuration,
    },
    /// The next picture of a rung, in the child's time.
    Picture { rung: usize, picture: IngestUnit },
    /// It has ended or could not be started. The last report.
    Ended { failure: Failure, error: String },
}

/// How to start a child.
pub(crate) struct Order {
    pub(crate) ffmpeg: PathBuf,
    pub(crate) generation: u64,
    pub(crate) arguments: Vec<String>,
    /// Pipes it writes to (count).
    pub(crate) outputs: usize,
}

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Child {
    input: mpsc::Sender<Bytes>,
    task: JoinHandle<()>,
}

impl Child {
    /// Starts `order` and tells `reports` about it.
    pub(crate) fn spawn(
        runtime: &Handle,
        clock: Clock,
        order: Order,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let (input, tags) = mpsc::channel(QUEUE_TAGS);
        let task = runtime.spawn(async move {
            let generation = order.generation;
            let (failure, error) = run(order, &clock, tags, &reports).await;
            let event = Event::Ended { failure, error };
            // An owner that has gone needs no word.
            let _ = reports.send(Report { generation, event }).await;
        });
        Self { input, task }
    }

    /// Queues what is to be written to it; false if there is no room.
    pub(crate) fn feed(&self, tag: Bytes) -> bool {
        self.input.try_send(tag).is_ok()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Keeps the gauge of children right, however one ends.
struct Running;

impl Running {
    fn new() -> Self {
        gauge!(LADDER_CHILDREN).increment(1.0);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        gauge!(LADDER_CHILDREN).decrement(1.0);
    }
}

async fn run(
    order: Order,
    clock: &Clock,
    tags: mpsc::Receiver<Bytes>,
    reports: &mpsc::Sender<Report>,
) -> (Failure, String) {
    let (mut child, pipes) = match start(&order) {
        Ok(started) => started,
        Err(error) => {
            let (missing, reason) = describe_missing(&order.ffmpeg, &error);
            let failure = if missing {
                Failure::Missing
            } else {
                Failure::Exited
            };
            return (failure, reason);
        }
    };
    let generation = order.generation;
    let _running = Running::new();
    debug!(pid = child.id(), generation, "ffmpeg started");
    lower_priority(&child);
    let (Some(stdin), Some(stderr)) = (child.stdin.take(), child.stderr.take()) else {
        return (Failure::Exited, "ffmpeg has no pipes".to_owned());
    };
    let readers = pipes
        .into_iter()
        .enumerate()
        .map(|(rung, pipe)| read_rung(pipe, generation, rung, reports));
    let reading = async {
        tokio::join!(
            join_all(readers),
            read_stderr(
                stderr,
                clock,
                |message| SEVERE.iter().any(|level| message.contains(level)),
                |message| warn!(generation, message, "ffmpeg says"),
            )
        )
    };
    // Writing ends with the owner or with a pipe that nobody reads; reading ends with the child. Only the latter counts.
    let writing = async {
        if let Err(error) = write_tags(stdin, tags).await {
            debug!(%error, generation, "ffmpeg doesn't read");
        }
        std::future::pending::<()>().await;
    };
    let (ends, last_words) = tokio::select! {
        ends = reading => ends,
        () = writing => (Vec::new(), String::new()),
    };
    if let Some(error) = ends.into_iter().find_map(Result::err) {
        return (Failure::Garbled, error);
    }
    let status = child.wait().await;
    (Failure::Exited, describe_end(status, &last_words))
}

/// Starts ffmpeg with a pipe per rung, of which we keep the reading ends.
fn start(order: &Order) -> io::Result<(tokio::process::Child, Vec<pipe::Receiver>)> {
    let mut pipes = Vec::new();
    let mut mappings = Vec::new();
    for (child_fd, _) in (FIRST_OUTPUT..).zip(0..order.outputs) {
        let (reader, writer) = io::pipe()?;
        pipes.push(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        mappings.push(FdMapping {
            parent_fd: writer.into(),
            child_fd,
        });
    }
    // The command owns the writing ends and ends here with them, so that the readers see the child's end.
    let mut command = Command::new(&order.ffmpeg);
    command
        .args(&order.arguments)
        .env("AV_LOG_FORCE_NOCOLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .fd_mappings(mappings)
        .map_err(io::Error::other)?;
    Ok((command.spawn()?, pipes))
}

/// Before it has anything to work on, so that its threads inherit it.
fn lower_priority(child: &tokio::process::Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // Where that is not allowed it has our priority.
        let ours = rustix::process::getpriority_process(None).unwrap_or(0);
        let _ = rustix::process::setpriority_process(Some(pid), ours + NICE);
    }
}

async fn write_tags(mut stdin: ChildStdin, mut tags: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(tag) = tags.recv().await {
        stdin.write_all(&tag).await?;
    }
    Ok(())
}

/// Reads one rung until its pipe ends or nobody wants it.
async fn read_rung(
    mut pipe: pipe::Receiver,
    generation: u64,
    rung: usize,
    reports: &mpsc::Sender<Report>,
) -> Result<(), String> {
    let mut reader = Reader::new(PICTURE_BYTES_MAX);
    let mut demuxer = Demuxer::new();
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.clear();
        buffer.reserve(READ_BYTES);
        match pipe.read_buf(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(_) => reader.handle_input(&buffer),
            Err(error) => return Err(format!("reading from it: {error}")),
        }
        while let Some(tag) = reader.poll_tag().map_err(|error| error.to_string())? {
            if tag.kind == TagKind::Video {
                demuxer.handle_video(i64::from(tag.millis), WallTime::default(), tag.body);
            }
            while let Some(output) = demuxer.poll_output() {
                let event = match output {
                    demux::Output::Configuration(_, Configuration::H264(configuration)) => {
                        Event::Configured {
                            rung,
                            configuration,
                        }
                    }
                    demux::Output::Unit(picture) => Event::Picture { rung, picture },
                    demux::Output::Configuration(..) | demux::Output::End(_) => continue,
                    demux::Output::Skipped(_, reason) => return Err(reason.to_string()),
                };
                if reports.send(Report { generation, event }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}
