//! A stream under virtual time.

use super::*;
use crate::codec::{aac, h264};
use crate::id::{ContributorId, Epoch};
use crate::testkit;
use crate::unit::RenditionUnit;

fn video_configuration(max_reorder_frames: Option<u8>) -> Configuration {
    Configuration::H264(h264::Configuration {
        max_reorder_frames,
        ..picture(720)
    })
}

fn picture(height: u16) -> h264::Configuration {
    h264::Configuration {
        avcc: Bytes::new(),
        sps: Vec::new(),
        pps: Vec::new(),
        profile_level_id: [0x42, 0, 0x1f],
        width: height / 9 * 16,
        height,
        max_reorder_frames: None,
    }
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
        self.configure(video_configuration(None));
        self.configure(audio_configuration());
    }

    fn configure(&mut self, configuration: Configuration) -> bool {
        self.stream
            .handle_configuration(SourceTrack::DEFAULT, configuration)
            .expect("taken")
    }

    /// The publisher's further video track is coded like this.
    fn further(&mut self, track: u8, height: u16) -> Result<bool, TooManyRenditions> {
        let configuration = Configuration::H264(picture(height));
        self.stream
            .handle_configuration(SourceTrack(track), configuration)
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
        self.unit_of(now_ms, kind, 0, dts_ms, keyframe)
    }

    fn unit_of(
        &mut self,
        now_ms: u64,
        kind: MediaKind,
        track: u8,
        dts_ms: i64,
        keyframe: bool,
    ) -> Result<Arc<AccessUnit>, Dropped> {
        let unit = IngestUnit {
            kind,
            track: SourceTrack(track),
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

    /// A picture of a rendition that the origin makes.
    fn made(&mut self, id: TrackId, ms: u64, keyframe: bool) -> Result<Arc<AccessUnit>, Dropped> {
        let dts = MediaTime::from_millis(i64::try_from(ms).expect("small"));
        let unit = RenditionUnit {
            dts,
            pts: dts,
            keyframe,
            discardable: false,
            payload: Bytes::from_static(&[0; 50]),
            ingest_time: WallTime::from_unix_micros(ms * 1000),
        };
        self.stream.handle_rendition_unit(self.at(ms), id, unit)
    }

    /// Number and name of the video tracks that are listed.
    fn renditions(&mut self, now_ms: u64) -> Vec<(u16, String)> {
        let info = self.stream.info(self.at(now_ms));
        let video = info
            .tracks
            .iter()
            .filter(|track| track.configuration.kind() == MediaKind::Video);
        video
            .map(|track| (track.id.0, track.rendition.to_string()))
            .collect()
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
    scene.configure(video_configuration(None));
    assert_eq!(
        scene.unit(0, video, 0, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let first = scene.unit(40, video, 40, true).expect("taken");
    assert_eq!(
        (first.sequence, first.dts, first.discontinuity),
        (0, MediaTime::ZERO, false)
    );
    scene.stream.handle_loss(video, SourceTrack::DEFAULT);
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
    assert!(!fresh.resumed());
    assert_eq!(
        sequences(&fresh.backlog, TrackId::SOURCE_VIDEO),
        [20, 21, 22, 23, 24]
    );
    assert_eq!(sequences(&fresh.backlog, TrackId::SOURCE_AUDIO), [0]);

    let video = TrackId::SOURCE_VIDEO;
    let back = scene.stream.attach(now, &[Scene::position(video, 1, 7)]);
    assert!(back.resumed());
    assert_eq!(sequences(&back.backlog, video), (8..25).collect::<Vec<_>>());
    assert_eq!(
        sequences(&back.backlog, TrackId::SOURCE_AUDIO),
        [0],
        "it had none"
    );
    let all = scene.stream.attach(now, &[Scene::position(video, 1, 24)]);
    assert!(all.resumed());
    assert!(sequences(&all.backlog, video).is_empty());

    for (track, epoch, sequence) in [(0, 2, 7), (0, 1, 25), (0, 1, u64::MAX), (9, 1, 0)] {
        let have = [Scene::position(TrackId(track), epoch, sequence)];
        let attachment = scene.stream.attach(now, &have);
        assert!(!attachment.resumed(), "{have:?}");
        assert_eq!(sequences(&attachment.backlog, video).first(), Some(&20_u64));
    }
    // What is older than the window is not resumed.
    let later = scene.at(11_500);
    scene.stream.handle_timeout(later);
    assert!(
        !scene
            .stream
            .attach(later, &[Scene::position(video, 1, 7)])
            .resumed()
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
    assert!(!scene.configure(video_configuration(None)));
    assert!(scene.configure(video_configuration(Some(0))));
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
    scene.configure(video_configuration(None));
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
    scene.configure(audio_configuration());
    scene.unit(0, MediaKind::Audio, 0, true).expect("taken");
    for (now_ms, settled) in [(0, false), (499, false), (500, true)] {
        let now = scene.at(now_ms);
        assert_eq!(scene.stream.info(now).settled, settled, "at {now_ms} ms");
    }
}

/// A ladder of the publisher (720, 480) and of the origin (240), 25 pictures per second, keyframes every 10 of them.
fn ladder() -> (Scene, TrackId) {
    let mut scene = Scene::begin(1);
    scene.further(7, 480).expect("taken");
    let made = scene
        .stream
        .handle_rendition_configuration("240p", picture(240));
    let made = made.expect("taken");
    assert_eq!(
        scene.renditions(0),
        [(0, "source".to_owned())],
        "no keyframe yet"
    );
    for ms in (0..1000).step_by(40) {
        let keyframe = ms % 400 == 0;
        let dts = i64::try_from(ms).expect("small");
        for track in [0, 7] {
            let unit = scene.unit_of(ms, MediaKind::Video, track, 7_000 + dts, keyframe);
            assert_eq!(unit.expect("taken").dts.as_millis(), dts, "track {track}");
        }
        scene.made(made, ms, ms % 200 == 0).expect("taken");
    }
    (scene, made)
}

fn named(expected: &[(u16, &str)]) -> Vec<(u16, String)> {
    let named = expected.iter().map(|&(id, name)| (id, name.to_owned()));
    named.collect()
}

#[test]
fn renditions_of_publisher_and_origin_are_tracks_of_one_timeline() {
    let (mut scene, made) = ladder();
    assert_eq!(made, TrackId(17));
    let all = [(0, "source"), (16, "480p"), (17, "240p")];
    assert_eq!(scene.renditions(1000), named(&all));
    let info = scene.stream.info(scene.at(1000));
    let rate = |id| info.track(TrackId(id)).expect("listed").bitrate.0;
    assert_eq!((rate(0), rate(16), rate(17)), (20_000, 20_000, 10_000));

    let fresh = scene.stream.attach(scene.at(1000), &[]).backlog;
    assert_eq!(sequences(&fresh, TrackId(16)), [20, 21, 22, 23, 24]);
    assert_eq!(sequences(&fresh, made), [20, 21, 22, 23, 24]);
    scene.made(made, 1000, true).expect("taken");
    assert_eq!(sequences(&scene.stream.backlog(&[made]), made), [25]);
    let of_480p = scene.stream.backlog(&[TrackId(16)]);
    assert_eq!(sequences(&of_480p, TrackId(16)), [20, 21, 22, 23, 24]);
    assert!(of_480p.iter().all(|unit| unit.track == TrackId(16)));
}

#[test]
fn a_subscriber_resumes_each_rendition_where_it_was() {
    let (mut scene, made) = ladder();
    let now = scene.at(1000);
    let have = [
        Scene::position(TrackId(16), 1, 3),
        Scene::position(made, 1, 24),
    ];
    let back = scene.stream.attach(now, &have);
    assert!(back.resumed());
    assert_eq!(
        sequences(&back.backlog, TrackId(16)),
        (4..25).collect::<Vec<_>>()
    );
    assert!(sequences(&back.backlog, made).is_empty());
    assert_eq!(sequences(&back.backlog, TrackId(0)).first(), Some(&20));

    // What is no longer made needs no resuming, and nobody can resume with it alone.
    scene.stream.remove_rendition(made);
    assert!(scene.stream.attach(now, &have).resumed());
    assert!(!scene.stream.attach(now, &have[1..]).resumed());
}

#[test]
fn a_rendition_that_goes_leaves_the_list_and_keeps_its_number() {
    let (mut scene, made) = ladder();
    scene.stream.poll_changed();
    scene.stream.remove_rendition(made);
    assert!(scene.stream.poll_changed());
    assert_eq!(
        scene.renditions(1000),
        named(&[(0, "source"), (16, "480p")])
    );
    assert!(scene.stream.backlog(&[made]).is_empty());
    assert_eq!(scene.made(made, 1000, true), Err(Dropped::NoConfiguration));
    scene.stream.handle_end(SourceTrack(7));
    scene.stream.handle_end(SourceTrack::DEFAULT);
    assert_eq!(scene.renditions(1000), named(&[(0, "source")]));

    let again = scene
        .stream
        .handle_rendition_configuration("240p", picture(240));
    assert_eq!(again, Ok(made));
    assert_eq!(
        scene.made(made, 1040, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let unit = scene.made(made, 1080, true).expect("taken");
    assert_eq!((unit.sequence, unit.discontinuity), (25, true));
    scene.further(3, 480).expect("taken");
    let unit = scene.unit_of(1080, MediaKind::Video, 3, 8_080, true);
    assert_eq!(unit.expect("taken").track, TrackId(16));
}

#[test]
fn losses_and_configurations_of_one_rendition_leave_the_others_alone() {
    let (mut scene, made) = ladder();
    let video = MediaKind::Video;
    scene.stream.handle_loss(video, SourceTrack(7));
    let lost = scene.unit_of(1000, video, 7, 8_000, false);
    assert_eq!(lost, Err(Dropped::AwaitingKeyframe));
    assert!(scene.unit_of(1000, video, 0, 8_000, false).is_ok());
    scene.stream.handle_rendition_loss(made);
    assert_eq!(
        scene.made(made, 1000, false),
        Err(Dropped::AwaitingKeyframe)
    );

    let other = h264::Configuration {
        max_reorder_frames: Some(0),
        ..picture(240)
    };
    let id = scene.stream.handle_rendition_configuration("240p", other);
    assert_eq!(id, Ok(made));
    assert!(scene.stream.backlog(&[made]).is_empty());
    assert_eq!(scene.stream.backlog(&[TrackId(16)]).len(), 5);
    let unit = scene.made(made, 1040, true).expect("taken");
    assert_eq!((unit.configuration_id, unit.sequence), (1, 25));

    // The publisher's default video changes: its own GOP goes, and with it no other.
    assert!(scene.configure(video_configuration(Some(0))));
    assert!(scene.stream.backlog(&[TrackId::SOURCE_VIDEO]).is_empty());
    assert_eq!(scene.stream.backlog(&[made]).len(), 1);
}

#[test]
fn pictures_of_another_height_are_another_rendition_and_equal_names_are_numbered() {
    let (mut scene, made) = ladder();
    scene.further(8, 480).expect("taken");
    scene.further(9, 240).expect("taken");
    let twin = scene
        .stream
        .handle_rendition_configuration("480p", picture(480));
    let twin = twin.expect("taken");
    assert_eq!(
        scene
            .stream
            .handle_rendition_configuration("480p", picture(480)),
        Ok(twin)
    );
    for track in [8, 9] {
        let unit = scene.unit_of(1000, MediaKind::Video, track, 8_000, true);
        unit.expect("taken");
    }
    scene.made(twin, 1000, true).expect("taken");
    let names = [
        (0, "source"),
        (16, "480p"),
        (17, "240p"),
        (18, "480p2"),
        (19, "240p2"),
        (20, "480p3"),
    ];
    assert_eq!(scene.renditions(1000), named(&names));

    assert_eq!(scene.further(7, 360), Ok(true));
    let unit = scene.unit_of(1040, MediaKind::Video, 7, 8_040, true);
    assert_eq!(unit.expect("taken").track, TrackId(21));
    assert_eq!(scene.renditions(1000)[1], (17, "240p".to_owned()));
    assert_eq!(scene.further(7, 480), Ok(true));
    let unit = scene.unit_of(1080, MediaKind::Video, 7, 8_080, true);
    assert_eq!(unit.expect("taken").track, TrackId(16));
    assert!(scene.made(made, 1040, false).is_ok());
}

#[test]
fn there_is_an_end_to_renditions() {
    let mut scene = Scene::begin(1);
    for track in 1..=16 {
        scene.further(track, 100 + u16::from(track)).expect("taken");
    }
    assert_eq!(scene.further(17, 480), Err(TooManyRenditions));
    let made = scene
        .stream
        .handle_rendition_configuration("x", picture(480));
    assert_eq!(made, Err(TooManyRenditions));
    // Names that went are forgotten in the end, and their numbers are not given again.
    for height in 200..400 {
        assert_eq!(scene.further(1, height), Ok(true));
    }
    let unit = scene.unit_of(0, MediaKind::Video, 1, 0, true);
    assert_eq!(unit.expect("taken").track, TrackId(16 + 15 + 200));
    assert!(scene.stream.tracks.iter().count() <= 48);
}

#[test]
fn a_returning_publisher_finds_its_renditions_and_those_it_has_no_more_go() {
    let (mut scene, made) = ladder();
    scene.stream.handle_leave();
    assert_eq!(scene.renditions(2000).len(), 3, "held");
    scene.publisher(2);
    assert_eq!(scene.made(made, 2000, true), Err(Dropped::NoConfiguration));
    // Its numbers differ from those before.
    scene.further(1, 480).expect("taken");
    assert_eq!(
        scene
            .stream
            .handle_rendition_configuration("240p", picture(240)),
        Ok(made)
    );
    assert_eq!(
        scene.made(made, 2000, false),
        Err(Dropped::AwaitingKeyframe)
    );
    let unit = scene
        .unit_of(2000, MediaKind::Video, 1, 0, true)
        .expect("taken");
    assert_eq!(
        (unit.track, unit.epoch, unit.sequence),
        (TrackId(16), Epoch(2), 0)
    );
    assert!(unit.discontinuity);
    let unit = scene
        .unit_of(2000, MediaKind::Video, 0, 0, true)
        .expect("taken");
    assert_eq!(unit.sequence, 0);

    scene.publisher(3);
    scene.pictures(3000, 0, 80);
    let now = scene.at(6200);
    scene.stream.handle_timeout(now);
    assert_eq!(scene.renditions(6200), named(&[(0, "source")]));
}

#[test]
fn a_rendition_that_changes_hands_never_goes_back() {
    let (mut scene, made) = ladder();
    scene.made(made, 1400, true).expect("taken");
    scene.stream.remove_rendition(made);
    scene.further(9, 240).expect("taken");
    let unit = scene.unit_of(1000, MediaKind::Video, 9, 8_000, true);
    let unit = unit.expect("taken");
    assert_eq!((unit.track, unit.sequence), (made, 26));
    assert!(unit.dts > MediaTime::from_millis(1400), "{}", unit.dts);
    assert!(unit.pts >= unit.dts);
}

#[test]
fn a_rendition_that_falls_silent_vanishes_until_its_next_keyframe() {
    let (mut scene, _) = ladder();
    // All are silent: a publisher that stalls keeps its renditions.
    let later = scene.at(9000);
    scene.stream.handle_timeout(later);
    assert_eq!(scene.renditions(9000).len(), 3);
    scene.pictures(9000, 16_000, 25);
    let later = scene.at(10_000);
    scene.stream.handle_timeout(later);
    let rest = [(0, "source"), (17, "240p")];
    assert_eq!(
        scene.renditions(10_000),
        named(&rest),
        "the origin knows about its own"
    );
    let video = MediaKind::Video;
    let unit = scene.unit_of(10_000, video, 7, 17_000, false);
    assert_eq!(unit, Err(Dropped::AwaitingKeyframe));
    let unit = scene
        .unit_of(10_040, video, 7, 17_040, true)
        .expect("taken");
    assert_eq!(
        (unit.track, unit.sequence, unit.discontinuity),
        (TrackId(16), 25, true)
    );
    assert_eq!(scene.renditions(10_040).len(), 3);
}

/// A picture of a contributor whose clock began at `began_ms` when the timeline was at 0.
fn contributed(
    scene: &mut Scene,
    now_ms: u64,
    began_ms: i64,
    keyframe: bool,
) -> Result<Arc<AccessUnit>, Dropped> {
    let time = MediaTime::from_millis(began_ms + i64::try_from(now_ms).expect("small"));
    let unit = IngestUnit {
        kind: MediaKind::Video,
        track: SourceTrack::DEFAULT,
        dts: time,
        pts: time,
        keyframe,
        discardable: false,
        payload: Bytes::from_static(&[0; 50]),
        ingest_time: WallTime::from_unix_micros(now_ms * 1000),
    };
    let now = scene.at(now_ms);
    scene
        .stream
        .handle_contributor_unit(now, ContributorId(1), unit)
}

#[test]
fn a_rendition_of_a_connection_of_its_own_is_placed_by_its_keyframes() {
    let mut scene = Scene::new();
    let name: RenditionName = "low".parse().expect("a name");
    let id = ContributorId(1);
    scene
        .stream
        .handle_contributor(id, name.clone())
        .expect("room");
    // It is here before the source.
    assert_eq!(
        contributed(&mut scene, 0, 7_000, true),
        Err(Dropped::NotPublishing)
    );
    scene.publisher(1);
    assert_eq!(
        contributed(&mut scene, 0, 7_000, true),
        Err(Dropped::Aligning)
    );
    scene
        .stream
        .handle_contributor_configuration(id, picture(240))
        .expect("room");
    let mut placed = Vec::new();
    for now_ms in (0..2000).step_by(40) {
        let keyframe = now_ms % 400 == 0;
        let dts = i64::try_from(now_ms).expect("small");
        scene
            .unit(now_ms, MediaKind::Video, 7_000 + dts, keyframe)
            .expect("taken");
        // Its output is shifted by the priming of the sound.
        if let Ok(unit) = contributed(&mut scene, now_ms, 7_021, keyframe) {
            assert_eq!(unit.dts.as_millis(), dts);
            placed.push(unit);
        }
    }
    assert_eq!((placed[0].sequence, placed[0].keyframe), (0, true));
    assert!(placed.len() > 35, "{}", placed.len());
    assert_eq!(scene.renditions(2000), named(&[(0, "source"), (16, "low")]));
    let found: Vec<_> = scene.stream.contributors().collect();
    assert_eq!(found, [(id, &name, true)]);

    // The source comes back in another epoch: the rendition is found again, under its number.
    scene.stream.handle_leave();
    assert_eq!(
        contributed(&mut scene, 2000, 7_021, true),
        Err(Dropped::NotPublishing)
    );
    scene.publisher(2);
    for now_ms in (2000..4000).step_by(40) {
        let dts = i64::try_from(now_ms).expect("small");
        let keyframe = now_ms % 400 == 0;
        scene
            .unit(now_ms, MediaKind::Video, 90_000 + dts, keyframe)
            .expect("taken");
        let _ = contributed(&mut scene, now_ms, 90_021, keyframe);
    }
    assert_eq!(scene.renditions(4000), named(&[(0, "source"), (16, "low")]));
    scene.stream.handle_contributor_leave(id);
    assert_eq!(scene.renditions(4000), named(&[(0, "source")]));
    assert_eq!(scene.stream.contributors().count(), 0);
}

#[test]
fn a_rendition_whose_keyframes_are_elsewhere_is_refused() {
    let mut scene = Scene::begin(1);
    let id = ContributorId(1);
    let name = "low".parse().expect("a name");
    scene.stream.handle_contributor(id, name).expect("room");
    scene
        .stream
        .handle_contributor_configuration(id, picture(240))
        .expect("room");
    let mut last = Ok(());
    for now_ms in (0..3000).step_by(40) {
        let dts = i64::try_from(now_ms).expect("small");
        scene
            .unit(now_ms, MediaKind::Video, dts, now_ms % 400 == 0)
            .expect("taken");
        last = contributed(&mut scene, now_ms, 0, now_ms % 400 == 200).map(|_| ());
    }
    assert_eq!(last, Err(Dropped::Unaligned));
    assert_eq!(scene.renditions(3000), named(&[(0, "source")]));
}

#[test]
fn a_rendition_that_begins_with_the_past_is_measured_at_its_bitrate() {
    let mut scene = Scene::begin(1);
    scene.pictures(0, 0, 51);
    let made = scene
        .stream
        .handle_rendition_configuration("240p", picture(240))
        .expect("room");
    // Two seconds of it come at once, and then each picture as it is made: 50 bytes every 40 ms.
    let now = scene.at(2000);
    for frame in 0..=100_u64 {
        if frame > 50 {
            scene.pictures(frame * 40, i64::try_from(frame * 40).expect("small"), 1);
        }
        let dts = MediaTime::from_millis(i64::try_from(frame * 40).expect("small"));
        let unit = RenditionUnit {
            dts,
            pts: dts,
            keyframe: frame % 10 == 0,
            discardable: false,
            payload: Bytes::from_static(&[0; 50]),
            ingest_time: WallTime::from_unix_micros(frame * 40_000),
        };
        let at = now.max(scene.at(frame * 40));
        scene
            .stream
            .handle_rendition_unit(at, made, unit)
            .expect("taken");
        let rate = scene.stream.info(at).track(made).expect("listed").bitrate;
        // A quarter of a second holds six or seven pictures.
        assert!(rate.0 <= 13_000, "{frame}: {rate:?}");
    }
    let info = scene.stream.info(scene.at(4000));
    let rate = info.track(made).expect("listed").bitrate.0;
    assert!((9_000..=11_000).contains(&rate), "{rate}");
}
