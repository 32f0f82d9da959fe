//! The HTTP side over real sockets, as far as it goes without a live stream; `tests/it/whep.rs` has the rest.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use headwater_media::id::NodeId;
use headwater_node::Node;
use headwater_node::clock::Clock;
use headwater_node::directory::memory::MemoryDirectory;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::whep;
use crate::Edge;
use crate::config::Config;

const OFFER: &str = include_str!("../../../media/src/sdp/testdata/chromium-156-datachannel.sdp");

/// A running edge in a cluster of its own.
struct Server {
    edge: Edge,
    node: Node,
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Checks that this is a problem document with this status, and gives its kind.
    fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}\n{}", self.head, self.body);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let problem: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert_eq!(problem["status"], status);
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|text| text.len() > 10)
        );
        let kind = problem["type"].as_str().expect("a type");
        kind.trim_start_matches("urn:headwater:problem:").to_owned()
    }
}

impl Server {
    async fn start(change: impl FnOnce(&mut Config), token: Option<&str>) -> Self {
        let mut config = Config {
            http: "127.0.0.1:0".parse().expect("an address"),
            media: "127.0.0.1:0".parse().expect("an address"),
            shards: 1,
            loopback: true,
            ..Config::default()
        };
        config.limits.workers = 1;
        change(&mut config);
        config.play_token = token.map(|text| text.parse().expect("a token"));
        let id: NodeId = "e1".parse().expect("an id");
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id)),
            io: tokio::runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        };
        let edge = crate::start(config, node.clone()).await.expect("an edge");
        Self { edge, node }
    }

    async fn send(&self, request: &str) -> Response {
        exchange(self.edge.http_addr(), request.as_bytes()).await
    }

    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        let length = body.len();
        self.send(&format!(
            "{method} {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        ))
        .await
    }

    async fn offer(&self, path: &str, headers: &str) -> Response {
        let headers = format!("Content-Type: application/sdp\r\n{headers}");
        self.request("POST", path, &headers, OFFER).await
    }
}

async fn exchange(address: SocketAddr, request: &[u8]) -> Response {
    let work = async {
        let mut socket = TcpStream::connect(address).await.expect("connected");
        // The server may answer and close before it has read everything.
        let _ = socket.write_all(request).await;
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        Response {
            status: status.unwrap_or(0),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work)
        .await
        .expect("an answer or a close")
}

#[actix_rt::test]
async fn names_that_cannot_be_are_404_and_names_that_may_be_409() {
    let server = Server::start(|_| (), None).await;
    for path in [
        "/whep/live/a%20b",
        "/whep/live/..%2f",
        "/whep/a/b%00",
        "/whep/live/%ff",
    ] {
        let answer = server.offer(path, "").await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.head);
    }
    assert_eq!(
        server.offer("/whep/live", "").await.problem(404),
        "not-found"
    );
    let answer = server.offer("/whep/live/nobody", "").await;
    assert_eq!(answer.problem(409), "not-live");
    assert!(answer.header("retry-after").is_some());
    assert!(server.edge.report().viewers().await.is_empty());
}

#[actix_rt::test]
async fn bodies_are_checked_before_anything_is_done_for_them() {
    let server = Server::start(|_| (), None).await;
    let post = async |content_type: &str, body: &str| {
        let header = format!("Content-Type: {content_type}\r\n");
        server
            .request("POST", "/whep/live/demo", &header, body)
            .await
    };
    assert_eq!(
        post("application/json", OFFER).await.problem(415),
        "media-type"
    );
    let bare = server.request("POST", "/whep/live/demo", "", OFFER).await;
    assert_eq!(bare.problem(415), "media-type");
    assert_eq!(post("application/sdp", "").await.problem(400), "malformed");
    assert_eq!(
        post("application/sdp", "hello").await.problem(400),
        "malformed"
    );
    assert_eq!(
        post("application/sdp; charset=utf-8", OFFER)
            .await
            .problem(409),
        "not-live"
    );
    assert_eq!(
        post("Application/SDP", OFFER).await.problem(409),
        "not-live"
    );
    let long = "a".repeat(1 << 20);
    assert_eq!(
        post("application/sdp", &long).await.problem(413),
        "too-large"
    );
    // Chunked, so that no length warns the server.
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    let request = format!(
        "POST /whep/live/demo HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\
         Content-Type: application/sdp\r\n\r\n{}0\r\n\r\n",
        chunk.repeat(4)
    );
    assert_eq!(server.send(&request).await.problem(413), "too-large");
    let request = b"POST /whep/live/demo HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nContent-Length: 4\r\n\
                    Content-Type: application/sdp\r\n\r\nv=\xff\xff";
    let answer = exchange(server.edge.http_addr(), request).await;
    assert_eq!(answer.problem(400), "malformed");
}

#[actix_rt::test]
async fn discovery_and_preflight_answer_without_content() {
    let server = Server::start(|_| (), None).await;
    let get = server.request("GET", "/whep/live/demo", "", "").await;
    assert_eq!((get.status, get.body.as_str()), (204, ""));
    let head = server.request("HEAD", "/whep/live/demo", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-type"), Some("application/sdp"));
    for path in ["/whep/live/demo", "/whep/live/demo/0123"] {
        let options = server
            .request("OPTIONS", path, "Origin: https://a.example\r\n", "")
            .await;
        assert_eq!(options.status, 200);
        assert_eq!(options.header("access-control-allow-origin"), Some("*"));
        let header = |name| options.header(name).unwrap_or_default().to_owned();
        for wanted in ["Authorization", "Content-Type", "If-Match"] {
            assert!(header("access-control-allow-headers").contains(wanted));
        }
        for wanted in ["Location", "ETag", "Link", "Retry-After"] {
            assert!(header("access-control-expose-headers").contains(wanted));
        }
        assert!(options.header("link").is_none());
    }
    let endpoint = server.request("OPTIONS", "/whep/live/demo", "", "").await;
    assert_eq!(endpoint.header("accept-post"), Some("application/sdp"));
    for (path, allow) in [
        ("/whep/live/demo", whep::ENDPOINT_METHODS),
        ("/whep/live/demo/0123", whep::SESSION_METHODS),
        ("/", "GET, HEAD"),
    ] {
        let answer = server.request("PUT", path, "", "").await;
        assert_eq!(answer.problem(405), "method");
        assert_eq!(answer.header("allow"), Some(allow));
    }
}

#[actix_rt::test]
async fn sessions_that_are_not_are_404() {
    let server = Server::start(|_| (), None).await;
    let path = "/whep/live/demo/0123456789abcdef";
    for method in ["DELETE", "GET", "PATCH"] {
        let answer = server.request(method, path, "If-Match: *\r\n", "").await;
        assert_eq!(answer.problem(404), "no-session", "{method}");
        // Readable by a page of another origin, or it could not tell why.
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
}

#[actix_rt::test]
async fn a_token_is_wanted_everywhere_but_in_preflights() {
    let server = Server::start(|_| (), Some("s3cret")).await;
    let path = "/whep/live/demo";
    let answer = server.offer(path, "").await;
    assert_eq!(answer.problem(401), "unauthorized");
    assert!(
        answer
            .header("www-authenticate")
            .is_some_and(|v| v.starts_with("Bearer"))
    );
    let wrong = "Authorization: Bearer nope\r\n";
    assert_eq!(server.offer(path, wrong).await.problem(403), "forbidden");
    assert_eq!(
        server
            .offer("/whep/live/demo?token=nope", "")
            .await
            .problem(403),
        "forbidden"
    );
    let right = "Authorization: bearer s3cret\r\n";
    assert_eq!(server.offer(path, right).await.problem(409), "not-live");
    assert_eq!(
        server
            .offer("/whep/live/demo?token=s3cret", "")
            .await
            .problem(409),
        "not-live"
    );
    for method in ["DELETE", "PATCH", "GET"] {
        let answer = server.request(method, "/whep/live/demo/0123", "", "").await;
        assert_eq!(answer.problem(401), "unauthorized", "{method}");
    }
    let streams = server.request("GET", "/api/v1/streams", "", "").await;
    assert_eq!(streams.problem(401), "unauthorized");
    assert_eq!(server.request("OPTIONS", path, "", "").await.status, 200);
    // The pages themselves hold no secret; the player presents the token.
    assert_eq!(
        server
            .request("GET", "/play/live/demo", "", "")
            .await
            .status,
        200
    );
}

#[actix_rt::test]
async fn a_draining_edge_sends_players_away() {
    let server = Server::start(|_| (), None).await;
    server.node.shutdown.cancel();
    let answer = server.offer("/whep/live/demo", "").await;
    assert_eq!(answer.problem(503), "draining");
    assert!(answer.header("retry-after").is_some());
}

#[actix_rt::test]
async fn floods_are_limited_per_address() {
    let limits = |config: &mut Config| {
        config.limits.requests_per_second = 1;
        config.limits.requests_burst = 5;
        config.limits.limit_loopback = true;
    };
    let server = Server::start(limits, None).await;
    let mut limited = 0;
    for _ in 0..20 {
        for (method, path) in [
            ("PATCH", "/whep/live/demo/0"),
            ("DELETE", "/whep/live/demo/0"),
            ("POST", "/whep/live/demo"),
        ] {
            let answer = server.request(method, path, "If-Match: *\r\n", "").await;
            assert!((400..500).contains(&answer.status));
            if answer.status == 429 {
                assert!(answer.header("retry-after").is_some());
                limited += 1;
            }
        }
    }
    assert!((50..=55).contains(&limited), "{limited}");
    assert_eq!(
        server
            .request("GET", "/whep/live/demo", "", "")
            .await
            .status,
        204
    );
}

#[actix_rt::test]
async fn slow_senders_are_cut_off() {
    // actix-web's clock for this has steps of half a second.
    let limits = |config: &mut Config| config.limits.request_timeout_ms = 1500;
    let server = Server::start(limits, None).await;
    // A head that never ends.
    let answer = server
        .send("POST /whep/live/demo HTTP/1.1\r\nHost: edge\r\nX-Slow: ")
        .await;
    assert!(matches!(answer.status, 0 | 408), "{}", answer.head);
    // A body that never comes.
    let answer = server
        .send("POST /whep/live/demo HTTP/1.1\r\nHost: edge\r\nContent-Type: application/sdp\r\nContent-Length: 5000\r\n\r\nv=0\r\n")
        .await;
    assert_eq!(answer.problem(408), "timeout");
    // Headers without end.
    let many = "X: y\r\n".repeat(100_000);
    let answer = server
        .send(&format!("GET / HTTP/1.1\r\nHost: edge\r\n{many}\r\n"))
        .await;
    assert!(
        matches!(answer.status, 0 | 400 | 408 | 431),
        "{}",
        answer.head
    );
    assert_eq!(server.request("GET", "/", "", "").await.status, 200);
}

#[actix_rt::test]
async fn one_address_cannot_take_all_connections() {
    let limits = |config: &mut Config| {
        config.limits.connections_per_address = 3;
        config.limits.limit_loopback = true;
    };
    let server = Server::start(limits, None).await;
    let get = "GET / HTTP/1.1\r\nHost: edge\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut socket = TcpStream::connect(server.edge.http_addr())
            .await
            .expect("connected");
        socket.write_all(get.as_bytes()).await.expect("sent");
        // The answer shows that the connection was counted.
        let mut first = [0; 12];
        socket.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200");
        held.push(socket);
    }
    assert_eq!(server.send(get).await.status, 0);
    drop(held);
    // The server sees the closes in its own time.
    let again = async {
        while server.request("GET", "/", "", "").await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again)
        .await
        .expect("a free place");
}

#[actix_rt::test]
async fn the_player_is_served_with_its_policy() {
    let server = Server::start(|_| (), None).await;
    for path in ["/", "/play/live/demo"] {
        let page = server.request("GET", path, "", "").await;
        assert_eq!(page.status, 200);
        assert_eq!(
            page.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
        assert!(
            page.header("content-security-policy")
                .is_some_and(|p| p.contains("script-src 'self'"))
        );
        // Whatever the page refers to is there.
        let links: Vec<&str> = page
            .body
            .split('"')
            .filter(|text| text.starts_with("/assets/"))
            .collect();
        assert!(!links.is_empty());
        for link in links {
            let asset = server.request("GET", link, "", "").await;
            assert_eq!(asset.status, 200, "{link}");
            let etag = asset.header("etag").expect("an etag").to_owned();
            let header = format!("If-None-Match: {etag}\r\n");
            let again = server.request("GET", link, &header, "").await;
            assert_eq!((again.status, again.body.as_str()), (304, ""));
        }
    }
    assert_eq!(
        server
            .request("GET", "/play/live/a%20b", "", "")
            .await
            .problem(404),
        "not-found"
    );
    assert_eq!(
        server
            .request("GET", "/assets/../Cargo.toml", "", "")
            .await
            .status,
        404
    );
    assert_eq!(
        server.request("GET", "/nothing", "", "").await.problem(404),
        "not-found"
    );
}

#[actix_rt::test]
async fn nothing_live_is_an_empty_list() {
    let server = Server::start(|_| (), None).await;
    let answer = server.request("GET", "/api/v1/streams", "", "").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "{\"streams\":[]}")
    );
}

#[test]
fn entity_tags_are_compared_strongly() {
    let condition = |value: &str| whep::if_match(&[value]);
    assert!(condition("\"abc\"").holds("\"abc\""));
    assert!(condition("\"x\", \"abc\"").holds("\"abc\""));
    assert!(condition("*").holds("\"abc\"") && condition("\"*\"").holds("\"abc\""));
    for other in ["\"abd\"", "W/\"abc\"", "abc", ""] {
        assert!(!condition(other).holds("\"abc\""), "{other}");
    }
}

#[actix_rt::test]
async fn a_full_edge_says_so_before_it_reads_the_offer() {
    let server = Server::start(|config| config.viewers_per_shard = 0, None).await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..30 {
        let answer = server
            .request("POST", "/whep/live/demo", "", "not even an offer")
            .await;
        assert_eq!(answer.problem(503), "full");
        let after: u16 = answer
            .header("retry-after")
            .and_then(|seconds| seconds.parse().ok())
            .expect("Retry-After");
        assert!((4..=12).contains(&after), "{after}");
        seen.insert(after);
    }
    assert!(seen.len() > 1, "those turned away together come back apart");
    // Whoever may not watch doesn't learn how full it is.
    let server = Server::start(|config| config.viewers_per_shard = 0, Some("secret")).await;
    assert_eq!(
        server.offer("/whep/live/demo", "").await.problem(401),
        "unauthorized"
    );
}

#[actix_rt::test]
async fn reports_of_players_are_bounded_and_sampled() {
    let server = Server::start(|config| config.limits.reports_per_second = 4, None).await;
    let json = "Content-Type: application/json\r\n";
    let report =
        r#"{"first_frame_ms":300,"played_ms":30000,"frozen_ms":0,"freezes":0,"latency_ms":[150]}"#;
    let taken = server.request("POST", "/qoe", json, report).await;
    assert_eq!(taken.status, 204, "{}", taken.head);
    assert_eq!(taken.header("access-control-allow-origin"), Some("*"));
    let text = "Content-Type: text/plain;charset=UTF-8\r\n";
    let answer = server.request("POST", "/qoe", text, "[0,").await;
    assert_eq!(answer.problem(400), "malformed");
    let long = format!(r#"{{"latency_ms":[{}1]}}"#, "1,".repeat(2048));
    let answer = server.request("POST", "/qoe", json, &long).await;
    assert_eq!(answer.problem(413), "too-large");
    let answer = server.offer("/qoe", "").await;
    assert_eq!(answer.problem(415), "media-type");
    // What can't be counted uses no room up; of what can, that is as many as it takes in a second.
    for _ in 0..3 {
        let taken = server.request("POST", "/qoe", json, report).await;
        assert_eq!(taken.status, 204, "{}", taken.head);
    }
    let answer = server.request("POST", "/qoe", json, report).await;
    assert_eq!(answer.problem(429), "sampled");
    assert_eq!(answer.header("retry-after"), Some("30"));

    let answer = server.request("GET", "/qoe", "", "").await;
    assert_eq!(answer.problem(405), "method");
    let preflight = server.request("OPTIONS", "/qoe", "", "").await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.header("accept-post"), Some("application/json"));
}

#[actix_rt::test]
async fn reports_come_from_those_who_may_watch_or_not_at_all() {
    let json = "Content-Type: application/json\r\n";
    let server = Server::start(|_| (), Some("a-secret-token")).await;
    let answer = server.request("POST", "/qoe", json, "{}").await;
    assert_eq!(answer.problem(401), "unauthorized");
    let headers = format!("{json}Authorization: Bearer a-secret-token\r\n");
    let answer = server.request("POST", "/qoe", &headers, "{}").await;
    assert_eq!(answer.status, 204);
    let server = Server::start(|config| config.limits.reports_per_second = 0, None).await;
    let answer = server.request("POST", "/qoe", json, "{}").await;
    assert_eq!(answer.problem(404), "not-found");
}
