//! From the source's sampling rate to Opus's 48 kHz, without losing count of a sample.
//!
//! The filter's delay is cut off at the start and its tail is fetched at the end, so that `n` samples in are
//! [`resampled`]`(n)` samples out and the k-th stays where it was in time.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Indexing, Resampler as _};

use headwater_media::codec::opus::CLOCK_HZ;

use crate::audio::timeline::resampled;

/// A resampler could not be made or run: wrong sizes, which the types here should exclude.
#[derive(Debug, thiserror::Error)]
#[error("resampling {rate_hz} Hz: {reason}")]
pub(crate) struct Error {
    rate_hz: u32,
    reason: String,
}

/// Resamples frames of one size to 48 kHz.
#[derive(Debug)]
pub(crate) struct Resampler {
    /// `None`: the source has 48 kHz already.
    filter: Option<Fft<f32>>,
    rate_hz: u32,
    channels: usize,
    frame_samples: usize,
    /// Output samples per channel still to be cut off: the filter's delay.
    delay: usize,
    /// Input samples per channel since the start.
    taken: u64,
    /// Output samples per channel since the start.
    given: u64,
    scratch: Vec<f32>,
}

impl Resampler {
    /// A resampler for interleaved frames of `frame_samples` per channel.
    ///
    /// # Errors
    /// If the rate is zero.
    pub(crate) fn new(rate_hz: u32, channels: u8, frame_samples: u16) -> Result<Self, Error> {
        let channels = usize::from(channels);
        let frame_samples = usize::from(frame_samples);
        let (rate, clock) = (to_usize(u64::from(rate_hz)), to_usize(u64::from(CLOCK_HZ)));
        let filter = (rate_hz != CLOCK_HZ)
            .then(|| Fft::<f32>::new(rate, clock, frame_samples, channels, FixedSync::Input))
            .transpose()
            .map_err(|error| Error {
                rate_hz,
                reason: error.to_string(),
            })?;
        let delay = filter.as_ref().map_or(0, |filter| filter.output_delay());
        Ok(Self {
            filter,
            rate_hz,
            channels,
            frame_samples,
            delay,
            taken: 0,
            given: 0,
            scratch: Vec::new(),
        })
    }

    /// Resamples one interleaved frame and appends what is ready to `output`.
    ///
    /// # Errors
    /// If the frame has another size than announced.
    pub(crate) fn push(&mut self, frame: &[f32], output: &mut Vec<f32>) -> Result<(), Error> {
        self.taken += to_u64(frame.len() / self.channels.max(1));
        self.run(frame, None, output)
    }

    /// Appends what the filter still holds to `output` and starts anew.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub(crate) fn flush(&mut self, output: &mut Vec<f32>) -> Result<(), Error> {
        let end = resampled(self.taken, self.rate_hz);
        if self.filter.is_some() {
            let silence = vec![0.0; self.frame_samples * self.channels];
            while self.given < end {
                let indexing = Indexing::new().partial_len(0);
                let before = output.len();
                self.run(&silence, Some(&indexing), output)?;
                let surplus = to_usize(self.given.saturating_sub(end)) * self.channels;
                output.truncate(output.len() - surplus.min(output.len() - before));
            }
        }
        if let Some(filter) = &mut self.filter {
            filter.reset();
            self.delay = filter.output_delay();
        }
        self.taken = 0;
        self.given = 0;
        Ok(())
    }

    fn run(
        &mut self,
        frame: &[f32],
        indexing: Option<&Indexing>,
        output: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let Some(filter) = &mut self.filter else {
            output.extend_from_slice(frame);
            return Ok(());
        };
        let rate_hz = self.rate_hz;
        let failed = |reason: String| Error { rate_hz, reason };
        let room = filter.output_frames_next();
        self.scratch.clear();
        self.scratch.resize(room * self.channels, 0.0);
        let input = InterleavedSlice::new(frame, self.channels, frame.len() / self.channels.max(1))
            .map_err(|error| failed(error.to_string()))?;
        let mut ready = InterleavedSlice::new_mut(&mut self.scratch, self.channels, room)
            .map_err(|error| failed(error.to_string()))?;
        let (_, made) = filter
            .process_into_buffer(&input, &mut ready, indexing)
            .map_err(|error| failed(error.to_string()))?;
        let cut = self.delay.min(made);
        self.delay -= cut;
        self.given += to_u64(made - cut);
        let made = self
            .scratch
            .get(cut * self.channels..made * self.channels)
            .unwrap_or_default();
        output.extend_from_slice(made);
        Ok(())
    }
}

fn to_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_click_stays_where_it_was_and_no_sample_is_lost() {
        for rate in [
            8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000,
        ] {
            let mut resampler = Resampler::new(rate, 2, 1024).unwrap();
            for round in 0..2 {
                let mut output = Vec::new();
                let click = 5000_usize;
                for frame in 0..10 {
                    let mut pcm = vec![0.0; 2048];
                    if let Some(at) = click.checked_sub(frame * 1024)
                        && at < 1024
                    {
                        pcm[at * 2] = 1.0;
                        pcm[at * 2 + 1] = -1.0;
                    }
                    resampler.push(&pcm, &mut output).unwrap();
                }
                resampler.flush(&mut output).unwrap();
                assert_eq!(
                    to_u64(output.len() / 2),
                    resampled(10_240, rate),
                    "{rate} Hz, round {round}"
                );
                let loudest = (0..output.len() / 2)
                    .max_by(|a, b| output[a * 2].total_cmp(&output[b * 2]))
                    .unwrap();
                let expected = resampled(5000, rate);
                assert!(
                    to_u64(loudest).abs_diff(expected) <= 1,
                    "{rate} Hz: {loudest} instead of {expected}"
                );
                assert!(output[loudest * 2 + 1] < 0.0);
            }
        }
    }
}
