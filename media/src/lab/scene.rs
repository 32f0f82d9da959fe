//! One trace with one policy, from beginning to end, in steps of a millisecond.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::broadcast::{Broadcast, PICTURE, SOUND_RATE, renditions};
use super::link::Link;
use super::policy::Policy;
use super::sender::Sender;
use super::trace::{self, Trace};
use super::viewer::{Seen, Viewer, Word};

const STEP: Duration = Duration::from_millis(1);
/// Between two viewers who join.
const JOINS: Duration = Duration::from_secs(5);
/// IP, UDP and RTP headers, on top of a rendition's bitrate (per cent), for the oracle.
const HEADERS_PERCENT: u64 = 6;

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Mean bitrate of what was shown, of that of the best possible choice with the same ladder.
    pub utilisation: f64,
    /// Pictures that came 150 ms late or later, with the time until they came.
    pub freezes: u64,
    /// See `freezes`.
    pub frozen: Duration,
    /// Changes of rendition.
    pub switches: u64,
    /// Of the time that packets wait in the link's queue, the 95th percentile.
    pub queue_p95: Duration,
    /// Of the viewers, what each saw.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look closer"))]
    pub(super) seen: Vec<Seen>,
    /// When it began.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests look closer"))]
    pub(super) began: Instant,
}

struct End {
    joins: Instant,
    sender: Sender,
    viewer: Viewer,
    /// What the viewer said that is still under way.
    words: VecDeque<(Instant, Word)>,
}

/// Runs it; `start` is any moment.
pub fn run(trace: &Trace, policy: Policy, seed: u64, start: Instant) -> Outcome {
    let end = start + trace.duration();
    let Some(first) = trace.steps.first() else {
        return Outcome {
            utilisation: 0.0,
            freezes: 0,
            frozen: Duration::ZERO,
            switches: 0,
            queue_p95: Duration::ZERO,
            seen: Vec::new(),
            began: start,
        };
    };
    let rtt = first.delay * 2;
    let mut link = Link::new(*first, seed, start);
    let mut broadcast = Broadcast::new(seed);
    let mut ends: Vec<End> = (0..trace.viewers)
        .map(|i| {
            let joins = start + JOINS * u32::try_from(i).unwrap_or(0);
            End {
                joins,
                sender: Sender::new(joins, i, policy, rtt),
                viewer: Viewer::new(joins, rtt),
                words: VecDeque::new(),
            }
        })
        .collect();
    let mut queued: Vec<Duration> = Vec::new();
    let (mut now, mut picture_at, mut change_at) = (start, start, start);
    let mut changes = trace.steps.iter();
    while now < end {
        if now >= change_at {
            change_at += trace::STEP;
            if let Some(conditions) = changes.next() {
                link.set_conditions(now, *conditions);
            }
            queued.push(link.queued(now));
        }
        if now >= picture_at {
            picture_at += PICTURE;
            let pictures = broadcast.next();
            for end in ends.iter_mut().filter(|end| now >= end.joins) {
                end.sender.handle_pictures(now, &pictures);
            }
        }
        for end in ends.iter_mut().filter(|end| now >= end.joins) {
            while let Some((_, word)) = end.words.pop_front_if(|(at, _)| *at <= now) {
                end.sender.handle_word(now, &word, &mut link);
            }
            end.sender.work(now, &mut link);
        }
        while let Some((at, packet)) = link.poll_arrived(now) {
            if let Some(end) = ends.get_mut(packet.viewer) {
                end.viewer.handle_packet(at, &packet);
            }
        }
        for end in &mut ends {
            let back = now + rtt / 2;
            let words = end.viewer.poll_words(now);
            end.words.extend(words.into_iter().map(|word| (back, word)));
        }
        now += STEP;
    }
    let seen = ends.into_iter().map(|mut end| {
        end.viewer.finish(now);
        end.viewer.seen
    });
    let seen: Vec<Seen> = seen.collect();
    queued.sort_unstable();
    let frozen = seen.iter().map(|seen| seen.frozen).sum();
    Outcome {
        utilisation: utilisation(trace, &seen),
        freezes: seen.iter().map(|seen| seen.freezes).sum(),
        frozen,
        switches: seen.iter().map(|seen| seen.switches).sum(),
        queue_p95: queued
            .get(queued.len() * 95 / 100)
            .copied()
            .unwrap_or_default(),
        seen,
        began: start,
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn utilisation(trace: &Trace, seen: &[Seen]) -> f64 {
    let renditions = renditions();
    let rate = |at: usize| {
        renditions
            .get(at)
            .map_or(0, |rendition| rendition.bitrate.0)
    };
    let shown: u64 = seen
        .iter()
        .flat_map(|seen| &seen.shown)
        .map(|(track, pictures)| rate(track.0.into()) / 30 * pictures)
        .sum();
    // Bits: of each 50 ms.
    let best: u64 = (0..seen.len())
        .map(|viewer| {
            (viewer * 100..trace.steps.len())
                .map(|at| {
                    let capacity = trace.capacity(at);
                    let fits = renditions.iter().rev().find(|rendition| {
                        let all = rendition.bitrate.0 + SOUND_RATE.0;
                        all + all / 100 * HEADERS_PERCENT <= capacity
                    });
                    fits.map_or(0, |rendition| rendition.bitrate.0) / 20
                })
                .sum::<u64>()
        })
        .sum();
    shown as f64 / best.max(1) as f64
}
