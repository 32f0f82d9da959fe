//! Logs, metrics and the panic hook: set up once per process, before anything else.

use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One line for a person, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Settings of the log, `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as
    /// `info,headwater_edge=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: Format,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            // actix-web tells of its workers' lives at info.
            filter: "info,actix_server=warn".to_owned(),
            format: Format::Text,
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The filter is malformed.
    #[error("log.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// A word that would be taken for the only module to log.
    #[error(
        "log.filter: {0:?} is no level (error, warn, info, debug, trace, off); for the lines of a module write {0}=LEVEL"
    )]
    Level(String),
}

impl LogConfig {
    /// Reads the filter.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn parse_filter(&self) -> Result<EnvFilter, Error> {
        let mut words = self.filter.split(',').map(str::trim);
        let no_level = |word: &&str| {
            !word.is_empty() && !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err()
        };
        if let Some(word) = words.find(no_level) {
            return Err(Error::Level(word.to_owned()));
        }
        Ok(EnvFilter::builder().parse(&self.filter)?)
    }
}

/// Sends the process's log to standard error. Does nothing if a subscriber is installed already, as in tests.
///
/// # Errors
/// If the filter is malformed.
pub fn init_log(config: &LogConfig) -> Result<(), Error> {
    use std::io::IsTerminal;

    let builder = tracing_subscriber::fmt()
        .with_env_filter(config.parse_filter()?)
        .with_timer(SystemTime)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match config.format {
        Format::Text => builder.try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    // The only error is that somebody was first.
    drop(installed);
    Ok(())
}

/// Buckets of histograms of durations, in seconds, if there are none of their own: few enough that an edge without streams shows less than
/// 300 series. 1.5 s is what joins are held to.
const SECONDS_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 60.0,
];

/// Buckets of latency as a whole, `…_latency_seconds`: narrow enough where it mostly lies that a quantile is right to 20 ms. 250 ms is what it is
/// held to.
const LATENCY_BUCKETS: &[f64] = &[
    0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.4, 0.5,
    1.0, 2.5, 10.0,
];

/// Buckets of its parts, `…_hop_seconds`: means say more of them.
const HOP_BUCKETS: &[f64] = &[0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0];

/// Buckets of all histograms of sizes, in bytes.
const BYTES_BUCKETS: &[f64] = &[
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];

/// Panics so far, `headwater_panics_total`.
const PANICS: &str = "headwater_panics_total";
/// Constant 1, labelled by what runs, `headwater_build_info`.
const BUILD_INFO: &str = "headwater_build_info";

pub(crate) const DRAINING: &str = "headwater_draining";

/// The process's metrics, as text for a scrape.
#[derive(Debug, Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs the recorder that the `metrics` macros of all crates write to; later calls yield the same one.
    pub fn install() -> Self {
        static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
        let handle = INSTALLED.get_or_init(|| {
            let recorder = builder().build_recorder();
            let handle = recorder.handle();
            // Fails only if another recorder is there: then ours stays empty, and the other one is shown elsewhere.
            drop(metrics::set_global_recorder(recorder));
            describe_counter!(PANICS, "Panics since the process started; each is a bug");
            describe_gauge!(BUILD_INFO, "Constant 1, labelled with what runs");
            describe_gauge!(
                DRAINING,
                "1 from when the node was asked to stop, 0 before: it takes nobody new"
            );
            counter!(PANICS).absolute(0);
            handle
        });
        Self(handle.clone())
    }

    /// Says what runs.
    pub fn build_info(&self, version: &'static str, commit: &'static str, role: &'static str) {
        gauge!(BUILD_INFO, "version" => version, "commit" => commit, "role" => role).set(1.0);
    }

    /// The exposition in Prometheus' text format 0.0.4.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Folds recorded histogram values into their buckets; call every few seconds, or memory grows while nobody scrapes.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Shows counters before they have counted anything: a series that begins with its first event hides that event from rates and alerts.
pub fn start_at_zero(names: &[&'static str]) {
    for &name in names {
        counter!(name).increment(0);
    }
}

/// The same for a counter with a label, for those of its values that alerts look at.
pub fn start_at_zero_by(name: &'static str, label: &'static str, values: &[&'static str]) {
    for &value in values {
        counter!(name, label => value).increment(0);
    }
}

/// Buckets of shares, `…_ratio`.
const RATIO_BUCKETS: &[f64] = &[0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// Buckets of rates, `…_bytes_per_second`: a quarter to fifty Mbit/s.
const RATE_BUCKETS: &[f64] = &[
    31_250.0,
    62_500.0,
    125_000.0,
    250_000.0,
    500_000.0,
    1_000_000.0,
    2_000_000.0,
    6_250_000.0,
];

fn builder() -> PrometheusBuilder {
    // Where two match, the one that comes first in the alphabet wins.
    let buckets = [
        ("_bytes", BYTES_BUCKETS),
        ("_bytes_per_second", RATE_BUCKETS),
        ("_hop_seconds", HOP_BUCKETS),
        ("_latency_seconds", LATENCY_BUCKETS),
        ("_ratio", RATIO_BUCKETS),
        ("_seconds", SECONDS_BUCKETS),
    ];
    buckets
        .into_iter()
        .fold(PrometheusBuilder::new(), |builder, (suffix, buckets)| {
            let matcher = Matcher::Suffix(suffix.to_owned());
            // Fails only without any buckets.
            builder
                .set_buckets_for_metric(matcher, buckets)
                .unwrap_or_default()
        })
}

static PANIC_COUNT: AtomicU64 = AtomicU64::new(0);

/// Panics since the process started (count). A node that panics again and again says that it is not ready.
pub fn panics() -> u64 {
    PANIC_COUNT.load(Ordering::Relaxed)
}

/// Makes every panic a counted, structured `error` log line with the thread and place. Unwinding goes on as before.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(on_panic));
}

fn on_panic(info: &PanicHookInfo<'_>) {
    PANIC_COUNT.fetch_add(1, Ordering::Relaxed);
    counter!(PANICS).increment(1);
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let backtrace = std::backtrace::Backtrace::capture();
    error!(message, place, thread = thread.name().unwrap_or("unnamed"), %backtrace, "panic");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_get_buckets_and_counters_show() {
        let metrics = Metrics::install();
        metrics.build_info("1.2.3", "abc", "edge");
        start_at_zero(&["headwater_test_falls_total"]);
        start_at_zero_by("headwater_test_ends_total", "reason", &["left", "lost"]);
        metrics::histogram!("headwater_test_wait_seconds").record(0.004);
        metrics::histogram!("headwater_test_body_bytes").record(5000.0);
        metrics::histogram!("headwater_test_latency_seconds").record(0.11);
        metrics::histogram!("headwater_test_hop_seconds").record(0.11);
        metrics.upkeep();
        let text = Metrics::install().render();
        for line in [
            "headwater_test_wait_seconds_bucket{le=\"0.001\"} 0",
            "headwater_test_wait_seconds_bucket{le=\"0.005\"} 1",
            "headwater_test_body_bytes_bucket{le=\"16384\"} 1",
            "headwater_test_latency_seconds_bucket{le=\"0.125\"} 1",
            "headwater_test_hop_seconds_bucket{le=\"0.1\"} 0",
            "headwater_panics_total ",
            "headwater_test_falls_total 0",
            "headwater_test_ends_total{reason=\"lost\"} 0",
            "# HELP headwater_panics_total ",
            "version=\"1.2.3\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn filters_are_read_or_refused() {
        let filter = |filter: &str| {
            LogConfig {
                filter: filter.to_owned(),
                format: Format::Text,
            }
            .parse_filter()
            .is_ok()
        };
        assert!(filter("info") && filter("info,headwater_edge=debug"));
        assert!(filter("off") && filter("warn,headwater_edge[replica]=trace"));
        assert!(!filter("info,=,x=loud"));
        // Only the lines of a module `loud` would be logged.
        assert!(!filter("loud") && !filter("info,headwater_edge"));
    }

    #[test]
    fn panics_are_counted() {
        install_panic_hook();
        let before = panics();
        let ended = std::thread::spawn(|| panic!("on purpose")).join();
        // Other tests of this process keep the hook that shows their panics.
        drop(std::panic::take_hook());
        assert!(ended.is_err());
        assert!(panics() > before);
    }
}
