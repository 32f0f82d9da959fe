//! Which edge a viewer gets: a load balancer gives it to any, and that one keeps it or sends it to another, by the decision that edges make
//! ([`crate::placement`]) and what they told of themselves.

use super::super::Rng;
use crate::placement::{Candidate, choose};

/// An edge as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// It runs.
    pub(super) alive: bool,
    /// Its viewers (count).
    pub(super) viewers: u32,
}

/// An edge as its record in the directory has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Told {
    pub(super) load: f64,
    /// Those with the most viewers there, sorted by number.
    pub(super) streams: Vec<u32>,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The load balancer alone: any edge that isn't full.
    Any,
    /// The edges, as they do.
    Edges,
}

/// Streams that a record names (count): `NodeRecord::STREAMS_MAX`.
const TOLD_STREAMS_MAX: usize = 32;

/// A load that differs by less is no news: the edge's `announce`.
const LOAD_STEP: f64 = 0.05;

/// Times that a player tries (count). Who is refused is told when to come again.
const TRIES: u32 = 8;

/// Edges drawn for one that runs (count).
const DRAWS: u32 = 64;

impl Told {
    /// What an edge would say now.
    pub(super) fn of(standing: Standing, viewers: &[(u32, u32)], viewers_max: u32) -> Self {
        let mut most = viewers.to_vec();
        most.sort_unstable_by_key(|(stream, count)| (std::cmp::Reverse(*count), *stream));
        most.truncate(TOLD_STREAMS_MAX);
        let mut streams: Vec<u32> = most.into_iter().map(|(stream, _)| stream).collect();
        streams.sort_unstable();
        Self {
            load: load(standing, viewers_max),
            streams,
        }
    }

    /// Worth writing, when `before` was written last.
    pub(super) fn is_news(&self, before: &Self) -> bool {
        (self.load - before.load).abs() >= LOAD_STEP || self.streams != before.streams
    }

    fn candidate(&self, stream: u32) -> Candidate {
        Candidate {
            load: self.load,
            has_stream: self.streams.binary_search(&stream).is_ok(),
        }
    }
}

/// What is known of the edges.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) edges: &'a [Standing],
    /// None: it has no record.
    pub(super) told: &'a [Option<Told>],
    /// Which edges have the stream, by number.
    pub(super) having: &'a [u32],
    pub(super) viewers_max: u32,
}

/// The edge for a viewer of `stream`; none if it was refused each time.
pub(super) fn place(
    placement: Placement,
    rng: &mut Rng,
    view: View<'_>,
    stream: u32,
) -> Option<u32> {
    (0..TRIES).find_map(|_| {
        let here = running(rng, view.edges)?;
        let edge = match placement {
            Placement::Any => here,
            Placement::Edges => elsewhere(rng, view, stream, here).unwrap_or(here),
        };
        let takes = |edge: u32| {
            let standing = view.edges.get(edge as usize);
            standing.is_some_and(|edge| edge.alive && edge.viewers < view.viewers_max)
        };
        takes(edge).then_some(edge)
    })
}

/// An edge to which a load balancer sends a viewer: it knows which don't answer.
fn running(rng: &mut Rng, edges: &[Standing]) -> Option<u32> {
    let count = u32::try_from(edges.len()).unwrap_or(u32::MAX);
    let mut drawn = (0..DRAWS).map(|_| rng.below(count));
    drawn.find(|edge| edges.get(*edge as usize).is_some_and(|edge| edge.alive))
}

/// Where the edge `here` sends a viewer.
fn elsewhere(rng: &mut Rng, view: View<'_>, stream: u32, here: u32) -> Option<u32> {
    let standing = view.edges.get(here as usize)?;
    let own = Candidate {
        load: load(*standing, view.viewers_max),
        has_stream: view.having.contains(&here),
    };
    let full = standing.viewers >= view.viewers_max;
    if !full && own.is_content() {
        return None;
    }
    let others = (0..).zip(view.told).filter(|(edge, _)| *edge != here);
    let others: Vec<(u32, Candidate)> = others
        .filter_map(|(edge, told)| Some((edge, told.as_ref()?.candidate(stream))))
        .collect();
    let candidates: Vec<Candidate> = others.iter().map(|(_, candidate)| *candidate).collect();
    let at = choose(&candidates, [rng.next(), rng.next()])?;
    let (edge, there) = others.get(at)?;
    (full || own.should_send_to(there)).then_some(*edge)
}

fn load(standing: Standing, viewers_max: u32) -> f64 {
    f64::from(standing.viewers) / f64::from(viewers_max.max(1))
}
