//! A stream's end of its ladder: starts a [`LadderActor`] when there is somebody to make renditions for, gives it the source, and knows
//! which rendition is which track.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Actor;
use headwater_media::id::{Bitrate, TrackId};
use headwater_media::stream::Stream;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_media::unit::AccessUnit;
use headwater_node::actor::Sender;
use serde_json::{Value, json};
use tracing::warn;

use crate::ladder::Shared;
use crate::ladder::actor::{Event, Facts, Feed, LadderActor, Made, Stop};
use crate::ladder::output::Status;
use crate::ladder::source::Source;

/// A publisher's rate is not believed before it has published for so long: its first keyframe would count for too much.
const RATE_AFTER: Duration = Duration::from_secs(1);

/// See [`Source::young`].
const YOUNG: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct Link {
    shared: Shared,
    running: Option<Running>,
    /// Of the ladders so far (count).
    ladders: u64,
    renditions: HashMap<Arc<str>, TrackId>,
    status: Option<Status>,
}

/// Ends the actor when dropped.
struct Running {
    feed: Sender<Feed>,
    facts: Sender<Facts>,
    stop: Sender<Stop>,
    demanded: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its child's reports would keep it alive.
        self.stop.post(Stop);
    }
}

/// What a [`Made`] came to.
pub(crate) enum Outcome {
    /// Nothing that anybody must be told of.
    Nothing,
    /// A picture for the subscribers.
    Unit(Arc<AccessUnit>),
    /// The stream did not take a picture.
    Dropped(headwater_media::stream::Dropped),
}

impl Link {
    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            shared,
            running: None,
            ladders: 0,
            renditions: HashMap::new(),
            status: None,
        }
    }

    /// Whether subscribers have viewers for renditions, and what the stream is now. Call it after each change, and each second.
    pub(crate) fn handle_info(
        &mut self,
        now: Instant,
        demanded: bool,
        info: &StreamInfo,
        since: Option<Instant>,
        stream: &mut Stream,
        made: impl FnOnce() -> Sender<Made>,
    ) {
        if let Some(running) = &self.running
            && !running.facts.connected()
        {
            // It panicked. Whatever it made is made no longer.
            self.running = None;
            for (_, id) in self.renditions.drain() {
                stream.remove_rendition(id);
            }
        }
        if !self.enabled() || (self.running.is_none() && !demanded) {
            return;
        }
        let age = since.map(|since| now.saturating_duration_since(since));
        let facts = Facts {
            source: self.source(info, age.unwrap_or_default()),
            demanded,
        };
        if let Some(running) = &mut self.running {
            running.demanded = demanded;
            running.facts.post(facts);
            return;
        }
        self.ladders += 1;
        let backlog = stream.backlog(&[TrackId::SOURCE_VIDEO]);
        let name = info.name.clone();
        let shared = self.shared.clone();
        let actor = LadderActor::new(name, self.ladders, shared, made(), facts, backlog).start();
        self.running = Some(Running {
            feed: Sender::new(&actor),
            facts: Sender::new(&actor),
            stop: Sender::new(&actor),
            demanded,
        });
    }

    /// Renditions are made where they are wanted.
    pub(crate) fn enabled(&self) -> bool {
        self.shared.config.enabled
    }

    /// The stream ends, and its ladder with it.
    pub(crate) fn end(&mut self) {
        self.running = None;
    }

    /// The next picture of the publisher's.
    pub(crate) fn handle_unit(&self, unit: &Arc<AccessUnit>) {
        if unit.track == TrackId::SOURCE_VIDEO
            && let Some(running) = &self.running
        {
            // A full mailbox shows in the sequence, and is counted there.
            let _ = running.feed.try_send(Feed {
                unit: Arc::clone(unit),
            });
        }
    }

    /// The ladder made something.
    pub(crate) fn handle_made(
        &mut self,
        now: Instant,
        message: Made,
        stream: &mut Stream,
    ) -> Outcome {
        if message.ladder != self.ladders || self.running.is_none() {
            return Outcome::Nothing;
        }
        match message.event {
            Event::Configured {
                rendition,
                configuration,
            } => match stream.handle_rendition_configuration(&rendition, configuration) {
                Ok(id) => {
                    self.renditions.insert(rendition, id);
                }
                Err(error) => {
                    warn!(stream = %stream.name(), %rendition, %error, "a rendition is not taken");
                }
            },
            Event::Unit { rendition, unit } => {
                if let Some(&id) = self.renditions.get(&rendition) {
                    return match stream.handle_rendition_unit(now, id, unit) {
                        Ok(unit) => Outcome::Unit(unit),
                        Err(dropped) => Outcome::Dropped(dropped),
                    };
                }
            }
            Event::Lost { rendition } => {
                if let Some(&id) = self.renditions.get(&rendition) {
                    stream.handle_rendition_loss(id);
                }
            }
            Event::Removed { rendition } => {
                if let Some(id) = self.renditions.remove(&rendition) {
                    stream.remove_rendition(id);
                }
            }
            Event::Status(status) => self.status = Some(status),
            Event::Done => {
                // What was removed before has been told.
                self.running = None;
                self.status = None;
            }
        }
        Outcome::Nothing
    }

    /// For the API.
    pub(crate) fn describe(&self) -> Value {
        let config = &self.shared.config;
        if !self.enabled() {
            return json!({ "state": "disabled" });
        }
        let Some((running, status)) = self.running.as_ref().zip(self.status.as_ref()) else {
            return json!({ "state": "off" });
        };
        let rungs = status.rungs.iter().map(|rung| {
            json!({
                "rendition": rung.name.as_ref(),
                "width": rung.width,
                "height": rung.height,
                "bits_per_second": rung.bitrate.0,
            })
        });
        json!({
            "state": status.state.label(),
            "demanded": running.demanded,
            "encoder": config.encoder.name(),
            "rungs": rungs.collect::<Vec<_>>(),
            "failures": status.failures,
            "last_error": status.last_error.as_deref(),
            "dropped_units": status.dropped,
        })
    }

    /// What there is to make renditions of, after so long.
    fn source(&self, info: &StreamInfo, age: Duration) -> Option<Source> {
        let track = info.track(TrackId::SOURCE_VIDEO)?;
        let Configuration::H264(configuration) = track.configuration.as_ref() else {
            return None;
        };
        let ours = |id| self.renditions.values().any(|&own| own == id);
        let mut tracks = info.tracks.iter();
        let has_lower = tracks.any(|other| match other.configuration.as_ref() {
            Configuration::H264(lower) => {
                let smaller = lower.height < configuration.height;
                other.id != track.id && smaller && !other.reordered && !ours(other.id)
            }
            Configuration::Aac(_) | Configuration::Opus(_) => false,
        });
        info.publishing.then(|| Source {
            epoch: info.epoch,
            configuration: configuration.clone(),
            configuration_id: track.configuration_id,
            bitrate: if age >= RATE_AFTER {
                track.bitrate
            } else {
                Bitrate(0)
            },
            young: age < YOUNG,
            reordered: track.reordered,
            has_lower,
        })
    }
}
