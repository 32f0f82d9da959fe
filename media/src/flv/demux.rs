//! FLV tag bodies (Adobe FLV 10.1 section E.4), which are RTMP's audio and video messages, to configurations and access units.
//!
//! H.264 and AAC, under legacy headers and those of Enhanced RTMP v2, whether or not the publisher said that it knows of them; several
//! video tracks, of which those beside the default one may come and go. Everything else is skipped with a reason, so that a publisher
//! whose audio can't be used keeps its video. Feed bodies in order, then poll until `None`. Called by [`crate::rtmp::Session`] and by
//! whoever reads an ffmpeg child's output.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::enhanced::{Dialect, FourCc, Packet, Packets};
use crate::codec::{aac, h264};
use crate::time::{MediaTime, WallTime};
use crate::track::Configuration;
use crate::unit::{IngestUnit, MediaKind, SourceTrack};

pub use super::skipped::{Codec, Skipped};

/// What came out of a tag body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A track begins, or is coded differently from here on.
    Configuration(SourceTrack, Configuration),
    /// One access unit of a track that has a configuration.
    Unit(IngestUnit),
    /// A video track beside the default one ended. If it goes on, its configuration comes again.
    End(SourceTrack),
    /// A body that could not be used.
    Skipped(MediaKind, Skipped),
}

/// Turns the tag bodies of one publisher into configurations and units. Yields at most a handful of outputs per body.
#[derive(Debug, Default)]
pub struct Demuxer {
    /// The video tracks that have begun, at most [`VIDEO_TRACKS_MAX`].
    video: Vec<Video>,
    audio: Option<aac::Configuration>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Video {
    track: SourceTrack,
    configuration: h264::Configuration,
    length_size: u8,
    /// The publisher ended it and has not sent a keyframe since.
    ended: bool,
}

/// When a body was sent and came.
#[derive(Debug, Clone, Copy)]
struct Times {
    /// Unwrapped.
    dts_millis: i64,
    ingest_time: WallTime,
}

/// What is said of a picture in front of it.
#[derive(Debug, Clone, Copy)]
struct Marks {
    composition_millis: i64,
    disposable: bool,
}

/// Video tracks of a publisher (count). OBS sends up to ten.
pub(super) const VIDEO_TRACKS_MAX: usize = 16;

/// `avc1` and `mp4a`: what is taken.
const H264_CODE: FourCc = *b"avc1";
const AAC_CODE: FourCc = *b"mp4a";

/// VideoFrameType and the legacy FrameType: a picture that no other refers to.
const DISPOSABLE: u8 = 3;

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
        let result = self.audio(
            Times {
                dts_millis,
                ingest_time,
            },
            body,
        );
        self.finish(MediaKind::Audio, result);
    }

    /// Takes the body of a video tag; `dts_millis` is its time, unwrapped.
    pub fn handle_video(&mut self, dts_millis: i64, ingest_time: WallTime, body: Bytes) {
        if body.is_empty() {
            return;
        }
        let result = self.video(
            Times {
                dts_millis,
                ingest_time,
            },
            body,
        );
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

    fn audio(&mut self, times: Times, mut body: Bytes) -> Result<(), Skipped> {
        let first = take(&mut body)?;
        match first >> 4 {
            10 => {}
            2 | 14 => return Err(Skipped::Codec(Codec::Mp3)),
            11 => return Err(Skipped::Codec(Codec::Speex)),
            7 | 8 => return Err(Skipped::Codec(Codec::G711)),
            0 | 1 | 3 => return Err(Skipped::Codec(Codec::Pcm)),
            9 => return self.enhanced_audio(times, first & 0xF, body),
            _ => return Err(Skipped::Codec(Codec::Other)),
        }
        match take(&mut body)? {
            0 => self.audio_configuration(body),
            1 => self.audio_unit(times, body),
            _ => Err(Skipped::Malformed),
        }
    }

    fn enhanced_audio(
        &mut self,
        times: Times,
        packet_type: u8,
        body: Bytes,
    ) -> Result<(), Skipped> {
        for packet in Packets::read(Dialect::AUDIO, 0, packet_type, body)? {
            let result = packet
                .map_err(Skipped::from)
                .and_then(|packet| self.audio_packet(times, packet));
            self.finish(MediaKind::Audio, result);
        }
        Ok(())
    }

    fn audio_packet(&mut self, times: Times, packet: Packet) -> Result<(), Skipped> {
        if packet.track != SourceTrack::DEFAULT {
            return Err(Skipped::FurtherAudio);
        }
        if packet.codec != AAC_CODE {
            return Err(Skipped::Codec(Codec::from_four_cc(packet.codec)));
        }
        match packet.packet_type {
            0 => self.audio_configuration(packet.body),
            1 => self.audio_unit(times, packet.body),
            // The end of a sequence is silence until the next; the order of channels stands in the AudioSpecificConfig too.
            2 | 4 => Ok(()),
            _ => Err(Skipped::Malformed),
        }
    }

    fn audio_configuration(&mut self, asc: Bytes) -> Result<(), Skipped> {
        let configuration = aac::Configuration::parse(asc).map_err(|_| Skipped::Configuration)?;
        if self.audio.as_ref() != Some(&configuration) {
            self.audio = Some(configuration.clone());
            self.outputs.push_back(Output::Configuration(
                SourceTrack::DEFAULT,
                Configuration::Aac(configuration),
            ));
        }
        Ok(())
    }

    fn audio_unit(&mut self, times: Times, body: Bytes) -> Result<(), Skipped> {
        if self.audio.is_none() {
            return Err(Skipped::NoConfiguration);
        }
        // A few hardware encoders leave their ADTS header in.
        let payload = aac::strip_adts(body);
        if payload.is_empty() {
            return Ok(());
        }
        let time = MediaTime::from_millis(times.dts_millis);
        self.outputs.push_back(Output::Unit(IngestUnit {
            kind: MediaKind::Audio,
            track: SourceTrack::DEFAULT,
            dts: time,
            pts: time,
            keyframe: true,
            discardable: false,
            payload,
            ingest_time: times.ingest_time,
        }));
        Ok(())
    }

    fn video(&mut self, times: Times, mut body: Bytes) -> Result<(), Skipped> {
        let first = take(&mut body)?;
        let frame_type = first >> 4 & 7;
        if first & 0x80 != 0 {
            return self.enhanced_video(times, frame_type, first & 0xF, body);
        }
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
        let marks = Marks {
            composition_millis: composition(&mut body)?,
            disposable: frame_type == DISPOSABLE,
        };
        match packet_type {
            0 => self.video_configuration(SourceTrack::DEFAULT, body),
            1 => self.video_unit(SourceTrack::DEFAULT, times, marks, body),
            // The end of a sequence says nothing about the stream: publishers send it on a scene's end and go on.
            2 => Ok(()),
            _ => Err(Skipped::Malformed),
        }
    }

    fn enhanced_video(
        &mut self,
        times: Times,
        frame_type: u8,
        packet_type: u8,
        body: Bytes,
    ) -> Result<(), Skipped> {
        let disposable = frame_type == DISPOSABLE;
        for packet in Packets::read(Dialect::VIDEO, frame_type, packet_type, body)? {
            let result = packet
                .map_err(Skipped::from)
                .and_then(|packet| self.video_packet(times, disposable, packet));
            self.finish(MediaKind::Video, result);
        }
        Ok(())
    }

    fn video_packet(
        &mut self,
        times: Times,
        disposable: bool,
        packet: Packet,
    ) -> Result<(), Skipped> {
        let Packet {
            track, mut body, ..
        } = packet;
        if packet.codec != H264_CODE {
            return Err(Skipped::Codec(Codec::from_four_cc(packet.codec)));
        }
        let marks = Marks {
            composition_millis: if packet.packet_type == 1 {
                composition(&mut body)?
            } else {
                0
            },
            disposable,
        };
        match packet.packet_type {
            0 => self.video_configuration(track, body),
            1 | 3 => self.video_unit(track, times, marks, body),
            2 => {
                self.end(track);
                Ok(())
            }
            // Metadata, such as how colours are to be understood, which the parameter sets say too.
            4 => Ok(()),
            _ => Err(Skipped::Malformed),
        }
    }

    /// The end of a sequence. It says nothing of the default track, as for legacy headers.
    fn end(&mut self, track: SourceTrack) {
        if track == SourceTrack::DEFAULT {
            return;
        }
        if let Some(video) = self.video.iter_mut().find(|video| video.track == track)
            && !std::mem::replace(&mut video.ended, true)
        {
            self.outputs.push_back(Output::End(track));
        }
    }

    fn video_configuration(&mut self, track: SourceTrack, avcc: Bytes) -> Result<(), Skipped> {
        let length_size = h264::length_size(&avcc).map_err(|_| Skipped::Configuration)?;
        let configuration = h264::Configuration::parse(avcc).map_err(|_| Skipped::Configuration)?;
        self.set_video(track, configuration, length_size)
    }

    fn set_video(
        &mut self,
        track: SourceTrack,
        configuration: h264::Configuration,
        length_size: u8,
    ) -> Result<(), Skipped> {
        let output = Output::Configuration(track, Configuration::H264(configuration.clone()));
        if let Some(video) = self.video.iter_mut().find(|video| video.track == track) {
            if video.ended || video.configuration != configuration {
                self.outputs.push_back(output);
            }
            video.configuration = configuration;
            video.length_size = length_size;
            video.ended = false;
            return Ok(());
        }
        if self.video.len() >= VIDEO_TRACKS_MAX {
            return Err(Skipped::TooManyTracks);
        }
        self.video.push(Video {
            track,
            configuration,
            length_size,
            ended: false,
        });
        self.outputs.push_back(output);
        Ok(())
    }

    fn video_unit(
        &mut self,
        track: SourceTrack,
        times: Times,
        marks: Marks,
        payload: Bytes,
    ) -> Result<(), Skipped> {
        let present = self.video.iter().find(|video| video.track == track);
        let length_size = present.map_or(LENGTH_SIZE_DEFAULT, |video| video.length_size);
        let unit = h264::normalize(payload, length_size).map_err(|_| Skipped::Malformed)?;
        if !unit.sps.is_empty() || !unit.pps.is_empty() {
            self.in_band(track, &unit.sps, &unit.pps, length_size)?;
        }
        let mut tracks = self.video.iter_mut();
        let video = tracks.find(|video| video.track == track);
        let video = video.ok_or(Skipped::NoConfiguration)?;
        if unit.payload.is_empty() {
            return Ok(());
        }
        if video.ended {
            if !unit.keyframe {
                return Err(Skipped::NoConfiguration);
            }
            video.ended = false;
            let configuration = Configuration::H264(video.configuration.clone());
            self.outputs
                .push_back(Output::Configuration(track, configuration));
        }
        let pts_millis = times.dts_millis.saturating_add(marks.composition_millis);
        self.outputs.push_back(Output::Unit(IngestUnit {
            kind: MediaKind::Video,
            track,
            dts: MediaTime::from_millis(times.dts_millis),
            pts: MediaTime::from_millis(pts_millis),
            keyframe: unit.keyframe,
            discardable: unit.discardable || (marks.disposable && !unit.keyframe),
            payload: unit.payload,
            ingest_time: times.ingest_time,
        }));
        Ok(())
    }

    /// Parameter sets among the slices replace those with the same id. Sets that can't be read are left aside: the
    /// configuration that was good stays.
    fn in_band(
        &mut self,
        track: SourceTrack,
        sps: &[Bytes],
        pps: &[Bytes],
        length_size: u8,
    ) -> Result<(), Skipped> {
        let present = self.video.iter().find(|video| video.track == track);
        let changed = match present {
            Some(video) => video.configuration.updated(sps, pps),
            None => h264::Configuration::from_parameter_sets(sps.to_vec(), pps.to_vec()).map(Some),
        };
        match changed {
            Ok(Some(configuration)) => self.set_video(track, configuration, length_size),
            Ok(None) | Err(_) => Ok(()),
        }
    }
}

/// CompositionTime, SI24: the sign is the top bit of 24.
fn composition(body: &mut Bytes) -> Result<i64, Skipped> {
    let [a, b, c] = [take(body)?, take(body)?, take(body)?];
    Ok(i64::from(i32::from_be_bytes([a, b, c, 0]) >> 8))
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
            (b"\x90hvc1", "hevc"),
            (b"\x91av01", "av1"),
            (b"\x91what", "enhanced_rtmp"),
            (b"\x91av", "malformed"),
            (b"\x91avc1\0", "malformed"),
            (b"\x99avc1", "malformed"),
            (b"\x90avc1\x01", "configuration"),
            (b"\x93avc1\0\0\0\x01\x41", "no_configuration"),
            (b"\x96\x06avc1\0", "malformed"),
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
            (b"\x95O", "malformed"),
            (b"\x91Opus", "opus"),
            (b"\x90mp4a", "configuration"),
            (b"\x95\x01mp4a\x03abc", "further_audio"),
            (&[0x6F, 0], "other"),
            (&[0xAF], "malformed"),
            (&[0xAF, 7], "malformed"),
            (&[0xAF, 0], "configuration"),
            (&[0xAF, 1, 5], "no_configuration"),
        ] {
            assert_eq!(skipped(&audio(&mut demuxer, body)), reason, "{body:x?}");
        }
    }

    /// A body in multitrack mode: this layout and packet type, each track with its bytes.
    fn multitrack(layout: u8, packet_type: u8, tracks: &[(u8, &[u8])]) -> Vec<u8> {
        let mut body = vec![0x96, layout << 4 | packet_type];
        body.extend_from_slice(b"avc1");
        for (track, packet) in tracks {
            body.push(*track);
            if layout > 0 {
                let length = u32::try_from(packet.len()).expect("short").to_be_bytes();
                body.extend_from_slice(&length[1..]);
            }
            body.extend_from_slice(packet);
        }
        body
    }

    const SLICE: &[u8] = &[0, 0, 0, 3, 0x65, 0x88, 0x84];
    const DELTA: &[u8] = &[0, 0, 0, 3, 0x41, 0x88, 0x84];

    #[test]
    fn tracks_come_as_obs_sends_them_and_all_in_one_body() {
        let mut demuxer = Demuxer::new();
        // The default track under a legacy header, a further one alone in a body, late.
        assert_eq!(video(&mut demuxer, 0, &video_configuration(AVCC)).len(), 1);
        let begun = video(&mut demuxer, 0, &multitrack(0, 0, &[(7, AVCC)]));
        assert!(matches!(
            begun[..],
            [Output::Configuration(
                SourceTrack(7),
                Configuration::H264(_)
            )]
        ));
        assert_eq!(video(&mut demuxer, 0, &multitrack(0, 0, &[(7, AVCC)])), []);
        let outputs = video(&mut demuxer, 40, &multitrack(0, 3, &[(7, SLICE)]));
        let picture = unit(&outputs);
        assert_eq!((picture.track, picture.keyframe), (SourceTrack(7), true));
        assert_eq!((picture.dts, picture.pts), (picture.dts, picture.dts));

        // With composition offsets, several tracks at once; one that nobody announced is not taken.
        let delayed = [&[0, 0, 33], SLICE].concat();
        let packets = [(7, &delayed[..]), (9, &delayed), (0, &delayed)];
        let outputs = video(&mut demuxer, 80, &multitrack(1, 1, &packets));
        let [
            Output::Unit(seventh),
            Output::Skipped(MediaKind::Video, Skipped::NoConfiguration),
            Output::Unit(default),
        ] = &outputs[..]
        else {
            panic!("{outputs:?}");
        };
        assert_eq!(seventh.track, SourceTrack(7));
        assert_eq!(default.track, SourceTrack::DEFAULT);
        assert_eq!(
            (default.dts.as_millis(), default.pts.as_millis()),
            (80, 113)
        );

        // Of another codec, and cut off: what is whole counts.
        let mut body = b"\x96\x23hvc1\x01\0\0\x01xavc1\x07\0\0\x07".to_vec();
        body.extend_from_slice(SLICE);
        body.extend_from_slice(b"avc1\x07\0\0\x70");
        let outputs = video(&mut demuxer, 120, &body);
        assert!(matches!(
            outputs[..],
            [
                Output::Skipped(_, Skipped::Codec(Codec::Hevc)),
                Output::Unit(_),
                Output::Skipped(_, Skipped::Malformed)
            ]
        ));
    }

    #[test]
    fn a_track_that_ended_begins_with_its_configuration_at_a_keyframe() {
        let mut demuxer = Demuxer::new();
        video(&mut demuxer, 0, &multitrack(1, 0, &[(0, AVCC), (1, AVCC)]));
        let ends = multitrack(1, 2, &[(0, b""), (1, b""), (5, b"")]);
        assert_eq!(
            video(&mut demuxer, 40, &ends),
            [Output::End(SourceTrack(1))]
        );
        assert_eq!(video(&mut demuxer, 40, &ends), []);
        let more =
            |demuxer: &mut Demuxer, slice| video(demuxer, 80, &multitrack(0, 3, &[(1, slice)]));
        assert_eq!(skipped(&more(&mut demuxer, DELTA)), "no_configuration");
        assert!(matches!(
            more(&mut demuxer, SLICE)[..],
            [Output::Configuration(SourceTrack(1), _), Output::Unit(_)]
        ));
        video(&mut demuxer, 120, &ends);
        let begun = video(&mut demuxer, 120, &multitrack(0, 0, &[(1, AVCC)]));
        assert!(matches!(
            begun[..],
            [Output::Configuration(SourceTrack(1), _)]
        ));
        assert!(matches!(more(&mut demuxer, DELTA)[..], [Output::Unit(_)]));
    }

    #[test]
    fn there_is_an_end_to_tracks() {
        let mut demuxer = Demuxer::new();
        let all: Vec<(u8, &[u8])> = (0..=16).map(|track| (track, AVCC)).collect();
        let outputs = video(&mut demuxer, 0, &multitrack(1, 0, &all));
        assert_eq!(outputs.len(), 17);
        assert_eq!(skipped(&outputs[16..]), "too_many_tracks");
        // Of parameter sets among the slices too.
        let sets = [
            &[0, 0, 0, 24][..],
            &AVCC[8..32],
            &[0, 0, 0, 5],
            &AVCC[35..40],
            SLICE,
        ]
        .concat();
        let outputs = video(&mut demuxer, 0, &multitrack(0, 3, &[(99, &sets)]));
        assert_eq!(skipped(&outputs), "too_many_tracks");
    }

    #[test]
    fn sound_under_an_enhanced_header_is_the_default_track_of_several() {
        let mut demuxer = Demuxer::new();
        assert_eq!(audio(&mut demuxer, &[b"\x90mp4a", ASC].concat()).len(), 1);
        assert_eq!(
            unit(&audio(&mut demuxer, b"\x91mp4aabc")).payload,
            &b"abc"[..]
        );
        // MultichannelConfig and the end of a sequence.
        assert_eq!(audio(&mut demuxer, b"\x94mp4aabc"), []);
        assert_eq!(audio(&mut demuxer, b"\x92mp4a"), []);
        let both = b"\x95\x11mp4a\x01\0\0\x01x\x00\0\0\x03abc";
        assert!(matches!(
            &audio(&mut demuxer, both)[..],
            [Output::Skipped(_, Skipped::FurtherAudio), Output::Unit(unit)] if unit.payload.len() == 3
        ));
    }
}
