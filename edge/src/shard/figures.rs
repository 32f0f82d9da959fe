//! What a shard shows of itself: its metrics, looked up once.

use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::http::metrics::JOIN;
use crate::latency::Recorder;
use crate::metrics::{
    BATCHES_DROPPED, BYTES_SENT, PACED, PACKETS_SENT, RESENT, SEND_DROPPED, SHARD_BUSY,
    SHARD_EGRESS, SHARD_LAG, SHARD_LOAD, SKIPPED, TRANSPORTS, VIEWERS,
};
use crate::shard::fanout::Sent;
use crate::shard::load::Reading;
use crate::shard::paths::Transports;

/// See the module.
pub(super) struct Figures {
    viewers: Gauge,
    load: Gauge,
    busy: Gauge,
    lag: Gauge,
    egress: Gauge,
    video: Counter,
    audio: Counter,
    video_bytes: Counter,
    audio_bytes: Counter,
    resent: Counter,
    skips: Counter,
    dropped: Counter,
    tcp_skips: Counter,
    tcp_drops: Counter,
    latency: Option<Recorder>,
    paced: Histogram,
    first: Histogram,
    transports: Transports,
    udp: Gauge,
    tcp: Gauge,
}

impl Figures {
    /// Of the shard of this number.
    pub(super) fn new(shard: usize) -> Self {
        let of_shard = |name: &'static str| gauge!(name, "shard" => shard.to_string());
        Self {
            viewers: of_shard(VIEWERS),
            load: of_shard(SHARD_LOAD),
            busy: of_shard(SHARD_BUSY),
            lag: of_shard(SHARD_LAG),
            egress: of_shard(SHARD_EGRESS),
            video: counter!(PACKETS_SENT, "kind" => "video"),
            audio: counter!(PACKETS_SENT, "kind" => "audio"),
            video_bytes: counter!(BYTES_SENT, "kind" => "video"),
            audio_bytes: counter!(BYTES_SENT, "kind" => "audio"),
            resent: counter!(RESENT),
            skips: counter!(SKIPPED, "place" => "viewer"),
            dropped: counter!(BATCHES_DROPPED),
            tcp_skips: counter!(SKIPPED, "place" => "tcp"),
            tcp_drops: counter!(SEND_DROPPED, "reason" => "tcp"),
            latency: None,
            paced: histogram!(PACED),
            first: histogram!(JOIN, "phase" => "first_media"),
            transports: Transports::default(),
            udp: gauge!(TRANSPORTS, "transport" => "udp", "shard" => shard.to_string()),
            tcp: gauge!(TRANSPORTS, "transport" => "tcp", "shard" => shard.to_string()),
        }
    }

    /// Packets were sent again.
    pub(super) fn count_resent(&self, packets: u64) {
        self.resent.increment(packets);
    }

    /// So many viewers are reached by each transport.
    pub(super) fn show_transports(&mut self, transports: Transports) {
        if self.transports != transports {
            self.udp.set(float(transports.udp));
            self.tcp.set(float(transports.tcp));
            self.transports = transports;
        }
    }

    /// All this was sent up to `now`.
    pub(super) fn count_sent(&mut self, now: Instant, sent: &Sent) {
        self.video.increment(sent.video_packets);
        self.audio.increment(sent.audio_packets);
        self.video_bytes.increment(sent.video_bytes);
        self.audio_bytes.increment(sent.audio_bytes);
        self.skips.increment(sent.skips);
        self.tcp_skips.increment(sent.tcp_skips);
        self.tcp_drops.increment(sent.tcp_drops);
        self.dropped.increment(sent.dropped);
        for took in &sent.first {
            self.first.record(took.as_secs_f64());
        }
        for waited in &sent.waited {
            self.paced.record(waited.as_secs_f64());
        }
        for hops in sent.finished.iter().filter_map(|timing| timing.hops(now)) {
            self.latency.get_or_insert_with(Recorder::new).record(hops);
        }
    }

    /// What it measured of itself, the load that comes of it, and its viewers.
    pub(super) fn show_reading(&self, reading: &Reading, load: f64, viewers: usize) {
        self.load.set(load);
        self.busy.set(reading.busy);
        self.lag.set(reading.lag_seconds);
        self.egress.set(reading.egress / 8.0);
        self.viewers.set(float(viewers));
    }
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
