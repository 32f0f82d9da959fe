//! One track of a stream: its configuration, its numbering, what is seen of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::observe::{Order, Rate};
use crate::id::{ContributorId, TrackId};
use crate::time::MediaTime;
use crate::track::{Configuration, Track};
use crate::unit::{AccessUnit, MediaKind, SourceTrack};

/// Where a track's units come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Feed {
    /// One of the publisher's own, on the publisher's clock.
    Publisher(SourceTrack),
    /// Sent by a connection of its own, on a clock that is the publisher's but for a constant.
    Contributor(ContributorId),
    /// Made by the origin, on the timeline already.
    Made,
}

impl Feed {
    /// The publisher's default video or sound.
    pub(super) const SOURCE: Self = Self::Publisher(SourceTrack::DEFAULT);
}

/// See the module.
#[derive(Debug)]
pub(super) struct TrackState {
    pub(super) id: TrackId,
    /// Unique among the video tracks: `name`, with a number behind it if that was taken.
    pub(super) rendition: Arc<str>,
    /// What it was to be called.
    pub(super) name: Arc<str>,
    pub(super) feed: Feed,
    pub(super) configuration: Arc<Configuration>,
    pub(super) configuration_id: u32,
    /// Part of the stream. A track that went keeps its place, so that its sequence goes on if it comes back within the epoch.
    pub(super) listed: bool,
    /// The present publisher announced it, or the origin makes it for that one.
    pub(super) confirmed: bool,
    pub(super) next_sequence: u64,
    pub(super) awaiting_keyframe: bool,
    pub(super) discontinuity: bool,
    pub(super) last_dts: Option<MediaTime>,
    /// When its last unit came.
    pub(super) last_at: Option<Instant>,
    last_keyframe_dts: Option<MediaTime>,
    keyframe_interval: Option<Duration>,
    order: Order,
    rate: Rate,
}

impl TrackState {
    pub(super) fn new(
        id: TrackId,
        rendition: Arc<str>,
        name: Arc<str>,
        feed: Feed,
        configuration: Configuration,
    ) -> Self {
        Self {
            id,
            rendition,
            name,
            feed,
            order: order_of(&configuration),
            configuration: Arc::new(configuration),
            configuration_id: 0,
            listed: false,
            confirmed: true,
            next_sequence: 0,
            awaiting_keyframe: true,
            discontinuity: false,
            last_dts: None,
            last_at: None,
            last_keyframe_dts: None,
            keyframe_interval: None,
            rate: Rate::new(),
        }
    }

    pub(super) fn kind(&self) -> MediaKind {
        self.configuration.kind()
    }

    /// A rendition beside the source.
    pub(super) fn is_further(&self) -> bool {
        self.id >= TrackId::FIRST_RENDITION
    }

    /// Another publisher begins.
    pub(super) fn begin_epoch(&mut self) {
        self.confirmed = false;
        self.next_sequence = 0;
        self.restart();
    }

    /// True if the configuration is another one than before.
    pub(super) fn configure(&mut self, configuration: Configuration) -> bool {
        self.confirmed = true;
        if *self.configuration == configuration {
            return false;
        }
        self.configuration = Arc::new(configuration);
        self.configuration_id = self.configuration_id.wrapping_add(1);
        self.restart();
        true
    }

    /// It is here again, coded as before.
    pub(super) fn restart(&mut self) {
        self.order = order_of(&self.configuration);
        self.begin_anew();
    }

    /// It goes on with a keyframe.
    pub(super) fn begin_anew(&mut self) {
        self.lose();
        self.last_keyframe_dts = None;
    }

    /// Units of it were lost.
    pub(super) fn lose(&mut self) {
        self.awaiting_keyframe = true;
        self.discontinuity = self.last_dts.is_some();
    }

    /// The earliest time from `dts` on that its next unit may have.
    pub(super) fn earliest(&self, dts: MediaTime) -> MediaTime {
        let next = self.last_dts.map(|last| last + MediaTime::from_ticks(1));
        next.map_or(dts, |next| dts.max(next))
    }

    /// Its next unit passed. True if that changed what is said of it.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        due: Instant,
        unit: &AccessUnit,
        steady: bool,
    ) -> bool {
        self.last_dts = Some(unit.dts);
        self.last_at = Some(now);
        self.rate.add(due, unit.payload.len());
        if self.kind() == MediaKind::Audio {
            return false;
        }
        let before = self.order.reordered();
        self.order.push(unit, steady);
        if unit.keyframe {
            if let Some(last) = self.last_keyframe_dts
                && !unit.discontinuity
            {
                self.keyframe_interval = Some(unit.dts.since(last));
            }
            self.last_keyframe_dts = Some(unit.dts);
        }
        self.order.reordered() != before
    }

    pub(super) fn describe(&mut self, now: Instant) -> Track {
        Track {
            id: self.id,
            rendition: Arc::clone(&self.rendition),
            configuration: Arc::clone(&self.configuration),
            configuration_id: self.configuration_id,
            bitrate: self.rate.measure(now).0,
            reordered: self.order.reordered(),
        }
    }

    pub(super) fn observed(&mut self, now: Instant) -> super::Observed {
        super::Observed {
            track: self.id,
            units_per_second: self.rate.measure(now).1,
            keyframe_interval: self.keyframe_interval,
        }
    }
}

fn order_of(configuration: &Configuration) -> Order {
    match configuration {
        Configuration::H264(h264) => Order::new(h264.max_reorder_frames),
        Configuration::Aac(_) | Configuration::Opus(_) => Order::default(),
    }
}
