//! The stages of a run, in order.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use headwater_bench::ports;
use headwater_bench::time::now;
use headwater_media::codec::h264::stamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cluster::{Cluster, Edge, Place};
use crate::floor::{self, Pattern, Task};
use crate::load::{Load, Window};
use crate::process::Process;
use crate::process::usage::Usage;
use crate::report::{Report, Stage, names};
use crate::sinks::Sinks;
use crate::stats::{Summary, round};

/// A part of the run that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Latency at 1, 100 and 400 viewers.
    Latency,
    /// From the POST to the first decodable picture, at 17 joins a second.
    Joins,
    /// CPU and memory of the edge with 500 viewers, and the floor that sends them the same.
    Fanout,
    /// The same with transport-wide feedback every 100 ms, which makes the edge pace.
    Paced,
    /// How many viewers one core serves well.
    Capacity,
    /// CPU per packet with two shards instead of one.
    Shards,
}

/// How a run goes.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) parts: Vec<Part>,
    /// Viewers of fan-out, pacing and shards (count).
    pub(crate) viewers: usize,
    /// Where the capacity stops being looked for (count).
    pub(crate) viewers_max: usize,
    /// How long each figure is measured.
    pub(crate) window: Duration,
}

/// Joins per second: one that doesn't beat with 30 pictures per second. The fast one is for stages that don't measure joining.
const JOINS_PER_SECOND: f64 = 17.0;
const FAST_JOINS_PER_SECOND: f64 = 53.0;

/// Viewers at which latency is measured, and the figures' names. On the way to the last, joining is measured too.
const LATENCY_AT: [(usize, &str, &str); 2] = [
    (1, names::LATENCY_1_P50, names::LATENCY_1_P99),
    (100, names::LATENCY_100_P50, names::LATENCY_100_P99),
];
const LATENCY_LAST: (usize, &str, &str) = (400, names::LATENCY_400_P50, names::LATENCY_400_P99);

/// Viewers that join in [`Part::Joins`] when no other stage needs more (count).
const JOINERS: usize = 200;

/// Steps of the capacity.
const STEPS: [usize; 11] = [
    600, 900, 1200, 1500, 2000, 2500, 3000, 3500, 4000, 5000, 6000,
];

/// What a core has to do for all its viewers.
const FRAMES_PER_SECOND_MIN: f64 = 29.9;
const LATENCY_P99_MAX_MS: f64 = 100.0;

/// What the origin and the kernel's own threads may use (cores). More is somebody else, and makes figures worthless.
const OTHERS_CORES_MAX: f64 = 0.25;

/// As browsers send it.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(100);

/// Before the floor is measured.
const FLOOR_SETTLE: Duration = Duration::from_millis(1500);

/// Descriptors beside those of viewers (count).
const SPARE_DESCRIPTORS: u64 = 200;

/// Runs what was asked for.
pub(crate) struct Run<'a> {
    place: &'a Place,
    options: &'a Options,
    cluster: Cluster,
    report: &'a mut Report,
    /// The worst of the stages in which nothing may be lost.
    loss_percent: Option<f64>,
    /// The most that others used in a stage: the origin, and what shouldn't be there.
    others_cores: f64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        place: &'a Place,
        options: &'a Options,
        report: &'a mut Report,
    ) -> Result<Self> {
        let most = allow_descriptors(options.viewers_max as u64 + SPARE_DESCRIPTORS)?;
        ensure!(
            most >= options.viewers as u64 + SPARE_DESCRIPTORS,
            "{} viewers need more open files than the {most} that are allowed here (ulimit -n)",
            options.viewers
        );
        Ok(Self {
            place,
            options,
            cluster: Cluster::start(place)?,
            report,
            loss_percent: None,
            others_cores: 0.0,
        })
    }

    /// All stages.
    pub(crate) fn run(mut self) -> Result<()> {
        let wants = |part| self.options.parts.contains(&part);
        let needs_floor = wants(Part::Fanout) || wants(Part::Paced);
        let mut edge = self.cluster.edge(1, &[self.place.server_core])?;
        let mut window = None;
        if wants(Part::Latency) || wants(Part::Joins) || needs_floor || wants(Part::Shards) {
            window = self.watching(&mut edge)?;
        }
        if let Some(window) = window.as_ref().filter(|_| needs_floor) {
            self.floor(window)?;
        }
        if self.options.parts.contains(&Part::Paced) {
            self.paced(&edge)?;
        }
        if self.options.parts.contains(&Part::Capacity) {
            self.capacity(&mut edge)?;
        }
        drop(edge);
        if let Some(window) = window.filter(|_| self.options.parts.contains(&Part::Shards)) {
            self.shards(&window)?;
        }
        if let Some(loss) = self.loss_percent {
            self.report.add(names::LOSS, loss, "%");
        }
        if self.others_cores > OTHERS_CORES_MAX {
            self.report.remarks.push(format!(
                "Something else used up to {:.1} cores meanwhile: measure again on a quiet machine.",
                self.others_cores
            ));
        }
        self.cluster.check()
    }

    /// Latency, joining and fan-out: viewers come and stay. Yields the window with all of them, if one was needed.
    fn watching(&mut self, edge: &mut Edge) -> Result<Option<Window>> {
        let wants = |part: Part| self.options.parts.contains(&part);
        let fanout = [Part::Fanout, Part::Paced, Part::Shards]
            .into_iter()
            .any(wants);
        let (latency, joins) = (wants(Part::Latency), wants(Part::Joins));
        let viewers = self.options.viewers;
        let mut joined = Vec::new();
        let before = Usage::of(edge.process.id())?;
        let mut load = Load::new(&edge.target, None)?;
        if latency {
            for (count, p50, p99) in LATENCY_AT.into_iter().filter(|at| at.0 <= viewers) {
                load.join(count, FAST_JOINS_PER_SECOND)?;
                self.latency(&mut load, edge, count, p50, p99)?;
            }
        }
        if latency || joins {
            let (count, p50, p99) = LATENCY_LAST;
            let most = if latency { count } else { JOINERS };
            joined = load.join(most.min(viewers), JOINS_PER_SECOND)?;
            if latency && viewers >= count {
                self.latency(&mut load, edge, count, p50, p99)?;
            }
        }
        if joins {
            let milliseconds = Summary::of(joined);
            self.report
                .add(names::JOIN_P50, round(milliseconds.p50, 2), "ms");
            self.report
                .add(names::JOIN_P95, round(milliseconds.p95, 2), "ms");
            self.report.stages.push(Stage::Joining {
                rate: JOINS_PER_SECOND,
                milliseconds,
            });
        }
        let mut window = None;
        if fanout {
            load.join(viewers, FAST_JOINS_PER_SECOND)?;
            let measured = self.measure(&mut load, edge, &format!("fan-out to {viewers}"))?;
            let after = measured.server_resident_kb;
            let memory = (after - before.resident_bytes as f64 / 1024.0) / measured.viewers as f64;
            if wants(Part::Fanout) {
                self.report.add(names::MEMORY, round(memory, 1), "kB");
            }
            window = Some(measured);
        }
        load.leave()?;
        Ok(window)
    }

    fn latency(
        &mut self,
        load: &mut Load,
        edge: &Edge,
        count: usize,
        p50: &'static str,
        p99: &'static str,
    ) -> Result<()> {
        let window = self.measure(load, edge, &format!("latency with {count}"))?;
        self.report.add(p50, round(window.latency_ms.p50, 2), "ms");
        self.report.add(p99, round(window.latency_ms.p99, 2), "ms");
        Ok(())
    }

    /// The floor, sending what was measured: each picture in one message, and then as the edge has to, with the stamp in a datagram of
    /// its own. That is a NAL unit, RTP has no way to put it and a fragment of another into one packet (RFC 6184), and the kernel cuts messages
    /// into equal datagrams only.
    fn floor(&mut self, window: &Window) -> Result<()> {
        let whole_pictures = Pattern {
            frames_per_second: f64::from(headwater_bench::clip::FRAME_RATE),
            packets_per_frame: window.packets_per_frame,
            stamp_bytes: 0,
            video_bytes: whole(window.video_bytes),
            audio_per_second: window.audio_per_second,
            audio_bytes: whole(window.audio_bytes),
        };
        let stamp_bytes = floor::OVERHEAD_BYTES + stamp::write(0).len();
        let others = window.packets_per_frame - 1.0;
        let picture_bytes = window.video_bytes * window.packets_per_frame - stamp_bytes as f64;
        let stamped_pictures = Pattern {
            stamp_bytes,
            video_bytes: whole(picture_bytes / others.max(1.0)),
            ..whole_pictures
        };
        let edge = window.nanoseconds_per_packet;
        let floor = self.run_floor("floor", whole_pictures)?;
        self.report.add(names::FLOOR, round(floor, 0), "ns");
        let same = self.run_floor("floor with stamps", stamped_pictures)?;
        self.report.add(names::STAMPED_FLOOR, round(same, 0), "ns");
        self.report.add(names::PER_PACKET, edge, "ns");
        self.report.add(names::RATIO, round(edge / floor, 3), "");
        self.report
            .add(names::STAMPED_RATIO, round(edge / same, 3), "");
        Ok(())
    }

    /// The floor's CPU time per packet (nanoseconds).
    fn run_floor(&mut self, name: &str, pattern: Pattern) -> Result<f64> {
        let viewers = self.options.viewers;
        let port = ports::free(1);
        let mut sinks = Sinks::open(viewers, port)?;
        let mut process = Process::start(
            "floor",
            &std::env::current_exe()?,
            &["floor".to_owned()],
            &[self.place.server_core],
            &self.place.directory,
        )?;
        let task = Task {
            port,
            sinks: sinks.ports()?,
            pattern,
        };
        process.tell(&serde_json::to_string(&task)?)?;
        sinks.run(FLOOR_SETTLE)?;
        process.check()?;
        let (start, before) = (now(), Usage::of(process.id())?);
        let packets = sinks.run(self.options.window)?;
        let seconds = start.elapsed().as_secs_f64();
        let cpu = Usage::of(process.id())?.cpu.saturating_sub(before.cpu);
        process.check()?;
        drop(process);

        let expected = pattern.packets_per_second() * seconds * viewers as f64;
        ensure!(
            (packets as f64 - expected).abs() < 0.02 * expected,
            "the floor sent {packets} packets where {expected:.0} were due: this machine is too busy or too slow"
        );
        let nanoseconds = cpu.as_secs_f64() * 1e9 / packets as f64;
        say(&format!("{name} to {viewers}: {nanoseconds:.0} ns/packet"));
        self.report.stages.push(Stage::Floor {
            pattern,
            viewers,
            packets_per_second: round(packets as f64 / seconds, 0),
            cores: round(cpu.as_secs_f64() / seconds, 4),
            nanoseconds_per_packet: round(nanoseconds, 0),
        });
        Ok(nanoseconds)
    }

    fn paced(&mut self, edge: &Edge) -> Result<()> {
        let viewers = self.options.viewers;
        let mut load = Load::new(&edge.target, Some(FEEDBACK_INTERVAL))?;
        load.join(viewers, FAST_JOINS_PER_SECOND)?;
        let window = self.measure(&mut load, edge, &format!("fan-out to {viewers}, paced"))?;
        load.leave()?;
        self.report
            .add(names::PACED, window.nanoseconds_per_packet, "ns");
        if let Some(floor) = self.report.value(names::FLOOR) {
            let ratio = window.nanoseconds_per_packet / floor;
            self.report.add(names::PACED_RATIO, round(ratio, 3), "");
        }
        let p99 = window.keyframe_latency_ms.p99;
        self.report
            .add(names::PACED_KEYFRAME_P99, round(p99, 1), "ms");
        Ok(())
    }

    /// Ever more viewers, until they are not served well.
    fn capacity(&mut self, edge: &mut Edge) -> Result<()> {
        let mut load = Load::new(&edge.target, None)?;
        let mut best: Option<Window> = None;
        for count in STEPS
            .into_iter()
            .filter(|count| *count <= self.options.viewers_max)
        {
            load.join(count, FAST_JOINS_PER_SECOND)?;
            let name = format!("capacity, {count}");
            let window = load.measure(self.options.window, edge.process.id())?;
            self.told(&name, &window);
            let served = window.viewers == count
                && window.frames_per_second.p50 >= FRAMES_PER_SECOND_MIN
                && window.loss_percent == 0.0
                && window.latency_ms.p99 <= LATENCY_P99_MAX_MS;
            if !served {
                let mut why = load.failures();
                why.truncate(3);
                if window.load_cores > 0.9 {
                    why.push("the load's own core was busy, so the edge may do better".to_owned());
                }
                self.report.remarks.push(format!(
                    "With {count} viewers: {:.2} pictures per second, {} % lost, p99 {:.0} ms, {} not watching{}{}",
                    window.frames_per_second.p50,
                    window.loss_percent,
                    window.latency_ms.p99,
                    window.failed,
                    if why.is_empty() { "" } else { ": " },
                    why.join("; "),
                ));
                break;
            }
            best = Some(window);
        }
        load.leave()?;
        let Some(best) = best else {
            self.report.add(names::CAPACITY, 0.0, "");
            return Ok(());
        };
        self.report.add(names::CAPACITY, best.viewers as f64, "");
        self.report.add(
            names::CAPACITY_PER_PACKET,
            best.nanoseconds_per_packet,
            "ns",
        );
        self.report
            .add(names::CAPACITY_P99, round(best.latency_ms.p99, 1), "ms");
        Ok(())
    }

    /// The same viewers on two shards, on the core of the edge and on that of the load: only on two cores would shards hinder each other. What is
    /// compared is CPU time, so it counts that the load competes, but not how long anybody waits for it.
    fn shards(&mut self, one: &Window) -> Result<()> {
        let viewers = self.options.viewers;
        let cores = [self.place.server_core, self.place.load_core];
        let edge = self.cluster.edge(2, &cores)?;
        let mut load = Load::new(&edge.target, None)?;
        load.join(viewers, FAST_JOINS_PER_SECOND)?;
        let two = self.measure(&mut load, &edge, &format!("fan-out to {viewers}, 2 shards"))?;
        load.leave()?;
        let ratio = two.nanoseconds_per_packet / one.nanoseconds_per_packet;
        self.report.add(names::SHARDS, round(ratio, 3), "");
        Ok(())
    }

    /// A window in which everybody has to watch.
    fn measure(&mut self, load: &mut Load, edge: &Edge, name: &str) -> Result<Window> {
        let window = load.measure(self.options.window, edge.process.id())?;
        self.told(name, &window);
        if window.failed > 0 {
            let why = load.failures().join("; ");
            bail!("{name}: {} viewers don't watch: {why}", window.failed);
        }
        let worst = self.loss_percent.unwrap_or(0.0).max(window.loss_percent);
        self.loss_percent = Some(worst);
        self.cluster.check()?;
        Ok(window)
    }

    fn told(&mut self, name: &str, window: &Window) {
        say(&format!(
            "{name}: {:.0} ns/packet, {:.2} pictures/s, {} % lost, latency p50/p99 {:.1}/{:.1} ms; cores: edge {:.2}, load {:.2}, others {:.2}",
            window.nanoseconds_per_packet,
            window.frames_per_second.p50,
            window.loss_percent,
            window.latency_ms.p50,
            window.latency_ms.p99,
            window.server_cores,
            window.load_cores,
            window.others_cores,
        ));
        self.others_cores = self.others_cores.max(window.others_cores);
        self.report.stages.push(Stage::Watching {
            name: name.to_owned(),
            window: Box::new(window.clone()),
        });
    }
}

/// A line of progress.
fn say(text: &str) {
    eprintln!("{text}");
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bytes of a datagram"
)]
fn whole(bytes: f64) -> usize {
    bytes.round() as usize
}

/// Raises the limit of open files as far as it goes, `wanted` at most, and returns what it is then.
fn allow_descriptors(wanted: u64) -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let raised = wanted.clamp(soft, hard.max(soft));
    setrlimit(Resource::RLIMIT_NOFILE, raised, hard)?;
    Ok(raised)
}
