//! The recent packet batches of a track: what NACKs are answered from and where joining viewers start.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::id::Bitrate;
use crate::rtp::batch::PacketBatch;
use crate::time::MediaTime;

/// Less media than this has no bitrate to speak of.
const BITRATE_SPAN_MIN: Duration = Duration::from_millis(500);

/// How much a [`PacketRing`] keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, payloads and bookkeeping. A hard bound, but for the newest batch: a GOP that outgrows it loses its start, and
    /// viewers who join then wait for the next keyframe.
    pub bytes: usize,
    /// Time since a batch came: what a link that was cut brings at once stays as long as what comes live, so that viewers have the time to be
    /// sent it. The newest GOP is kept whole even if it is older, because joining viewers need its start.
    pub age: Duration,
}

impl Default for Limits {
    /// 16 MiB hold a 10 s GOP of 12 Mbit/s; 3 s are three rounds of NACKs at the worst round-trip time that is watchable.
    fn default() -> Self {
        Self {
            bytes: 16 << 20,
            age: Duration::from_secs(3),
        }
    }
}

/// The newest batches of one track, by packet index. Each shard has its own, of the same shared batches.
#[derive(Debug)]
pub struct PacketRing {
    limits: Limits,
    batches: VecDeque<Kept>,
    bytes: usize,
    /// Payload bytes that were ever pushed.
    pushed_bytes: u64,
    /// `first_index` of the newest keyframe that was pushed; it may have left since.
    newest_keyframe: Option<u64>,
    /// When it is shown, and how long after the one before it.
    keyframe_pts: Option<MediaTime>,
    keyframe_interval: Option<Duration>,
}

#[derive(Debug)]
struct Kept {
    batch: Arc<PacketBatch>,
    came: Instant,
    /// Payload bytes pushed before it.
    bytes_before: u64,
}

impl PacketRing {
    /// An empty ring.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            batches: VecDeque::new(),
            bytes: 0,
            pushed_bytes: 0,
            newest_keyframe: None,
            keyframe_pts: None,
            keyframe_interval: None,
        }
    }

    /// Appends a batch that came at `now`, and drops what the limits no longer cover. Indices are gapless; a batch that doesn't follow the
    /// newest one starts the ring anew, since nothing could be looked up across the hole.
    pub fn push(&mut self, now: Instant, batch: Arc<PacketBatch>) {
        if self
            .next_index()
            .is_some_and(|next| next != batch.first_index)
        {
            self.batches.clear();
            self.bytes = 0;
            self.newest_keyframe = None;
            self.keyframe_pts = None;
        }
        if batch.keyframe {
            self.newest_keyframe = Some(batch.first_index);
            if let Some(before) = self.keyframe_pts.replace(batch.pts) {
                self.keyframe_interval = Some(batch.pts.since(before));
            }
        }
        self.bytes += size(&batch);
        let bytes_before = self.pushed_bytes;
        self.pushed_bytes += u64::try_from(batch.payload_bytes()).unwrap_or(0);
        self.batches.push_back(Kept {
            batch,
            came: now,
            bytes_before,
        });

        while let [
            Some(Kept {
                batch: oldest,
                came,
                ..
            }),
            Some(_),
        ] = [self.batches.front(), self.batches.get(1)]
        {
            let too_old = now.saturating_duration_since(*came) > self.limits.age
                && self
                    .newest_keyframe
                    .is_none_or(|keyframe| oldest.first_index < keyframe);
            if !too_old && self.bytes <= self.limits.bytes {
                break;
            }
            self.bytes -= size(oldest);
            self.batches.pop_front();
        }
    }

    /// The batch that has the packet `index`, and the packet's place in it.
    pub fn get(&self, index: u64) -> Option<(&Arc<PacketBatch>, usize)> {
        let batch = &self.batches.get(self.position(index)?)?.batch;
        let place = usize::try_from(index - batch.first_index).ok()?;
        Some((batch, place))
    }

    /// The batches from the newest keyframe on, oldest first; none when there is no keyframe in the ring.
    pub fn newest_gop(
        &self,
    ) -> impl ExactSizeIterator<Item = &Arc<PacketBatch>> + DoubleEndedIterator {
        let start = self
            .newest_keyframe
            .and_then(|keyframe| self.position(keyframe));
        let start = start.unwrap_or(self.batches.len());
        self.batches.range(start..).map(|kept| &kept.batch)
    }

    /// Index of the oldest packet.
    pub fn oldest_index(&self) -> Option<u64> {
        self.batches.front().map(|oldest| oldest.batch.first_index)
    }

    /// Index that the next packet will have.
    pub fn next_index(&self) -> Option<u64> {
        self.batches.back().map(|newest| end(&newest.batch))
    }

    /// The newest batch.
    pub fn newest(&self) -> Option<&Arc<PacketBatch>> {
        self.batches.back().map(|newest| &newest.batch)
    }

    /// When the newest batch came.
    pub fn newest_came(&self) -> Option<Instant> {
        self.batches.back().map(|newest| newest.came)
    }

    /// Bytes of payload from the batch that has packet `index` to the newest; 0 when the ring doesn't have it.
    pub fn payload_bytes_from(&self, index: u64) -> u64 {
        self.position(index)
            .and_then(|position| self.batches.get(position))
            .map_or(0, |kept| self.pushed_bytes - kept.bytes_before)
    }

    /// The track's bitrate over all that is kept, keyframes and the others alike; `None` when that is less than half a second.
    pub fn bitrate(&self) -> Option<Bitrate> {
        let (oldest, newest) = (self.batches.front()?, self.batches.back()?);
        let span = newest.batch.pts.since(oldest.batch.pts);
        // The newest batch lasts beyond the span.
        let bytes = newest.bytes_before - oldest.bytes_before;
        let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        (span >= BITRATE_SPAN_MIN).then(|| Bitrate(bytes.saturating_mul(8000) / millis.max(1)))
    }

    /// From the newest keyframe but one to the newest; `None` before there were two.
    pub const fn keyframe_interval(&self) -> Option<Duration> {
        self.keyframe_interval
    }

    /// Bytes kept, as [`Limits::bytes`] counts them.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Place in `batches` of the one that has packet `index`.
    fn position(&self, index: u64) -> Option<usize> {
        if index >= self.next_index()? {
            return None;
        }
        let after = self
            .batches
            .partition_point(|kept| kept.batch.first_index <= index);
        after.checked_sub(1)
    }
}

/// What a batch costs.
fn size(batch: &PacketBatch) -> usize {
    size_of::<PacketBatch>() + batch.len() * size_of::<u32>() + batch.payload_bytes()
}

/// Index after its last packet.
fn end(batch: &PacketBatch) -> u64 {
    batch.first_index + u64::try_from(batch.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Epoch, TrackId};
    use crate::testkit;
    use crate::time::WallTime;

    fn batch(first_index: u64, packets: u32, millis: i64, keyframe: bool) -> Arc<PacketBatch> {
        Arc::new(PacketBatch {
            track: TrackId::SOURCE_VIDEO,
            epoch: Epoch(1),
            unit_sequence: 0,
            first_index,
            pts: MediaTime::from_millis(millis),
            rtp_time: 0,
            keyframe,
            discardable: false,
            discontinuity: false,
            ingest_time: WallTime::default(),
            payloads: vec![0; packets as usize * 10].into(),
            ends: (1..=packets).map(|i| i * 10).collect(),
        })
    }

    fn ring(bytes: usize, millis: u64) -> PacketRing {
        PacketRing::new(Limits {
            bytes,
            age: Duration::from_millis(millis),
        })
    }

    /// A batch that came when it is to be shown.
    fn push(ring: &mut PacketRing, start: Instant, batch: Arc<PacketBatch>) {
        let at = start + batch.pts.since(MediaTime::ZERO);
        ring.push(at, batch);
    }

    /// Batches of two packets every 100 ms, a keyframe every `gop`.
    fn fill(ring: &mut PacketRing, start: Instant, from: u64, count: u64, gop: u64) {
        for i in from..from + count {
            let millis = i64::try_from(i).expect("small") * 100;
            let batch = batch(i * 2, 2, millis, i.is_multiple_of(gop));
            push(ring, start, batch);
        }
    }

    #[test]
    fn an_empty_ring_has_nothing() {
        let ring = ring(1000, 1000);
        assert!(ring.get(0).is_none());
        assert_eq!(ring.newest_gop().len(), 0);
        assert_eq!((ring.oldest_index(), ring.next_index()), (None, None));
    }

    #[test]
    fn packets_are_found_by_index() {
        let (mut ring, start) = (ring(1 << 20, 10_000), testkit::start());
        fill(&mut ring, start, 5, 10, 4);
        for (index, expected) in [
            (9, None),
            (10, Some((10, 0))),
            (11, Some((10, 1))),
            (12, Some((12, 0))),
            (29, Some((28, 1))),
            (30, None),
            (u64::MAX, None),
        ] {
            let found = ring.get(index).map(|(batch, at)| (batch.first_index, at));
            assert_eq!(found, expected, "{index}");
        }
    }

    #[test]
    fn age_drops_the_old_but_never_the_newest_gop() {
        let (mut ring, start) = (ring(1 << 20, 500), testkit::start());
        fill(&mut ring, start, 0, 20, 10);
        // The GOP from 1000 ms on is 1 s long and stays; 400 ms before the newest would be enough otherwise.
        assert_eq!(
            (ring.oldest_index(), ring.next_index()),
            (Some(20), Some(40))
        );
        assert_eq!(ring.newest_gop().len(), 10);
        fill(&mut ring, start, 20, 1, 10);
        assert_eq!(ring.newest_gop().len(), 1);
        assert_eq!(ring.oldest_index(), Some(30), "500 ms before the newest");
    }

    #[test]
    fn what_comes_at_once_stays_however_long_it_took_to_make() {
        let (mut ring, now) = (ring(1 << 20, 500), testkit::start());
        for i in 0..50 {
            let millis = i64::try_from(i).expect("small") * 100;
            ring.push(now, batch(i, 1, millis, i.is_multiple_of(10)));
        }
        assert_eq!(ring.oldest_index(), Some(0));
        let after = now + Duration::from_millis(501);
        ring.push(after, batch(50, 1, 5000, true));
        assert_eq!(ring.oldest_index(), Some(50));
    }

    #[test]
    fn without_keyframes_age_alone_decides() {
        let (mut ring, start) = (ring(1 << 20, 500), testkit::start());
        for i in 0..20 {
            let millis = i64::try_from(i).expect("small") * 100;
            push(&mut ring, start, batch(i, 1, millis, false));
        }
        assert_eq!(
            (ring.oldest_index(), ring.newest_gop().len()),
            (Some(14), 0)
        );
    }

    #[test]
    fn bytes_cut_even_the_newest_gop() {
        let each = size(&batch(0, 2, 0, true));
        let (mut ring, start) = (ring(each * 4, 10_000), testkit::start());
        fill(&mut ring, start, 0, 4, 100);
        assert_eq!(ring.newest_gop().len(), 4);
        fill(&mut ring, start, 4, 1, 100);
        assert_eq!((ring.newest_gop().len(), ring.bytes()), (0, each * 4));
        ring.push(start, batch(10, 1000, 500, true));
        assert_eq!(
            ring.newest_gop().len(),
            1,
            "the newest stays, however large"
        );
        assert_eq!(ring.oldest_index(), Some(10));
    }

    #[test]
    fn a_hole_in_the_indices_starts_anew() {
        let (mut ring, start) = (ring(1 << 20, 10_000), testkit::start());
        fill(&mut ring, start, 0, 5, 5);
        ring.push(start, batch(100, 1, 500, false));
        assert_eq!(
            (ring.oldest_index(), ring.newest_gop().len()),
            (Some(100), 0)
        );
        assert_eq!(ring.bytes(), size(&batch(100, 1, 500, false)));
    }

    proptest! {
        #[test]
        fn it_behaves_like_a_plain_list(plan in proptest::collection::vec((1_u32..5, -50_i64..400, any::<bool>()), 1..80), kilobytes in 1_usize..20) {
            let limit = kilobytes * 1000;
            let mut ring = ring(limit, 1000);
            let (mut pushed, mut index, mut millis) = (Vec::new(), 0, 0);
            let mut now = testkit::start();
            for (packets, step, keyframe) in plan {
                millis += step;
                now += Duration::from_millis(step.unsigned_abs());
                let next = batch(index, packets, millis, keyframe);
                index += u64::from(packets);
                pushed.push(Arc::clone(&next));
                ring.push(now, next);
                let oldest = ring.oldest_index().expect("not empty");
                let kept: Vec<_> = pushed.iter().filter(|b| b.first_index >= oldest).collect();
                prop_assert_eq!(ring.bytes(), kept.iter().map(|b| size(b)).sum::<usize>());
                prop_assert!(ring.bytes() <= limit || kept.len() == 1);
                for probe in 0..index + 2 {
                    let expected = kept.iter().find(|b| (b.first_index..end(b)).contains(&probe)).map(|b| b.first_index);
                    prop_assert_eq!(ring.get(probe).map(|(b, _)| b.first_index), expected);
                }
                let keyframe = pushed.iter().rposition(|b| b.keyframe).filter(|at| pushed[*at].first_index >= oldest);
                let gop: Vec<_> = ring.newest_gop().map(|b| b.first_index).collect();
                let expected: Vec<_> = keyframe.map_or(&[][..], |at| &pushed[at..]).iter().map(|b| b.first_index).collect();
                prop_assert_eq!(gop, expected);
            }
        }
    }
}
