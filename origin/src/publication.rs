//! A publisher's place at its stream: the end of the link that its RTMP session holds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use headwater_media::id::Epoch;
use headwater_media::time::WallTime;
use headwater_media::track::Configuration;
use headwater_media::unit::{IngestUnit, MediaKind, SourceTrack};
use headwater_node::actor::{Sender, Undelivered};
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::watch;

use crate::metrics as names;
use crate::registry::Revoked;
use crate::stream::{Configure, Deliver, End, Leave, Metadata};

/// What the registry sees of a publisher without asking anybody.
#[derive(Debug)]
pub(crate) struct Slot {
    last_unit_micros: AtomicU64,
    left: AtomicBool,
    revoked: watch::Sender<Option<Revoked>>,
}

impl Slot {
    pub(crate) fn new(now: WallTime) -> Self {
        Self {
            last_unit_micros: AtomicU64::new(now.unix_micros()),
            left: AtomicBool::new(false),
            revoked: watch::Sender::new(None),
        }
    }

    /// The publisher's session is over.
    pub(crate) fn left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// For how long nothing has come.
    pub(crate) fn silent_for(&self, now: WallTime) -> Duration {
        let last = self.last_unit_micros.load(Ordering::Relaxed);
        now.since(WallTime::from_unix_micros(last))
    }

    /// Something came.
    pub(crate) fn alive(&self, now: WallTime) {
        self.last_unit_micros
            .store(now.unix_micros(), Ordering::Relaxed);
    }

    /// Its session ends.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Resolves when the publisher must leave, with the reason.
    pub(crate) async fn revoked(&self) -> Revoked {
        let mut revoked = self.revoked.subscribe();
        match revoked.wait_for(Option::is_some).await {
            Ok(reason) => reason.unwrap_or(Revoked::Stopping),
            Err(_) => Revoked::Stopping,
        }
    }

    /// Tells the publisher to leave.
    pub(crate) fn revoke(&self, reason: Revoked) {
        self.revoked.send_replace(Some(reason));
    }
}

/// The stream's ends of the link.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) deliver: Sender<Deliver>,
    pub(crate) configure: Sender<Configure>,
    pub(crate) end: Sender<End>,
    pub(crate) metadata: Sender<Metadata>,
    pub(crate) leave: Sender<Leave>,
}

/// A publisher's place at its stream. Dropping it says that the publisher left: the stream is then held for its return.
#[derive(Debug)]
pub struct Publication {
    epoch: Epoch,
    clock: Clock,
    links: Links,
    slot: Arc<Slot>,
    /// Tracks of which units were dropped since the last one that got through. A publisher has a handful.
    lost: Mutex<Vec<(MediaKind, SourceTrack)>>,
}

impl Publication {
    pub(crate) fn new(epoch: Epoch, clock: Clock, links: Links, slot: Arc<Slot>) -> Self {
        Self {
            epoch,
            clock,
            links,
            slot,
            lost: Mutex::default(),
        }
    }

    /// The publisher incarnation that this is.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The publisher announced or changed how it codes one of its tracks; `track` tells apart those of one kind.
    pub fn configure(&self, track: SourceTrack, configuration: Configuration) {
        self.links.configure.post(Configure {
            epoch: self.epoch,
            track,
            configuration,
        });
    }

    /// The publisher ended one of its video tracks beside the default one.
    pub fn end(&self, track: SourceTrack) {
        self.links.end.post(End {
            epoch: self.epoch,
            track,
        });
    }

    /// Hands one access unit over. Never waits: when the stream can't keep up, units are dropped up to the next keyframe
    /// and counted.
    pub fn deliver(&self, unit: IngestUnit) {
        self.slot.alive(self.clock.wall());
        let (track, keyframe) = ((unit.kind, unit.track), unit.keyframe);
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let after_loss = lost.contains(&track);
        if after_loss && track.0 == MediaKind::Video && !keyframe {
            counter!(names::UNITS_DROPPED, "reason" => "overflow").increment(1);
            return;
        }
        let message = Deliver {
            epoch: self.epoch,
            after_loss,
            unit,
        };
        let sent = self.links.deliver.try_send(message);
        if matches!(sent, Err(Undelivered::Full)) {
            counter!(names::UNITS_DROPPED, "reason" => "overflow").increment(1);
        }
        match sent {
            Ok(()) if after_loss => lost.retain(|lost| *lost != track),
            Err(_) if !after_loss => lost.push(track),
            Ok(()) | Err(_) => {}
        }
    }

    /// The publisher's `onMetaData`, for the API record.
    pub fn metadata(&self, metadata: serde_json::Value) {
        self.links.metadata.post(Metadata {
            epoch: self.epoch,
            metadata,
        });
    }

    /// Resolves when this publisher must leave, with the reason. The session then tells its peer and closes.
    pub async fn revoked(&self) -> Revoked {
        self.slot.revoked().await
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.slot.leave();
        self.links.leave.post(Leave { epoch: self.epoch });
    }
}
