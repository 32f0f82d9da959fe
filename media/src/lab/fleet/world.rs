//! The fleet itself: edges with their subscriptions, origins, viewers that come, and messages that take their time.

use super::Fleet;
use super::events::{Events, micros};
use super::placement::{self, Standing};
use super::report::Outcome;
use crate::id::NodeId;
use crate::lab::Rng;
use crate::tree::{
    Alternative, Candidate, ChildId, Children, Config, Joining, PATH_NODES_MAX, Path, Room, Search,
    Verdict,
};

const MILLIS: u64 = 1000;
const SECONDS: u64 = 1_000_000;

/// Viewers come in steps of this.
const STEP: u64 = 10 * MILLIS;

/// A node is lost by its call that breaks, or for every other one that fails only by silence: what `Receiver` takes to notice.
const SILENCE: u64 = 2 * SECONDS;

/// How long a node doesn't notice that a silent one is gone whom it feeds: HTTP/2's keepalive.
const KEEPALIVE: u64 = 10 * SECONDS;

/// As the edge's `subscriber` has them: waits between searches, how long a lost node is avoided, how long children wait with their parent.
const RETRY_FIRST: u64 = 100 * MILLIS;
const RETRY_MAX: u64 = 2 * SECONDS;
const SHUNNED_FOR: u64 = 10 * SECONDS;
const ORPHANED_MAX: u64 = 5 * SECONDS;

/// How often a node says what it can take.
const PING: u64 = 500 * MILLIS;

/// Viewers of an edge that failed come back within this.
const VIEWERS_RETURN: u64 = 4 * SECONDS;

/// A failed edge is replaced after this.
const REPLACED_AFTER: u64 = 60 * SECONDS;

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
    No,
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
    /// A subscriber's upstream says by which path the stream comes, is lost, or sends it away.
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
        children.handle_path(path);
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
                    self.send_away(sub);
                }
            }
            Event::Report { sub } => self.handle_report(sub),
            Event::Reported {
                stream,
                to,
                child,
                room,
            } => {
                if let Some(feeding) = self.feeding(stream, to) {
                    feeding.children.handle_room(child, room);
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
        let having = &self.having[stream as usize];
        let viewers_max = self.fleet.viewers_per_edge;
        let policy = self.fleet.placement;
        let edge = placement::place(policy, &mut self.rng, &self.standing, having, viewers_max);
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

    /// An edge needs a stream that it doesn't have.
    fn begin(&mut self, stream: u32, edge: u32) {
        let config = Config {
            fanout: self.fleet.edge_fanout,
            depth_max: self.fleet.depth_max,
            overflows: false,
        };
        let me = self.edges[edge as usize].id.clone();
        let sub = u32::try_from(self.subscriptions.len()).unwrap_or(NONE);
        self.subscriptions.push(Subscription {
            stream,
            edge,
            gone: false,
            feeding: Feeding::new(config, me, None),
            call: 0,
            upstream: None,
            path: None,
            search: None,
            candidate: None,
            known: Vec::new(),
            shunned: Vec::new(),
            failed_searches: 0,
            losses: 0,
            began: self.events.now(),
            lost_at: None,
            reporting: false,
        });
        self.index[stream as usize][edge as usize] = sub;
        self.having[stream as usize].push(edge);
        self.edges[edge as usize].subscriptions.push(sub);
        self.search(sub);
    }

    /// Begins a search for an upstream.
    fn search(&mut self, sub: u32) {
        let now = self.events.now();
        let root = self.origin_of(self.sub(sub).stream).to_string();
        let this = self.sub_mut(sub);
        this.shunned.retain(|(since, _)| now - *since < SHUNNED_FOR);
        let avoid = this.shunned.iter().map(|(_, node)| node.clone()).collect();
        let known = std::mem::take(&mut this.known);
        this.search = Some(Search::new(vec![root], known, avoid));
        self.step(sub);
    }

    /// Asks the next in a search.
    fn step(&mut self, sub: u32) {
        let this = self.sub_mut(sub);
        this.call += 1;
        let call = this.call;
        let candidate = this.search.as_mut().and_then(Search::poll_candidate);
        if let Some(candidate) = candidate {
            this.candidate = Some(candidate);
            // A connection is made, then the call.
            let latency = 3 * self.latency();
            self.events.push(latency, Event::Ask { sub, call });
            return;
        }
        if let Some(search) = this.search.take() {
            this.known = search.into_known();
        }
        let longest = (RETRY_FIRST << this.failed_searches.min(10)).min(RETRY_MAX);
        this.failed_searches += 1;
        self.outcome.failed_searches += 1;
        let wait = self.between(longest / 2, longest);
        self.events.push(wait, Event::Search { sub, call });
    }

    fn handle_ask(&mut self, sub: u32, call: u32) {
        if !self.current(sub, call) {
            return;
        }
        let this = self.sub(sub);
        let (stream, edge) = (this.stream, this.edge);
        let Some(candidate) = this.candidate.clone() else {
            return;
        };
        let avoid = this.shunned.iter().map(|(_, node)| node.clone());
        let joining = Joining {
            node: Some(self.edges[edge as usize].id.clone()),
            grpc_url: self.edges[edge as usize].id.to_string(),
            room: this.feeding.children.room(),
            redirects_left: candidate.redirects_left,
            avoid: avoid.collect(),
        };
        self.outcome.asked += 1;
        let mut latency = self.latency();
        let to = if candidate.node.is_none() {
            Some(Upstream::Origin)
        } else {
            let edge = self.edge_named(&candidate.grpc_url);
            let dead = edge.filter(|edge| !self.standing[*edge as usize].alive);
            if dead.is_some_and(|edge| self.edges[edge as usize].silent) {
                // Nobody says that nobody is there.
                latency = SILENCE;
            }
            let edge = edge.filter(|_| dead.is_none());
            let there = edge.map(|edge| self.index[stream as usize][edge as usize]);
            there.filter(|there| *there != NONE).map(Upstream::Edge)
        };
        let answer = to.map_or(Answer::No, |to| self.judge(sub, call, to, &joining));
        self.events
            .push(latency, Event::Answer { sub, call, answer });
    }

    fn judge(&mut self, sub: u32, call: u32, to: Upstream, joining: &Joining) -> Answer {
        let stream = self.sub(sub).stream;
        let path = match to {
            Upstream::Origin => Some(Path::default()),
            Upstream::Edge(up) => self.sub(up).path.clone(),
        };
        let me = match to {
            Upstream::Origin => self.origin_of(stream).clone(),
            Upstream::Edge(up) => self.edges[self.sub(up).edge as usize].id.clone(),
        };
        let Some(feeding) = self.feeding(stream, to) else {
            return Answer::No;
        };
        match feeding.children.judge(joining) {
            Verdict::Take => {
                let child = feeding.children.join(joining);
                feeding.calls.push((child, sub, call));
                let count = feeding.calls.len();
                let path = path.unwrap_or_default().through(&me);
                match to {
                    Upstream::Origin => {
                        self.outcome
                            .fed_by_origin(stream as usize % self.origins.len(), 1, count)
                    }
                    Upstream::Edge(_) => {
                        self.outcome.fanout_edge_max = self.outcome.fanout_edge_max.max(count);
                    }
                }
                self.report_soon(to);
                Answer::Taken(to, child, path)
            }
            Verdict::Redirect(alternatives) => {
                self.outcome.redirected += 1;
                Answer::Redirected(alternatives)
            }
            Verdict::Refuse(_) => {
                self.outcome.refused += 1;
                Answer::No
            }
        }
    }

    fn handle_answer(&mut self, sub: u32, call: u32, answer: Answer) {
        if !self.current(sub, call) {
            // It died, or was sent away: its place is given back.
            if let Answer::Taken(to, child, _) = answer {
                let stream = self.sub(sub).stream;
                self.leave(stream, to, child, 0);
            }
            return;
        }
        let now = self.events.now();
        match answer {
            Answer::Taken(to, child, path) => {
                let this = self.sub_mut(sub);
                this.upstream = Some((to, child));
                this.failed_searches = 0;
                if let Some(search) = this.search.take() {
                    this.known = search.into_known();
                }
                let began = this.began;
                let lost_at = this.lost_at.take();
                let fresh = this.losses == 0;
                match lost_at {
                    Some(lost_at) => self.outcome.gaps.push(now - lost_at),
                    None if fresh => self.outcome.joins.push(now - began),
                    None => {}
                }
                self.follow(sub, &path);
                // Who is fed says at once what it can take.
                self.handle_report(sub);
            }
            Answer::Redirected(alternatives) => {
                let this = self.sub_mut(sub);
                if let (Some(search), Some(from)) = (&mut this.search, &this.candidate) {
                    search.handle_redirect(from, alternatives);
                }
                self.step(sub);
            }
            Answer::No => {
                self.shun_candidate(sub);
                self.step(sub);
            }
        }
    }

    /// The stream comes by this path now.
    fn follow(&mut self, sub: u32, path: &Path) {
        let this = self.sub(sub);
        let me = self.edges[this.edge as usize].id.clone();
        if path.contains(&me) || path.depth() > self.fleet.depth_max {
            self.outcome.left += u64::from(path.depth() > self.fleet.depth_max);
            self.outcome.cycles += u64::from(path.contains(&me));
            self.drop_upstream(sub);
            self.lose(sub);
            return;
        }
        self.outcome.depth_max = self.outcome.depth_max.max(path.depth());
        let this = self.sub_mut(sub);
        if this.path.as_ref() == Some(path) {
            return;
        }
        this.path = Some(path.clone());
        this.feeding.children.handle_path(Some(path.clone()));
        let below = path.through(&me);
        for (_, child, call) in self.sub(sub).feeding.calls.clone() {
            let path = below.clone();
            let latency = self.latency();
            self.events.push(
                latency,
                Event::Told {
                    sub: child,
                    call,
                    path,
                },
            );
        }
        self.report_soon(Upstream::Edge(sub));
    }

    /// A subscription has no upstream any more.
    fn lose(&mut self, sub: u32) {
        let now = self.events.now();
        let Some((to, _)) = self.sub_mut(sub).upstream.take() else {
            return;
        };
        let died = match to {
            Upstream::Edge(up) if self.sub(up).gone => {
                let edge = self.sub(up).edge;
                self.outcome.reparented += 1;
                self.edges[edge as usize].failed_at
            }
            Upstream::Edge(_) | Upstream::Origin => now,
        };
        let wait = self.between(RETRY_FIRST / 2, RETRY_FIRST);
        let this = self.sub_mut(sub);
        this.call += 1;
        this.losses += 1;
        this.lost_at = Some(died);
        this.path = None;
        this.feeding.children.handle_path(None);
        let (call, losses) = (this.call, this.losses);
        self.shun_candidate(sub);
        self.events.push(wait, Event::Search { sub, call });
        self.events
            .push(ORPHANED_MAX, Event::Orphaned { sub, losses });
    }

    /// A node without an upstream sends those away whom it feeds.
    fn send_away(&mut self, sub: u32) {
        let calls = std::mem::take(&mut self.sub_mut(sub).feeding.calls);
        for (child, below, call) in calls {
            self.sub_mut(sub).feeding.children.leave(child);
            self.outcome.sent_away += 1;
            let latency = self.latency();
            self.events.push(latency, Event::Cut { sub: below, call });
        }
    }

    fn handle_report(&mut self, sub: u32) {
        let this = self.sub_mut(sub);
        this.reporting = false;
        let (stream, room) = (this.stream, this.feeding.children.room());
        if let Some((to, child)) = this.upstream.filter(|_| !this.gone) {
            let latency = self.latency();
            let event = Event::Reported {
                stream,
                to,
                child,
                room,
            };
            self.events.push(latency, event);
        }
    }

    /// What this node can take has changed: its next ping says so.
    fn report_soon(&mut self, node: Upstream) {
        let Upstream::Edge(sub) = node else {
            return;
        };
        if !std::mem::replace(&mut self.sub_mut(sub).reporting, true) {
            let wait = self.between(0, PING);
            self.events.push(wait, Event::Report { sub });
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

    /// A subscription goes with its edge: those above and below notice, sooner or later.
    fn remove(&mut self, sub: u32, silent: bool) {
        let this = self.sub_mut(sub);
        this.gone = true;
        this.call += 1;
        this.path = None;
        let (stream, edge) = (this.stream, this.edge);
        let upstream = this.upstream.take();
        let calls = std::mem::take(&mut this.feeding.calls);
        this.search = None;
        self.index[stream as usize][edge as usize] = NONE;
        self.having[stream as usize].retain(|having| *having != edge);
        for (_, child, call) in calls {
            let notices = if silent { SILENCE } else { self.latency() };
            self.events.push(notices, Event::Cut { sub: child, call });
        }
        if let Some((to, child)) = upstream {
            let notices = if silent { KEEPALIVE } else { self.latency() };
            self.leave(stream, to, child, notices);
        }
    }

    /// A subscription leaves an upstream that lives.
    fn drop_upstream(&mut self, sub: u32) {
        let this = self.sub(sub);
        if let Some((to, child)) = this.upstream {
            let stream = this.stream;
            let latency = self.latency();
            self.leave(stream, to, child, latency);
        }
    }

    fn leave(&mut self, stream: u32, to: Upstream, child: ChildId, after: u64) {
        if to == Upstream::Origin {
            let origin = stream as usize % self.origins.len();
            self.outcome.fed_by_origin(origin, -1, 0);
        }
        self.events.push(after, Event::Left { stream, to, child });
    }

    fn shun_candidate(&mut self, sub: u32) {
        let now = self.events.now();
        let this = self.sub_mut(sub);
        let node = this.candidate.as_ref().and_then(|c| c.node.clone());
        if let Some(node) = node {
            this.shunned.push((now, node));
            if this.shunned.len() > 8 {
                this.shunned.remove(0);
            }
        }
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
