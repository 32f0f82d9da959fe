//! The WHEP extension for events from the server: a player names those it wants to hear of, and reads them as server-sent events.
//!
//! `POST …/events` with a JSON list of names creates the subscription; its `Location` is read as `text/event-stream` (HTML Standard section
//! 9.2) by one reader at a time, and ended by `DELETE`.
//!
//! | event | data | when |
//! |---|---|---|
//! | `active`, `inactive` | `{}` | the publisher sends, or not; the first tells how it is |
//! | `layers` | as of `GET …/layer` | the stream has other renditions |
//! | `reconnect` | `{"url": …}`, a WHEP endpoint, perhaps relative to the session's URL | this edge is going to stop: join there, then leave here |

use std::convert::Infallible;
use std::future::pending;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use actix_web::http::header::{self, ContentEncoding, HeaderName};
use actix_web::web::{Bytes, Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::Problem;
use super::{EdgeState, auth, cors, layer, whep};
use crate::drain::Leaving;
use crate::replica::State;
use crate::sessions::Session;

pub(super) const METHODS: &str = "POST, GET, DELETE, OPTIONS";
pub(super) const EXTENSION: &str = "urn:ietf:params:whep:ext:core:server-sent-events";

/// What can be heard of, by the names of the extension.
pub(super) const NAMES: [&str; 4] = ["active", "inactive", "layers", "reconnect"];

/// A comment is sent so often: who hung up is noticed by it, and proxies don't end the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

type Ids = (String, String, String);

/// `POST …/events`: which events are wanted; none named: all.
pub(super) async fn post(
    request: HttpRequest,
    path: Path<Ids>,
    payload: Payload,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    whep::session(&state, &path, &request)?;
    let text = whep::text(&request, payload, &state).await?;
    let named: Vec<String> = if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(&text)
            .map_err(|error| Problem::malformed(format!("not a list of events: {error}")))?
    };
    let wanted: Vec<&str> = NAMES
        .into_iter()
        .filter(|name| named.is_empty() || named.iter().any(|wanted| wanted == name))
        .collect();
    if wanted.is_empty() {
        return Err(Problem::unprocessable(format!(
            "none of these events is known here; there are: {}",
            NAMES.join(", ")
        )));
    }
    let mut location = format!("{}?events={}", request.path(), wanted.join(","));
    if let Some(token) = auth::carried(state.config.play_token.as_ref(), &request) {
        location = format!("{location}&{token}");
    }
    Ok(HttpResponse::Created()
        .insert_header((header::LOCATION, location))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .finish())
}

/// `GET …/events?events=…`: the events, as long as the session lasts.
pub(super) async fn get(
    request: HttpRequest,
    path: Path<Ids>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    let session = whep::session(&state, &path, &request)?;
    let query = request.query_string();
    let listed = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("events="));
    let wants = |name: &str| listed.is_none_or(|list| list.split(',').any(|n| n == name));
    let over = session.ended.child_token();
    std::mem::replace(
        &mut *session
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
        over.clone(),
    )
    .cancel();
    let listener = Listener {
        wants: NAMES.map(wants),
        // It changes every second, which is nothing to whom it is nothing to.
        stream: NAMES[..3]
            .iter()
            .any(|name| wants(name))
            .then(|| state.registry.watch(&session.stream))
            .flatten(),
        leaving: state.drain.watch(),
        carried: auth::carried(state.config.play_token.as_ref(), &request).map(str::to_owned),
        ask_at: None,
        asked: false,
        active: None,
        layers: None,
        over,
        // At once: the player knows by it that somebody is there.
        keep_alive_at: state.node.clock.now(),
        session,
        state,
    };
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        // Nor may a proxy on the way collect them.
        .insert_header((HeaderName::from_static("x-accel-buffering"), "no"))
        // Compressed, events would wait for each other.
        .insert_header(ContentEncoding::Identity)
        .streaming(unfold(listener, Listener::next)))
}

/// `DELETE …/events`: no more of them.
pub(super) async fn delete(
    request: HttpRequest,
    path: Path<Ids>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    let session = whep::session(&state, &path, &request)?;
    session
        .listening
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .cancel();
    Ok(HttpResponse::Ok().finish())
}

pub(super) async fn options() -> HttpResponse {
    cors::options(METHODS, Some("application/json"))
}

/// Who reads the events of one session.
struct Listener {
    session: Arc<Session>,
    state: Data<EdgeState>,
    /// As [`NAMES`] has them.
    wants: [bool; 4],
    /// What the stream is; `None` when that isn't known any more.
    stream: Option<watch::Receiver<State>>,
    leaving: watch::Receiver<Leaving>,
    /// What the player's URLs carry for it to be let in.
    carried: Option<String>,
    /// When the viewer is asked to go elsewhere.
    ask_at: Option<Instant>,
    asked: bool,
    /// What was said last.
    active: Option<bool>,
    layers: Option<Value>,
    over: CancellationToken,
    keep_alive_at: Instant,
}

impl Listener {
    /// The next piece of the body; `None`: it is over.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            let now = self.state.node.clock.now();
            if self.ask_at.is_none()
                && let Some(asking) = *self.leaving.borrow_and_update()
            {
                self.ask_at = Some(asking.at(self.session.viewer));
            }
            let mut text = self.stream_events();
            // Once is enough: a player that can't go keeps trying by itself.
            if !self.asked && self.ask_at.is_some_and(|at| at <= now) {
                self.asked = true;
                if self.wants[3] {
                    text.push_str(&event("reconnect", &json!({ "url": self.elsewhere() })));
                }
            }
            if text.is_empty() && self.keep_alive_at <= now {
                text.push_str(":\n\n");
            }
            if !text.is_empty() {
                self.keep_alive_at = now + KEEP_ALIVE;
                return Some((Ok(text.into()), self));
            }
            let keep_alive_at = self.keep_alive_at;
            let wake = self
                .ask_at
                .filter(|_| !self.asked)
                .map_or(keep_alive_at, |at| at.min(keep_alive_at));
            let stream = &mut self.stream;
            let changed = async move {
                let open = match stream {
                    Some(stream) => stream.changed().await.is_ok(),
                    None => pending().await,
                };
                if !open {
                    *stream = None;
                }
            };
            tokio::select! {
                () = self.over.cancelled() => return None,
                () = changed => {}
                // The edge holds the other end for as long as it serves.
                _ = self.leaving.changed(), if self.ask_at.is_none() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// What is new about the stream.
    fn stream_events(&mut self) -> String {
        let mut text = String::new();
        let Some(stream) = &mut self.stream else {
            return text;
        };
        let Some(info) = stream.borrow_and_update().info.clone() else {
            return text;
        };
        let [active, inactive, layers, _] = self.wants;
        if self.active != Some(info.publishing) {
            self.active = Some(info.publishing);
            let (name, wanted) = if info.publishing {
                ("active", active)
            } else {
                ("inactive", inactive)
            };
            if wanted {
                text.push_str(&event(name, &json!({})));
            }
        }
        if layers {
            let names: Value = info
                .renditions()
                .map(|(track, _)| Value::from(&*track.rendition))
                .collect();
            if self.layers.as_ref() != Some(&names) {
                self.layers = Some(names);
                let described = layer::describe(&self.state, &self.session);
                text.push_str(&event("layers", &described));
            }
        }
        text
    }

    /// Where the viewer should join: another edge, or, where that has no address of its own, wherever this address leads by then.
    fn elsewhere(&self) -> String {
        let name = &self.session.stream;
        let state = &self.state;
        let (placement, now) = (&state.placement, state.node.clock.now());
        let url = placement
            .other(name, |edge| state.heard.silent(edge, now))
            .and_then(|edge| placement.url_at(&edge, name));
        let url = url.unwrap_or_else(|| format!("/whep/{name}"));
        match &self.carried {
            Some(token) => format!("{url}?{token}"),
            None => url,
        }
    }
}

/// JSON in one line has no line break, so one `data` field carries it.
fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
