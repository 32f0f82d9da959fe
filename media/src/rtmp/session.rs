//! One publisher's connection: handshake, control messages, commands, media and timers.
//!
//! After every `handle_*` and command, drain [`Session::poll_output`] to the socket, then [`Session::poll_event`], then ask
//! [`Session::poll_timeout`]. A returned [`Fault`] is final: send what `poll_output` still has and close.
//!
//! [`Event::Publish`] asks for a decision: answer by [`Session::accept_publish`] or [`Session::refuse_publish`]. Events behind
//! it belong to the same publisher and may be handled once it is accepted; their number is bounded by the bytes of one input.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod allowance;
mod clock;
mod command;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Buf, Bytes};
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};

use self::allowance::Allowance;
use self::clock::MediaClock;
use super::amf::{self, Value};
use super::chunk::{ChunkReader, Message};
use super::reply::{Replies, WINDOW_BYTES};
use super::{Fault, Foreign, Limits, Publish, Refusal};
use crate::flv::TagKind;
use crate::flv::demux::{Demuxer, Output, Skipped};
use crate::time::WallTime;
use crate::track::Configuration;
use crate::unit::{IngestUnit, MediaKind, SourceTrack};

/// Tags read from one aggregate message (count). Senders pack a few frames; each tag costs an event.
const AGGREGATE_TAGS_MAX: usize = 4096;

/// The core of one connection.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    /// `None` once it is done.
    handshake: Option<Opening>,
    chunks: ChunkReader,
    replies: Replies,
    events: VecDeque<Event>,
    demuxer: Demuxer,
    clock: MediaClock,
    /// What `connect` said.
    connected: Option<Connected>,
    /// Message streams that `createStream` made.
    streams: Vec<u32>,
    publishing: Option<Publishing>,
    configurations: Allowance,
    metadata: Allowance,
    acknowledgements: Acknowledgements,
    /// Until when something must be published; `None` while something is.
    publish_deadline: Option<Instant>,
    last_input: Instant,
    /// A ping was sent since `last_input`.
    pinged: bool,
    started: Instant,
}

/// What happened on a connection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The peer wants to publish; nothing it sends counts before it is accepted.
    Publish(Publish),
    /// See [`Output::Configuration`].
    Configuration(SourceTrack, Configuration),
    /// See [`Output::Unit`].
    Unit(IngestUnit),
    /// See [`Output::End`].
    End(SourceTrack),
    /// See [`Output::Skipped`].
    Skipped(MediaKind, Skipped),
    /// The publisher's `onMetaData`.
    Metadata(serde_json::Value),
    /// Another data message, such as `onTextData`, `onCuePoint` or `onFI`, with its time in milliseconds.
    Data {
        /// Its name.
        name: String,
        /// On the publisher's clock, unwrapped.
        millis: i64,
        /// The values behind the name.
        values: serde_json::Value,
    },
    /// The publisher ended its stream; the connection may publish again.
    Unpublished,
}

/// The handshake, boxed away because it is large and short-lived.
struct Opening {
    handshake: Box<Handshake>,
    first_byte_seen: bool,
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Opening")
    }
}

#[derive(Debug)]
struct Connected {
    /// Raw, with query.
    app: String,
    encoder: Option<String>,
    /// It follows `NetConnection.Connect.ReconnectRequest`.
    reconnects: bool,
}

#[derive(Debug)]
struct Publishing {
    stream_id: u32,
}

#[derive(Debug)]
struct Acknowledgements {
    /// All bytes received (the handshake included, as peers count them).
    received: u64,
    acknowledged: u64,
    window: u32,
}

impl Session {
    /// A session at the start of a connection.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            handshake: Some(Opening {
                handshake: Box::new(Handshake::new(PeerType::Server)),
                first_byte_seen: false,
            }),
            chunks: ChunkReader::new(limits.clone()),
            replies: Replies::new(&limits),
            events: VecDeque::new(),
            demuxer: Demuxer::new(),
            clock: MediaClock::default(),
            connected: None,
            streams: Vec::new(),
            publishing: None,
            configurations: Allowance::new(now),
            metadata: Allowance::new(now),
            acknowledgements: Acknowledgements {
                received: 0,
                acknowledged: 0,
                window: WINDOW_BYTES,
            },
            publish_deadline: now.checked_add(limits.publish_timeout),
            last_input: now,
            pinged: false,
            started: now,
            limits,
        }
    }

    /// Takes what was read from the socket; `wall` stamps the units that these bytes complete.
    ///
    /// # Errors
    /// If the peer breaks the protocol or a limit.
    pub fn handle_input(
        &mut self,
        now: Instant,
        wall: WallTime,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        self.last_input = now;
        self.pinged = false;
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.acknowledgements.received = self.acknowledgements.received.saturating_add(count);
        if self.handshake.is_some() {
            let remaining = self.handshake(now, bytes)?;
            self.messages(now, wall, &remaining)?;
        } else {
            self.messages(now, wall, bytes)?;
        }
        self.acknowledge()
    }

    /// Does what is due.
    ///
    /// # Errors
    /// If the peer missed a deadline.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Fault> {
        if self.handshake.is_some() {
            return match self.started.checked_add(self.limits.handshake_timeout) {
                Some(deadline) if now >= deadline => Err(Fault::HandshakeTimeout),
                _ => Ok(()),
            };
        }
        if self
            .publish_deadline
            .is_some_and(|deadline| now >= deadline)
        {
            return Err(Fault::PublishTimeout);
        }
        let silence = now.saturating_duration_since(self.last_input);
        if silence >= self.limits.silence_timeout {
            return Err(Fault::Silent);
        }
        if !self.pinged && silence >= self.limits.ping_after {
            self.pinged = true;
            // Ping request; its number is a time of ours that the answer repeats.
            self.replies.user_control(6, self.millis_since_start(now))?;
        }
        Ok(())
    }

    /// The publish request was granted: the peer is told to begin.
    ///
    /// # Errors
    /// If the peer does not read.
    pub fn accept_publish(&mut self) -> Result<(), Fault> {
        let Some(publishing) = &self.publishing else {
            return Ok(());
        };
        let id = publishing.stream_id;
        self.publish_deadline = None;
        // Stream begin.
        self.replies.user_control(0, id)?;
        self.replies
            .status(id, "status", "NetStream.Publish.Start", "publishing")
    }

    /// The publish request was refused, or a publisher must leave: the peer is told why. Then close the connection, since
    /// librtmp takes the close for the refusal.
    pub fn refuse_publish(&mut self, refusal: Refusal) {
        if let Some(publishing) = self.publishing.take() {
            let (code, description) = refusal.status();
            // A peer that does not read does not need to be told.
            let _ = self
                .replies
                .status(publishing.stream_id, "error", code, description);
        }
    }

    /// Bytes for the socket.
    pub fn poll_output(&mut self) -> Option<Bytes> {
        self.replies.pop()
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.handshake.is_some() {
            return self.started.checked_add(self.limits.handshake_timeout);
        }
        let silence = if self.pinged {
            self.limits.silence_timeout
        } else {
            self.limits.ping_after.min(self.limits.silence_timeout)
        };
        [self.publish_deadline, self.last_input.checked_add(silence)]
            .into_iter()
            .flatten()
            .min()
    }

    /// All bytes received so far.
    pub const fn received_bytes(&self) -> u64 {
        self.acknowledgements.received
    }

    fn handshake(&mut self, now: Instant, bytes: &[u8]) -> Result<Vec<u8>, Fault> {
        let (Some(opening), Some(first)) = (&mut self.handshake, bytes.first()) else {
            return Ok(Vec::new());
        };
        if !opening.first_byte_seen && *first != 3 {
            return Err(Fault::Handshake(Foreign::from_first_byte(*first)));
        }
        opening.first_byte_seen = true;
        match opening.handshake.process_bytes(bytes) {
            Ok(HandshakeProcessResult::InProgress { response_bytes }) => {
                self.replies.raw(response_bytes)?;
                Ok(Vec::new())
            }
            Ok(HandshakeProcessResult::Completed {
                response_bytes,
                remaining_bytes,
            }) => {
                self.replies.raw(response_bytes)?;
                self.handshake = None;
                self.publish_deadline = now.checked_add(self.limits.publish_timeout);
                Ok(remaining_bytes)
            }
            Err(_) => Err(Fault::Handshake(Foreign::Unknown)),
        }
    }

    fn messages(&mut self, now: Instant, wall: WallTime, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        while let Some(message) = self.chunks.read(&mut input)? {
            self.message(now, wall, message)?;
        }
        Ok(())
    }

    fn message(&mut self, now: Instant, wall: WallTime, message: Message) -> Result<(), Fault> {
        match message.kind {
            1 => self.chunks.set_chunk_size(number(&message.payload)?),
            2 => {
                self.chunks.abort(number(&message.payload)?);
                Ok(())
            }
            // Acknowledgements: what we send is too little to be paced by them.
            3 => Ok(()),
            4 => self.user_control(&message.payload),
            5 => {
                let window = number(&message.payload)?;
                self.acknowledgements.window = if window == 0 { WINDOW_BYTES } else { window };
                Ok(())
            }
            6 => {
                let window = number(&message.payload)?;
                if window == WINDOW_BYTES {
                    return Ok(());
                }
                self.replies.window(window)
            }
            8 => self.media(
                now,
                wall,
                TagKind::Audio,
                message.timestamp,
                message.payload,
            ),
            9 => self.media(
                now,
                wall,
                TagKind::Video,
                message.timestamp,
                message.payload,
            ),
            15 => self.data(now, message.timestamp, &without_amf3_byte(message.payload)),
            18 => self.data(now, message.timestamp, &message.payload),
            17 => self.command(now, message.stream_id, &without_amf3_byte(message.payload)),
            20 => self.command(now, message.stream_id, &message.payload),
            22 => self.aggregate(now, wall, message.timestamp, message.payload),
            // Shared objects (16, 19) and numbers that mean nothing.
            _ => Ok(()),
        }
    }

    fn user_control(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let (event, rest) = payload.split_first_chunk().ok_or(Fault::Control)?;
        match u16::from_be_bytes(*event) {
            // Ping request: answered with the same number.
            6 => self.replies.user_control(7, number(rest)?),
            _ => Ok(()),
        }
    }

    fn acknowledge(&mut self) -> Result<(), Fault> {
        let Acknowledgements {
            received,
            acknowledged,
            window,
        } = self.acknowledgements;
        if self.handshake.is_some() || received.saturating_sub(acknowledged) < u64::from(window) {
            return Ok(());
        }
        self.acknowledgements.acknowledged = received;
        self.replies.acknowledge(low_32(received))
    }

    fn media(
        &mut self,
        now: Instant,
        wall: WallTime,
        kind: TagKind,
        timestamp: u32,
        body: Bytes,
    ) -> Result<(), Fault> {
        // Nothing counts before `publish`, and some encoders go on for a moment after they ended it.
        if self.publishing.is_none() {
            return Ok(());
        }
        let millis = self.clock.unwrap(timestamp);
        match kind {
            TagKind::Audio => self.demuxer.handle_audio(millis, wall, body),
            TagKind::Video => self.demuxer.handle_video(millis, wall, body),
            TagKind::Script => {}
        }
        while let Some(output) = self.demuxer.poll_output() {
            self.events.push_back(match output {
                Output::Configuration(track, configuration) => {
                    if !self.configurations.take(now) {
                        return Err(Fault::Configurations);
                    }
                    Event::Configuration(track, configuration)
                }
                Output::Unit(unit) => Event::Unit(unit),
                Output::End(track) => {
                    if !self.configurations.take(now) {
                        return Err(Fault::Configurations);
                    }
                    Event::End(track)
                }
                Output::Skipped(kind, reason) => Event::Skipped(kind, reason),
            });
        }
        Ok(())
    }

    /// Splits an aggregate message (RTMP 1.0 section 7.1.6). Its tags' times are relative to the first, which has the
    /// message's.
    fn aggregate(
        &mut self,
        now: Instant,
        wall: WallTime,
        timestamp: u32,
        mut payload: Bytes,
    ) -> Result<(), Fault> {
        let mut offset = None;
        let mut tags = 0usize;
        while payload.has_remaining() {
            tags = tags.saturating_add(1);
            let Some([kind, s2, s1, s0, t2, t1, t0, t3, _, _, _]) =
                payload.first_chunk::<11>().copied()
            else {
                return Err(Fault::Aggregate);
            };
            payload.advance(11);
            let length = usize::try_from(u32::from_be_bytes([0, s2, s1, s0])).unwrap_or(usize::MAX);
            if length > payload.remaining() || tags > AGGREGATE_TAGS_MAX {
                return Err(Fault::Aggregate);
            }
            let body = payload.split_to(length);
            // The size behind the tag; some senders leave the last one out.
            payload.advance(payload.remaining().min(4));
            let time = u32::from_be_bytes([t3, t2, t1, t0]);
            let offset = *offset.get_or_insert_with(|| timestamp.wrapping_sub(time));
            let time = time.wrapping_add(offset);
            match TagKind::from_number(kind) {
                Some(TagKind::Script) => self.data(now, time, &body)?,
                Some(kind) => self.media(now, wall, kind, time, body)?,
                None => {}
            }
        }
        Ok(())
    }

    /// A data message: metadata, or what encoders send beside the media.
    fn data(&mut self, now: Instant, timestamp: u32, payload: &[u8]) -> Result<(), Fault> {
        if self.publishing.is_none() {
            return Ok(());
        }
        let values = match amf::read(payload, &self.limits) {
            Ok(values) => values,
            // Encoders do send broken metadata; nothing depends on it. Beyond a limit it is no accident.
            Err(amf::Error::Truncated | amf::Error::Marker(_)) => return Ok(()),
            Err(beyond) => return Err(beyond.into()),
        };
        let mut values = values.into_iter();
        let mut name = values.next();
        if name.as_ref().and_then(Value::as_str) == Some("@setDataFrame") {
            name = values.next();
        }
        let Some(Value::String(name)) = name else {
            return Ok(());
        };
        // The next metadata says the same or better.
        if name == "onMetaData" && !self.metadata.take(now) {
            return Ok(());
        }
        let rest: Vec<_> = values.map(|value| value.to_json()).collect();
        self.events.push_back(if name == "onMetaData" {
            Event::Metadata(rest.into_iter().next().unwrap_or_default())
        } else {
            Event::Data {
                name,
                millis: self.clock.unwrap(timestamp),
                values: rest.into(),
            }
        });
        Ok(())
    }

    fn millis_since_start(&self, now: Instant) -> u32 {
        let millis = now.saturating_duration_since(self.started).as_millis();
        low_32(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// The number that a control message is or begins with.
fn number(payload: &[u8]) -> Result<u32, Fault> {
    payload
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
        .ok_or(Fault::Control)
}

/// AMF3 messages (types 15 and 17) have a format byte 0 in front of what is AMF0 after all.
fn without_amf3_byte(mut payload: Bytes) -> Bytes {
    if payload.first() == Some(&0) {
        payload.advance(1);
    }
    payload
}

fn low_32(value: u64) -> u32 {
    u32::try_from(value & 0xFFFF_FFFF).unwrap_or_default()
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "made-up data"
)]
mod tests;
