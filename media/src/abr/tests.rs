//! Decisions by what the link is said to carry. How they work out over links is tested with the whole of the sender, in `lab`.

use std::time::{Duration, Instant};

use super::*;
use crate::bwe::{Estimate, Probed};
use crate::id::{Bitrate, TrackId};
use crate::testkit;

const LOW: TrackId = TrackId(5);
const MIDDLE: TrackId = TrackId(3);
const TOP: TrackId = TrackId(0);
const STEP: Duration = Duration::from_millis(50);

fn ladder() -> [Rendition; 3] {
    [(TOP, 2500, 720), (LOW, 400, 240), (MIDDLE, 1000, 480)].map(|(track, kilobits, height)| {
        Rendition {
            track,
            bitrate: Bitrate(kilobits * 1000),
            height,
            keyframe_interval: Duration::from_secs(1),
        }
    })
}

/// A shell that does at once what it is told to, and a link that carries `link`.
struct Scene {
    abr: Abr,
    now: Instant,
    link: u64,
    queue: Duration,
    probes: Vec<(Duration, ProbeRequest)>,
    selections: Vec<Selection>,
    began: Instant,
    switches: bool,
}

impl Scene {
    fn new(config: Config, link: u64) -> Self {
        let now = testkit::start();
        let mut abr = Abr::new(config);
        abr.handle_ladder(now, &ladder(), Bitrate(64_000));
        let mut scene = Self {
            abr,
            now,
            link,
            queue: Duration::ZERO,
            probes: Vec::new(),
            selections: Vec::new(),
            began: now,
            switches: true,
        };
        scene.perform();
        scene
    }

    fn perform(&mut self) {
        while let Some(output) = self.abr.poll_output() {
            match output {
                Output::Select(selection) => {
                    self.selections.push(selection.clone());
                    if let Choice::Video(track) = selection.target
                        && self.switches
                    {
                        self.abr.handle_switched(self.now, track);
                    }
                }
                Output::Probe(request) => {
                    self.probes.push((self.now - self.began, request));
                    let whole = request.rate.0 <= self.link;
                    let probed = Probed {
                        cluster: request.cluster,
                        sent: request.rate,
                        carried: Bitrate(request.rate.0.min(self.link)),
                        whole,
                        queue: Duration::ZERO,
                    };
                    self.abr.handle_probed(self.now, &probed);
                }
            }
        }
    }

    fn run(&mut self, seconds: u64) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now += STEP;
            let overused = self.queue > Duration::from_millis(25);
            let estimate = Estimate {
                rate: Bitrate(self.link),
                overused,
                limited: true,
            };
            self.abr.handle_estimate(self.now, estimate, self.queue);
            self.perform();
            if self.abr.poll_timeout().is_some_and(|at| at <= self.now) {
                self.abr.handle_timeout(self.now);
                self.perform();
                assert!(
                    self.abr.poll_timeout().is_none_or(|at| at > self.now),
                    "it would spin"
                );
            }
        }
    }

    fn target(&self) -> Option<Choice> {
        self.abr.target()
    }
}

#[test]
fn it_starts_by_what_the_link_is_assumed_to_carry() {
    for (assumed, expected) in [
        (None, TOP),
        (Some(10_000_000), TOP),
        (Some(2_500_000), MIDDLE),
        (Some(1_000_000), LOW),
        (Some(100_000), LOW),
    ] {
        let config = Config {
            assumed: assumed.map(Bitrate),
            ..Config::default()
        };
        let scene = Scene::new(config, 0);
        assert_eq!(scene.target(), Some(Choice::Video(expected)), "{assumed:?}");
    }
}

#[test]
fn the_next_viewer_of_a_link_begins_with_what_fitted() {
    for (link, expected) in [(6_000_000, TOP), (2_700_000, TOP), (1_200_000, MIDDLE)] {
        let mut scene = Scene::new(Config::default(), link);
        scene.run(20);
        let config = Config {
            assumed: scene.abr.carried(),
            ..Config::default()
        };
        let next = Scene::new(config, 0);
        assert_eq!(next.target(), Some(Choice::Video(expected)), "{link}");
    }
}

#[test]
fn with_a_queue_it_goes_down_at_once_and_bridges_with_what_comes_first() {
    let mut scene = Scene::new(Config::default(), 6_000_000);
    scene.run(5);
    scene.switches = false;
    (scene.link, scene.queue) = (1_300_000, Duration::from_millis(120));
    scene.run(1);
    let selection = scene.selections.last().expect("one");
    assert_eq!(selection.target, Choice::Video(MIDDLE));
    assert_eq!(selection.also.to_vec(), [LOW]);
    assert!(selection.shed);
    // The lowest had its keyframe first; the aim stays.
    scene.abr.handle_switched(scene.now, LOW);
    scene.queue = Duration::ZERO;
    scene.run(1);
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
    assert_eq!(scene.abr.failed_climbs(), 0);
}

#[test]
fn what_a_bridge_leads_to_is_no_climb() {
    let mut scene = Scene::new(Config::default(), 6_000_000);
    scene.run(10);
    scene.switches = false;
    (scene.link, scene.queue) = (1_300_000, Duration::from_millis(120));
    scene.run(1);
    scene.abr.handle_switched(scene.now, LOW);
    scene.abr.handle_switched(scene.now, MIDDLE);
    scene.switches = true;
    // That was one too many, but nobody had tried it.
    scene.link = 600_000;
    scene.run(1);
    assert_eq!(scene.target(), Some(Choice::Video(LOW)));
    assert_eq!(scene.abr.failed_climbs(), 0);
    (scene.link, scene.queue) = (1_300_000, Duration::ZERO);
    scene.run(4);
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
}

#[test]
fn a_low_moment_without_a_queue_is_waited_for() {
    let mut scene = Scene::new(Config::default(), 6_000_000);
    scene.run(2);
    scene.link = 2_000_000;
    for _ in 0..12 {
        scene.now += STEP;
        let estimate = Estimate {
            rate: Bitrate(scene.link),
            overused: false,
            limited: true,
        };
        scene
            .abr
            .handle_estimate(scene.now, estimate, Duration::ZERO);
    }
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
    scene.run(1);
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
}

#[test]
fn pictures_that_wait_say_the_same_as_an_estimate() {
    let mut scene = Scene::new(Config::default(), 2_800_000);
    scene.run(2);
    scene.abr.handle_wait(scene.now, Duration::from_millis(100));
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
    scene.abr.handle_wait(scene.now, Duration::from_millis(400));
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
}

#[test]
fn it_goes_up_only_after_both_stages_of_a_probe() {
    let config = Config {
        assumed: Some(Bitrate(1_500_000)),
        ..Config::default()
    };
    let mut scene = Scene::new(config, 1_400_000);
    scene.run(20);
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
    let small = scene
        .probes
        .iter()
        .all(|(_, request)| request.bytes < 20_000);
    assert!(small && scene.probes.len() > 3, "{:?}", scene.probes);
    let pauses: Vec<_> = scene
        .probes
        .windows(2)
        .map(|pair| pair[1].0 - pair[0].0)
        .collect();
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert!(
        pauses.iter().all(|pause| *pause < Duration::from_secs(5)),
        "{pauses:?}"
    );

    scene.link = 6_000_000;
    let before = scene.probes.len();
    scene.run(6);
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
    assert_eq!(scene.probes.len(), before + 2);
    let need = (2_500_000 + 64_000) * 106 / 100;
    assert!(scene.probes[before].1.rate.0 > need);
}

#[test]
fn a_rendition_that_had_to_be_left_soon_waits_ever_longer() {
    let mut scene = Scene::new(Config::default(), 6_000_000);
    scene.run(1);
    let mut tries = Vec::new();
    for _ in 0..5 {
        (scene.link, scene.queue) = (1_300_000, Duration::from_millis(100));
        scene.run(1);
        assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
        (scene.link, scene.queue) = (6_000_000, Duration::ZERO);
        let left = scene.now;
        while scene.target() != Some(Choice::Video(TOP)) {
            scene.run(1);
        }
        tries.push((scene.now - left).as_secs());
    }
    for (try_, expected) in tries.iter().zip([6, 12, 24, 48, 96]) {
        assert!(try_.abs_diff(expected) <= 3, "{tries:?}");
    }
    // The first time it was what it began with.
    assert_eq!(scene.abr.failed_climbs(), 4);
}

#[test]
fn sound_alone_is_the_last_resort_and_has_a_way_back() {
    let config = Config {
        assumed: Some(Bitrate(800_000)),
        ..Config::default()
    };
    let mut scene = Scene::new(config, 800_000);
    scene.run(3);
    (scene.link, scene.queue) = (200_000, Duration::from_millis(150));
    scene.run(1);
    assert_eq!(scene.target(), Some(Choice::Video(LOW)));
    scene.run(1);
    assert_eq!(scene.target(), Some(Choice::AudioOnly));
    scene.queue = Duration::ZERO;
    scene.run(10);
    assert_eq!(scene.target(), Some(Choice::AudioOnly));
    scene.link = 700_000;
    scene.run(6);
    assert_eq!(scene.target(), Some(Choice::Video(LOW)));
}

#[test]
fn a_pin_is_a_pin_as_long_as_there_is_such_a_rendition() {
    let mut scene = Scene::new(Config::default(), 6_000_000);
    scene.abr.handle_pin(scene.now, Some(LOW));
    scene.run(10);
    assert_eq!(scene.target(), Some(Choice::Video(LOW)));
    assert_eq!(scene.abr.wanted().to_vec(), [LOW]);
    scene.link = 100_000;
    scene.run(10);
    assert_eq!(scene.target(), Some(Choice::Video(LOW)));
    scene.link = 6_000_000;
    scene
        .abr
        .handle_ladder(scene.now, &[ladder()[0], ladder()[2]], Bitrate(64_000));
    scene.run(10);
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
}

#[test]
fn what_is_probed_for_must_flow_and_so_must_the_one_below() {
    let config = Config {
        assumed: Some(Bitrate(1_500_000)),
        ..Config::default()
    };
    let mut scene = Scene::new(config, 6_000_000);
    assert_eq!(scene.abr.wanted().to_vec(), [MIDDLE, LOW]);
    while scene.probes.is_empty() {
        scene.now += STEP;
        let estimate = Estimate {
            rate: Bitrate(1_600_000),
            overused: false,
            limited: true,
        };
        scene
            .abr
            .handle_estimate(scene.now, estimate, Duration::ZERO);
        if let Some(Output::Probe(request)) = scene.abr.poll_output() {
            scene.probes.push((Duration::ZERO, request));
        }
    }
    assert_eq!(scene.abr.wanted().to_vec(), [MIDDLE, LOW, TOP]);
    // No answer comes.
    let at = scene.abr.poll_timeout().expect("a deadline");
    scene.abr.handle_timeout(at);
    assert_eq!(scene.abr.wanted().to_vec(), [MIDDLE, LOW]);
}

#[test]
fn a_viewer_without_feedback_goes_down_by_loss_and_up_by_trial() {
    let config = Config {
        probes: false,
        ..Config::default()
    };
    let mut scene = Scene::new(config, 0);
    let report = |scene: &mut Scene, permille| {
        scene.now += Duration::from_secs(1);
        scene.abr.handle_loss(scene.now, permille);
        scene.perform();
    };
    report(&mut scene, 200);
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
    report(&mut scene, 200);
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
    for _ in 0..6 {
        report(&mut scene, 10);
    }
    assert_eq!(scene.target(), Some(Choice::Video(MIDDLE)));
    for _ in 0..6 {
        report(&mut scene, 10);
    }
    assert_eq!(scene.target(), Some(Choice::Video(TOP)));
    assert!(scene.probes.is_empty());
}

#[test]
fn a_stream_without_renditions_needs_no_decision() {
    let mut abr = Abr::new(Config::default());
    let now = testkit::start();
    abr.handle_ladder(now, &[], Bitrate(0));
    let estimate = Estimate {
        rate: Bitrate(1),
        overused: true,
        limited: true,
    };
    abr.handle_estimate(now, estimate, Duration::from_secs(9));
    assert_eq!((abr.poll_output(), abr.target()), (None, None));
    abr.handle_ladder(now, &ladder()[..1], Bitrate(0));
    assert_eq!(abr.target(), Some(Choice::Video(TOP)));
}

#[test]
fn renditions_that_went_and_came_back_are_selected_anew() {
    let mut scene = Scene::new(Config::default(), 20_000_000);
    let chosen = scene.selections.last().cloned().expect("a selection");
    let told = scene.selections.len();
    // The publisher's track is gone for a moment, as when its origin restarts, and comes back under the same number.
    scene.abr.handle_ladder(scene.now, &[], Bitrate(64_000));
    scene.perform();
    assert_eq!(scene.selections.len(), told, "there is nothing to select");
    scene
        .abr
        .handle_ladder(scene.now, &ladder(), Bitrate(64_000));
    scene.perform();
    assert_eq!(scene.selections.len(), told + 1);
    assert_eq!(scene.selections.last(), Some(&chosen));
}
