//! The admin port: health, readiness, metrics and what the node is doing.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 while the process runs and its main thread turns |
//! | `/readyz` | 200 when every role can work, else 503 with the reason |
//! | `/metrics` | Prometheus text |
//! | `/admin` | the page for operators, made of what follows |
//! | `/api/v1/nodes` | this node's roles, then the others that the directory knows |
//! | `/api/v1/streams`, `/api/v1/viewers` | what the roles of this node know, merged |
//! | `POST /api/v1/drain` | as SIGTERM: the node takes nobody new, lets its viewers go elsewhere and stops |
//! | `POST /api/v1/viewers/{id}/kick` | ends that viewer's session; it may join again |
//! | `POST /api/v1/streams/{app}/{stream}/kick` | makes the stream's publisher leave, which may come back, too |
//! | `/api/v1/publish-config/{app}/{stream}` | what OBS is to send as that stream, if a role takes publishers |
//!
//! Errors are `application/problem+json` (RFC 9457). The port is for operators and the cluster, not for viewers: it has no
//! access control of its own, but takes no commands from pages other than its own.

mod commands;
mod page;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::http::header;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, Resource, Route, guard, web};
use futures_util::future::{BoxFuture, join_all};
use headwater_media::id::{InvalidStreamName, StreamName};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::warn;

use crate::auth::Token;
use crate::directory::NodeRecord;
use crate::listen;
use crate::node::Node;
use crate::problem;
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

    /// What it says of itself.
    fn node(&self) -> BoxFuture<'_, NodeRecord>;

    /// One JSON object per live stream, with at least `name`.
    fn streams(&self) -> BoxFuture<'_, Vec<Value>>;

    /// One JSON object per viewer, with at least `id` and `stream`.
    fn viewers(&self) -> BoxFuture<'_, Vec<Value>>;

    /// Ends a viewer's session; false if there is none of that number.
    fn kick_viewer(&self, _: u64) -> bool {
        false
    }

    /// Makes a stream's publisher leave; false if there is none here.
    fn kick_publisher(&self, _: StreamName) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }

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

/// Settings of the admin port, `[admin]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Names under which operators open its page, without a port. By addresses and as `localhost` it is always known.
    pub hosts: Vec<String>,
    /// Who presents it may command the node; none: everybody who reaches it. Set from `[auth]`.
    #[serde(skip)]
    pub token: Option<Token>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 9600)),
            hosts: Vec::new(),
            token: None,
        }
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

struct State {
    node: Node,
    hosts: Vec<String>,
    token: Option<Token>,
    roles: Vec<Arc<dyn Report>>,
    metrics: Metrics,
    panics: Mutex<PanicWindow>,
}

/// Serves the admin port with what `roles` report. Must be called on the actix System's thread.
///
/// # Errors
/// If the address can't be bound.
pub fn start(
    config: Config,
    node: Node,
    metrics: Metrics,
    roles: Vec<Arc<dyn Report>>,
) -> Result<Admin, listen::Error> {
    let Config {
        listen: address,
        hosts,
        token,
    } = config;
    let failed = listen::Error::of("the admin port", address);
    let socket = TcpListener::bind(address).map_err(&failed)?;
    let addr = socket.local_addr().map_err(&failed)?;
    let upkeep = node.io.spawn(keep_up(metrics.clone()));
    let panics = Mutex::new(PanicWindow {
        start: node.clock.now(),
        count_at_start: telemetry::panics(),
    });
    let state = web::Data::new(State {
        node,
        hosts,
        token,
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
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    for (path, content_type, body) in page::FILES {
        let answer = move || std::future::ready(page::file(content_type, body));
        config.service(resource(path, get().to(answer), GET));
    }
    for (path, route) in [
        ("/healthz", get().to(healthz)),
        ("/readyz", get().to(readyz)),
        ("/metrics", get().to(metrics)),
    ] {
        config.service(resource(path, route, GET));
    }
    for (path, route) in [
        ("/api/v1/streams", get().to(streams)),
        ("/api/v1/viewers", get().to(viewers)),
        ("/api/v1/nodes", get().to(nodes)),
        (
            "/api/v1/publish-config/{app}/{stream}",
            get().to(publish_config),
        ),
    ] {
        config.service(resource(path, route, GET).wrap(from_fn(commands::known_by_name)));
    }
    for (path, route) in [
        ("/api/v1/drain", web::post().to(commands::drain)),
        (
            "/api/v1/viewers/{id}/kick",
            web::post().to(commands::kick_viewer),
        ),
        (
            "/api/v1/streams/{app}/{stream}/kick",
            web::post().to(commands::kick_publisher),
        ),
    ] {
        config.service(resource(path, route, POST));
    }
    config.default_service(web::route().to(not_found));
}

/// What is read, and what is told.
const GET: &str = "GET, HEAD";
const POST: &str = "POST";

/// Whatever its route doesn't take is answered with what it does.
fn resource(path: &str, route: Route, allow: &'static str) -> Resource {
    let other = move || std::future::ready(method_not_allowed(allow));
    web::resource(path)
        .route(route)
        .default_service(web::route().to(other))
}

async fn healthz() -> HttpResponse {
    answer(StatusCode::OK, &json!({ "status": "ok" }))
}

async fn readyz(state: web::Data<State>) -> HttpResponse {
    match state.ready() {
        Ok(()) => {
            let id = state.node.id.as_str();
            answer(StatusCode::OK, &json!({ "ready": true, "id": id }))
        }
        Err(reason) => problem(StatusCode::SERVICE_UNAVAILABLE, "not-ready", &reason),
    }
}

async fn metrics(state: web::Data<State>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(state.metrics.render())
}

async fn nodes(state: web::Data<State>) -> HttpResponse {
    let asked = state.roles.iter().map(|role| role.node());
    let Some(own) = answers(asked).await else {
        return too_slow();
    };
    let mut others = state.node.directory.nodes();
    // Our own are there, too, but not as fresh.
    others.retain(|node| own.iter().all(|own| own.id != node.id));
    others.sort_by(|a, b| a.id.cmp(&b.id));
    let own = own.iter().map(|node| (node, true));
    let others = others.iter().map(|node| (node, false));
    let described = own.chain(others).map(|(node, here)| {
        let mut value = json!(node);
        if let Some(fields) = value.as_object_mut() {
            fields.insert("here".to_owned(), here.into());
        }
        value
    });
    state.list("nodes", described.collect())
}

async fn streams(state: web::Data<State>) -> HttpResponse {
    let asked = state.roles.iter().map(|role| role.streams());
    match answers(asked).await {
        Some(lists) => state.list("streams", merge_by_name(lists)),
        None => too_slow(),
    }
}

async fn viewers(state: web::Data<State>) -> HttpResponse {
    let asked = state.roles.iter().map(|role| role.viewers());
    match answers(asked).await {
        Some(lists) => state.list("viewers", lists.concat()),
        None => too_slow(),
    }
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
        Some(document) => answer(StatusCode::OK, &document),
        None => problem(
            StatusCode::NOT_FOUND,
            "not-found",
            "this node takes no publishers",
        ),
    }
}

async fn answers<'a, T>(asked: impl Iterator<Item = BoxFuture<'a, T>>) -> Option<Vec<T>> {
    tokio::time::timeout(REPORT_DEADLINE, join_all(asked))
        .await
        .ok()
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

fn method_not_allowed(allow: &'static str) -> HttpResponse {
    let mut response = problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        &format!("this resource takes {allow}"),
    );
    let allow = header::HeaderValue::from_static(allow);
    response.headers_mut().insert(header::ALLOW, allow);
    response
}

fn problem(status: StatusCode, kind: &str, detail: &str) -> HttpResponse {
    problem::problem(status, kind, None, detail)
}

/// Of what is true now only.
fn answer(status: StatusCode, what: &Value) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .json(what)
}

impl State {
    /// A list as the API shows it, with the time (milliseconds since 1970) by which rates can be told from two of them.
    fn list(&self, name: &str, items: Vec<Value>) -> HttpResponse {
        let mut body = Map::new();
        let now = self.node.clock.wall().unix_micros() / 1000;
        body.insert("time_ms".to_owned(), now.into());
        body.insert(name.to_owned(), Value::Array(items));
        answer(StatusCode::OK, &Value::Object(body))
    }

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
    use actix_web::http::Method;
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
        fn node(&self) -> BoxFuture<'_, NodeRecord> {
            async { crate::directory::suite::record("n", 0.5) }.boxed()
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
        fn kick_viewer(&self, viewer: u64) -> bool {
            viewer == 7
        }
        fn kick_publisher(&self, name: StreamName) -> BoxFuture<'_, bool> {
            let mut streams = self.streams.iter();
            let there = streams.any(|stream| stream["name"] == name.as_str());
            async move { there }.boxed()
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
            hosts: Vec::new(),
            token: None,
            roles,
            metrics: Metrics::install(),
            panics,
        })
    }

    async fn get(state: &web::Data<State>, path: &str) -> (u16, String, String) {
        ask(state, web_test::TestRequest::get().uri(path)).await
    }

    async fn ask(
        state: &web::Data<State>,
        request: web_test::TestRequest,
    ) -> (u16, String, String) {
        let app =
            web_test::init_service(App::new().app_data(state.clone()).configure(routes)).await;
        let response = web_test::call_service(&app, request.to_request()).await;
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
        assert!(body["time_ms"].as_u64().is_some_and(|time| time > 0));
        assert_eq!(
            body["streams"],
            json!([
                { "name": "live/a", "publishing": true, "viewers": 3 },
                { "name": "live/b", "viewers": 1 },
            ])
        );
        let (_, _, body) = get(&state, "/api/v1/viewers").await;
        assert_eq!(body.matches("live/a").count(), 2);
    }

    #[actix_rt::test]
    async fn the_api_answers_by_names_that_are_ours_and_probes_by_any() {
        let state = state(vec![role(vec![])]);
        let asked = |path: &str, host: &str| {
            let request = web_test::TestRequest::get().uri(path);
            ask(
                &state,
                request.insert_header((header::HOST, host.to_owned())),
            )
        };
        for path in ["/api/v1/nodes", "/api/v1/streams", "/api/v1/viewers"] {
            for host in ["10.0.0.7:9600", "[::1]:9600", "localhost:9600", "o1:9600"] {
                assert_eq!(asked(path, host).await.0, 200, "{path} {host}");
            }
            let (status, _, body) = asked(path, "evil.example:9600").await;
            assert!(status == 403 && body.contains("unknown-host"), "{body}");
        }
        for path in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(asked(path, "evil.example:9600").await.0, 200, "{path}");
        }
    }

    #[actix_rt::test]
    async fn nodes_are_our_own_roles_and_then_those_of_the_directory() {
        use crate::directory::{Directory, suite};

        let state = state(vec![role(vec![])]);
        let directory = MemoryDirectory::new("n".parse().expect("valid"));
        // A view takes its records with it.
        let views = ["n", "b"].map(|id| directory.view(id.parse().expect("valid")));
        for (view, id) in views.iter().zip(["n", "b"]) {
            view.announce(suite::record(id, 0.1)).await.expect("taken");
        }
        let node = Node {
            directory: Arc::new(directory),
            ..state.node.clone()
        };
        let state = web::Data::new(State {
            node,
            hosts: Vec::new(),
            token: None,
            roles: state.roles.clone(),
            metrics: state.metrics.clone(),
            panics: Mutex::new(PanicWindow {
                start: state.node.clock.now(),
                count_at_start: 0,
            }),
        });
        let (_, _, body) = get(&state, "/api/v1/nodes").await;
        let body: Value = serde_json::from_str(&body).expect("json");
        let told = |at: usize, field: &str| body["nodes"][at][field].clone();
        assert_eq!(told(0, "id"), "n");
        assert_eq!(
            (told(0, "load"), told(0, "here")),
            (json!(0.5), json!(true))
        );
        assert_eq!((told(1, "id"), told(1, "here")), (json!("b"), json!(false)));
        assert_eq!(told(2, "id"), Value::Null);
    }

    #[actix_rt::test]
    async fn viewers_and_publishers_are_kicked_by_post_and_not_by_foreign_pages() {
        let state = state(vec![role(vec![]), role(vec![json!({ "name": "live/a" })])]);
        let post = async |path: &str, origin: Option<&str>| {
            let mut request = web_test::TestRequest::post().uri(path);
            if let Some(origin) = origin {
                request = request.insert_header((header::ORIGIN, origin));
            }
            let (status, _, body) = ask(&state, request).await;
            let body: Value = serde_json::from_str(&body).expect("json");
            let kind = body["type"]
                .as_str()
                .and_then(|kind| kind.rsplit(':').next());
            (status, kind.unwrap_or_default().to_owned())
        };
        let none = String::new;
        let viewer = "/api/v1/viewers/7/kick";
        let stream = "/api/v1/streams/live/a/kick";
        for path in [viewer, stream] {
            assert_eq!(post(path, None).await, (200, none()));
            let foreign = post(path, Some("https://evil.example")).await;
            assert_eq!(foreign, (403, "forbidden".to_owned()));
            assert_eq!(get(&state, path).await.0, 405);
            let head = web_test::TestRequest::default().method(Method::HEAD);
            assert_eq!(ask(&state, head.uri(path)).await.0, 405);
        }
        for (path, status, kind) in [
            ("/api/v1/viewers/8/kick", 404, "no-viewer"),
            ("/api/v1/viewers/-1/kick", 404, "no-viewer"),
            ("/api/v1/streams/live/b/kick", 404, "no-publisher"),
            ("/api/v1/streams/live/%20/kick", 400, "bad-request"),
        ] {
            assert_eq!(post(path, None).await, (status, kind.to_owned()), "{path}");
        }
        assert!(!state.node.shutdown.is_cancelled());
        let foreign = post("/api/v1/drain", Some("https://evil.example")).await;
        assert_eq!(foreign.0, 403);
        assert!(!state.node.shutdown.is_cancelled());
        assert_eq!(post("/api/v1/drain", None).await, (202, none()));
        assert!(state.node.shutdown.is_cancelled());
    }

    #[actix_rt::test]
    async fn the_page_runs_nothing_but_its_own_files() {
        let state = state(vec![]);
        let app =
            web_test::init_service(App::new().app_data(state.clone()).configure(routes)).await;
        for (path, kind, _) in page::FILES {
            let request = web_test::TestRequest::get().uri(path).to_request();
            let answer = web_test::call_service(&app, request).await;
            assert_eq!(answer.status(), 200, "{path}");
            let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
            assert_eq!(header("content-type"), Some(kind));
            let policy = header("content-security-policy").unwrap_or_default();
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"));
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
        }
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
    async fn what_is_read_is_there_for_head_too_and_takes_nothing_else() {
        let state = state(vec![role(vec![json!({ "name": "live/a" })])]);
        let pages = page::FILES.map(|(path, ..)| path);
        let rest = [
            "/healthz",
            "/readyz",
            "/metrics",
            "/api/v1/streams",
            "/api/v1/viewers",
            "/api/v1/nodes",
            "/api/v1/publish-config/live/a",
        ];
        for path in pages.into_iter().chain(rest) {
            let status = async |method: Method| {
                let request = web_test::TestRequest::default().method(method);
                ask(&state, request.uri(path)).await.0
            };
            assert_eq!(status(Method::GET).await, 200, "{path}");
            assert_eq!(status(Method::HEAD).await, 200, "{path}");
            assert_eq!(status(Method::POST).await, 405, "{path}");
        }
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
