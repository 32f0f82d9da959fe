//! A stream under virtual time.

use super::*;
use crate::codec::{aac, h264};
use crate::id::Epoch;
use crate::testkit;

fn video_configuration(max_reorder_frames: Option<u8>) -> Configuration {
    Configuration::H264(h264::Configuration {
        avcc: Bytes::new(),
        sps: Vec::new(),
        pps: Vec::new(),
        profile_level_id: [0x42, 0, 0x1f],
        width: 1280,
        height: 720,
        max_reorder_frames,
    })
}

fn audio_configuration() -> Configuration {
    Configuration::Aac(aac::Configuration {
        asc: Bytes::from_static(&[0x12, 0x10]),
        object_type: 2,
        sample_rate_hz: 44_100,
        channels: 2,
        sbr: false,
        ps: false,
        frame_samples: 1024,
    })
}

const OPUS: opus::Configuration = opus::Configuration {
    channels: 2,
    pre_skip: 312,
};

struct Scene {
    stream: Stream,
    start: Instant,
}

impl Scene {
    fn new() -> Self {
        let limits = Limits {
            bytes: 1 << 20,
            span: Duration::from_secs(10),
        };
        let config = Config {
            gop: limits,
            resume: limits,
        };
        let name = "live/demo".parse().expect("a name");
        Self {
            stream: Stream::new(name, config),
            start: testkit::start(),
        }
    }

    fn begin(epoch: u64) -> Self {
        let mut scene = Self::new();
        scene.publisher(epoch);
        scene
    }

    fn publisher(&mut self, epoch: u64) {
        self.stream.handle_begin(Epoch(epoch));
        self.stream.handle_configuration(video_configuration(None));
        self.stream.handle_configuration(audio_configuration());
    }

    fn at(&self, now_ms: u64) -> Instant {
        self.start + Duration::from_millis(now_ms)
    }

    fn unit(
        &mut self,
        now_ms: u64,
        kind: MediaKind,
        dts_ms: i64,
        keyframe: bool,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        let unit = IngestUnit {
            kind,
            dts: MediaTime::from_millis(dts_ms),
            pts: MediaTime::from_millis(dts_ms),
            keyframe,
            discardable: false,
            payload: Bytes::from_static(&[0; 100]),
            ingest_time: WallTime::from_unix_micros(now_ms * 1000),
        };
        self.stream.handle_unit(self.at(now_ms), unit)
    }

    /// `frames` pictures at 25 per second from `from_ms`, a keyframe every 10.
    fn pictures(&mut self, from_ms: u64, dts_ms: i64, frames: u64) {
        for frame in 0..frames {
            let passed = frame * 40;
            let dts = dts_ms + i64::try_from(passed).expect("small");
            self.unit(from_ms + passed, MediaKind::Video, dts, frame % 10 == 0)
                .expect("taken");
        }
    }

    fn position(track: TrackId, epoch: u64, sequence: u64) -> Position {
        Position {
            track,
            epoch: Epoch(epoch),
            sequence,
        }
    }
}

fn sequences(units: &[Arc<AccessUnit>], track: TrackId) -> Vec<u64> {
    let units = units.iter().filter(|unit| unit.track == track);
    units.map(|unit| unit.sequence).collect()
}

#[test]
fn a_stream_begins_with_a_keyframe_and_says_why_not() {
    let mut scene = Scene::new();
    let video = MediaKind::Video;
    assert_eq!(scene.unit(0, video, 0, true), Err(Dropped::NotPublishing));
    scene.stream.handle_begin(Epoch(1));
    assert_eq!(scene.unit(0, video, 0, true), Err(Dropped::NoConfiguration));
    scene.stream.handle_configuration(video_configuration(None));
    assert_eq!(
        scene.unit(0, video, 0, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let first = scene.unit(40, video, 40, true).expect("taken");
    assert_eq!(
        (first.sequence, first.dts, first.discontinuity),
        (0, MediaTime::ZERO, false)
    );
    scene.stream.handle_loss(video);
    assert_eq!(
        scene.unit(80, video, 80, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let next = scene.unit(120, video, 120, true).expect("taken");
    assert_eq!((next.sequence, next.discontinuity), (1, true));
}

#[test]
fn who_attaches_gets_the_newest_gop_and_who_returns_gets_what_is_missing() {
    let mut scene = Scene::begin(1);
    scene.pictures(0, 0, 25);
    scene
        .unit(1000, MediaKind::Audio, 960, false)
        .expect("taken");
    let now = scene.at(1000);

    let fresh = scene.stream.attach(now, &[]);
    assert!(!fresh.resumed);
    assert_eq!(
        sequences(&fresh.backlog, TrackId::SOURCE_VIDEO),
        [20, 21, 22, 23, 24]
    );
    assert_eq!(sequences(&fresh.backlog, TrackId::SOURCE_AUDIO), [0]);

    let video = TrackId::SOURCE_VIDEO;
    let back = scene.stream.attach(now, &[Scene::position(video, 1, 7)]);
    assert!(back.resumed);
    assert_eq!(sequences(&back.backlog, video), (8..25).collect::<Vec<_>>());
    assert_eq!(
        sequences(&back.backlog, TrackId::SOURCE_AUDIO),
        [0],
        "it had none"
    );
    let all = scene.stream.attach(now, &[Scene::position(video, 1, 24)]);
    assert!(all.resumed);
    assert!(sequences(&all.backlog, video).is_empty());

    for (track, epoch, sequence) in [(0, 2, 7), (0, 1, 25), (0, 1, u64::MAX), (9, 1, 0)] {
        let have = [Scene::position(TrackId(track), epoch, sequence)];
        let attachment = scene.stream.attach(now, &have);
        assert!(!attachment.resumed, "{have:?}");
        assert_eq!(sequences(&attachment.backlog, video).first(), Some(&20_u64));
    }
    // What is older than the window is not resumed.
    let later = scene.at(11_500);
    scene.stream.handle_timeout(later);
    assert!(
        !scene
            .stream
            .attach(later, &[Scene::position(video, 1, 7)])
            .resumed
    );
}

#[test]
fn a_returning_publisher_goes_on_in_a_new_epoch() {
    let mut scene = Scene::begin(1);
    scene.pictures(0, 5000, 25);
    scene.stream.handle_leave();
    assert_eq!(
        scene.unit(1000, MediaKind::Video, 6000, true),
        Err(Dropped::NotPublishing)
    );
    assert!(
        !scene.stream.attach(scene.at(2000), &[]).backlog.is_empty(),
        "the last pictures"
    );

    scene.publisher(2);
    let unit = scene
        .unit(10_960, MediaKind::Video, 123, true)
        .expect("taken");
    assert_eq!(
        (unit.epoch, unit.sequence, unit.configuration_id),
        (Epoch(2), 0, 0)
    );
    assert_eq!(unit.dts.as_millis(), 10_960);
    assert!(unit.discontinuity);
    let next = scene
        .unit(11_000, MediaKind::Video, 163, false)
        .expect("taken");
    assert_eq!((next.dts.as_millis(), next.discontinuity), (11_000, false));
}

#[test]
fn another_sequence_header_is_another_configuration() {
    let mut scene = Scene::begin(1);
    scene.pictures(0, 0, 5);
    assert!(!scene.stream.handle_configuration(video_configuration(None)));
    assert!(
        scene
            .stream
            .handle_configuration(video_configuration(Some(0)))
    );
    assert!(scene.stream.poll_changed());
    assert_eq!(
        scene.unit(200, MediaKind::Video, 200, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let unit = scene.unit(240, MediaKind::Video, 240, true).expect("taken");
    assert_eq!((unit.configuration_id, unit.sequence), (1, 5));
    let backlog = scene.stream.attach(scene.at(240), &[]).backlog;
    assert_eq!(sequences(&backlog, TrackId::SOURCE_VIDEO), [5]);
}

#[test]
fn tracks_that_a_returned_publisher_has_no_more_go() {
    let mut scene = Scene::begin(1);
    scene.pictures(0, 0, 5);
    scene.stream.handle_opus_configuration(OPUS);
    scene.stream.handle_leave();
    scene.stream.handle_begin(Epoch(2));
    scene.stream.handle_configuration(video_configuration(None));
    scene.pictures(1000, 0, 80);
    let now = scene.at(4200);
    assert_eq!(scene.stream.info(now).tracks.len(), 3);
    scene.stream.handle_timeout(now);
    let info = scene.stream.info(now);
    assert_eq!(info.tracks.len(), 1);
    assert!(scene.stream.poll_changed());
}

#[test]
fn opus_that_comes_back_goes_on_with_its_sequence() {
    let mut scene = Scene::begin(1);
    let payload = || Bytes::from_static(&[1]);
    let opus = |scene: &mut Scene, ms: i64| {
        let now = scene.at(0);
        let pts = MediaTime::from_millis(ms);
        scene
            .stream
            .handle_opus(now, pts, payload(), WallTime::default(), false)
    };
    assert_eq!(opus(&mut scene, 0), Err(Dropped::NoConfiguration));
    scene.stream.handle_opus_configuration(OPUS);
    assert_eq!(opus(&mut scene, -6).expect("taken").sequence, 0);
    scene
        .stream
        .handle_audio_problem("the decoder failed".into());
    let info = scene.stream.info(scene.at(0));
    assert_eq!(info.audio_problem.as_deref(), Some("the decoder failed"));
    assert_eq!(info.track(TrackId::OPUS), None);
    assert_eq!(opus(&mut scene, 20), Err(Dropped::NoConfiguration));
    assert!(scene.stream.handle_opus_configuration(OPUS));
    assert_eq!(scene.stream.info(scene.at(0)).audio_problem, None);
    let unit = opus(&mut scene, 20).expect("taken");
    assert_eq!((unit.sequence, unit.discontinuity), (1, true));
}

#[test]
fn a_stream_is_settled_once_both_kinds_are_there_or_had_their_time() {
    let mut scene = Scene::begin(1);
    let now = scene.at(0);
    assert!(scene.stream.info(now).settled);

    let mut scene = Scene::new();
    scene.stream.handle_begin(Epoch(1));
    scene.stream.handle_configuration(audio_configuration());
    scene.unit(0, MediaKind::Audio, 0, true).expect("taken");
    for (now_ms, settled) in [(0, false), (499, false), (500, true)] {
        let now = scene.at(now_ms);
        assert_eq!(scene.stream.info(now).settled, settled, "at {now_ms} ms");
    }
}
