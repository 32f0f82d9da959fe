//! Whom this node feeds, stream by stream: the [`Children`] of each, shared by those who feed and those who are fed for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use headwater_media::id::{NodeId, StreamName};
use headwater_media::tree::{
    Alternative, Capacity, ChildId, Children, Config, Joining, Path, Refusal, Room, Verdict,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The streams that this node feeds others with. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feeding {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    me: NodeId,
    /// The path of streams that nobody has told one of.
    path: Option<Path>,
    load_percent: AtomicU32,
    /// Subscribers that may come, over all streams.
    permits: Arc<Semaphore>,
    streams: Mutex<HashMap<StreamName, Weak<Branch>>>,
}

/// One stream's children. It is forgotten when nobody holds it.
#[derive(Debug)]
pub struct Branch {
    name: StreamName,
    children: Mutex<Children>,
    permits: Arc<Semaphore>,
    table: Weak<Inner>,
}

/// What becomes of a subscriber.
#[derive(Debug)]
pub enum Judged {
    /// It is fed, as long as it keeps this.
    Taken(Place),
    /// It is sent to one of these, best first.
    Redirected(Vec<Alternative>),
}

/// Why a subscriber is neither taken nor sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This node feeds as many as it may over all streams, and nobody else is known.
    #[error("this node takes no more subscribers")]
    Subscribers,
    /// It is for this stream.
    #[error(transparent)]
    Stream(#[from] Refusal),
}

/// A child's place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    branch: Arc<Branch>,
    id: ChildId,
    _permit: OwnedSemaphorePermit,
}

impl Feeding {
    /// Of an origin, which streams begin at; for so many subscribers over all streams.
    pub fn origin(config: Config, subscribers_max: usize, me: NodeId) -> Self {
        Self::new(config, subscribers_max, me, Some(Path::default()))
    }

    /// Of an edge, which feeds nobody before it is fed ([`Branch::handle_path`]).
    pub fn edge(config: Config, subscribers_max: usize, me: NodeId) -> Self {
        Self::new(config, subscribers_max, me, None)
    }

    fn new(config: Config, subscribers_max: usize, me: NodeId, path: Option<Path>) -> Self {
        let permits = subscribers_max.min(Semaphore::MAX_PERMITS);
        Self {
            inner: Arc::new(Inner {
                config,
                me,
                path,
                load_percent: AtomicU32::new(0),
                permits: Arc::new(Semaphore::new(permits)),
                streams: Mutex::default(),
            }),
        }
    }

    /// Who this is.
    pub fn me(&self) -> &NodeId {
        &self.inner.me
    }

    /// How far from the publisher those may be whom this node feeds (count).
    pub fn depth_max(&self) -> usize {
        self.inner.config.depth_max
    }

    /// What this node's load is now (0 idle, 1 full).
    pub fn set_load(&self, load: f64) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let percent = (load * 100.0).clamp(0.0, 100.0) as u32;
        self.inner.load_percent.store(percent, Ordering::Relaxed);
    }

    /// A stream's children, none if nobody held them until now.
    pub fn of(&self, name: &StreamName) -> Arc<Branch> {
        let mut streams = self.inner.streams();
        if let Some(branch) = streams.get(name).and_then(Weak::upgrade) {
            return branch;
        }
        let mut children = Children::new(self.inner.config, self.inner.me.clone());
        if let Some(path) = self.inner.path.clone() {
            children.handle_path(path);
        }
        let branch = Arc::new(Branch {
            name: name.clone(),
            children: Mutex::new(children),
            permits: Arc::clone(&self.inner.permits),
            table: Arc::downgrade(&self.inner),
        });
        streams.insert(name.clone(), Arc::downgrade(&branch));
        branch
    }
}

impl Inner {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamName, Weak<Branch>>> {
        // Every change is one map operation, so a panic of another holder has broken nothing.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else {
            return;
        };
        let mut streams = table.streams();
        // Somebody may have begun anew meanwhile.
        if streams
            .get(&self.name)
            .is_some_and(|branch| branch.strong_count() == 0)
        {
            streams.remove(&self.name);
        }
    }
}

impl Branch {
    /// What becomes of a subscriber; its place, if it is taken.
    ///
    /// # Errors
    /// If it is neither taken nor sent on.
    pub fn judge(self: &Arc<Self>, joining: &Joining) -> Result<Judged, Refused> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok();
        let capacity = match permit {
            Some(_) => Capacity::Free,
            None => Capacity::Exhausted,
        };
        let mut children = self.children();
        match (children.judge(joining, capacity), permit) {
            (Verdict::Take, Some(permit)) => Ok(Judged::Taken(Place {
                id: children.join(joining),
                branch: Arc::clone(self),
                _permit: permit,
            })),
            (Verdict::Redirect(alternatives), _) => Ok(Judged::Redirected(alternatives)),
            (Verdict::Refuse(Refusal::Full) | Verdict::Take, None) => Err(Refused::Subscribers),
            (Verdict::Refuse(refusal), _) => Err(Refused::Stream(refusal)),
        }
    }

    /// How the stream comes here now.
    pub fn handle_path(&self, path: Path) {
        self.children().handle_path(path);
    }

    /// It doesn't: see [`Children::handle_orphaned`].
    pub fn handle_orphaned(&self, levels: u32) {
        self.children().handle_orphaned(levels);
    }

    /// See [`Children::orphaned_levels`].
    pub fn orphaned_levels(&self) -> u32 {
        self.children().orphaned_levels()
    }

    /// What to say of this node to those who feed it.
    pub fn room(&self) -> Room {
        let mut room = self.children().room();
        let permits = u32::try_from(self.permits.available_permits());
        room.free = room.free.min(permits.unwrap_or(u32::MAX));
        room
    }

    fn children(&self) -> MutexGuard<'_, Children> {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = self.table.upgrade() {
            children.handle_load(table.load_percent.load(Ordering::Relaxed));
        }
        children
    }
}

impl Place {
    /// The child says what it can take.
    pub fn handle_room(&self, room: Room) {
        self.branch.children().handle_room(self.id, room);
    }

    /// The child says whom it doesn't want to be fed by.
    pub fn handle_avoid(&self, avoid: Vec<NodeId>) {
        self.branch.children().handle_avoid(self.id, avoid);
    }

    /// See [`Children::orphaned_levels`].
    pub fn orphaned_levels(&self) -> u32 {
        self.branch.orphaned_levels()
    }

    /// Where the child is to go, if it is one too many; see [`Children::shed`].
    pub fn shed(&self) -> Option<Vec<Alternative>> {
        self.branch.children().shed(self.id)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.branch.children().leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_up_with_their_calls_and_streams_with_their_last_holder() {
        let config = Config {
            fanout: 1,
            depth_max: 4,
            overflows: false,
        };
        let feeding = Feeding::origin(config, 2, "o1".parse().unwrap());
        let name: StreamName = "live/a".parse().unwrap();
        let joining = Joining::default();
        let take = |stream: &str| feeding.of(&stream.parse().unwrap()).judge(&joining);
        let Ok(Judged::Taken(place)) = take("live/a") else {
            panic!("there is a place");
        };
        let full = take("live/a").expect_err("it is full");
        assert_eq!(full, Refused::Stream(Refusal::Full));
        assert_eq!(feeding.inner.streams().len(), 1);
        let other = take("live/b");
        assert_eq!(
            take("live/c").expect_err("so is the node"),
            Refused::Subscribers
        );
        assert_eq!(feeding.of(&name).room().free, 0);
        drop((place, other));
        assert_eq!(feeding.inner.streams().len(), 0);
        assert!(take("live/a").is_ok());
        feeding.set_load(2.0);
        assert_eq!(feeding.of(&name).room().load_percent, 100);
    }
}
