//! FLV tag bodies (Adobe FLV 10.1 section E.4), which are RTMP's audio and video messages, to configurations and access units.
//!
//! Legacy headers with H.264 and AAC. Everything else is skipped with a reason, so that a publisher whose audio can't be used
//! keeps its video. Feed bodies in order, then poll until `None`. Called by [`crate::rtmp::Session`] and by whoever reads an
//! ffmpeg child's output.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::codec::{aac, h264};
use crate::time::{MediaTime, WallTime};
use crate::track::Configuration;
use crate::unit::{IngestUnit, MediaKind};

/// What came out of a tag body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A track begins, or is coded differently from here on.
    Configuration(Configuration),
    /// One access unit of a track that has a configuration.
    Unit(IngestUnit),
    /// A body that could not be used.
    Skipped(MediaKind, Skipped),
}

/// Why a body could not be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Skipped {
    /// A codec that is neither H.264 nor AAC.
    #[error("{0} is not supported; use H.264 and AAC")]
    Codec(Codec),
    /// Media before the sequence header that says how to decode it.
    #[error("media without a sequence header")]
    NoConfiguration,
    /// A sequence header that can't be read or describes nothing we can use.
    #[error("an unusable sequence header")]
    Configuration,
    /// A body that is not what its header says.
    #[error("malformed media")]
    Malformed,
}

/// Codecs that FLV can carry and we do not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Enhanced RTMP: the codec is named by a FourCC.
    Enhanced,
    /// The non-standard codec id 12.
    Hevc,
    /// Screen, Sorenson, VP6 and others of Flash's codecs.
    Flash,
    /// MP3.
    Mp3,
    /// Speex.
    Speex,
    /// G.711 A-law or µ-law.
    G711,
    /// Uncompressed or ADPCM.
    Pcm,
    /// Nellymoser and other numbers.
    Other,
}

impl Skipped {
    /// The value of a `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Codec(codec) => codec.label(),
            Self::NoConfiguration => "no_configuration",
            Self::Configuration => "configuration",
            Self::Malformed => "malformed",
        }
    }
}

impl Codec {
    const fn label(self) -> &'static str {
        match self {
            Self::Enhanced => "enhanced_rtmp",
            Self::Hevc => "hevc",
            Self::Flash => "flash_video",
            Self::Mp3 => "mp3",
            Self::Speex => "speex",
            Self::G711 => "g711",
            Self::Pcm => "pcm",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Enhanced => "an Enhanced RTMP codec",
            Self::Hevc => "HEVC",
            Self::Flash => "a video codec of Flash's time",
            Self::Mp3 => "MP3",
            Self::Speex => "Speex",
            Self::G711 => "G.711",
            Self::Pcm => "uncompressed audio",
            Self::Other => "this audio codec",
        })
    }
}

/// Turns the tag bodies of one publisher into configurations and units. Yields at most a handful of outputs per body.
#[derive(Debug, Default)]
pub struct Demuxer {
    video: Option<Video>,
    audio: Option<aac::Configuration>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Video {
    configuration: h264::Configuration,
    length_size: u8,
}

/// The NAL unit length size of publishers that send no sequence header, only parameter sets in-band (bytes).
const LENGTH_SIZE_DEFAULT: u8 = 4;

impl Demuxer {
    /// A demuxer that knows no configuration yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the body of an audio tag; `dts_millis` is its time, unwrapped.
    pub fn handle_audio(&mut self, dts_millis: i64, ingest_time: WallTime, body: Bytes) {
        // An empty body keeps a silent audio track alive in some encoders.
        if body.is_empty() {
            return;
        }
        let result = self.audio(dts_millis, ingest_time, body);
        self.finish(MediaKind::Audio, result);
    }

    /// Takes the body of a video tag; `dts_millis` is its time, unwrapped.
    pub fn handle_video(&mut self, dts_millis: i64, ingest_time: WallTime, body: Bytes) {
        if body.is_empty() {
            return;
        }
        let result = self.video(dts_millis, ingest_time, body);
        self.finish(MediaKind::Video, result);
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn finish(&mut self, kind: MediaKind, result: Result<(), Skipped>) {
        if let Err(reason) = result {
            self.outputs.push_back(Output::Skipped(kind, reason));
        }
    }

    fn audio(
        &mut self,
        dts_millis: i64,
        ingest_time: WallTime,
        mut body: Bytes,
    ) -> Result<(), Skipped> {
        let first = take(&mut body)?;
        match first >> 4 {
            10 => {}
            2 | 14 => return Err(Skipped::Codec(Codec::Mp3)),
            11 => return Err(Skipped::Codec(Codec::Speex)),
            7 | 8 => return Err(Skipped::Codec(Codec::G711)),
            0 | 1 | 3 => return Err(Skipped::Codec(Codec::Pcm)),
            9 => return Err(Skipped::Codec(Codec::Enhanced)),
            _ => return Err(Skipped::Codec(Codec::Other)),
        }
        match take(&mut body)? {
            0 => {
                let configuration =
                    aac::Configuration::parse(body).map_err(|_| Skipped::Configuration)?;
                if self.audio.as_ref() != Some(&configuration) {
                    self.audio = Some(configuration.clone());
                    self.outputs
                        .push_back(Output::Configuration(Configuration::Aac(configuration)));
                }
                Ok(())
            }
            1 => {
                if self.audio.is_none() {
                    return Err(Skipped::NoConfiguration);
                }
                // A few hardware encoders leave their ADTS header in.
                let payload = aac::strip_adts(body);
                if payload.is_empty() {
                    return Ok(());
                }
                let time = MediaTime::from_millis(dts_millis);
                self.outputs.push_back(Output::Unit(IngestUnit {
                    kind: MediaKind::Audio,
                    dts: time,
                    pts: time,
                    keyframe: true,
                    discardable: false,
                    payload,
                    ingest_time,
                }));
                Ok(())
            }
            _ => Err(Skipped::Malformed),
        }
    }

    fn video(
        &mut self,
        dts_millis: i64,
        ingest_time: WallTime,
        mut body: Bytes,
    ) -> Result<(), Skipped> {
        let first = take(&mut body)?;
        if first & 0x80 != 0 {
            return Err(Skipped::Codec(Codec::Enhanced));
        }
        let frame_type = first >> 4;
        // 5 is a command to the player (seek start and end), which carries no picture whatever its codec.
        if frame_type == 5 {
            return Ok(());
        }
        match first & 0x0F {
            7 => {}
            12 => return Err(Skipped::Codec(Codec::Hevc)),
            _ => return Err(Skipped::Codec(Codec::Flash)),
        }
        let packet_type = take(&mut body)?;
        let [a, b, c] = [take(&mut body)?, take(&mut body)?, take(&mut body)?];
        // SI24: the sign is the top bit of 24.
        let composition_millis = i64::from(i32::from_be_bytes([a, b, c, 0]) >> 8);
        match packet_type {
            0 => self.video_configuration(body),
            1 => self.video_unit(
                dts_millis,
                composition_millis,
                frame_type == 3,
                ingest_time,
                body,
            ),
            // The end of a sequence says nothing about the stream: publishers send it on a scene's end and go on.
            2 => Ok(()),
            _ => Err(Skipped::Malformed),
        }
    }

    fn video_configuration(&mut self, avcc: Bytes) -> Result<(), Skipped> {
        let length_size = h264::length_size(&avcc).map_err(|_| Skipped::Configuration)?;
        let configuration = h264::Configuration::parse(avcc).map_err(|_| Skipped::Configuration)?;
        self.set_video(configuration, length_size);
        Ok(())
    }

    fn set_video(&mut self, configuration: h264::Configuration, length_size: u8) {
        let changed = self
            .video
            .as_ref()
            .is_none_or(|video| video.configuration != configuration);
        if changed {
            self.outputs
                .push_back(Output::Configuration(Configuration::H264(
                    configuration.clone(),
                )));
        }
        self.video = Some(Video {
            configuration,
            length_size,
        });
    }

    fn video_unit(
        &mut self,
        dts_millis: i64,
        composition_millis: i64,
        disposable: bool,
        ingest_time: WallTime,
        payload: Bytes,
    ) -> Result<(), Skipped> {
        let length_size = self
            .video
            .as_ref()
            .map_or(LENGTH_SIZE_DEFAULT, |video| video.length_size);
        let unit = h264::normalize(payload, length_size).map_err(|_| Skipped::Malformed)?;
        if !unit.sps.is_empty() || !unit.pps.is_empty() {
            self.in_band(&unit.sps, &unit.pps, length_size);
        }
        if self.video.is_none() {
            return Err(Skipped::NoConfiguration);
        }
        if unit.payload.is_empty() {
            return Ok(());
        }
        self.outputs.push_back(Output::Unit(IngestUnit {
            kind: MediaKind::Video,
            dts: MediaTime::from_millis(dts_millis),
            pts: MediaTime::from_millis(dts_millis.saturating_add(composition_millis)),
            keyframe: unit.keyframe,
            discardable: unit.discardable || (disposable && !unit.keyframe),
            payload: unit.payload,
            ingest_time,
        }));
        Ok(())
    }

    /// Parameter sets among the slices replace those with the same id. Sets that can't be read are left aside: the
    /// configuration that was good stays.
    fn in_band(&mut self, sps: &[Bytes], pps: &[Bytes], length_size: u8) {
        let (mut all_sps, mut all_pps) =
            self.video.as_ref().map_or_else(Default::default, |video| {
                (
                    video.configuration.sps.clone(),
                    video.configuration.pps.clone(),
                )
            });
        let known = |sets: &[Bytes], new: &[Bytes]| new.iter().all(|set| sets.contains(set));
        if known(&all_sps, sps) && known(&all_pps, pps) {
            return;
        }
        for set in sps {
            replace(&mut all_sps, set, sps_id);
        }
        for set in pps {
            replace(&mut all_pps, set, pps_id);
        }
        if let Ok(configuration) = h264::Configuration::from_parameter_sets(all_sps, all_pps) {
            self.set_video(configuration, length_size);
        }
    }
}

/// Parameter sets kept per kind (count): ISO/IEC 14496-10 has 32 SPS ids and 256 PPS ids; the record counts SPS in 5 bits, PPS in 8.
const PARAMETER_SETS_MAX: usize = 31;

fn replace(sets: &mut Vec<Bytes>, new: &Bytes, id: fn(&[u8]) -> Option<u32>) {
    let Some(new_id) = id(new) else {
        return;
    };
    let known = sets.iter().position(|set| id(set) == Some(new_id));
    // Copied, so that a set of a few bytes does not keep the whole access unit it came in.
    let new = Bytes::copy_from_slice(new);
    match known {
        Some(index) => {
            if let Some(set) = sets.get_mut(index) {
                *set = new;
            }
        }
        None if sets.len() < PARAMETER_SETS_MAX => sets.push(new),
        None => {}
    }
}

/// seq_parameter_set_id (ISO/IEC 14496-10 section 7.3.2.1.1): behind the NAL header, profile, constraints and level.
fn sps_id(nal: &[u8]) -> Option<u32> {
    exp_golomb(nal.get(4..)?)
}

/// pic_parameter_set_id (ISO/IEC 14496-10 section 7.3.2.2): behind the NAL header.
fn pps_id(nal: &[u8]) -> Option<u32> {
    exp_golomb(nal.get(1..)?)
}

/// The ue(v) at the start of `bytes`, for values that fit in the first 4 bytes.
fn exp_golomb(bytes: &[u8]) -> Option<u32> {
    let mut window = [0; 4];
    for (slot, byte) in window.iter_mut().zip(bytes) {
        *slot = *byte;
    }
    let window = u32::from_be_bytes(window);
    let zeros = window.leading_zeros();
    if zeros > 15 {
        return None;
    }
    let bits = zeros.checked_mul(2)?.checked_add(1)?;
    window.checked_shr(32u32.checked_sub(bits)?)?.checked_sub(1)
}

fn take(body: &mut Bytes) -> Result<u8, Skipped> {
    body.try_get_u8().map_err(|_| Skipped::Malformed)
}
