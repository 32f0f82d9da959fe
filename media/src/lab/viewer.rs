//! A viewer as a browser is one: it asks for lost packets, tells when packets arrived, and shows pictures in order.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::packet::{Packet, Part};
use crate::id::TrackId;

/// How often feedback leaves: Chromium's 62.5 ms.
const FEEDBACK: Duration = Duration::from_micros(62_500);
/// Pictures are shown so long after the fastest would be, if they are there: at least, and at most when some came late.
const PLAYOUT: Duration = Duration::from_millis(50);
const PLAYOUT_MAX: Duration = Duration::from_millis(400);
/// It falls by this with each picture (9 ms a second).
const PLAYOUT_FALL: Duration = Duration::from_micros(300);
/// A picture that is shown so long after the one before, or later, is a freeze: 150 ms more than usual
/// (W3C webrtc-stats, freezeCount).
const FREEZE: Duration = Duration::from_micros(33_333 + 150_000);
/// A lost packet is asked for again after this and a round trip, and so many times.
const ASK_AGAIN: Duration = Duration::from_millis(20);
const ASKS: u32 = 6;
/// Without a picture for so long, though packets come, a keyframe is asked for.
const STUCK: Duration = Duration::from_millis(1000);

/// What a viewer says to the sender.
#[derive(Debug, Clone)]
pub(super) enum Word {
    /// Transport-wide feedback, as on the wire.
    Arrivals(Vec<u8>),
    /// These packets are missing.
    Nack(Vec<u64>),
    /// No picture can be shown.
    KeyframeAsked,
}

/// What it saw.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) shown: BTreeMap<TrackId, u64>,
    pub(super) freezes: u64,
    pub(super) frozen: Duration,
    pub(super) switches: u64,
    /// From when to when there was no new picture.
    pub(super) gaps: Vec<(Instant, Instant)>,
    /// Rendition from when on.
    pub(super) tracks: Vec<(Instant, TrackId)>,
}

#[derive(Debug)]
pub(super) struct Viewer {
    began: Instant,
    rtt: Duration,
    pub(super) seen: Seen,
    pictures: BTreeMap<u64, Arriving>,
    /// The next picture to show, in order.
    next: u64,
    next_sequence: u64,
    missing: BTreeMap<u64, (Instant, u32)>,
    fastest: Option<Duration>,
    playout: Duration,
    last_shown: Option<(Instant, TrackId)>,
    asked_keyframe: Instant,
    untold: VecDeque<(u16, Instant)>,
    told: Option<u16>,
    feedback_at: Instant,
    feedback_count: u8,
}

#[derive(Debug)]
struct Arriving {
    part: Part,
    arrived: u32,
}

impl Viewer {
    pub(super) fn new(now: Instant, rtt: Duration) -> Self {
        Self {
            began: now,
            rtt,
            seen: Seen::default(),
            pictures: BTreeMap::new(),
            next: 0,
            next_sequence: 0,
            missing: BTreeMap::new(),
            fastest: None,
            playout: PLAYOUT,
            last_shown: None,
            asked_keyframe: now,
            untold: VecDeque::new(),
            told: None,
            feedback_at: now + FEEDBACK,
            feedback_count: 0,
        }
    }

    /// A packet arrives.
    pub(super) fn handle_packet(&mut self, at: Instant, packet: &Packet) {
        self.untold.push_back((packet.number, at));
        let Some(part) = packet.part else {
            return;
        };
        if part.sequence >= self.next_sequence {
            for lost in self.next_sequence..part.sequence {
                self.missing.insert(lost, (at, 0));
            }
            self.next_sequence = part.sequence + 1;
        } else if self.missing.remove(&part.sequence).is_none() {
            return;
        }
        if part.picture < self.next {
            return;
        }
        let arriving = self
            .pictures
            .entry(part.picture)
            .or_insert(Arriving { part, arrived: 0 });
        arriving.arrived += 1;
        self.show(at);
    }

    /// What it says now.
    pub(super) fn poll_words(&mut self, now: Instant) -> Vec<Word> {
        let mut words = Vec::new();
        if now >= self.feedback_at {
            self.feedback_at = now + FEEDBACK;
            words.extend(self.feedback().map(Word::Arrivals));
        }
        let again = self.rtt + ASK_AGAIN;
        let mut asked = Vec::new();
        self.missing.retain(|sequence, (at, asks)| {
            if now >= *at {
                *at = now + again;
                *asks += 1;
                asked.push(*sequence);
            }
            *asks <= ASKS
        });
        if !asked.is_empty() {
            words.push(Word::Nack(asked));
        }
        let waits = self.last_shown.map_or(self.began, |(at, _)| at);
        if now > waits + STUCK && now > self.asked_keyframe + STUCK && !self.pictures.is_empty() {
            self.asked_keyframe = now;
            words.push(Word::KeyframeAsked);
        }
        words
    }

    /// The scene ends.
    pub(super) fn finish(&mut self, now: Instant) {
        let since = self.last_shown.map_or(self.began, |(at, _)| at);
        self.gap(since, now);
    }

    /// Shows what can be shown.
    fn show(&mut self, now: Instant) {
        loop {
            let whole = |arriving: &Arriving| arriving.arrived >= arriving.part.parts;
            let in_order = self.pictures.get(&self.next).filter(|first| whole(first));
            let number = if in_order.is_some() {
                self.next
            } else {
                // A keyframe makes what is missing before it unneeded.
                let newest = self
                    .pictures
                    .iter()
                    .rev()
                    .find(|(_, arriving)| arriving.part.keyframe && whole(arriving));
                match newest {
                    Some((number, _)) => *number,
                    None => return,
                }
            };
            let Some(picture) = self.pictures.remove(&number) else {
                return;
            };
            if number != self.next {
                self.pictures = self.pictures.split_off(&number);
                let first = picture
                    .part
                    .sequence
                    .saturating_sub(picture.part.parts.into());
                self.missing = self.missing.split_off(&first);
            }
            self.next = number + 1;
            let part = picture.part;
            let took = now.saturating_duration_since(part.captured);
            let fastest = self.fastest.map_or(took, |fastest| fastest.min(took));
            self.fastest = Some(fastest);
            let due = part.captured + fastest + self.playout;
            let late = now.saturating_duration_since(due);
            self.playout = (self.playout + late)
                .saturating_sub(PLAYOUT_FALL)
                .clamp(PLAYOUT, PLAYOUT_MAX);
            let mut shown = now.max(due);
            if let Some((before, track)) = self.last_shown {
                shown = shown.max(before);
                self.gap(before, shown);
                self.seen.switches += u64::from(track != part.track);
            }
            if self.last_shown.is_none_or(|(_, track)| track != part.track) {
                self.seen.tracks.push((shown, part.track));
            }
            self.last_shown = Some((shown, part.track));
            *self.seen.shown.entry(part.track).or_default() += 1;
        }
    }

    fn gap(&mut self, from: Instant, to: Instant) {
        let gap = to.saturating_duration_since(from);
        if gap > FREEZE {
            self.seen.freezes += 1;
            self.seen.frozen += gap;
            self.seen.gaps.push((from, to));
        }
    }

    /// Transport-wide feedback of what arrived since the last one.
    fn feedback(&mut self) -> Option<Vec<u8>> {
        let (_, first_at) = *self.untold.front()?;
        let newest = self.untold.iter().map(|(number, _)| *number);
        let base = match self.told {
            Some(told) => told.wrapping_add(1),
            None => 0,
        };
        let count = newest
            .map(|number| number.wrapping_sub(base))
            .filter(|ahead| *ahead < 1 << 15)
            .max()?
            + 1;
        let mut arrivals: Vec<Option<Instant>> = vec![None; usize::from(count)];
        for (number, at) in self.untold.drain(..) {
            if let Some(place) = arrivals.get_mut(usize::from(number.wrapping_sub(base))) {
                *place = Some(at);
            }
        }
        self.told = Some(base.wrapping_add(count - 1));
        self.feedback_count = self.feedback_count.wrapping_add(1);
        let since = |at: Instant| at.saturating_duration_since(self.began).as_micros() / 250;
        // References come in steps of 64 ms.
        let reference = u32::try_from(since(first_at) / 256).ok()?;
        let mut last = i64::from(reference) * 256;
        let mut message = vec![0x8f, 205, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
        message.extend(base.to_be_bytes());
        message.extend(count.to_be_bytes());
        message.extend(&reference.to_be_bytes()[1..]);
        message.push(self.feedback_count);
        let mut deltas = Vec::new();
        for seven in arrivals.chunks(7) {
            // A vector of seven symbols of two bits: not received, or received with a large delta.
            let mut chunk = 0xc000_u16;
            for (place, at) in (0_u16..).zip(seven) {
                let Some(at) = at else { continue };
                chunk |= 2 << (12 - 2 * place);
                let units = i64::try_from(since(*at)).ok()?;
                let delta = i16::try_from(units - last).unwrap_or(i16::MAX);
                last += i64::from(delta);
                deltas.extend(delta.to_be_bytes());
            }
            message.extend(chunk.to_be_bytes());
        }
        message.extend(deltas);
        message.resize(message.len().next_multiple_of(4), 0);
        let words = u16::try_from(message.len() / 4 - 1).ok()?;
        message[2..4].copy_from_slice(&words.to_be_bytes());
        Some(message)
    }
}
