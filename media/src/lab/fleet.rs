//! A fleet on paper: thousands of edges, a flash crowd of millions of viewers, and nodes that die, under virtual time.
//!
//! Who feeds whom is decided by the code that nodes run ([`crate::tree`]): every edge has its [`Children`](crate::tree::Children) per stream and asks
//! as its [`Search`](crate::tree::Search) says; which edge a viewer gets, by [`crate::placement`]. Messages take the time that they take between the two nodes; media itself is not simulated, and
//! viewers are counted, not played. `headwater lab --fleet` prints the table, and `make lab` writes it to `tests/fleet.md`.

mod events;
mod placement;
mod report;
mod world;

use std::time::Duration;

pub use placement::Placement;
pub use report::{Outcome, Report};
use world::World;

/// What is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fleet {
    /// Edges (count).
    pub edges: u32,
    /// Viewers that one edge takes (count).
    pub viewers_per_edge: u32,
    /// Origins (count), which the streams are spread over.
    pub origins: u32,
    /// Streams (count). The n-th has 1/n of the first one's viewers.
    pub streams: u32,
    /// Which edge a viewer gets.
    pub placement: Placement,
    /// Viewers (count).
    pub viewers: u32,
    /// All of them come within this.
    pub crowd: Duration,
    /// How long all is watched, the crowd included.
    pub length: Duration,
    /// Edges that fail within a minute (per cent). Each is replaced after a minute by an empty one.
    pub failing_percent_per_minute: f64,
    /// Edges that an origin feeds with one stream (count).
    pub origin_fanout: usize,
    /// Edges that an edge feeds with one stream (count).
    pub edge_fanout: usize,
    /// How far from the publisher an edge may be (count).
    pub depth_max: usize,
}

impl Fleet {
    /// 2,000 edges, 200 streams, 2 million viewers within a minute, 1 % of the edges failing per minute, and the defaults of the
    /// configuration.
    pub const LARGE: Self = Self {
        edges: 2000,
        viewers_per_edge: 1500,
        origins: 10,
        streams: 200,
        placement: Placement::Edges,
        viewers: 2_000_000,
        crowd: Duration::from_secs(60),
        length: Duration::from_secs(300),
        failing_percent_per_minute: 1.0,
        origin_fanout: 32,
        edge_fanout: 16,
        depth_max: 5,
    };
}

/// The large fleet: as it is by default, with viewers that stay at any edge they come to, with lower fan-outs, and without a tree, each edge
/// fed by its origin.
pub fn run_all(seed: u64) -> Report {
    let any = Fleet {
        placement: Placement::Any,
        ..Fleet::LARGE
    };
    let fanouts = |origin_fanout, edge_fanout| Fleet {
        origin_fanout,
        edge_fanout,
        ..any
    };
    let cases = [
        ("placed by edges, 32 and 16", Fleet::LARGE),
        ("any edge, 32 and 16", any),
        ("any edge, 8 and 8", fanouts(8, 8)),
        ("any edge, no tree", fanouts(usize::MAX, 0)),
    ];
    let run = |(name, fleet): (&'static str, Fleet)| (name, World::new(fleet, seed).run());
    Report::new(cases.map(run).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Fleet {
        Fleet {
            edges: 60,
            viewers_per_edge: 100,
            origins: 2,
            streams: 4,
            placement: Placement::Any,
            viewers: 2000,
            crowd: Duration::from_secs(10),
            length: Duration::from_secs(90),
            failing_percent_per_minute: 30.0,
            origin_fanout: 3,
            edge_fanout: 3,
            depth_max: 5,
        }
    }

    #[test]
    fn a_fleet_that_loses_a_third_of_its_nodes_a_minute_stays_a_tree_and_feeds_everybody() {
        for seed in 0..20 {
            let outcome = World::new(small(), seed).run();
            assert_eq!(outcome.refused_viewers, 0, "seed {seed}");
            assert_eq!(outcome.unfed_at_end, 0, "seed {seed}: {outcome:?}");
            assert!(outcome.depth_max <= 5, "seed {seed}: {outcome:?}");
            assert!(outcome.reparented > 0, "seed {seed}");
            assert!(outcome.fanout_edge_max <= 3, "seed {seed}: {outcome:?}");
        }
    }

    #[test]
    fn edges_send_viewers_to_each_other_until_all_have_room() {
        let full = Fleet {
            viewers: 5000,
            placement: Placement::Edges,
            failing_percent_per_minute: 0.0,
            ..small()
        };
        for seed in 0..5 {
            let outcome = World::new(full, seed).run();
            assert_eq!(outcome.refused_viewers, 0, "seed {seed}");
            assert_eq!(outcome.unfed_at_end, 0, "seed {seed}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_fleet() {
        let run = |seed| World::new(small(), seed).run();
        assert_eq!(run(7), run(7));
    }
}
