//! The WHEP layer extension: a session's renditions, and which of them its viewer wants. Nothing is negotiated anew.

use std::sync::{Arc, PoisonError};

use actix_web::http::header;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use headwater_media::codec::h264;
use headwater_media::track::{StreamInfo, Track};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

use super::error::Problem;
use super::{EdgeState, cors, preference, whep};
use crate::sessions::Session;
use crate::shard::Layers;

pub(super) const METHODS: &str = "POST, GET, HEAD, OPTIONS";

/// What a player sends. Fields that other servers know and this one has no use for are ignored, as the extension has it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wish {
    /// The mid of the m-section it is about.
    media_id: Option<String>,
    /// A rendition's name; `auto` is none.
    encoding_id: Option<String>,
    /// The same by place, 0 is the lowest.
    spatial_layer_id: Option<usize>,
    /// The highest place.
    max_spatial_layer_id: Option<usize>,
    max_width: Option<u32>,
    max_height: Option<u32>,
}

type Ids = (String, String, String);

/// `GET …/layer`: what there is, what is sent, what is wanted.
pub(super) async fn get(
    request: HttpRequest,
    path: Path<Ids>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    let session = whep::session(&state, &path, &request)?;
    Ok(answer(&describe(&state, &session)))
}

/// `POST …/layer`: other renditions are wanted; `{}` is the best that fits.
pub(super) async fn post(
    request: HttpRequest,
    path: Path<Ids>,
    payload: Payload,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    let session = whep::session(&state, &path, &request)?;
    let text = whep::text(&request, payload, &state).await?;
    let wish: Wish = serde_json::from_str(&text)
        .map_err(|error| Problem::malformed(format!("not a layer selection: {error}")))?;
    let info = info(&state, &session);
    let layers = layers(&wish, &session, info.as_deref())?;
    session
        .shard
        .choose(session.viewer, layers.clone())
        .map_err(|_| Problem::unavailable("overloaded", "this edge has too much to do"))?;
    tracing::info!(stream = %session.stream, viewer = %session.viewer, ?layers, "renditions chosen");
    *session
        .layers
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = layers;
    Ok(answer(&describe(&state, &session)))
}

pub(super) async fn options() -> HttpResponse {
    cors::options(METHODS, Some("application/json"))
}

fn answer(value: &Value) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(value)
}

/// What the wish means for this stream.
fn layers(wish: &Wish, session: &Session, info: Option<&StreamInfo>) -> Result<Layers, Problem> {
    if let Some(mid) = &wish.media_id {
        let video = session.mids.iter().find(|(kind, _)| *kind == "video");
        if video.is_none_or(|(_, ours)| ours != mid) {
            return Err(Problem::unprocessable(
                "mediaId: not the mid of this session's video",
            ));
        }
    }
    let sorted = info.map(sorted).unwrap_or_default();
    let names = || {
        let names: Vec<&str> = sorted.iter().map(|(t, _)| &*t.rendition).collect();
        names.join(", ")
    };
    let mut layers = Layers {
        width_max: wish.max_width,
        height_max: wish.max_height,
        pinned: match &wish.encoding_id {
            Some(name) => preference::rendition(name)?,
            None => None,
        },
    };
    if let Some(name) = &layers.pinned
        && !sorted.iter().any(|(track, _)| track.rendition == *name)
    {
        return Err(Problem::unprocessable(format!(
            "encodingId: there is no {name}, there is: {}",
            names()
        )));
    }
    let at = |place: usize| {
        sorted.get(place).ok_or_else(|| {
            Problem::unprocessable(format!(
                "spatial layer {place}: there are {}, from 0: {}",
                sorted.len(),
                names()
            ))
        })
    };
    if let Some(place) = wish.spatial_layer_id {
        layers.pinned = Some(Arc::clone(&at(place)?.0.rendition));
    }
    if let Some(place) = wish.max_spatial_layer_id {
        let height = u32::from(at(place)?.1.height);
        layers.height_max = Some(layers.height_max.map_or(height, |max| max.min(height)));
    }
    Ok(layers)
}

fn info(state: &EdgeState, session: &Session) -> Option<Arc<StreamInfo>> {
    let mut streams = state.registry.streams().into_iter();
    streams.find(|info| info.name == session.stream)
}

/// From the lowest to the highest, as the policy has them.
fn sorted(info: &StreamInfo) -> Vec<(&Track, &h264::Configuration)> {
    let mut sorted: Vec<_> = info.renditions().collect();
    sorted.sort_by_key(|(track, h264)| (h264.height, track.bitrate));
    sorted
}

pub(super) fn describe(state: &EdgeState, session: &Session) -> Value {
    let info = info(state, session);
    let sorted = info.as_deref().map(sorted).unwrap_or_default();
    let sent = session.counters.rendition.load(Ordering::Relaxed);
    let current = sorted
        .iter()
        .find(|(track, _)| u32::from(track.id.0) == sent)
        .map(|(track, _)| &*track.rendition);
    let layers = session
        .layers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    json!({
        "encodings": sorted.iter().map(|(track, h264)| json!({
            "encodingId": &*track.rendition,
            "width": h264.width,
            "height": h264.height,
            "bitrate": track.bitrate.0,
        })).collect::<Vec<_>>(),
        "current": current,
        "pinned": layers.pinned.as_deref(),
        "maxWidth": layers.width_max,
        "maxHeight": layers.height_max,
    })
}
