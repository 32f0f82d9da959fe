//! Requests that other edges hand to this one. They run through the same routes as those of the HTTP port, without a socket.

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::Payload;
use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_rt::ArbiterHandle;
use actix_service::IntoServiceFactory as _;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{AppConfig, Service, ServiceFactory as _};
use actix_web::http::{Method, Uri, header};
use actix_web::web::{self, Bytes};
use actix_web::{App, HttpMessage as _, HttpRequest, HttpResponse};
use futures_util::{future::poll_fn, stream};
use headwater_media::sdp::OFFER_BYTES_MAX;
use headwater_proto::sessions::sessions_server::{Sessions, SessionsServer};
use headwater_proto::sessions::{Answer, Head, Header, Request};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};
use tracing::{debug, error};

use super::{EdgeState, routes, step_back};

/// Requests that wait for the head of their answer (count). What follows it without end, events, there is once per session.
const OPEN_MAX: usize = 1024;
/// Requests that wait to be begun (count).
const WAITING_MAX: usize = 1024;
/// Pieces of a body that wait for the other edge (count).
const PIECES_MAX: usize = 4;
/// The body, and the rest with room to spare.
const MESSAGE_BYTES_MAX: usize = OFFER_BYTES_MAX + 64 * 1024;

/// What may come this way.
pub(super) const METHODS: [Method; 5] = [
    Method::POST,
    Method::PATCH,
    Method::DELETE,
    Method::GET,
    Method::HEAD,
];

/// Concern a connection, which here is another one (RFC 9110 section 7.6.1).
pub(super) const OF_CONNECTIONS: [HeaderName; 5] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// In the extensions of a request: another edge handed it here. Nothing that a viewer sends can put it there.
struct Forwarded;

/// Another edge handed this request here, having counted it against its viewer's limits.
pub(super) fn is(request: &HttpRequest) -> bool {
    request.extensions().contains::<Forwarded>()
}

/// The gRPC service. Answers are made on `thread`.
pub(crate) fn service(
    state: Arc<EdgeState>,
    thread: &ArbiterHandle,
) -> SessionsServer<impl Sessions + use<>> {
    let (calls, queue) = mpsc::channel(WAITING_MAX);
    thread.spawn_fn(move || {
        step_back();
        actix_rt::spawn(answer_all(state, queue));
    });
    let open = Arc::new(Semaphore::new(OPEN_MAX));
    SessionsServer::new(Door { calls, open }).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Where calls come in.
struct Door {
    calls: mpsc::Sender<Call>,
    open: Arc<Semaphore>,
}

/// A request and where its answer goes.
struct Call {
    parts: Parts,
    answers: mpsc::Sender<Result<Answer, Status>>,
    permit: OwnedSemaphorePermit,
}

#[tonic::async_trait]
impl Sessions for Door {
    type ForwardStream = ReceiverStream<Result<Answer, Status>>;

    async fn forward(
        &self,
        request: tonic::Request<Request>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        let request = request.into_inner();
        debug!(by = %request.node, method = %request.method, "a request of another edge");
        let parts = Parts::read(request)
            .ok_or_else(|| Status::invalid_argument("no request that may come this way"))?;
        let busy = || Status::resource_exhausted("too many requests are open");
        let permit = Arc::clone(&self.open).try_acquire_owned();
        let permit = permit.map_err(|_| busy())?;
        let (answers, stream) = mpsc::channel(PIECES_MAX);
        let call = Call {
            parts,
            answers,
            permit,
        };
        self.calls.try_send(call).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => Status::unavailable("this edge is stopping"),
        })?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A request that was looked at.
struct Parts {
    viewer: IpAddr,
    method: Method,
    target: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Parts {
    /// `None`: it may not come this way.
    fn read(request: Request) -> Option<Self> {
        let method = METHODS
            .into_iter()
            .find(|method| method.as_str() == request.method)?;
        let target = request
            .target
            .starts_with("/whep/")
            .then(|| Uri::try_from(request.target).ok())??;
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for Header { name, value } in request.headers {
            headers.append(
                HeaderName::try_from(name).ok()?,
                HeaderValue::from_bytes(&value).ok()?,
            );
        }
        Some(Self {
            viewer: request.viewer.parse().ok()?,
            method,
            target,
            headers,
            body: request.body,
        })
    }

    fn request(self) -> actix_http::Request {
        let body = stream::once(ready(Ok(self.body)));
        let payload = Payload::Stream {
            payload: Box::pin(body) as actix_http::BoxedPayloadStream,
        };
        let mut request = actix_http::Request::with_payload(payload);
        let head = request.head_mut();
        head.method = self.method;
        head.uri = self.target;
        head.headers = self.headers;
        // Their port is nothing to us.
        head.peer_addr = Some(SocketAddr::new(self.viewer, 0));
        request.extensions_mut().insert(Forwarded);
        request
    }
}

/// Runs requests through the edge's routes, until nobody can send any.
async fn answer_all(state: Arc<EdgeState>, mut calls: mpsc::Receiver<Call>) {
    let app = App::new()
        .app_data(web::Data::from(state))
        .configure(routes);
    let service = app.into_factory().new_service(AppConfig::default()).await;
    let Ok(service) = service else {
        error!("requests of other edges can't be answered");
        return;
    };
    let service = Rc::new(service);
    while let Some(call) = calls.recv().await {
        let service = Rc::clone(&service);
        // A panic ends the one request.
        actix_rt::spawn(async move {
            let Call {
                parts,
                answers,
                permit,
            } = call;
            let response = tokio::select! {
                answered = service.call(parts.request()) => answered.map_or_else(
                    |error| error.error_response(),
                    |answered| answered.into_parts().1,
                ),
                // Who hangs up meanwhile wants no answer.
                () = answers.closed() => return,
            };
            drop(permit);
            send(response, &answers).await;
        });
    }
}

/// Sends an answer piece by piece.
async fn send(response: HttpResponse<BoxBody>, answers: &mpsc::Sender<Result<Answer, Status>>) {
    let (response, body) = response.into_parts();
    let headers = response.headers().iter();
    let headers = headers.filter(|(name, _)| !OF_CONNECTIONS.contains(name));
    let head = Head {
        status: response.status().as_u16().into(),
        headers: headers
            .map(|(name, value)| Header {
                name: name.to_string(),
                value: Bytes::copy_from_slice(value.as_bytes()),
            })
            .collect(),
        body_bytes: match body.size() {
            BodySize::None => Some(0),
            BodySize::Sized(bytes) => Some(bytes),
            BodySize::Stream => None,
        },
    };
    let first = Answer {
        head: Some(head),
        body: Bytes::new(),
    };
    if answers.send(Ok(first)).await.is_err() {
        return;
    }
    let mut body = pin!(body);
    loop {
        let piece = tokio::select! {
            piece = poll_fn(|cx| body.as_mut().poll_next(cx)) => piece,
            () = answers.closed() => return,
        };
        let piece = match piece {
            None => return,
            Some(Ok(body)) => Ok(Answer { head: None, body }),
            Some(Err(error)) => Err(Status::internal(error.to_string())),
        };
        let over = piece.is_err();
        if answers.send(piece).await.is_err() || over {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            node: "e2".to_owned(),
            viewer: "2001:db8::7".to_owned(),
            method: "PATCH".to_owned(),
            target: "/whep/live/show/e1~00?token=x".to_owned(),
            headers: vec![Header {
                name: "if-match".to_owned(),
                value: Bytes::from_static(b"*"),
            }],
            body: Bytes::from_static(b"a=ice-ufrag:x"),
        }
    }

    #[test]
    fn a_request_is_what_the_viewer_sent() {
        let request = Parts::read(request()).expect("a good one").request();
        assert_eq!(request.method(), Method::PATCH);
        assert_eq!(request.path(), "/whep/live/show/e1~00");
        assert_eq!(request.uri().query(), Some("token=x"));
        assert_eq!(request.head().headers.get("if-match").unwrap(), "*");
        let viewer = request.peer_addr().map(|viewer| viewer.ip());
        assert_eq!(viewer, "2001:db8::7".parse().ok());
        assert!(request.extensions().contains::<Forwarded>());
    }

    #[test]
    fn nothing_else_comes_this_way() {
        let refused = |change: fn(&mut Request)| {
            let mut request = request();
            change(&mut request);
            assert!(Parts::read(request.clone()).is_none(), "{request:?}");
        };
        refused(|request| request.method = "CONNECT".to_owned());
        refused(|request| request.method = "patch".to_owned());
        refused(|request| request.target = "/api/v1/streams".to_owned());
        refused(|request| request.target = "http://elsewhere/whep/live/show".to_owned());
        refused(|request| request.target = "/whep/live/show\r\nX: y".to_owned());
        refused(|request| request.headers[0].name = "if match".to_owned());
        refused(|request| request.headers[0].value = Bytes::from_static(b"*\r\nX: y"));
        refused(|request| request.viewer = "edge-1".to_owned());
    }
}
