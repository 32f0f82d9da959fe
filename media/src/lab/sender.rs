//! The sending end of one viewer, as an edge is one: the real history, estimator, pacer and policy, and the edge's rules about what is skipped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::broadcast::{Picture, SOUND_BYTES, SOUND_INTERVAL, renditions};
use super::link::Link;
use super::packet::{IP_BYTES, PAYLOAD_BYTES, Packet, Part, RTP_BYTES};
use super::policy::{Chooser, Policy, Wish};
use super::viewer::Word;
use crate::abr::{Choice, ProbeRequest, Selection};
use crate::bwe::{Estimator, History};
use crate::id::TrackId;
use crate::pacer::Pacer;
use crate::rtp::rtcp;

/// As in the edge: what lies before a new keyframe is skipped if it would take longer than this, and what would take longer than that, in any
/// case.
const BEHIND_KEYFRAME_MAX: Duration = Duration::from_millis(100);
const QUEUE_MAX: Duration = Duration::from_secs(1);
/// Packets that can be sent again (count), and for how long.
const RING: usize = 2048;
const RESEND_WITHIN: Duration = Duration::from_secs(1);
/// Of what is sent, so much may be sent again (per cent), and so much saved up (bytes), as in [`crate::rtx`].
const RESEND_PERCENT: u64 = 30;
const RESEND_SAVED: u64 = 128 << 10;
/// A keyframe is granted again after this.
const KEYFRAME_INTERVAL: Duration = Duration::from_millis(500);
/// Between two pieces of a probe's padding.
const PIECE: Duration = Duration::from_millis(5);
const PADDING_BYTES: usize = 1200;

#[derive(Debug)]
pub(super) struct Sender {
    viewer: usize,
    history: History,
    estimator: Estimator,
    pacer: Pacer,
    pub(super) chooser: Chooser,
    selection: Option<Selection>,
    /// What is sent now; `None`: wait for a keyframe.
    current: Option<TrackId>,
    waits_for_keyframe: bool,
    backlog: VecDeque<Unsent>,
    /// Of each rendition, the newest keyframe and what came after it.
    gops: Vec<Vec<(Instant, Picture)>>,
    keyframe_granted: Option<Instant>,
    number: u16,
    sequence: u64,
    picture: u64,
    sent: VecDeque<Sent>,
    rtt: Duration,
    /// Nothing before this picture is sent again: it is a keyframe.
    first_useful: u64,
    resend_bytes: u64,
    sound_at: Instant,
    probe: Option<Probe>,
}

#[derive(Debug)]
struct Unsent {
    picture: Picture,
    number: u64,
    captured: Instant,
    sent: u32,
}

/// What can be sent again, and when it last was.
#[derive(Debug)]
struct Sent {
    part: Part,
    copied: Option<Instant>,
}

#[derive(Debug)]
struct Probe {
    request: ProbeRequest,
    since: Instant,
    sent: u64,
    piece_at: Instant,
}

impl Sender {
    pub(super) fn new(now: Instant, viewer: usize, policy: Policy, rtt: Duration) -> Self {
        let mut estimator = Estimator::default();
        estimator.handle_rtt(rtt);
        Self {
            viewer,
            history: History::new(now),
            estimator,
            pacer: Pacer::new(true, now),
            chooser: Chooser::new(policy, now),
            selection: None,
            current: None,
            waits_for_keyframe: true,
            backlog: VecDeque::new(),
            gops: vec![Vec::new(); renditions().len()],
            keyframe_granted: None,
            number: 0,
            sequence: 0,
            picture: 0,
            sent: VecDeque::new(),
            rtt,
            first_useful: 0,
            resend_bytes: RESEND_SAVED,
            sound_at: now,
            probe: None,
        }
    }

    /// A picture came, in all renditions.
    pub(super) fn handle_pictures(&mut self, now: Instant, pictures: &[Picture]) {
        for (picture, gop) in pictures.iter().zip(&mut self.gops) {
            if picture.keyframe {
                gop.clear();
            }
            gop.push((now, *picture));
        }
        self.wishes(now);
        let Some(selection) = &self.selection else {
            return;
        };
        let target = match selection.target {
            Choice::Video(track) => Some(track),
            Choice::AudioOnly => None,
        };
        if target.is_none() {
            self.current = None;
            self.waits_for_keyframe = true;
            self.backlog.clear();
        }
        let is = |wanted: Option<TrackId>| {
            move |picture: &&Picture| Some(picture.track) == wanted && picture.keyframe
        };
        let switch = pictures.iter().find(is(target)).or_else(|| {
            // Until then another will do, if it has not been taken yet.
            let also = selection.also.iter();
            let mut takes = also.take_while(|track| Some(**track) != self.current);
            takes.find_map(|track| pictures.iter().find(is(Some(*track))))
        });
        if let Some(picture) = switch.filter(|picture| Some(picture.track) != self.current) {
            let first = self.current.is_none();
            self.current = Some(picture.track);
            self.waits_for_keyframe = false;
            self.skip(now);
            let rate = renditions()
                .get(usize::from(picture.track.0))
                .map(|r| r.bitrate);
            self.pacer.handle_media_rate(now, rate);
            if first {
                self.pacer.handle_start(now, picture.bytes.into());
            }
            self.chooser.handle_switched(now, picture.track);
            self.push(now, *picture);
            return;
        }
        let Some(picture) = pictures
            .iter()
            .find(|picture| Some(picture.track) == self.current)
        else {
            return;
        };
        if picture.keyframe {
            self.waits_for_keyframe = false;
            self.skip(now);
        } else if self.waiting_time(now) > QUEUE_MAX && !self.pacer.is_starting() {
            self.backlog.clear();
            self.waits_for_keyframe = true;
        }
        if !self.waits_for_keyframe {
            self.push(now, *picture);
        }
    }

    /// The viewer said something.
    pub(super) fn handle_word(&mut self, now: Instant, word: &Word, link: &mut Link<Packet>) {
        match word {
            Word::Arrivals(message) => {
                if let Some(Ok(rtcp::Packet::TransportFeedback(feedback))) =
                    rtcp::packets(message).next()
                {
                    let arrivals = self.history.arrivals(&feedback);
                    let estimate = self.estimator.handle_arrivals(now, &arrivals);
                    if let Some(estimate) = estimate {
                        self.pacer.handle_estimate(now, estimate);
                        let queue = self.estimator.queue();
                        self.chooser.handle_estimate(now, estimate, queue);
                    }
                    if let Some(probed) = self.estimator.poll_probed() {
                        self.chooser.handle_probed(now, &probed);
                    }
                }
            }
            Word::Nack(lost) => {
                for sequence in lost {
                    self.resend(now, *sequence, link);
                }
            }
            Word::KeyframeAsked => {
                let recent = self
                    .keyframe_granted
                    .is_some_and(|at| now.saturating_duration_since(at) < KEYFRAME_INTERVAL);
                let gop = self.current.map(|track| usize::from(track.0));
                let gop = gop.and_then(|at| self.gops.get(at)).cloned();
                if let Some(gop) = gop.filter(|_| !recent) {
                    // The newest GOP again, up to the live edge.
                    self.keyframe_granted = Some(now);
                    self.backlog.clear();
                    self.waits_for_keyframe = false;
                    for (captured, picture) in gop {
                        self.push(captured, picture);
                    }
                    self.pacer.handle_start(now, 0);
                }
            }
        }
    }

    /// Sends a packet again that is asked for, unless a copy is under way.
    fn resend(&mut self, now: Instant, sequence: u64, link: &mut Link<Packet>) {
        let takes = self.rtt + self.estimator.queue();
        let asked = |sent: &&mut Sent| sent.part.sequence == sequence;
        let Some(sent) = self.sent.iter_mut().find(asked) else {
            return;
        };
        let part = sent.part;
        let fresh = now.saturating_duration_since(part.captured) < RESEND_WITHIN;
        let useful = part.picture >= self.first_useful;
        let comes = sent.copied.is_some_and(|copied| now < copied + takes);
        if !fresh || !useful || comes {
            return;
        }
        let bytes = u64::try_from(part.bytes).unwrap_or(0);
        if let Some(left) = self.resend_bytes.checked_sub(bytes) {
            sent.copied = Some(now);
            self.resend_bytes = left;
            self.send(now, part.bytes, Some(part), link);
        }
    }

    /// Sends what may leave now.
    pub(super) fn work(&mut self, now: Instant, link: &mut Link<Packet>) {
        while now >= self.sound_at {
            self.sound_at += SOUND_INTERVAL;
            self.send(now, SOUND_BYTES, None, link);
        }
        while self.pacer.allowance(now) > 0
            && let Some(front) = self.backlog.front_mut()
        {
            let parts = front.picture.bytes.div_ceil(PAYLOAD_BYTES).max(1);
            let left = front
                .picture
                .bytes
                .saturating_sub(front.sent * PAYLOAD_BYTES);
            let bytes = usize::try_from(left.min(PAYLOAD_BYTES)).unwrap_or(0) + RTP_BYTES;
            front.sent += 1;
            if front.picture.keyframe {
                self.first_useful = front.number;
            }
            let part = Part {
                sequence: self.sequence,
                picture: front.number,
                parts,
                keyframe: front.picture.keyframe,
                track: front.picture.track,
                captured: front.captured,
                bytes,
            };
            if front.sent >= parts {
                self.backlog.pop_front();
            }
            self.sequence += 1;
            if self.sent.len() >= RING {
                self.sent.pop_front();
            }
            self.sent.push_back(Sent { part, copied: None });
            self.send(now, bytes, Some(part), link);
        }
        if self.backlog.is_empty() && self.pacer.is_starting() {
            self.pacer.handle_caught_up(now);
        }
        self.pad(now, link);
        let oldest = self.backlog.front().filter(|_| !self.pacer.is_starting());
        let wait = oldest.map_or(Duration::ZERO, |unsent| {
            now.saturating_duration_since(unsent.captured)
        });
        self.chooser.handle_wait(now, wait);
        self.wishes(now);
    }

    fn wishes(&mut self, now: Instant) {
        while let Some(wish) = self.chooser.poll_wish(now) {
            match wish {
                Wish::Select(selection) => self.selection = Some(selection),
                Wish::Probe(request) => {
                    self.history.set_cluster(Some(request.cluster));
                    self.probe = Some(Probe {
                        request,
                        since: now,
                        sent: 0,
                        piece_at: now,
                    });
                }
            }
        }
    }

    /// Fills a probe up.
    fn pad(&mut self, now: Instant, link: &mut Link<Packet>) {
        let Some(probe) = &mut self.probe else {
            return;
        };
        if now < probe.piece_at && probe.sent < probe.request.bytes {
            return;
        }
        probe.piece_at = now + PIECE;
        let elapsed = now.saturating_duration_since(probe.since) + PIECE;
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let due = probe.request.rate.0.saturating_mul(micros) / 8_000_000;
        let due = due.min(probe.request.bytes);
        while self.probe.as_ref().is_some_and(|probe| probe.sent < due) {
            self.send(now, PADDING_BYTES, None, link);
        }
        if self
            .probe
            .as_ref()
            .is_some_and(|probe| probe.sent >= probe.request.bytes)
        {
            self.probe = None;
            self.history.set_cluster(None);
        }
    }

    fn send(&mut self, now: Instant, bytes: usize, part: Option<Part>, link: &mut Link<Packet>) {
        let packet = Packet {
            viewer: self.viewer,
            number: self.number,
            part,
        };
        self.history.handle_sent(now, self.number, bytes);
        self.number = self.number.wrapping_add(1);
        let count = u64::try_from(bytes).unwrap_or(0);
        self.pacer.handle_sent(now, count);
        let saved = self.resend_bytes + count * RESEND_PERCENT / 100;
        self.resend_bytes = saved.min(RESEND_SAVED);
        if let Some(probe) = &mut self.probe {
            probe.sent += count;
        }
        link.send(now, bytes + IP_BYTES, packet);
    }

    fn push(&mut self, now: Instant, picture: Picture) {
        self.backlog.push_back(Unsent {
            picture,
            number: self.picture,
            captured: now,
            sent: 0,
        });
        self.picture += 1;
    }

    /// A keyframe came: what lies before it may not be worth its time.
    fn skip(&mut self, now: Instant) {
        if self.waiting_time(now) > BEHIND_KEYFRAME_MAX {
            self.backlog.clear();
        }
    }

    fn waiting_time(&self, now: Instant) -> Duration {
        let left = |unsent: &Unsent| {
            let sent = unsent.sent * PAYLOAD_BYTES;
            u64::from(unsent.picture.bytes.saturating_sub(sent))
        };
        let bytes = self.backlog.iter().map(left).sum();
        self.pacer.time_to_send(now, bytes)
    }
}
