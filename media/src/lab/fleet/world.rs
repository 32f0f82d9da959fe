//! The fleet itself: edges with their subscriptions, origins, viewers that come, and messages that take their time.

use super::Fleet;
use super::events::{Events, micros};
use super::placement::{self, Placement, Standing, Told, View};
use super::report::Outcome;
use crate::id::NodeId;
use crate::lab::Rng;
use crate::tree::{
    Alternative, Candidate, ChildId, Children, Config, PATH_NODES_MAX, Path, Room, Search,
};

mod tree;

const MILLIS: u64 = 1000;
const SECONDS: u64 = 1_000_000;

/// Viewers come in steps of this.
const STEP: u64 = 10 * MILLIS;

/// Viewers of an edge that failed come back within this.
const VIEWERS_RETURN: u64 = 4 * SECONDS;

/// A failed edge is replaced after this.
const REPLACED_AFTER: u64 = 60 * SECONDS;

/// How often an edge looks whether it has something new to tell of itself.
const LOOKS: u64 = SECONDS;

/// The record of an edge that failed goes with its lease.
const LEASE: u64 = 12 * SECONDS;

/// No edge fails so close to the end, so that what is counted there has settled.
const SETTLING: u64 = 20 * SECONDS;

const NONE: u32 = u32::MAX;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upstream {
    Origin,
    Edge(u32),
}

#[derive(Debug)]
enum Answer {
    Taken(Upstream, ChildId, Path),
    Redirected(Vec<Alternative>),
    /// By a node that lives.
    Refused,
    /// Nobody is there, or none that has the stream.
    None,
}

#[derive(Debug)]
enum Event {
    /// A step of the flash crowd.
    Crowd,
    /// Viewers of a stream whose edge failed.
    Return {
        stream: u32,
        viewers: u32,
    },
    Fail,
    Replace {
        edge: u32,
    },
    /// An edge tells of itself what is new. It is over when the edge fails.
    Look {
        edge: u32,
        failures: u32,
    },
    /// An edge's lease is over, if it hasn't come back.
    Forget {
        edge: u32,
        failures: u32,
    },
    /// An origin looks whether it feeds more than it has to.
    Shed {
        stream: u32,
    },
    /// A subscriber is sent on.
    Sent {
        sub: u32,
        call: u32,
    },
    /// An upstream is asked; then it answers.
    Ask {
        sub: u32,
        call: u32,
    },
    Answer {
        sub: u32,
        call: u32,
        answer: Answer,
    },
    Search {
        sub: u32,
        call: u32,
    },
    /// A subscriber's upstream says by which path the stream comes, or is lost.
    Told {
        sub: u32,
        call: u32,
        path: Path,
    },
    Cut {
        sub: u32,
        call: u32,
    },
    Orphaned {
        sub: u32,
        losses: u32,
    },
    /// A subscription says what it can take.
    Report {
        sub: u32,
    },
    Reported {
        stream: u32,
        to: Upstream,
        child: ChildId,
        room: Room,
        avoid: Vec<NodeId>,
    },
    /// An upstream notices that a child is gone.
    Left {
        stream: u32,
        to: Upstream,
        child: ChildId,
    },
}

/// Those whom a node feeds with one stream.
#[derive(Debug)]
struct Feeding {
    children: Children,
    calls: Vec<(ChildId, u32, u32)>,
}

impl Feeding {
    fn new(config: Config, me: NodeId, path: Option<Path>) -> Self {
        let mut children = Children::new(config, me);
        if let Some(path) = path {
            children.handle_path(path);
        }
        Self {
            children,
            calls: Vec::new(),
        }
    }
}

/// A stream at an edge.
#[derive(Debug)]
struct Subscription {
    stream: u32,
    edge: u32,
    /// It went with its edge.
    gone: bool,
    feeding: Feeding,
    /// Counts what it does: an answer to something earlier is of no use.
    call: u32,
    upstream: Option<(Upstream, ChildId)>,
    path: Option<Path>,
    search: Option<Search>,
    candidate: Option<Candidate>,
    known: Vec<Alternative>,
    shunned: Vec<(u64, NodeId)>,
    failed_searches: u32,
    /// Upstreams that it lost (count).
    losses: u32,
    began: u64,
    /// When its upstream died, if it has no other yet.
    lost_at: Option<u64>,
    reporting: bool,
}

#[derive(Debug)]
struct Edge {
    id: NodeId,
    /// It is gone without a word, as by a power cut.
    silent: bool,
    failed_at: u64,
    failures: u32,
    subscriptions: Vec<u32>,
    viewers: Vec<(u32, u32)>,
}

/// See the module.
pub(super) struct World {
    fleet: Fleet,
    rng: Rng,
    events: Events<Event>,
    edges: Vec<Edge>,
    standing: Vec<Standing>,
    /// What edges told of themselves.
    told: Vec<Option<Told>>,
    origins: Vec<NodeId>,
    roots: Vec<Feeding>,
    subscriptions: Vec<Subscription>,
    /// By stream and edge.
    index: Vec<Vec<u32>>,
    /// Edges that have a stream, by stream.
    having: Vec<Vec<u32>>,
    /// Of the streams' popularity, summed up.
    popularity: Vec<u64>,
    came: u32,
    failures: u64,
    outcome: Outcome,
}

impl World {
    pub(super) fn new(fleet: Fleet, seed: u64) -> Self {
        let node = |kind: &str, number: u32| -> NodeId {
            let id = format!("{kind}{number}");
            id.parse().expect("letters and digits")
        };
        let origins: Vec<NodeId> = (0..fleet.origins.max(1)).map(|n| node("o", n)).collect();
        let roots = (0..fleet.streams).map(|stream| {
            let config = Config {
                fanout: fleet.origin_fanout,
                depth_max: PATH_NODES_MAX,
                overflows: true,
            };
            let me = origins[stream as usize % origins.len()].clone();
            Feeding::new(config, me, Some(Path::default()))
        });
        let edge = |number| Edge {
            id: node("e", number),
            silent: false,
            failed_at: 0,
            failures: 0,
            subscriptions: Vec::new(),
            viewers: Vec::new(),
        };
        let alive = Standing {
            alive: true,
            viewers: 0,
        };
        let mut sum = 0;
        let popularity = (1..=u64::from(fleet.streams)).map(|rank| {
            sum += 1_000_000 / rank;
            sum
        });
        let popularity = popularity.collect();
        Self {
            rng: Rng::new(seed),
            events: Events::new(),
            edges: (0..fleet.edges).map(edge).collect(),
            standing: vec![alive; fleet.edges as usize],
            told: vec![None; fleet.edges as usize],
            roots: roots.collect(),
            origins,
            subscriptions: Vec::new(),
            index: vec![vec![NONE; fleet.edges as usize]; fleet.streams as usize],
            having: vec![Vec::new(); fleet.streams as usize],
            popularity,
            came: 0,
            failures: 0,
            outcome: Outcome::new(fleet.origins.max(1) as usize),
            fleet,
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        self.events.push(0, Event::Crowd);
        let pause = self.until_next_failure();
        self.events.push(pause, Event::Fail);
        for edge in 0..self.fleet.edges {
            self.look_soon(edge);
        }
        let end = micros(self.fleet.length);
        while let Some(event) = self.events.pop(end) {
            self.handle(event);
        }
        self.settle()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Crowd => self.handle_crowd(),
            Event::Return { stream, viewers } => {
                (0..viewers).for_each(|_| self.place(stream));
            }
            Event::Fail => self.handle_failure(),
            Event::Replace { edge } => {
                self.edges[edge as usize].silent = false;
                self.standing[edge as usize].alive = true;
                self.look_soon(edge);
            }
            Event::Look { edge, failures } => self.handle_look(edge, failures),
            Event::Forget { edge, failures } => {
                if self.edges[edge as usize].failures == failures {
                    self.told[edge as usize] = None;
                }
            }
            Event::Shed { stream } => self.handle_shed(stream),
            Event::Sent { sub, call } => {
                if self.current(sub, call) {
                    self.go_on(sub);
                }
            }
            Event::Ask { sub, call } => self.handle_ask(sub, call),
            Event::Answer { sub, call, answer } => self.handle_answer(sub, call, answer),
            Event::Search { sub, call } => {
                if self.current(sub, call) {
                    self.search(sub);
                }
            }
            Event::Told { sub, call, path } => {
                if self.current(sub, call) {
                    self.follow(sub, &path);
                }
            }
            Event::Cut { sub, call } => {
                if self.current(sub, call) {
                    self.lose(sub);
                }
            }
            Event::Orphaned { sub, losses } => {
                let orphan = self.sub(sub);
                if !orphan.gone && orphan.upstream.is_none() && orphan.losses == losses {
                    self.leave_orphan(sub);
                }
            }
            Event::Report { sub } => self.handle_report(sub),
            Event::Reported {
                stream,
                to,
                child,
                room,
                avoid,
            } => {
                if let Some(feeding) = self.feeding(stream, to) {
                    feeding.children.handle_room(child, room);
                    feeding.children.handle_avoid(child, avoid);
                    self.report_soon(to);
                }
            }
            Event::Left { stream, to, child } => {
                if let Some(feeding) = self.feeding(stream, to) {
                    feeding.children.leave(child);
                    feeding.calls.retain(|(id, ..)| *id != child);
                    self.report_soon(to);
                }
            }
        }
    }

    /// The viewers who come in one step, evenly over the crowd's time.
    fn handle_crowd(&mut self) {
        let crowd = micros(self.fleet.crowd).max(1);
        let passed = (self.events.now() + STEP).min(crowd);
        let due = u64::from(self.fleet.viewers) * passed / crowd;
        let due = u32::try_from(due).unwrap_or(u32::MAX);
        while self.came < due {
            self.came += 1;
            let all = self.popularity.last().copied().unwrap_or(0);
            let ticket = self.rng.next() % all.max(1);
            let stream = self.popularity.partition_point(|sum| *sum <= ticket);
            self.place(u32::try_from(stream).unwrap_or(0));
        }
        if self.came < self.fleet.viewers {
            self.events.push(STEP, Event::Crowd);
        }
    }

    /// A viewer of a stream comes.
    fn place(&mut self, stream: u32) {
        let view = View {
            edges: &self.standing,
            told: &self.told,
            having: &self.having[stream as usize],
            viewers_max: self.fleet.viewers_per_edge,
        };
        let edge = placement::place(self.fleet.placement, &mut self.rng, view, stream);
        let Some(edge) = edge else {
            self.outcome.refused_viewers += 1;
            return;
        };
        self.standing[edge as usize].viewers += 1;
        let viewers = &mut self.edges[edge as usize].viewers;
        match viewers.iter_mut().find(|(known, _)| *known == stream) {
            Some((_, count)) => *count += 1,
            None => viewers.push((stream, 1)),
        }
        if self.index[stream as usize][edge as usize] == NONE {
            self.begin(stream, edge);
        }
    }

    fn handle_failure(&mut self) {
        let pause = self.until_next_failure();
        self.events.push(pause, Event::Fail);
        let settling = self.events.now() + SETTLING > micros(self.fleet.length);
        let edge = self.rng.below(self.fleet.edges);
        if settling || !self.standing[edge as usize].alive {
            return;
        }
        self.failures += 1;
        self.outcome.failures += 1;
        let silent = self.failures.is_multiple_of(2);
        let now = self.events.now();
        self.standing[edge as usize] = Standing::default();
        let node = &mut self.edges[edge as usize];
        (node.silent, node.failed_at) = (silent, now);
        node.failures += 1;
        let failures = node.failures;
        self.events.push(LEASE, Event::Forget { edge, failures });
        let node = &mut self.edges[edge as usize];
        let viewers = std::mem::take(&mut node.viewers);
        let gone = std::mem::take(&mut node.subscriptions);
        for (stream, viewers) in viewers {
            let wait = self.between(0, VIEWERS_RETURN);
            self.events.push(wait, Event::Return { stream, viewers });
        }
        for sub in gone {
            self.remove(sub, silent);
        }
        self.events.push(REPLACED_AFTER, Event::Replace { edge });
    }

    fn handle_look(&mut self, edge: u32, failures: u32) {
        let node = &self.edges[edge as usize];
        if node.failures != failures {
            return;
        }
        let standing = self.standing[edge as usize];
        let now = Told::of(standing, &node.viewers, self.fleet.viewers_per_edge);
        let told = &mut self.told[edge as usize];
        if told.as_ref().is_none_or(|told| now.is_news(told)) {
            *told = Some(now);
        }
        self.look_soon(edge);
    }

    fn look_soon(&mut self, edge: u32) {
        if self.fleet.placement == Placement::Any {
            return;
        }
        let failures = self.edges[edge as usize].failures;
        let wait = self.between(LOOKS, LOOKS + LOOKS / 5);
        self.events.push(wait, Event::Look { edge, failures });
    }

    fn feeding(&mut self, stream: u32, node: Upstream) -> Option<&mut Feeding> {
        match node {
            Upstream::Origin => self.roots.get_mut(stream as usize),
            Upstream::Edge(sub) => {
                let sub = self.subscriptions.get_mut(sub as usize)?;
                (!sub.gone).then_some(&mut sub.feeding)
            }
        }
    }

    fn current(&self, sub: u32, call: u32) -> bool {
        let this = self.sub(sub);
        !this.gone && this.call == call
    }

    fn sub(&self, sub: u32) -> &Subscription {
        &self.subscriptions[sub as usize]
    }

    fn sub_mut(&mut self, sub: u32) -> &mut Subscription {
        &mut self.subscriptions[sub as usize]
    }

    fn origin_of(&self, stream: u32) -> &NodeId {
        &self.origins[stream as usize % self.origins.len()]
    }

    fn edge_named(&self, url: &str) -> Option<u32> {
        let number: u32 = url.strip_prefix('e')?.parse().ok()?;
        (number < self.fleet.edges).then_some(number)
    }

    /// From one node to another: 1 to 40 ms, mostly near.
    fn latency(&mut self) -> u64 {
        let far = self.rng.below(4) == 0;
        let most = if far { 40 * MILLIS } else { 10 * MILLIS };
        self.between(MILLIS, most)
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.rng.next() % (most - least).max(1)
    }

    fn until_next_failure(&mut self) -> u64 {
        let per_minute =
            f64::from(self.fleet.edges) * self.fleet.failing_percent_per_minute / 100.0;
        if per_minute <= 0.0 {
            return u64::MAX;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive time"
        )]
        let mean = (60.0 * SECONDS as f64 / per_minute) as u64;
        self.between(mean / 2, mean * 3 / 2)
    }

    /// Counts what there is at the end.
    fn settle(mut self) -> Outcome {
        let mut feeds = vec![0usize; self.edges.len()];
        for sub in self.subscriptions.iter().filter(|sub| !sub.gone) {
            feeds[sub.edge as usize] += sub.feeding.calls.len();
            self.outcome.subscriptions += 1;
            match &sub.path {
                Some(path) if self.fed(sub) => self.outcome.depths.push(path.depth() as u64),
                _ => self.outcome.unfed_at_end += 1,
            }
        }
        self.outcome.feeds = feeds.into_iter().map(|count| count as u64).collect();
        self.outcome.sort();
        self.outcome
    }

    /// Whether what an origin sends comes to a subscription.
    fn fed(&self, sub: &Subscription) -> bool {
        let mut at = sub;
        for _ in 0..=PATH_NODES_MAX {
            match at.upstream {
                Some((Upstream::Origin, _)) => return true,
                Some((Upstream::Edge(up), _)) if !self.sub(up).gone => at = self.sub(up),
                Some((Upstream::Edge(_), _)) | None => return false,
            }
        }
        false
    }
}
