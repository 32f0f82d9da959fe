//! AAC-LC frames in mono or stereo to samples, in this process.
//!
//! The decoder parses what a publisher sent, so it is kept on a leash: a frame has a size limit, a panic inside is
//! caught and costs only this decoder, and samples that are no numbers become silence.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use symphonia_codec_aac::AacDecoder;
use symphonia_core::audio::layouts::{CHANNEL_LAYOUT_MONO, CHANNEL_LAYOUT_STEREO};
use symphonia_core::codecs::audio::well_known::CODEC_ID_AAC;
use symphonia_core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia_core::packet::PacketRef;
use symphonia_core::units;

use headwater_media::codec::aac;

/// Samples per AAC frame and channel that this decoder yields.
pub(crate) const FRAME_SAMPLES: u16 = 1024;

/// The longest frame that is looked at (bytes). AAC allows 768 per channel (ISO/IEC 14496-3 section 4.5.3.1); encoders'
/// fill elements come on top.
const FRAME_BYTES_MAX: usize = 8192;

/// AAC's lowest and highest sampling rate (Hz).
const RATES: std::ops::RangeInclusive<u32> = 7350..=96_000;

/// The AAC Low Complexity audio object type (ISO/IEC 14496-3 table 1.17).
const OBJECT_TYPE_LC: u8 = 2;

/// Why a frame yields no sound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The frame is damaged; the next one may do.
    #[error("undecodable AAC frame: {0}")]
    Frame(String),
    /// The decoder panicked and must not be used again.
    #[error("the AAC decoder panicked")]
    Panicked,
}

/// One stream's AAC-LC decoder.
pub(crate) struct Decoder {
    inner: AacDecoder,
    channels: u8,
    pcm: Vec<f32>,
}

impl Decoder {
    /// Whether [`Self::new`] takes a source.
    pub(crate) fn supports(source: &aac::Configuration) -> bool {
        source.object_type == OBJECT_TYPE_LC
            && !source.sbr
            && !source.ps
            && matches!(source.channels, 1 | 2)
            && source.frame_samples == FRAME_SAMPLES
            && RATES.contains(&source.sample_rate_hz)
    }

    /// A decoder for `source`.
    ///
    /// # Errors
    /// If the decoder doesn't take it; it does if [`Self::supports`] says so.
    pub(crate) fn new(source: &aac::Configuration) -> Result<Self, Error> {
        // Without the AudioSpecificConfig, which our own parser has read already: one parser less for hostile bytes.
        let mut parameters = AudioCodecParameters::new();
        parameters
            .for_codec(CODEC_ID_AAC)
            .with_sample_rate(source.sample_rate_hz)
            .with_channels(if source.channels == 1 {
                CHANNEL_LAYOUT_MONO
            } else {
                CHANNEL_LAYOUT_STEREO
            });
        let inner = AacDecoder::try_new(&parameters, &AudioDecoderOptions::default())
            .map_err(|error| Error::Frame(error.to_string()))?;
        Ok(Self {
            inner,
            channels: source.channels,
            pcm: Vec::new(),
        })
    }

    /// Decodes one raw frame to [`FRAME_SAMPLES`] interleaved samples per channel, within -1 to 1.
    ///
    /// # Errors
    /// [`Error::Frame`]: go on with the next one. [`Error::Panicked`]: make a new decoder.
    pub(crate) fn decode(&mut self, frame: &[u8]) -> Result<&[f32], Error> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Error::Frame(format!("{} bytes long", frame.len())));
        }
        let packet = PacketRef::new(
            0,
            units::Timestamp::ZERO,
            units::Duration::new(u64::from(FRAME_SAMPLES)),
            frame,
        );
        self.pcm.clear();
        let (inner, pcm) = (&mut self.inner, &mut self.pcm);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            inner
                .decode_ref(&packet)
                .map(|decoded| decoded.copy_to_vec_interleaved(pcm))
        }));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::Frame(error.to_string())),
            Err(_) => return Err(Error::Panicked),
        }
        if self.pcm.len() != usize::from(FRAME_SAMPLES) * usize::from(self.channels) {
            return Err(Error::Frame(format!("{} samples", self.pcm.len())));
        }
        for sample in &mut self.pcm {
            *sample = if sample.is_finite() {
                sample.clamp(-1.0, 1.0)
            } else {
                0.0
            };
        }
        Ok(&self.pcm)
    }

    /// Forgets the frame before, whose overlap would sound into the next one.
    pub(crate) fn reset(&mut self) {
        self.inner.reset();
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decoder")
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}
