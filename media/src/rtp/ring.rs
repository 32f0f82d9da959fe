//! The recent packet batches of a track: what NACKs are answered from and where joining viewers start.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::rtp::batch::PacketBatch;

/// How much a [`PacketRing`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, payloads and bookkeeping. A hard bound: the newest GOP too is cut at its start when it outgrows this.
    pub bytes: usize,
    /// Media time. The newest GOP is kept whole even if it is longer, because joining viewers need its start.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            age: Duration::from_secs(3),
        }
    }
}

/// The newest batches of one track, by packet index.
#[derive(Debug)]
pub struct PacketRing {
    batches: VecDeque<Arc<PacketBatch>>,
}

impl PacketRing {
    /// An empty ring.
    pub fn new(limits: Limits) -> Self {
        let _ = limits;
        Self {
            batches: VecDeque::new(),
        }
    }

    /// Appends a batch and drops what the limits no longer cover.
    pub fn push(&mut self, batch: Arc<PacketBatch>) {
        self.batches.push_back(batch);
    }

    /// The batch that has the packet `index`, and the packet's place in it.
    pub fn get(&self, index: u64) -> Option<(&Arc<PacketBatch>, usize)> {
        let _ = index;
        todo!()
    }

    /// The batches from the newest keyframe on, oldest first; none when there is no keyframe in the ring.
    pub fn newest_gop(
        &self,
    ) -> impl ExactSizeIterator<Item = &Arc<PacketBatch>> + DoubleEndedIterator {
        self.batches.iter()
    }

    /// The batches from packet `index` on, beginning with the one that has it; none when the ring doesn't have it.
    pub fn from_index(
        &self,
        index: u64,
    ) -> impl ExactSizeIterator<Item = &Arc<PacketBatch>> + DoubleEndedIterator {
        let _ = index;
        self.batches.iter()
    }

    /// Index of the oldest packet.
    pub fn oldest_index(&self) -> Option<u64> {
        todo!()
    }

    /// Index that the next packet will have.
    pub fn next_index(&self) -> Option<u64> {
        todo!()
    }

    /// The newest batch.
    pub fn newest(&self) -> Option<&Arc<PacketBatch>> {
        self.batches.back()
    }

    /// Bytes kept, as [`Limits::bytes`] counts them.
    pub fn bytes(&self) -> usize {
        todo!()
    }
}
