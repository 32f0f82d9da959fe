//! Everything that one probe saw, and what it makes of it.
//!
//! A pure core fed with the events of the connection; [`Tally::report`] sums up at any time.

use std::time::{Duration, Instant};

use headwater_media::rtp::assembler::{Assembler, Frame};
use headwater_media::time::WallTime;
use headwater_node::clock::Clock;
use serde::Serialize;

use super::observer::Seen;
use super::peer::Kind;
use super::reception::{Arrival, Reception};

/// Latency samples kept (count): an hour at 60 fps; later ones are left out.
const SAMPLES_MAX: usize = 216_000;
/// The GOP that a joining viewer gets at once would count as a high frame rate.
const SETTLING: Duration = Duration::from_millis(500);
/// 1900 to 1970 in NTP seconds (RFC 5905 section 6).
const NTP_UNIX_SECONDS: u64 = 2_208_988_800;

/// When the phases of joining were reached, in ms from the start. `None` was not reached.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Join {
    /// The server answered the offer.
    pub(super) http_ms: Option<f64>,
    /// ICE found a way.
    pub(super) ice_ms: Option<f64>,
    /// DTLS finished.
    pub(super) dtls_ms: Option<f64>,
    /// The first RTP packet came.
    pub(super) first_packet_ms: Option<f64>,
    /// The first complete IDR picture with its parameter sets came.
    pub(super) first_frame_ms: Option<f64>,
}

/// The packets of one track.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Packets {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// Missing and never repaired.
    pub(super) lost: u64,
    /// In per cent of what was sent.
    pub(super) loss_percent: f64,
    pub(super) repaired: u64,
    pub(super) late: u64,
    pub(super) duplicates: u64,
    pub(super) jitter_ms: f64,
    pub(super) longest_gap_ms: f64,
}

/// The pictures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Video {
    /// Access units of which at least a part came.
    pub(super) frames: u64,
    pub(super) complete: u64,
    /// What a decoder would have shown.
    pub(super) decodable: u64,
    pub(super) keyframes: u64,
    /// Decodable pictures per second of watching, without the burst of the start.
    pub(super) fps: f64,
    /// The longest time between two decodable pictures.
    pub(super) longest_freeze_ms: f64,
    pub(super) bits_per_second: f64,
    pub(super) nacked: u64,
    pub(super) plis: u64,
    #[serde(flatten)]
    pub(super) packets: Packets,
}

/// From ingest (or the publisher's stamp) to the last packet of the picture here.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Latency {
    /// `stamp` (in the picture, by the publisher) or `capture-time` (in the packets, by the origin).
    pub(super) source: &'static str,
    pub(super) samples: usize,
    pub(super) p50_ms: f64,
    pub(super) p95_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// The sum of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) kind: &'static str,
    pub(super) url: String,
    pub(super) healthy: bool,
    /// Why not, as sentences.
    pub(super) reasons: Vec<String>,
    pub(super) watched_seconds: f64,
    /// Times it went to another session, since the server asked it to; packets and pictures are those of the last one.
    pub(super) moved: u64,
    pub(super) join: Join,
    pub(super) video: Option<Video>,
    pub(super) audio: Option<Packets>,
    pub(super) latency: Option<Latency>,
    /// How much later video arrives than the sound that belongs to it, by the sender reports.
    pub(super) video_behind_audio_ms: Option<f64>,
    /// RTP timestamp of the newest decodable picture; a test sees by it that the timeline goes on.
    pub(super) newest_timestamp: Option<u32>,
}

/// A decodable picture, for whoever looks at each.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Picture {
    kind: &'static str,
    /// Counts the sessions that were gone over to: pictures of two that overlap come from both.
    session: u64,
    /// When its last packet came.
    arrived_unix_micros: u64,
    /// When the publisher made it, if it says.
    stamp_unix_micros: Option<u64>,
    /// RTP's.
    timestamp: u32,
    keyframe: bool,
}

/// Gathers.
#[derive(Debug)]
pub(super) struct Tally {
    clock: Clock,
    seen: Seen,
    /// Negotiated id of abs-capture-time.
    pub(super) capture_time_id: Option<u8>,
    started: Instant,
    pub(super) join: Join,
    video: Stream,
    audio: Stream,
    assembler: Assembler,
    frames: u64,
    complete: u64,
    decodable: u64,
    keyframes: u64,
    settled: u64,
    first_frame: Option<Instant>,
    newest: Option<(Instant, u32)>,
    longest_freeze: Duration,
    stamped_ms: Vec<f64>,
    captured_ms: Vec<f64>,
    /// The session, and its pictures until they are taken; none: nobody looks at them.
    pictures: Option<(u64, Vec<Picture>)>,
}

/// One track's packets, and how late each is against its sender's clock.
#[derive(Debug)]
struct Stream {
    clock_rate: u32,
    ssrc: Option<u32>,
    reception: Reception,
    transit_ms: Vec<f64>,
}

impl Stream {
    fn new(clock_rate: u32) -> Self {
        Self {
            clock_rate,
            ssrc: None,
            reception: Reception::new(clock_rate),
            transit_ms: Vec::new(),
        }
    }

    fn summary(&self) -> Option<Packets> {
        let counters = self.reception.counters();
        if counters.packets == 0 {
            return None;
        }
        let lost = self.reception.lost();
        Some(Packets {
            packets: counters.packets,
            bytes: counters.bytes,
            lost,
            loss_percent: 100.0 * lost as f64 / (counters.packets + lost) as f64,
            repaired: counters.repaired,
            late: counters.late,
            duplicates: counters.duplicates,
            jitter_ms: ms(self.reception.jitter()),
            longest_gap_ms: ms(counters.longest_gap),
        })
    }
}

impl Tally {
    /// Counts from `clock.now()`.
    pub(super) fn new(clock: Clock, seen: Seen) -> Self {
        Self {
            started: clock.now(),
            clock,
            seen,
            capture_time_id: None,
            join: Join::default(),
            video: Stream::new(90_000),
            audio: Stream::new(48_000),
            assembler: Assembler::default(),
            frames: 0,
            complete: 0,
            decodable: 0,
            keyframes: 0,
            settled: 0,
            first_frame: None,
            newest: None,
            longest_freeze: Duration::ZERO,
            stamped_ms: Vec::new(),
            captured_ms: Vec::new(),
            pictures: None,
        }
    }

    /// From now on pictures are kept for [`Self::take_pictures`], as those of this session.
    pub(super) fn keep_pictures(&mut self, session: u64) {
        self.pictures = Some((session, Vec::new()));
    }

    /// The pictures since the last time.
    pub(super) fn take_pictures(&mut self) -> Vec<Picture> {
        let pictures = self.pictures.as_mut();
        pictures.map_or_else(Vec::new, |(_, pictures)| std::mem::take(pictures))
    }

    /// Milliseconds from the start to `at`.
    pub(super) fn since_start(&self, at: Instant) -> f64 {
        ms(at.saturating_duration_since(self.started))
    }

    /// A packet of one of the tracks arrived.
    pub(super) fn handle_packet(&mut self, at: Instant, kind: Kind, packet: &rtc::rtp::Packet) {
        self.note_requests();
        let header = &packet.header;
        let wall = self.clock.wall_at(at);
        let stream = match kind {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
        };
        stream.ssrc = Some(header.ssrc);
        let arrival = stream.reception.handle_packet(
            at,
            header.sequence_number,
            header.timestamp,
            packet.payload.len(),
        );
        let Arrival::New(index) = arrival else {
            return;
        };
        if let Some(report) = self.seen.report(header.ssrc)
            && stream.transit_ms.len() < SAMPLES_MAX
        {
            let ticks = header.timestamp.wrapping_sub(report.rtp).cast_signed();
            let sent_ms = ntp_to_unix_ms(report.ntp)
                + 1000.0 * f64::from(ticks) / f64::from(stream.clock_rate);
            stream.transit_ms.push(unix_ms(wall) - sent_ms);
        }
        if self.join.first_packet_ms.is_none() {
            self.join.first_packet_ms = Some(self.since_start(at));
        }
        if kind == Kind::Video {
            // The extension comes with each packet; the last one of a picture decides as for stamps.
            // As there, the burst of the start does not count.
            let live = self
                .first_frame
                .is_some_and(|first| at.saturating_duration_since(first) >= SETTLING);
            if header.marker
                && live
                && self.captured_ms.len() < SAMPLES_MAX
                && let Some(captured) = self.capture_time_id.and_then(|id| header.get_extension(id))
                && let Some(ntp) = captured.first_chunk::<8>()
            {
                let captured = ntp_to_unix_ms(u64::from_be_bytes(*ntp));
                self.captured_ms.push(unix_ms(wall) - captured);
            }
            let payload = packet.payload.clone();
            self.assembler
                .handle_packet(at, index, header.timestamp, header.marker, payload);
            self.take_frames();
        }
    }

    /// Time passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.note_requests();
        self.assembler.handle_timeout(now);
        self.take_frames();
    }

    /// Whether video flows that a decoder cannot use before the next keyframe.
    pub(super) fn wants_keyframe(&self) -> bool {
        self.video.ssrc.is_some() && self.assembler.wants_keyframe()
    }

    /// Whether joining is complete: a picture that can be decoded, or sound where there is no video.
    pub(super) fn playing(&self) -> bool {
        self.decodable > 0
    }

    /// For how long it has been.
    pub(super) fn plays_since(&self, now: Instant) -> Duration {
        self.first_frame
            .map_or(Duration::ZERO, |first| now.saturating_duration_since(first))
    }

    /// The longest time between two decodable pictures, and to now.
    pub(super) fn longest_freeze(&self, now: Instant) -> Duration {
        self.newest.map_or(Duration::ZERO, |(at, _)| {
            now.saturating_duration_since(at).max(self.longest_freeze)
        })
    }

    /// Whether anything but video arrived.
    pub(super) fn has_audio(&self) -> bool {
        self.audio.ssrc.is_some()
    }

    /// The sum so far, for `url`; not yet judged.
    pub(super) fn report(&self, url: &str) -> Report {
        let now = self.clock.now();
        let (nacked, plis) = self.seen.sent();
        let watched = self
            .first_frame
            .map_or(Duration::ZERO, |first| now.saturating_duration_since(first));
        let settled = watched.saturating_sub(SETTLING).as_secs_f64();
        let freeze = self.longest_freeze(now);
        let video = self.video.summary().map(|packets| Video {
            frames: self.frames,
            complete: self.complete,
            decodable: self.decodable,
            keyframes: self.keyframes,
            fps: if settled > 0.1 {
                self.settled as f64 / settled
            } else {
                0.0
            },
            longest_freeze_ms: ms(freeze),
            bits_per_second: if watched.is_zero() {
                0.0
            } else {
                8.0 * packets.bytes as f64 / watched.as_secs_f64()
            },
            nacked,
            plis,
            packets,
        });
        let behind = match (
            median(&self.video.transit_ms),
            median(&self.audio.transit_ms),
        ) {
            (Some(video), Some(audio)) => Some(video - audio),
            _ => None,
        };
        Report {
            kind: "report",
            url: url.to_owned(),
            healthy: true,
            reasons: Vec::new(),
            watched_seconds: watched.as_secs_f64(),
            moved: 0,
            join: self.join,
            video,
            audio: self.audio.summary(),
            latency: latency("stamp", &self.stamped_ms)
                .or_else(|| latency("capture-time", &self.captured_ms)),
            video_behind_audio_ms: behind,
            newest_timestamp: self.newest.map(|(_, timestamp)| timestamp),
        }
    }

    fn note_requests(&mut self) {
        for (ssrc, sequence) in self.seen.take_requested() {
            if self.video.ssrc == Some(ssrc) {
                self.video.reception.handle_nack(sequence);
            }
        }
    }

    fn take_frames(&mut self) {
        while let Some(frame) = self.assembler.poll_frame() {
            self.handle_frame(&frame);
        }
    }

    fn handle_frame(&mut self, frame: &Frame) {
        self.frames += 1;
        self.complete += u64::from(frame.complete);
        self.keyframes += u64::from(frame.keyframe && frame.complete);
        if !frame.decodable {
            return;
        }
        self.decodable += 1;
        if let Some((session, pictures)) = &mut self.pictures {
            pictures.push(Picture {
                kind: "picture",
                session: *session,
                arrived_unix_micros: self.clock.wall_at(frame.arrived).unix_micros(),
                stamp_unix_micros: frame.stamp,
                timestamp: frame.timestamp,
                keyframe: frame.keyframe,
            });
        }
        let first = *self.first_frame.get_or_insert(frame.arrived);
        if self.join.first_frame_ms.is_none() {
            self.join.first_frame_ms = Some(self.since_start(frame.arrived));
        }
        if frame.arrived.saturating_duration_since(first) >= SETTLING {
            self.settled += 1;
            if let Some((before, _)) = self.newest {
                let gap = frame.arrived.saturating_duration_since(before);
                self.longest_freeze = self.longest_freeze.max(gap);
            }
            // The burst of the start is old by design and no measure of the way here.
            if let Some(stamp) = frame.stamp
                && self.stamped_ms.len() < SAMPLES_MAX
            {
                let wall = self.clock.wall_at(frame.arrived);
                self.stamped_ms
                    .push(unix_ms(wall) - unix_ms(WallTime::from_unix_micros(stamp)));
            }
        }
        self.newest = Some((frame.arrived, frame.timestamp));
    }
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn unix_ms(time: WallTime) -> f64 {
    time.unix_micros() as f64 / 1000.0
}

fn ntp_to_unix_ms(ntp: u64) -> f64 {
    let seconds = (ntp >> 32).wrapping_sub(NTP_UNIX_SECONDS);
    seconds as f64 * 1000.0 + (ntp & 0xffff_ffff) as f64 * 1000.0 / 4_294_967_296.0
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which `percent` of the sorted samples lie; nearest rank.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

fn median(samples: &[f64]) -> Option<f64> {
    percentile(&sorted(samples), 50)
}

fn latency(source: &'static str, samples: &[f64]) -> Option<Latency> {
    let sorted = sorted(samples);
    Some(Latency {
        source,
        samples: sorted.len(),
        p50_ms: percentile(&sorted, 50)?,
        p95_ms: percentile(&sorted, 95)?,
        p99_ms: percentile(&sorted, 99)?,
        max_ms: percentile(&sorted, 100)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let samples: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), Some(100.0));
        assert_eq!(percentile(&samples, 99), Some(198.0));
        assert_eq!(percentile(&samples, 100), Some(200.0));
        assert_eq!(percentile(&samples[..1], 1), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn ntp_and_wall_time_agree() {
        let wall = WallTime::from_unix_micros(1_800_000_000_123_456);
        assert!((ntp_to_unix_ms(wall.ntp()) - unix_ms(wall)).abs() < 0.001);
    }
}
