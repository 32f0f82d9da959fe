//! A clip for publishers that repeat it: made by ffmpeg, read from FLV. No media lies in the repository.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use headwater_media::flv::TagKind;
use headwater_media::flv::reader::{Reader, Tag};

/// Longest tag of a clip (bytes). A keyframe of 720p at 1.5 Mbit/s has 40 kB.
const TAG_BYTES_MAX: usize = 4 << 20;

/// How a clip looks and sounds: H.264 without B-frames and AAC, in FLV.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its length in seconds. Pictures and sound end together where this is a multiple of 8: 48,000 and 1024 meet there.
    pub seconds: u32,
    /// Picture size.
    pub size: (u32, u32),
    /// Pictures from one keyframe to the next.
    pub gop: u32,
    /// Video bitrate in kbit/s, constant over a second.
    pub video_kbps: u32,
    /// x264's preset.
    pub preset: &'static str,
    /// Noise on the picture, 0 to 100: what makes pictures as large as a camera's, not as a drawing's.
    pub noise: u32,
}

/// A clip's picture in one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rung {
    /// Picture size.
    pub size: (u32, u32),
    /// Video bitrate in kbit/s.
    pub video_kbps: u32,
}

impl Rung {
    /// What its file is called.
    pub fn file_name(&self) -> String {
        format!("clip-{}p-{}k.flv", self.size.1, self.video_kbps)
    }
}

/// What adaptive viewing is measured with: 720p, 480p and 240p at 2500, 1000 and 400 kbit/s.
pub const LADDER: [Rung; 3] = [
    Rung {
        size: (1280, 720),
        video_kbps: 2500,
    },
    Rung {
        size: (854, 480),
        video_kbps: 1000,
    },
    Rung {
        size: (426, 240),
        video_kbps: 400,
    },
];

/// Pictures per second of every clip that is made here.
pub const FRAME_RATE: u32 = 30;

impl Settings {
    /// A small picture that is quickly made: for tests of what arrives.
    pub const SMALL: Self = Self {
        seconds: 4,
        size: (640, 360),
        gop: 30,
        video_kbps: 1000,
        preset: "ultrafast",
        noise: 0,
    };

    /// What is measured: 720p30 at 1.5 Mbit/s with 2 s between keyframes, as a careful publisher sends it.
    pub const MEASURED: Self = Self {
        seconds: 16,
        size: (1280, 720),
        gop: 60,
        video_kbps: 1500,
        preset: "veryfast",
        noise: 12,
    };

    /// Makes it.
    ///
    /// # Errors
    /// If ffmpeg isn't there or can't.
    pub fn make(&self, path: &Path) -> Result<()> {
        let top = Rung {
            size: self.size,
            video_kbps: self.video_kbps,
        };
        self.encode(&[(top, path)])
    }

    /// Makes it in several sizes: files of one picture with keyframes at the same times, the first with sound. The largest
    /// comes first.
    ///
    /// # Errors
    /// If ffmpeg isn't there or can't.
    pub fn make_ladder(&self, rungs: &[Rung], directory: &Path) -> Result<Vec<PathBuf>> {
        let paths: Vec<PathBuf> = rungs
            .iter()
            .map(|rung| directory.join(rung.file_name()))
            .collect();
        let outputs: Vec<(Rung, &Path)> = rungs
            .iter()
            .zip(&paths)
            .map(|(rung, path)| (*rung, path.as_path()))
            .collect();
        self.encode(&outputs)?;
        Ok(paths)
    }

    fn encode(&self, outputs: &[(Rung, &Path)]) -> Result<()> {
        let (width, height) = self.size;
        let picture = format!("testsrc2=size={width}x{height}:rate={FRAME_RATE}");
        let mut command = Command::new("ffmpeg");
        command.args(["-hide_banner", "-nostdin", "-loglevel", "error", "-y"]);
        command.args(["-f", "lavfi", "-i", &picture]);
        command.args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"]);
        for (index, (rung, path)) in outputs.iter().enumerate() {
            self.output(&mut command, rung, index == 0);
            command.arg(path);
        }
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("ffmpeg can't be started; `make deps` installs it")?;
        if !output.status.success() {
            bail!(
                "ffmpeg made no clip: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// The options of one output file.
    fn output(&self, command: &mut Command, rung: &Rung, sound: bool) {
        let (width, height) = rung.size;
        let mut filter = format!("scale={width}:{height},format=yuv420p");
        if self.noise > 0 {
            filter = format!("noise=alls={}:allf=t,{filter}", self.noise);
        }
        let seconds = self.seconds.to_string();
        let gop = self.gop.to_string();
        let rate = format!("{}k", rung.video_kbps);
        command.args(["-map", "0:v", "-t", &seconds, "-vf", &filter]);
        command.args([
            "-c:v",
            "libx264",
            "-preset",
            self.preset,
            "-profile:v",
            "main",
        ]);
        command.args([
            "-bf",
            "0",
            "-g",
            &gop,
            "-keyint_min",
            &gop,
            "-sc_threshold",
            "0",
        ]);
        command.args(["-b:v", &rate, "-maxrate", &rate, "-bufsize", &rate]);
        if sound {
            command.args(["-map", "1:a", "-c:a", "aac"]);
            command.args(["-ar", "48000", "-ac", "2", "-b:a", "128k"]);
        }
        command.args(["-f", "flv"]);
    }
}

/// A clip in memory.
#[derive(Debug)]
pub struct Clip {
    /// Its audio and video tags in order, configurations included.
    pub(crate) tags: Vec<Tag>,
    /// What a round adds to the time, in ms.
    pub(crate) millis: u32,
}

impl Clip {
    /// Reads an FLV file.
    ///
    /// # Errors
    /// If it isn't one, or has no pictures.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let mut reader = Reader::new(TAG_BYTES_MAX);
        reader.handle_input(&bytes);
        let mut tags = Vec::new();
        while let Some(tag) = reader.poll_tag().context("the clip is no FLV")? {
            if tag.kind != TagKind::Script {
                tags.push(tag);
            }
        }
        let times = tags.iter().filter(|tag| is_picture(tag));
        let times: Vec<u64> = times.map(|tag| u64::from(tag.millis)).collect();
        let &[first, .., last] = &times[..] else {
            bail!("the clip has no H.264 pictures");
        };
        ensure!(last > first, "the clip's times don't rise");
        // FLV rounds each time to a millisecond; over all pictures that is little enough not to drift from the frame rate.
        let steps = u64::try_from(times.len()).unwrap_or(u64::MAX) - 1;
        let millis = ((last - first) * (steps + 1) + steps / 2) / steps;
        Ok(Self {
            tags,
            millis: u32::try_from(millis).context("too long")?,
        })
    }

    /// Makes a clip in a file that goes away again, and reads it.
    ///
    /// # Errors
    /// If ffmpeg can't.
    pub fn make(settings: &Settings, directory: &Path) -> Result<Self> {
        let path = directory.join(format!("clip-{}.flv", std::process::id()));
        let clip = settings.make(&path).and_then(|()| Self::load(&path));
        let _ = std::fs::remove_file(&path);
        clip
    }

    /// Makes a clip in several sizes in files that go away again, and reads them.
    ///
    /// # Errors
    /// If ffmpeg can't.
    pub fn make_ladder(settings: &Settings, rungs: &[Rung], directory: &Path) -> Result<Vec<Self>> {
        let paths = settings.make_ladder(rungs, directory)?;
        let clips = paths.iter().map(|path| Self::load(path)).collect();
        for path in &paths {
            let _ = std::fs::remove_file(path);
        }
        clips
    }

    /// Reads a clip that was made before, or makes it: encoding takes seconds.
    ///
    /// # Errors
    /// If ffmpeg can't.
    pub fn make_once(settings: &Settings, path: &Path) -> Result<Self> {
        if !path.exists() {
            // An interrupted ffmpeg must not leave half a clip under this name.
            let partial = path.with_extension("partial");
            settings.make(&partial)?;
            std::fs::rename(&partial, path)?;
        }
        Self::load(path)
    }
}

/// Legacy FLV: codec 7 (AVC), packet type 1 (NAL units).
pub(crate) fn is_picture(tag: &Tag) -> bool {
    tag.kind == TagKind::Video
        && matches!(tag.body.first_chunk::<5>(), Some([first, 1, ..]) if first & 0xf == 7)
}
