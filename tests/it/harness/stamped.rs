//! A publisher that writes the time into each picture, where the probe finds it.

use headwater_bench::clip::{Clip, Rung, Settings};
use headwater_bench::programme::{Layout, Programme};
use headwater_bench::publisher::{Options, Publisher, Sent, Target};

use super::publisher::counter_clip;

use super::Published;

/// Three renditions that are quickly made.
const LADDER: [Rung; 3] = [
    Rung {
        size: (640, 360),
        video_kbps: 1000,
    },
    Rung {
        size: (426, 240),
        video_kbps: 500,
    },
    Rung {
        size: (256, 144),
        video_kbps: 200,
    },
];

/// A running publisher; ends when dropped.
pub(crate) struct Stamped {
    publisher: Publisher,
}

/// Pictures of [`Stamped::counting`], after which it counts from 0 again: eight seconds.
pub(crate) const COUNTED: u16 = 240;

impl Stamped {
    /// Publishes `app`/`key` at the RTMP port of this machine, over and over.
    pub(crate) fn start(port: u16, app: &str, key: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clip");
        let clip = Clip::make(&Settings::SMALL, directory.path()).expect("ffmpeg makes a clip");
        Self {
            publisher: Publisher::start(port, app, key, clip).expect("the origin accepts"),
        }
    }

    /// The same with pictures that show their number, up to [`COUNTED`].
    pub(crate) fn counting(port: u16, app: &str, key: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clip");
        let path = directory.path().join("counter.flv");
        counter_clip(COUNTED, &path);
        let clip = Clip::load(&path).expect("a clip");
        Self {
            publisher: Publisher::start(port, app, key, clip).expect("the origin accepts"),
        }
    }

    /// When it sent which picture.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.publisher.sent()
    }

    /// All pictures so far.
    pub(crate) fn published(&self) -> Published {
        let stamps = self.publisher.stamps();
        let begins = stamps.first().copied().into_iter().collect();
        Published { stamps, begins }
    }

    /// The same with two tracks more, of 240 and 144 lines, by Enhanced RTMP.
    pub(crate) fn ladder(port: u16, app: &str, key: &str, layout: Layout) -> Self {
        let directory = tempfile::tempdir().expect("a directory for the clips");
        let clips = Clip::make_ladder(&Settings::SMALL, &LADDER, directory.path());
        let programme = Programme::new(clips.expect("ffmpeg makes clips"), layout);
        let target = Target {
            host: format!("127.0.0.1:{port}"),
            app: app.to_owned(),
            key: key.to_owned(),
        };
        let options = Options {
            stamp: true,
            repeat: true,
        };
        let programme = programme.expect("they go together");
        let publisher = Publisher::publish(&target, programme, options);
        Self {
            publisher: publisher.expect("the origin accepts"),
        }
    }
}
