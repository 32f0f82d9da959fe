//! What the index page shows: which streams are live.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use headwater_media::sdp::Refusal;
use headwater_media::track::{Configuration, StreamInfo, Track};
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
    auth::check(state.config.play_token.as_ref(), &request)?;
    let viewers = state.sessions.by_stream();
    let infos: HashMap<_, _> = state
        .registry
        .streams()
        .into_iter()
        .map(|info| (info.name.clone(), info))
        .collect();
    let streams: Vec<Value> = listing(&state)
        .await
        .iter()
        .map(|stream| {
            let viewers = viewers.get(&stream.name).copied().unwrap_or(0);
            record(stream, viewers, infos.get(&stream.name).map(|info| &**info))
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

/// One stream as the APIs show it. Tracks are known of streams that this edge replicates.
pub(crate) fn record(stream: &LiveStream, viewers: usize, info: Option<&StreamInfo>) -> Value {
    let tracks = info.map(|info| info.tracks.as_slice()).unwrap_or_default();
    let mut record = json!({
        "name": stream.name.as_str(),
        "publishing": info.map_or(stream.publishing, |info| info.publishing),
        "viewers": viewers,
        "tracks": tracks.iter().map(track).collect::<Vec<_>>(),
    });
    if let (Some(problem), Some(fields)) = (info.and_then(problem), record.as_object_mut()) {
        fields.insert("problem".to_owned(), Value::String(problem));
    }
    record
}

fn track(track: &Track) -> Value {
    let mut record = json!({
        "id": track.id.0,
        "rendition": &*track.rendition,
        "codec": track.configuration.codec(),
        "bits_per_second": track.bitrate.0,
    });
    if let (Configuration::H264(h264), Some(fields)) =
        (&*track.configuration, record.as_object_mut())
    {
        fields.insert("width".to_owned(), h264.width.into());
        fields.insert("height".to_owned(), h264.height.into());
        fields.insert("b_frames".to_owned(), track.reordered.into());
    }
    record
}

/// Why WebRTC viewers don't get all of it, in one sentence.
fn problem(info: &StreamInfo) -> Option<String> {
    let video = |reordered| {
        info.tracks.iter().any(|track| {
            matches!(*track.configuration, Configuration::H264(_)) && track.reordered == reordered
        })
    };
    if video(true) && !video(false) {
        return Some(Refusal::Reordered.to_string());
    }
    let problem = info.audio_problem.as_ref()?;
    Some(Refusal::AudioProblem(Arc::clone(problem)).to_string())
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
