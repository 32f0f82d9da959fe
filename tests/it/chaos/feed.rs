//! The one publisher.

use headwater_bench::clip::{Clip, Settings};
use headwater_bench::publisher::Publisher;
use tempfile::TempDir;

use super::super::harness::Published;

/// At whichever origin takes it.
pub(super) struct Feed {
    pub(super) clip: std::path::PathBuf,
    _directory: TempDir,
    publisher: Option<Publisher>,
    /// The origin it is at.
    pub(super) origin: usize,
    /// What those before it sent.
    earlier: Published,
}

impl Feed {
    pub(super) fn make() -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clip");
        let clip = directory.path().join("clip.flv");
        Settings::SMALL.make(&clip).expect("ffmpeg makes a clip");
        Self {
            clip,
            _directory: directory,
            publisher: None,
            origin: 0,
            earlier: Published::default(),
        }
    }

    pub(super) fn running(&self) -> bool {
        self.publisher.as_ref().is_some_and(Publisher::running)
    }

    pub(super) fn stop(&mut self) {
        self.earlier = self.published();
        self.publisher = None;
    }

    /// Publishes at the origin that listens at `port`; false if it refuses.
    pub(super) fn start(&mut self, port: u16) -> bool {
        self.stop();
        let clip = Clip::load(&self.clip).expect("the clip");
        self.publisher = Publisher::start(port, "live", "chaos", clip).ok();
        self.publisher.is_some()
    }

    pub(super) fn published(&self) -> Published {
        let mut all = self.earlier.clone();
        let stamps = self
            .publisher
            .as_ref()
            .map_or_else(Vec::new, Publisher::stamps);
        all.begins.extend(stamps.first());
        all.stamps.extend(stamps);
        all
    }
}
