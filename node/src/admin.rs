//! The admin port: health, readiness, metrics and what the node is doing.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process runs and its main thread turns |
//! | `/readyz` | 200 when every role can work, else 503 with the reason |
//! | `/metrics` | Prometheus text |
//! | `/api/v1/streams`, `/api/v1/viewers` | what the roles of this node know, merged |
//! | `POST /api/v1/drain` | as SIGTERM: the node takes nobody new, lets its viewers go elsewhere and stops |
//! | `/api/v1/publish-config/{app}/{stream}` | what OBS is to send as that stream, if a role takes publishers |
//!
//! Errors are `application/problem+json` (RFC 9457). The port is for operators and the cluster, not for viewers: it has no
//! access control of its own.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, ContentType};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use futures_util::future::{BoxFuture, join_all};
use headwater_media::id::{InvalidStreamName, StreamName};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::node::Node;
use crate::telemetry::{self, Metrics};

/// What a role tells the admin port about itself.
///
/// Origin and edge each implement it; a standalone process merges the two. Answers must come within a second: the admin
/// server gives up on a slower one.
pub trait Report: Send + Sync {
    /// Whether the role can do its work; the error says in one sentence what is missing.
    ///
    /// # Errors
    /// If it can't. A directory that is away is no reason: known streams go on (static stability).
    fn ready(&self) -> Result<(), String>;

    /// One JSON object per live stream, with at least `name`.
    fn streams(&self) -> BoxFuture<'_, Vec<Value>>;

    /// One JSON object per viewer, with at least `id` and `stream`.
    fn viewers(&self) -> BoxFuture<'_, Vec<Value>>;

    /// The document by which OBS sends this stream with several renditions; none from roles that take no publishers.
    fn publish_config(&self, _: &StreamName, _: &PublishConfigRequest) -> Option<Value> {
        None
    }
}

/// What a document for OBS is asked for with.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishConfigRequest {
    /// Where the publisher reaches this node: the host by which it asked.
    #[serde(skip)]
    pub host: String,
    /// Lines of the source's picture.
    #[serde(default = "full_height")]
    pub height: u16,
    /// Pictures per second.
    #[serde(default = "usual_rate", rename = "fps")]
    pub frames_per_second: u32,
    /// OBS's name of the encoder.
    #[serde(default = "x264")]
    pub encoder: String,
}

const fn full_height() -> u16 {
    1080
}

const fn usual_rate() -> u32 {
    30
}

fn x264() -> String {
    "obs_x264".to_owned()
}

impl PublishConfigRequest {
    /// What is wrong with it, in one sentence.
    fn check(&self) -> Result<(), &'static str> {
        let plain = |text: &str, more: &[u8]| {
            (1..=255).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        if !plain(&self.host, b".-:[]") {
            return Err("the request's host is no name or address");
        }
        if !(144..=4320).contains(&self.height) || !self.height.is_multiple_of(2) {
            return Err("height is an even number from 144 to 4320");
        }
        if !(1..=240).contains(&self.frames_per_second) {
            return Err("fps is a number from 1 to 240");
        }
        if !plain(&self.encoder, b"._-") {
            return Err("encoder is a name such as obs_x264");
        }
        Ok(())
    }
}

/// How long a role may take to answer; probes of Kubernetes give up after one second by default.
const REPORT_DEADLINE: Duration = Duration::from_millis(900);

/// How often histograms are folded; unfolded values are kept one by one.
const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// More panics than this within [`PANIC_WINDOW`] make the node unready: it is ill, and a restart may help.
const PANICS_MAX: u64 = 10;
const PANIC_WINDOW: Duration = Duration::from_secs(60);

/// The running admin server. Call [`Admin::stop`] to end it.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    handle: ServerHandle,
    upkeep: tokio::task::JoinHandle<()>,
}

/// The admin server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {addr}: {source}")]
pub struct StartError {
    addr: SocketAddr,
    source: std::io::Error,
}

struct State {
    node: Node,
    roles: Vec<Arc<dyn Report>>,
    metrics: Metrics,
    panics: Mutex<PanicWindow>,
}

/// Serves the admin port with what `roles` report. Must be called on the actix System's thread.
///
/// # Errors
/// If the address can't be bound.
pub fn start(
    listen: SocketAddr,
    node: Node,
    metrics: Metrics,
    roles: Vec<Arc<dyn Report>>,
) -> Result<Admin, StartError> {
    let failed = |source| StartError {
        addr: listen,
        source,
    };
    let socket = TcpListener::bind(listen).map_err(failed)?;
    let addr = socket.local_addr().map_err(failed)?;
    let upkeep = node.io.spawn(keep_up(metrics.clone()));
    let panics = Mutex::new(PanicWindow {
        start: node.clock.now(),
        count_at_start: telemetry::panics(),
    });
    let state = web::Data::new(State {
        node,
        roles,
        metrics,
        panics,
    });
    let server = HttpServer::new(move || App::new().app_data(state.clone()).configure(routes))
        .workers(1)
        .max_connections(256)
        .client_request_timeout(Duration::from_secs(5))
        .keep_alive(Duration::from_secs(30))
        .shutdown_timeout(1)
        .disable_signals()
        .listen(socket)
        .map_err(failed)?
        .run();
    let handle = server.handle();
    actix_rt::spawn(async move {
        if let Err(error) = server.await {
            warn!(%error, "the admin server ended");
        }
    });
    Ok(Admin {
        addr,
        handle,
        upkeep,
    })
}

impl Admin {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it; requests under way get a second.
    pub async fn stop(self) {
        self.upkeep.abort();
        self.handle.stop(true).await;
    }
}

async fn keep_up(metrics: Metrics) {
    let mut ticks = tokio::time::interval(UPKEEP_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.upkeep();
    }
}

fn routes(config: &mut web::ServiceConfig) {
    let get_only = || web::route().to(method_not_allowed);
    config
        .service(
            resource("/healthz", web::get().to(healthz))
                .route(web::head().to(healthz))
                .default_service(get_only()),
        )
        .service(
            resource("/readyz", web::get().to(readyz))
                .route(web::head().to(readyz))
                .default_service(get_only()),
        )
        .service(resource("/metrics", web::get().to(metrics)).default_service(get_only()))
        .service(resource("/api/v1/streams", web::get().to(streams)).default_service(get_only()))
        .service(resource("/api/v1/viewers", web::get().to(viewers)).default_service(get_only()))
        .service(
            web::resource("/api/v1/drain")
                .route(web::post().to(drain))
                .default_service(web::route().to(|| async {
                    problem(StatusCode::METHOD_NOT_ALLOWED, "method", "this takes POST")
                })),
        )
        .service(
            resource(
                "/api/v1/publish-config/{app}/{stream}",
                web::get().to(publish_config),
            )
            .default_service(get_only()),
        )
        .default_service(web::route().to(not_found));
}

fn resource(path: &str, route: actix_web::Route) -> actix_web::Resource {
    web::resource(path).route(route)
}

async fn healthz() -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "status": "ok" }))
}

async fn readyz(state: web::Data<State>) -> HttpResponse {
    match state.ready() {
        Ok(()) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(json!({ "ready": true, "id": state.node.id.as_str() })),
        Err(reason) => problem(StatusCode::SERVICE_UNAVAILABLE, "not-ready", &reason),
    }
}

async fn metrics(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(state.metrics.render())
}

async fn streams(state: web::Data<State>) -> HttpResponse {
    let asked = state.roles.iter().map(|role| role.streams());
    match answers(asked).await {
        Some(lists) => list("streams", merge_by_name(lists)),
        None => too_slow(),
    }
}

async fn viewers(state: web::Data<State>) -> HttpResponse {
    let asked = state.roles.iter().map(|role| role.viewers());
    match answers(asked).await {
        Some(lists) => list("viewers", lists.concat()),
        None => too_slow(),
    }
}

async fn drain(request: HttpRequest, state: web::Data<State>) -> HttpResponse {
    // A page that an operator has open could send this, too. Browsers say that it comes from one; comparing with our own name would not help
    // against one that had its name point here.
    let headers = request.headers();
    let foreign = headers.contains_key(header::ORIGIN) || headers.contains_key("sec-fetch-site");
    if foreign {
        let detail = "this is not for pages";
        return problem(StatusCode::FORBIDDEN, "forbidden", detail);
    }
    tracing::info!("asked to drain and stop");
    state.node.shutdown.cancel();
    HttpResponse::Accepted()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(json!({ "draining": true }))
}

async fn publish_config(
    request: HttpRequest,
    path: web::Path<(String, String)>,
    state: web::Data<State>,
) -> HttpResponse {
    let refused = |detail: &str| problem(StatusCode::BAD_REQUEST, "bad-request", detail);
    let Ok(name) = StreamName::new(&path.0, &path.1) else {
        return refused(&InvalidStreamName.to_string());
    };
    let query = web::Query::<PublishConfigRequest>::from_query(request.query_string());
    let mut asked = match query {
        Ok(query) => query.into_inner(),
        Err(error) => return refused(&error.to_string()),
    };
    let info = request.connection_info();
    // Without its port, which is this one's; an IPv6 address stands in brackets.
    let host = info.host();
    asked.host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name.to_owned(),
        _ => host.to_owned(),
    };
    if let Err(detail) = asked.check() {
        return refused(detail);
    }
    let mut roles = state.roles.iter();
    match roles.find_map(|role| role.publish_config(&name, &asked)) {
        Some(document) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(document),
        None => problem(
            StatusCode::NOT_FOUND,
            "not-found",
            "this node takes no publishers",
        ),
    }
}

async fn answers<'a>(
    asked: impl Iterator<Item = BoxFuture<'a, Vec<Value>>>,
) -> Option<Vec<Vec<Value>>> {
    tokio::time::timeout(REPORT_DEADLINE, join_all(asked))
        .await
        .ok()
}

fn list(name: &str, items: Vec<Value>) -> HttpResponse {
    let mut body = Map::new();
    body.insert(name.to_owned(), Value::Array(items));
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(body)
}

/// One object per stream: what the first role says, completed by what only a later one knows.
fn merge_by_name(lists: Vec<Vec<Value>>) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for item in lists.into_iter().flatten() {
        let same = merged
            .iter_mut()
            .find(|known| known.get("name") == item.get("name"))
            .and_then(Value::as_object_mut);
        match (same, item) {
            (Some(known), Value::Object(more)) => {
                for (key, value) in more {
                    known.entry(key).or_insert(value);
                }
            }
            (_, item) => merged.push(item),
        }
    }
    merged
}

fn too_slow() -> HttpResponse {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "busy",
        "the node did not answer in time",
    )
}

async fn not_found(request: HttpRequest) -> HttpResponse {
    let detail = format!("there is nothing at {}", request.path());
    problem(StatusCode::NOT_FOUND, "not-found", &detail)
}

async fn method_not_allowed() -> HttpResponse {
    let mut response = problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        "this resource is read with GET",
    );
    response
        .headers_mut()
        .insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    response
}

/// An error answer (RFC 9457) with a type of ours.
pub fn problem(status: StatusCode, kind: &str, detail: &str) -> HttpResponse {
    let body = json!({
        "type": format!("urn:headwater:problem:{kind}"),
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    let problem_json = "application/problem+json"
        .parse()
        .map_or_else(|_| ContentType::json(), ContentType);
    HttpResponse::build(status)
        .insert_header(problem_json)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .body(body.to_string())
}

impl State {
    fn ready(&self) -> Result<(), String> {
        if self.node.shutdown.is_cancelled() {
            return Err("the node is stopping".to_owned());
        }
        // Only before the first listing: a directory that goes away later changes nothing for those who know their streams.
        if !self.node.directory.synced() {
            return Err("the directory has not answered yet".to_owned());
        }
        let now = self.node.clock.now();
        let mut panics = self.panics.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = panics.recent(now, telemetry::panics());
        drop(panics);
        if recent > PANICS_MAX {
            return Err(format!(
                "{recent} panics within {} s",
                PANIC_WINDOW.as_secs()
            ));
        }
        self.roles.iter().try_for_each(|role| role.ready())
    }
}

/// Counts panics in windows of fixed length.
#[derive(Debug)]
struct PanicWindow {
    start: Instant,
    count_at_start: u64,
}

impl PanicWindow {
    fn recent(&mut self, now: Instant, count: u64) -> u64 {
        if now.saturating_duration_since(self.start) >= PANIC_WINDOW {
            self.start = now;
            self.count_at_start = count;
        }
        count.saturating_sub(self.count_at_start)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use actix_web::body::to_bytes;
    use actix_web::test as web_test;
    use futures_util::FutureExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::clock::Clock;
    use crate::directory::memory::MemoryDirectory;

    struct Role {
        ready: AtomicBool,
        streams: Vec<Value>,
        hangs: bool,
    }

    impl Report for Role {
        fn ready(&self) -> Result<(), String> {
            if self.ready.load(Ordering::Relaxed) {
                Ok(())
            } else {
                Err("no shards".to_owned())
            }
        }
        fn streams(&self) -> BoxFuture<'_, Vec<Value>> {
            if self.hangs {
                return futures_util::future::pending().boxed();
            }
            async { self.streams.clone() }.boxed()
        }
        fn viewers(&self) -> BoxFuture<'_, Vec<Value>> {
            async { vec![json!({ "id": "v", "stream": "live/a" })] }.boxed()
        }
        fn publish_config(&self, name: &StreamName, asked: &PublishConfigRequest) -> Option<Value> {
            let picture = format!("{}p{}", asked.height, asked.frames_per_second);
            let named = self
                .streams
                .iter()
                .any(|stream| stream["name"] == name.as_str());
            named.then(|| json!([asked.host, picture, asked.encoder]))
        }
    }

    fn role(streams: Vec<Value>) -> Arc<Role> {
        Arc::new(Role {
            ready: true.into(),
            streams,
            hangs: false,
        })
    }

    fn state(roles: Vec<Arc<dyn Report>>) -> web::Data<State> {
        let id: headwater_media::id::NodeId = "n".parse().expect("valid");
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id)),
            io: tokio::runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        };
        let panics = Mutex::new(PanicWindow {
            start: node.clock.now(),
            count_at_start: telemetry::panics(),
        });
        web::Data::new(State {
            node,
            roles,
            metrics: Metrics::install(),
            panics,
        })
    }

    async fn get(state: &web::Data<State>, path: &str) -> (u16, String, String) {
        let app =
            web_test::init_service(App::new().app_data(state.clone()).configure(routes)).await;
        let request = web_test::TestRequest::get().uri(path).to_request();
        let response = web_test::call_service(&app, request).await;
        let status = response.status().as_u16();
        let kind = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned();
        let body = to_bytes(response.into_body()).await.expect("body");
        (status, kind, String::from_utf8_lossy(&body).into_owned())
    }

    #[actix_rt::test]
    async fn streams_of_both_roles_become_one_list() {
        let origin = role(vec![json!({ "name": "live/a", "publishing": true })]);
        let edge = role(vec![
            json!({ "name": "live/a", "publishing": "?", "viewers": 3 }),
            json!({ "name": "live/b", "viewers": 1 }),
        ]);
        let state = state(vec![origin, edge]);
        let (status, _, body) = get(&state, "/api/v1/streams").await;
        let body: Value = serde_json::from_str(&body).expect("json");
        assert_eq!(status, 200);
        assert_eq!(
            body,
            json!({ "streams": [
                { "name": "live/a", "publishing": true, "viewers": 3 },
                { "name": "live/b", "viewers": 1 },
            ]})
        );
        let (_, _, body) = get(&state, "/api/v1/viewers").await;
        assert_eq!(body.matches("live/a").count(), 2);
    }

    #[actix_rt::test]
    async fn a_document_for_obs_is_asked_of_the_role_that_takes_publishers() {
        let state = state(vec![role(vec![]), role(vec![json!({ "name": "live/a" })])]);
        let ask = async |rest: &str| get(&state, &format!("/api/v1/publish-config/{rest}")).await;
        let (status, _, body) = ask("live/a").await;
        assert_eq!(
            (status, body.as_str()),
            (200, r#"["localhost","1080p30","obs_x264"]"#)
        );
        let (_, _, body) = ask("live/a?height=720&fps=60&encoder=obs_nvenc_h264_tex").await;
        assert_eq!(body, r#"["localhost","720p60","obs_nvenc_h264_tex"]"#);
        assert_eq!(ask("live/b").await.0, 404);
        for bad in [
            "live/a?height=721",
            "live/a?height=x",
            "live/a?fps=0",
            "live/a?encoder=%22",
            "live/a?what=1",
            "live/%20",
        ] {
            assert_eq!(ask(bad).await.0, 400, "{bad}");
        }
    }

    #[actix_rt::test]
    async fn readiness_follows_the_roles_and_the_stop() {
        let edge = role(vec![]);
        let state = state(vec![edge.clone()]);
        assert_eq!(get(&state, "/readyz").await.0, 200);
        edge.ready.store(false, Ordering::Relaxed);
        let (status, kind, body) = get(&state, "/readyz").await;
        assert_eq!((status, kind.as_str()), (503, "application/problem+json"));
        assert!(body.contains("no shards"));
        edge.ready.store(true, Ordering::Relaxed);
        state.node.shutdown.cancel();
        assert!(get(&state, "/readyz").await.2.contains("stopping"));
        assert_eq!(get(&state, "/healthz").await.0, 200, "it still lives");
    }

    #[actix_rt::test]
    async fn a_role_that_hangs_gets_no_one_stuck() {
        let hung = Arc::new(Role {
            ready: true.into(),
            streams: vec![],
            hangs: true,
        });
        let state = state(vec![hung]);
        assert_eq!(get(&state, "/api/v1/streams").await.0, 503);
    }

    #[actix_rt::test]
    async fn metrics_are_text_and_the_rest_is_not_found() {
        let state = state(vec![]);
        let (status, kind, body) = get(&state, "/metrics").await;
        assert_eq!(status, 200);
        assert!(kind.starts_with("text/plain; version=0.0.4"));
        assert!(body.contains("headwater_panics_total"));
        let (status, kind, _) = get(&state, "/nothing").await;
        assert_eq!((status, kind.as_str()), (404, "application/problem+json"));
    }

    #[test]
    fn repeated_panics_make_a_window_full_and_old_ones_are_forgotten() {
        let start = Clock::system().now();
        let mut window = PanicWindow {
            start,
            count_at_start: 5,
        };
        assert_eq!(window.recent(start + Duration::from_secs(59), 17), 12);
        assert_eq!(window.recent(start + Duration::from_secs(60), 17), 0);
        assert_eq!(window.recent(start + Duration::from_secs(61), 18), 1);
    }
}
