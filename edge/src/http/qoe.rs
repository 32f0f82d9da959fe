//! What players say of what their viewers see: `POST /qoe`.
//!
//! A player is asked by a link in the answer to its offer, and reports twice a minute. The edge takes so many reports a second
//! (`edge.limits.reports_per_second`) and refuses the rest, so that what it counts is a sample. Reports say nothing of who sent them, of which
//! stream, or of anything that could become a label; what they say is cut to what can be, and believed by nobody: nothing but metrics comes of it.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::metrics::{counter, histogram};
use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use serde::Deserialize;

use super::error::Problem;
use super::limits::{self, Limiter, Tokens};
use super::metrics::{
    PLAYER_FIRST_FRAME, PLAYER_FREEZES, PLAYER_FROZEN, PLAYER_LATENCY, PLAYER_PLAYED,
    PLAYER_REPORTS,
};
use super::{EdgeState, admit, auth, body, cors};

pub(super) const METHODS: &str = "POST, OPTIONS";

/// The relation of the link that asks a player to report.
pub(super) const RELATION: &str = "urn:headwater:qoe";

const JSON: &str = "application/json";
/// What `navigator.sendBeacon` makes of a string.
const TEXT: &str = "text/plain";

/// Longest report (bytes): ten times what ours are.
const REPORT_BYTES_MAX: usize = 4096;

/// Latencies that one report may have (count): one a second.
const LATENCIES_MAX: usize = 60;

/// No player takes longer for its first frame, plays longer between two reports, or is further behind. What says so has slept.
const FIRST_FRAME_MAX: Duration = Duration::from_secs(120);
const PLAYED_MAX: Duration = Duration::from_secs(120);
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// The shortest pause that a browser calls a freeze: 150 ms more than usual (W3C webrtc-stats, freezeCount).
const FREEZE_MIN: Duration = Duration::from_millis(150);

/// How many reports are taken.
#[derive(Debug)]
pub(super) struct Intake {
    per_second: u32,
    /// Of each address.
    limiter: Mutex<Limiter>,
    /// Of all together.
    tokens: Mutex<Option<Tokens>>,
    played: Seconds,
    frozen: Seconds,
}

impl Intake {
    pub(super) fn new(config: &limits::Config) -> Self {
        Self {
            per_second: config.reports_per_second,
            limiter: Mutex::new(Limiter::new(config)),
            tokens: Mutex::default(),
            played: Seconds::default(),
            frozen: Seconds::default(),
        }
    }

    /// Players are asked to report.
    pub(super) const fn open(&self) -> bool {
        self.per_second > 0
    }

    /// There is room for one more, of all viewers together.
    fn sample(&self, now: Instant) -> Result<(), Problem> {
        let rate = f64::from(self.per_second);
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = tokens.get_or_insert_with(|| Tokens::full(now, rate));
        if tokens.take(now, rate, rate) {
            Ok(())
        } else {
            Err(Problem::too_many_reports())
        }
    }

    fn count(&self, report: &Report) {
        let seen = report.clamped();
        if let Some(first) = seen.first_frame {
            histogram!(PLAYER_FIRST_FRAME).record(first.as_secs_f64());
        }
        let latency = histogram!(PLAYER_LATENCY);
        for millis in seen.latencies {
            latency.record(millis.as_secs_f64());
        }
        counter!(PLAYER_PLAYED).increment(self.played.add(seen.played));
        counter!(PLAYER_FROZEN).increment(self.frozen.add(seen.frozen));
        counter!(PLAYER_FREEZES).increment(seen.freezes);
    }
}

/// Adds up times for a counter, which takes whole seconds only.
#[derive(Debug, Default)]
struct Seconds(AtomicU64);

impl Seconds {
    /// Returns how many seconds are full now that were not before.
    fn add(&self, span: Duration) -> u64 {
        let millis = u64::try_from(span.as_millis()).unwrap_or(0);
        let before = self.0.fetch_add(millis, Ordering::Relaxed);
        (before.wrapping_add(millis)) / 1000 - before / 1000
    }
}

/// What a player says since it last did (milliseconds). What it doesn't know it leaves out; what we don't know is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Report {
    /// From its request to the first frame on the screen, once.
    first_frame_ms: Option<u32>,
    /// How long it was to show pictures.
    played_ms: u32,
    /// For how long of that they stood still.
    frozen_ms: u32,
    /// How often (count).
    freezes: u32,
    /// From the origin's socket to the screen, of some frames.
    latency_ms: Vec<u32>,
}

/// What of it can be.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    first_frame: Option<Duration>,
    played: Duration,
    frozen: Duration,
    freezes: u64,
    latencies: Vec<Duration>,
}

impl Report {
    fn clamped(&self) -> Seen {
        let millis = |millis: u32| Duration::from_millis(millis.into());
        let played = millis(self.played_ms).min(PLAYED_MAX);
        let frozen = millis(self.frozen_ms).min(played);
        let possible = frozen.as_millis().div_ceil(FREEZE_MIN.as_millis());
        Seen {
            first_frame: self
                .first_frame_ms
                .map(|ms| millis(ms).min(FIRST_FRAME_MAX)),
            played,
            frozen,
            freezes: u64::from(self.freezes).min(u64::try_from(possible).unwrap_or(0)),
            latencies: self
                .latency_ms
                .iter()
                .take(LATENCIES_MAX)
                .map(|ms| millis(*ms).min(LATENCY_MAX))
                .collect(),
        }
    }
}

/// `POST /qoe`.
pub(super) async fn post(
    request: HttpRequest,
    payload: Payload,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    let result = take(&request, payload, &state).await;
    let label = result
        .as_ref()
        .map_or_else(|problem| problem.kind, |()| "ok");
    counter!(PLAYER_REPORTS, "result" => label).increment(1);
    result.map(|()| HttpResponse::NoContent().finish())
}

async fn take(
    request: &HttpRequest,
    payload: Payload,
    state: &Data<EdgeState>,
) -> Result<(), Problem> {
    if !state.intake.open() {
        return Err(Problem::not_found("this edge takes no reports"));
    }
    admit(&state.intake.limiter, state.node.clock.now(), request)?;
    auth::check(state.config.play_token.as_ref(), request)?;
    if !body::is_type(request, JSON) && !body::is_type(request, TEXT) {
        return Err(Problem::media_type(JSON));
    }
    let timeout = Duration::from_millis(state.config.limits.request_timeout_ms.max(1));
    let text = body::read_text(request, payload, REPORT_BYTES_MAX, timeout).await?;
    let report: Report = serde_json::from_str(&text)
        .map_err(|error| Problem::malformed(format!("not a report: {error}")))?;
    // Only what could be counted uses room up.
    state.intake.sample(state.node.clock.now())?;
    state.intake.count(&report);
    Ok(())
}

/// `OPTIONS /qoe`.
pub(super) async fn options() -> HttpResponse {
    cors::options(METHODS, Some(JSON))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &str) -> Seen {
        let report: Report = serde_json::from_str(text).unwrap();
        report.clamped()
    }

    #[test]
    fn a_report_is_cut_to_what_can_be() {
        let ms = Duration::from_millis;
        let honest = r#"{"first_frame_ms":310,"played_ms":30000,"frozen_ms":400,"freezes":2,"latency_ms":[140,155],"of":"a later player"}"#;
        let expected = Seen {
            first_frame: Some(ms(310)),
            played: ms(30_000),
            frozen: ms(400),
            freezes: 2,
            latencies: vec![ms(140), ms(155)],
        };
        assert_eq!(seen(honest), expected);
        let lies = format!(
            r#"{{"first_frame_ms":4294967295,"played_ms":1000,"frozen_ms":4294967295,"freezes":99,"latency_ms":[{}4294967295]}}"#,
            "4294967295,".repeat(200)
        );
        let expected = Seen {
            first_frame: Some(FIRST_FRAME_MAX),
            played: ms(1000),
            frozen: ms(1000),
            freezes: 7,
            latencies: vec![LATENCY_MAX; LATENCIES_MAX],
        };
        assert_eq!(seen(&lies), expected);
        let nothing = seen("{}");
        assert_eq!((nothing.first_frame, nothing.played), (None, ms(0)));
    }

    #[test]
    fn what_is_no_whole_number_of_milliseconds_is_refused() {
        for text in [
            "",
            "null",
            r#"{"played_ms":-1}"#,
            r#"{"played_ms":1e99}"#,
            r#"{"played_ms":"5"}"#,
            r#"{"latency_ms":[[]]}"#,
        ] {
            let _ = serde_json::from_str::<Report>(text).expect_err(text);
        }
    }

    #[test]
    fn seconds_are_counted_when_they_are_full() {
        let seconds = Seconds::default();
        let added = [400, 400, 400, 2900].map(|ms| seconds.add(Duration::from_millis(ms)));
        assert_eq!(added, [0, 0, 1, 3]);
    }
}
