//! ffmpeg as the publisher, with pictures and sound that a viewer can check.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Process;

/// What the publisher shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Picture {
    /// ffmpeg's test picture, without B-frames.
    Test,
    /// The same with two B-frames, as OBS sends by default.
    BFrames,
    /// Frames that carry their number as bars: see [`barcode`].
    Counter,
}

/// What it sounds like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sound {
    /// 440 Hz in stereo.
    Tone,
    /// 440 Hz in six channels, which the origin's own decoder does not do.
    Surround,
    /// None at all.
    Silence,
}

/// A running ffmpeg.
pub(crate) struct Publisher {
    process: Process,
    feeder: Option<JoinHandle<()>>,
}

const WIDTH: usize = 640;
const HEIGHT: usize = 360;
const FPS: usize = 30;

impl Publisher {
    /// Publishes to `url` until dropped.
    pub(crate) fn start(url: &str, picture: Picture, sound: Sound) -> Self {
        let mut command = Command::new("ffmpeg");
        command.args(["-hide_banner", "-loglevel", "warning"]);
        let size = format!("{WIDTH}x{HEIGHT}");
        let rate = FPS.to_string();
        if picture == Picture::Counter {
            command.args(["-re", "-f", "rawvideo", "-pix_fmt", "yuv420p"]);
            command.args(["-video_size", &size, "-framerate", &rate, "-i", "pipe:0"]);
            command.stdin(Stdio::piped());
        } else {
            let source = format!("testsrc2=size={size}:rate={rate}");
            command.args(["-nostdin", "-re", "-f", "lavfi", "-i", &source]);
            command.stdin(Stdio::null());
        }
        if sound != Sound::Silence {
            let tone = "sine=frequency=440:sample_rate=48000";
            command.args(["-re", "-f", "lavfi", "-i", tone]);
            let channels = if sound == Sound::Surround { "6" } else { "2" };
            command.args([
                "-c:a", "aac", "-ac", channels, "-ar", "48000", "-b:a", "128k",
            ]);
        }
        command.args([
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-pix_fmt",
            "yuv420p",
        ]);
        if picture == Picture::BFrames {
            command.args(["-profile:v", "main", "-bf", "2", "-b_strategy", "0"]);
        } else {
            command.args(["-tune", "zerolatency", "-bf", "0"]);
        }
        command.args(["-g", "30", "-keyint_min", "30", "-sc_threshold", "0"]);
        command.args(["-b:v", "1000k", "-maxrate", "1500k", "-bufsize", "1500k"]);
        command.args(["-f", "flv", url]);
        let mut process = Process::start("ffmpeg", &mut command);
        let feeder = process.stdin().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut frame = Vec::new();
                for number in 0_u16.. {
                    draw(&mut frame, number);
                    // The pipe breaks when ffmpeg ends.
                    if pipe.write_all(&frame).is_err() {
                        return;
                    }
                }
            })
        });
        Self { process, feeder }
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Its process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.process.kill();
        if let Some(feeder) = self.feeder.take() {
            let _ = feeder.join();
        }
    }
}

/// Makes a clip of [`Picture::Counter`] with so many frames, 30 a second, and sound.
pub(super) fn counter_clip(frames: u16, path: &Path) {
    let seconds = (f64::from(frames) / 30.0).to_string();
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error", "-y"]);
    command.args(["-f", "rawvideo", "-pix_fmt", "yuv420p"]);
    command.args(["-video_size", &format!("{WIDTH}x{HEIGHT}")]);
    command.args(["-framerate", &FPS.to_string(), "-i", "pipe:0"]);
    command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]);
    command.args(["-t", &seconds, "-c:a", "aac", "-ac", "2", "-b:a", "128k"]);
    command.args(["-c:v", "libx264", "-preset", "ultrafast", "-bf", "0"]);
    command.args(["-g", "30", "-keyint_min", "30", "-sc_threshold", "0"]);
    command.args(["-b:v", "1000k", "-maxrate", "1500k", "-bufsize", "1500k"]);
    command.args(["-f", "flv"]).arg(path).stdin(Stdio::piped());
    let mut process = Process::start("ffmpeg", &mut command);
    let mut pipe = process.stdin().expect("a pipe to ffmpeg");
    let mut frame = Vec::new();
    for number in 0..frames {
        draw(&mut frame, number);
        pipe.write_all(&frame).expect("ffmpeg takes the frame");
    }
    drop(pipe);
    let status = process.wait(Duration::from_secs(30));
    assert!(status.success(), "ffmpeg: {status}");
}

/// The 20 bars of frame `number`: its 16 bits from the top, then four check bits.
///
/// The check bits are the sum of the four nibbles plus five, so that neither black nor white is a valid code.
fn barcode(number: u16) -> u32 {
    let nibbles: u16 = (0..4).map(|index| (number >> (4 * index)) & 0xf).sum();
    (u32::from(number) << 4) | u32::from((nibbles + 5) & 0xf)
}

/// One yuv420p frame: bars in the upper third, a slope that moves below, no colour.
fn draw(frame: &mut Vec<u8>, number: u16) {
    const BARS: usize = 20;
    frame.clear();
    let code = barcode(number);
    let bars: Vec<u8> = (0..WIDTH)
        .map(|x| {
            let bit = BARS - 1 - x * BARS / WIDTH;
            if code >> bit & 1 == 1 { 235 } else { 16 }
        })
        .collect();
    let slope: Vec<u8> = (0..WIDTH)
        .map(|x| u8::try_from(32 + (x / 4 + usize::from(number)) % 160).unwrap_or(u8::MAX))
        .collect();
    for y in 0..HEIGHT {
        frame.extend_from_slice(if y < HEIGHT / 3 { &bars } else { &slope });
    }
    frame.resize(WIDTH * HEIGHT * 3 / 2, 128);
}

#[test]
fn barcodes_are_distinct_and_never_one_colour() {
    let codes: std::collections::BTreeSet<u32> = (0..=u16::MAX).map(barcode).collect();
    assert_eq!(codes.len(), 1 << 16);
    assert!(!codes.contains(&0) && !codes.contains(&0xf_ffff));
}
