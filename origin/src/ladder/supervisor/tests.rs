use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use headwater_media::flv::TagKind;
use headwater_media::flv::demux::{self, Demuxer};
use headwater_media::flv::reader::Reader;
use headwater_media::id::{Bitrate, TrackId};
use headwater_media::testkit::{self, AVCC};
use headwater_media::time::WallTime;
use headwater_media::unit::{MediaKind, SourceTrack};
use headwater_node::clock::Clock;

use super::*;

/// Ticks from picture to picture: 30 a second, which no millisecond measures.
const FRAME: i64 = 3003;

fn configuration() -> h264::Configuration {
    h264::Configuration::parse(Bytes::from_static(AVCC)).expect("valid")
}

fn source() -> Source {
    Source {
        epoch: Epoch(1),
        configuration: configuration(),
        configuration_id: 0,
        bitrate: Bitrate(2_500_000),
        young: false,
        reordered: false,
        has_lower: false,
    }
}

/// A core, a made-up child that answers each picture with one per rung, and virtual time.
struct Bench {
    core: Supervisor,
    now: Instant,
    sequence: u64,
    gop: u64,
    child: Option<FakeChild>,
    /// The child is frozen: it takes, but yields nothing.
    frozen: bool,
    made: Vec<(Arc<str>, RenditionUnit)>,
    listed: HashSet<Arc<str>>,
    removed: Vec<Arc<str>>,
    lost: Vec<Arc<str>>,
    failed: Vec<Failure>,
    starts: Vec<Instant>,
    dropped: HashMap<&'static str, u64>,
    done: bool,
}

struct FakeChild {
    generation: u64,
    rungs: usize,
    reader: Reader,
    demuxer: Demuxer,
    waiting: VecDeque<IngestUnit>,
    configured: bool,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self {
            core: Supervisor::new(Config::default(), 7),
            now: Clock::system().now(),
            sequence: 0,
            gop: 60,
            child: None,
            frozen: false,
            made: Vec::new(),
            listed: HashSet::new(),
            removed: Vec::new(),
            lost: Vec::new(),
            failed: Vec::new(),
            starts: Vec::new(),
            dropped: HashMap::new(),
            done: false,
        };
        bench.core.handle_source(bench.now, Some(source()));
        bench
    }

    fn unit(&self) -> Arc<AccessUnit> {
        let at = MediaTime::from_ticks(i64::try_from(self.sequence).expect("small") * FRAME);
        Arc::new(AccessUnit {
            keyframe: self.sequence.is_multiple_of(self.gop),
            payload: picture(self.sequence.is_multiple_of(self.gop)),
            ingest_time: WallTime::from_unix_micros(1_000_000 + self.sequence),
            ..testkit::unit(TrackId::SOURCE_VIDEO, 1, self.sequence, at)
        })
    }

    /// The source sends so many pictures, 30 a second.
    fn play(&mut self, pictures: u64) {
        for _ in 0..pictures {
            let unit = self.unit();
            self.core.handle_unit(self.now, &unit);
            self.sequence += 1;
            self.pump();
            self.pass(Duration::from_nanos(33_366_667));
        }
    }

    /// Time passes, with what is due in it.
    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(at) = self.core.poll_timeout().filter(|at| *at <= until) {
            assert!(at >= self.now, "the past is over");
            self.now = at;
            self.core.handle_timeout(at);
            self.pump();
            if self.done {
                break;
            }
            assert_ne!(self.core.poll_timeout(), Some(at), "spins");
        }
        self.now = until;
    }

    fn pump(&mut self) {
        loop {
            while let Some(output) = self.core.poll_output() {
                self.perform(output);
            }
            let Some(child) = self.child.as_mut().filter(|_| !self.frozen) else {
                return;
            };
            let Some(picture) = child.waiting.pop_front() else {
                return;
            };
            let (generation, rungs) = (child.generation, child.rungs);
            let begins = !std::mem::replace(&mut child.configured, true);
            for rung in 0..rungs {
                if begins {
                    self.core
                        .handle_configuration(generation, rung, configuration());
                }
                self.core
                    .handle_picture(self.now, generation, rung, picture.clone());
            }
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Start {
                generation,
                outputs,
                ..
            } => {
                self.starts.push(self.now);
                self.child = Some(FakeChild {
                    generation,
                    rungs: outputs,
                    reader: Reader::new(1 << 20),
                    demuxer: Demuxer::new(),
                    waiting: VecDeque::new(),
                    configured: false,
                });
            }
            Output::Feed(bytes) => {
                let child = self.child.as_mut().expect("a child is fed");
                child.reader.handle_input(&bytes);
                while let Some(tag) = child.reader.poll_tag().expect("FLV") {
                    assert_eq!(tag.kind, TagKind::Video);
                    let millis = i64::from(tag.millis);
                    child
                        .demuxer
                        .handle_video(millis, WallTime::default(), tag.body);
                    while let Some(output) = child.demuxer.poll_output() {
                        if let demux::Output::Unit(unit) = output {
                            child.waiting.push_back(unit);
                        }
                    }
                }
            }
            Output::Stop => self.child = None,
            Output::Configured { rendition, .. } => {
                self.listed.insert(rendition);
            }
            Output::Unit {
                rendition, unit, ..
            } => {
                assert!(self.listed.contains(&rendition), "{rendition}");
                self.made.push((rendition, unit));
            }
            Output::Lost { rendition } => self.lost.push(rendition),
            Output::Removed { rendition } => {
                assert!(self.listed.remove(&rendition), "{rendition}");
                self.removed.push(rendition);
            }
            Output::Failed { failure, .. } => {
                self.child = None;
                self.failed.push(failure);
            }
            Output::Dropped { reason, units } => {
                *self.dropped.entry(reason.label()).or_default() += units;
            }
            Output::Done => self.done = true,
        }
    }

    fn crash(&mut self) {
        let child = self.child.take().expect("a child to crash");
        self.core
            .handle_ended(self.now, child.generation, Failure::Exited, "signal: 9");
        self.pump();
    }

    fn of(&self, rendition: &str) -> Vec<&RenditionUnit> {
        let made = self.made.iter();
        made.filter(|(name, _)| **name == *rendition)
            .map(|(_, unit)| unit)
            .collect()
    }

    /// Each rendition begins, and goes on after a loss, with a keyframe, and its times rise.
    fn check(&self) {
        for name in ["480p", "240p"] {
            let units = self.of(name);
            assert!(units.first().is_none_or(|unit| unit.keyframe), "{name}");
            assert!(
                units.windows(2).all(|pair| pair[0].dts < pair[1].dts),
                "{name}"
            );
            assert!(units.iter().all(|unit| unit.dts == unit.pts));
        }
    }
}

fn picture(keyframe: bool) -> Bytes {
    let first = if keyframe { 0x65 } else { 0x41 };
    Bytes::copy_from_slice(&[0, 0, 0, 3, first, 0x88, 0x84])
}

#[test]
fn renditions_begin_with_the_cached_gop_and_have_the_sources_times() {
    let mut bench = Bench::new();
    let mut backlog = Vec::new();
    for _ in 0..40 {
        backlog.push(bench.unit());
        bench.sequence += 1;
    }
    bench.core.handle_backlog(bench.now, &backlog);
    bench.pump();
    assert_eq!(bench.of("480p").len(), 40);
    bench.play(80);
    for name in ["480p", "240p"] {
        let units = bench.of(name);
        assert_eq!(units.len(), 120);
        for (number, unit) in (0..).zip(units) {
            assert_eq!(unit.pts.ticks(), number * FRAME);
            assert_eq!(unit.keyframe, number % 60 == 0);
            let ingest = 1_000_000 + u64::try_from(number).expect("positive");
            assert_eq!(unit.ingest_time.unix_micros(), ingest);
        }
    }
    assert_eq!(bench.core.status().state, State::Running);
    assert_eq!(bench.lost.len() + bench.removed.len(), 0);
}

#[test]
fn a_child_waits_for_the_sources_rates_and_keyframe() {
    let mut bench = Bench::new();
    let unrated = Source {
        bitrate: Bitrate(0),
        ..source()
    };
    bench.core.handle_source(bench.now, Some(unrated));
    bench.sequence = 3;
    bench.play(30);
    assert_eq!(bench.starts.len(), 0);
    bench.core.handle_source(bench.now, Some(source()));
    bench.play(27);
    assert_eq!(bench.starts.len(), 0, "there was no keyframe");
    bench.play(10);
    assert_eq!(bench.starts.len(), 1);
    bench.check();
}

#[test]
fn it_ends_a_linger_after_the_last_viewer() {
    let mut bench = Bench::new();
    bench.play(90);
    bench.core.handle_demand(bench.now, false);
    bench.play(29 * 30);
    assert!(bench.child.is_some() && !bench.done);
    bench.core.handle_demand(bench.now, true);
    bench.play(60 * 30);
    assert!(bench.child.is_some() && !bench.done);
    bench.core.handle_demand(bench.now, false);
    bench.core.handle_demand(bench.now, false);
    bench.pass(Duration::from_secs(31));
    assert!(bench.child.is_none() && bench.done);
    let mut removed: Vec<&str> = bench.removed.iter().map(|name| &**name).collect();
    removed.sort_unstable();
    assert_eq!(removed, ["240p", "480p"]);
}

#[test]
fn a_crashed_child_comes_back_soon_and_repeats_nothing() {
    let mut bench = Bench::new();
    bench.play(100);
    bench.crash();
    assert_eq!(bench.removed.len(), 2);
    assert_eq!(bench.core.status().state, State::Failing);
    let crashed = bench.now;
    let before = bench.of("480p").len();
    bench.play(30);
    assert!(bench.starts[1] - crashed <= Duration::from_millis(100));
    // It begins at the keyframe that went out already, so it goes on at the next one.
    bench.play(30);
    let after = bench.of("480p");
    assert!(after.len() > before);
    assert!(after[before].keyframe);
    assert_eq!(after[before].pts.ticks(), 120 * FRAME);
    bench.check();
    assert_eq!(bench.lost.len(), 2);
    assert_eq!(bench.core.status().failures, 1);
}

#[test]
fn failures_in_a_row_are_retried_ever_later_and_a_healthy_run_ends_the_row() {
    let mut bench = Bench::new();
    bench.play(60);
    for _ in 0..12 {
        bench.crash();
        let crashed = bench.now;
        while bench.child.is_none() {
            bench.play(1);
            assert!(bench.now - crashed < Duration::from_secs(32));
        }
    }
    let waits: Vec<Duration> = bench
        .starts
        .windows(2)
        .map(|pair| pair[1] - pair[0])
        .collect();
    assert!(waits[10] > Duration::from_secs(14), "{waits:?}");
    assert_eq!(bench.failed.len(), 12);
    assert_eq!(bench.core.status().last_error.as_deref(), Some("signal: 9"));
    bench.play(11 * 30);
    bench.crash();
    let crashed = bench.now;
    bench.play(10);
    assert!(bench.child.is_some() && bench.now - crashed < Duration::from_secs(1));
    bench.check();
}

#[test]
fn a_child_that_yields_nothing_is_replaced() {
    let mut bench = Bench::new();
    bench.play(60);
    bench.frozen = true;
    bench.play(6 * 30);
    assert_eq!(bench.failed, [Failure::Stuck]);
    bench.frozen = false;
    bench.play(4 * 30);
    assert_eq!(bench.core.status().state, State::Running);
    bench.check();
}

#[test]
fn a_silent_source_is_no_fault_of_the_child() {
    let mut bench = Bench::new();
    bench.play(60);
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.failed, []);
    bench.play(60);
    assert_eq!(bench.of("480p").len(), 120);
}

#[test]
fn a_child_that_lags_skips_to_a_keyframe_once_it_has_caught_up() {
    let mut bench = Bench::new();
    bench.play(60);
    bench.frozen = true;
    bench.play(100);
    let dropped = bench.dropped["slow"];
    assert!(dropped > 30, "{dropped}");
    let waiting = bench.child.as_ref().map(|child| child.waiting.len());
    assert!(waiting < Some(60), "{waiting:?} wait for the child");
    assert!(bench.listed.is_empty(), "viewers are moved");
    bench.frozen = false;
    bench.play(140);
    assert_eq!((bench.failed.len(), bench.listed.len()), (0, 2));
    assert!(bench.dropped["late"] > 0);
    let units = bench.of("480p");
    let gap = units
        .windows(2)
        .find(|pair| (pair[1].pts - pair[0].pts).ticks() != FRAME)
        .expect("a gap");
    assert!(gap[1].keyframe);
    bench.check();
}

#[test]
fn what_is_lost_on_the_way_to_the_ladder_or_from_it_resumes_at_a_keyframe() {
    let mut bench = Bench::new();
    bench.play(70);
    bench.sequence += 3;
    bench.play(10);
    assert_eq!(bench.dropped["mailbox"], 3);
    assert_eq!(bench.of("480p").len(), 70);
    bench.play(60);
    let resumed = bench.of("480p")[70];
    assert!(resumed.keyframe && resumed.pts.ticks() == 120 * FRAME);
    bench.core.handle_refused("240p");
    let before = (bench.of("480p").len(), bench.of("240p").len());
    bench.play(10);
    assert_eq!(bench.of("480p").len(), before.0 + 10);
    assert_eq!(bench.of("240p").len(), before.1);
    bench.play(60);
    assert!(bench.of("240p")[before.1].keyframe);
    bench.check();
}

#[test]
fn b_frames_found_later_make_a_ladder_with_a_repaired_source() {
    let mut bench = Bench::new();
    bench.play(70);
    let reordered = Source {
        reordered: true,
        ..source()
    };
    bench.core.handle_source(bench.now, Some(reordered.clone()));
    bench.play(70);
    assert_eq!(bench.starts.len(), 2);
    assert!(bench.of("720p")[0].keyframe);
    let names: Vec<Arc<str>> = bench
        .core
        .status()
        .rungs
        .iter()
        .map(|rung| Arc::clone(&rung.name))
        .collect();
    assert_eq!(
        names.iter().map(|name| &**name).collect::<Vec<_>>(),
        ["720p", "480p", "240p"]
    );
    // What stays in the ladder never left the list.
    assert_eq!(bench.removed, []);
    let same = Source {
        bitrate: Bitrate(9_000_000),
        ..reordered
    };
    bench.core.handle_source(bench.now, Some(same));
    bench.play(1);
    assert_eq!(bench.starts.len(), 2, "one reading is no reason");
    bench.check();
}

#[test]
fn with_b_frames_a_child_starts_by_the_first_pictures_and_is_replaced_if_they_misled() {
    let mut bench = Bench::new();
    let dark = Source {
        bitrate: Bitrate(0),
        young: true,
        reordered: true,
        ..source()
    };
    bench.core.handle_source(bench.now, Some(dark.clone()));
    bench.play(12);
    assert_eq!(bench.starts.len(), 1);
    let repaired = |bench: &Bench| bench.core.status().rungs[0].bitrate;
    let begun = repaired(&bench).0;
    assert!(
        (1_104_000..1_106_000).contains(&begun),
        "720p in motion: {begun}"
    );
    let light = Source {
        bitrate: Bitrate(2_500_000),
        young: false,
        ..dark
    };
    for _ in 0..9 {
        bench.play(30);
        bench.core.handle_source(bench.now, Some(light.clone()));
    }
    assert_eq!(bench.starts.len(), 2);
    assert_eq!(repaired(&bench), Bitrate(2_500_000));
    assert_eq!(bench.removed, [], "nobody is moved for it");
    // Each picture once, one after the other, from the keyframe on.
    let times: Vec<i64> = bench
        .of("720p")
        .iter()
        .map(|unit| unit.pts.ticks())
        .collect();
    let expected: Vec<i64> = (0..)
        .map(|number| number * FRAME)
        .take(times.len())
        .collect();
    assert_eq!(times, expected);
    // It grows more patient: a clip whose scenes differ must not cost a pause with each.
    let louder = Source {
        bitrate: Bitrate(6_000_000),
        ..light
    };
    for _ in 0..12 {
        bench.play(30);
        bench.core.handle_source(bench.now, Some(louder.clone()));
    }
    assert_eq!(bench.starts.len(), 2);
    bench.check();
}

#[test]
fn a_publisher_that_returns_finds_its_ladder_again() {
    let mut bench = Bench::new();
    bench.play(60);
    bench.core.handle_source(bench.now, Some(source()));
    bench.play(30);
    bench.core.handle_source(bench.now, None);
    bench.pump();
    assert!(bench.child.is_none());
    assert_eq!(bench.removed, [], "viewers stay on their rendition");
    bench.pass(Duration::from_secs(3));
    // Its rate is that of the one before until it is measured.
    let unrated = Source {
        bitrate: Bitrate(0),
        ..source()
    };
    bench.core.handle_source(bench.now, Some(unrated));
    bench.sequence = 120;
    bench.play(1);
    assert_eq!(bench.starts.len(), 2);
    bench.play(59);
    assert_eq!(
        bench.of("480p").last().map(|unit| unit.pts.ticks()),
        Some(179 * FRAME)
    );
    bench.check();
}

#[test]
fn a_source_with_nothing_below_it_makes_no_child() {
    let mut bench = Bench::new();
    let own_ladder = Source {
        has_lower: true,
        ..source()
    };
    bench.core.handle_source(bench.now, Some(own_ladder));
    bench.play(90);
    assert_eq!(bench.starts.len(), 0);
    assert_eq!(bench.core.status().state, State::Nothing);
}

#[test]
fn a_full_origin_and_a_missing_ffmpeg_are_asked_again_in_a_while() {
    for (failure, state, failures) in [
        (Failure::Busy, State::Waiting, 0),
        (Failure::Missing, State::Failing, 1),
    ] {
        let mut bench = Bench::new();
        bench.play(8);
        let generation = bench.child.take().expect("started").generation;
        bench
            .core
            .handle_ended(bench.now, generation, failure, "why");
        bench.pump();
        assert_eq!(bench.core.status().state, state);
        assert_eq!(bench.core.status().failures, failures);
        bench.play(4 * 30);
        assert_eq!(bench.starts.len(), 1);
        bench.play(60);
        assert_eq!(bench.starts.len(), 2);
    }
}

#[test]
fn pictures_that_nobody_fed_are_dropped() {
    let mut bench = Bench::new();
    bench.play(60);
    let child = bench.child.as_ref().expect("running").generation;
    let stray = IngestUnit {
        kind: MediaKind::Video,
        track: SourceTrack::DEFAULT,
        dts: MediaTime::from_millis(5),
        pts: MediaTime::from_millis(5),
        keyframe: true,
        discardable: false,
        payload: picture(true),
        ingest_time: WallTime::default(),
    };
    for (generation, rung) in [(child, 0), (child, 99), (child - 1, 0)] {
        bench
            .core
            .handle_picture(bench.now, generation, rung, stray.clone());
    }
    bench.pump();
    assert_eq!(bench.dropped["untimed"], 1);
    assert_eq!(bench.of("480p").len(), 60);
}
