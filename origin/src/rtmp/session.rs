//! One publisher's task: reads its socket, feeds the core, carries what comes out to its stream.
//!
//! Owned by the listener. It waits for nothing but its own socket, timer and the registry's decision, so a slow consumer never
//! slows a publisher; [`crate::registry::Publication::deliver`] drops what a stream can't take. It ends when the peer leaves,
//! breaks the protocol or a deadline, is refused or revoked, or when the origin stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::flv::demux::Skipped;
use headwater_media::id::StreamName;
use headwater_media::rtmp::{Event, Fault, Limits, Publish, Refusal, Session};
use headwater_media::unit::MediaKind;
use headwater_node::auth::Token;
use headwater_node::clock::Clock;
use headwater_node::trace::{self, Sampling};
use metrics::counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::metrics as names;
use crate::registry::{Contribution, Publication, PublishError, PublishRequest, Registry, Revoked};

/// Read at once (bytes). At 20 Mbit/s this is 13 ms of media.
const READ_BYTES: usize = 32 << 10;
/// A peer that takes no reply for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The registry's decision; beyond it the directory is as good as away.
const DECISION_TIMEOUT: Duration = Duration::from_secs(8);
/// After a goodbye, the peer's bytes are read on for this long: closing at once would reset the connection under it.
const LINGER_TIMEOUT: Duration = Duration::from_millis(500);

/// What all sessions of a listener share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) limits: Limits,
    pub(super) publish_token: Option<Token>,
    pub(super) registry: Registry,
    pub(super) clock: Clock,
    /// See [`super::Config::reconnect_url`].
    pub(super) reconnect_url: Option<String>,
    /// Publishers are to go elsewhere.
    pub(super) drain: CancellationToken,
    pub(super) stop: CancellationToken,
}

/// Why a session ended.
#[derive(Debug)]
enum Close {
    /// The peer closed the connection, or it broke.
    Left,
    /// The peer takes no replies.
    Unwritable,
    Fault(Fault),
    Refused(Refusal),
}

impl Close {
    const fn label(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Unwritable => "unwritable",
            Self::Fault(_) => "fault",
            Self::Refused(refusal) => refusal.label(),
        }
    }
}

impl From<Fault> for Close {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Runs one connection to its end.
pub(super) async fn run(stream: TcpStream, peer: SocketAddr, context: Arc<Context>) {
    let span = info_span!("rtmp", %peer);
    async {
        debug!("connected");
        let mut session = Connection {
            core: Session::new(context.limits.clone(), context.clock.now()),
            stream,
            peer,
            context,
            live: None,
            received: 0,
            asked_to_reconnect: false,
        };
        let close = session.serve().await;
        session.finish(&close).await;
    }
    .instrument(span)
    .await;
}

struct Connection {
    core: Session,
    stream: TcpStream,
    peer: SocketAddr,
    context: Arc<Context>,
    live: Option<Live>,
    received: u64,
    asked_to_reconnect: bool,
}

/// What was accepted.
enum Place {
    /// A stream, its source.
    Stream(Publication),
    /// A rendition of one.
    Rendition(Contribution),
}

impl Place {
    async fn revoked(&self) -> Revoked {
        match self {
            Self::Stream(publication) => publication.revoked().await,
            Self::Rendition(contribution) => contribution.revoked().await,
        }
    }
}

/// An accepted publish.
struct Live {
    name: StreamName,
    place: Place,
    since: Instant,
    /// What was skipped and has been said.
    said: Vec<(MediaKind, Skipped)>,
}

enum Woken {
    Read(std::io::Result<usize>),
    Timer,
    Revoked(Revoked),
    Draining,
    Stopping,
}

impl Connection {
    async fn serve(&mut self) -> Close {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            if let Err(close) = self.pump().await {
                return close;
            }
            let woken = {
                let (live, stream) = (&self.live, &mut self.stream);
                let context = &self.context;
                let deadline = self.core.poll_timeout().map(tokio::time::Instant::from_std);
                tokio::select! {
                    biased;
                    () = context.stop.cancelled() => Woken::Stopping,
                    reason = revoked(live) => Woken::Revoked(reason),
                    () = context.drain.cancelled(), if !self.asked_to_reconnect => Woken::Draining,
                    // Before the timer: where this process was stopped for a while, the publisher was not silent.
                    read = stream.read(&mut buffer) => Woken::Read(read),
                    () = sleep_until(deadline) => Woken::Timer,
                }
            };
            let now = self.context.clock.now();
            let result = match woken {
                Woken::Read(Ok(count @ 1..)) => {
                    let wall = self.context.clock.wall_at(now);
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.received += u64::try_from(count).unwrap_or(0);
                    counter!(names::RECEIVED).increment(u64::try_from(count).unwrap_or(0));
                    let taken = self.core.handle_input(now, wall, bytes);
                    // A peer that always has something to say has no more time than another.
                    taken.and_then(|()| self.core.handle_timeout(now))
                }
                Woken::Read(Ok(0) | Err(_)) => return Close::Left,
                Woken::Timer => self.core.handle_timeout(now),
                Woken::Revoked(reason) => return Close::Refused(refusal(reason)),
                Woken::Draining => {
                    let url = self.context.reconnect_url.as_deref();
                    match self.core.request_reconnect(url) {
                        // It sends on until it has found its new place, whose origin takes the stream over.
                        Ok(true) => {
                            counter!(names::RECONNECTS).increment(1);
                            self.asked_to_reconnect = true;
                            Ok(())
                        }
                        Ok(false) => return Close::Refused(Refusal::Stopping),
                        Err(fault) => Err(fault),
                    }
                }
                Woken::Stopping => return Close::Refused(Refusal::Stopping),
            };
            if let Err(fault) = result {
                // What came before the fault counts.
                let _ = self.pump().await;
                return fault.into();
            }
        }
    }

    /// Performs what the core wants, until it wants nothing.
    async fn pump(&mut self) -> Result<(), Close> {
        loop {
            self.flush().await?;
            let Some(event) = self.core.poll_event() else {
                return Ok(());
            };
            match event {
                Event::Publish(publish) => self.publish(publish).await?,
                event => self.media(event),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Close> {
        while let Some(bytes) = self.core.poll_output() {
            let written = tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&bytes)).await;
            match written {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Close::Left),
                Err(_) => return Err(Close::Unwritable),
            }
        }
        Ok(())
    }

    async fn publish(&mut self, publish: Publish) -> Result<(), Close> {
        let mut span = trace::start("publish", trace::Kind::Server, None, Sampling::Always);
        // What is no name may be a secret in the wrong place.
        if let Ok(name) = publish.name() {
            span.set("stream", name);
        }
        let result = self.decide(&publish).await;
        let label = match &result {
            Ok(_) => "accepted",
            Err(refusal) => {
                span.fail(refusal.label());
                refusal.label()
            }
        };
        span.set("result", label);
        drop(span);
        counter!(names::PUBLISHES, "result" => label).increment(1);
        let live = result.map_err(Close::Refused)?;
        info!(stream = %live.name, encoder = publish.encoder.as_deref(), "publishing");
        self.live = Some(live);
        Ok(self.core.accept_publish()?)
    }

    async fn decide(&self, publish: &Publish) -> Result<Live, Refusal> {
        let Ok(name) = publish.name() else {
            // What was asked for may be a secret in the wrong place, so it is not repeated.
            info!("refused a publisher: the name is not APP/STREAM");
            return Err(Refusal::Name);
        };
        if let Some(token) = &self.context.publish_token
            && !publish
                .query
                .get("token")
                .is_some_and(|presented| token.matches(presented))
        {
            info!(stream = %name, "refused a publisher: the token is missing or wrong");
            return Err(Refusal::Token);
        }
        let Ok(rendition) = publish.rendition() else {
            info!(stream = %name, "refused a publisher: the rendition's name is none");
            return Err(Refusal::Rendition);
        };
        let request = PublishRequest {
            name: name.clone(),
            peer: self.peer,
            encoder: publish.encoder.clone(),
        };
        let registry = &self.context.registry;
        let decision = async {
            match rendition {
                None => registry.publish(request).await.map(Place::Stream),
                Some(rendition) => {
                    let contribution = registry.contribute(request, rendition).await;
                    contribution.map(Place::Rendition)
                }
            }
        };
        let error = match tokio::time::timeout(DECISION_TIMEOUT, decision).await {
            Ok(Ok(place)) => {
                return Ok(Live {
                    name,
                    place,
                    since: self.context.clock.now(),
                    said: Vec::new(),
                });
            }
            Ok(Err(error)) => error,
            Err(_) => PublishError::DirectoryUnavailable("no decision in time".to_owned()),
        };
        info!(stream = %name, %error, "refused a publisher");
        Err(match error {
            PublishError::Busy | PublishError::HeldElsewhere(_) => Refusal::Busy,
            PublishError::OwnerSilent(_) => Refusal::Held,
            PublishError::DirectoryUnavailable(_) | PublishError::TooManyStreams => {
                Refusal::Unavailable
            }
            PublishError::Stopping => Refusal::Stopping,
        })
    }

    fn media(&mut self, event: Event) {
        let Some(live) = &mut self.live else {
            return;
        };
        match event {
            Event::Unit(unit) => match &live.place {
                Place::Stream(publication) => publication.deliver(unit),
                Place::Rendition(contribution) => contribution.deliver(unit),
            },
            Event::Configuration(track, configuration) => match &live.place {
                Place::Stream(publication) => publication.configure(track, configuration),
                Place::Rendition(contribution) => contribution.configure(track, configuration),
            },
            Event::End(track) => {
                if let Place::Stream(publication) = &live.place {
                    publication.end(track);
                }
            }
            Event::Metadata(metadata) => {
                if let Place::Stream(publication) = &live.place {
                    publication.metadata(metadata);
                }
            }
            Event::Skipped(kind, reason) => {
                let label = kind.as_str();
                counter!(names::SKIPPED, "kind" => label, "reason" => reason.label()).increment(1);
                if !live.said.contains(&(kind, reason)) {
                    live.said.push((kind, reason));
                    warn!(stream = %live.name, kind = label, %reason, "media is skipped");
                }
            }
            // Captions and cue points have no place in a stream yet.
            Event::Data { name, millis, .. } => {
                debug!(stream = %live.name, name, millis, "a data message is ignored");
            }
            Event::Unpublished => self.unpublished("the publisher ended its stream"),
            Event::Publish(_) => {}
        }
    }

    fn unpublished(&mut self, why: &str) {
        if let Some(live) = self.live.take() {
            let now = self.context.clock.now();
            info!(
                stream = %live.name,
                seconds = now.saturating_duration_since(live.since).as_secs(),
                bytes = self.received,
                why,
                "publisher left"
            );
        }
    }

    async fn finish(mut self, close: &Close) {
        counter!(names::CLOSES, "reason" => close.label()).increment(1);
        match close {
            Close::Left => self.unpublished("the connection ended"),
            Close::Unwritable => self.unpublished("the peer takes no replies"),
            Close::Fault(fault) => {
                counter!(names::FAULTS, "reason" => fault.label()).increment(1);
                debug!(%fault, "closing");
                self.unpublished(&fault.to_string());
            }
            Close::Refused(refusal) => {
                self.core.refuse_publish(*refusal);
                self.unpublished(refusal.label());
                if self.flush().await.is_ok() {
                    self.linger().await;
                }
            }
        }
    }

    /// Closes our side and reads on for a moment, so that the peer finds the goodbye before the end.
    async fn linger(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = vec![0; READ_BYTES];
        let drained = async { while matches!(self.stream.read(&mut sink).await, Ok(1..)) {} };
        // A peer that goes on sending is cut off.
        let _ = tokio::time::timeout(LINGER_TIMEOUT, drained).await;
    }
}

const fn refusal(reason: Revoked) -> Refusal {
    match reason {
        Revoked::Replaced => Refusal::Replaced,
        Revoked::Kicked => Refusal::Kicked,
        Revoked::Stopping => Refusal::Stopping,
        Revoked::Unaligned => Refusal::Unaligned,
        Revoked::NoSource => Refusal::NoSource,
        Revoked::TooMany => Refusal::Unavailable,
    }
}

async fn revoked(live: &Option<Live>) -> Revoked {
    match live {
        Some(live) => live.place.revoked().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
