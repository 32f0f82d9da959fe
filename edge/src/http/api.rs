//! What the index page shows: which streams are live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::error::Problem;
use super::{EdgeState, auth, cors};
use crate::locate::{self, LiveStream};

pub(super) const METHODS: &str = "GET, HEAD, OPTIONS";

/// How long a listing is good for. With a fixed list of origins each listing asks all of them, so a crowd on the index page
/// must not become a crowd at the origins.
const FRESH: Duration = Duration::from_secs(1);

/// The last listing, and one lister at a time.
#[derive(Debug, Default)]
pub(super) struct Live(Mutex<Option<(Instant, Arc<[LiveStream]>)>>);

/// `GET /api/v1/streams`.
pub(super) async fn streams(
    request: HttpRequest,
    state: web::Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    auth::check(state.play_token.as_ref(), &request)?;
    let viewers = state.sessions.by_stream();
    let streams: Vec<Value> = listing(&state)
        .await
        .iter()
        .map(|stream| {
            json!({
                "name": stream.name.as_str(),
                "publishing": stream.publishing,
                "viewers": viewers.get(&stream.name).copied().unwrap_or(0),
                "tracks": [],
            })
        })
        .collect();
    Ok(HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "streams": streams })))
}

/// `OPTIONS /api/v1/streams`.
pub(super) async fn options() -> HttpResponse {
    cors::options(METHODS, None)
}

async fn listing(state: &EdgeState) -> Arc<[LiveStream]> {
    let mut last = state.live.0.lock().await;
    let now = state.node.clock.now();
    if let Some((at, streams)) = &*last
        && now.saturating_duration_since(*at) < FRESH
    {
        return Arc::clone(streams);
    }
    let streams: Arc<[LiveStream]> = locate::live_streams(&state.node).await.into();
    *last = Some((state.node.clock.now(), Arc::clone(&streams)));
    streams
}
