//! The load: many viewers on one thread, and a window in which they are measured.
//!
//! Ordinary viewers do all that a browser does to stay (handshake, checks, reports, feedback) and count packets by their clear headers;
//! decrypting for thousands would make the load the bottleneck. Every 25th is a probe, which opens the video too. The thread reads its
//! sockets in rounds of two milliseconds, so that packets are taken in batches; times are the kernel's, so the rounds don't blur them.

mod dtls;
mod feedback;
mod probe;
mod reception;
mod sdp;
pub(crate) mod socket;
mod stun;
mod viewer;

use std::sync::mpsc::{Receiver as Results, Sender as Jobs, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use headwater_bench::http;
use headwater_bench::time::{now, pause};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};
use rand::Rng;
use rand::distr::Alphanumeric;
use serde::Serialize;

use self::dtls::Identity;
use self::sdp::{Answer, Offer};
use self::socket::{Receiver, Socket};
use self::viewer::{Totals, Viewer};
use crate::process::usage::{Machine, Usage};
use crate::stats::{Summary, round};

/// One viewer in this many is a probe.
const PROBE_EVERY: usize = 25;

/// Length of a round while measuring, and while viewers join, who shouldn't wait for it.
pub(crate) const ROUND: Duration = Duration::from_millis(2);
const JOINING_ROUND: Duration = Duration::from_micros(200);

const TICK: Duration = Duration::from_millis(10);
const TICKS_PER_SECOND: usize = 100;

/// Events taken by one call (count).
pub(crate) const EVENTS: usize = 1024;

/// Threads that speak HTTP (count).
const HTTP_THREADS: usize = 8;

/// After the last viewer joined: the GOPs of their start are over, their stamps are of the present.
const SETTLE: Duration = Duration::from_millis(1500);

/// How long viewers may take to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What is watched.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Of the edge's HTTP.
    pub(crate) port: u16,
    /// `app/stream`.
    pub(crate) stream: String,
}

/// What was measured in a window.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Window {
    pub(crate) viewers: usize,
    /// Viewers that could not join, or were lost.
    pub(crate) failed: usize,
    pub(crate) seconds: f64,
    pub(crate) packets_per_second: f64,
    pub(crate) megabits_per_second: f64,
    /// Of the video, and the mean size of its datagrams and of audio's (bytes, sealed).
    pub(crate) packets_per_frame: f64,
    pub(crate) video_bytes: f64,
    pub(crate) audio_bytes: f64,
    /// Audio packets per viewer and second.
    pub(crate) audio_per_second: f64,
    /// Pictures per second, over viewers.
    pub(crate) frames_per_second: Summary,
    /// Sequence numbers that never came, in per cent.
    pub(crate) loss_percent: f64,
    /// Times that a viewer saw no new picture for 200 ms.
    pub(crate) stalls: u64,
    /// Publisher's socket to viewer's socket, of the probes (ms).
    pub(crate) latency_ms: Summary,
    pub(crate) keyframe_latency_ms: Summary,
    /// Pictures that probes could not have shown.
    pub(crate) undecodable: u64,
    /// CPU of the server in cores, and per packet that arrived.
    pub(crate) server_cores: f64,
    pub(crate) nanoseconds_per_packet: f64,
    pub(crate) server_resident_kb: f64,
    /// CPU of this process: load and publisher.
    pub(crate) load_cores: f64,
    /// CPU of neither. If it is much, the figures are somebody else's too.
    pub(crate) others_cores: f64,
    /// Datagrams that the kernel dropped because a socket here was full.
    pub(crate) dropped_here: u64,
}

/// Many viewers.
pub(crate) struct Load {
    feedback: Option<Duration>,
    identity: Identity,
    epoll: Epoll,
    receiver: Receiver,
    viewers: Vec<(Socket, Viewer)>,
    jobs: Jobs<Job>,
    results: Results<Done>,
    ticked: Instant,
    ticks: usize,
}

enum Job {
    Join { viewer: usize, offer: String },
    Leave { path: String },
}

struct Done {
    /// `None`: it left.
    viewer: Option<usize>,
    answer: Option<http::Answer>,
}

impl Load {
    /// Nobody yet. With `feedback`, viewers offer transport-wide feedback and send it that often.
    pub(crate) fn new(target: &Target, feedback: Option<Duration>) -> Result<Self> {
        let (jobs, waiting) = channel();
        let (done, results) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for number in 0..HTTP_THREADS {
            let (target, waiting, done) = (target.clone(), Arc::clone(&waiting), done.clone());
            std::thread::Builder::new()
                .name(format!("http-{number}"))
                .spawn(move || work(&target, &waiting, &done))?;
        }
        Ok(Self {
            feedback,
            identity: Identity::generate()?,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            receiver: Receiver::new(),
            viewers: Vec::new(),
            jobs,
            results,
            ticked: now(),
            ticks: 0,
        })
    }

    /// Adds viewers until there are `count`, `rate` a second, waits until each watches or gave up, and lets them settle. Returns how
    /// long each newcomer took from its POST to the first picture that a decoder can show (ms).
    pub(crate) fn join(&mut self, count: usize, rate: f64) -> Result<Vec<f64>> {
        let before = self.viewers.len();
        let start = now();
        while self.viewers.len() < count {
            let due = before + 1 + whole(start.elapsed().as_secs_f64() * rate);
            while self.viewers.len() < due.min(count) {
                self.begin()?;
            }
            self.round(JOINING_ROUND)?;
        }
        while self.viewers[before..].iter().any(|(_, v)| v.is_joining()) {
            self.round(JOINING_ROUND)?;
        }
        self.run(SETTLE)?;
        let newcomers = self.viewers[before..].iter();
        Ok(newcomers
            .filter_map(|(_, viewer)| viewer.joined_ms)
            .collect())
    }

    fn begin(&mut self) -> Result<()> {
        let number = self.viewers.len();
        let socket = Socket::open(&self.epoll, number as u64)?;
        let text = |length| {
            let random = rand::rng().sample_iter(Alphanumeric).take(length);
            random.map(char::from).collect::<String>()
        };
        let viewer = Viewer::new(
            number,
            number.is_multiple_of(PROBE_EVERY),
            text(8),
            text(24),
        );
        let offer = Offer {
            port: socket.port()?,
            ufrag: &viewer.ufrag,
            pwd: &viewer.pwd,
            fingerprint: &self.identity.fingerprint,
            transport_cc: self.feedback.is_some(),
        };
        let job = Job::Join {
            viewer: number,
            offer: offer.write(),
        };
        self.viewers.push((socket, viewer));
        self.jobs.send(job).context("the HTTP threads are gone")
    }

    /// Goes on for a while.
    pub(crate) fn run(&mut self, span: Duration) -> Result<()> {
        let end = now() + span;
        while now() < end {
            self.round(ROUND)?;
        }
        Ok(())
    }

    /// Measures for a while what the viewers get, and what `server` (a process id) spends on it.
    pub(crate) fn measure(&mut self, span: Duration, server: u32) -> Result<Window> {
        for (_, viewer) in &mut self.viewers {
            if let Some(probe) = viewer.probe() {
                probe.seen = probe::Seen::default();
            }
        }
        let before = Snapshot::take(&self.viewers, server)?;
        self.run(span)?;
        let after = Snapshot::take(&self.viewers, server)?;
        Ok(self.window(&before, &after))
    }

    fn window(&mut self, before: &Snapshot, after: &Snapshot) -> Window {
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let mut window = Window {
            seconds: round(seconds, 3),
            ..Window::default()
        };
        let (mut latency, mut keyframes, mut rates) = (Vec::new(), Vec::new(), Vec::new());
        let (mut video, mut audio) = (Sum::default(), Sum::default());
        let totals = before.totals.iter().zip(&after.totals);
        for ((_, viewer), (old, new)) in self.viewers.iter_mut().zip(totals) {
            if !viewer.is_live() {
                window.failed += 1;
                continue;
            }
            window.viewers += 1;
            window.stalls += new.stalls - old.stalls;
            let frames = new.video.frames - old.video.frames;
            rates.push(round(frames as f64 / seconds, 3));
            video.add(&old.video, &new.video);
            audio.add(&old.audio, &new.audio);
            if let Some(probe) = viewer.probe() {
                let seen = std::mem::take(&mut probe.seen);
                latency.extend(seen.latency_ms);
                keyframes.extend(seen.keyframe_latency_ms);
                window.undecodable += seen.undecodable + seen.forged;
            }
        }
        let packets = video.packets + audio.packets;
        let lost = video.lost + audio.lost;
        let per = |sum: u64, count: u64| round(sum as f64 / count.max(1) as f64, 2);
        window.packets_per_second = round(packets as f64 / seconds, 0);
        window.megabits_per_second = round((video.bytes + audio.bytes) as f64 * 8e-6 / seconds, 1);
        window.packets_per_frame = per(video.packets, video.frames);
        window.video_bytes = per(video.bytes, video.packets);
        window.audio_bytes = per(audio.bytes, audio.packets);
        let watched = window.viewers.max(1) as f64 * seconds;
        window.audio_per_second = round(audio.packets as f64 / watched, 2);
        window.frames_per_second = Summary::of(rates);
        window.loss_percent = round(100.0 * lost as f64 / (packets + lost).max(1) as f64, 4);
        window.latency_ms = Summary::of(latency);
        window.keyframe_latency_ms = Summary::of(keyframes);

        let server = after.server.cpu.saturating_sub(before.server.cpu);
        let own = after.own.cpu.saturating_sub(before.own.cpu);
        let busy = after.machine.busy.saturating_sub(before.machine.busy);
        let cores = |cpu: Duration| cpu.as_secs_f64() / seconds;
        window.server_cores = round(cores(server), 4);
        let nanoseconds = server.as_secs_f64() * 1e9 / packets.max(1) as f64;
        window.nanoseconds_per_packet = round(nanoseconds, 0);
        window.server_resident_kb = after.server.resident_bytes as f64 / 1024.0;
        window.load_cores = round(cores(own), 4);
        window.others_cores = round((cores(busy) - cores(server) - cores(own)).max(0.0), 3);
        window.dropped_here = after.machine.udp_dropped - before.machine.udp_dropped;
        window
    }

    /// Reasons of those who could not join, each once.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut reasons: Vec<String> = self
            .viewers
            .iter()
            .filter_map(|(_, viewer)| viewer.failure().map(str::to_owned))
            .collect();
        reasons.sort_unstable();
        reasons.dedup();
        reasons
    }

    /// Everybody leaves as a player does.
    pub(crate) fn leave(mut self) -> Result<()> {
        let mut left = 0;
        for (_, viewer) in &mut self.viewers {
            if let Some(path) = viewer.session.take() {
                self.jobs.send(Job::Leave { path })?;
                left += 1;
            }
        }
        let end = now() + LEAVE_TIMEOUT;
        while left > 0 {
            let Ok(done) = self
                .results
                .recv_timeout(end.saturating_duration_since(now()))
            else {
                bail!("{left} viewers could not leave within {LEAVE_TIMEOUT:?}");
            };
            left -= usize::from(done.viewer.is_none());
        }
        Ok(())
    }

    fn round(&mut self, length: Duration) -> Result<()> {
        let began = now();
        while let Ok(done) = self.results.try_recv() {
            self.take_answer(done);
        }
        let mut events = [EpollEvent::empty(); EVENTS];
        let timeout = if length < TICK / 10 {
            EpollTimeout::ZERO
        } else {
            EpollTimeout::try_from(length)?
        };
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let identity = &self.identity;
        for event in &events[..count] {
            let viewer = usize::try_from(event.data())?;
            let Some((socket, viewer)) = self.viewers.get_mut(viewer) else {
                continue;
            };
            self.receiver.receive(socket, |datagram, _, at| {
                viewer.handle_datagram(identity, socket, datagram, at);
            });
        }
        let time = now();
        if time.duration_since(self.ticked) >= TICK {
            self.ticked = time;
            self.ticks += 1;
            let (second, slot) = (self.ticks / TICKS_PER_SECOND, self.ticks % TICKS_PER_SECOND);
            for (number, (socket, viewer)) in self.viewers.iter_mut().enumerate() {
                viewer.handle_tick(time, identity, socket);
                if number % TICKS_PER_SECOND == slot {
                    viewer.handle_second(identity, socket, second as u64);
                }
            }
        }
        pause(length.saturating_sub(began.elapsed()));
        Ok(())
    }

    fn take_answer(&mut self, done: Done) {
        let Some((socket, viewer)) = done.viewer.and_then(|v| self.viewers.get_mut(v)) else {
            return;
        };
        let Some(answer) = done.answer else {
            return viewer.fail("nobody answered the offer");
        };
        if answer.status != 201 {
            return viewer.fail(&format!("{}: {}", answer.status, answer.body));
        }
        viewer.session = answer.header("location").map(path_of);
        match Answer::parse(&answer.body) {
            Ok(answer) => viewer.handle_answer(&self.identity, socket, answer, self.feedback),
            Err(error) => viewer.fail(&error),
        }
    }
}

/// A URL's path: the Location may be absolute.
fn path_of(location: &str) -> String {
    let path = location
        .split_once("://")
        .and_then(|(_, rest)| rest.find('/').map(|slash| &rest[slash..]));
    path.unwrap_or(location).to_owned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of viewers, never negative"
)]
fn whole(count: f64) -> usize {
    count as usize
}

fn work(target: &Target, waiting: &Mutex<Results<Job>>, done: &Jobs<Done>) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let result = match job {
            Ok(Job::Join { viewer, offer }) => Done {
                viewer: Some(viewer),
                answer: http::request(
                    target.port,
                    "POST",
                    &format!("/whep/{}", target.stream),
                    &[("Content-Type", "application/sdp")],
                    &offer,
                ),
            },
            Ok(Job::Leave { path }) => Done {
                viewer: None,
                answer: http::request(target.port, "DELETE", &path, &[], ""),
            },
            Err(_) => return,
        };
        if done.send(result).is_err() {
            return;
        }
    }
}

/// Everything that a window's figures are differences of.
struct Snapshot {
    at: Instant,
    server: Usage,
    own: Usage,
    machine: Machine,
    totals: Vec<Totals>,
}

impl Snapshot {
    fn take(viewers: &[(Socket, Viewer)], server: u32) -> Result<Self> {
        Ok(Self {
            totals: viewers.iter().map(|(_, viewer)| viewer.totals()).collect(),
            server: Usage::of(server)?,
            own: Usage::of(std::process::id())?,
            machine: Machine::read()?,
            at: now(),
        })
    }
}

#[derive(Default)]
struct Sum {
    packets: u64,
    bytes: u64,
    frames: u64,
    lost: u64,
}

impl Sum {
    fn add(&mut self, old: &reception::Counts, new: &reception::Counts) {
        let packets = new.packets - old.packets;
        self.packets += packets;
        self.bytes += new.bytes - old.bytes;
        self.frames += new.frames - old.frames;
        self.lost += (new.expected - old.expected).saturating_sub(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_may_be_absolute() {
        for location in ["/whep/live/a/x", "http://127.0.0.1:8080/whep/live/a/x"] {
            assert_eq!(path_of(location), "/whep/live/a/x");
        }
    }
}
