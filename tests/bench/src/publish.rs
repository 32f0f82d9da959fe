//! `headwater-bench publish`: a publisher of several tracks by hand, since common tools can't send them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use headwater_bench::clip::{Clip, LADDER, Settings};
use headwater_bench::programme::{Layout, Programme};
use headwater_bench::publisher::{Options, Publisher, Target};
use headwater_bench::time::pause;

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// rtmp://HOST[:PORT]/APP/KEY
    #[arg(long)]
    url: Target,
    /// H.264 and AAC in FLV, of one length, with keyframes at the same times; the first is the default track and has the sound. None:
    /// 720p, 480p and 240p of 2500, 1000 and 400 kbit/s, made by ffmpeg when they aren't there.
    files: Vec<PathBuf>,
    /// Begin again at the end, on one timeline.
    #[arg(long = "loop")]
    repeat: bool,
    /// Write the time into each picture, for those who measure latency.
    #[arg(long)]
    stamp: bool,
    /// All tracks of a time in one message, instead of one message for each.
    #[arg(long)]
    many_tracks: bool,
    /// For the files that are made.
    #[arg(long, default_value = "target/bench")]
    directory: PathBuf,
}

/// Publishes until the end, or for ever.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let files = match arguments.files.as_slice() {
        [] => ladder(&arguments.directory)?,
        some => some.to_vec(),
    };
    let clips = files.iter().map(|path| Clip::load(path));
    let layout = if arguments.many_tracks {
        Layout::ManyTracks
    } else {
        Layout::OneTrack
    };
    let programme = Programme::new(clips.collect::<Result<_>>()?, layout)?;
    let options = Options {
        stamp: arguments.stamp,
        repeat: arguments.repeat,
    };
    let publisher = Publisher::publish(&arguments.url, programme, options)?;
    eprintln!("publishing {} tracks", files.len());
    while publisher.running() {
        pause(Duration::from_millis(200));
    }
    ensure!(!arguments.repeat, "the server closed the connection");
    Ok(())
}

fn ladder(directory: &Path) -> Result<Vec<PathBuf>> {
    let partial = directory.join("ladder.partial");
    let whole = directory.join("ladder");
    if !whole.exists() {
        eprintln!("making the clips, once: {}", whole.display());
        std::fs::create_dir_all(&partial)?;
        Settings::MEASURED.make_ladder(&LADDER, &partial)?;
        // An interrupted ffmpeg must not leave half a clip under this name.
        std::fs::rename(&partial, &whole)?;
    }
    let files = LADDER.iter().map(|rung| whole.join(rung.file_name()));
    Ok(files.collect())
}
