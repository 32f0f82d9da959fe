//! What is seen of a track as it passes: bitrate, access units per second, keyframe interval, and whether it is reordered.

use std::time::{Duration, Instant};

use crate::id::Bitrate;
use crate::time::MediaTime;
use crate::unit::AccessUnit;

/// Rates are taken over this many slots.
const SLOTS: usize = 8;

/// Length of a slot; eight make two seconds, which hides single keyframes but follows a change.
const SLOT: Duration = Duration::from_millis(250);

/// A sliding count of bytes and units.
#[derive(Debug)]
pub(super) struct Rate {
    start: Option<Instant>,
    /// The slot that is being filled, counted from `start`.
    slot: u128,
    bytes: [u64; SLOTS],
    units: [u32; SLOTS],
}

impl Rate {
    pub(super) const fn new() -> Self {
        Self {
            start: None,
            slot: 0,
            bytes: [0; SLOTS],
            units: [0; SLOTS],
        }
    }

    pub(super) fn add(&mut self, now: Instant, bytes: usize) {
        self.advance(now);
        // What was due before it counts then.
        let slot = self.slot_at(now);
        if self.slot.saturating_sub(slot) >= SLOTS as u128 {
            return;
        }
        let at = Self::index(slot);
        self.bytes[at] = self.bytes[at].saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.units[at] = self.units[at].saturating_add(1);
    }

    /// Bits and units per second, by the full slots before the present one; zero before there is one.
    pub(super) fn measure(&mut self, now: Instant) -> (Bitrate, f64) {
        self.advance(now);
        let full = usize::try_from(self.slot).unwrap_or(SLOTS).min(SLOTS - 1);
        if full == 0 {
            return (Bitrate(0), 0.0);
        }
        let present = Self::index(self.slot);
        let (mut bytes, mut units) = (0u64, 0u32);
        for slot in (0..SLOTS).filter(|&slot| slot != present) {
            bytes = bytes.saturating_add(self.bytes[slot]);
            units = units.saturating_add(self.units[slot]);
        }
        let millis = u64::try_from(SLOT.as_millis()).unwrap_or(1) * full as u64;
        (
            Bitrate(bytes.saturating_mul(8000) / millis),
            f64::from(units) * 1000.0 / millis as f64,
        )
    }

    fn index(slot: u128) -> usize {
        usize::try_from(slot % SLOTS as u128).unwrap_or(0)
    }

    fn slot_at(&mut self, now: Instant) -> u128 {
        let start = *self.start.get_or_insert(now);
        now.saturating_duration_since(start).as_millis() / SLOT.as_millis()
    }

    fn advance(&mut self, now: Instant) {
        let slot = self.slot_at(now);
        for _ in 0..slot.saturating_sub(self.slot).min(SLOTS as u128) {
            self.slot += 1;
            let at = Self::index(self.slot);
            self.bytes[at] = 0;
            self.units[at] = 0;
        }
        // After a long silence all slots are empty already.
        if slot > self.slot {
            self.slot = slot;
            let at = Self::index(self.slot);
            self.bytes[at] = 0;
            self.units[at] = 0;
        }
    }
}

/// Units of one GOP in order after which its encoder doesn't reorder (count): twice the most frames a decoder may hold back
/// (16, H.264 A.3.1). Without it an encoder that sends one keyframe for ever would be refused for ever.
const IN_ORDER_MAX: u32 = 32;

/// Whether pictures come in another order than they are shown.
///
/// Certain once a picture is shown before one that came earlier. Parameter sets that allow reordering are only a suspicion: encoders
/// without B-frames write such sets too, and must not be refused. It counts while pictures carry composition offsets, as those of
/// reordered streams do from the first keyframe on, and until a whole GOP, or [`IN_ORDER_MAX`] units of a longer one, has passed
/// in order.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Order {
    /// max_num_reorder_frames above 0.
    announced: bool,
    seen: bool,
    offset_seen: bool,
    disproved: bool,
    latest_pts: Option<MediaTime>,
    gop_units: u32,
}

impl Order {
    pub(super) fn new(max_reorder_frames: Option<u8>) -> Self {
        Self {
            announced: max_reorder_frames.is_some_and(|frames| frames > 0),
            ..Self::default()
        }
    }

    /// Takes the next picture. `steady`: its times relate to those before it (no jump, no repair).
    pub(super) fn push(&mut self, unit: &AccessUnit, steady: bool) {
        if !steady {
            self.latest_pts = None;
            self.gop_units = 0;
        }
        if unit.pts != unit.dts {
            self.offset_seen = true;
        }
        match self.latest_pts {
            Some(latest) if unit.pts < latest => self.seen = true,
            Some(_) | None => self.latest_pts = Some(unit.pts),
        }
        if unit.keyframe {
            if self.gop_units > 1 && !self.seen {
                self.disproved = true;
            }
            self.gop_units = 1;
        } else if self.gop_units > 0 {
            self.gop_units = self.gop_units.saturating_add(1);
            if self.gop_units > IN_ORDER_MAX && !self.seen {
                self.disproved = true;
            }
        }
    }

    pub(super) const fn reordered(self) -> bool {
        self.seen || (self.announced && self.offset_seen && !self.disproved)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::TrackId;
    use crate::testkit;

    fn picture(dts: i64, pts: i64, keyframe: bool) -> Arc<AccessUnit> {
        Arc::new(AccessUnit {
            pts: MediaTime::from_millis(pts),
            keyframe,
            ..testkit::unit(TrackId::SOURCE_VIDEO, 1, 0, MediaTime::from_millis(dts))
        })
    }

    fn reordered(announced: Option<u8>, pictures: &[(i64, i64, bool)]) -> Vec<bool> {
        let mut order = Order::new(announced);
        pictures
            .iter()
            .map(|&(dts, pts, keyframe)| {
                order.push(&picture(dts, pts, keyframe), true);
                order.reordered()
            })
            .collect()
    }

    #[test]
    fn b_frames_are_seen() {
        let pictures = [
            (0, 80, true),
            (40, 200, false),
            (80, 120, false),
            (120, 160, false),
        ];
        assert_eq!(reordered(None, &pictures), [false, false, true, true]);
        assert_eq!(reordered(Some(2), &pictures), [true; 4]);
    }

    #[test]
    fn an_announcement_alone_convicts_nobody() {
        let plain = [(0, 0, true), (40, 40, false), (80, 80, true)];
        assert_eq!(reordered(Some(2), &plain), [false; 3]);
        let delayed = [(0, 80, true), (40, 120, false), (80, 160, true)];
        assert_eq!(reordered(Some(2), &delayed), [true, true, false]);
        assert_eq!(reordered(Some(0), &delayed), [false; 3]);
    }

    #[test]
    fn a_long_gop_in_order_disproves_the_announcement_and_a_b_frame_proves_it_again() {
        let mut pictures = vec![(0, 80, true)];
        pictures.extend((1..=32).map(|n| (n * 40, n * 40 + 80, false)));
        pictures.push((1320, 1320, false));
        let said = reordered(Some(2), &pictures);
        assert_eq!(said[..32], [true; 32]);
        assert_eq!(said[32..], [false, true]);
    }

    #[test]
    fn rates_slide() {
        #[expect(clippy::disallowed_methods, reason = "any instant to start from")]
        let start = Instant::now();
        let mut rate = Rate::new();
        for frame in 0..150u64 {
            rate.add(start + Duration::from_millis(frame * 40), 5000);
        }
        let (bitrate, fps) = rate.measure(start + Duration::from_secs(6));
        assert!((950_000..1_050_000).contains(&bitrate.0), "{bitrate:?}");
        assert!((24.0..26.0).contains(&fps), "{fps}");
        let silent = rate.measure(start + Duration::from_secs(600));
        assert_eq!(silent.0, Bitrate(0));
    }
}
