//! Viewers' links and renditions, looked at every few seconds: distributions over all viewers, not a series for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use headwater_media::id::{StreamName, TrackId};
use headwater_media::track::StreamInfo;
use metrics::{counter, histogram};

use crate::metrics::{ESTIMATE, LOSS, ROUND_TRIP, VIEWED};
use crate::registry::Registry;
use crate::sessions::Sessions;
use crate::shard::{Counters, NO_RENDITION, ViewerState};

/// How often.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// Renditions that [`VIEWED`] tells apart: the publisher's, those that ladders make by default, sound alone, and any other.
const RENDITIONS: [&str; 9] = [
    "source", "1080p", "720p", "480p", "360p", "240p", "144p", "none", "other",
];

/// Looks at all viewers once.
pub(crate) fn look(sessions: &Sessions, registry: &Registry) {
    let streams = registry.streams().into_iter();
    let streams: HashMap<StreamName, Arc<StreamInfo>> =
        streams.map(|info| (info.name.clone(), info)).collect();
    for session in sessions.all() {
        let counters = &session.counters;
        if counters.state.load(Ordering::Relaxed) != ViewerState::Connected as u8 {
            continue;
        }
        look_at_link(counters);
        let track = counters.rendition.load(Ordering::Relaxed);
        let info = streams.get(&session.stream).map(|info| &**info);
        counter!(VIEWED, "rendition" => rendition(info, track)).increment(INTERVAL.as_secs());
    }
}

fn look_at_link(counters: &Counters) {
    let round_trip = counters.rtt_micros.load(Ordering::Relaxed);
    if round_trip > 0 {
        histogram!(ROUND_TRIP).record(Duration::from_micros(round_trip).as_secs_f64());
    }
    let loss = u16::try_from(counters.loss_permille.load(Ordering::Relaxed)).unwrap_or(1000);
    histogram!(LOSS).record(f64::from(loss) / 1000.0);
    let estimate = counters.estimate.load(Ordering::Relaxed) / 8;
    if estimate > 0 {
        histogram!(ESTIMATE).record(f64::from(u32::try_from(estimate).unwrap_or(u32::MAX)));
    }
}

/// A label for what is sent to a viewer.
fn rendition(info: Option<&StreamInfo>, track: u32) -> &'static str {
    if track == NO_RENDITION {
        return "none";
    }
    let id = u16::try_from(track).ok().map(TrackId);
    let track = info.zip(id).and_then(|(info, id)| info.track(id));
    let name = track.map_or("other", |track| &*track.rendition);
    let known = RENDITIONS.into_iter().find(|known| *known == name);
    known.unwrap_or("other")
}
