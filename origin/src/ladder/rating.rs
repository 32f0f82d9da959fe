//! What rates a source is taken to have, by which the rungs are cut when a child starts, and when a child is no longer cut to its source.

use std::time::{Duration, Instant};

use headwater_media::codec::h264;
use headwater_media::id::Bitrate;

use crate::ladder::gop::Gop;
use crate::ladder::rungs::Rung;
use crate::ladder::source::Source;

/// What is remembered counts as so many readings when a new one comes, one each second.
const REMEMBERED: u64 = 4;

/// A rung that would get so much of what it has (percent) is too small, or too large.
const TOO_SMALL_PERCENT: u64 = 140;
const TOO_LARGE_PERCENT: u64 = 60;

/// What a picture of a young source is taken to have at least: bits for so many pixels.
const PIXELS_PER_BIT: u128 = 25;

/// How long a rung has to be too small before its child is replaced, and for each replacement before, how many times longer: many clips
/// begin in the dark, few change for good later on.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_GROWS: u32 = 4;
const PATIENCE_MAX: Duration = Duration::from_secs(600);
/// Too large a rung only wastes; it is borne so many times longer.
const WASTE_IS_BORNE: u32 = 6;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Rating {
    known: Option<Known>,
    misfit: Option<(Misfit, Instant)>,
    replacements: u32,
}

/// A source that was measured.
#[derive(Debug)]
struct Known {
    configuration: h264::Configuration,
    frame_rate: f64,
    bitrate: Bitrate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Misfit {
    TooSmall,
    TooLarge,
}

impl Rating {
    /// What the source is now; its bitrate is zero until it is measured.
    pub(super) fn handle_source(&mut self, source: &Source, gop: &Gop) {
        let Some(frame_rate) = gop.frame_rate().filter(|_| source.bitrate.0 > 0) else {
            return;
        };
        match &mut self.known {
            Some(known) if known.configuration == source.configuration => {
                known.frame_rate = frame_rate;
                let sum = known.bitrate.0.saturating_mul(REMEMBERED);
                known.bitrate = Bitrate(sum.saturating_add(source.bitrate.0) / (REMEMBERED + 1));
            }
            Some(_) | None => {
                *self = Self {
                    known: Some(Known {
                        configuration: source.configuration.clone(),
                        frame_rate,
                        bitrate: source.bitrate,
                    }),
                    ..Self::default()
                };
            }
        }
    }

    /// Pictures and bits per second: as they were measured, also of a publisher before that sent the same. Where nobody can watch
    /// without a child, because of B-frames, as the first pictures let expect; what comes of it is put right later.
    pub(super) fn rates(&self, source: &Source, gop: &Gop) -> Option<(f64, Bitrate)> {
        let (frame_rate, bitrate) = self.measured(source, gop)?;
        let least = least(&source.configuration, frame_rate).filter(|_| source.young);
        Some((
            frame_rate,
            least.map_or(bitrate, |least| bitrate.max(least)),
        ))
    }

    fn measured(&self, source: &Source, gop: &Gop) -> Option<(f64, Bitrate)> {
        let known = self.known.as_ref();
        if let Some(known) = known.filter(|known| known.configuration == source.configuration) {
            let frame_rate = gop.frame_rate().unwrap_or(known.frame_rate);
            return Some((frame_rate, known.bitrate));
        }
        let frame_rate = gop.frame_rate()?;
        if source.bitrate.0 > 0 {
            return Some((frame_rate, source.bitrate));
        }
        let bitrate = gop.bitrate().filter(|_| source.reordered)?;
        Some((frame_rate, bitrate))
    }

    /// Compares what a child makes with what would be made now. True once it is off for too long: the child is to be replaced.
    pub(super) fn judge<'a>(
        &mut self,
        now: Instant,
        made: impl Iterator<Item = &'a Rung>,
        wanted: &[Rung],
    ) -> bool {
        let mut misfit = None;
        for rung in made {
            let Some(wanted) = wanted.iter().find(|wanted| wanted.name == rung.name) else {
                continue;
            };
            let wanted = wanted.bitrate.0.saturating_mul(100);
            if wanted >= rung.bitrate.0.saturating_mul(TOO_SMALL_PERCENT) {
                misfit = Some(Misfit::TooSmall);
                break;
            }
            if wanted <= rung.bitrate.0.saturating_mul(TOO_LARGE_PERCENT) {
                misfit = Some(Misfit::TooLarge);
            }
        }
        self.misfit = match (self.misfit, misfit) {
            (Some((before, since)), Some(kind)) if before == kind => Some((kind, since)),
            (_, misfit) => misfit.map(|kind| (kind, now)),
        };
        let Some((kind, since)) = self.misfit else {
            return false;
        };
        let grown = PATIENCE_GROWS.saturating_pow(self.replacements);
        let patience = PATIENCE.saturating_mul(grown).min(PATIENCE_MAX);
        let patience = match kind {
            Misfit::TooSmall => patience,
            Misfit::TooLarge => patience * WASTE_IS_BORNE,
        };
        let replace = now.saturating_duration_since(since) >= patience;
        if replace {
            self.replacements += 1;
            self.misfit = None;
        }
        replace
    }
}

/// Of pictures in motion.
fn least(picture: &h264::Configuration, frame_rate: f64) -> Option<Bitrate> {
    let bits = u128::from(picture.width) * u128::from(picture.height) / PIXELS_PER_BIT;
    let interval = Duration::try_from_secs_f64(frame_rate.recip()).ok()?;
    let bits = (bits * 1_000_000).checked_div(interval.as_micros())?;
    u64::try_from(bits).ok().map(Bitrate)
}
