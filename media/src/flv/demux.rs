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
use crate::unit::{IngestUnit, MediaKind, SourceTrack};

/// What came out of a tag body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A track begins, or is coded differently from here on.
    Configuration(SourceTrack, Configuration),
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
                    self.outputs.push_back(Output::Configuration(
                        SourceTrack::DEFAULT,
                        Configuration::Aac(configuration),
                    ));
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
                    track: SourceTrack::DEFAULT,
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
            self.outputs.push_back(Output::Configuration(
                SourceTrack::DEFAULT,
                Configuration::H264(configuration.clone()),
            ));
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
            track: SourceTrack::DEFAULT,
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
        let changed = match &self.video {
            Some(video) => video.configuration.updated(sps, pps),
            None => h264::Configuration::from_parameter_sets(sps.to_vec(), pps.to_vec()).map(Some),
        };
        if let Ok(Some(configuration)) = changed {
            self.set_video(configuration, length_size);
        }
    }
}

fn take(body: &mut Bytes) -> Result<u8, Skipped> {
    body.try_get_u8().map_err(|_| Skipped::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtmp::testkit::{ASC, AVCC, picture, video_configuration};

    fn video(demuxer: &mut Demuxer, millis: i64, body: &[u8]) -> Vec<Output> {
        demuxer.handle_video(millis, WallTime::default(), Bytes::copy_from_slice(body));
        std::iter::from_fn(|| demuxer.poll_output()).collect()
    }

    fn audio(demuxer: &mut Demuxer, body: &[u8]) -> Vec<Output> {
        demuxer.handle_audio(7, WallTime::default(), Bytes::copy_from_slice(body));
        std::iter::from_fn(|| demuxer.poll_output()).collect()
    }

    fn skipped(outputs: &[Output]) -> &'static str {
        match outputs {
            [Output::Skipped(_, reason)] => reason.label(),
            other => panic!("{other:?}"),
        }
    }

    fn unit(outputs: &[Output]) -> &IngestUnit {
        match outputs {
            [Output::Unit(unit)] => unit,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn pictures_have_their_times_and_marks() {
        let mut demuxer = Demuxer::new();
        let begun = video(&mut demuxer, 0, &video_configuration(AVCC));
        assert!(
            matches!(&begun[..], [Output::Configuration(SourceTrack::DEFAULT, Configuration::H264(c))] if (c.width, c.height) == (320, 240))
        );
        for (keyframe, composition, pts) in [(true, 0, 100), (false, 66, 166), (false, -33, 67)] {
            let outputs = video(&mut demuxer, 100, &picture(keyframe, composition, 5));
            let unit = unit(&outputs);
            assert_eq!(unit.keyframe, keyframe);
            assert_eq!(
                (unit.dts.as_millis(), unit.pts.as_millis()),
                (100, pts),
                "{composition}"
            );
            assert_eq!(unit.payload.len(), 9);
        }
    }

    #[test]
    fn an_equal_sequence_header_changes_nothing_and_another_does() {
        let mut demuxer = Demuxer::new();
        assert_eq!(video(&mut demuxer, 0, &video_configuration(AVCC)).len(), 1);
        assert_eq!(video(&mut demuxer, 0, &video_configuration(AVCC)).len(), 0);
        let mut other = AVCC.to_vec();
        if let Some(last) = other.last_mut() {
            *last ^= 0x10;
        }
        assert_eq!(
            video(&mut demuxer, 0, &video_configuration(&other)).len(),
            1
        );
        assert_eq!(audio(&mut demuxer, &[&[0xAF, 0], ASC].concat()).len(), 1);
        assert_eq!(audio(&mut demuxer, &[&[0xAF, 0], ASC].concat()).len(), 0);
        // 44.1 kHz mono.
        assert_eq!(audio(&mut demuxer, &[0xAF, 0, 0x12, 0x08]).len(), 1);
    }

    #[test]
    fn parameter_sets_among_the_slices_are_a_configuration_too() {
        let length_prefixed = |nals: &[&[u8]]| {
            let mut body = vec![0x17, 1, 0, 0, 0];
            for nal in nals {
                body.extend_from_slice(&u32::try_from(nal.len()).expect("short").to_be_bytes());
                body.extend_from_slice(nal);
            }
            body
        };
        let (sps, pps) = (&AVCC[8..32], &AVCC[35..40]);
        // Without a sequence header at all.
        let mut demuxer = Demuxer::new();
        let outputs = video(
            &mut demuxer,
            0,
            &length_prefixed(&[sps, pps, &[0x65, 1, 2]]),
        );
        assert!(
            matches!(&outputs[..], [Output::Configuration(..), Output::Unit(unit)] if unit.keyframe && unit.payload.len() == 7)
        );
        // Repeated: no change. Another PPS of the same id replaces the first.
        let outputs = video(
            &mut demuxer,
            0,
            &length_prefixed(&[sps, pps, &[0x65, 1, 2]]),
        );
        assert!(matches!(&outputs[..], [Output::Unit(_)]));
        let changed = [&pps[..4], &[0x60]].concat();
        let outputs = video(
            &mut demuxer,
            0,
            &length_prefixed(&[&changed, &[0x65, 1, 2]]),
        );
        let [
            Output::Configuration(_, Configuration::H264(now)),
            Output::Unit(_),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        assert_eq!(
            (now.sps.len(), &now.pps[..]),
            (1, &[Bytes::from(changed)][..])
        );
    }

    #[test]
    fn what_is_no_media_is_passed_over() {
        let mut demuxer = Demuxer::new();
        for harmless in [&[][..], &[0x57, 0], &[0x5C, 1], &[0x17, 2, 0, 0, 0]] {
            assert_eq!(video(&mut demuxer, 0, harmless), []);
        }
        assert_eq!(audio(&mut demuxer, &[]), []);
    }

    #[test]
    fn what_can_not_be_used_says_why() {
        let mut demuxer = Demuxer::new();
        for (body, reason) in [
            (&[0x1C, 0, 0, 0, 0][..], "hevc"),
            (&[0x90, b'h', b'v', b'c', b'1'], "enhanced_rtmp"),
            (&[0x12, 1], "flash_video"),
            (&[0x17], "malformed"),
            (&[0x17, 9, 0, 0, 0], "malformed"),
            (&[0x17, 0, 0, 0, 0], "configuration"),
            (&[0x17, 0, 0, 0, 0, 1, 2, 3], "configuration"),
            (&[0x27, 1, 0, 0, 0, 0, 0, 0, 1, 0x41], "no_configuration"),
            (
                &[0x27, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x41],
                "malformed",
            ),
        ] {
            assert_eq!(skipped(&video(&mut demuxer, 0, body)), reason, "{body:x?}");
        }
        for (body, reason) in [
            (&[0x2F, 0xFF][..], "mp3"),
            (&[0xE2, 0xFF], "mp3"),
            (&[0xB2, 0xFF], "speex"),
            (&[0x72, 0xFF], "g711"),
            (&[0x3F, 0xFF], "pcm"),
            (&[0x95, b'O'], "enhanced_rtmp"),
            (&[0x6F, 0], "other"),
            (&[0xAF], "malformed"),
            (&[0xAF, 7], "malformed"),
            (&[0xAF, 0], "configuration"),
            (&[0xAF, 1, 5], "no_configuration"),
        ] {
            assert_eq!(skipped(&audio(&mut demuxer, body)), reason, "{body:x?}");
        }
    }
}
