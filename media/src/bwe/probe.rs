//! How a probe came through.

use std::time::Duration;

use crate::id::Bitrate;

use super::history::{Arrivals, Cluster, ProbeArrivals};

/// Fewer packets than this, or less than this part of them (per cent), say nothing.
const PACKETS_MIN: u32 = 5;
const RECEIVED_PERCENT_MIN: u32 = 40;
/// A probe that lost more than the rest (per cent) met a full queue or a policer.
const WHOLE_PERCENT: u32 = 93;
/// What arrives slower than it left by more than this (per cent) was slowed by the link, which then carries what arrived.
const SLOWED_PERCENT: u64 = 90;

/// What a probe showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Which.
    pub cluster: Cluster,
    /// How fast it left.
    pub sent: Bitrate,
    /// What the link carried of it.
    pub carried: Bitrate,
    /// It arrived as fast as it left, and (nearly) all of it: the link may carry more still.
    pub whole: bool,
    /// The queue in the network after it.
    pub queue: Duration,
}

/// The probe that is under way, over several messages.
#[derive(Debug, Default)]
pub(super) struct Probe {
    open: Option<ProbeArrivals>,
}

impl Probe {
    /// Takes a message in. Returns the probe that ended with it.
    pub(super) fn handle_arrivals(
        &mut self,
        arrivals: &Arrivals,
        queue: Duration,
    ) -> Option<Probed> {
        let Some(news) = arrivals.probe.as_deref() else {
            // Whatever arrived left after the probe.
            let ended = (arrivals.received > 0).then(|| self.open.take()).flatten();
            return ended.and_then(|ended| result(&ended, queue));
        };
        let before = self.open.take();
        let (ended, open) = match before {
            Some(before) if before.cluster == news.cluster => (None, joined(before, *news)),
            before => (before, *news),
        };
        if open.over {
            return result(&open, queue);
        }
        self.open = Some(open);
        ended.and_then(|ended| result(&ended, queue))
    }
}

fn joined(before: ProbeArrivals, news: ProbeArrivals) -> ProbeArrivals {
    if before.received == 0 || news.received == 0 {
        let (known, other) = if before.received == 0 {
            (news, before)
        } else {
            (before, news)
        };
        return ProbeArrivals {
            lost: known.lost + other.lost,
            over: news.over,
            ..known
        };
    }
    let same_moment = before.sent.1 == news.sent.1;
    ProbeArrivals {
        received: before.received + news.received,
        lost: before.lost + news.lost,
        bytes: before.bytes + news.bytes,
        arrived: (
            before.arrived.0.min(news.arrived.0),
            before.arrived.1.max(news.arrived.1),
        ),
        first_bytes: before.first_bytes,
        sent: (before.sent.0, news.sent.1),
        last_bytes: if same_moment {
            before.last_bytes + news.last_bytes
        } else {
            news.last_bytes
        },
        ..news
    }
}

fn result(probe: &ProbeArrivals, queue: Duration) -> Option<Probed> {
    let all = probe.received + probe.lost;
    if probe.received < PACKETS_MIN || probe.received * 100 < all * RECEIVED_PERCENT_MIN {
        return None;
    }
    let sent_span = probe.sent.1.wrapping_sub(probe.sent.0);
    // Units of 125 µs and of 250 µs; nothing apart means faster than can be told.
    let sent = per_second(
        probe.bytes.saturating_sub(probe.last_bytes.into()),
        u64::from(sent_span) * 125,
    );
    let arrived = probe.arrived.1.saturating_sub(probe.arrived.0);
    let carried = per_second(
        probe.bytes.saturating_sub(probe.first_bytes.into()),
        u64::try_from(arrived).ok()?.saturating_mul(250),
    );
    // One packet may be lost for any reason.
    let most = probe.lost <= 1 || probe.received * 100 >= all * WHOLE_PERCENT;
    Some(Probed {
        cluster: probe.cluster,
        sent: Bitrate(sent),
        carried: Bitrate(carried.min(sent)),
        whole: most && carried >= sent / 100 * SLOWED_PERCENT,
        queue,
    })
}

fn per_second(bytes: u64, micros: u64) -> u64 {
    bytes.saturating_mul(8_000_000) / micros.max(125)
}
