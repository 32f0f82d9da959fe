//! Where the legs of a subscription come together: each unit goes on once and in order, to the replica and to the edges that this one feeds.
//!
//! The legs share it under a lock that they hold for moments. What the stream is, is told by the first leg that has a call; the others only
//! when they know of something newer. A leg that is lost is no news while another one lives. A call that brings an older publisher than is
//! known by another leg, or comes through an edge that another leg comes through, doesn't count: the one brings nothing, and the other
//! would be lost together with that leg. Neither does one whose upstream says that it gets nothing itself, or those above it.
//!
//! Whoever gets nothing takes nobody new, but keeps those it feeds and tells them: see [`tree::Patience`](headwater_media::tree::Patience).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headwater_media::id::{Epoch, NodeId, StreamName, TrackId};
use headwater_media::replication::{Merge, Position, Want};
use headwater_media::track::StreamInfo;
use headwater_media::tree::Path;
use headwater_media::unit::AccessUnit;
use headwater_node::Node;
use headwater_node::actor::{Sender, Undelivered};
use headwater_node::replication::EndReason;
use metrics::{counter, gauge};
use tokio::sync::watch;
use tracing::debug;

use super::{DEPTH, LOST, Options, REFUSED, Stopped};
use crate::relay::Relay;
use crate::replica::{Feed, UpstreamState};

/// Depths that the gauge tells apart (count).
const DEPTHS: usize = 8;

/// What an upstream's description of the stream means for its leg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// The leg is one of those that bring the stream.
    Counts,
    /// It brings an older publisher than is known.
    Behind,
    /// It comes through an edge that another leg comes through.
    Shares,
}

/// See the module.
pub(super) struct Trunk {
    pub(super) node: Node,
    pub(super) name: StreamName,
    pub(super) options: Options,
    pub(super) relay: Option<Arc<Relay>>,
    /// Legs that have a call (count).
    pub(super) connected: watch::Sender<usize>,
    inner: Mutex<Inner>,
}

struct Inner {
    merge: Merge,
    legs: Vec<Option<Arc<StreamInfo>>>,
    feed: Sender<Feed>,
    /// What was told last.
    info: Option<Arc<StreamInfo>>,
    told: Option<UpstreamState>,
    /// Tracks that the replica itself wants.
    own: Vec<TrackId>,
    /// Tracks of which the replica's full mailbox refused units (count): they go on at their next keyframe.
    refused: Vec<(TrackId, u64)>,
    /// How far above this node somebody has no upstream, by the legs whose calls don't count for that (levels); 0: not one of them.
    waiting: Vec<u32>,
    /// Nobody is fed any more: this node, or the subscription, is about to end.
    leaving: bool,
}

impl Trunk {
    pub(super) fn new(
        node: &Node,
        name: StreamName,
        options: Options,
        legs: usize,
        feed: Sender<Feed>,
        relay: Option<Arc<Relay>>,
    ) -> Self {
        Self {
            node: node.clone(),
            name,
            options,
            relay,
            connected: watch::Sender::default(),
            inner: Mutex::new(Inner {
                merge: Merge::default(),
                legs: vec![None; legs],
                feed,
                info: None,
                told: None,
                own: Vec::new(),
                refused: Vec::new(),
                waiting: vec![0; legs],
                leaving: false,
            }),
        }
    }

    /// Where a leg is to go on.
    pub(super) fn have(&self) -> (Option<Epoch>, Vec<Position>) {
        let inner = self.inner();
        (inner.merge.epoch(), inner.merge.have())
    }

    /// The publisher's incarnation, as far as is known here.
    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.inner().merge.epoch()
    }

    /// The nodes that feed the other legs, which this one had better avoid.
    pub(super) fn others(&self, leg: usize) -> Vec<NodeId> {
        let inner = self.inner();
        let mut nodes = Vec::new();
        for (_, info) in inner.connected().filter(|(index, _)| *index != leg) {
            match info.path.nodes() {
                // The origin is on every path; whom it feeds itself had better not be fed by it twice.
                [_, edges @ ..] if !edges.is_empty() => nodes.extend_from_slice(edges),
                origin => nodes.extend_from_slice(origin),
            }
        }
        nodes
    }

    /// A leg has a call.
    pub(super) fn connected_by(&self, leg: usize) -> bool {
        self.inner().legs[leg].is_some()
    }

    /// Nobody else brings the stream.
    pub(super) fn alone(&self, leg: usize) -> bool {
        self.inner().connected().all(|(index, _)| index == leg)
    }

    /// The replica and the children want this. What is kept of tracks that are new to the replica goes to it.
    pub(super) fn handle_want(&self, own: &Want, all: &Want) {
        let mut inner = self.inner();
        let fresh: Vec<TrackId> = own
            .tracks
            .iter()
            .copied()
            .filter(|id| !inner.own.contains(id))
            .collect();
        inner.own.clone_from(&own.tracks);
        inner.merge.handle_want(&all.tracks);
        if let Some(relay) = &self.relay {
            relay.handle_want(&all.tracks);
            for unit in relay.backlog(&fresh) {
                // The replica drops what it can't take to the next keyframe by itself: it has not begun with these.
                let _ = inner.feed.try_send(Feed::Unit { unit, came: None });
            }
        }
    }

    /// A leg's upstream says what the stream is.
    pub(super) fn handle_info(&self, leg: usize, info: &Arc<StreamInfo>) -> Standing {
        let now = self.node.clock.now();
        let mut inner = self.inner();
        if !inner.merge.handle_epoch(info.epoch) {
            if !self.detach(now, &mut inner, leg) {
                Self::orphan(&mut inner, self.relay.as_deref(), None);
            }
            return Standing::Behind;
        }
        let shares = inner.connected().any(|(index, other)| {
            index != leg && other.epoch == info.epoch && share(&other.path, &info.path)
        });
        if shares {
            self.detach(now, &mut inner, leg);
            return Standing::Shares;
        }
        for other in 0..inner.legs.len() {
            // Whoever brings an older publisher counts again when it has heard of this one.
            if inner.legs[other]
                .as_ref()
                .is_some_and(|other| other.epoch < info.epoch)
                && other != leg
            {
                inner.take(now, other);
            }
        }
        let before = inner.legs[leg].replace(Arc::clone(info));
        if before.is_none() {
            inner.merge.handle_up(leg);
        }
        count_depth(before.as_deref(), Some(info));
        inner.waiting[leg] = 0;
        let first = inner
            .connected()
            .next()
            .is_some_and(|(index, _)| index == leg);
        let tells = match &inner.info {
            Some(told) => newer(info, told) || (first && !newer(told, info)),
            None => true,
        };
        if tells {
            inner.info = Some(Arc::clone(info));
        }
        inner.tell(UpstreamState::Connected);
        self.announce(&inner);
        self.connected.send_replace(inner.connected().count());
        Standing::Counts
    }

    /// What the upstream of the only leg offers has nothing to do with what was before, and those whom this node feeds have to begin anew
    /// as well: units of an older publisher would be refused on their way.
    pub(super) fn reset(&self) {
        let mut inner = self.inner();
        inner.merge.reset();
        inner.info = None;
        if let Some(relay) = &self.relay {
            relay.end(EndReason::Moved);
        }
    }

    /// A leg's upstream sent a unit.
    pub(super) fn handle_unit(&self, leg: usize, unit: Arc<AccessUnit>) -> Result<(), Stopped> {
        let now = self.node.clock.now();
        let mut inner = self.inner();
        inner.merge.handle_unit(now, leg, unit);
        self.hand_on(now, &mut inner)
    }

    /// What is awaited for too long is given up.
    pub(super) fn handle_timeout(&self) -> Result<(), Stopped> {
        let now = self.node.clock.now();
        let mut inner = self.inner();
        inner.merge.handle_timeout(now);
        self.hand_on(now, &mut inner)
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.inner().merge.poll_timeout()
    }

    /// A leg's upstream says that nothing comes, since somebody so many levels above this node has lost its own: the leg doesn't count
    /// until it brings the stream's description again.
    pub(super) fn handle_orphaned(&self, leg: usize, levels: u32, state: UpstreamState) {
        let now = self.node.clock.now();
        let mut inner = self.inner();
        inner.waiting[leg] = levels;
        if !self.detach(now, &mut inner, leg) {
            Self::orphan(&mut inner, self.relay.as_deref(), Some(state));
        }
    }

    /// A leg has no call any more, or found none.
    pub(super) fn handle_down(&self, leg: usize, state: Option<UpstreamState>) {
        let now = self.node.clock.now();
        let mut inner = self.inner();
        inner.waiting[leg] = 0;
        if !self.detach(now, &mut inner, leg) {
            Self::orphan(&mut inner, self.relay.as_deref(), state);
        }
    }

    /// Nobody brings the stream.
    fn orphan(inner: &mut Inner, relay: Option<&Relay>, state: Option<UpstreamState>) {
        if let Some(state) = state {
            inner.tell(state);
        }
        let Some(relay) = relay else {
            return;
        };
        let above = inner.waiting.iter().copied().filter(|levels| *levels > 0);
        let levels = above.min().unwrap_or(0).saturating_add(1);
        relay.branch().handle_orphaned(levels);
        if state == Some(UpstreamState::Ended) {
            relay.end(EndReason::Ended);
        }
    }

    /// The last thing that was said of the upstreams.
    pub(super) fn told(&self) -> Option<UpstreamState> {
        self.inner().told
    }

    /// Those whom this node feeds have to find another.
    pub(super) fn handle_leaving(&self) {
        let mut inner = self.inner();
        inner.leaving = true;
        if let Some(relay) = &self.relay {
            relay.branch().handle_orphaned(1);
            relay.end(EndReason::Moved);
        }
    }

    /// A leg doesn't bring the stream any more. True: another one does.
    fn detach(&self, now: Instant, inner: &mut Inner, leg: usize) -> bool {
        let before = inner.take(now, leg);
        // Its replica is gone if this fails, and so will be the rest.
        let _ = self.hand_on(now, inner);
        self.connected.send_replace(inner.connected().count());
        let other = inner.connected().next().map(|(_, info)| Arc::clone(info));
        let Some(other) = other else {
            return false;
        };
        if before.is_some() {
            // What the lost one knew of and this one doesn't yet is true all the same.
            if inner.info.as_ref().is_none_or(|told| !newer(told, &other)) {
                inner.info = Some(other);
            }
            self.announce(inner);
        }
        true
    }

    fn announce(&self, inner: &Inner) {
        let Some(info) = &inner.info else {
            return;
        };
        if let Some(relay) = &self.relay {
            // Children are as far from the publisher as the longer way is.
            let paths = inner.connected().map(|(_, info)| &info.path);
            let path = paths.max_by_key(|path| path.depth()).cloned();
            let path = path.unwrap_or_default();
            let mut passed = StreamInfo::clone(info);
            passed.path = path.clone();
            // First this: who is taken begins with it.
            relay.handle_info(&Arc::new(passed));
            if !inner.leaving {
                relay.branch().handle_path(path);
            }
        }
        inner.feed.post(Feed::Info(Arc::clone(info)));
    }

    fn hand_on(&self, now: Instant, inner: &mut Inner) -> Result<(), Stopped> {
        while let Some(merged) = inner.merge.poll_unit() {
            if let Some(relay) = &self.relay {
                relay.handle_unit(now, &merged.unit);
            }
            if merged.lost > 0 {
                counter!(LOST).increment(merged.lost);
            }
            if inner.own.contains(&merged.unit.track) {
                inner.deliver(now, merged.unit, merged.lost)?;
            }
        }
        Ok(())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Legs that have a call, and what they were told.
    fn connected(&self) -> impl Iterator<Item = (usize, &Arc<StreamInfo>)> {
        let legs = self.legs.iter().enumerate();
        legs.filter_map(|(index, info)| Some((index, info.as_ref()?)))
    }

    /// A leg brings nothing more; what it was told.
    fn take(&mut self, now: Instant, leg: usize) -> Option<Arc<StreamInfo>> {
        let before = self.legs[leg].take();
        count_depth(before.as_deref(), None);
        self.merge.handle_down(now, leg);
        before
    }

    fn tell(&mut self, state: UpstreamState) {
        if self.told != Some(state) {
            self.told = Some(state);
            debug!(?state, "upstream");
            self.feed.post(Feed::Upstream(state));
        }
    }

    fn deliver(&mut self, now: Instant, unit: Arc<AccessUnit>, lost: u64) -> Result<(), Stopped> {
        let track = unit.track;
        let mut lost = lost;
        if let Some(at) = self.refused.iter().position(|(id, _)| *id == track) {
            if !unit.keyframe {
                self.refused[at].1 += 1;
                return Ok(());
            }
            lost += self.refused.swap_remove(at).1;
        }
        if lost > 0 {
            self.feed.post(Feed::Gap { track, lost });
        }
        let came = Some(now);
        match self.feed.try_send(Feed::Unit { unit, came }) {
            Ok(()) => Ok(()),
            Err(Undelivered::Full) => {
                counter!(REFUSED).increment(1);
                self.refused.push((track, 1));
                Ok(())
            }
            Err(Undelivered::Closed) => Err(Stopped),
        }
    }
}

/// An upstream that is behind says the same later; one that is ahead knows of a publisher or a configuration that the other doesn't.
fn newer(info: &StreamInfo, told: &StreamInfo) -> bool {
    let ahead = |track: &headwater_media::track::Track| {
        let known = told.track(track.id);
        known.is_some_and(|known| known.configuration_id < track.configuration_id)
    };
    info.epoch > told.epoch || info.tracks.iter().any(ahead)
}

/// Both ways come through an edge, which both would be lost with. The origin is on every way.
fn share(one: &Path, other: &Path) -> bool {
    let mut edges = one.nodes().iter().skip(1);
    edges.any(|edge| other.nodes().iter().skip(1).any(|node| node == edge))
}

fn count_depth(before: Option<&StreamInfo>, after: Option<&StreamInfo>) {
    let depth = |info: &StreamInfo| path_depth(&info.path);
    let (before, after) = (before.map(depth), after.map(depth));
    if before == after {
        return;
    }
    if let Some(depth) = before {
        gauge!(DEPTH, "depth" => depth.to_string()).decrement(1.0);
    }
    if let Some(depth) = after {
        gauge!(DEPTH, "depth" => depth.to_string()).increment(1.0);
    }
}

/// An older origin names no path, and is one node.
fn path_depth(path: &Path) -> usize {
    path.depth().clamp(1, DEPTHS)
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Context, Handler};
    use headwater_media::testkit;
    use headwater_media::time::MediaTime;
    use headwater_media::track::Track;
    use headwater_media::tree::Config;
    use headwater_node::clock::Clock;
    use headwater_node::directory::memory::MemoryDirectory;
    use headwater_node::replication::{Feeding, Item};
    use tokio::sync::mpsc;
    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Collector(mpsc::UnboundedSender<Feed>);

    impl Actor for Collector {
        type Context = Context<Self>;
    }

    impl Handler<Feed> for Collector {
        type Result = ();

        fn handle(&mut self, message: Feed, _: &mut Context<Self>) {
            let _ = self.0.send(message);
        }
    }

    /// A trunk of two legs that passes on what it gets, and what its replica is told.
    fn trunk() -> (Trunk, mpsc::UnboundedReceiver<Feed>) {
        let id: NodeId = "e9".parse().unwrap();
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id.clone())),
            io: tokio::runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        };
        let config = Config {
            fanout: 4,
            depth_max: 6,
            overflows: false,
        };
        let name: StreamName = "live/demo".parse().unwrap();
        let branch = Feeding::edge(config, 100, id).of(&name);
        let relay = Arc::new(Relay::new(crate::config::Config::default().store(), branch));
        let (feed, told) = mpsc::unbounded_channel();
        let feed = Sender::new(&Collector(feed).start());
        let trunk = Trunk::new(&node, name, Options::default(), 2, feed, Some(relay));
        (trunk, told)
    }

    fn info(epoch: u64, configuration_id: u32, path: &[&str]) -> Arc<StreamInfo> {
        let path: Vec<NodeId> = path.iter().map(|node| node.parse().unwrap()).collect();
        let track = Track {
            configuration_id,
            ..testkit::opus_track()
        };
        Arc::new(StreamInfo {
            path: path.into(),
            ..testkit::stream_info(epoch, vec![track])
        })
    }

    fn unit(epoch: u64, sequence: u64) -> Arc<AccessUnit> {
        Arc::new(testkit::unit(
            TrackId::OPUS,
            epoch,
            sequence,
            MediaTime::ZERO,
        ))
    }

    /// The stream as it was described last to the replica.
    async fn described(told: &mut mpsc::UnboundedReceiver<Feed>) -> (u64, u32) {
        // What was posted is in the actor's mailbox.
        tokio::task::yield_now().await;
        let mut last = None;
        while let Ok(message) = told.try_recv() {
            if let Feed::Info(info) = message {
                last = Some((info.epoch.0, info.tracks[0].configuration_id));
            }
        }
        last.expect("it was described")
    }

    #[actix::test]
    async fn an_upstream_with_an_older_publisher_does_not_count_until_it_has_the_newer() {
        let (trunk, mut told) = trunk();
        assert_eq!(
            trunk.handle_info(0, &info(1, 0, &["o1", "e1"])),
            Standing::Counts
        );
        assert_eq!(
            trunk.handle_info(1, &info(1, 0, &["o1", "e2"])),
            Standing::Counts
        );
        assert_eq!(
            trunk.handle_info(0, &info(2, 0, &["o2", "e1"])),
            Standing::Counts
        );
        assert!(!trunk.connected_by(1) && trunk.alone(0));
        assert_eq!(
            trunk.handle_info(1, &info(1, 0, &["o1", "e2"])),
            Standing::Behind
        );
        assert_eq!(*trunk.connected.borrow(), 1);
        // What it might send is not awaited.
        trunk.handle_want(
            &Want {
                tracks: vec![TrackId::OPUS],
                adaptive: false,
            },
            &Want {
                tracks: vec![TrackId::OPUS],
                adaptive: false,
            },
        );
        for sequence in [0, 5] {
            assert!(trunk.handle_unit(0, unit(2, sequence)).is_ok());
        }
        assert_eq!(trunk.poll_timeout(), None);
        // Nor is it what the stream is said to be when the other is lost.
        trunk.handle_down(0, Some(UpstreamState::Lost));
        assert_eq!(described(&mut told).await.0, 2);
        assert_eq!(trunk.told(), Some(UpstreamState::Lost));
        assert_eq!(
            trunk.handle_info(1, &info(2, 0, &["o2", "e2"])),
            Standing::Counts
        );
        assert_eq!(trunk.told(), Some(UpstreamState::Connected));
    }

    #[actix::test]
    async fn two_upstreams_never_come_through_one_edge() {
        let (trunk, _told) = trunk();
        assert_eq!(
            trunk.handle_info(0, &info(1, 0, &["o1", "e1"])),
            Standing::Counts
        );
        assert_eq!(
            trunk.handle_info(1, &info(1, 0, &["o1", "e2"])),
            Standing::Counts
        );
        // e1 was lost by its upstream, and is fed by e2 now.
        assert_eq!(
            trunk.handle_info(0, &info(1, 0, &["o1", "e2", "e1"])),
            Standing::Shares
        );
        assert!(!trunk.connected_by(0));
        // Only one of them leaves.
        assert_eq!(
            trunk.handle_info(1, &info(1, 0, &["o1", "e2"])),
            Standing::Counts
        );
        assert_eq!(trunk.others(0), ["e2".parse().unwrap()]);
        assert_eq!(
            trunk.handle_info(0, &info(1, 0, &["o1"])),
            Standing::Counts,
            "by the origin"
        );
    }

    #[actix::test]
    async fn an_upstream_that_gets_nothing_does_not_count_and_those_below_are_told_and_stay() {
        let (trunk, mut told) = trunk();
        let relay = trunk.relay.as_ref().unwrap();
        let levels = || relay.branch().orphaned_levels();
        trunk.handle_info(0, &info(1, 0, &["o1", "e1"]));
        let mut child = relay.attach(&[], Want::default()).expect("described");
        // With another upstream that has it, nothing is amiss.
        trunk.handle_info(1, &info(1, 0, &["o1", "e2"]));
        trunk.handle_orphaned(1, 2, UpstreamState::Lost);
        assert_eq!(
            (levels(), trunk.told()),
            (0, Some(UpstreamState::Connected))
        );
        assert!(trunk.alone(0) && !trunk.alone(1));
        trunk.handle_orphaned(0, 1, UpstreamState::Lost);
        assert_eq!((levels(), trunk.told()), (2, Some(UpstreamState::Lost)));
        assert_eq!(relay.branch().room().free, 0, "it takes nobody new");
        trunk.handle_down(0, Some(UpstreamState::Lost));
        assert_eq!(levels(), 3, "the other leg still waits, for one further up");
        trunk.handle_down(1, Some(UpstreamState::Lost));
        assert_eq!(levels(), 1, "this node looks for one itself");
        trunk.handle_info(0, &info(1, 0, &["o1"]));
        assert_eq!(
            (levels(), trunk.told()),
            (0, Some(UpstreamState::Connected))
        );
        assert!(relay.branch().room().free > 0);
        while let Ok(item) = child.items.try_recv() {
            assert!(!matches!(item, Item::End(_)), "it was never sent away");
        }
        assert_eq!(described(&mut told).await, (1, 0));
    }

    #[actix::test]
    async fn the_newest_description_is_told_whichever_upstream_knows_it() {
        let (trunk, mut told) = trunk();
        trunk.handle_info(0, &info(1, 0, &["o1", "e1"]));
        trunk.handle_info(1, &info(1, 3, &["o1", "e2"]));
        assert_eq!(described(&mut told).await, (1, 3));
        trunk.handle_info(0, &info(1, 2, &["o1", "e1"]));
        assert_eq!(described(&mut told).await, (1, 3));
        trunk.handle_down(1, None);
        assert_eq!(described(&mut told).await, (1, 3));
        trunk.handle_info(0, &info(1, 4, &["o1", "e1"]));
        assert_eq!(described(&mut told).await, (1, 4));
    }

    #[actix::test]
    async fn children_begin_anew_when_epochs_do() {
        let (trunk, _told) = trunk();
        trunk.handle_info(0, &info(9, 0, &["o1"]));
        let relay = trunk.relay.as_ref().unwrap();
        let mut child = relay.attach(&[], Want::default()).expect("described");
        trunk.reset();
        let mut last = None;
        while let Some(item) = child.items.recv().await {
            last = Some(item);
        }
        assert!(
            matches!(last, Some(Item::End(EndReason::Moved))),
            "{last:?}"
        );
        trunk.handle_info(0, &info(1, 0, &["o1"]));
        let again = relay.attach(&[], Want::default()).expect("described");
        assert_eq!(again.attachment.info.epoch, Epoch(1));
    }
}
