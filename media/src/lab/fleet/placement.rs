//! Which edge a viewer gets: whoever hears of it first sends it on when another one is the better choice.

use super::super::Rng;

/// An edge as others know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Standing {
    /// It runs.
    pub(super) alive: bool,
    /// Its viewers (count).
    pub(super) viewers: u32,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// A load balancer that knows nothing of streams: any edge that isn't full.
    Any,
    /// The edges: of two random ones that have the stream the one with fewer viewers, unless it is busy; then of two random ones of all.
    Sticky,
}

/// From this load on a viewer is sent to another edge, if that has less.
const BUSY_PERCENT: u32 = 80;

/// Times that an edge is looked for (count).
const TRIES: u32 = 4;

/// The edge for a viewer of a stream that the edges `having` have; none if all that were looked at are full.
pub(super) fn place(
    placement: Placement,
    rng: &mut Rng,
    edges: &[Standing],
    having: &[u32],
    viewers_max: u32,
) -> Option<u32> {
    let busy = viewers_max / 100 * BUSY_PERCENT;
    let pick = |from: usize, rng: &mut Rng| rng.below(u32::try_from(from).unwrap_or(u32::MAX));
    let standing = |edge: u32| edges.get(edge as usize).copied().unwrap_or_default();
    let open = |edge: &u32, limit: u32| {
        let standing = standing(*edge);
        standing.alive && standing.viewers < limit
    };
    let of_two = |rng: &mut Rng, among: Option<&[u32]>, limit: u32| {
        let mut one = || match among {
            Some(among) => among.get(pick(among.len(), rng) as usize).copied(),
            None => Some(pick(edges.len(), rng)),
        };
        let two = [one(), one()].into_iter().flatten();
        let open = two.filter(|edge| open(edge, limit));
        open.min_by_key(|edge| standing(*edge).viewers)
    };
    match placement {
        Placement::Any => (0..4 * TRIES).find_map(|_| {
            let edge = pick(edges.len(), rng);
            open(&edge, viewers_max).then_some(edge)
        }),
        Placement::Sticky => of_two(rng, Some(having), busy)
            .or_else(|| (0..TRIES).find_map(|_| of_two(rng, None, busy)))
            .or_else(|| (0..TRIES).find_map(|_| of_two(rng, None, viewers_max))),
    }
}
