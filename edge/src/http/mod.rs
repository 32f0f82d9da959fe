//! The edge's HTTP side: WHEP, the API of the index page, and the player.
//!
//! actix-web runs it on threads of its own. A request asks the registry for the stream and a shard to take the viewer in;
//! both answer within a bounded time, and nothing here touches media. Refusals are made in [`error`] alone.

use std::future::Future;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ::metrics::counter;
use actix_web::body::MessageBody;
use actix_web::dev::{ServerHandle, Service as _, ServiceResponse};
use actix_web::middleware::{Compress, from_fn};
use actix_web::{App, Error, HttpRequest, HttpServer, ResponseError as _, web};
use headwater_node::Node;
use headwater_node::auth::Token;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::config::Config;
use crate::drain::Drain;
use crate::placement::Placement;
use crate::registry::Registry;
use crate::sessions::Sessions;
use crate::shard::Shards;

mod api;
mod assets;
mod auth;
mod body;
mod cors;
mod error;
mod events;
mod forward;
mod forwarded;
mod layer;
pub mod limits;
pub(crate) mod metrics;
mod place;
mod preference;
mod qoe;
mod whep;

pub(crate) use api::record;
use error::Problem;
pub(crate) use forwarded::service as forwarded_service;
pub(crate) use metrics::describe;

/// A STUN or TURN server that players are told of (RFC 9725 section 4.6), `[[edge.ice_servers]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IceServer {
    /// `stun:host:port` or `turn:host:port?transport=udp`.
    pub url: String,
    /// The user of a TURN server.
    pub username: Option<String>,
    /// Their password.
    #[serde(skip_serializing)]
    pub credential: Option<Token>,
}

/// Who watches here, and who might be better off elsewhere.
#[derive(Debug)]
pub(crate) struct Guests {
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) placement: Placement,
    pub(crate) drain: Arc<Drain>,
}

/// What requests work with.
#[derive(Debug)]
pub struct EdgeState {
    node: Node,
    registry: Registry,
    shards: Shards,
    sessions: Arc<Sessions>,
    placement: Placement,
    drain: Arc<Drain>,
    config: Config,
    limiter: Mutex<limits::Limiter>,
    intake: qoe::Intake,
    live: api::Live,
    heard: forward::Heard,
}

impl EdgeState {
    /// With everything that the edge has started.
    pub(crate) fn new(
        node: Node,
        registry: Registry,
        shards: Shards,
        guests: Guests,
        config: Config,
    ) -> Self {
        let Guests {
            sessions,
            placement,
            drain,
        } = guests;
        let limiter = Mutex::new(limits::Limiter::new(&config.limits));
        let intake = qoe::Intake::new(&config.limits);
        Self {
            node,
            registry,
            shards,
            sessions,
            placement,
            drain,
            config,
            limiter,
            intake,
            live: api::Live::default(),
            heard: forward::Heard::default(),
        }
    }

    /// The edge takes nobody new.
    fn draining(&self) -> bool {
        self.node.shutdown.is_cancelled()
    }

    /// Takes a token of the caller's address, unless another edge has.
    fn admit(&self, request: &HttpRequest) -> Result<(), Problem> {
        if forwarded::is(request) {
            return Ok(());
        }
        admit(&self.limiter, self.node.clock.now(), request)
    }
}

/// The running server. Dropping it leaves it running; [`Http::stop`] ends it.
#[derive(Debug)]
pub struct Http {
    address: SocketAddr,
    handle: ServerHandle,
}

impl Http {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: requests that are being served get a moment to finish.
    pub async fn stop(self) {
        self.handle.stop(true).await;
    }
}

/// Starts the server on `config.http`. To be called on a thread that has an actix system.
///
/// # Errors
/// If the address can't be bound.
pub fn serve(state: Arc<EdgeState>) -> std::io::Result<Http> {
    let listen = state.config.http;
    let limits = state.config.limits.clone();
    let workers = match limits.workers {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(2)),
        workers => workers,
    };
    let keep_alive = Duration::from_secs(limits.keep_alive_seconds);
    let connections = Arc::new(limits::Connections::new(&limits));
    let data = web::Data::from(state);
    let server = HttpServer::new(move || {
        // Each HTTP thread makes an application of its own.
        step_back();
        App::new()
            .app_data(data.clone())
            .wrap(Compress::default())
            // The last is outermost, so it sees every answer, errors of extractors included.
            .wrap_fn(|request, service| {
                let answer = service.call(request);
                observe(answer)
            })
            .configure(routes)
    })
    .on_connect(move |connection, extensions| {
        let Some(socket) = connection.downcast_ref::<TcpStream>() else {
            return;
        };
        let Ok(peer) = socket.peer_addr() else { return };
        match connections.admit(peer.ip()) {
            Some(counted) => drop(extensions.insert(counted)),
            None => {
                counter!(metrics::CONNECTIONS_REFUSED).increment(1);
                // The server finds the connection closed and forgets it.
                let _ = SockRef::from(socket).shutdown(Shutdown::Both);
            }
        }
    })
    .workers(workers)
    .max_connections(limits.connections_per_worker.max(1))
    .client_request_timeout(Duration::from_millis(limits.request_timeout_ms.max(1)))
    .client_disconnect_timeout(Duration::from_secs(1))
    .keep_alive(keep_alive)
    // Who has hung up gets no further events, and a join that nobody waits for is taken back.
    .h1_allow_half_closed(false)
    .shutdown_timeout(2)
    // The process has one place that handles signals.
    .disable_signals()
    .bind(listen)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    Ok(Http { address, handle })
}

/// Puts the calling thread behind those that send media, with which it shares the machine's cores.
fn step_back() {
    /// Against threads that don't step back: a tenth of their weight.
    const NICE: i32 = 10;
    // On Linux "this process" is the calling thread here. Should it fail, HTTP is as important as media.
    let _ = rustix::process::setpriority_process(None, NICE);
}

fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/whep/{app}/{stream}")
                .name("whep")
                .route(web::post().to(whep::post))
                .route(web::get().to(whep::get))
                .route(web::head().to(whep::head))
                .route(web::method(actix_web::http::Method::OPTIONS).to(whep::options))
                .default_service(web::to(|| async {
                    Problem::method(whep::ENDPOINT_METHODS).error_response()
                })),
        )
        .service(
            web::resource("/whep/{app}/{stream}/{session}")
                .name("whep_session")
                .wrap(from_fn(forward::to_its_edge))
                .route(web::patch().to(whep::patch))
                .route(web::delete().to(whep::delete))
                .route(web::get().to(whep::get_session))
                .route(web::head().to(whep::get_session))
                .route(web::method(actix_web::http::Method::OPTIONS).to(whep::options_session))
                .default_service(web::to(|| async {
                    Problem::method(whep::SESSION_METHODS).error_response()
                })),
        )
        .service(
            web::resource("/whep/{app}/{stream}/{session}/layer")
                .name("whep_layer")
                .wrap(from_fn(forward::to_its_edge))
                .route(web::post().to(layer::post))
                .route(web::get().to(layer::get))
                .route(web::head().to(layer::get))
                .route(web::method(actix_web::http::Method::OPTIONS).to(layer::options))
                .default_service(web::to(|| async {
                    Problem::method(layer::METHODS).error_response()
                })),
        )
        .service(
            web::resource("/whep/{app}/{stream}/{session}/events")
                .name("whep_events")
                .wrap(from_fn(forward::to_its_edge))
                .route(web::post().to(events::post))
                .route(web::get().to(events::get))
                .route(web::delete().to(events::delete))
                .route(web::method(actix_web::http::Method::OPTIONS).to(events::options))
                .default_service(web::to(|| async {
                    Problem::method(events::METHODS).error_response()
                })),
        )
        .service(
            web::resource("/api/v1/streams")
                .name("streams")
                .route(web::get().to(api::streams))
                .route(web::head().to(api::streams))
                .route(web::method(actix_web::http::Method::OPTIONS).to(api::options))
                .default_service(web::to(|| async {
                    Problem::method(api::METHODS).error_response()
                })),
        )
        .service(
            web::resource("/qoe")
                .name("qoe")
                .route(web::post().to(qoe::post))
                .route(web::method(actix_web::http::Method::OPTIONS).to(qoe::options))
                .default_service(web::to(|| async {
                    Problem::method(qoe::METHODS).error_response()
                })),
        )
        .service(
            page("/", "index")
                .route(web::get().to(assets::index))
                .route(web::head().to(assets::index)),
        )
        .service(
            page("/play/{app}/{stream}", "play")
                .route(web::get().to(assets::play))
                .route(web::head().to(assets::play)),
        )
        .service(
            page("/assets/{name}", "assets")
                .route(web::get().to(assets::asset))
                .route(web::head().to(assets::asset)),
        )
        .default_service(web::to(|| async {
            Problem::not_found("there is nothing at this path").error_response()
        }));
}

fn page(path: &'static str, name: &'static str) -> actix_web::Resource {
    web::resource(path)
        .name(name)
        .default_service(web::to(|| async {
            Problem::method("GET, HEAD").error_response()
        }))
}

/// Counts an answer and makes it readable from other origins.
async fn observe<B: MessageBody>(
    answer: impl Future<Output = Result<ServiceResponse<B>, Error>>,
) -> Result<ServiceResponse<B>, Error> {
    let mut answer = answer.await?;
    cors::expose(answer.headers_mut());
    let route = answer
        .request()
        .match_name()
        .map_or("other", |name| match name {
            "whep" => "whep",
            "whep_session" => "whep_session",
            "whep_layer" => "whep_layer",
            "whep_events" => "whep_events",
            "streams" => "streams",
            "qoe" => "qoe",
            "index" => "index",
            "play" => "play",
            "assets" => "assets",
            _ => "other",
        });
    let status = match answer.status().as_u16() {
        100..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    counter!(metrics::REQUESTS, "route" => route, "status" => status).increment(1);
    Ok(answer)
}

/// Takes a token of the caller's address.
fn admit(
    limiter: &Mutex<limits::Limiter>,
    now: Instant,
    request: &HttpRequest,
) -> Result<(), Problem> {
    let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
    if peer(request).is_none_or(|address| limiter.handle_request(now, address)) {
        Ok(())
    } else {
        Err(Problem::too_many_requests())
    }
}

fn peer(request: &HttpRequest) -> Option<IpAddr> {
    request.peer_addr().map(|address| address.ip())
}

/// Time since `start`, in milliseconds to the tenth, for logs.
fn millis(start: Instant, end: Instant) -> f64 {
    (end.saturating_duration_since(start).as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests;
