//! A publisher that writes the time into each picture, where the probe finds it.

use headwater_bench::clip::{Clip, Settings};
use headwater_bench::publisher::Publisher;

/// A running publisher; ends when dropped.
pub(crate) struct Stamped {
    _publisher: Publisher,
}

impl Stamped {
    /// Publishes `app`/`key` at the RTMP port of this machine, over and over.
    pub(crate) fn start(port: u16, app: &str, key: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clip");
        let clip = Clip::make(&Settings::SMALL, directory.path()).expect("ffmpeg makes a clip");
        Self {
            _publisher: Publisher::start(port, app, key, clip).expect("the origin accepts"),
        }
    }
}
