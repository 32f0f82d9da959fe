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
use headwater_node::replication::{EndReason, Feed, Item};
use tokio::sync::{mpsc, watch};

/// Messages that may wait for one child's session (count). The session always drains it; this covers its scheduling.
const QUEUE: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Relay {
    inner: Mutex<Inner>,
    /// What the children want, all together.
    wants: watch::Sender<Want>,
    feed: Arc<Feed>,
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
    items: mpsc::Sender<Item>,
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
    pub(crate) fn new(config: stream::Config, feed: Arc<Feed>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                store: Store::new(config),
                children: Vec::new(),
                next: 0,
            }),
            wants: watch::Sender::default(),
            feed,
        }
    }

    /// Whom this node feeds with the stream, and how it comes here.
    pub(crate) fn feed(&self) -> &Feed {
        &self.feed
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
        inner.children.push(Child { id, items, want });
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
            // On a full queue the tracks begin at their next keyframe instead.
            let _ = child.items.try_send(Item::Backlog(units));
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
        self.children
            .retain(|child| match child.items.try_send(item.clone()) {
                Ok(()) => true,
                // Its session counts what is missing by the sequence numbers.
                Err(mpsc::error::TrySendError::Full(_)) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
    }
}
