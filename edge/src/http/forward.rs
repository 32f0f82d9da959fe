//! Requests that are another edge's: where all edges share one address, what a viewer asks about its session reaches any of them, and a
//! newcomer one that is full. They go to the right edge over the nodes' gRPC, and its answer to the viewer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::metrics::counter;
use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{
    Error, HttpMessage as _, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError as _,
};
use futures_util::stream::unfold;
use headwater_media::id::NodeId;
use headwater_node::directory::NodeRecord;
use headwater_node::trace::{self, Context};
use headwater_proto::sessions::{Answer, Head, Header, Request};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::error::Problem;
use super::{EdgeState, auth, forwarded, metrics, peer, whep};
use crate::sessions::SessionId;
use crate::upstream::{Connection, Purpose};

/// How long the other edge may take to answer: less than players wait, so that they hear of it here. With `PATCH` and `POST` it has something to
/// do.
const QUICK: Duration = Duration::from_millis(1500);
const WORKING: Duration = Duration::from_millis(2500);
/// An edge that did not answer isn't asked again for so long: who asks next hears it at once.
const SILENT_FOR: Duration = Duration::from_secs(2);
/// Of one that did, that is believed for so long by those who only want to know whether it is there.
const ANSWERED_FOR: Duration = Duration::from_secs(1);
/// An answer with a known end is no longer (bytes).
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// What of a request matters to WHEP.
const REQUEST_HEADERS: [HeaderName; 5] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    HeaderName::from_static(trace::HEADER),
];

/// Whether other edges answered a moment ago, and until when that holds. As many at most as the directory knew.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<HashMap<NodeId, (bool, Instant)>>);

impl Heard {
    fn of(&self, edge: &NodeId, now: Instant) -> Option<bool> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|_, (_, until)| now < *until);
        heard.get(edge).map(|(answered, _)| *answered)
    }

    /// It did not answer.
    pub(super) fn silent(&self, edge: &NodeId, now: Instant) -> bool {
        self.of(edge, now) == Some(false)
    }

    fn note(&self, edge: &NodeId, answered: bool, now: Instant) {
        let lasts = if answered { ANSWERED_FOR } else { SILENT_FOR };
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.insert(edge.clone(), (answered, now + lasts));
    }
}

/// Around what belongs to a session: hands requests to the edge that has it.
pub(super) async fn to_its_edge(
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some((state, edge)) = owner(&request) else {
        return next.call(request).await;
    };
    let payload = request.extract::<Payload>().await?;
    let (request, _) = request.into_parts();
    let answer = pass_on(&request, payload, &state, &edge).await;
    let answer = answer.unwrap_or_else(|problem| problem.error_response());
    Ok(ServiceResponse::new(request, answer))
}

/// The edge that the session's URL names, if it is another one. What was handed here already stays: two edges that take each other for the
/// owner would play ball.
fn owner(request: &ServiceRequest) -> Option<(Data<EdgeState>, NodeId)> {
    if !forwarded::METHODS.contains(request.method()) || forwarded::is(request.request()) {
        return None;
    }
    let state = request.app_data::<Data<EdgeState>>()?;
    let edge = SessionId::edge(request.match_info().get("session")?)?;
    (edge != state.node.id).then(|| (state.clone(), edge))
}

async fn pass_on(
    request: &HttpRequest,
    payload: Payload,
    state: &EdgeState,
    edge: &NodeId,
) -> Result<HttpResponse, Problem> {
    // Whoever may not ask must cost nothing there.
    state.admit(request)?;
    let ids = request.match_info();
    whep::name(ids.query("app"), ids.query("stream"))?;
    auth::check(state.config.play_token.as_ref(), request)?;
    let directory = &state.node.directory;
    let there = state.placement.edge(edge).ok_or_else(|| {
        if directory.synced() {
            Problem::no_session()
        } else {
            Problem::unavailable("no-directory", "this edge does not know the others yet")
        }
    })?;
    let body = whep::text(request, payload, state).await?;
    let within = match *request.method() {
        Method::POST | Method::PATCH => WORKING,
        _ => QUICK,
    };
    send(request, body, state, &there, within).await
}

/// Whether the other edge is there for the player of this request: the directory knows a dead one for as long as its lease.
pub(super) async fn answers(request: &HttpRequest, state: &EdgeState, there: &NodeRecord) -> bool {
    // One without gRPC can't be asked.
    if there.grpc_url.is_empty() {
        return true;
    }
    let heard = state.heard.of(&there.id, state.node.clock.now());
    if let Some(answered) = heard {
        return answered;
    }
    let question = (Method::HEAD, String::new());
    let answer = exchange(request, question, state, there, QUICK).await;
    answer.is_ok()
}

/// Has the other edge answer the request.
pub(super) async fn send(
    request: &HttpRequest,
    body: String,
    state: &EdgeState,
    there: &NodeRecord,
    within: Duration,
) -> Result<HttpResponse, Problem> {
    let question = (request.method().clone(), body);
    let result = exchange(request, question, state, there, within).await;
    let label = match result.as_ref().map_err(Status::code) {
        Ok(_) => "ok",
        Err(Code::ResourceExhausted | Code::InvalidArgument) => "refused",
        Err(_) => "unreachable",
    };
    counter!(metrics::FORWARDED, "result" => label).increment(1);
    result.map_err(|status| {
        debug!(edge = %there.id, %status, "a request could not be forwarded");
        match status.code() {
            Code::ResourceExhausted => Problem::busy(),
            Code::InvalidArgument => Problem::malformed(status.message()),
            _ => Problem::edge_unreachable(),
        }
    })
}

async fn exchange(
    request: &HttpRequest,
    (method, body): (Method, String),
    state: &EdgeState,
    there: &NodeRecord,
    within: Duration,
) -> Result<HttpResponse, Status> {
    if there.grpc_url.is_empty() {
        return Err(Status::unavailable("it has no gRPC port (edge.grpc)"));
    }
    let clock = &state.node.clock;
    if state.heard.silent(&there.id, clock.now()) {
        return Err(Status::unavailable("it did not answer a moment ago"));
    }
    let target = request.uri().path_and_query();
    let message = Request {
        node: state.node.id.to_string(),
        viewer: peer(request).map_or_else(String::new, |viewer| viewer.to_string()),
        method: method.to_string(),
        target: target.map_or_else(String::new, ToString::to_string),
        headers: headers(request),
        body: body.into(),
    };
    let connection = Connection::shared(&state.node, &there.grpc_url, Purpose::Sessions);
    let call = ask(Arc::clone(&connection), message);
    // The connection lives on the node's I/O runtime. A viewer that hangs up ends the call, and the request at the other edge.
    let call = AbortOnDropHandle::new(state.node.io.spawn(tokio::time::timeout(within, call)));
    let answered = match call.await {
        Ok(Ok(answered)) => answered,
        Ok(Err(late)) => Err(Status::deadline_exceeded(late.to_string())),
        Err(ended) => Err(unavailable(ended)),
    };
    let answered = answered.inspect_err(|status| {
        // One that takes its time over what it has to do isn't silent.
        let silent = match status.code() {
            Code::Unavailable => true,
            Code::DeadlineExceeded => within <= QUICK,
            _ => false,
        };
        if silent {
            connection.discard();
            state.heard.note(&there.id, false, clock.now());
        }
    })?;
    state.heard.note(&there.id, true, clock.now());
    answer(answered, connection)
}

/// What came of a request.
struct Answered {
    head: Head,
    /// All of it, or what came first.
    body: Bytes,
    /// More, of a body without a known end.
    rest: Option<Streaming<Answer>>,
}

async fn ask(connection: Arc<Connection>, request: Request) -> Result<Answered, Status> {
    let mut client = connection.sessions().await.map_err(unavailable)?;
    let mut answers = client.forward(request).await?.into_inner();
    let first = answers.message().await?.unwrap_or_default();
    let head = first.head;
    let head = head.ok_or_else(|| Status::data_loss("an answer without a head"))?;
    let Some(length) = head.body_bytes else {
        return Ok(Answered {
            head,
            body: first.body,
            rest: Some(answers),
        });
    };
    if length > BODY_BYTES_MAX {
        return Err(Status::data_loss("an answer that is too long"));
    }
    let mut body = Vec::from(first.body);
    // To the end of the call, past the last of the body: one that is broken off costs the connection something.
    while let Some(more) = answers.message().await? {
        body.extend_from_slice(&more.body);
        if u64::try_from(body.len()).map_or(true, |bytes| bytes > length) {
            return Err(Status::data_loss("an answer longer than announced"));
        }
    }
    Ok(Answered {
        head,
        body: body.into(),
        rest: None,
    })
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn headers(request: &HttpRequest) -> Vec<Header> {
    let header = |name: &HeaderName| {
        let values = request.headers().get_all(name).cloned();
        let name = name.to_string();
        values.map(move |value| Header {
            name: name.clone(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        })
    };
    let mut headers: Vec<Header> = REQUEST_HEADERS.iter().flat_map(header).collect();
    // The other edge goes on with what was begun here.
    if let Some(context) = request.extensions().get::<Context>() {
        headers.retain(|header| header.name != trace::HEADER);
        headers.push(Header {
            name: trace::HEADER.to_owned(),
            value: context.to_string().into(),
        });
    }
    headers
}

fn answer(answered: Answered, connection: Arc<Connection>) -> Result<HttpResponse, Status> {
    let Answered { head, body, rest } = answered;
    let status = u16::try_from(head.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status
        .filter(|status| !status.is_informational())
        .ok_or_else(|| Status::data_loss("a status that is none"))?;
    let mut response = HttpResponseBuilder::new(status);
    for Header { name, value } in head.headers {
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::from_bytes(&value),
        ) && !forwarded::OF_CONNECTIONS.contains(&name)
        {
            response.append_header((name, value));
        }
    }
    let Some(answers) = rest else {
        return Ok(if body.is_empty() {
            response.finish()
        } else {
            response.body(body)
        });
    };
    let first = Some(body).filter(|body| !body.is_empty());
    // The connection stays open as long as somebody reads.
    let pieces = unfold(
        (first, answers, connection),
        |(first, mut answers, connection)| async move {
            let piece = match first {
                Some(first) => Ok(first),
                None => match answers.message().await.transpose()? {
                    Ok(answer) => Ok(answer.body),
                    Err(status) => Err(status),
                },
            };
            Some((piece, (None, answers, connection)))
        },
    );
    Ok(response.streaming(pieces))
}
