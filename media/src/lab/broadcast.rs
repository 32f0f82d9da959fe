//! The stream that the lab's viewers watch: three renditions of made-up pictures.

use std::time::Duration;

use super::rng::Rng;
use crate::abr::Rendition;
use crate::id::{Bitrate, TrackId};

/// From one picture to the next.
pub(super) const PICTURE: Duration = Duration::from_micros(33_333);
/// Sound: one packet of so many bytes each 20 ms (64 kbit/s, headers included).
pub(super) const SOUND_BYTES: usize = 200;
pub(super) const SOUND_INTERVAL: Duration = Duration::from_millis(20);
pub(super) const SOUND_RATE: Bitrate = Bitrate(80_000);

/// Bits per second, pictures between keyframes, and how many pictures a keyframe is worth. The highest is the publisher's own, a keyframe
/// every 2 s; the others have more of them, with an encoder's buffer of half a second that bounds their size.
const LADDER: [(u64, u64, u64, u32); 3] = [
    (400_000, 15, 4, 240),
    (1_000_000, 30, 5, 480),
    (2_500_000, 60, 8, 720),
];

/// The renditions, from the lowest.
pub(super) fn renditions() -> Vec<Rendition> {
    (0_u16..)
        .zip(LADDER)
        .map(|(i, (rate, gop, _, height))| Rendition {
            track: TrackId(i),
            bitrate: Bitrate(rate),
            height,
            keyframe_interval: PICTURE.saturating_mul(u32::try_from(gop).unwrap_or(u32::MAX)),
        })
        .collect()
}

/// A picture of one rendition.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picture {
    pub(super) track: TrackId,
    pub(super) keyframe: bool,
    pub(super) bytes: u32,
}

/// The pictures of all renditions, without end.
#[derive(Debug)]
pub(super) struct Broadcast {
    rng: Rng,
    number: u64,
}

impl Broadcast {
    pub(super) const fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            number: 0,
        }
    }

    /// The next picture, in every rendition.
    pub(super) fn next(&mut self) -> [Picture; LADDER.len()] {
        let mut track = 0;
        let number = self.number;
        self.number += 1;
        LADDER.map(|(rate, gop, weight, _)| {
            let keyframe = number.is_multiple_of(gop);
            let share = rate / 8 * gop / 30 / (gop - 1 + weight);
            let mean = if keyframe { share * weight } else { share };
            // A third up or down.
            let mean = u32::try_from(mean).unwrap_or(u32::MAX);
            let bytes = mean / 3 * 2 + self.rng.below(mean / 3 * 2);
            let picture = Picture {
                track: TrackId(track),
                keyframe,
                bytes,
            };
            track += 1;
            picture
        })
    }
}
