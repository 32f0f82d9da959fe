//! What tests build scenes from: a seeded generator of random numbers and of media, a bad network, and a start of virtual time.
//!
//! Behind the feature `testkit`; no production code depends on it. Everything repeats from its seed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{h264, opus};
use crate::id::{Bitrate, Epoch, TrackId};
use crate::time::{MediaTime, WallTime};
use crate::track::{Configuration, StreamInfo, Track};
use crate::tree::Path;
use crate::unit::AccessUnit;

pub use crate::lab::{Conditions, Link, Loss, Rng, Tally};

/// Where a test's virtual time begins; the test adds to it.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant can't be made otherwise; how late it is matters to no test"
)]
pub fn start() -> Instant {
    Instant::now()
}

/// A unit that a decoder can start at, of nothing, shown at `at`. What a test is about it sets itself:
/// `AccessUnit { keyframe: false, ..testkit::unit(…) }`.
pub fn unit(track: TrackId, epoch: u64, sequence: u64, at: MediaTime) -> AccessUnit {
    AccessUnit {
        track,
        epoch: Epoch(epoch),
        sequence,
        configuration_id: 0,
        dts: at,
        pts: at,
        keyframe: true,
        discardable: false,
        discontinuity: false,
        payload: Bytes::new(),
        ingest_time: WallTime::default(),
        origin_delay: Duration::ZERO,
    }
}

/// A track as the publisher sends it.
pub fn track(id: TrackId, configuration: Configuration) -> Track {
    Track {
        id,
        rendition: "source".into(),
        configuration: Arc::new(configuration),
        configuration_id: 0,
        bitrate: Bitrate(0),
        reordered: false,
    }
}

/// The Opus track that origins make.
pub fn opus_track() -> Track {
    let configuration = opus::Configuration {
        channels: 2,
        pre_skip: 312,
    };
    track(TrackId::OPUS, Configuration::Opus(configuration))
}

/// `live/demo` at its origin, with these tracks and no more to come.
///
/// # Panics
/// Never: the name is valid.
pub fn stream_info(epoch: u64, tracks: Vec<Track>) -> StreamInfo {
    StreamInfo {
        name: "live/demo".parse().expect("a name"),
        epoch: Epoch(epoch),
        tracks,
        publishing: true,
        audio_problem: None,
        settled: true,
        path: Path::default(),
    }
}

/// The AVCDecoderConfigurationRecord that [`Video`] pretends to be coded with: x264, Main profile, 1280x720, no B-frames.
pub const AVCC: &[u8] = &[
    0x01, 0x4d, 0x40, 0x1f, 0xff, 0xe1, 0x00, 0x17, 0x67, 0x4d, 0x40, 0x1f, 0xda, 0x01, 0x40, 0x16,
    0xec, 0x04, 0x40, 0x00, 0x00, 0x03, 0x00, 0x40, 0x00, 0x00, 0x0f, 0x03, 0xc6, 0x0c, 0xa8, 0x01,
    0x00, 0x04, 0x68, 0xef, 0x3c, 0x80,
];

/// [`AVCC`], parsed.
///
/// # Panics
/// Never: it is valid.
pub fn h264_configuration() -> h264::Configuration {
    h264::Configuration::parse(Bytes::from_static(AVCC)).expect("a valid record")
}

/// Wall time of the first unit of a generator: 2026-01-01, in microseconds since the Unix epoch.
const FIRST_INGEST_MICROS: u64 = 1_767_225_600_000_000;
/// user_data_unregistered (ITU-T H.264 section D.1.6).
const SEI_USER_DATA: u8 = 5;
/// Marks our SEI.
const UUID: [u8; 16] = *b"headwater-number";
/// SEI header, message type and size, UUID, number, stop bit.
const SEI_BYTES: usize = 1 + 2 + 16 + 16 + 1;

/// How [`Video`] looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoOptions {
    /// The track.
    pub track: TrackId,
    /// The publisher incarnation.
    pub epoch: Epoch,
    /// Pictures per second.
    pub frame_rate: u32,
    /// Pictures from one keyframe to the next.
    pub gop: u32,
    /// Bits per second, on average. A keyframe is ten times as large as another picture.
    pub bits_per_second: u32,
    /// Slices of each picture, at least one.
    pub slices: u32,
}

impl Default for VideoOptions {
    /// 720p30 as a publisher at home sends it.
    fn default() -> Self {
        Self {
            track: TrackId::SOURCE_VIDEO,
            epoch: Epoch(1),
            frame_rate: 30,
            gop: 60,
            bits_per_second: 2_500_000,
            slices: 1,
        }
    }
}

/// Access units of H.264, without end: plausible NAL units with random content, and in each an SEI with its number
/// ([`number`]). No decoder would show a picture.
#[derive(Debug, Clone)]
pub struct Video {
    options: VideoOptions,
    rng: Rng,
    sequence: u64,
}

impl Video {
    /// From picture 0, a keyframe.
    pub const fn new(options: VideoOptions, seed: u64) -> Self {
        Self {
            options,
            rng: Rng::new(seed),
            sequence: 0,
        }
    }

    fn payload(&mut self, keyframe: bool) -> Bytes {
        let options = &self.options;
        // With keyframes worth ten pictures, a GOP has gop + 9 shares of its bytes.
        let gop_bytes = u64::from(options.bits_per_second) / 8 * u64::from(options.gop)
            / u64::from(options.frame_rate.max(1));
        let share = u32::try_from(gop_bytes / (u64::from(options.gop) + 9)).unwrap_or(u32::MAX);
        let mean = if keyframe { share * 10 } else { share };
        let bytes = mean / 2 + self.rng.below(mean) + 1;
        let slices = options.slices.max(1);
        let slice_bytes = (bytes / slices).max(2);

        let mut out = BytesMut::new();
        out.put_u32(u32::try_from(SEI_BYTES).unwrap_or(0));
        put_number(&mut out, self.sequence);
        for slice in 0..slices {
            out.put_u32(slice_bytes);
            out.put_u8(if keyframe { 0x65 } else { 0x41 });
            // first_mb_in_slice as ue(v) is 1 for the first slice; whatever follows never forms a start code.
            out.put_u8(if slice == 0 { 0x88 } else { 0x48 });
            for _ in 2..slice_bytes {
                let [byte, ..] = self.rng.next().to_le_bytes();
                out.put_u8(byte | 1);
            }
        }
        out.freeze()
    }
}

impl Iterator for Video {
    type Item = AccessUnit;

    fn next(&mut self) -> Option<AccessUnit> {
        let options = self.options;
        let keyframe = self.sequence.is_multiple_of(u64::from(options.gop.max(1)));
        let payload = self.payload(keyframe);
        let frames = i64::try_from(self.sequence).unwrap_or(i64::MAX);
        let pts = MediaTime::from_samples(frames, options.frame_rate);
        let unit = AccessUnit {
            keyframe,
            discontinuity: self.sequence == 0,
            payload,
            ingest_time: WallTime::from_unix_micros(FIRST_INGEST_MICROS)
                .after(pts.since(MediaTime::ZERO)),
            ..unit(options.track, options.epoch.0, self.sequence, pts)
        };
        self.sequence += 1;
        Some(unit)
    }
}

/// Access units of Opus, without end: 20 ms each, stereo; payloads are random but for the first bytes, which have the number
/// ([`number`]). No decoder would play them.
#[derive(Debug, Clone)]
pub struct Audio {
    track: TrackId,
    epoch: Epoch,
    rng: Rng,
    sequence: u64,
}

impl Audio {
    /// Samples of a unit at 48 kHz.
    const SAMPLES: i64 = 960;
    /// Configuration 31 of RFC 6716 section 3.1 (CELT, fullband, 20 ms), stereo, one frame.
    const TABLE_OF_CONTENTS: u8 = 31 << 3 | 1 << 2;

    /// From unit 0.
    pub const fn new(track: TrackId, epoch: Epoch, seed: u64) -> Self {
        Self {
            track,
            epoch,
            rng: Rng::new(seed),
            sequence: 0,
        }
    }
}

impl Iterator for Audio {
    type Item = AccessUnit;

    fn next(&mut self) -> Option<AccessUnit> {
        let mut payload = BytesMut::new();
        payload.put_u8(Self::TABLE_OF_CONTENTS);
        payload.put_u64(self.sequence);
        for _ in 0..150 + self.rng.below(100) {
            let [byte, ..] = self.rng.next().to_le_bytes();
            payload.put_u8(byte);
        }
        let units = i64::try_from(self.sequence).unwrap_or(i64::MAX);
        let samples = units.saturating_mul(Self::SAMPLES);
        let pts = MediaTime::from_samples(samples, opus::CLOCK_HZ);
        let unit = AccessUnit {
            discontinuity: self.sequence == 0,
            payload: payload.freeze(),
            ingest_time: WallTime::from_unix_micros(FIRST_INGEST_MICROS)
                .after(pts.since(MediaTime::ZERO)),
            ..unit(self.track, self.epoch.0, self.sequence, pts)
        };
        self.sequence += 1;
        Some(unit)
    }
}

/// The number that [`Video`] or [`Audio`] gave a payload; in H.264 also found when other NAL units surround its SEI.
pub fn number(payload: &[u8]) -> Option<u64> {
    if let [Audio::TABLE_OF_CONTENTS, a, b, c, d, e, f, g, h, ..] = *payload {
        return Some(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    }
    h264::nal_units(payload).find_map(|nal| {
        let (head, rest) = nal.split_at_checked(3)?;
        let digits = rest.strip_prefix(&UUID)?.get(..16)?;
        if head != [6, SEI_USER_DATA, 32] {
            return None;
        }
        u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    })
}

/// An SEI NAL unit with a number. In hexadecimal digits, so that nothing has to be escaped.
fn put_number(out: &mut BytesMut, number: u64) {
    out.put_slice(&[6, SEI_USER_DATA, 32]);
    out.put_slice(&UUID);
    out.put_slice(format!("{number:016x}").as_bytes());
    out.put_u8(0x80);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rtp::packetizer::H264Packetizer;

    #[test]
    fn units_are_what_the_cluster_expects() {
        let options = VideoOptions {
            slices: 3,
            ..VideoOptions::default()
        };
        let units: Vec<_> = Video::new(options, 1).take(121).collect();
        for (i, unit) in (0_u64..).zip(&units) {
            assert_eq!((unit.sequence, number(&unit.payload)), (i, Some(i)));
            let same = h264::normalize(unit.payload.clone(), 4).expect("valid");
            assert_eq!(same.payload, unit.payload);
            assert_eq!(same.keyframe, i % 60 == 0);
            assert_eq!(h264::nal_units(&unit.payload).count(), 4);
        }
        let bytes: usize = units[..120].iter().map(|unit| unit.payload.len()).sum();
        let megabits = bytes * 8 / 4 / 100_000;
        assert!((20..30).contains(&megabits), "{megabits} tenths of Mbit/s");
        assert_eq!(units[30].pts, MediaTime::from_millis(1000));
    }

    #[test]
    fn a_seed_repeats() {
        let payloads = |seed| -> Vec<_> {
            Video::new(VideoOptions::default(), seed)
                .take(5)
                .map(|unit| unit.payload)
                .collect()
        };
        assert_eq!(payloads(7), payloads(7));
        assert_ne!(payloads(7), payloads(8));
    }

    #[test]
    fn video_can_be_packetized_and_audio_is_numbered() {
        let mut packetizer = H264Packetizer::new(1100);
        let configuration = h264_configuration();
        for unit in Video::new(VideoOptions::default(), 3).take(10) {
            assert!(packetizer.packetize(&unit, &configuration).is_some());
        }
        let audio: Vec<_> = Audio::new(TrackId::OPUS, Epoch(1), 3).take(51).collect();
        assert_eq!(audio[50].pts, MediaTime::from_millis(1000));
        assert_eq!(number(&audio[50].payload), Some(50));
    }
}
