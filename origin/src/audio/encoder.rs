//! 48 kHz samples to Opus packets of 20 ms (RFC 6716).

use std::fmt;

use bytes::Bytes;
use opus::{Application, Bitrate, Channels};

use headwater_media::codec::opus::CLOCK_HZ;

use crate::audio::config::Config;

/// The largest packet the encoder may make (bytes): the largest Opus frame is 1275 bytes (RFC 6716 section 3.2.1).
const PACKET_BYTES_MAX: usize = 1276;

/// One stream's Opus encoder.
pub(crate) struct Encoder {
    inner: opus::Encoder,
    channels: u8,
    lookahead: u16,
    buffer: Vec<u8>,
}

impl Encoder {
    /// An encoder for one or two channels. Settings out of range are moved to the nearest allowed value.
    ///
    /// # Errors
    /// If libopus has no memory.
    pub(crate) fn new(config: &Config, channels: u8) -> Result<Self, opus::Error> {
        let (layout, bitrate) = if channels == 1 {
            (Channels::Mono, config.mono_bitrate)
        } else {
            (Channels::Stereo, config.stereo_bitrate)
        };
        // `Audio`: publishers send music and mixes; the speech mode would muffle them.
        let mut inner = opus::Encoder::new(CLOCK_HZ, layout, Application::Audio)?;
        let bitrate = i32::try_from(bitrate.clamp(6000, 510_000)).unwrap_or(96_000);
        inner.set_bitrate(Bitrate::Bits(bitrate))?;
        inner.set_complexity(i32::from(config.complexity.min(10)))?;
        inner.set_inband_fec(config.fec)?;
        inner.set_packet_loss_perc(i32::from(config.expected_loss_percent.min(100)))?;
        let lookahead = u16::try_from(inner.get_lookahead()?).unwrap_or(0);
        Ok(Self {
            inner,
            channels: if channels == 1 { 1 } else { 2 },
            lookahead,
            buffer: vec![0; PACKET_BYTES_MAX],
        })
    }

    /// Encodes 20 ms of interleaved samples.
    ///
    /// # Errors
    /// If `pcm` isn't 20 ms long.
    pub(crate) fn encode(&mut self, pcm: &[f32]) -> Result<Bytes, opus::Error> {
        let length = self.inner.encode_float(pcm, &mut self.buffer)?;
        Ok(Bytes::copy_from_slice(
            self.buffer.get(..length).unwrap_or_default(),
        ))
    }

    /// 1 or 2.
    pub(crate) const fn channels(&self) -> u8 {
        self.channels
    }

    /// Samples by which the decoded sound lags what was encoded.
    pub(crate) const fn lookahead(&self) -> u16 {
        self.lookahead
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder")
            .field("channels", &self.channels)
            .field("lookahead", &self.lookahead)
            .finish_non_exhaustive()
    }
}
