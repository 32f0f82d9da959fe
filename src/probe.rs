//! `headwater probe URL`: watches a stream as a real viewer does and says whether it is healthy.
//!
//! It joins by WHEP with the full `webrtc` PeerConnection (ICE, DTLS, SRTP, NACK, RTX), so whatever a browser
//! would stumble over on its way, the probe stumbles over too. Nothing is decoded: access units are put together and
//! judged by their NAL units, which costs a few per cent of a core and needs no codec.

use std::future::{Future, pending};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use headwater_node::clock::Clock;

mod events;
mod observer;
mod peer;
mod reception;
mod tally;
mod verdict;
mod visit;
mod whep;

use tally::{Join, Report};
use visit::Visit;
use whep::{Whep, WhepError};

/// How often time is looked at; bounds how late a timeout is noticed.
const TICK: Duration = Duration::from_millis(20);
/// From the first picture of a session that is gone over to, until it has run up to the live edge.
const RUN_UP: Duration = Duration::from_secs(1);
/// When the session that was to be gone over to can't be had.
const JOIN_AGAIN: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Exit codes:
  0   the stream is healthy
  1   it is not: the report says why
  2   it could not be joined
  64  the command line is wrong";

/// What `headwater probe` takes on the command line.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// The stream's WHEP endpoint or its player page, with its token if it has one: http://edge:8080/whep/app/stream or
    /// …/play/app/stream#token=TOKEN
    pub(crate) url: String,
    /// How long to watch after joining, such as 10s, 500ms or 2m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long joining may take, up to the first decodable frame
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub(crate) join_timeout: Duration,
    /// How long to wait for a publisher while the stream is not live yet, or its origin can't be reached
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Bearer token for the WHEP endpoint
    #[arg(
        long,
        value_name = "TOKEN",
        env = "HEADWATER_PROBE_BEARER",
        hide_env_values = true
    )]
    pub(crate) bearer: Option<String>,
    /// Unhealthy below this many complete video frames per second
    #[arg(long, value_name = "FPS", default_value_t = 1.0)]
    pub(crate) min_fps: f64,
    /// Unhealthy above this share of packets lost and never repaired, in per cent
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    pub(crate) max_loss: f64,
    /// Unhealthy above this median latency from ingest to here, in milliseconds, when frames are stamped
    #[arg(long, value_name = "MS")]
    pub(crate) max_latency: Option<f64>,
    /// Unhealthy without audio packets
    #[arg(long)]
    pub(crate) require_audio: bool,
    /// What media comes by. udp is what players prefer; tcp is for those whose network lets no UDP through
    #[arg(long, value_enum, default_value_t = Transport::Udp)]
    pub(crate) transport: Transport,
    /// Keep the first session, also when the server asks to join elsewhere because it is going to stop
    #[arg(long)]
    pub(crate) stay: bool,
    /// Prints what arrived so far this often while watching
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) interval: Option<Duration>,
    /// A line of JSON for each decodable picture too, with the publisher's stamp if it has one
    #[arg(long, requires = "json")]
    pub(crate) pictures: bool,
    /// One JSON object a line instead of a table: progress lines if --interval is given, then the report
    #[arg(long)]
    pub(crate) json: bool,
}

/// The ways to an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Probes and prints. The exit code is 0 for a healthy stream, 1 for an unhealthy one, 2 when joining failed.
pub(crate) async fn run(args: Args) -> ExitCode {
    let clock = Clock::system();
    match probe(&args, &clock).await {
        Ok(report) => {
            print(&args, &report, verdict::table);
            ExitCode::from(u8::from(!report.healthy))
        }
        Err(failure) => {
            let reason = format!("{failure}.");
            if args.json {
                let url = &args.url;
                let line = serde_json::json!({ "kind": "failed", "url": url, "healthy": false, "reasons": [reason] });
                say(&line.to_string());
            }
            complain(&format!("headwater probe: could not join: {reason}"));
            ExitCode::from(2)
        }
    }
}

/// Why there was nothing to watch. The texts are sentences without their full stop.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Whep(#[from] WhepError),
    #[error("the peer connection could not be set up: {0}")]
    Peer(#[from] webrtc::error::Error),
    #[error("{0} before the first picture")]
    Lost(&'static str),
    #[error("no decodable picture came within {} s; {reached}", .within.as_secs_f64())]
    TooLate {
        within: Duration,
        reached: &'static str,
    },
}

async fn probe(args: &Args, clock: &Clock) -> Result<Report, Failure> {
    let whep = Whep::new(&args.url, args.bearer.as_deref())?;
    let waiting_since = clock.now();
    loop {
        match watch(args, clock, &whep).await {
            Err(Failure::Whep(
                WhepError::NotLive { retry_after } | WhepError::NoUpstream { retry_after },
            )) if clock.now().saturating_duration_since(waiting_since) + retry_after
                <= args.wait =>
            {
                tokio::time::sleep(retry_after).await;
            }
            result => return result,
        }
    }
}

/// Joins and watches to the end, wherever the server sends it; closes connections and sessions whatever happens.
async fn watch(args: &Args, clock: &Clock, whep: &Whep) -> Result<Report, Failure> {
    let mut visit = Visit::join(clock.clone(), whep.clone(), args.transport).await?;
    if args.pictures {
        visit.tally.keep_pictures(0);
    }
    let mut journey = Journey {
        visit,
        joining: None,
        next: None,
        moved: 0,
        longest_freeze: Duration::ZERO,
    };
    let result = follow(args, clock, &mut journey).await;
    let report = result.map(|()| {
        let mut report = journey.report();
        verdict::judge(&mut report, args, journey.visit.lost);
        report
    });
    let Journey { visit, next, .. } = journey;
    visit.leave().await;
    if let Some(next) = next {
        next.leave().await;
    }
    report
}

type Joining = Pin<Box<dyn Future<Output = Result<Visit, Failure>>>>;

/// A viewer's way from one session to the next. As a player does, it watches the old one until the new one plays.
struct Journey {
    visit: Visit,
    joining: Option<Joining>,
    next: Option<Visit>,
    /// Times it went to another session.
    moved: u64,
    /// In sessions that are over, and between sessions.
    longest_freeze: Duration,
}

impl Journey {
    /// Waits for something to happen. Cancel-safe.
    async fn advance(&mut self, args: &Args, clock: &Clock) {
        let idle = self.joining.is_none() && self.next.is_none();
        let joined = async {
            match &mut self.joining {
                Some(joining) => joining.await,
                None => pending().await,
            }
        };
        let next = async {
            match &mut self.next {
                Some(next) => next.receive().await,
                None => pending().await,
            }
        };
        tokio::select! {
            url = next => {
                if let (Some(url), Some(next)) = (url, &mut self.next) {
                    next.invited = Some(url);
                }
            }
            url = self.visit.receive() => {
                if let (Some(url), true) = (url, idle && !args.stay) {
                    tracing::info!(%url, "asked to join elsewhere");
                    let whep = self.visit.whep.at(url);
                    self.join(args, clock, whep, Duration::ZERO);
                }
            }
            joined = joined => {
                self.joining = None;
                match joined {
                    Ok(mut visit) => {
                        if args.pictures {
                            visit.tally.keep_pictures(self.moved + 1);
                        }
                        self.next = Some(visit);
                    }
                    Err(failure) => {
                        tracing::info!(%failure, "could not go there");
                        // Perhaps there is no way to that one from here; whoever answers at the first address will do.
                        if let Ok(whep) = Whep::new(&args.url, args.bearer.as_deref()) {
                            self.join(args, clock, whep, JOIN_AGAIN);
                        }
                    }
                }
            }
        }
    }

    fn join(&mut self, args: &Args, clock: &Clock, whep: Whep, after: Duration) {
        let (clock, transport) = (clock.clone(), args.transport);
        self.joining = Some(Box::pin(async move {
            tokio::time::sleep(after).await;
            Visit::join(clock, whep, transport).await
        }));
    }

    /// Goes over once the next session plays at the live edge.
    async fn handle_timeout(&mut self, args: &Args, clock: &Clock, now: Instant) {
        self.visit.handle_timeout(now).await;
        let Some(next) = &mut self.next else {
            return;
        };
        next.handle_timeout(now).await;
        let stuck = !next.tally.playing()
            && next.tally.since_start(now) > args.join_timeout.as_secs_f64() * 1000.0;
        if next.lost.is_some() || stuck {
            if let Some(dead) = self.next.take() {
                tokio::spawn(dead.leave());
            }
            if let Ok(whep) = Whep::new(&args.url, args.bearer.as_deref()) {
                self.join(args, clock, whep, JOIN_AGAIN);
            }
        } else if next.tally.plays_since(now) >= RUN_UP
            && let Some(next) = self.next.take()
        {
            self.moved += 1;
            let invited = next.invited.clone();
            let mut before = std::mem::replace(&mut self.visit, next);
            tell(&mut before);
            let freeze = before.tally.longest_freeze(now);
            self.longest_freeze = self.longest_freeze.max(freeze);
            tokio::spawn(before.leave());
            // Asked to leave again before it had come.
            if let Some(url) = invited
                && !args.stay
            {
                let whep = self.visit.whep.at(url);
                self.join(args, clock, whep, Duration::ZERO);
            }
        }
    }

    /// Prints the pictures that came, if somebody asked for them.
    fn tell_pictures(&mut self) {
        tell(&mut self.visit);
        self.next.iter_mut().for_each(tell);
    }

    fn report(&self) -> Report {
        let mut report = self.visit.tally.report(self.visit.whep.endpoint().as_str());
        report.moved = self.moved;
        if let Some(video) = &mut report.video {
            let before = self.longest_freeze.as_secs_f64() * 1000.0;
            video.longest_freeze_ms = video.longest_freeze_ms.max(before);
        }
        report
    }
}

/// Watches until the time is up.
async fn follow(args: &Args, clock: &Clock, journey: &mut Journey) -> Result<(), Failure> {
    let joined_by = clock.now() + args.join_timeout;
    let mut watch_until = None;
    let mut progress_at = args.interval.map(|interval| clock.now() + interval);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    loop {
        tokio::select! {
            () = journey.advance(args, clock) => {}
            _ = tick.tick() => {}
            _ = &mut interrupted => return Ok(()),
        }
        let now = clock.now();
        journey.handle_timeout(args, clock, now).await;
        journey.tell_pictures();
        let tally = &journey.visit.tally;
        if let Some(how) = journey.visit.lost
            && journey.next.is_none()
            && journey.joining.is_none()
        {
            return match watch_until {
                Some(_) => Ok(()),
                None => Err(Failure::Lost(how)),
            };
        }
        if watch_until.is_none() && tally.playing() {
            watch_until = Some(now + args.duration);
        }
        match watch_until {
            Some(until) if now >= until => return Ok(()),
            Some(_) => {}
            // A stream of sound alone has no picture to wait for.
            None if now >= joined_by && tally.has_audio() && args.min_fps <= 0.0 => {
                watch_until = Some(now + args.duration);
            }
            None if now >= joined_by => {
                return Err(Failure::TooLate {
                    within: args.join_timeout,
                    reached: reached(&tally.join, args.transport),
                });
            }
            None => {}
        }
        if let (Some(at), Some(interval)) = (progress_at, args.interval)
            && now >= at
        {
            let mut report = journey.report();
            report.kind = "progress";
            print(args, &report, progress);
            progress_at = Some(now + interval);
        }
    }
}

/// How far a join that failed had come.
fn reached(join: &Join, transport: Transport) -> &'static str {
    match join {
        Join {
            first_packet_ms: Some(_),
            ..
        } => "packets came, but no complete keyframe",
        Join {
            dtls_ms: Some(_), ..
        } => "DTLS was through, but no packet came",
        Join {
            ice_ms: Some(_), ..
        } => "ICE had found a way, but DTLS did not finish",
        _ => match transport {
            Transport::Udp => "ICE found no way: UDP doesn't seem to reach the media port",
            Transport::Tcp => {
                "ICE found no way: TCP doesn't seem to reach the media port, or edge.media_tcp is off"
            }
        },
    }
}

fn print(args: &Args, report: &Report, text: fn(&Report) -> String) {
    if !args.json {
        say(text(report).trim_end());
        return;
    }
    match serde_json::to_string(report) {
        Ok(line) => say(&line),
        Err(error) => complain(&format!("headwater probe: {error}")),
    }
}

fn tell(visit: &mut Visit) {
    for picture in visit.tally.take_pictures() {
        match serde_json::to_string(&picture) {
            Ok(line) => say(&line),
            Err(error) => complain(&format!("headwater probe: {error}")),
        }
    }
}

/// One line while watching.
fn progress(report: &Report) -> String {
    let (fps, lost) = report
        .video
        .as_ref()
        .map_or((0.0, 0), |video| (video.fps, video.packets.lost));
    let latency = report.latency.as_ref().map_or(String::new(), |latency| {
        format!(" · latency p50 {:.1} ms", latency.p50_ms)
    });
    format!(
        "{:>7.1} s  {fps:.1} fps · {lost} lost{latency}",
        report.watched_seconds
    )
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn say(line: &str) {
    println!("{line}");
}

fn complain(line: &str) {
    eprintln!("{line}");
}

/// Reads `10s`, `1.5s`, `500ms` or `2m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, scale) = if let Some(number) = text.strip_suffix("ms") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60.0)
    } else {
        (text, 1.0)
    };
    let seconds: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 10s, 500ms or 2m"))?;
    Duration::try_from_secs_f64(seconds * scale).map_err(|_| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, expected_ms) in [
            ("10s", 10_000),
            ("1.5s", 1_500),
            ("500ms", 500),
            ("2m", 120_000),
            ("3", 3_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(expected_ms)),
                "{text}"
            );
        }
        for bad in ["", "s", "-1s", "ten", "1e300m", "NaN"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }
}
