//! Cuts decoded 48 kHz samples into Opus packets as the [`Timeline`] says.

use headwater_media::time::{MediaTime, WallTime};

use crate::audio::timeline::{PACKET_SAMPLES, Step, Timeline};

/// Samples of one packet per channel, as an index.
const PACKET: usize = 960;

/// What to encode, and when it is to be heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    /// See [`Step::Packet`].
    pub(crate) pts: MediaTime,
    /// See [`Step::Packet`].
    pub(crate) ingest_time: WallTime,
    /// See [`Step::Packet`].
    pub(crate) discontinuity: bool,
}

/// Interleaved samples between the decoder and the encoder.
#[derive(Debug)]
pub(crate) struct Framer {
    channels: usize,
    /// Bounded by what was fed and not read: the owner polls after each access unit.
    samples: Vec<f32>,
    /// Samples at the front that are used up.
    used: usize,
    packet: Vec<f32>,
}

impl Framer {
    /// For one or two channels.
    pub(crate) fn new(channels: u8) -> Self {
        Self {
            channels: usize::from(channels.clamp(1, 2)),
            samples: Vec::new(),
            used: 0,
            packet: Vec::new(),
        }
    }

    /// Where decoded samples are appended.
    pub(crate) fn input(&mut self) -> &mut Vec<f32> {
        self.samples.drain(..self.used);
        self.used = 0;
        &mut self.samples
    }

    /// The next packet and its samples, if enough is there.
    pub(crate) fn poll(&mut self, timeline: &mut Timeline) -> Option<(Cut, &[f32])> {
        loop {
            let waiting = self.samples.get(self.used..)?;
            let available = u64::try_from(waiting.len() / self.channels).unwrap_or(0);
            match timeline.poll_step(available)? {
                Step::Skip(count) => {
                    self.used += usize::try_from(count).unwrap_or(0) * self.channels;
                }
                Step::Packet {
                    take,
                    pts,
                    ingest_time,
                    discontinuity,
                } => {
                    let length = usize::try_from(take).unwrap_or(0) * self.channels;
                    let taken = waiting.get(..length)?;
                    self.used += length;
                    self.packet.clear();
                    if take.abs_diff(PACKET_SAMPLES) == 1 {
                        stretch(taken, self.channels, &mut self.packet);
                    } else {
                        self.packet.extend_from_slice(taken);
                        self.packet.resize(PACKET * self.channels, 0.0);
                    }
                    return Some((
                        Cut {
                            pts,
                            ingest_time,
                            discontinuity,
                        },
                        &self.packet,
                    ));
                }
            }
        }
    }

    /// Forgets all samples.
    pub(crate) fn clear(&mut self) {
        self.samples.clear();
        self.used = 0;
    }

    /// The samples from now on have so many channels; those that wait are converted.
    pub(crate) fn set_channels(&mut self, channels: u8) {
        let channels = usize::from(channels.clamp(1, 2));
        if channels == self.channels {
            return;
        }
        let waiting = self.samples.split_off(self.used);
        self.samples = if channels == 2 {
            waiting.iter().flat_map(|sample| [*sample; 2]).collect()
        } else {
            waiting
                .chunks_exact(2)
                .map(|pair| pair.iter().sum::<f32>() / 2.0)
                .collect()
        };
        self.used = 0;
        self.channels = channels;
    }
}

/// Turns 959 or 961 samples per channel into 960 by sliding from one copy of the sound to another that lies a sample
/// away, over the whole packet: the first and the last sample stay, so neighbours join without a click.
fn stretch(input: &[f32], channels: usize, output: &mut Vec<f32>) {
    let frames = input.len() / channels;
    let at = |frame: usize, channel: usize| {
        let frame = frame.min(frames.saturating_sub(1));
        input
            .get(frame * channels + channel)
            .copied()
            .unwrap_or(0.0)
    };
    for frame in 0..PACKET {
        #[expect(clippy::cast_precision_loss, reason = "below 960")]
        let weight = frame as f32 / (PACKET - 1) as f32;
        for channel in 0..channels {
            // 961: from sample n to sample n + 1. 959: from sample n to sample n - 1.
            let here = at(frame, channel);
            let there = if frames > PACKET {
                at(frame + 1, channel)
            } else {
                at(frame.saturating_sub(1), channel)
            };
            output.push(here * (1.0 - weight) + there * weight);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_tone_has_no_click() {
        for frames in [959_usize, 961] {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let tone = |n: usize| (n as f32 * 440.0 * std::f32::consts::TAU / 48_000.0).sin();
            let input: Vec<f32> = (0..frames).flat_map(|n| [tone(n), -tone(n)]).collect();
            let mut output = Vec::new();
            stretch(&input, 2, &mut output);
            assert_eq!(output.len(), 1920);
            assert!((output[0] - tone(0)).abs() < 1e-6);
            assert!((output[1918] - tone(frames - 1)).abs() < 1e-6);
            let step = |pair: &[f32]| (pair[2] - pair[0]).abs();
            let steepest = output.windows(3).step_by(2).map(step).fold(0.0, f32::max);
            assert!(steepest < 0.06, "{steepest}");
        }
    }

    #[test]
    fn channels_change_without_losing_samples() {
        let mut framer = Framer::new(1);
        framer.input().extend([0.5, -0.5]);
        framer.set_channels(2);
        assert_eq!(framer.input(), &[0.5, 0.5, -0.5, -0.5]);
        framer.set_channels(1);
        assert_eq!(framer.input(), &[0.5, -0.5]);
    }
}
