//! What can go wrong.

use std::time::Duration;

use super::seconds;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The publisher's process dies, and its supervisor starts it again a moment later.
    PublisherDies,
    /// The origin that has the stream dies; its publisher turns to the other one.
    OriginDies,
    /// The origin that has the stream hangs for some seconds.
    OriginHangs,
    /// That origin can't reach etcd for longer than its lease, and its publisher stays.
    OriginWithoutEtcd,
    /// An edge dies; its viewers turn to others.
    EdgeDies,
    /// An edge is told to stop; its viewers are sent elsewhere.
    EdgeDrains,
    /// An edge hangs for a moment.
    EdgeHangs,
    /// An edge can't reach etcd for a while.
    EdgeWithoutEtcd,
    /// Nobody can reach a node that feeds others; connections outlive it.
    LinkFreezes,
    /// The same, and connections are lost.
    LinkBreaks,
    /// Packets from a node that feeds others are lost, packets to it, or both. Only where the kernel may be told to.
    LinkLosesAll,
    /// Some packets to viewers are lost. Only there, too.
    ViewersLoseSome,
    /// The member of etcd that leads dies, and comes back.
    LeaderDies,
    /// It hangs.
    LeaderHangs,
    /// Two members die, and come back.
    QuorumLost,
    /// All of etcd dies, and an edge with it.
    EtcdAndEdgeDie,
}

/// In this order where no seed is given, then as the seed says.
pub(super) const FAULTS: [Fault; 16] = [
    Fault::LinkLosesAll,
    Fault::EdgeDies,
    Fault::LeaderDies,
    Fault::EdgeDrains,
    Fault::OriginDies,
    Fault::QuorumLost,
    Fault::LinkBreaks,
    Fault::ViewersLoseSome,
    Fault::LinkFreezes,
    Fault::EtcdAndEdgeDie,
    Fault::PublisherDies,
    Fault::OriginHangs,
    Fault::EdgeHangs,
    Fault::LeaderHangs,
    Fault::EdgeWithoutEtcd,
    Fault::OriginWithoutEtcd,
];

impl Fault {
    /// The kernel is told to lose packets.
    pub(super) const fn needs_network(self) -> bool {
        matches!(self, Self::LinkLosesAll | Self::ViewersLoseSome)
    }

    /// Its publisher is another one afterwards. What died with the one before, or with its origin, may be missing.
    pub(super) const fn ends_publisher(self) -> bool {
        matches!(self, Self::PublisherDies | Self::OriginDies)
    }

    /// The longest time without pictures for viewers whose edge is not what failed, of a fault that lasted so long.
    pub(super) fn gap_max(self, lasted: Duration) -> Duration {
        match self {
            // Its publisher turns to the other one at once.
            Self::OriginDies => seconds(2),
            // An edge further up was lost: found out, replaced and caught up with.
            Self::EdgeDies | Self::EtcdAndEdgeDie => Duration::from_millis(1500),
            // As long as it was away, and until the next attempt.
            Self::PublisherDies
            | Self::OriginHangs
            | Self::EdgeHangs
            | Self::LinkFreezes
            | Self::LinkBreaks
            | Self::LinkLosesAll => lasted + Duration::from_millis(2500),
            Self::EdgeDrains
            | Self::OriginWithoutEtcd
            | Self::EdgeWithoutEtcd
            | Self::LeaderDies
            | Self::LeaderHangs
            | Self::QuorumLost
            | Self::ViewersLoseSome => seconds(1),
        }
    }
}
