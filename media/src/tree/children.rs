//! The feeding half: whom a node feeds with one stream, and where it sends those that come when it feeds enough.
//!
//! [`Children::judge`] each that comes, [`Children::join`] those that are taken, and tell it what they say of themselves. Who is sent
//! on is sent to the children that take more themselves, least loaded first; when none does, to the one with the smallest tree below it,
//! which sends it on in turn. So a level fills before the next begins, and the tree stays as flat as the fan-out allows. Who was taken past the fan-out
//! goes down a level once somebody there has room ([`Children::shed`]).

use std::cmp::Reverse;

use super::{ALTERNATIVES_MAX, Alternative, Path, Room};
use crate::id::NodeId;

/// From this load on a node takes no further children (percent): its viewers come first.
const LOAD_PERCENT_MAX: u32 = 90;

/// Loads within so much of each other count as equal (percent), so that noise in them doesn't unbalance the tree.
const LOAD_STEP_PERCENT: u32 = 20;

/// How a node feeds others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Children that it takes per stream (count).
    pub fanout: usize,
    /// How far from the publisher a child may be (count). Children say how deep the trees below them may be, since those nodes refuse what
    /// is deeper than they are told; an origin needs no bound of its own but [`PATH_NODES_MAX`](super::PATH_NODES_MAX).
    pub depth_max: usize,
    /// It also takes those who find no place below it. True at an origin: the stream is to be had nowhere else.
    pub overflows: bool,
}

/// Whether a node can feed anybody more at all, whichever stream it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// It can.
    Free,
    /// It feeds as many as it may over all streams.
    Exhausted,
}

/// A subscriber that asks for a stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Joining {
    /// Who it is, if it says.
    pub node: Option<NodeId>,
    /// Where it passes the stream on; empty: nowhere.
    pub grpc_url: String,
    /// What it can take.
    pub room: Room,
    /// How many redirections it still follows (count).
    pub redirects_left: u32,
    /// Whom it doesn't want to be fed by.
    pub avoid: Vec<NodeId>,
}

/// What becomes of a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Feed it.
    Take,
    /// Send it to one of these, best first.
    Redirect(Vec<Alternative>),
    /// Neither.
    Refuse(Refusal),
}

/// Why a subscriber is neither taken nor sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// This node feeds as many as it takes, and knows of nobody else.
    #[error("this node takes no more subscribers of this stream")]
    Full,
    /// The subscriber wants another than this one.
    #[error("the subscriber wants another upstream than this one")]
    Avoided,
    /// This node gets the stream from the subscriber.
    #[error("this node gets the stream from the subscriber")]
    Cycle,
    /// The subscriber would be too far from the publisher.
    #[error("this node is too far from the origin to pass the stream on")]
    TooDeep,
    /// This node is looking for an upstream itself.
    #[error("this node has no upstream just now")]
    Orphaned,
}

/// Names a child as long as it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChildId(u64);

#[derive(Debug)]
struct Child {
    id: ChildId,
    node: Option<NodeId>,
    grpc_url: String,
    /// As it said last, less those that were sent to it since.
    room: Room,
    /// Whom it doesn't want to be fed by.
    avoid: Vec<NodeId>,
}

/// Those whom a node feeds with one stream.
#[derive(Debug)]
pub struct Children {
    config: Config,
    me: NodeId,
    children: Vec<Child>,
    next: u64,
    load_percent: u32,
    /// How the stream comes here; none while it doesn't.
    path: Option<Path>,
    /// How far above those below this node somebody looks for an upstream (levels); 0 while none does.
    orphaned_levels: u32,
}

impl Children {
    /// Of the node `me`, which feeds nobody yet and is fed by nobody.
    pub const fn new(config: Config, me: NodeId) -> Self {
        Self {
            config,
            me,
            children: Vec::new(),
            next: 0,
            load_percent: 0,
            path: None,
            orphaned_levels: 1,
        }
    }

    /// How the stream comes here: empty at its origin.
    pub fn handle_path(&mut self, path: Path) {
        self.path = Some(path);
        self.orphaned_levels = 0;
    }

    /// Nothing comes, since somebody so many levels above (1: this node itself) those whom this node feeds has no upstream.
    pub fn handle_orphaned(&mut self, levels: u32) {
        self.path = None;
        self.orphaned_levels = levels.max(1);
    }

    /// What this node's load is now (0 idle, 100 full).
    pub const fn handle_load(&mut self, percent: u32) {
        self.load_percent = percent;
    }

    /// What is to become of a subscriber. Whoever is sent on counts as gone there, until the child says what it has.
    pub fn judge(&mut self, joining: &Joining, capacity: Capacity) -> Verdict {
        let Some(path) = &self.path else {
            return Verdict::Refuse(Refusal::Orphaned);
        };
        let depth = path.depth();
        let known = |node: &NodeId| joining.node.as_ref() == Some(node);
        if known(&self.me) || path.nodes().iter().any(known) {
            return Verdict::Refuse(Refusal::Cycle);
        }
        let lowest = depth + 1 + height(joining.room);
        if lowest > self.config.depth_max {
            return Verdict::Refuse(Refusal::TooDeep);
        }
        let avoided = joining.avoid.contains(&self.me);
        // Who comes back before its old call has ended doesn't count twice.
        let others = self.children.iter().filter(|child| {
            let node = child.node.as_ref();
            node.is_none() || node != joining.node.as_ref()
        });
        let free = capacity == Capacity::Free;
        let room = others.count() < self.config.fanout && self.load_percent < LOAD_PERCENT_MAX;
        if free && room && !avoided {
            return Verdict::Take;
        }
        if joining.redirects_left > 0 {
            let alternatives = send_to(self.fitting(joining, depth), depth);
            if !alternatives.is_empty() {
                return Verdict::Redirect(alternatives);
            }
        }
        if avoided {
            Verdict::Refuse(Refusal::Avoided)
        } else if free && self.config.overflows {
            Verdict::Take
        } else {
            Verdict::Refuse(Refusal::Full)
        }
    }

    /// A subscriber was taken.
    pub fn join(&mut self, joining: &Joining) -> ChildId {
        self.next += 1;
        let id = ChildId(self.next);
        self.children.push(Child {
            id,
            node: joining.node.clone(),
            grpc_url: joining.grpc_url.clone(),
            room: joining.room,
            avoid: joining.avoid.clone(),
        });
        id
    }

    /// Where a child is to go that is one too many: it was taken past the fan-out while nobody could pass the stream on, and now somebody
    /// can. Those with the most below them stay, and of equals those that came first. Like whoever is sent on, it counts as gone there.
    /// None: it stays.
    pub fn shed(&mut self, id: ChildId) -> Option<Vec<Alternative>> {
        let depth = self.path.as_ref()?.depth();
        // Asked with each ping, so that what follows is for those few moments when it can matter.
        let open = self.children.iter().any(|child| child.room.free > 0);
        if self.children.len() <= self.config.fanout || !open {
            return None;
        }
        // A call that its node has replaced ends by itself.
        let replaced = |child: &Child| {
            let mut others = self.children.iter();
            others.any(|other| {
                child.node.is_some() && other.node == child.node && other.id.0 > child.id.0
            })
        };
        let rank = |child: &Child| (Reverse(child.room.descendants), child.id.0);
        let (mut standing, mut before) = (0, 0);
        let child = self.children.iter().find(|child| child.id == id)?;
        if replaced(child) {
            return None;
        }
        for other in self.children.iter().filter(|other| !replaced(other)) {
            standing += 1;
            before += usize::from(rank(other) < rank(child));
        }
        if standing <= self.config.fanout || before < self.config.fanout {
            return None;
        }
        let joining = Joining {
            node: child.node.clone(),
            grpc_url: child.grpc_url.clone(),
            room: child.room,
            redirects_left: 1,
            avoid: child.avoid.clone(),
        };
        let fitting = self.fitting(&joining, depth);
        let open = fitting.first().is_some_and(|best| best.room.free > 0);
        open.then(|| send_to(fitting, depth))
    }

    /// A child says what it can take.
    pub fn handle_room(&mut self, id: ChildId, room: Room) {
        if let Some(child) = self.children.iter_mut().find(|child| child.id == id) {
            child.room = room;
        }
    }

    /// A child says whom it doesn't want to be fed by.
    pub fn handle_avoid(&mut self, id: ChildId, avoid: Vec<NodeId>) {
        if let Some(child) = self.children.iter_mut().find(|child| child.id == id) {
            child.avoid = avoid;
        }
    }

    /// A child left.
    pub fn leave(&mut self, id: ChildId) {
        self.children.retain(|child| child.id != id);
    }

    /// What its children are told: how far above them somebody looks for an upstream (levels); 0 while none does.
    pub const fn orphaned_levels(&self) -> u32 {
        self.orphaned_levels
    }

    /// How many there are (count).
    pub const fn len(&self) -> usize {
        self.children.len()
    }

    /// There are none.
    pub const fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// What this node says of itself to those who feed it.
    pub fn room(&self) -> Room {
        let path = self.path.as_ref();
        let takes = path.is_some_and(|path| path.depth() < self.config.depth_max)
            && self.load_percent < LOAD_PERCENT_MAX;
        let free = if takes {
            self.config.fanout.saturating_sub(self.children.len())
        } else {
            0
        };
        let descendants = self
            .children
            .iter()
            .map(|child| child.room.descendants.saturating_add(1))
            .fold(0, u32::saturating_add);
        let levels = self.children.iter().map(|child| child.room.height);
        let below = path.map_or(0, |path| self.config.depth_max.saturating_sub(path.depth()));
        Room {
            free: u32::try_from(free).unwrap_or(u32::MAX),
            load_percent: self.load_percent,
            descendants,
            height: levels.max().map_or(0, |height| height.saturating_add(1)),
            height_max: u32::try_from(below).unwrap_or(u32::MAX),
        }
    }

    /// The children that a subscriber can be sent to, best first.
    fn fitting(&mut self, joining: &Joining, depth: usize) -> Vec<&mut Child> {
        let fits = |child: &Child| {
            let Some(node) = &child.node else {
                return false;
            };
            // It would be the child's own child, or that of one that the child sends it to.
            let levels = height(joining.room) + if child.room.free > 0 { 1 } else { 2 };
            let told = usize::try_from(child.room.height_max).unwrap_or(usize::MAX);
            !child.grpc_url.is_empty()
                && depth + 1 + levels <= self.config.depth_max
                && (told == 0 || levels <= told)
                && joining.node.as_ref() != Some(node)
                && !joining.avoid.contains(node)
                && (child.room.free > 0 || child.room.descendants > 0)
        };
        let mut fitting: Vec<&mut Child> = Vec::new();
        for child in &mut self.children {
            if fits(child) {
                fitting.push(child);
            }
        }
        fitting.sort_by_key(|child| {
            let room = child.room;
            let load = room.load_percent / LOAD_STEP_PERCENT;
            let full = room.free == 0;
            (full, load, room.descendants, child.id.0)
        });
        fitting
    }
}

/// Sends a subscriber to these, and counts it as gone to the first.
fn send_to(mut fitting: Vec<&mut Child>, depth: usize) -> Vec<Alternative> {
    if let Some(best) = fitting.first_mut() {
        best.room.free = best.room.free.saturating_sub(1);
        best.room.descendants = best.room.descendants.saturating_add(1);
    }
    let alternatives = fitting.into_iter().take(ALTERNATIVES_MAX);
    let alternative = |child: &mut Child| {
        Some(Alternative {
            grpc_url: child.grpc_url.clone(),
            node: child.node.clone()?,
            depth: depth + 1,
        })
    };
    alternatives.filter_map(alternative).collect()
}

/// Levels below a node (count).
fn height(room: Room) -> usize {
    usize::try_from(room.height).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    fn path(nodes: &[&str]) -> Path {
        nodes.iter().map(|n| id(n)).collect::<Vec<_>>().into()
    }

    fn joining(name: &str, free: u32) -> Joining {
        Joining {
            node: Some(id(name)),
            grpc_url: format!("http://{name}:7070"),
            room: Room {
                free,
                ..Room::default()
            },
            redirects_left: 8,
            avoid: Vec::new(),
        }
    }

    fn origin(fanout: usize) -> Children {
        let config = Config {
            fanout,
            depth_max: 4,
            overflows: true,
        };
        let mut children = Children::new(config, id("o1"));
        children.handle_path(path(&[]));
        children
    }

    fn take(children: &mut Children, joining: &Joining) -> ChildId {
        assert_eq!(children.judge(joining, Capacity::Free), Verdict::Take);
        children.join(joining)
    }

    fn redirected(children: &mut Children, joining: &Joining) -> Vec<String> {
        match children.judge(joining, Capacity::Free) {
            Verdict::Redirect(alternatives) => {
                let ids = alternatives.iter().map(|a| a.node.to_string());
                ids.collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_comes_when_it_is_full_is_sent_to_the_least_loaded_child_that_takes_more() {
        let mut origin = origin(3);
        let busy = take(&mut origin, &joining("busy", 2));
        take(&mut origin, &joining("idle", 2));
        take(&mut origin, &joining("leaf", 0));
        origin.handle_room(
            busy,
            Room {
                free: 2,
                load_percent: 70,
                ..Room::default()
            },
        );
        let new = joining("new", 2);
        assert_eq!(redirected(&mut origin, &new), ["idle", "busy"]);
        assert_eq!(redirected(&mut origin, &new), ["idle", "busy"]);
        // The idle one is full by now, if those who were sent there are there.
        assert_eq!(redirected(&mut origin, &new), ["busy", "idle"]);
        assert_eq!(redirected(&mut origin, &new), ["busy", "idle"]);
        // All are: whoever has the fewest below sends it on.
        assert_eq!(origin.children.len(), 3);
        let tree = redirected(&mut origin, &new);
        assert_eq!(tree, ["idle", "busy"]);
    }

    #[test]
    fn an_origin_takes_those_who_find_no_place_and_an_edge_refuses_them() {
        for overflows in [true, false] {
            let mut node = origin(1);
            node.config.overflows = overflows;
            take(&mut node, &joining("leaf", 0));
            let expected = if overflows {
                Verdict::Take
            } else {
                Verdict::Refuse(Refusal::Full)
            };
            assert_eq!(
                node.judge(&joining("new", 4), Capacity::Free),
                expected,
                "nobody passes it on"
            );

            let mut node = origin(1);
            node.config.overflows = overflows;
            take(&mut node, &joining("child", 4));
            let mut last = joining("new", 4);
            last.redirects_left = 0;
            assert_eq!(
                node.judge(&last, Capacity::Free),
                expected,
                "it follows no redirection"
            );
        }
    }

    #[test]
    fn an_ancestor_is_refused_and_so_is_everybody_while_there_is_no_upstream() {
        let mut edge = origin(4);
        edge.me = id("e3");
        edge.handle_path(path(&["o1", "e1", "e2"]));
        for ancestor in ["e1", "e2", "e3"] {
            assert_eq!(
                edge.judge(&joining(ancestor, 4), Capacity::Free),
                Verdict::Refuse(Refusal::Cycle)
            );
        }
        assert_eq!(edge.judge(&joining("e4", 4), Capacity::Free), Verdict::Take);
        edge.handle_path(path(&["o1", "e1", "e2", "e5"]));
        assert_eq!(
            edge.judge(&joining("e4", 4), Capacity::Free),
            Verdict::Refuse(Refusal::TooDeep)
        );
        assert_eq!(edge.room().free, 0, "and says so");
        edge.handle_path(path(&["o1", "e1", "e2"]));
        let mut tree = joining("e4", 4);
        tree.room.height = 1;
        assert_eq!(
            edge.judge(&tree, Capacity::Free),
            Verdict::Refuse(Refusal::TooDeep),
            "those below it would be"
        );
        edge.handle_orphaned(1);
        assert_eq!(
            edge.judge(&joining("e4", 4), Capacity::Free),
            Verdict::Refuse(Refusal::Orphaned)
        );
        assert_eq!(edge.orphaned_levels(), 1);
        edge.handle_orphaned(3);
        assert_eq!(edge.orphaned_levels(), 3, "somebody further up");
        edge.handle_path(path(&["o1", "e1", "e2"]));
        assert_eq!(edge.orphaned_levels(), 0);
        assert_eq!(edge.judge(&joining("e4", 4), Capacity::Free), Verdict::Take);
    }

    #[test]
    fn a_child_that_could_only_send_on_too_deep_is_no_alternative() {
        let mut edge = origin(1);
        edge.config.overflows = false;
        edge.handle_path(path(&["o1", "e1"]));
        let child = take(&mut edge, &joining("child", 1));
        assert_eq!(redirected(&mut edge, &joining("new", 1)), ["child"]);
        edge.handle_room(
            child,
            Room {
                descendants: 1,
                height: 1,
                ..Room::default()
            },
        );
        assert_eq!(
            edge.judge(&joining("new", 1), Capacity::Free),
            Verdict::Refuse(Refusal::Full)
        );
    }

    #[test]
    fn a_node_that_is_avoided_sends_on_though_it_has_room() {
        let mut origin = origin(4);
        let mut second = joining("e1", 4);
        take(&mut origin, &second);
        second.avoid = vec![id("o1")];
        assert_eq!(
            origin.judge(&second, Capacity::Free),
            Verdict::Refuse(Refusal::Avoided),
            "itself is no alternative"
        );
        take(&mut origin, &joining("e2", 4));
        take(&mut origin, &joining("e3", 4));
        second.avoid.push(id("e2"));
        assert_eq!(redirected(&mut origin, &second), ["e3"]);
    }

    #[test]
    fn who_returns_before_its_old_call_ended_takes_its_own_place() {
        let mut origin = origin(1);
        let old = take(&mut origin, &joining("e1", 4));
        take(&mut origin, &joining("e1", 4));
        origin.leave(old);
        assert_eq!(origin.len(), 1);
    }

    #[test]
    fn a_loaded_node_takes_nobody_and_counts_those_below() {
        let mut origin = origin(4);
        let child = take(&mut origin, &joining("e1", 4));
        origin.handle_room(
            child,
            Room {
                free: 1,
                descendants: 3,
                height: 2,
                ..Room::default()
            },
        );
        origin.handle_load(95);
        assert_eq!(redirected(&mut origin, &joining("e2", 0)), ["e1"]);
        let room = origin.room();
        assert_eq!(room.height, 3);
        assert_eq!(
            (room.free, room.descendants),
            (0, 5),
            "one was just sent there"
        );
    }

    #[test]
    fn whoever_came_past_the_fan_out_goes_to_a_child_once_that_has_room() {
        let mut origin = origin(1);
        let first = take(&mut origin, &joining("e1", 0));
        let mut second = joining("e2", 2);
        second.redirects_left = 0;
        let second = take(&mut origin, &second);
        assert_eq!(origin.shed(second), None, "nobody passes the stream on yet");
        let room = |free, descendants| Room {
            free,
            descendants,
            ..Room::default()
        };
        origin.handle_room(first, room(1, 0));
        assert_eq!(origin.shed(first), None, "it came first");
        let to = origin.shed(second).expect("there is room for it");
        assert_eq!(to[0].node, id("e1"));
        assert_eq!(origin.shed(second), None, "that was the one place");

        // Who has nodes below it stays, and the other one goes.
        origin.handle_room(second, room(1, 2));
        let to = origin.shed(first).expect("it has the smaller tree");
        assert_eq!(to[0].node, id("e2"));
        origin.leave(first);
        origin.handle_room(second, room(1, 2));
        assert_eq!(origin.shed(second), None, "it is none too many");
    }

    #[test]
    fn nobody_is_shed_to_whom_it_avoids_nor_too_deep_nor_for_a_call_that_was_replaced() {
        let mut origin = origin(1);
        let mut leaf = joining("e2", 0);
        leaf.redirects_left = 0;
        leaf.avoid = vec![id("e1")];
        let old = take(&mut origin, &joining("e1", 4));
        let leaf = take(&mut origin, &leaf);
        assert_eq!(origin.shed(leaf), None, "e1 is its other way");
        // It was found wanting a moment ago, and isn't any more.
        origin.handle_avoid(leaf, Vec::new());
        assert_eq!(origin.shed(leaf).expect("there is room")[0].node, id("e1"));
        let mut tall = joining("e3", 0);
        tall.redirects_left = 0;
        tall.room.height = 3;
        let tall = take(&mut origin, &tall);
        assert_eq!(origin.shed(tall), None, "those below it would be too deep");
        origin.leave(leaf);
        origin.leave(tall);
        let mut again = joining("e1", 4);
        again.redirects_left = 0;
        let again = take(&mut origin, &again);
        assert_eq!((origin.shed(old), origin.shed(again)), (None, None));
    }

    #[test]
    fn nobody_is_sent_where_the_nodes_below_would_refuse_it_as_too_deep() {
        let mut origin = origin(1);
        origin.config.depth_max = 32;
        let child = take(&mut origin, &joining("e1", 4));
        let mut tall = joining("e2", 0);
        tall.room.height = 2;
        for (free, height_max, fits) in [
            (1, 2, false),
            (1, 3, true),
            // It would send it on to one of its own.
            (0, 3, false),
            (0, 4, true),
            // An older one doesn't say.
            (1, 0, true),
        ] {
            let room = Room {
                free,
                height_max,
                descendants: 4,
                ..Room::default()
            };
            origin.handle_room(child, room);
            let verdict = origin.judge(&tall, Capacity::Free);
            let sent_on = matches!(verdict, Verdict::Redirect(_));
            assert_eq!(sent_on, fits, "{free} {height_max}: {verdict:?}");
            origin.handle_room(child, room);
            let overflown = origin.join(&tall);
            let shed = origin.shed(overflown).is_some();
            assert_eq!(shed, fits && free > 0, "{free} {height_max}");
            origin.leave(overflown);
        }
        let mut edge = Children::new(origin.config, id("e1"));
        edge.config.depth_max = 5;
        edge.handle_path(path(&["o1"]));
        assert_eq!(edge.room().height_max, 4);
    }

    #[test]
    fn a_node_that_may_feed_nobody_more_still_sends_on() {
        let mut origin = origin(4);
        take(&mut origin, &joining("e1", 2));
        let verdict = origin.judge(&joining("e2", 2), Capacity::Exhausted);
        assert!(matches!(verdict, Verdict::Redirect(_)), "{verdict:?}");
        let mut last = joining("e2", 2);
        last.redirects_left = 0;
        let verdict = origin.judge(&last, Capacity::Exhausted);
        assert_eq!(verdict, Verdict::Refuse(Refusal::Full));
    }
}
