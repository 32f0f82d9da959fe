//! Whom this node feeds, stream by stream: the [`Children`] of each, shared by those who feed and those who are fed for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use headwater_media::id::{NodeId, StreamName};
use headwater_media::tree::{ChildId, Children, Config, Joining, Path, Room, Verdict};

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
    streams: Mutex<HashMap<StreamName, Weak<Feed>>>,
}

/// One stream's children. It is forgotten when nobody holds it.
#[derive(Debug)]
pub struct Feed {
    name: StreamName,
    children: Mutex<Children>,
    table: Weak<Inner>,
}

/// A child's place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    feed: Arc<Feed>,
    id: ChildId,
}

impl Feeding {
    /// Of an origin, which streams begin at.
    pub fn origin(config: Config, me: NodeId) -> Self {
        Self::new(config, me, Some(Path::default()))
    }

    /// Of an edge, which feeds nobody before it is fed ([`Feed::handle_path`]).
    pub fn edge(config: Config, me: NodeId) -> Self {
        Self::new(config, me, None)
    }

    fn new(config: Config, me: NodeId, path: Option<Path>) -> Self {
        Self {
            inner: Arc::new(Inner {
                config,
                me,
                path,
                load_percent: AtomicU32::new(0),
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
    pub fn of(&self, name: &StreamName) -> Arc<Feed> {
        let mut streams = self.inner.streams();
        if let Some(feed) = streams.get(name).and_then(Weak::upgrade) {
            return feed;
        }
        let mut children = Children::new(self.inner.config, self.inner.me.clone());
        children.handle_path(self.inner.path.clone());
        let feed = Arc::new(Feed {
            name: name.clone(),
            children: Mutex::new(children),
            table: Arc::downgrade(&self.inner),
        });
        streams.insert(name.clone(), Arc::downgrade(&feed));
        feed
    }
}

impl Inner {
    fn streams(&self) -> MutexGuard<'_, HashMap<StreamName, Weak<Feed>>> {
        // Every change is one map operation, so a panic of another holder has broken nothing.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else {
            return;
        };
        let mut streams = table.streams();
        // Somebody may have begun anew meanwhile.
        if streams
            .get(&self.name)
            .is_some_and(|feed| feed.strong_count() == 0)
        {
            streams.remove(&self.name);
        }
    }
}

impl Feed {
    /// What becomes of a subscriber; its place, if it is taken.
    pub fn judge(self: &Arc<Self>, joining: &Joining) -> (Verdict, Option<Place>) {
        let mut children = self.children();
        let verdict = children.judge(joining);
        let place = (verdict == Verdict::Take).then(|| Place {
            id: children.join(joining),
            feed: Arc::clone(self),
        });
        (verdict, place)
    }

    /// How the stream comes here now; none: it doesn't.
    pub fn handle_path(&self, path: Option<Path>) {
        self.children().handle_path(path);
    }

    /// What to say of this node to those who feed it.
    pub fn room(&self) -> Room {
        self.children().room()
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
        self.feed.children().handle_room(self.id, room);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.feed.children().leave(self.id);
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
        let feeding = Feeding::origin(config, "o1".parse().unwrap());
        let name: StreamName = "live/a".parse().unwrap();
        let joining = Joining::default();
        let (verdict, place) = feeding.of(&name).judge(&joining);
        assert_eq!(verdict, Verdict::Take);
        assert!(feeding.of(&name).judge(&joining).1.is_none(), "it is full");
        assert_eq!(feeding.inner.streams().len(), 1);
        drop(place);
        assert_eq!(feeding.inner.streams().len(), 0);
        assert!(feeding.of(&name).judge(&joining).1.is_some());
        feeding.set_load(2.0);
        assert_eq!(feeding.of(&name).room().load_percent, 100);
    }
}
