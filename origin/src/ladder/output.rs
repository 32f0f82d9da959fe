//! What a [`Supervisor`](super::supervisor::Supervisor) tells its shell.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use headwater_media::codec::h264;
use headwater_media::unit::RenditionUnit;

use crate::ladder::rungs::Rung;

/// Why a child ended, or did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// ffmpeg can't be run.
    Missing,
    /// This origin makes as many ladders as it may.
    Busy,
    /// It ended.
    Exited,
    /// It yielded nothing.
    Stuck,
    /// What it yielded is no FLV.
    Garbled,
}

impl Failure {
    /// As a label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Missing => "ffmpeg_missing",
            Self::Busy => "busy",
            Self::Exited => "exited",
            Self::Stuck => "stuck",
            Self::Garbled => "garbled",
        }
    }
}

/// Why pictures were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// On their way to the child's owner.
    Mailbox,
    /// The child lags: they aren't fed.
    Slow,
    /// The child lags: they came too late.
    Late,
    /// On their way to the stream.
    Refused,
    /// They belong to no picture that was fed.
    Untimed,
}

impl Dropped {
    /// As a label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Mailbox => "mailbox",
            Self::Slow => "slow",
            Self::Late => "late",
            Self::Refused => "refused",
            Self::Untimed => "untimed",
        }
    }
}

/// How a ladder is, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It makes renditions.
    Running,
    /// It waits for the source's keyframe and rates.
    Starting,
    /// There is nothing to make of this source.
    Nothing,
    /// Its child failed and is started again in a while.
    Failing,
    /// This origin makes as many ladders as it may.
    Waiting,
}

impl State {
    /// As the API has it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Nothing => "nothing_to_make",
            Self::Failing => "failing",
            Self::Waiting => "waiting",
        }
    }
}

/// A ladder for the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) rungs: Vec<Rung>,
    /// Failures since the ladder began (count).
    pub(crate) failures: u64,
    pub(crate) last_error: Option<Arc<str>>,
    /// Pictures of source and rungs (count).
    pub(crate) dropped: u64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Output {
    /// Start a child; it replaces the one before it.
    Start {
        generation: u64,
        arguments: Vec<String>,
        /// Pipes it writes to (count).
        outputs: usize,
        /// After a failure.
        again: bool,
    },
    /// Write this to the child's standard input.
    Feed(Bytes),
    /// End the child.
    Stop,
    /// There is such a rendition from now on, coded like this.
    Configured {
        rendition: Arc<str>,
        configuration: h264::Configuration,
    },
    /// The next picture of a rendition.
    Unit {
        rendition: Arc<str>,
        unit: RenditionUnit,
        /// From feeding its source until now; none for what is older.
        lag: Option<Duration>,
    },
    /// A rendition has a gap here, and goes on at a keyframe.
    Lost { rendition: Arc<str> },
    /// A rendition is made no longer.
    Removed { rendition: Arc<str> },
    /// Count a failure.
    Failed { failure: Failure, error: Arc<str> },
    /// Count pictures that were dropped.
    Dropped { reason: Dropped, units: u64 },
    /// Nobody wants the ladder any more: end it.
    Done,
}
