//! One stream's transcode as a pure core: which decoder to use, what follows from its failures, and the way of the
//! samples through decoder, resampler, framer and encoder.
//!
//! The shell ([`super::transcoder`]) feeds the `handle_*` methods and then drains [`Pipeline::poll_output`]. The core
//! starts no process and reads no clock; an ffmpeg child is wished for with [`Output::StartChild`].
//!
//! Both ways keep the count of samples exact. In this process, a frame that can't be decoded becomes silence of its
//! length. The child gets FLV tags stamped with the count, and fills with silence what it could not decode, so that the
//! n-th sample it yields is the n-th that was fed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use headwater_media::codec::{aac, opus};
use headwater_media::unit::AccessUnit;
use headwater_node::backoff::Backoff;

use crate::audio::Event;
use crate::audio::config::Config;
use crate::audio::decoder::{self, Decoder};
use crate::audio::encoder::Encoder;
use crate::audio::flv;
use crate::audio::framer::Framer;
use crate::audio::resampler::Resampler;
use crate::audio::sbr;
use crate::audio::timeline::{Continuity, Timeline, Unit};

/// So many frames in a row that can't be decoded end the decoder (count, about 2 s).
const UNDECODABLE_MAX: u32 = 100;

/// A source of which not even one of the first frames could be decoded goes to ffmpeg, which knows more of AAC: program
/// configurations, coupling channels (count).
const UNDECODABLE_AT_START_MAX: u32 = 10;

/// A child that has not returned so much of what it was fed is stuck (samples at 48 kHz, 10 s).
const CHILD_PENDING_MAX: u64 = 480_000;

/// FLV's millisecond field is 32 bits, so a child is replaced in time (24 days).
const CHILD_MILLIS_MAX: u64 = 1 << 31;

/// First and longest wait before a failed decoder is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// Who decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// This process.
    InProcess,
    /// An ffmpeg child.
    Ffmpeg,
}

/// Why a decoder ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// Too many frames could not be decoded.
    Undecodable,
    /// Something panicked.
    Panic,
    /// libopus or the resampler refused.
    Codec,
    /// There is no ffmpeg where the configuration says.
    FfmpegMissing,
    /// ffmpeg ended by itself.
    FfmpegEnded,
    /// ffmpeg doesn't return what it is fed.
    FfmpegStuck,
}

/// What is worth counting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// A frame could not be decoded and became silence.
    FrameLost,
    /// Frames came while there was no decoder: it waits to be started again.
    Waiting,
    /// The time of a unit was far from the count, and the count began anew.
    Anchored,
    /// A decoder failed; it starts again after a wait unless `given_up`.
    Failed {
        kind: FailureKind,
        path: Path,
        reason: Arc<str>,
        given_up: bool,
    },
    /// A decoder was started again after a failure.
    Restarted(Path),
    /// The frames show HE-AAC that the configuration didn't tell.
    HeAacFound,
}

/// What the shell is to do.
#[derive(Debug)]
pub(crate) enum Output {
    /// Tell the owner.
    Event(Event),
    /// Start an ffmpeg, after ending the one before, and write `header` to it.
    StartChild { generation: u64, header: Bytes },
    /// Write this to it. If its queue is full, drop it: the next tag's time says what is missing.
    FeedChild(Bytes),
    /// End it.
    StopChild,
    /// Count and log.
    Note(Note),
}

/// Who decodes at the moment.
#[derive(Debug)]
enum Backend {
    InProcess {
        decoder: Box<Decoder>,
        resampler: Box<Resampler>,
        /// Frames in a row that could not be decoded.
        undecodable: u32,
        /// A frame has been decoded.
        proven: bool,
    },
    Child {
        generation: u64,
        /// The timeline's position of the child's first sample.
        start: u64,
        /// The first bytes of a sample whose rest hasn't come.
        partial: Vec<u8>,
    },
    /// Until then, frames are lost.
    Waiting { until: Instant },
    /// Given up.
    Ended,
}

/// The core. After every `handle_*`, drain [`Self::poll_output`].
#[derive(Debug)]
pub(crate) struct Pipeline {
    config: Config,
    source: aac::Configuration,
    /// What the frames showed, beyond `source`.
    needs_ffmpeg: bool,
    backend: Backend,
    encoder: Option<Encoder>,
    framer: Framer,
    timeline: Timeline,
    watch: sbr::Watch,
    /// The last unit's epoch and sequence.
    last: Option<(u64, u64)>,
    /// Times of failures within the window.
    failures: VecDeque<Instant>,
    backoff: Backoff,
    generation: u64,
    outputs: VecDeque<Output>,
}

impl Pipeline {
    /// A transcode of `source`; nothing is started before the first unit.
    pub(crate) fn new(now: Instant, config: Config, source: aac::Configuration) -> Self {
        let mut pipeline = Self {
            backend: Backend::Waiting { until: now },
            encoder: None,
            framer: Framer::new(channels_of(&source)),
            timeline: Timeline::new(source.sample_rate_hz),
            watch: sbr::Watch::default(),
            needs_ffmpeg: false,
            last: None,
            failures: VecDeque::new(),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            generation: 0,
            outputs: VecDeque::new(),
            config,
            source,
        };
        pipeline.begin(now);
        pipeline
    }

    /// One AAC access unit.
    pub(crate) fn handle_unit(&mut self, now: Instant, unit: &AccessUnit) {
        if let Backend::Waiting { until } = self.backend {
            if now < until {
                self.note(Note::Waiting);
                self.last = None;
                return;
            }
            self.note(Note::Restarted(self.path()));
            self.start(now);
        }
        if matches!(self.backend, Backend::Ended) {
            return;
        }
        if self.path() == Path::InProcess && self.watch.handle_frame(&unit.payload) {
            self.note(Note::HeAacFound);
            self.needs_ffmpeg = true;
            self.leave_backend();
            self.start(now);
        }
        let place = (unit.epoch.0, unit.sequence);
        let follows = self
            .last
            .is_none_or(|(epoch, sequence)| place == (epoch, sequence.wrapping_add(1)));
        self.last = Some(place);
        let fed = self.timeline.fed();
        let continuity = self.timeline.handle_unit(Unit {
            pts: unit.pts,
            ingest_time: unit.ingest_time,
            samples: u32::from(self.source.frame_samples),
            discontinuity: unit.discontinuity || !follows,
        });
        if continuity == Continuity::Restarts {
            self.note(Note::Anchored);
        }
        match &self.backend {
            Backend::InProcess { .. } => self.decode(now, &unit.payload, continuity),
            Backend::Child { .. } => self.feed_child(now, fed, &unit.payload),
            Backend::Waiting { .. } | Backend::Ended => {}
        }
        self.encode(now);
    }

    /// Samples from the child: 48 kHz, stereo, 32-bit little-endian floats.
    pub(crate) fn handle_pcm(&mut self, now: Instant, from: u64, bytes: &[u8]) {
        let Backend::Child {
            generation,
            partial,
            ..
        } = &mut self.backend
        else {
            return;
        };
        if from != *generation {
            return;
        }
        partial.extend_from_slice(bytes);
        // Whole samples of both channels only, so that the framer never sees half a one.
        let whole = partial.len() / 8 * 8;
        let samples = partial.get(..whole).unwrap_or_default().chunks_exact(4);
        self.framer.input().extend(samples.map(|sample| {
            let value = f32::from_le_bytes(sample.try_into().unwrap_or_default());
            if value.is_finite() {
                value.clamp(-1.0, 1.0)
            } else {
                0.0
            }
        }));
        partial.drain(..whole);
        self.backoff.reset();
        self.encode(now);
    }

    /// The child has ended or could not be started.
    pub(crate) fn handle_child_ended(
        &mut self,
        now: Instant,
        from: u64,
        kind: FailureKind,
        reason: &str,
    ) {
        if matches!(self.backend, Backend::Child { generation, .. } if generation == from) {
            self.fail(now, kind, reason);
        }
    }

    /// The units from now on are coded as `source` says. A transcode that has been given up starts anew.
    pub(crate) fn handle_configuration(&mut self, now: Instant, source: aac::Configuration) {
        if source == self.source && !matches!(self.backend, Backend::Ended) {
            return;
        }
        self.leave_backend();
        self.timeline.set_rate(source.sample_rate_hz);
        self.source = source;
        self.begin(now);
        self.encode(now);
    }

    /// Something panicked on the way; what it left behind is not to be trusted.
    pub(crate) fn handle_panic(&mut self, now: Instant) {
        self.encoder = None;
        self.fail(now, FailureKind::Panic, "the transcoder panicked");
    }

    /// What to do next, until `None`.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Who decodes, or would.
    pub(crate) fn path(&self) -> Path {
        if self.needs_ffmpeg || !Decoder::supports(&self.source) {
            Path::Ffmpeg
        } else {
            Path::InProcess
        }
    }

    /// Given up.
    pub(crate) const fn ended(&self) -> bool {
        matches!(self.backend, Backend::Ended)
    }

    /// Starts on `source` with a clean slate.
    fn begin(&mut self, now: Instant) {
        self.needs_ffmpeg = false;
        self.watch = sbr::Watch::default();
        self.failures.clear();
        self.backoff.reset();
        if self.config.enabled {
            self.start(now);
        } else {
            self.give_up("making Opus is switched off in this origin's configuration");
        }
    }

    fn start(&mut self, now: Instant) {
        let path = self.path();
        let channels = match path {
            Path::InProcess => channels_of(&self.source),
            Path::Ffmpeg => 2,
        };
        self.framer.set_channels(channels);
        if let Err(error) = self.prepare_encoder(channels) {
            self.fail(now, FailureKind::Codec, &error.to_string());
            return;
        }
        match path {
            Path::InProcess => {
                let decoder = Decoder::new(&self.source);
                let resampler =
                    Resampler::new(self.source.sample_rate_hz, channels, decoder::FRAME_SAMPLES);
                match (decoder, resampler) {
                    (Ok(decoder), Ok(resampler)) => {
                        self.backend = Backend::InProcess {
                            decoder: Box::new(decoder),
                            resampler: Box::new(resampler),
                            undecodable: 0,
                            proven: false,
                        };
                    }
                    (Err(error), _) => self.fail(now, FailureKind::Codec, &error.to_string()),
                    (_, Err(error)) => self.fail(now, FailureKind::Codec, &error.to_string()),
                }
            }
            Path::Ffmpeg => {
                self.generation += 1;
                self.backend = Backend::Child {
                    generation: self.generation,
                    start: self.timeline.fed(),
                    partial: Vec::new(),
                };
                self.outputs.push_back(Output::StartChild {
                    generation: self.generation,
                    header: flv::header(&self.source),
                });
            }
        }
    }

    fn prepare_encoder(&mut self, channels: u8) -> Result<(), ::opus::Error> {
        if self
            .encoder
            .as_ref()
            .is_some_and(|encoder| encoder.channels() == channels)
        {
            return Ok(());
        }
        let encoder = Encoder::new(&self.config, channels)?;
        self.timeline.set_lookahead(encoder.lookahead());
        let configuration = opus::Configuration {
            channels,
            pre_skip: encoder.lookahead(),
        };
        self.encoder = Some(encoder);
        self.outputs
            .push_back(Output::Event(Event::Configured(configuration)));
        Ok(())
    }

    fn decode(&mut self, now: Instant, frame: &[u8], continuity: Continuity) {
        let Backend::InProcess {
            decoder,
            resampler,
            undecodable,
            proven,
        } = &mut self.backend
        else {
            return;
        };
        let input = self.framer.input();
        if continuity == Continuity::Restarts {
            decoder.reset();
            if let Err(error) = resampler.flush(input) {
                self.fail(now, FailureKind::Codec, &error.to_string());
                return;
            }
        }
        let resampled = match decoder.decode(frame) {
            Ok(samples) => {
                *undecodable = 0;
                if !*proven {
                    *proven = true;
                    self.backoff.reset();
                }
                resampler.push(samples, input)
            }
            Err(decoder::Error::Panicked) => {
                self.fail(
                    now,
                    FailureKind::Panic,
                    &decoder::Error::Panicked.to_string(),
                );
                return;
            }
            Err(error @ decoder::Error::Frame(_)) => {
                *undecodable += 1;
                let hopeless = !*proven && *undecodable >= UNDECODABLE_AT_START_MAX;
                if hopeless || *undecodable >= UNDECODABLE_MAX {
                    self.needs_ffmpeg |= hopeless;
                    self.fail(now, FailureKind::Undecodable, &error.to_string());
                    return;
                }
                decoder.reset();
                self.outputs.push_back(Output::Note(Note::FrameLost));
                let channels = usize::from(channels_of(&self.source));
                let silence = vec![0.0; usize::from(decoder::FRAME_SAMPLES) * channels];
                resampler.push(&silence, input)
            }
        };
        if let Err(error) = resampled {
            self.fail(now, FailureKind::Codec, &error.to_string());
        }
    }

    fn feed_child(&mut self, now: Instant, fed: u64, frame: &[u8]) {
        let Backend::Child { start, .. } = &self.backend else {
            return;
        };
        if self.timeline.pending() > CHILD_PENDING_MAX {
            self.fail(
                now,
                FailureKind::FfmpegStuck,
                "ffmpeg doesn't return what it is fed",
            );
            return;
        }
        let millis = fed.saturating_sub(*start) / 48;
        if millis > CHILD_MILLIS_MAX {
            self.leave_backend();
            self.start(now);
            return;
        }
        let millis = u32::try_from(millis).unwrap_or(u32::MAX);
        self.outputs
            .push_back(Output::FeedChild(flv::frame(millis, frame)));
    }

    fn encode(&mut self, now: Instant) {
        let Some(encoder) = &mut self.encoder else {
            return;
        };
        while let Some((cut, samples)) = self.framer.poll(&mut self.timeline) {
            match encoder.encode(samples) {
                Ok(payload) => self.outputs.push_back(Output::Event(Event::Unit {
                    pts: cut.pts,
                    payload,
                    ingest_time: cut.ingest_time,
                    discontinuity: cut.discontinuity,
                })),
                Err(error) => {
                    self.encoder = None;
                    self.fail(now, FailureKind::Codec, &error.to_string());
                    return;
                }
            }
        }
    }

    /// Ends the present decoder in good order. What this process has decoded still comes; what a child holds is lost.
    fn leave_backend(&mut self) {
        match &mut self.backend {
            Backend::InProcess { resampler, .. } => {
                if resampler.flush(self.framer.input()).is_err() {
                    self.forget();
                }
            }
            Backend::Child { .. } => {
                self.outputs.push_back(Output::StopChild);
                self.forget();
            }
            Backend::Waiting { .. } | Backend::Ended => {}
        }
    }

    fn forget(&mut self) {
        self.timeline.forget_pending();
        self.framer.clear();
    }

    fn fail(&mut self, now: Instant, kind: FailureKind, reason: &str) {
        let path = match self.backend {
            Backend::Child { .. } => Path::Ffmpeg,
            Backend::InProcess { .. } => Path::InProcess,
            Backend::Waiting { .. } | Backend::Ended => self.path(),
        };
        if path == Path::Ffmpeg {
            self.outputs.push_back(Output::StopChild);
        }
        self.forget();
        let window = Duration::from_secs(self.config.restart_window_seconds);
        while self
            .failures
            .front()
            .is_some_and(|failure| now.saturating_duration_since(*failure) > window)
        {
            self.failures.pop_front();
        }
        self.failures.push_back(now);
        let budget = usize::try_from(self.config.restarts_max).unwrap_or(usize::MAX);
        let given_up = kind == FailureKind::FfmpegMissing || self.failures.len() > budget;
        let reason: Arc<str> = match path {
            Path::InProcess => reason.into(),
            Path::Ffmpeg => format!(
                "{} needs ffmpeg: {reason}",
                describe(&self.source, self.needs_ffmpeg)
            )
            .into(),
        };
        self.note(Note::Failed {
            kind,
            path,
            reason: Arc::clone(&reason),
            given_up,
        });
        if given_up {
            self.give_up(&reason);
        } else {
            self.backend = Backend::Waiting {
                until: now + self.backoff.wait(),
            };
        }
    }

    fn give_up(&mut self, reason: &str) {
        self.backend = Backend::Ended;
        // The packets after a new start are configured anew.
        self.encoder = None;
        self.outputs
            .push_back(Output::Event(Event::Failed(reason.into())));
    }

    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }
}

/// What a decoder in this process yields.
const fn channels_of(source: &aac::Configuration) -> u8 {
    if source.channels == 1 { 1 } else { 2 }
}

/// What kind of AAC it is, for an operator.
fn describe(source: &aac::Configuration, found_by_frames: bool) -> String {
    if source.ps {
        "HE-AAC v2".to_owned()
    } else if source.sbr {
        "HE-AAC".to_owned()
    } else if source.channels > 2 {
        format!("AAC with {} channels", source.channels)
    } else if found_by_frames {
        "this AAC (HE-AAC, or an unusual kind)".to_owned()
    } else {
        format!(
            "AAC of object type {} at {} Hz",
            source.object_type, source.sample_rate_hz
        )
    }
}
