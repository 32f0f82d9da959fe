//! The transcode with real sound: AAC made by ffmpeg in, the Opus that comes out decoded and looked at.

use std::f64::consts::TAU;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use headwater_media::codec::aac;
use headwater_media::id::TrackId;
use headwater_media::testkit;
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::unit::AccessUnit;
use headwater_node::actor::Undelivered;
use headwater_node::clock::Clock;

use super::pipeline::{Note, Output, Path, Pipeline};
use super::{Config, Event, Transcoder};

/// Samples that ffmpeg's encoder puts before the first one it is given.
const PRIMING: f64 = 1024.0;

/// AAC frames with their configuration.
struct Clip {
    source: aac::Configuration,
    frames: Vec<Bytes>,
}

impl Clip {
    /// Two seconds of a lavfi source.
    fn make(lavfi: &str, rate: u32, channels: u8) -> Self {
        let output = Command::new("ffmpeg")
            .args([
                "-hide_banner",
                "-loglevel",
                "error",
                "-f",
                "lavfi",
                "-i",
                lavfi,
            ])
            .args(["-ar", &rate.to_string(), "-ac", &channels.to_string()])
            .args([
                "-c:a",
                "aac",
                "-b:a",
                &format!("{}k", 96 * u32::from(channels)),
            ])
            .args(["-f", "adts", "pipe:1"])
            .stdin(Stdio::null())
            .output()
            .expect("ffmpeg runs");
        assert!(output.status.success(), "{output:?}");
        Self::from_adts(&output.stdout)
    }

    /// A tone of 440 Hz.
    fn tone(rate: u32, channels: u8) -> Self {
        Self::make(
            &format!("sine=frequency=440:sample_rate={rate}:duration=2,volume=4"),
            rate,
            channels,
        )
    }

    /// Silence with a click of 8 samples from sample `at` on, in all channels.
    fn click(rate: u32, channels: u8, at: u32) -> Self {
        let pulse = format!("0.9*between(n\\,{at}\\,{})", at + 7);
        let all = vec![pulse; usize::from(channels)].join("|");
        Self::make(
            &format!("aevalsrc=exprs={all}:s={rate}:d=2"),
            rate,
            channels,
        )
    }

    fn from_adts(mut adts: &[u8]) -> Self {
        let [_, _, a, b, ..] = adts else {
            panic!("no ADTS")
        };
        let index = (a >> 2) & 15;
        let channels = (a & 1) << 2 | b >> 6;
        // object type 2 in 5 bits, the rate's index in 4, the channels in 4
        let asc = [2 << 3 | index >> 1, (index & 1) << 7 | channels << 3];
        let mut frames = Vec::new();
        while adts.len() > 7 {
            let header = if adts[1] & 1 == 1 { 7 } else { 9 };
            let length = usize::from(adts[3] & 3) << 11
                | usize::from(adts[4]) << 3
                | usize::from(adts[5]) >> 5;
            frames.push(Bytes::copy_from_slice(&adts[header..length]));
            adts = &adts[length..];
        }
        Self {
            source: aac::Configuration::parse(Bytes::copy_from_slice(&asc)).unwrap(),
            frames,
        }
    }

    /// The frames as RTMP brings them: in whole milliseconds from `start_millis` on.
    fn units(&self, start_millis: i64) -> Vec<Arc<AccessUnit>> {
        let rate = i64::from(self.source.sample_rate_hz);
        (0..)
            .zip(&self.frames)
            .map(|(n, frame)| {
                let millis = start_millis + (n * 1024 * 1000 + rate / 2) / rate;
                unit(n.unsigned_abs(), millis, frame.clone())
            })
            .collect()
    }
}

fn unit(sequence: u64, millis: i64, payload: Bytes) -> Arc<AccessUnit> {
    Arc::new(AccessUnit {
        payload,
        ingest_time: WallTime::from_unix_micros(1_000_000 + sequence),
        ..testkit::unit(
            TrackId::SOURCE_AUDIO,
            1,
            sequence,
            MediaTime::from_millis(millis),
        )
    })
}

/// The Opus side of a transcode, decoded.
#[derive(Default)]
struct Heard {
    decoder: Option<opus::Decoder>,
    channels: usize,
    /// PTS in ticks and samples (first channel, and the last one) of each packet.
    packets: Vec<(i64, Vec<f32>, Vec<f32>)>,
    discontinuities: Vec<i64>,
    ingest: Vec<u64>,
    failed: Option<Arc<str>>,
}

impl Heard {
    fn take(&mut self, event: Event) {
        match event {
            Event::Configured(configuration) => {
                assert_eq!(configuration.pre_skip, 312);
                self.channels = usize::from(configuration.channels);
                let layout = if self.channels == 1 {
                    opus::Channels::Mono
                } else {
                    opus::Channels::Stereo
                };
                self.decoder = Some(opus::Decoder::new(48_000, layout).unwrap());
                self.failed = None;
            }
            Event::Unit {
                pts,
                payload,
                ingest_time,
                discontinuity,
            } => {
                let mut pcm = vec![0.0; 960 * self.channels];
                let decoder = self.decoder.as_mut().expect("configured first");
                assert_eq!(
                    decoder.decode_float(&payload, &mut pcm, false).unwrap(),
                    960
                );
                let channel = |n| pcm.iter().skip(n).step_by(self.channels).copied().collect();
                self.packets
                    .push((pts.ticks(), channel(0), channel(self.channels - 1)));
                if discontinuity {
                    self.discontinuities.push(pts.ticks());
                }
                self.ingest.push(ingest_time.unix_micros());
            }
            Event::Failed(reason) => self.failed = Some(reason),
        }
    }

    /// Time in seconds and value of every sample.
    fn samples(&self) -> impl Iterator<Item = (f64, f64)> {
        self.packets.iter().flat_map(|(pts, samples, _)| {
            (0_u32..).zip(samples).map(move |(n, sample)| {
                (
                    as_f64(*pts) / 90_000.0 + f64::from(n) / 48_000.0,
                    f64::from(*sample),
                )
            })
        })
    }

    /// When the click is, as its centre of energy.
    fn click_seconds(&self) -> f64 {
        let loudest = self
            .samples()
            .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
            .unwrap()
            .0;
        let (mut weighted, mut energy) = (0.0, 0.0);
        for (time, value) in self.samples() {
            if (time - loudest).abs() < 0.003 {
                weighted += time * value * value;
                energy += value * value;
            }
        }
        assert!(energy > 0.01, "no click");
        weighted / energy
    }

    /// The amplitude of a frequency between two times, on the first or the last channel.
    fn amplitude(&self, hertz: f64, from: f64, to: f64, last: bool) -> f64 {
        let (mut re, mut im, mut count) = (0.0, 0.0, 0.0);
        for (pts, first, second) in &self.packets {
            for (n, sample) in (0_u32..).zip(if last { second } else { first }) {
                let time = as_f64(*pts) / 90_000.0 + f64::from(n) / 48_000.0;
                if (from..to).contains(&time) {
                    re += f64::from(*sample) * (time * hertz * TAU).cos();
                    im += f64::from(*sample) * (time * hertz * TAU).sin();
                    count += 1.0;
                }
            }
        }
        2.0 * f64::hypot(re, im) / count
    }

    fn assert_continuous(&self) {
        for pair in self.packets.windows(2) {
            assert_eq!(pair[1].0 - pair[0].0, 1800);
        }
        assert!(self.discontinuities.is_empty());
    }
}

#[expect(clippy::cast_precision_loss, reason = "small in tests")]
fn as_f64(ticks: i64) -> f64 {
    ticks as f64
}

/// A pipeline without its shell: for what decodes in this process.
struct Bench {
    pipeline: Pipeline,
    now: Instant,
    heard: Heard,
    notes: Vec<Note>,
    children: Vec<u64>,
    tags: usize,
}

impl Bench {
    fn new(source: &aac::Configuration) -> Self {
        let now = Clock::system().now();
        let mut bench = Self {
            pipeline: Pipeline::new(now, Config::default(), source.clone()),
            now,
            heard: Heard::default(),
            notes: Vec::new(),
            children: Vec::new(),
            tags: 0,
        };
        bench.drain();
        bench
    }

    fn feed(&mut self, units: &[Arc<AccessUnit>]) {
        for unit in units {
            self.pipeline.handle_unit(self.now, unit);
            self.drain();
            self.now += Duration::from_millis(20);
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.pipeline.poll_output() {
            match output {
                Output::Event(event) => self.heard.take(event),
                Output::Note(note) => self.notes.push(note),
                Output::StartChild { generation, .. } => self.children.push(generation),
                Output::FeedChild(_) => self.tags += 1,
                Output::StopChild => {}
            }
        }
    }
}

/// A transcoder with all its parts, and what it says.
fn spawn(config: &Config, source: &aac::Configuration) -> (Transcoder, Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let output = Box::new(move |event| drop(sender.send(event)));
    (Transcoder::spawn(config, source.clone(), output), events)
}

/// Waits until so many packets were heard or the transcode failed.
fn listen(events: &Receiver<Event>, heard: &mut Heard, packets: usize) {
    while heard.packets.len() < packets && heard.failed.is_none() {
        let event = events
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| panic!("{} of {packets} packets", heard.packets.len()));
        heard.take(event);
    }
}

#[test]
fn the_tone_comes_out_at_its_frequency_and_length() {
    for (rate, channels) in [
        (48_000, 2),
        (44_100, 2),
        (44_100, 1),
        (22_050, 1),
        (8000, 1),
    ] {
        let clip = Clip::tone(rate, channels);
        let mut bench = Bench::new(&clip.source);
        bench.feed(&clip.units(5000));
        let heard = &bench.heard;
        assert_eq!(heard.channels, usize::from(channels));
        heard.assert_continuous();
        assert_eq!(heard.packets[0].0, 450_000 - 585);
        let fed = f64::from(u32::try_from(clip.frames.len()).unwrap()) * 1024.0 / f64::from(rate);
        let got = f64::from(u32::try_from(heard.packets.len()).unwrap()) * 0.02;
        assert!((0.0..0.08).contains(&(fed - got)), "{got} of {fed} s");
        let loud = heard.amplitude(440.0, 5.5, 6.5, false);
        assert!(loud > 0.3, "{rate} Hz, {channels} channels: {loud}");
        assert!(heard.amplitude(880.0, 5.5, 6.5, false) < loud / 50.0);
        assert!(bench.notes.iter().all(|note| *note == Note::Anchored));
    }
}

#[test]
fn a_click_is_heard_when_its_access_unit_says() {
    for (rate, channels) in [
        (48_000, 2),
        (48_000, 1),
        (44_100, 2),
        (44_100, 1),
        (32_000, 2),
    ] {
        let clip = Clip::click(rate, channels, rate / 2 + 77);
        let mut bench = Bench::new(&clip.source);
        bench.feed(&clip.units(10_000));
        let expected = 10.0 + (PRIMING + f64::from(rate / 2 + 77) + 3.5) / f64::from(rate);
        let off = bench.heard.click_seconds() - expected;
        assert!(
            off.abs() < 0.0005,
            "{rate} Hz, {channels} channels: {off} s off"
        );
    }
}

#[test]
fn packets_carry_the_ingest_time_of_their_last_unit() {
    let clip = Clip::tone(48_000, 2);
    let mut bench = Bench::new(&clip.source);
    bench.feed(&clip.units(0));
    for (n, ingest) in (1_u64..).zip(&bench.heard.ingest) {
        assert_eq!(*ingest, 1_000_000 + (n * 960 - 1) / 1024);
    }
}

#[test]
fn sound_after_a_gap_is_heard_at_its_own_time() {
    for rate in [48_000, 44_100] {
        let clip = Clip::click(rate, 2, rate);
        let mut units = clip.units(0);
        // 300 ms are missing before the click.
        let cut = units.len() / 4;
        let gap = usize::try_from(rate).unwrap() * 3 / 10 / 1024;
        units.drain(cut..cut + gap);
        let mut bench = Bench::new(&clip.source);
        bench.feed(&units);
        assert_eq!(bench.heard.discontinuities.len(), 1);
        let expected = (PRIMING + f64::from(rate) + 3.5) / f64::from(rate);
        let off = bench.heard.click_seconds() - expected;
        // The stamp that is anchored at is off by up to half a millisecond.
        assert!(off.abs() < 0.001, "{rate} Hz: {off} s off");
        for pair in bench.heard.packets.windows(2) {
            assert!(pair[1].0 >= pair[0].0 + 1800);
        }
    }
}

#[test]
fn garbage_between_frames_becomes_silence_of_its_length() {
    let clip = Clip::click(44_100, 2, 66_150);
    let mut units = clip.units(0);
    let mut rng = StdRng::seed_from_u64(5);
    for at in [5, 6, 7, 20, 33] {
        let mut garbage = vec![0; 300];
        rng.fill(&mut garbage[..]);
        // An element that is refused for sure: ID_CCE.
        garbage[0] = 0b0100_0000;
        let unit = Arc::make_mut(&mut units[at]);
        unit.payload = garbage.into();
    }
    let mut bench = Bench::new(&clip.source);
    bench.feed(&units);
    bench.heard.assert_continuous();
    let lost = bench.notes.iter().filter(|note| **note == Note::FrameLost);
    assert_eq!(lost.count(), 5);
    let off = bench.heard.click_seconds() - (PRIMING + 66_150.0 + 3.5) / 44_100.0;
    assert!(off.abs() < 0.0005, "{off} s off");
}

#[test]
fn hostile_frames_end_the_decoder_within_its_budget_and_a_configuration_revives_it() {
    let clip = Clip::tone(44_100, 2);
    let good = clip.units(0);
    let mut bench = Bench::new(&clip.source);
    bench.feed(&good[..10]);
    let mut rng = StdRng::seed_from_u64(6);
    let mut fed = 0;
    for n in 10..20_000_u64 {
        // Damaged real frames go deeper than noise.
        let mut frame = good[usize::try_from(n).unwrap() % good.len()]
            .payload
            .to_vec();
        for _ in 0..rng.random_range(1..20) {
            let at = rng.random_range(0..frame.len());
            frame[at] = rng.random();
        }
        frame.truncate(rng.random_range(0..=frame.len()));
        let millis = i64::try_from(n).unwrap() * 1024 * 10 / 441;
        bench.feed(&[unit(n, millis, frame.into())]);
        fed += 1;
        // Refused for sure, so that the budget is used up.
        bench.feed(&[unit(n, millis, Bytes::from_static(&[0b0100_0000; 30]))]);
        if bench.pipeline.ended() {
            break;
        }
    }
    assert!(fed > 1000);
    bench
        .pipeline
        .handle_configuration(bench.now, clip.source.clone());
    bench.drain();
    assert!(!bench.pipeline.ended());
    let before = bench.heard.packets.len();
    bench.feed(&clip.units(1_000_000));
    assert!(bench.heard.packets.len() > before + 80);
}

#[test]
fn a_decoder_that_keeps_failing_waits_longer_and_is_given_up() {
    let clip = Clip::tone(44_100, 2);
    let mut bench = Bench::new(&clip.source);
    bench.feed(&clip.units(0));
    let mut n = 1000;
    while !bench.pipeline.ended() {
        let millis = i64::try_from(n).unwrap() * 1024 * 10 / 441;
        bench.feed(&[unit(n, millis, Bytes::from_static(&[0b0100_0000; 30]))]);
        n += 1;
        assert!(n < 10_000, "never given up");
    }
    let failures = bench
        .notes
        .iter()
        .filter(|note| matches!(note, Note::Failed { .. }))
        .count();
    assert_eq!(failures, 6, "the first and five restarts");
    assert!(bench.heard.failed.is_some());
    // Nothing follows.
    bench.feed(&clip.units(10_000_000)[..10]);
    assert!(bench.heard.failed.is_some());
}

#[test]
fn what_this_decoder_never_understood_goes_to_ffmpeg() {
    let clip = Clip::tone(48_000, 2);
    let mut bench = Bench::new(&clip.source);
    // A program configuration element, which the decoder in this process refuses.
    let units: Vec<_> = (0..)
        .zip([Bytes::from_static(&[0b1010_0000; 30]); 1].iter().cycle())
        .take(60)
        .map(|(n, frame)| unit(n, i64::try_from(n).unwrap() * 21, frame.clone()))
        .collect();
    bench.feed(&units);
    assert_eq!(bench.pipeline.path(), Path::Ffmpeg);
    assert_eq!(bench.children.len(), 1);
    assert!(bench.tags > 0);
}

#[test]
fn a_change_of_rate_and_channels_keeps_the_timeline() {
    let (first, second) = (Clip::tone(44_100, 2), Clip::tone(48_000, 1));
    let mut bench = Bench::new(&first.source);
    let units = first.units(0);
    bench.feed(&units);
    bench
        .pipeline
        .handle_configuration(bench.now, second.source.clone());
    bench.drain();
    let end = i64::try_from(units.len()).unwrap() * 1024 * 10 / 441;
    let mut units = second.units(end);
    for unit in &mut units {
        Arc::make_mut(unit).sequence += 1000;
    }
    bench.feed(&units);
    assert_eq!(bench.heard.channels, 1);
    bench.heard.assert_continuous();
    let after = as_f64(end) / 1000.0 + 0.5;
    assert!(bench.heard.amplitude(440.0, 0.5, 1.5, false) > 0.3);
    assert!(bench.heard.amplitude(440.0, after, after + 1.0, false) > 0.3);
}

#[test]
fn a_publishers_clock_that_runs_fast_moves_the_sound_along() {
    let clip = Clip::click(48_000, 2, 90_000);
    // The frames before the click, many times over, 400 ppm apart from their sample count.
    let millis = |n: u64| i64::try_from(n * 1024 * 10_004 / 480_000).unwrap();
    let quiet = clip.frames[40].clone();
    let mut units = Vec::new();
    for n in 0..3000 {
        units.push(unit(n, millis(n), quiet.clone()));
    }
    for (n, frame) in (3000..).zip(&clip.frames) {
        units.push(unit(n, millis(n), frame.clone()));
    }
    let mut bench = Bench::new(&clip.source);
    bench.feed(&units);
    bench.heard.assert_continuous();
    let position = 3000.0 * 1024.0 + PRIMING + 90_000.0 + 3.5;
    let expected = position * 1.0004 / 48_000.0;
    let off = bench.heard.click_seconds() - expected;
    assert!(off.abs() < 0.005, "{off} s off, uncorrected it were 0.026");
}

#[test]
fn more_channels_go_through_ffmpeg_and_stay_on_time() {
    for rate in [48_000, 44_100] {
        let clip = Clip::click(rate, 6, rate / 2);
        assert_eq!(clip.source.channels, 6);
        let (transcoder, events) = spawn(&Config::default(), &clip.source);
        let units = clip.units(2000);
        for unit in &units {
            transcoder.push(Arc::clone(unit)).unwrap();
        }
        let mut heard = Heard::default();
        listen(&events, &mut heard, 95);
        assert_eq!((heard.failed.as_deref(), heard.channels), (None, 2));
        heard.assert_continuous();
        let expected = 2.0 + (PRIMING + f64::from(rate / 2) + 3.5) / f64::from(rate);
        let off = heard.click_seconds() - expected;
        assert!(off.abs() < 0.001, "{rate} Hz: {off} s off");
    }
}

#[test]
fn he_aac_that_does_not_say_so_is_found_and_heard_in_full() {
    for (adts, asc) in [
        (&include_bytes!("testdata/he-aac-v1.aac")[..], None),
        (include_bytes!("testdata/he-aac-v2.aac"), None),
        // The same, signalled: object types 5 and 29.
        (
            include_bytes!("testdata/he-aac-v1.aac"),
            Some(&[0x2b, 0x11, 0x88, 0x00][..]),
        ),
        (
            include_bytes!("testdata/he-aac-v2.aac"),
            Some(&[0xeb, 0x8a, 0x08, 0x00][..]),
        ),
    ] {
        let mut clip = Clip::from_adts(adts);
        if let Some(asc) = asc {
            clip.source = aac::Configuration::parse(Bytes::from_static(asc)).unwrap();
            assert!(clip.source.sbr);
        } else {
            assert!(!clip.source.sbr);
        }
        let (transcoder, events) = spawn(&Config::default(), &clip.source);
        for unit in clip.units(0) {
            transcoder.push(unit).unwrap();
        }
        let mut heard = Heard::default();
        listen(&events, &mut heard, 85);
        assert_eq!((heard.failed.as_deref(), heard.channels), (None, 2));
        // 1 kHz on the left and 500 Hz on the right, which only parametric stereo tells apart in version 2.
        assert!(heard.amplitude(1000.0, 0.7, 1.6, false) > 0.15);
        assert!(heard.amplitude(500.0, 0.7, 1.6, true) > 0.15);
        assert!(heard.amplitude(500.0, 0.7, 1.6, false) < 0.05);
    }
}

#[test]
fn a_frame_that_ffmpeg_cannot_decode_does_not_shift_the_rest() {
    let clip = Clip::click(48_000, 6, 72_000);
    let mut units = clip.units(0);
    for at in [10, 30, 31] {
        Arc::make_mut(&mut units[at]).payload = Bytes::from_static(&[0xff; 40]);
    }
    let (transcoder, events) = spawn(&Config::default(), &clip.source);
    for unit in units {
        transcoder.push(unit).unwrap();
    }
    let mut heard = Heard::default();
    listen(&events, &mut heard, 90);
    heard.assert_continuous();
    let off = heard.click_seconds() - (PRIMING + 72_000.0 + 3.5) / 48_000.0;
    assert!(off.abs() < 0.001, "{off} s off");
}

#[test]
fn without_ffmpeg_the_reason_is_told() {
    let clip = Clip::tone(48_000, 6);
    let config = Config {
        ffmpeg: "/nonexistent/ffmpeg".into(),
        ..Config::default()
    };
    let (transcoder, events) = spawn(&config, &clip.source);
    let mut heard = Heard::default();
    listen(&events, &mut heard, 1);
    let reason = heard.failed.take().unwrap();
    assert!(
        reason.starts_with("AAC with 6 channels needs ffmpeg: can't run /nonexistent/ffmpeg"),
        "{reason}"
    );
    let unit = &clip.units(0)[0];
    assert_eq!(transcoder.push(Arc::clone(unit)), Err(Undelivered::Closed));
    // The publisher changes to stereo: sound after all.
    let stereo = Clip::tone(48_000, 2);
    transcoder.configure(stereo.source.clone());
    for unit in stereo.units(1000) {
        transcoder.push(unit).unwrap();
    }
    listen(&events, &mut heard, 50);
    assert_eq!(heard.failed, None);
}

#[test]
fn an_ffmpeg_that_dies_again_and_again_is_given_up() {
    let clip = Clip::tone(48_000, 6);
    let config = Config {
        ffmpeg: "false".into(),
        restarts_max: 1,
        ..Config::default()
    };
    let (transcoder, events) = spawn(&config, &clip.source);
    let mut heard = Heard::default();
    let started = Clock::system().now();
    let units = clip.units(0);
    let mut n = 0;
    while heard.failed.is_none() {
        assert!(Clock::system().now() - started < Duration::from_secs(20));
        let _ = transcoder.push(Arc::clone(&units[n % units.len()]));
        n += 1;
        if let Ok(event) = events.recv_timeout(Duration::from_millis(20)) {
            heard.take(event);
        }
    }
    assert!(heard.failed.unwrap().contains("it ended (exit status: 1)"));
}

#[test]
fn a_full_queue_drops_and_says_so() {
    let clip = Clip::tone(48_000, 2);
    let config = Config {
        queue_units: 4,
        ..Config::default()
    };
    // The owner doesn't return from the first event, so nothing leaves the queue.
    let gate = Arc::new(OnceLock::<()>::new());
    let held = Arc::clone(&gate);
    let output = Box::new(move |_| {
        held.wait();
    });
    let transcoder = Transcoder::spawn(&config, clip.source.clone(), output);
    let outcomes: Vec<_> = clip
        .units(0)
        .into_iter()
        .map(|unit| transcoder.push(unit))
        .collect();
    gate.set(()).unwrap();
    assert!(outcomes.contains(&Err(Undelivered::Full)));
    assert!(outcomes.iter().filter(|outcome| outcome.is_ok()).count() >= 4);
}

#[test]
fn what_a_publisher_kept_while_nothing_moved_fits_in_the_queue_within_its_bytes() {
    let clip = Clip::tone(48_000, 2);
    let gate = Arc::new(OnceLock::<()>::new());
    let held = Arc::clone(&gate);
    let output = Box::new(move |_| {
        held.wait();
    });
    let transcoder = Transcoder::spawn(&Config::default(), clip.source.clone(), output);
    // Ten seconds.
    for round in 0..5 {
        for unit in clip.units(round * 2000) {
            transcoder.push(unit).expect("there is room");
        }
    }
    let large = AccessUnit {
        payload: Bytes::from(vec![0; 64 << 10]),
        ..clip.units(0)[0].as_ref().clone()
    };
    let large = Arc::new(large);
    let pushed = (0..100).map(|_| transcoder.push(Arc::clone(&large)));
    let taken = pushed.take_while(Result::is_ok).count();
    gate.set(()).unwrap();
    assert!((8..=16).contains(&taken), "{taken} of 64 KiB");
}

#[test]
fn dropping_a_transcoder_ends_its_ffmpeg() {
    let clip = Clip::tone(48_000, 6);
    let scratch = tempfile::tempdir().unwrap();
    // An ffmpeg that tells its process id.
    let script = scratch.path().join("ffmpeg");
    let pid_file = scratch.path().join("pid");
    let text = format!(
        "#!/bin/sh\necho $$ > {}\nexec ffmpeg \"$@\"\n",
        pid_file.display()
    );
    std::fs::write(&script, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, executable).unwrap();
    let config = Config {
        ffmpeg: script,
        ..Config::default()
    };
    let (transcoder, events) = spawn(&config, &clip.source);
    for unit in clip.units(0) {
        transcoder.push(unit).unwrap();
    }
    listen(&events, &mut Heard::default(), 10);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let alive = || {
        std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    assert!(alive());
    drop(transcoder);
    let started = Clock::system().now();
    while alive() {
        assert!(
            Clock::system().now() - started < Duration::from_secs(10),
            "ffmpeg outlives its transcoder"
        );
        std::thread::yield_now();
    }
}
