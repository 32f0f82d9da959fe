//! Latency that can be audited: what `/metrics` says of it, against numbers that a publisher drew into its pictures and Chromium read from
//! the screen.

use std::time::Duration;

use super::browser::Browser;
use super::harness::{COUNTED, Cluster, Directory, Options, Stamped, eventually, get, seconds};

/// How far a figure may be from the truth, in 95 of 100 cases.
const ERROR_MAX: Duration = Duration::from_millis(20);

/// A histogram of `/metrics`, its series with these labels added up.
struct Histogram {
    /// Upper bound (seconds) and count of each bucket, cumulative.
    buckets: Vec<(f64, f64)>,
    sum: f64,
    count: f64,
}

impl Histogram {
    fn read(metrics: &str, name: &str, label: &str) -> Self {
        let mut histogram = Self {
            buckets: Vec::new(),
            sum: 0.0,
            count: 0.0,
        };
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let value: f64 = value.parse().unwrap_or(0.0);
            let (of, labels) = series.split_once('{').unwrap_or((series, ""));
            if !labels.contains(label) {
                continue;
            }
            match of.strip_prefix(name) {
                Some("_sum") => histogram.sum += value,
                Some("_count") => histogram.count += value,
                Some("_bucket") => {
                    let bound = labels
                        .split("le=\"")
                        .nth(1)
                        .and_then(|le| le.split('"').next());
                    let bound = bound.and_then(|le| le.parse().ok());
                    histogram
                        .buckets
                        .push((bound.unwrap_or(f64::INFINITY), value));
                }
                _ => {}
            }
        }
        histogram
    }

    fn mean(&self) -> f64 {
        self.sum / self.count
    }

    /// As Prometheus' `histogram_quantile` has it (seconds).
    fn quantile(&self, q: f64) -> f64 {
        let rank = q * self.count;
        let (mut below, mut before) = (0.0, 0.0);
        for &(bound, count) in &self.buckets {
            if count >= rank {
                return below + (bound - below) * (rank - before) / (count - before).max(1.0);
            }
            (below, before) = (bound, count);
        }
        below
    }
}

/// The value that a share `q` of them is not above.
fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let at = (q * values.len() as f64) as usize;
    values[at.min(values.len() - 1)]
}

#[test]
fn latency_in_metrics_is_that_of_a_counter_in_the_picture() {
    let mut cluster = Cluster::split(Directory::Etcd, &Options::default());
    let rtmp = cluster.origin().rtmp;
    let publisher = Stamped::counting(rtmp, "live", "audit");
    let (http, admin) = (cluster.edge().http, cluster.edge().admin);
    let page = format!("http://127.0.0.1:{http}/play/live/audit");
    let mut browser = Browser::open("audit", &page, "audit");
    let status = browser.process.wait(seconds(60));
    let seen = browser.last().unwrap_or_default();
    assert!(status.success(), "{seen}");
    assert_eq!(seen["errors"], serde_json::json!([]), "errors in the page");

    // How old each picture was on the screen, by its number and the publisher's clock; and by the player's own account.
    let sent = publisher.sent();
    let frames = seen["seen"].as_array().expect("what was seen");
    let mut errors = Vec::new();
    let mut truth = Vec::new();
    for frame in frames {
        let [number, at, age] = [0, 1, 2].map(|i| frame[i].as_f64().expect("a number"));
        let shown = sent.iter().rev().find(|picture| {
            (picture.number % usize::from(COUNTED)) as f64 == number
                && picture.at.as_secs_f64() * 1000.0 <= at
        });
        let shown = shown.expect("a picture that was sent");
        let age_of_counter = at / 1000.0 - shown.at.as_secs_f64();
        truth.push(age_of_counter);
        errors.push((age / 1000.0 - age_of_counter).abs());
    }
    assert!(truth.len() > 250, "{} pictures were read", truth.len());
    let worst = quantile(&mut errors, 0.95);

    // The page's farewell brought the rest of its reports.
    let metrics = eventually("the player reports", seconds(10), || {
        let text = get(admin, "/metrics")?.body;
        // One while it played, one when the page was left.
        let reports = "headwater_edge_player_reports_total{result=\"ok\"} 2";
        text.lines().any(|line| line == reports).then_some(text)
    });
    let reported = Histogram::read(&metrics, "headwater_edge_player_latency_seconds", "");
    let mut apart: Vec<f64> = (1..100)
        .map(|percent| f64::from(percent) / 100.0)
        .map(|q| (reported.quantile(q) - quantile(&mut truth, q)).abs())
        .collect();
    let apart = quantile(&mut apart, 0.95);

    let total = Histogram::read(&metrics, "headwater_edge_latency_seconds", "");
    let hops = ["ingest", "replicate", "queue", "wire"].map(|hop| {
        let label = format!("hop=\"{hop}\"");
        Histogram::read(&metrics, "headwater_edge_latency_hop_seconds", &label)
    });
    // For whoever runs it with --no-capture: these figures belong into the notes of a release.
    eprintln!(
        "on the screen after {:.1} ms (p50), the player is {:.1} ms off (p95), the histogram {:.1} ms; {:.2} ms from socket to socket: {:.2?} ms",
        1e3 * quantile(&mut truth, 0.5),
        1e3 * worst,
        1e3 * apart,
        1e3 * total.mean(),
        hops.each_ref().map(|hop| 1e3 * hop.mean()),
    );
    let limit = ERROR_MAX.as_secs_f64();
    assert!(worst <= limit, "the player is {worst} s off");
    assert!(apart <= limit, "the histogram is {apart} s off");

    assert!(total.count > 300.0, "{} pictures were timed", total.count);
    assert!(hops.iter().all(|hop| (hop.count - total.count).abs() < 0.5));
    let sum: f64 = hops.iter().map(|hop| hop.sum).sum();
    assert!((sum - total.sum).abs() < 1e-3, "{sum} s, {} s", total.sum);
    assert!(total.mean() < quantile(&mut truth, 0.5));

    for (name, least) in [
        ("headwater_edge_player_first_frame_seconds_count", 1.0),
        ("headwater_edge_player_played_seconds_total", 12.0),
        ("headwater_edge_player_reports_total{result=\"ok\"}", 1.0),
        (
            "headwater_edge_join_seconds_count{phase=\"first_media\"}",
            1.0,
        ),
    ] {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        assert!(
            value.is_some_and(|value| value >= least),
            "{name}: {line:?}"
        );
    }
}
