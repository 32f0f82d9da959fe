//! Ownership as a model: three origins, an etcd, networks that part and heal, leases that end, processes that die, interleaved by a seed;
//! in every fifth world two of the origins were given one id.
//!
//! The decisions are the product's ([`Acquisition`], [`occupied`], [`Claimant`]); around them the model plays what etcd, the lease's
//! keeper, the watch and the registry do, a round trip at a time, so that anything may happen between a read and the write that depends
//! on it. What must hold is asserted after every step, and once all is healed.

use std::collections::BTreeMap;
use std::time::Duration;

use headwater_media::id::Epoch;
use headwater_node::directory::{Claimant, Error, Incarnation, Restore, StreamRecord};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;

const ORIGINS: usize = 3;
const TAKEOVER: Duration = Duration::from_secs(5);

/// The record of the one stream there is, as a read finds it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Read {
    record: Option<StreamRecord>,
    lease: u64,
    /// The revision that wrote it; 0 if there is none.
    written: u64,
}

#[derive(Debug)]
struct Acquiring {
    core: Acquisition,
    step: Step,
    /// Read, and to be written over next.
    read: Option<Read>,
}

/// One origin: the parts of its directory and of its registry that concern the stream.
#[derive(Debug)]
struct Origin {
    up: bool,
    run: Claimant,
    lease: Option<u64>,
    /// The claim that stands as far as its directory knows.
    claim: Option<Epoch>,
    /// Claims to be removed from etcd; none: whatever an unanswered claim wrote.
    releases: Vec<Option<Epoch>>,
    /// Events of the watch that have arrived (count).
    watched: usize,
    /// What the keeper read, to put the claim again depending on it.
    restoring: Option<Read>,
    /// The stream that is served, and whether its publisher is there.
    live: Option<(Epoch, bool)>,
    acquiring: Option<Acquiring>,
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Arrive,
    Leave,
    Silence,
    HoldOver,
    Acquire,
    Keep,
    Watch,
    Check,
    Kill,
    Start,
    CutEtcd,
    HealEtcd,
    CutOthers,
    HealOthers,
    LeaseEnds,
}

/// What may happen, the ordinary more often than the rest.
const EVENTS: [(Event, u32); 15] = [
    (Event::Arrive, 8),
    (Event::Leave, 3),
    (Event::Silence, 1),
    (Event::HoldOver, 2),
    (Event::Acquire, 24),
    (Event::Keep, 10),
    (Event::Watch, 12),
    (Event::Check, 6),
    (Event::Kill, 1),
    (Event::Start, 2),
    (Event::CutEtcd, 2),
    (Event::HealEtcd, 3),
    (Event::CutOthers, 1),
    (Event::HealOthers, 2),
    (Event::LeaseEnds, 4),
];

#[derive(Debug)]
struct World {
    random: StdRng,
    ids: [&'static str; ORIGINS],
    origins: Vec<Origin>,
    runs: u64,
    // The networks.
    etcd_cut: [bool; ORIGINS],
    others_cut: [bool; ORIGINS],
    // etcd.
    revision: u64,
    stored: Read,
    history: Vec<Option<StreamRecord>>,
    leases: u64,
    /// Those that live, and of whose run.
    living: BTreeMap<u64, Incarnation>,
    // What was seen.
    given: BTreeMap<Epoch, Incarnation>,
    silent: Vec<Epoch>,
    takeovers: u32,
    waits: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            ids: ["a", "b", if seed.is_multiple_of(5) { "a" } else { "c" }],
            origins: Vec::new(),
            runs: 0,
            etcd_cut: [false; ORIGINS],
            others_cut: [false; ORIGINS],
            revision: 1,
            stored: Read::default(),
            history: Vec::new(),
            leases: 0,
            living: BTreeMap::new(),
            given: BTreeMap::new(),
            silent: Vec::new(),
            takeovers: 0,
            waits: 0,
        };
        for origin in 0..ORIGINS {
            let run = world.run(origin);
            world.origins.push(run);
        }
        world
    }

    fn id_of(&self, origin: usize) -> NodeId {
        self.ids[origin].parse().expect("valid")
    }

    /// A process that starts; its watch begins with what is there.
    fn run(&mut self, origin: usize) -> Origin {
        self.runs += 1;
        Origin {
            up: true,
            run: Claimant {
                id: self.id_of(origin),
                incarnation: Incarnation(self.runs),
            },
            lease: None,
            claim: None,
            releases: Vec::new(),
            watched: self.history.len(),
            restoring: None,
            live: None,
            acquiring: None,
        }
    }

    fn any(&mut self) {
        let origin = self.random.random_range(0..ORIGINS);
        let event = EVENTS
            .choose_weighted(&mut self.random, |(_, weight)| *weight)
            .expect("weights")
            .0;
        self.step(origin, event);
        self.check();
    }

    fn step(&mut self, at: usize, event: Event) {
        let up = self.origins[at].up;
        match event {
            Event::Start if !up => self.origins[at] = self.run(at),
            Event::CutEtcd => self.etcd_cut[at] = true,
            Event::HealEtcd => self.etcd_cut[at] = false,
            Event::CutOthers => self.others_cut[at] = true,
            Event::HealOthers => self.others_cut[at] = false,
            Event::LeaseEnds => self.end_a_lease(),
            _ if !up => {}
            Event::Kill => self.origins[at].up = false,
            Event::Arrive => self.arrive(at),
            Event::Leave => {
                if let Some((_, present)) = &mut self.origins[at].live {
                    *present = false;
                }
            }
            Event::Silence => {
                let live = self.origins[at].live;
                self.silent.extend(live.map(|(epoch, _)| epoch));
            }
            Event::HoldOver => {
                let origin = &mut self.origins[at];
                if let Some((epoch, false)) = origin.live
                    && origin.acquiring.is_none()
                {
                    origin.live = None;
                    origin.release(epoch);
                }
            }
            Event::Acquire => self.acquire(at),
            Event::Keep => self.keep(at),
            Event::Watch => self.watch(at),
            Event::Check => {
                let origin = &mut self.origins[at];
                if let Some((epoch, _)) = origin.live
                    && origin.acquiring.is_none()
                    && origin.claim != Some(epoch)
                {
                    origin.live = None;
                    origin.release(epoch);
                }
            }
            Event::Start => {}
        }
    }

    /// How long the publisher at `at` has been silent; none if there is none.
    fn silence(&self, at: usize) -> Option<Duration> {
        let (epoch, _) = self.origins[at].live.filter(|(_, present)| *present)?;
        Some(if self.silent.contains(&epoch) {
            TAKEOVER * 2
        } else {
            Duration::ZERO
        })
    }

    fn occupied(&self, at: usize) -> bool {
        let claiming = self.origins[at].acquiring.is_some();
        occupied(claiming, self.silence(at), TAKEOVER)
    }

    fn arrive(&mut self, at: usize) {
        if self.occupied(at) {
            return;
        }
        self.origins[at].acquiring = Some(Acquiring {
            core: Acquisition::new(self.id_of(at)),
            step: Step::Claim { over: None },
            read: None,
        });
    }

    /// One round trip of an acquisition.
    fn acquire(&mut self, at: usize) {
        let Some(mut acquiring) = self.origins[at].acquiring.take() else {
            return;
        };
        let step = match acquiring.step.clone() {
            Step::Claim { over } => match self.claim(at, over, &mut acquiring.read) {
                Some(claimed) => acquiring.core.handle_claim(claimed),
                None => acquiring.step,
            },
            Step::Ask(held) => {
                let answer = self.ask(at, &held);
                self.waits += u32::from(answer == Answer::Silent);
                acquiring.core.handle_answer(&answer)
            }
            Step::Done(_) => unreachable!("it was dropped"),
        };
        match step {
            Step::Done(Ok(epoch)) => {
                let origin = &mut self.origins[at];
                origin.live = Some((epoch, true));
                self.takeovers += u32::from(acquiring.core.void().is_some());
            }
            Step::Done(Err(_)) => {}
            step => {
                acquiring.step = step;
                self.origins[at].acquiring = Some(acquiring);
            }
        }
    }

    /// A claim at etcd, its read and its write in turn; none until it is decided.
    fn claim(
        &mut self,
        at: usize,
        over: Option<Epoch>,
        read: &mut Option<Read>,
    ) -> Option<Result<Epoch, Error>> {
        let unavailable = || Some(Err(Error::Unavailable("away".into())));
        let Some(found) = read.take() else {
            if self.etcd_cut[at] || self.origins[at].lease.is_none() {
                return unavailable();
            }
            if let Some(held) = &self.stored.record
                && !self.origins[at].run.may_claim(Some(held), over)
            {
                return Some(Err(Error::Held(held.clone())));
            }
            *read = Some(self.stored.clone());
            return None;
        };
        let unanswered = self.etcd_cut[at];
        if unanswered && self.random.random_bool(0.5) {
            // It did not get there; nobody knows.
            self.origins[at].doubt();
            return unavailable();
        }
        let lease = self.origins[at].lease.unwrap_or_default();
        if !self.living.contains_key(&lease) {
            self.origins[at].doubt();
            return unavailable();
        }
        self.origins[at].releases.clear();
        if found.written != self.stored.written {
            return None;
        }
        self.assert_may_be_taken(at, found.record.as_ref());
        let epoch = Epoch(self.revision + 1);
        let run = self.origins[at].run.clone();
        assert!(
            self.given.keys().all(|given| *given < epoch),
            "epochs only grow"
        );
        self.given.insert(epoch, run.incarnation);
        self.put(&run, epoch, lease);
        if unanswered {
            self.origins[at].doubt();
            return unavailable();
        }
        self.origins[at].claim = Some(epoch);
        Some(Ok(epoch))
    }

    /// Nobody's name is taken whose publisher sends.
    fn assert_may_be_taken(&self, by: usize, held: Option<&StreamRecord>) {
        let Some(held) = held else { return };
        for origin in &self.origins {
            let serves = origin.live == Some((held.epoch, true)) && origin.run.wrote(held);
            // One of the same id is taken for an earlier run.
            if origin.run.id != self.origins[by].run.id && origin.up && serves {
                assert!(self.silent.contains(&held.epoch), "its publisher sends");
            }
        }
    }

    fn put(&mut self, run: &Claimant, epoch: Epoch, lease: u64) {
        self.revision += 1;
        let record = StreamRecord {
            name: "live/x".parse().expect("valid"),
            origin: run.id.clone(),
            incarnation: run.incarnation,
            epoch,
            grpc_url: String::new(),
        };
        self.stored = Read {
            record: Some(record.clone()),
            lease,
            written: self.revision,
        };
        self.history.push(Some(record));
    }

    fn delete(&mut self) {
        self.revision += 1;
        self.stored = Read::default();
        self.history.push(None);
    }

    fn ask(&self, by: usize, held: &StreamRecord) -> Answer {
        // Each is reached at an address of its own, which its next run keeps.
        let wrote = |at: &usize| self.origins[*at].run.wrote(held);
        let named = |at: &usize| self.id_of(*at) == held.origin;
        let owner = (0..ORIGINS)
            .find(wrote)
            .or_else(|| (0..ORIGINS).find(named))
            .expect("one of them");
        if self.others_cut[by] || self.others_cut[owner] {
            return Answer::Silent;
        }
        let origin = &self.origins[owner];
        if !origin.up {
            return Answer::Refused;
        }
        Answer::Standing {
            node: origin.run.id.clone(),
            incarnation: origin.run.incarnation,
            publishing: self.occupied(owner),
        }
    }

    /// One round trip of the lease's keeper.
    fn keep(&mut self, at: usize) {
        if self.etcd_cut[at] {
            return;
        }
        let lease = self.origins[at].lease;
        let Some(lease) = lease.filter(|lease| self.living.contains_key(lease)) else {
            self.leases += 1;
            let run = self.origins[at].run.incarnation;
            self.living.insert(self.leases, run);
            self.origins[at].lease = Some(self.leases);
            return;
        };
        let origin = &mut self.origins[at];
        if let Some(read) = origin.restoring.take() {
            let (run, claim) = (origin.run.clone(), origin.claim);
            if let Some(epoch) = claim
                && read.written == self.stored.written
            {
                self.put(&run, epoch, lease);
            }
            return;
        }
        if let Some(release) = origin.releases.pop() {
            let doubtful = release.is_none() && origin.claim.is_some();
            let ours = self.stored.record.as_ref().is_some_and(|record| {
                origin.run.wrote(record) && release.is_none_or(|epoch| record.epoch == epoch)
            });
            if ours && !doubtful {
                self.delete();
            }
            return;
        }
        let Some(claim) = origin.claim else { return };
        match origin.run.restore(claim, self.stored.record.as_ref()) {
            Restore::Lost => origin.claim = None,
            Restore::Stands => {}
            Restore::Put => {
                let found = self.stored.record.as_ref();
                let stands = found.is_some_and(|found| {
                    origin.run.wrote(found) && found.epoch == claim && self.stored.lease == lease
                });
                origin.restoring = (!stands).then(|| self.stored.clone());
            }
        }
    }

    fn watch(&mut self, at: usize) {
        if self.etcd_cut[at] {
            return;
        }
        let origin = &mut self.origins[at];
        let Some(event) = self.history.get(origin.watched) else {
            return;
        };
        origin.watched += 1;
        if let (Some(record), Some(claim)) = (event, origin.claim)
            && origin.run.lost(claim, record)
        {
            origin.claim = None;
        }
    }

    /// The lease of a process that died or can't reach etcd ends.
    fn end_a_lease(&mut self) {
        let kept = |run: &Incarnation| {
            let mut origins = self.origins.iter().enumerate();
            origins.any(|(at, origin)| {
                origin.up && origin.run.incarnation == *run && !self.etcd_cut[at]
            })
        };
        let ending = self.living.iter().find(|(_, run)| !kept(run));
        let Some(lease) = ending.map(|(lease, _)| *lease) else {
            return;
        };
        self.living.remove(&lease);
        if self.stored.record.is_some() && self.stored.lease == lease {
            self.delete();
        }
    }

    /// What holds at any time: no epoch has two owners.
    fn check(&self) {
        let mut served = BTreeMap::new();
        for origin in self.origins.iter().filter(|origin| origin.up) {
            if let Some((epoch, _)) = origin.live {
                assert_eq!(self.given.get(&epoch), Some(&origin.run.incarnation));
                let other = served.insert(epoch, origin.run.id.clone());
                assert_eq!(other, None, "two owners of {epoch}");
            }
        }
    }

    /// Heals everything, lets it settle, and checks that one owner is left, the one that the directory names.
    fn settle(&mut self) {
        self.etcd_cut = [false; ORIGINS];
        self.others_cut = [false; ORIGINS];
        for _ in 0..40 + 3 * self.history.len() {
            for at in 0..ORIGINS {
                for event in [
                    Event::Acquire,
                    Event::Keep,
                    Event::Watch,
                    Event::Check,
                    Event::LeaseEnds,
                ] {
                    self.step(at, event);
                    self.check();
                }
            }
        }
        let owners = self.origins.iter().filter(|origin| origin.up);
        let owners: Vec<_> = owners
            .filter_map(|origin| Some((origin.live?.0, &origin.run)))
            .collect();
        assert!(owners.len() <= 1, "one owner at most: {owners:?}");
        let named = self.stored.record.as_ref();
        match owners.first() {
            Some((epoch, run)) => {
                let named = named.expect("the directory names it");
                // A claim without an answer may have left a higher epoch; the stream is found all the same.
                assert!(run.wrote(named) && named.epoch >= *epoch, "{named:?}");
            }
            None => assert_eq!(named, None, "nobody has it"),
        }
        let mut running = self.origins.iter().filter(|origin| origin.up);
        assert!(running.all(|origin| origin.acquiring.is_none()));
    }
}

impl Origin {
    fn release(&mut self, epoch: Epoch) {
        if self.claim.is_none_or(|claim| claim == epoch) {
            self.claim = None;
            self.releases.push(Some(epoch));
        }
    }

    fn doubt(&mut self) {
        self.releases.push(None);
    }
}

/// Says how to repeat what fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!("repeat: HEADWATER_TEST_SEED={seed} cargo nextest run -E 'test(two_owners)'");
        }
    }
}

#[test]
fn no_epoch_ever_has_two_owners_and_what_heals_has_one() {
    let only = std::env::var("HEADWATER_TEST_SEED").ok();
    let only = only.map(|seed| seed.parse::<u64>().expect("a number"));
    let seeds = only.map_or(0..10_000, |seed| seed..seed + 1);
    let (mut takeovers, mut waits, mut claims) = (0, 0, 0);
    for seed in seeds {
        let _named = Seed(seed);
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.any();
        }
        world.settle();
        takeovers += world.takeovers;
        waits += world.waits;
        claims += world.given.len();
    }
    if only.is_none() {
        let seen = (takeovers, waits, claims);
        let enough = takeovers > 1000 && waits > 1000 && claims > 10_000;
        assert!(enough, "too little happens: {seen:?}");
    }
}
