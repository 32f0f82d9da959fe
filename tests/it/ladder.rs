//! An origin that makes renditions with a real ffmpeg, seen by a subscriber: when they exist, how they align, what a dead child costs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use headwater_edge::replica::Feed;
use headwater_media::id::TrackId;
use headwater_media::time::MediaTime;
use headwater_media::track::{Configuration, StreamInfo, Track};
use headwater_media::unit::AccessUnit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Picture, Publisher, Sound, now, seconds};
use crate::replication::{Cluster, Subscription, run};

/// A subscriber, and all that it got.
struct Watcher {
    subscription: Subscription,
    info: Option<Arc<StreamInfo>>,
    units: HashMap<TrackId, Vec<Arc<AccessUnit>>>,
}

impl Watcher {
    fn new(cluster: &Cluster) -> Self {
        Self {
            subscription: cluster.subscribe(&cluster.edge),
            info: None,
            units: HashMap::new(),
        }
    }

    fn adapt(&self, adaptive: bool) {
        let wants = &self.subscription.wants;
        wants.send_modify(|wants| wants.adaptive = adaptive);
    }

    fn want(&self, tracks: &[TrackId]) {
        let wants = &self.subscription.wants;
        wants.send_modify(|wants| wants.tracks = tracks.to_vec());
    }

    fn track(&self, rendition: &str) -> Option<&Track> {
        let info = self.info.as_ref()?;
        let mut tracks = info.tracks.iter();
        tracks.find(|track| {
            let video = matches!(*track.configuration, Configuration::H264(_));
            video && &*track.rendition == rendition
        })
    }

    fn of(&self, track: TrackId) -> &[Arc<AccessUnit>] {
        self.units.get(&track).map_or(&[], Vec::as_slice)
    }

    /// Takes what comes until `reached`, and says how long that took.
    async fn until(&mut self, what: &str, reached: impl Fn(&Self) -> bool) -> Duration {
        let since = now();
        let wait = async {
            while !reached(self) {
                match self.subscription.feed().await {
                    Feed::Info(info) => self.info = Some(info),
                    Feed::Unit { unit, .. } => self.units.entry(unit.track).or_default().push(unit),
                    Feed::Gap { .. } | Feed::Upstream(_) => {}
                }
            }
        };
        let in_time = tokio::time::timeout(seconds(20), wait).await;
        assert!(in_time.is_ok(), "not in time: {what}");
        since.elapsed()
    }

    /// A rendition is listed and wanted from now on.
    async fn rendition(&mut self, name: &str) -> TrackId {
        self.until(name, |watcher| watcher.track(name).is_some())
            .await;
        let id = self.track(name).expect("listed").id;
        self.want(&[TrackId::SOURCE_VIDEO, id]);
        id
    }
}

/// An origin with a stream that is published, and a subscriber to it. A linger of a second.
async fn start(picture: Picture) -> (Cluster, Publisher, Watcher) {
    start_with("ffmpeg", picture).await
}

async fn start_with(ffmpeg: &str, picture: Picture) -> (Cluster, Publisher, Watcher) {
    let settings = |config: &mut headwater_origin::Config| {
        config.ladder.linger_seconds = 1;
        config.ladder.ffmpeg = ffmpeg.into();
    };
    let cluster = Cluster::start(settings).await;
    let url = format!("rtmp://{}/live/demo", cluster.origin().rtmp_addr());
    let publisher = Publisher::start(&url, picture, Sound::Silence);
    let watcher = Watcher::new(&cluster);
    (cluster, publisher, watcher)
}

/// The ffmpeg that makes renditions, a child of this process.
fn child() -> Option<Pid> {
    let own = std::process::id();
    let processes = std::fs::read_dir("/proc").expect("a /proc");
    processes.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name in parentheses may hold anything; state and parent follow it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let ours = state != "Z" && parent == own.to_string() && command.contains("pipe:3");
        ours.then(|| Pid::from_raw(pid))
    })
}

fn gapless(units: &[Arc<AccessUnit>]) -> bool {
    let mut pairs = units.windows(2);
    pairs.all(|pair| pair[0].sequence + 1 == pair[1].sequence)
}

#[test]
fn renditions_exist_while_they_are_wanted_and_have_the_sources_keyframes() {
    run(async {
        let (cluster, _publisher, mut watcher) = start(Picture::Test).await;
        let source = TrackId::SOURCE_VIDEO;
        watcher
            .until("two seconds of source", |watcher| {
                watcher.of(source).len() > 60
            })
            .await;
        assert!(watcher.track("240p").is_none() && child().is_none());

        watcher.adapt(true);
        let lower = watcher.rendition("240p").await;
        assert!(lower >= TrackId::FIRST_RENDITION);
        watcher
            .until("three seconds of rendition", |watcher| {
                watcher.of(lower).len() > 90
            })
            .await;
        let made = watcher.of(lower);
        assert!(gapless(made) && made[0].keyframe);
        let times = |units: &[Arc<AccessUnit>]| -> HashMap<MediaTime, Arc<AccessUnit>> {
            let times = units.iter().map(|unit| (unit.pts, Arc::clone(unit)));
            times.collect()
        };
        let sources = times(watcher.of(source));
        let (first, last) = (made[0].pts, made[made.len() - 1].pts);
        for unit in made {
            let origin = sources.get(&unit.pts).expect("the source's time");
            assert!(unit.keyframe || !origin.keyframe, "at {}", unit.pts);
            assert_eq!(unit.dts, unit.pts);
            // Both on this node's clock, whose offset to the origin's is measured anew meanwhile.
            let apart = unit.ingest_time.since(origin.ingest_time);
            assert!(apart < Duration::from_millis(1), "{apart:?}");
        }
        let inside = |unit: &&Arc<AccessUnit>| (first..=last).contains(&unit.pts);
        let missing = watcher.of(source).iter().filter(inside).count() - made.len();
        assert_eq!(missing, 0, "each picture once");
        let keyframes: Vec<MediaTime> = made
            .iter()
            .filter(|unit| unit.keyframe)
            .map(|unit| unit.pts)
            .collect();
        let apart = keyframes.windows(2).map(|pair| pair[1].since(pair[0]));
        let apart = apart.max().expect("several");
        assert!(apart <= Duration::from_millis(550), "{apart:?}");

        let record = cluster.origin().report().streams().await.remove(0);
        assert_eq!(record["ladder"]["state"], "running", "{record}");
        assert_eq!(record["ladder"]["rungs"][0]["rendition"], "240p");

        watcher.adapt(false);
        let took = watcher
            .until("the end of the linger", |watcher| {
                watcher.track("240p").is_none()
            })
            .await;
        assert!(took >= Duration::from_millis(900), "{took:?}");
        let record = cluster.origin().report().streams().await.remove(0);
        assert_eq!(record["ladder"]["state"], "off", "{record}");
        cluster.stop().await;
        assert!(child().is_none());
    });
}

#[test]
fn a_killed_ffmpeg_costs_its_renditions_seconds_and_the_source_nothing() {
    run(async {
        let (cluster, _publisher, mut watcher) = start(Picture::Test).await;
        watcher.adapt(true);
        let lower = watcher.rendition("240p").await;
        watcher
            .until("a second of rendition", |watcher| {
                watcher.of(lower).len() > 30
            })
            .await;
        let before = watcher.of(lower).len();
        kill(child().expect("a child"), Signal::SIGKILL).expect("killed");
        watcher
            .until("it left the list", |watcher| {
                watcher.track("240p").is_none()
            })
            .await;
        let took = watcher
            .until("it is back", |watcher| {
                watcher.track("240p").is_some() && watcher.of(lower).len() > before + 2
            })
            .await;
        assert!(took < seconds(3), "{took:?}");
        let after = watcher.of(lower);
        let resumed = after
            .windows(2)
            .find(|pair| pair[1].pts.since(pair[0].pts) > Duration::from_millis(100));
        assert!(resumed.is_none_or(|pair| pair[1].keyframe && pair[1].discontinuity));
        assert!(after.windows(2).all(|pair| pair[0].dts < pair[1].dts));
        assert!(gapless(watcher.of(TrackId::SOURCE_VIDEO)));
        let record = cluster.origin().report().streams().await.remove(0);
        assert_eq!(record["ladder"]["failures"], 1, "{record}");
        cluster.stop().await;
    });
}

#[test]
fn without_ffmpeg_the_source_plays_and_the_record_says_what_is_missing() {
    run(async {
        let (cluster, _publisher, mut watcher) = start_with("/nowhere/ffmpeg", Picture::Test).await;
        watcher.adapt(true);
        watcher
            .until("three seconds of source", |watcher| {
                watcher.of(TrackId::SOURCE_VIDEO).len() > 90
            })
            .await;
        assert!(gapless(watcher.of(TrackId::SOURCE_VIDEO)));
        let record = cluster.origin().report().streams().await.remove(0);
        let ladder = &record["ladder"];
        assert_eq!(ladder["state"], "failing", "{record}");
        let error = ladder["last_error"].as_str().expect("an error");
        assert!(error.contains("/nowhere/ffmpeg"), "{error}");
        cluster.stop().await;
    });
}

#[test]
fn b_frames_are_repaired_by_a_rendition_of_the_sources_size() {
    run(async {
        let (cluster, _publisher, mut watcher) = start(Picture::BFrames).await;
        watcher.adapt(true);
        let repaired = watcher.rendition("360p").await;
        watcher
            .until("two seconds of it", |watcher| {
                watcher.of(repaired).len() > 60
            })
            .await;
        let source = watcher.track("source").expect("listed");
        let track = watcher.track("360p").expect("listed");
        assert!(source.reordered && !track.reordered);
        let (Configuration::H264(source), Configuration::H264(track)) =
            (&*source.configuration, &*track.configuration)
        else {
            panic!("pictures");
        };
        assert_eq!((source.width, source.height), (track.width, track.height));
        assert!(watcher.track("240p").is_some());
        let made = watcher.of(repaired);
        assert!(made.iter().all(|unit| unit.dts == unit.pts));
        assert!(made.windows(2).all(|pair| pair[0].pts < pair[1].pts));
        let sources: Vec<MediaTime> = watcher
            .of(TrackId::SOURCE_VIDEO)
            .iter()
            .map(|unit| unit.pts)
            .collect();
        assert!(made.iter().all(|unit| sources.contains(&unit.pts)));
        cluster.stop().await;
    });
}
