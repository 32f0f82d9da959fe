//! What edges do to be fed, and to feed: searches, calls, losses, reports. The waits are the edge's `subscriber`'s.

use super::{Answer, Event, Feeding, MILLIS, NONE, SECONDS, Subscription, Upstream, World};
use crate::tree::{Capacity, ChildId, Config, Joining, Path, Search, Verdict};

/// A node is lost by its call that breaks, or for every other one that fails only by silence: what `Receiver` takes to notice.
const SILENCE: u64 = 2 * SECONDS;

/// How long a node doesn't notice that a silent one is gone whom it feeds: HTTP/2's keepalive.
const KEEPALIVE: u64 = 10 * SECONDS;

/// As the edge's `subscriber` has them: waits between searches, how long a lost node is avoided.
const RETRY_FIRST: u64 = 100 * MILLIS;
const RETRY_MAX: u64 = 2 * SECONDS;
const SHUNNED_FOR: u64 = 10 * SECONDS;

/// How long children wait for a parent without an upstream: as `Patience` has it where the origin answers, as it always does here.
const PATIENCE: u64 = 6 * SECONDS;

/// A subscriber stays for so long at least: `node::replication`'s session.
const SETTLED_AFTER: u64 = 5 * SECONDS;

/// How often a node says what it can take.
const PING: u64 = 500 * MILLIS;

impl World {
    /// An edge needs a stream that it doesn't have.
    pub(super) fn begin(&mut self, stream: u32, edge: u32) {
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
    pub(super) fn search(&mut self, sub: u32) {
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
    pub(super) fn step(&mut self, sub: u32) {
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

    pub(super) fn handle_ask(&mut self, sub: u32, call: u32) {
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
        let answer = to.map_or(Answer::None, |to| self.judge(sub, call, to, &joining));
        self.events
            .push(latency, Event::Answer { sub, call, answer });
    }

    pub(super) fn judge(&mut self, sub: u32, call: u32, to: Upstream, joining: &Joining) -> Answer {
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
            return Answer::None;
        };
        match feeding.children.judge(joining, Capacity::Free) {
            Verdict::Take => {
                let child = feeding.children.join(joining);
                feeding.calls.push((child, sub, call));
                let count = feeding.calls.len();
                let path = path.unwrap_or_default().through(&me);
                match to {
                    Upstream::Origin => {
                        let origin = stream as usize % self.origins.len();
                        self.outcome.fed_by_origin(origin, 1, count);
                        if count > self.fleet.origin_fanout {
                            self.events.push(SETTLED_AFTER, Event::Shed { stream });
                        }
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
                Answer::Refused
            }
        }
    }

    pub(super) fn handle_answer(&mut self, sub: u32, call: u32, answer: Answer) {
        if !self.current(sub, call) {
            // It died, or left an orphan: its place is given back.
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
            Answer::Refused => self.step(sub),
            Answer::None => {
                self.shun_candidate(sub);
                self.step(sub);
            }
        }
    }

    /// The stream comes by this path now.
    pub(super) fn follow(&mut self, sub: u32, path: &Path) {
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
        this.feeding.children.handle_path(path.clone());
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
    pub(super) fn lose(&mut self, sub: u32) {
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
        this.feeding.children.handle_orphaned(1);
        let (call, losses) = (this.call, this.losses);
        self.shun_candidate(sub);
        self.events.push(wait, Event::Search { sub, call });
        self.events.push(PATIENCE, Event::Orphaned { sub, losses });
    }

    /// An origin sends those on that are too many, as their pings come in.
    pub(super) fn handle_shed(&mut self, stream: u32) {
        let root = &mut self.roots[stream as usize];
        let calls = root.calls.clone();
        let mut shed = Vec::new();
        for (child, sub, call) in calls {
            if root.children.shed(child).is_some() {
                root.children.leave(child);
                root.calls.retain(|(id, ..)| *id != child);
                shed.push((sub, call));
            }
        }
        let many = root.calls.len() > self.fleet.origin_fanout;
        for (sub, call) in shed {
            self.outcome.shed += 1;
            let origin = stream as usize % self.origins.len();
            self.outcome.fed_by_origin(origin, -1, 0);
            let latency = self.latency();
            self.events.push(latency, Event::Sent { sub, call });
        }
        if many {
            self.events.push(PING, Event::Shed { stream });
        }
    }

    /// A subscription that is sent on looks for the next upstream at once.
    pub(super) fn go_on(&mut self, sub: u32) {
        let now = self.events.now();
        let this = self.sub_mut(sub);
        if this.upstream.take().is_none() {
            return;
        }
        this.losses += 1;
        this.lost_at = Some(now);
        this.path = None;
        this.feeding.children.handle_orphaned(1);
        let losses = this.losses;
        self.events.push(PATIENCE, Event::Orphaned { sub, losses });
        self.search(sub);
    }

    /// A node hasn't found an upstream: those whom it feeds leave.
    pub(super) fn leave_orphan(&mut self, sub: u32) {
        let calls = std::mem::take(&mut self.sub_mut(sub).feeding.calls);
        for (child, below, call) in calls {
            self.sub_mut(sub).feeding.children.leave(child);
            self.outcome.left_orphans += 1;
            let latency = self.latency();
            self.events.push(latency, Event::Cut { sub: below, call });
        }
    }

    pub(super) fn handle_report(&mut self, sub: u32) {
        let now = self.events.now();
        let this = self.sub_mut(sub);
        this.reporting = false;
        let (stream, room) = (this.stream, this.feeding.children.room());
        this.shunned.retain(|(since, _)| now - *since < SHUNNED_FOR);
        let avoid = this.shunned.iter().map(|(_, node)| node.clone()).collect();
        if let Some((to, child)) = this.upstream.filter(|_| !this.gone) {
            let latency = self.latency();
            let event = Event::Reported {
                stream,
                to,
                child,
                room,
                avoid,
            };
            self.events.push(latency, event);
        }
    }

    /// What this node can take has changed: its next ping says so.
    pub(super) fn report_soon(&mut self, node: Upstream) {
        let Upstream::Edge(sub) = node else {
            return;
        };
        if !std::mem::replace(&mut self.sub_mut(sub).reporting, true) {
            let wait = self.between(0, PING);
            self.events.push(wait, Event::Report { sub });
        }
    }

    /// A subscription goes with its edge: those above and below notice, sooner or later.
    pub(super) fn remove(&mut self, sub: u32, silent: bool) {
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
    pub(super) fn drop_upstream(&mut self, sub: u32) {
        let this = self.sub(sub);
        if let Some((to, child)) = this.upstream {
            let stream = this.stream;
            let latency = self.latency();
            self.leave(stream, to, child, latency);
        }
    }

    pub(super) fn leave(&mut self, stream: u32, to: Upstream, child: ChildId, after: u64) {
        if to == Upstream::Origin {
            let origin = stream as usize % self.origins.len();
            self.outcome.fed_by_origin(origin, -1, 0);
        }
        self.events.push(after, Event::Left { stream, to, child });
    }

    pub(super) fn shun_candidate(&mut self, sub: u32) {
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
}
