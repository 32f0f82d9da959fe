//! Who may write a stream's record: the decisions of ownership, shared by all writable directories and by the model that checks them.

use headwater_media::id::{Epoch, NodeId};

use super::{Incarnation, StreamRecord};

/// A node that claims streams, in one of its runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The node.
    pub id: NodeId,
    /// Its run.
    pub incarnation: Incarnation,
}

/// What to do about a claim whose record is missing or lies under a lease that is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restore {
    /// Put it again, with the epoch it had.
    Put,
    /// Leave what is there: it is this node's.
    Stands,
    /// Give the claim up: another has the stream.
    Lost,
}

impl Claimant {
    /// A run of node `id` that begins.
    pub fn new(id: NodeId) -> Self {
        Self {
            id,
            incarnation: Incarnation::new(),
        }
    }

    /// This run wrote the record.
    pub fn wrote(&self, record: &StreamRecord) -> bool {
        record.origin == self.id && record.incarnation == self.incarnation
    }

    /// A claim may be written over what was found. An earlier run under the same id has ended, or is to be ended; another node's
    /// record may be written over where the caller found out that its claim, that of epoch `over`, is void. The write has to depend on
    /// the record being unchanged.
    pub fn may_claim(&self, found: Option<&StreamRecord>, over: Option<Epoch>) -> bool {
        found.is_none_or(|held| held.origin == self.id || Some(held.epoch) == over)
    }

    /// The record says that this run's claim of `epoch` is another's by now. Equal epochs are given only by a directory that lost its
    /// data; then the record decides.
    pub fn lost(&self, epoch: Epoch, record: &StreamRecord) -> bool {
        !self.wrote(record) && record.epoch >= epoch
    }

    /// What to do about the claim of `epoch`, given what was found in its place.
    pub fn restore(&self, epoch: Epoch, found: Option<&StreamRecord>) -> Restore {
        match found {
            Some(record) if self.lost(epoch, record) => Restore::Lost,
            // Written by a later claim that had no answer: it names this node, and goes when the claim is settled.
            Some(record) if self.wrote(record) && record.epoch > epoch => Restore::Stands,
            Some(_) | None => Restore::Put,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(id: &str, incarnation: u64) -> Claimant {
        Claimant {
            id: id.parse().expect("valid"),
            incarnation: Incarnation(incarnation),
        }
    }

    fn record(id: &str, incarnation: u64, epoch: u64) -> StreamRecord {
        StreamRecord {
            name: "live/x".parse().expect("valid"),
            origin: id.parse().expect("valid"),
            incarnation: Incarnation(incarnation),
            epoch: Epoch(epoch),
            grpc_url: "http://x:1".to_owned(),
        }
    }

    #[test]
    fn a_name_is_claimed_when_free_its_own_or_known_to_be_void() {
        let a = claimant("a", 1);
        let may =
            |found: Option<&StreamRecord>, over: Option<u64>| a.may_claim(found, over.map(Epoch));
        assert!(may(None, None));
        assert!(may(Some(&record("a", 1, 5)), None));
        assert!(may(Some(&record("a", 9, 5)), None), "an earlier run's");
        assert!(!may(Some(&record("b", 2, 5)), None));
        assert!(may(Some(&record("b", 2, 5)), Some(5)));
        assert!(!may(Some(&record("b", 2, 6)), Some(5)), "claimed since");
    }

    #[test]
    fn the_epoch_decides_who_has_lost() {
        let a = claimant("a", 1);
        assert!(!a.lost(Epoch(5), &record("a", 1, 5)));
        assert!(
            !a.lost(Epoch(5), &record("a", 1, 9)),
            "in doubt, but its own"
        );
        assert!(!a.lost(Epoch(5), &record("b", 1, 4)));
        assert!(a.lost(Epoch(5), &record("b", 1, 6)));
        assert!(a.lost(Epoch(5), &record("a", 2, 6)), "a later run's");
        assert!(a.lost(Epoch(5), &record("b", 1, 5)));
    }

    #[test]
    fn a_claim_is_put_again_unless_another_has_the_stream() {
        let a = claimant("a", 1);
        let restore = |found: Option<&StreamRecord>| a.restore(Epoch(5), found);
        assert_eq!(restore(None), Restore::Put);
        assert_eq!(restore(Some(&record("a", 1, 5))), Restore::Put);
        assert_eq!(restore(Some(&record("b", 1, 4))), Restore::Put);
        assert_eq!(restore(Some(&record("a", 1, 7))), Restore::Stands);
        assert_eq!(restore(Some(&record("b", 1, 7))), Restore::Lost);
    }
}
