//! A replica as other edges get it: what is kept of the stream for them, and their queues.
//!
//! Kept while this edge passes streams on at all (`edge.grpc`), whether anybody is fed just now or not: who loses the node between this one
//! and itself comes here, and goes on without a gap only if this one has kept what it missed. Units are shared with the replica's
//! own way, so it costs their payloads for the resume window's seconds, and a lock without contention per unit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headwater_media::id::TrackId;
use headwater_media::replication::{Position, Store, Want};
use headwater_media::stream::{self, Attachment};
use headwater_media::track::StreamInfo;
use headwater_media::unit::AccessUnit;
use headwater_node::replication::{Branch, EndReason, Item, Outlet};
use tokio::sync::{mpsc, watch};

/// Messages that may wait for one child's session (count). The session always drains it; this covers its scheduling.
const QUEUE: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    inner: Mutex<Inner>,
    /// What the children want, all together.
    wants: watch::Sender<Want>,
    branch: Arc<Branch>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    children: Vec<Child>,
    next: u64,
}

#[derive(Debug)]
struct Child {
    id: u64,
    outlet: Outlet,
    want: Want,
}

/// What a child begins with.
pub(crate) struct Start {
    pub(crate) id: u64,
    pub(crate) attachment: Attachment,
    pub(crate) items: mpsc::Receiver<Item>,
}

impl Relay {
    /// Of a stream that has not come yet.
    pub(crate) fn new(config: stream::Config, branch: Arc<Branch>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                store: Store::new(config),
                children: Vec::new(),
                next: 0,
            }),
            wants: watch::Sender::default(),
            branch,
        }
    }

    /// Whom this node feeds with the stream, and how it comes here.
    pub(crate) fn branch(&self) -> &Branch {
        &self.branch
    }

    /// What the children want, all together.
    pub(crate) fn wants(&self) -> watch::Receiver<Want> {
        self.wants.subscribe()
    }

    /// The stream is this from now on.
    pub(crate) fn handle_info(&self, info: &Arc<StreamInfo>) {
        let mut inner = self.inner();
        inner.store.handle_info(info);
        inner.tell(&Item::Info(Arc::clone(info)));
        // Whose queue is closed has left.
        self.update_wants(&inner);
    }

    /// The next unit came.
    pub(crate) fn handle_unit(&self, now: Instant, unit: &Arc<AccessUnit>) {
        let mut inner = self.inner();
        inner.store.handle_unit(now, unit);
        inner.tell(&Item::Unit(Arc::clone(unit)));
    }

    /// These tracks come from now on, no others.
    pub(crate) fn handle_want(&self, want: &[TrackId]) {
        self.inner().store.handle_want(want);
    }

    /// Nothing more comes: the children are sent away.
    pub(crate) fn end(&self, reason: EndReason) {
        let mut inner = self.inner();
        inner.tell(&Item::End(reason));
        inner.children.clear();
        inner.store.clear();
        self.update_wants(&inner);
    }

    /// What is kept of these tracks.
    pub(crate) fn backlog(&self, tracks: &[TrackId]) -> Vec<Arc<AccessUnit>> {
        self.inner().store.backlog(tracks)
    }

    /// A child comes; none before the stream is described.
    pub(crate) fn attach(&self, have: &[Position], want: Want) -> Option<Start> {
        let mut inner = self.inner();
        let attachment = inner.store.attach(have)?;
        let (items, queue) = mpsc::channel(QUEUE);
        inner.next += 1;
        let id = inner.next;
        inner.children.push(Child {
            id,
            outlet: Outlet::new(items),
            want,
        });
        self.update_wants(&inner);
        Some(Start {
            id,
            attachment,
            items: queue,
        })
    }

    /// A child wants something else.
    pub(crate) fn want(&self, id: u64, want: &Want) {
        let mut inner = self.inner();
        if let Some(child) = inner.child(id) {
            child.want = want.clone();
        }
        self.update_wants(&inner);
    }

    /// A child wants what is kept of these tracks.
    pub(crate) fn send_backlog(&self, id: u64, tracks: &[TrackId]) {
        let mut inner = self.inner();
        let units = inner.store.backlog(tracks);
        if let Some(child) = inner.child(id) {
            child.outlet.give(units);
        }
    }

    /// A child leaves.
    pub(crate) fn detach(&self, id: u64) {
        let mut inner = self.inner();
        inner.children.retain(|child| child.id != id);
        self.update_wants(&inner);
    }

    fn update_wants(&self, inner: &Inner) {
        let all = inner.children.iter();
        let all = all.fold(Want::default(), |all, child| all.union(&child.want));
        self.wants.send_if_modified(|wants| {
            let changed = *wants != all;
            *wants = all;
            changed
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn child(&mut self, id: u64) -> Option<&mut Child> {
        self.children.iter_mut().find(|child| child.id == id)
    }

    fn tell(&mut self, item: &Item) {
        let info = self.store.info();
        let info = || info.cloned();
        self.children
            .retain_mut(|child| child.outlet.tell(item, info));
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::id::Epoch;
    use headwater_media::testkit;
    use headwater_media::time::MediaTime;
    use headwater_media::track::Configuration;
    use headwater_media::tree::Config;
    use headwater_node::replication::Feeding;

    use super::*;

    fn relay() -> Relay {
        let config = Config {
            fanout: 4,
            depth_max: 4,
            overflows: false,
        };
        let feeding = Feeding::edge(config, 100, "e1".parse().unwrap());
        let branch = feeding.of(&"live/demo".parse().unwrap());
        Relay::new(crate::config::Config::default().store(), branch)
    }

    fn info(epoch: u64) -> Arc<StreamInfo> {
        let configuration = Configuration::H264(testkit::h264_configuration());
        let video = testkit::track(TrackId::SOURCE_VIDEO, configuration);
        Arc::new(testkit::stream_info(epoch, vec![video]))
    }

    fn unit(epoch: u64, sequence: u64) -> Arc<AccessUnit> {
        Arc::new(testkit::unit(
            TrackId::SOURCE_VIDEO,
            epoch,
            sequence,
            MediaTime::ZERO,
        ))
    }

    #[test]
    fn a_description_that_found_a_full_queue_comes_before_the_next_unit() {
        let (relay, now) = (relay(), testkit::start());
        relay.handle_info(&info(1));
        let mut start = relay.attach(&[], Want::default()).expect("described");
        let mut sequence = 0;
        while start.items.len() < QUEUE {
            relay.handle_unit(now, &unit(1, sequence));
            sequence += 1;
        }
        relay.handle_info(&info(2));
        relay.handle_unit(now, &unit(2, 0));
        for _ in 0..QUEUE {
            assert!(
                matches!(start.items.try_recv(), Ok(Item::Unit(unit)) if unit.epoch == Epoch(1))
            );
        }
        relay.handle_unit(now, &unit(2, 1));
        assert!(matches!(start.items.try_recv(), Ok(Item::Info(info)) if info.epoch == Epoch(2)));
        assert!(matches!(start.items.try_recv(), Ok(Item::Unit(unit)) if unit.sequence == 1));
        assert!(start.items.try_recv().is_err(), "it is told once");
    }
}
