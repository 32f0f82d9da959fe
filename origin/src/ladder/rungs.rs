//! Which renditions are made of a source, and how: a function of what the source is and of the configured ladder.

use std::sync::Arc;

use headwater_media::id::Bitrate;

use crate::ladder::config::Step;

/// Rungs of one ladder (count): more help no viewer.
const RUNGS_MAX: usize = 8;

/// A rung gets at most this part of what the source has (percent): one that isn't smaller than the source is of no use.
const OF_SOURCE_PERCENT: u64 = 85;

/// A rung gets at most this part of what the rung above it has (percent), so that a step down helps.
const OF_RUNG_ABOVE_PERCENT: u64 = 70;

/// No rung is made with less (bit/s): below it no picture can be seen.
const BITRATE_MIN: Bitrate = Bitrate(50_000);

/// Bounds of what a repaired source gets (bit/s): the lower for one whose rate was measured over a still picture.
const REPAIRED_BITRATE: (Bitrate, Bitrate) = (Bitrate(300_000), Bitrate(20_000_000));

/// Pixels per second that one thread encodes with ease: 720p at 60 frames a second, 1080p at 30.
const PIXELS_PER_THREAD: f64 = 62_500_000.0;

/// Threads of one encoder (count). Each is a slice of the picture, which costs bits.
const THREADS_MAX: u8 = 8;

/// Pixels per second that one thread decodes with ease. Decoding with more delays pictures by a frame each, so it is left for 1440p60 and 4K.
const PIXELS_PER_DECODER: f64 = 150_000_000.0;

/// What a ladder is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Source {
    /// Pixels.
    pub(crate) width: u16,
    /// Pixels.
    pub(crate) height: u16,
    /// Pictures per second.
    pub(crate) frame_rate: f64,
    /// Measured.
    pub(crate) bitrate: Bitrate,
    /// It has B-frames.
    pub(crate) reordered: bool,
    /// The publisher sends smaller renditions itself.
    pub(crate) has_lower: bool,
}

impl Source {
    fn side(&self) -> u16 {
        self.width.min(self.height)
    }

    /// Threads for its decoder (count).
    pub(crate) fn decoder_threads(&self) -> u8 {
        threads(self.width, self.height, self.frame_rate, PIXELS_PER_DECODER).min(4)
    }
}

/// One rendition to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rung {
    /// Of the rendition: `480p`.
    pub(crate) name: Arc<str>,
    /// Pixels, even.
    pub(crate) width: u16,
    /// Pixels, even.
    pub(crate) height: u16,
    /// Pictures have to be resized for it.
    pub(crate) scaled: bool,
    /// What it uses, and may use at most over half a second.
    pub(crate) bitrate: Bitrate,
    /// Pictures from one keyframe to the next at most (count), beside the source's own.
    pub(crate) keyframe_interval: u32,
    /// Of its encoder (count).
    pub(crate) threads: u8,
}

/// The rungs for `source`, the most important first; none if there is nothing to make.
///
/// A source with B-frames is made anew without them, at its size. Below it come the configured rungs that are smaller, each with
/// a keyframe every second, the lowest every half second: that is how long a viewer waits whose link has become too slow. Of a
/// picture that stands upright the columns count, as with `1080x1920`, which everybody calls 1080p.
pub(crate) fn rungs(source: &Source, ladder: &[Step]) -> Vec<Rung> {
    let side = source.side();
    if side < 2 {
        return Vec::new();
    }
    let mut rungs = Vec::new();
    if source.reordered {
        let (min, max) = REPAIRED_BITRATE;
        rungs.push(rung(source, side, source.bitrate.clamp(min, max)));
    }
    let mut steps: Vec<Step> = if source.has_lower {
        Vec::new()
    } else {
        let lower = ladder.iter().filter(|step| step.height < side);
        lower.copied().collect()
    };
    steps.sort_by_key(|step| std::cmp::Reverse((step.height, step.bitrate)));
    steps.dedup_by_key(|step| step.height);
    steps.truncate(RUNGS_MAX);
    let lowest = steps.len().checked_sub(1);
    let mut ceiling = percent(source.bitrate, OF_SOURCE_PERCENT);
    for (at, step) in steps.iter().enumerate() {
        let bitrate = step.bitrate.min(ceiling).max(BITRATE_MIN);
        ceiling = percent(bitrate, OF_RUNG_ABOVE_PERCENT);
        let mut rung = rung(source, step.height, bitrate);
        if Some(at) == lowest {
            rung.keyframe_interval = rung.keyframe_interval.div_ceil(2);
        }
        rungs.push(rung);
    }
    rungs
}

fn rung(source: &Source, side: u16, bitrate: Bitrate) -> Rung {
    let scale = |pixels: u16| {
        let scaled = u32::from(pixels) * u32::from(side) / u32::from(source.side().max(1));
        // Colours have half the resolution, so sides are even.
        u16::try_from((scaled + 1) & !1)
            .unwrap_or(u16::MAX - 1)
            .max(2)
    };
    let (width, height) = (scale(source.width), scale(source.height));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive number"
    )]
    let second = source.frame_rate.round().clamp(1.0, 300.0) as u32;
    Rung {
        name: format!("{side}p").into(),
        width,
        height,
        scaled: (width, height) != (source.width, source.height),
        bitrate,
        keyframe_interval: second,
        threads: threads(width, height, source.frame_rate, PIXELS_PER_THREAD),
    }
}

fn threads(width: u16, height: u16, frame_rate: f64, pixels_per_thread: f64) -> u8 {
    let pixels = f64::from(width) * f64::from(height) * frame_rate;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive number"
    )]
    let threads = (pixels / pixels_per_thread)
        .ceil()
        .clamp(1.0, f64::from(THREADS_MAX)) as u8;
    threads
}

const fn percent(bitrate: Bitrate, percent: u64) -> Bitrate {
    Bitrate(bitrate.0.saturating_mul(percent) / 100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ladder::Config;

    fn source(width: u16, height: u16, kbps: u64) -> Source {
        Source {
            width,
            height,
            frame_rate: 30.0,
            bitrate: Bitrate(kbps * 1000),
            reordered: false,
            has_lower: false,
        }
    }

    fn summary(source: &Source) -> Vec<(String, u16, u16, u64, u32)> {
        let rungs = rungs(source, &Config::default().rungs);
        let summary = rungs.iter().map(|rung| {
            let kbps = rung.bitrate.0 / 1000;
            let name = rung.name.to_string();
            (name, rung.width, rung.height, kbps, rung.keyframe_interval)
        });
        summary.collect()
    }

    #[test]
    fn rungs_lie_strictly_below_the_source() {
        let rung = |name: &str, width, height, kbps, keyframes| {
            (name.to_owned(), width, height, kbps, keyframes)
        };
        assert_eq!(
            summary(&source(1920, 1080, 6000)),
            [
                rung("720p", 1280, 720, 2500, 30),
                rung("480p", 854, 480, 1000, 30),
                rung("240p", 426, 240, 400, 15)
            ]
        );
        assert_eq!(
            summary(&source(1280, 720, 2500)),
            [
                rung("480p", 854, 480, 1000, 30),
                rung("240p", 426, 240, 400, 15)
            ]
        );
        assert_eq!(
            summary(&source(720, 1280, 2500)),
            [
                rung("480p", 480, 854, 1000, 30),
                rung("240p", 240, 426, 400, 15)
            ]
        );
        assert_eq!(
            summary(&source(640, 360, 1000)),
            [rung("240p", 426, 240, 400, 15)]
        );
        assert_eq!(summary(&source(426, 240, 400)), []);
        assert_eq!(summary(&source(0, 0, 400)), []);
    }

    #[test]
    fn each_rung_is_smaller_than_what_is_above_it() {
        let kbps = |source: &Source| -> Vec<u64> {
            let rungs = rungs(source, &Config::default().rungs);
            rungs.iter().map(|rung| rung.bitrate.0 / 1000).collect()
        };
        assert_eq!(kbps(&source(1920, 1080, 1500)), [1275, 892, 400]);
        assert_eq!(kbps(&source(1280, 720, 300)), [255, 178]);
        assert_eq!(kbps(&source(1280, 720, 10)), [50, 50]);
    }

    #[test]
    fn b_frames_are_repaired_at_the_sources_size_first() {
        let mut source = source(1280, 720, 2000);
        source.reordered = true;
        let made = rungs(&source, &Config::default().rungs);
        let names: Vec<&str> = made.iter().map(|rung| &*rung.name).collect();
        assert_eq!(names, ["720p", "480p", "240p"]);
        assert_eq!(made[0].bitrate, Bitrate(2_000_000));
        assert!(!made[0].scaled && made[1].scaled);
        // Also where nothing lies below, or the publisher's own lower renditions do.
        source.has_lower = true;
        assert_eq!(rungs(&source, &Config::default().rungs).len(), 1);
        source.has_lower = false;
        assert_eq!(rungs(&source, &[]).len(), 1);
    }

    #[test]
    fn a_publishers_own_ladder_is_not_made_again() {
        let mut source = source(1920, 1080, 6000);
        source.has_lower = true;
        assert_eq!(summary(&source), []);
    }

    #[test]
    fn large_pictures_get_threads() {
        for (width, height, frame_rate, encoder, decoder) in [
            (426, 240, 30.0, 1, 1),
            (1280, 720, 60.0, 1, 1),
            (1920, 1080, 60.0, 2, 1),
            (3840, 2160, 60.0, 8, 4),
            (u16::MAX, u16::MAX, 300.0, 8, 4),
        ] {
            let mut source = source(width, height, 5000);
            (source.frame_rate, source.reordered) = (frame_rate, true);
            let rung = rungs(&source, &[]).remove(0);
            assert_eq!(
                (rung.threads, source.decoder_threads()),
                (encoder, decoder),
                "{width}x{height}"
            );
        }
    }
}
