//! WHEP (draft-ietf-wish-whep with RFC 9725's session rules): offer in, answer out, and the session's life after it.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use actix_web::http::header::{self, HeaderName};
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use headwater_media::id::StreamName;
use headwater_media::sdp::{Fragment, IceCredentials, Local, OFFER_BYTES_MAX, Offer};
use headwater_node::trace::{self, Sampling, Span};
use metrics::{counter, histogram};
use rand::Rng;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::error::Problem;
use super::place::Place;
use super::{EdgeState, auth, body, cors, events, forward, millis, peer, place, preference, qoe};
use crate::sessions::{IceSession, Session, SessionId};
use crate::shard::tag::ICE_CHARS;
use crate::shard::{
    Counters, Credentials, EndReason, Join, JoinError, RestartError, ShardHandle, ViewerId,
};

pub(super) const ENDPOINT_METHODS: &str = "POST, GET, HEAD, OPTIONS";
/// The WHEP extension by which a player chooses among renditions.
pub(super) const LAYER_EXTENSION: &str = "urn:ietf:params:whep:ext:core:layer";
pub(super) const SESSION_METHODS: &str = "PATCH, DELETE, GET, HEAD, OPTIONS";

const SDP: &str = "application/sdp";
const FRAGMENT: &str = "application/trickle-ice-sdpfrag";
const ACCEPT_PATCH: HeaderName = HeaderName::from_static("accept-patch");

/// How long a shard may take to let a viewer in or restart it. It answers in well under a millisecond unless it is overloaded.
const SHARD_TIMEOUT: Duration = Duration::from_secs(2);
/// How long another edge may take to let a viewer in that this one can't take, or could: it may have to get the stream first.
const FORWARD: Duration = Duration::from_millis(4500);
const FORWARD_SPARED: Duration = Duration::from_secs(2);
/// Other user fragments that are tried when one is taken (count). With 60 random bits even one retry will hardly be seen.
const UFRAG_TRIES: usize = 3;

/// `POST /whep/{app}/{stream}`: a player wants to watch.
pub(super) async fn post(
    request: HttpRequest,
    path: Path<(String, String)>,
    payload: Payload,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    let mut span = trace(&request);
    let result = join(&request, &path, payload, &state, &mut span).await;
    let label = match &result {
        Ok(Joined::Here(_)) => "ok",
        Ok(Joined::Redirected(_)) => "redirected",
        Ok(Joined::Forwarded(_)) => "forwarded",
        Err(problem) => {
            debug!(peer = ?peer(&request), app = %path.0, stream = %path.1, %problem, "join refused");
            if problem.status.is_server_error() {
                span.fail(problem);
            }
            problem.kind
        }
    };
    span.set("result", label);
    counter!(super::metrics::JOINS, "result" => label).increment(1);
    result.map(
        |(Joined::Here(answer) | Joined::Redirected(answer) | Joined::Forwarded(answer))| answer,
    )
}

/// The join as a part of the player's trace, if it has one. Who is handed on takes it along.
fn trace(request: &HttpRequest) -> Span {
    let header = request.headers().get(trace::HEADER);
    let parent = header.and_then(|header| header.to_str().ok()?.parse().ok());
    let span = trace::start("join", trace::Kind::Server, parent, Sampling::Share);
    if let Some(context) = span.context() {
        request.extensions_mut().insert(context);
    }
    span
}

/// Who serves a newcomer: this edge, another one where the player shall ask itself, or another one that was asked for it.
enum Joined {
    Here(HttpResponse),
    Redirected(HttpResponse),
    Forwarded(HttpResponse),
}

async fn join(
    request: &HttpRequest,
    path: &(String, String),
    payload: Payload,
    state: &Data<EdgeState>,
    span: &mut Span,
) -> Result<Joined, Problem> {
    let clock = &state.node.clock;
    let start = clock.now();
    state.admit(request)?;
    let name = name(&path.0, &path.1)?;
    span.set("stream", &name);
    auth::check(state.config.play_token.as_ref(), request)?;
    // Before anything is done for who can't be taken: a storm of joins must not cost those who watch.
    let place = place::find(request, state, &name).await?;
    if let Place::Redirect(there) = place {
        return Ok(Joined::Redirected(there));
    }
    if !body::is_type(request, SDP) {
        return Err(Problem::media_type(SDP));
    }
    let mut preference = preference::read(request.query_string())?;
    if preference.assumed.is_none() {
        preference.assumed = peer(request).and_then(|peer| state.sessions.assumed_link(peer));
    }
    let text = text(request, payload, state).await?;
    if let Place::Forward { there, refused } = place {
        let within = if refused.is_ok() {
            FORWARD_SPARED
        } else {
            FORWARD
        };
        match forward::send(request, text.clone(), state, &there, within).await {
            // What another edge can't do may well be done here, where there is room, if not much.
            Ok(answer)
                if answer.status().is_success()
                    || (refused.is_err() && !answer.status().is_server_error()) =>
            {
                return Ok(Joined::Forwarded(answer));
            }
            Ok(_) | Err(_) => refused?,
        }
    }
    let offer = Offer::parse(&text)?;
    let parsed = clock.now();
    span.phase("offer", clock.wall_at(start), clock.wall_at(parsed));

    let open = state.registry.open(&name, span.context()).await;
    let opened = clock.now();
    span.phase("open", clock.wall_at(parsed), clock.wall_at(opened));
    let open = open?;
    // A stream that is held for its publisher, or whose first configuration is still to come, has nothing to show yet.
    if !open.info.publishing || open.info.tracks.is_empty() {
        return Err(Problem::not_live());
    }
    let negotiation = offer.negotiate(&open.info, &mut rand::rng())?;

    let shard = state.shards.pick(opened)?;
    let viewer = state.sessions.next_viewer();
    let counters = Arc::new(Counters::default());
    let id = SessionId::random(&state.node.id);
    let ice = IceSession::new(IceCredentials {
        ufrag: negotiation.negotiated.remote_ufrag.clone(),
        pwd: negotiation.negotiated.remote_pwd.clone(),
    });
    let etag = ice.etag.clone();
    // In the table before it is in the shard, so that an end that the shard reports always finds it.
    state.sessions.insert(Arc::new(Session {
        id: id.clone(),
        viewer,
        stream: name.clone(),
        shard: shard.clone(),
        counters: Arc::clone(&counters),
        peer: peer(request),
        since: start,
        layers: Mutex::new(preference.layers.clone()),
        mids: negotiation.mids(),
        ended: CancellationToken::new(),
        listening: Mutex::new(CancellationToken::new()),
        ice: tokio::sync::Mutex::new(ice),
    }));
    // The player may hang up while we wait: then this future is dropped, and the guard takes back what it did.
    let pending = Pending {
        state,
        viewer,
        leave: || shard.leave(viewer, EndReason::NeverConnected),
    };
    let mut local = Local {
        ufrag: String::new(),
        pwd: String::new(),
        fingerprint: state.shards.fingerprint(),
        candidates: shard.candidates().to_vec(),
    };
    let mut tries = 0;
    loop {
        (local.ufrag, local.pwd) = credentials(&shard);
        let joining = shard.join(Join {
            viewer,
            stream: name.clone(),
            replica: open.handle.clone(),
            local_ufrag: local.ufrag.clone(),
            local_pwd: local.pwd.clone(),
            negotiated: negotiation.negotiated.clone(),
            preference: preference.clone(),
            counters: Arc::clone(&counters),
            asked: start,
        });
        match tokio::time::timeout(SHARD_TIMEOUT, joining).await {
            Ok(Ok(())) => break,
            Ok(Err(JoinError::UfragTaken)) if tries < UFRAG_TRIES => tries += 1,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(JoinError::Overloaded.into()),
        }
    }
    pending.keep();

    let end = clock.now();
    span.phase("shard", clock.wall_at(opened), clock.wall_at(end));
    span.set("viewer", viewer);
    phases(start, parsed, opened, end);
    let negotiated = &negotiation.negotiated;
    info!(
        stream = %name,
        %viewer,
        peer = ?peer(request),
        video = negotiated.video.is_some(),
        audio = negotiated.audio.is_some(),
        offer_ms = millis(start, parsed),
        open_ms = millis(parsed, opened),
        shard_ms = millis(opened, end),
        "viewer joined"
    );
    let answer = negotiation.answer(&local);
    let carried = auth::carried(state.config.play_token.as_ref(), request);
    let answer = created(state, &name, &id, carried, &etag, &answer);
    Ok(Joined::Here(answer))
}

/// `PATCH /whep/{app}/{stream}/{session}`: trickled candidates, or an ICE restart (RFC 9725 section 4.3).
pub(super) async fn patch(
    request: HttpRequest,
    path: Path<(String, String, String)>,
    payload: Payload,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    let session = session(&state, &path, &request)?;
    if !body::is_type(&request, FRAGMENT) {
        return Err(Problem::media_type(FRAGMENT));
    }
    let condition = IfMatch::read(&request)?;
    let fragment = Fragment::parse(&text(&request, payload, &state).await?)?;

    // Overlapping requests come one after the other here, each judged by the ETag of its turn.
    let mut ice = session.ice.lock().await;
    if !condition.holds(&ice.etag) {
        return Err(Problem::precondition_failed());
    }
    let Some(remote) = fragment.ice.filter(|remote| *remote != ice.remote) else {
        // Addresses come from the player's checks, so there is nothing to do with candidates of any kind.
        return Ok(HttpResponse::NoContent().finish());
    };
    let (ufrag, pwd) = credentials(&session.shard);
    let restart = session.shard.restart_ice(
        session.viewer,
        Credentials {
            local_ufrag: ufrag.clone(),
            local_pwd: pwd.clone(),
            remote_ufrag: remote.ufrag.clone(),
            remote_pwd: remote.pwd.clone(),
        },
    );
    match tokio::time::timeout(SHARD_TIMEOUT, restart).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.into()),
        // The running ICE session goes on.
        Err(_) => return Err(RestartError::Overloaded.into()),
    }
    *ice = IceSession::new(remote);
    let local = Local {
        ufrag,
        pwd,
        fingerprint: state.shards.fingerprint(),
        candidates: session.shard.candidates().to_vec(),
    };
    counter!(super::metrics::ICE_RESTARTS).increment(1);
    info!(stream = %session.stream, viewer = %session.viewer, "ICE restarted");
    Ok(HttpResponse::Ok()
        .content_type(FRAGMENT)
        .insert_header((header::ETAG, ice.etag.as_str()))
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(Fragment::restart_answer(&session.mids, &local)))
}

/// `DELETE /whep/{app}/{stream}/{session}`: the viewer leaves. ETags don't matter here (RFC 9725 section 4.2).
pub(super) async fn delete(
    request: HttpRequest,
    path: Path<(String, String, String)>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    state.admit(&request)?;
    let session = session(&state, &path, &request)?;
    if !state.sessions.ended(session.viewer, EndReason::Left) {
        return Err(Problem::no_session());
    }
    session.shard.leave(session.viewer, EndReason::Left);
    Ok(HttpResponse::Ok().finish())
}

/// `GET` on the endpoint: nothing to see, and no error (WHEP draft section 4.2).
pub(super) async fn get(
    request: HttpRequest,
    path: Path<(String, String)>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    name(&path.0, &path.1)?;
    auth::check(state.config.play_token.as_ref(), &request)?;
    Ok(HttpResponse::NoContent().finish())
}

/// `HEAD` on the endpoint says what it speaks.
pub(super) async fn head(
    request: HttpRequest,
    path: Path<(String, String)>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    name(&path.0, &path.1)?;
    auth::check(state.config.play_token.as_ref(), &request)?;
    Ok(HttpResponse::Ok().content_type(SDP).finish())
}

/// `GET` and `HEAD` on a session: whether it still is.
pub(super) async fn get_session(
    request: HttpRequest,
    path: Path<(String, String, String)>,
    state: Data<EdgeState>,
) -> Result<HttpResponse, Problem> {
    session(&state, &path, &request)?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn options() -> HttpResponse {
    cors::options(ENDPOINT_METHODS, Some(SDP))
}

pub(super) async fn options_session() -> HttpResponse {
    cors::options(SESSION_METHODS, None)
}

pub(super) fn name(app: &str, stream: &str) -> Result<StreamName, Problem> {
    StreamName::new(app, stream).map_err(|error| Problem::not_found(error.to_string()))
}

/// The session that a request names, if it may.
pub(super) fn session(
    state: &EdgeState,
    path: &(String, String, String),
    request: &HttpRequest,
) -> Result<Arc<Session>, Problem> {
    let name = name(&path.0, &path.1)?;
    auth::check(state.config.play_token.as_ref(), request)?;
    state
        .sessions
        .get(&name, &path.2)
        .ok_or_else(Problem::no_session)
}

pub(super) async fn text(
    request: &HttpRequest,
    payload: Payload,
    state: &EdgeState,
) -> Result<String, Problem> {
    let timeout = Duration::from_millis(state.config.limits.request_timeout_ms.max(1));
    body::read_text(request, payload, OFFER_BYTES_MAX, timeout).await
}

fn created(
    state: &EdgeState,
    name: &StreamName,
    id: &SessionId,
    carried: Option<&str>,
    etag: &str,
    answer: &str,
) -> HttpResponse {
    let base = state.config.public_url.as_deref().unwrap_or_default();
    let base = base.trim_end_matches('/');
    let session = format!("{base}/whep/{name}/{}", id.as_str());
    let query = carried.map_or_else(String::new, |token| format!("?{token}"));
    let mut response = HttpResponse::Created();
    response
        .content_type(SDP)
        .insert_header((header::LOCATION, format!("{session}{query}")))
        .insert_header((header::ETAG, etag))
        .insert_header((ACCEPT_PATCH, FRAGMENT))
        .insert_header((header::CACHE_CONTROL, "no-store"));
    for server in &state.config.ice_servers {
        let mut link = format!("<{}>; rel=\"ice-server\"", server.url);
        if let (Some(username), Some(credential)) = (&server.username, &server.credential) {
            // Writing to a string can't fail.
            let _ = write!(
                link,
                "; username=\"{}\"; credential=\"{}\"; credential-type=\"password\"",
                quoted(username),
                quoted(credential.reveal())
            );
        }
        response.append_header((header::LINK, link));
    }
    response.append_header((
        header::LINK,
        format!("<{session}/layer{query}>; rel=\"{LAYER_EXTENSION}\""),
    ));
    response.append_header((
        header::LINK,
        format!(
            "<{session}/events{query}>; rel=\"{}\"; events=\"{}\"",
            events::EXTENSION,
            events::NAMES.join(",")
        ),
    ));
    if state.intake.open() {
        response.append_header((
            header::LINK,
            format!("<{base}/qoe>; rel=\"{}\"", qoe::RELATION),
        ));
    }
    response.body(answer.to_owned())
}

/// A quoted-string's inside (RFC 9110 section 5.6.4).
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// A new ICE user fragment and password: 60 and 180 bits of a CSPRNG (RFC 8839 section 5.4 asks for 24 and 128).
fn credentials(shard: &ShardHandle) -> (String, String) {
    let mut random = rand::rng();
    let mut text = |chars: usize| -> String {
        (0..chars)
            .map(|_| char::from(ICE_CHARS[random.random_range(0..ICE_CHARS.len())]))
            .collect()
    };
    (format!("{}{}", shard.tag(), text(10)), text(30))
}

fn phases(start: Instant, parsed: Instant, opened: Instant, end: Instant) {
    for (phase, from, to) in [
        ("offer", start, parsed),
        ("open", parsed, opened),
        ("shard", opened, end),
        ("total", start, end),
    ] {
        histogram!(super::metrics::JOIN, "phase" => phase)
            .record(to.saturating_duration_since(from).as_secs_f64());
    }
}

/// Takes a half-made session back unless it is kept.
struct Pending<'a, F: Fn()> {
    state: &'a EdgeState,
    viewer: ViewerId,
    leave: F,
}

impl<F: Fn()> Pending<'_, F> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl<F: Fn()> Drop for Pending<'_, F> {
    fn drop(&mut self) {
        self.state
            .sessions
            .ended(self.viewer, EndReason::NeverConnected);
        (self.leave)();
    }
}

/// `If-Match` of a PATCH (RFC 9110 section 13.1.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// `*`, which RFC 9725 prints in quotes.
    Any,
    Tags(String),
}

impl IfMatch {
    fn read(request: &HttpRequest) -> Result<Self, Problem> {
        let values: Vec<&str> = request
            .headers()
            .get_all(header::IF_MATCH)
            .filter_map(|value| value.to_str().ok())
            .collect();
        if values.is_empty() {
            return Err(Problem::precondition_required());
        }
        Ok(if_match(&values))
    }

    /// Strong comparison: a weak tag never matches.
    pub(super) fn holds(&self, etag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tags.split(',').any(|tag| tag.trim() == etag),
        }
    }
}

/// From the values of all `If-Match` lines.
pub(super) fn if_match(values: &[&str]) -> IfMatch {
    let tags = values.join(",");
    match tags.trim() {
        "*" | "\"*\"" => IfMatch::Any,
        _ => IfMatch::Tags(tags),
    }
}
