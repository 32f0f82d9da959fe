//! One viewer: asks, checks, shakes hands, then counts what arrives.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use headwater_bench::time::{now, wall};
use rtc_srtp::context::Context;

use super::dtls::{Client, Identity};
use super::feedback::{Recorder, receiver_report};
use super::probe::Probe;
use super::reception::{Counts, Header, Reception};
use super::sdp::{Answer, Kind};
use super::socket::Socket;
use super::stun;

/// Between two checks that stay unanswered, as browsers do on a new path.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How long joining may take.
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

/// No new picture for this long is a stall: people see it.
const STALL: Duration = Duration::from_millis(200);

/// How far a viewer is.
enum State {
    /// The offer is on its way.
    Posting,
    /// Answered; no check came back yet.
    Checking {
        sent: Instant,
    },
    Handshaking(Box<Client>),
    Live,
    Failed(String),
}

/// What a viewer counts of itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Totals {
    pub(crate) video: Counts,
    pub(crate) audio: Counts,
    pub(crate) stalls: u64,
}

/// See the module. Its socket is kept beside it.
pub(crate) struct Viewer {
    /// In the order of joining.
    pub(crate) number: usize,
    pub(crate) ufrag: String,
    pub(crate) pwd: String,
    state: State,
    /// Probes that are more than one until their first picture.
    probing: bool,
    probe: Option<Box<Probe>>,
    answer: Option<Answer>,
    sealer: Option<Context>,
    video: Option<Reception>,
    audio: Option<Reception>,
    reported: [(u64, u64); 2],
    stalls: u64,
    last_frame: Option<Duration>,
    feedback: Option<Feedback>,
    began: Instant,
    /// When the offer was handed over (since the Unix epoch).
    posted: Duration,
    /// From there to the first picture that a decoder can show.
    pub(crate) joined_ms: Option<f64>,
    /// The path of its session.
    pub(crate) session: Option<String>,
    scratch: Vec<u8>,
}

struct Feedback {
    interval: Duration,
    due: Instant,
    recorder: Recorder,
}

impl Viewer {
    /// One whose offer is being posted now. `probing`: it opens the video for as long as it watches.
    pub(crate) fn new(number: usize, probing: bool, ufrag: String, pwd: String) -> Self {
        Self {
            number,
            ufrag,
            pwd,
            state: State::Posting,
            probing,
            probe: None,
            answer: None,
            sealer: None,
            video: None,
            audio: None,
            reported: [(0, 0); 2],
            stalls: 0,
            last_frame: None,
            feedback: None,
            began: now(),
            posted: wall(),
            joined_ms: None,
            session: None,
            scratch: Vec::new(),
        }
    }

    /// It watches.
    pub(crate) const fn is_live(&self) -> bool {
        matches!(self.state, State::Live) && self.video.is_some()
    }

    /// It is still to be seen whether it will.
    pub(crate) const fn is_joining(&self) -> bool {
        !matches!(self.state, State::Failed(_)) && self.joined_ms.is_none()
    }

    /// Why it can't watch.
    pub(crate) fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Failed(why) => Some(why),
            _ => None,
        }
    }

    /// What it counted so far.
    pub(crate) fn totals(&self) -> Totals {
        let counts = |stream: &Option<Reception>| stream.as_ref().map(|s| s.counts);
        Totals {
            video: counts(&self.video).unwrap_or_default(),
            audio: counts(&self.audio).unwrap_or_default(),
            stalls: self.stalls,
        }
    }

    /// What it opened, if it is a probe.
    pub(crate) fn probe(&mut self) -> Option<&mut Probe> {
        self.probe.as_deref_mut()
    }

    /// It gives up.
    pub(crate) fn fail(&mut self, why: &(impl ToString + ?Sized)) {
        if self.failure().is_none() {
            self.state = State::Failed(why.to_string());
        }
    }

    /// The server answered. `feedback`: how often it is told how packets arrive, if it numbers them.
    pub(crate) fn handle_answer(
        &mut self,
        identity: &Identity,
        socket: &Socket,
        answer: Answer,
        feedback: Option<Duration>,
    ) {
        let now = now();
        if let (Some(interval), Some(_)) = (feedback, answer.transport_sequence) {
            // Viewers start at different moments of the interval.
            let micros = self.number as u128 * 7919 % interval.as_micros().max(1);
            let phase = Duration::from_micros(u64::try_from(micros).unwrap_or(0));
            self.feedback = Some(Feedback {
                interval,
                due: now + interval + phase,
                recorder: Recorder::default(),
            });
        }
        self.state = State::Checking { sent: now };
        if let Err(error) = socket.connect(answer.candidate) {
            self.fail(&error);
        }
        self.answer = Some(answer);
        self.check(identity, socket);
    }

    /// A datagram came (`at` since the Unix epoch).
    pub(crate) fn handle_datagram(
        &mut self,
        identity: &Identity,
        socket: &Socket,
        datagram: &[u8],
        at: Duration,
    ) {
        // RFC 7983 section 7.
        match datagram {
            [0..=3, ..] => self.handle_stun(identity, socket, datagram),
            [20..=63, ..] => self.handle_dtls(identity, socket, datagram),
            // RTCP's types (RFC 5761 section 4) are reports that we have no use for.
            [128..=191, second, ..] if !(192..=223).contains(second) => {
                self.handle_rtp(datagram, at);
            }
            _ => {}
        }
    }

    fn handle_stun(&mut self, identity: &Identity, socket: &Socket, datagram: &[u8]) {
        if !matches!(self.state, State::Checking { .. }) || !stun::is_success(datagram) {
            return;
        }
        match Client::connect(identity, now()) {
            Ok(mut client) => {
                flush(&mut client, socket);
                self.state = State::Handshaking(Box::new(client));
            }
            Err(error) => self.fail(&error),
        }
    }

    fn handle_dtls(&mut self, identity: &Identity, socket: &Socket, datagram: &[u8]) {
        let State::Handshaking(client) = &mut self.state else {
            return;
        };
        let result = client
            .handle_datagram(now(), datagram)
            .and_then(|complete| complete.then(|| client.keys(identity)).transpose());
        flush(client, socket);
        match result {
            Ok(None) => {}
            Ok(Some(keys)) if keys.gcm => {
                self.sealer = Some(keys.sealer);
                // Everybody opens what it gets until its first picture, to say when it was there.
                self.probe = Some(Box::new(Probe::new(keys.opener)));
                self.state = State::Live;
            }
            Ok(Some(_)) => self.fail("the server did not choose AES-128-GCM"),
            Err(error) => self.fail(&error),
        }
    }

    fn handle_rtp(&mut self, packet: &[u8], at: Duration) {
        let Some(answer) = &self.answer else {
            return;
        };
        let Some(header) = Header::parse(packet, answer.transport_sequence) else {
            return;
        };
        if let (Some(feedback), Some(number)) = (&mut self.feedback, header.transport_sequence) {
            feedback.recorder.handle_packet(number, at);
        }
        let stream = match answer.kind(header.payload_type) {
            Kind::Video => &mut self.video,
            Kind::Audio => &mut self.audio,
            Kind::Other => return,
        };
        let is_video = answer.kind(header.payload_type) == Kind::Video;
        let began = stream
            .get_or_insert_with(|| Reception::new(header.ssrc))
            .handle_packet(&header, packet.len());
        if !is_video {
            return;
        }
        if began {
            let silent = self.last_frame.is_some_and(|last| at > last + STALL);
            self.stalls += u64::from(silent);
            self.last_frame = Some(at);
        }
        let Some(probe) = &mut self.probe else {
            return;
        };
        probe.handle_packet(&header, packet, at);
        if let (None, Some(shown)) = (self.joined_ms, probe.first_decodable) {
            let joining = shown.as_secs_f64() - self.posted.as_secs_f64();
            self.joined_ms = Some(1e3 * joining);
            if !self.probing {
                self.probe = None;
            }
        }
    }

    /// Every 10 ms: what got no answer is sent again, feedback that is due leaves.
    pub(crate) fn handle_tick(&mut self, now: Instant, identity: &Identity, socket: &Socket) {
        match &mut self.state {
            State::Checking { sent } if now >= *sent + CHECK_INTERVAL => {
                *sent = now;
                self.check(identity, socket);
            }
            State::Handshaking(client) => {
                client.handle_timeout(now);
                flush(client, socket);
            }
            State::Live => self.send_feedback(now, socket),
            State::Posting | State::Checking { .. } | State::Failed(_) => {}
        }
        if self.is_joining() && now > self.began + JOIN_TIMEOUT {
            let phase = match &self.state {
                State::Posting => "the answer",
                State::Checking { .. } => "a check",
                State::Handshaking(_) => "the handshake",
                State::Live | State::Failed(_) => "a picture",
            };
            self.fail(&format!("waited for {phase} in vain"));
        }
    }

    /// Once a second: a receiver report, and every other time a consent check (RFC 7675).
    pub(crate) fn handle_second(&mut self, identity: &Identity, socket: &Socket, second: u64) {
        if !matches!(self.state, State::Live) {
            return;
        }
        if (second + self.number as u64).is_multiple_of(2) {
            self.check(identity, socket);
        }
        let mut report = std::mem::take(&mut self.scratch);
        let streams = [&self.video, &self.audio];
        receiver_report(self.own_ssrc(), streams, &mut self.reported, &mut report);
        self.send_control(socket, &report);
        self.scratch = report;
    }

    fn send_feedback(&mut self, now: Instant, socket: &Socket) {
        let own = self.own_ssrc();
        let media = self.video.as_ref().map_or(0, |video| video.ssrc);
        let Some(feedback) = self.feedback.as_mut().filter(|f| f.due <= now) else {
            return;
        };
        feedback.due = (feedback.due + feedback.interval).max(now);
        let mut message = std::mem::take(&mut self.scratch);
        if feedback.recorder.write(own, media, &mut message) {
            self.send_control(socket, &message);
        }
        self.scratch = message;
    }

    fn check(&mut self, identity: &Identity, socket: &Socket) {
        let Some(answer) = &self.answer else {
            return;
        };
        match stun::check(&self.ufrag, &answer.ufrag, &answer.pwd, identity.crypto()) {
            Ok(check) => socket.send(&check),
            Err(error) => self.fail(&error),
        }
    }

    fn send_control(&mut self, socket: &Socket, packet: &[u8]) {
        let sealed: Result<_> = self
            .sealer
            .as_mut()
            .ok_or_else(|| anyhow!("no keys"))
            .and_then(|sealer| sealer.encrypt_rtcp(packet).map_err(|e| anyhow!("{e}")));
        match sealed {
            Ok(sealed) => socket.send(&sealed),
            Err(error) => self.fail(&error),
        }
    }

    fn own_ssrc(&self) -> u32 {
        0x1000_0000 | u32::try_from(self.number).unwrap_or(0)
    }
}

fn flush(client: &mut Client, socket: &Socket) {
    while let Some(datagram) = client.poll_transmit() {
        socket.send(&datagram);
    }
}
