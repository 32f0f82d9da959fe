//! Requests that are another edge's: where all edges share one address, what a viewer asks about its session reaches any of them, and a
//! newcomer one that is full. They go to the right edge over the nodes' gRPC, and its answer to the viewer.

use std::sync::Arc;
use std::time::Duration;

use ::metrics::counter;
use actix_web::body::BoxBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{Error, HttpRequest, HttpResponse, HttpResponseBuilder, ResponseError as _};
use futures_util::stream::unfold;
use headwater_node::directory::NodeRecord;
use headwater_proto::sessions::{Answer, Head, Header, Request};
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::error::Problem;
use super::{EdgeState, forwarded, metrics, peer, whep};
use crate::sessions::SessionId;
use crate::upstream::Connection;

/// The head of an answer is there by then, or the other edge is as good as gone. It may have to open a stream first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer with a known end is no longer (bytes).
const BODY_BYTES_MAX: u64 = 256 * 1024;

/// What of a request matters to WHEP.
const REQUEST_HEADERS: [HeaderName; 5] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::IF_MATCH,
    HeaderName::from_static("traceparent"),
];

/// Around what belongs to a session: hands requests to the edge that has it.
pub(super) async fn to_its_edge(
    mut request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some((state, there)) = owner(&request) else {
        return next.call(request).await;
    };
    let payload = request.extract::<Payload>().await?;
    let (request, _) = request.into_parts();
    let answer = pass_on(&request, payload, &state, &there).await;
    let answer = answer.unwrap_or_else(|problem| problem.error_response());
    Ok(ServiceResponse::new(request, answer))
}

/// The edge that has the session, if it is another one. What was handed here already stays: two edges that take each other for the owner
/// would play ball.
fn owner(request: &ServiceRequest) -> Option<(Data<EdgeState>, NodeRecord)> {
    if request.method() == Method::OPTIONS || forwarded::is(request.request()) {
        return None;
    }
    let state = request.app_data::<Data<EdgeState>>()?;
    let edge = SessionId::edge(request.match_info().get("session")?)?;
    let there = (edge != state.node.id.as_str()).then(|| state.placement.edge(edge))??;
    Some((state.clone(), there))
}

async fn pass_on(
    request: &HttpRequest,
    payload: Payload,
    state: &EdgeState,
    there: &NodeRecord,
) -> Result<HttpResponse, Problem> {
    state.admit(request)?;
    let body = whep::text(request, payload, state).await?;
    send(request, body, state, there).await
}

/// Has the other edge answer the request.
pub(super) async fn send(
    request: &HttpRequest,
    body: String,
    state: &EdgeState,
    there: &NodeRecord,
) -> Result<HttpResponse, Problem> {
    let result = exchange(request, body, state, there).await;
    let label = match &result {
        Ok(_) => "ok",
        Err(status) if status.code() == Code::ResourceExhausted => "refused",
        Err(_) => "unreachable",
    };
    counter!(metrics::FORWARDED, "result" => label).increment(1);
    result.map_err(|status| {
        debug!(edge = %there.id, %status, "a request could not be forwarded");
        Problem::edge_unreachable()
    })
}

async fn exchange(
    request: &HttpRequest,
    body: String,
    state: &EdgeState,
    there: &NodeRecord,
) -> Result<HttpResponse, Status> {
    if there.grpc_url.is_empty() {
        return Err(Status::unavailable("it has no gRPC port (edge.grpc)"));
    }
    let message = Request {
        node: state.node.id.to_string(),
        viewer: peer(request).map_or_else(String::new, |viewer| viewer.to_string()),
        method: request.method().to_string(),
        target: request.uri().to_string(),
        headers: headers(request),
        body: body.into(),
    };
    let connection = Connection::shared(&state.node, &there.grpc_url);
    // The connection lives on the node's I/O runtime. A viewer that hangs up meanwhile makes this no longer than the timeout.
    let call = state.node.io.spawn({
        let connection = Arc::clone(&connection);
        async move {
            let mut client = connection.sessions().await.map_err(unavailable)?;
            let mut answers = client.forward(message).await?.into_inner();
            let first = answers.message().await?;
            Ok::<_, Status>((first, answers))
        }
    });
    let answered = tokio::time::timeout(HEAD_TIMEOUT, call).await;
    let (first, answers) = answered.map_err(unavailable)?.map_err(unavailable)??;
    let Answer { head, body } = first.unwrap_or_default();
    let head = head.ok_or_else(|| Status::data_loss("an answer without a head"))?;
    let rest = Rest {
        answers,
        _connection: connection,
    };
    answer(head, body, rest).await
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn headers(request: &HttpRequest) -> Vec<Header> {
    let header = |name: &HeaderName| {
        let values = request.headers().get_all(name).cloned();
        let name = name.to_string();
        values.filter_map(move |value| {
            let value = value.to_str().ok()?.to_owned();
            let name = name.clone();
            Some(Header { name, value })
        })
    };
    REQUEST_HEADERS.iter().flat_map(header).collect()
}

/// What follows an answer's first message.
struct Rest {
    answers: Streaming<Answer>,
    /// Open as long as somebody reads.
    _connection: Arc<Connection>,
}

impl Rest {
    async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        let next = self.answers.message().await.transpose();
        next.map(|answer| answer.map(|answer| answer.body))
    }
}

async fn answer(head: Head, mut body: Bytes, mut rest: Rest) -> Result<HttpResponse, Status> {
    let status = u16::try_from(head.status).ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| Status::data_loss("a status that is none"))?;
    let mut response = HttpResponseBuilder::new(status);
    for Header { name, value } in head.headers {
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.as_str()),
            HeaderValue::try_from(value.as_str()),
        ) {
            response.append_header((name, value));
        }
    }
    let Some(length) = head.body_bytes else {
        let first = Some(body).filter(|body| !body.is_empty());
        let pieces = unfold((first, rest), |(first, mut rest)| async move {
            let piece = match first {
                Some(first) => Ok(first),
                None => rest.next().await?,
            };
            Some((piece, (None, rest)))
        });
        return Ok(response.streaming(pieces));
    };
    if length > BODY_BYTES_MAX {
        return Err(Status::data_loss("an answer that is too long"));
    }
    let missing = |body: &Bytes| u64::try_from(body.len()).is_ok_and(|bytes| bytes < length);
    while missing(&body) {
        let more = rest.next().await;
        let more = more.ok_or_else(|| Status::data_loss("an answer cut short"))??;
        body = [body, more].concat().into();
    }
    Ok(if body.is_empty() {
        response.finish()
    } else {
        response.body(body)
    })
}
