//! A contributor's place at its stream: one that sends a rendition (`?rendition=480p`) of what another connection publishes.
//!
//! It may come before the stream's publisher and outlast it: the registry connects it to the stream's actor once there is one, and again
//! when there is another. Until then its units are dropped and counted.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::Addr;
use headwater_media::codec::h264;
use headwater_media::id::{ContributorId, RenditionName};
use headwater_media::track::Configuration;
use headwater_media::unit::{IngestUnit, MediaKind, SourceTrack};
use headwater_node::actor::{Sender, Undelivered};
use headwater_node::clock::Clock;
use metrics::counter;

use crate::describe::Publisher;
use crate::metrics as names;
use crate::publication::Slot;
use crate::registry::Revoked;
use crate::stream::StreamActor;
use crate::stream::contributors::{Contribute, Contributes, ContributorLeaves, Recode};

/// What registry, stream and session share of a contributor.
#[derive(Debug)]
pub(crate) struct Contributor {
    pub(crate) id: ContributorId,
    pub(crate) rendition: RenditionName,
    pub(crate) publisher: Publisher,
    pub(crate) slot: Slot,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    links: Option<Links>,
    /// The newest, for a stream that comes later.
    configuration: Option<h264::Configuration>,
}

/// The stream's ends of the link.
#[derive(Debug)]
struct Links {
    deliver: Sender<Contribute>,
    configure: Sender<Recode>,
    leave: Sender<ContributorLeaves>,
}

impl Contributor {
    pub(crate) fn new(
        id: ContributorId,
        rendition: RenditionName,
        publisher: Publisher,
        clock: &Clock,
    ) -> Self {
        Self {
            id,
            rendition,
            publisher,
            slot: Slot::new(clock.wall()),
            link: Mutex::default(),
        }
    }

    /// There is a stream to contribute to.
    pub(crate) fn connect(self: &Arc<Self>, actor: &Addr<StreamActor>) {
        let mut link = self.lock();
        // Who leaves says so before it takes the lock, and would tell nobody of this stream.
        if self.slot.left() {
            return;
        }
        Sender::<Contributes>::new(actor).post(Contributes {
            contributor: Arc::clone(self),
        });
        let links = Links {
            deliver: Sender::new(actor),
            configure: Sender::new(actor),
            leave: Sender::new(actor),
        };
        if let Some(configuration) = &link.configuration {
            links.configure.post(Recode {
                contributor: self.id,
                configuration: configuration.clone(),
            });
        }
        link.links = Some(links);
    }

    /// The stream is over.
    pub(crate) fn disconnect(&self) {
        self.lock().links = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module. Dropping it says that the contributor left.
#[derive(Debug)]
pub struct Contribution {
    contributor: Arc<Contributor>,
    clock: Clock,
    /// Units were dropped since the last one that got through.
    lost: AtomicBool,
}

impl Contribution {
    pub(crate) const fn new(contributor: Arc<Contributor>, clock: Clock) -> Self {
        Self {
            contributor,
            clock,
            lost: AtomicBool::new(false),
        }
    }

    /// The contributor announced or changed how it codes its rendition. Its sound, and tracks beside its default one, are left aside.
    pub fn configure(&self, track: SourceTrack, configuration: Configuration) {
        let Configuration::H264(configuration) = configuration else {
            return;
        };
        if track != SourceTrack::DEFAULT {
            return;
        }
        let mut link = self.contributor.lock();
        link.configuration = Some(configuration.clone());
        if let Some(links) = &link.links {
            links.configure.post(Recode {
                contributor: self.contributor.id,
                configuration,
            });
        }
    }

    /// Hands one access unit over. Never waits: what the stream can't take is dropped up to the next keyframe and counted.
    pub fn deliver(&self, unit: IngestUnit) {
        self.contributor.slot.alive(self.clock.wall());
        if unit.kind == MediaKind::Audio || unit.track != SourceTrack::DEFAULT {
            return;
        }
        let after_loss = self.lost.load(Ordering::Relaxed);
        let link = self.contributor.lock();
        let Some(links) = &link.links else {
            counter!(names::UNITS_DROPPED, "reason" => "no_source").increment(1);
            return;
        };
        if after_loss && !unit.keyframe {
            counter!(names::UNITS_DROPPED, "reason" => "overflow").increment(1);
            return;
        }
        let sent = links.deliver.try_send(Contribute {
            contributor: self.contributor.id,
            after_loss,
            unit,
        });
        if matches!(sent, Err(Undelivered::Full)) {
            counter!(names::UNITS_DROPPED, "reason" => "overflow").increment(1);
        }
        self.lost.store(sent.is_err(), Ordering::Relaxed);
    }

    /// Resolves when this contributor must leave, with the reason.
    pub async fn revoked(&self) -> Revoked {
        self.contributor.slot.revoked().await
    }
}

impl Drop for Contribution {
    fn drop(&mut self) {
        self.contributor.slot.leave();
        if let Some(links) = self.contributor.lock().links.take() {
            links.leave.post(ContributorLeaves {
                contributor: self.contributor.id,
            });
        }
    }
}

/// The contributors of a stream's name, as the registry keeps them.
#[derive(Debug, Default)]
pub(crate) struct Contributors {
    all: Vec<Arc<Contributor>>,
    /// Since when they have no source; none while they have one.
    waiting_since: Option<Instant>,
}

/// Contributors of one stream (count): as many as it may have renditions.
const CONTRIBUTORS_MAX: usize = 16;

/// Why a contributor is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Somebody sends this rendition.
    Busy,
    /// There are as many as may be.
    TooMany,
}

impl Contributors {
    /// Takes one more. One of the same rendition that left, or was silent for longer than `takeover`, makes place.
    pub(crate) fn add(
        &mut self,
        contributor: Arc<Contributor>,
        clock: &Clock,
        takeover: Duration,
    ) -> Result<(), Refused> {
        self.all.retain(|other| !other.slot.left());
        let same = |other: &Arc<Contributor>| other.rendition == contributor.rendition;
        if let Some(at) = self.all.iter().position(same) {
            if self.all[at].slot.silent_for(clock.wall()) <= takeover {
                return Err(Refused::Busy);
            }
            self.all.swap_remove(at).slot.revoke(Revoked::Replaced);
        }
        if self.all.len() >= CONTRIBUTORS_MAX {
            return Err(Refused::TooMany);
        }
        self.all.push(contributor);
        Ok(())
    }

    /// There are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// There is a source, at this actor.
    pub(crate) fn connect(&mut self, actor: &Addr<StreamActor>) {
        self.waiting_since = None;
        self.all.iter().for_each(|other| other.connect(actor));
    }

    /// There is none any more.
    pub(crate) fn disconnect(&mut self, now: Instant) {
        self.waiting_since = Some(now);
        self.all.iter().for_each(|other| other.disconnect());
    }

    /// Those who waited for a source longer than `patience` must leave; true if nobody is left.
    pub(crate) fn expire(&mut self, now: Instant, patience: Duration) -> bool {
        self.all.retain(|other| !other.slot.left());
        let since = *self.waiting_since.get_or_insert(now);
        if now.saturating_duration_since(since) > patience {
            self.revoke(Revoked::NoSource);
        }
        self.all.is_empty()
    }

    /// All must leave.
    pub(crate) fn revoke(&mut self, reason: Revoked) {
        for other in self.all.drain(..) {
            other.slot.revoke(reason);
        }
    }
}
