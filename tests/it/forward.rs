//! All edges behind one address: whichever of them a request reaches, the one that it is for answers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use super::browser::Browser;
use super::harness::{
    Answer, Cluster, Options, Picture, Publisher, Sound, Viewer, Wire, eventually, get, number,
    request, seconds,
};
use super::whep::{OFFER, attribute, fragment};

const STREAM: &str = "live/demo";
const WHEP: &str = "/whep/live/demo";
const SDP: (&str, &str) = ("Content-Type", "application/sdp");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const FRAGMENT: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");

fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    request(port, method, path, headers, body).expect("an answer")
}

/// Two edges that say nothing of where they are themselves, and a live stream.
fn start(options: &Options) -> (Cluster, Publisher) {
    let mut cluster = Cluster::fleet(1, 2, options);
    let url = cluster.rtmp_url(STREAM);
    let publisher = Publisher::start(&url, Picture::Test, Sound::Tone);
    (cluster, publisher)
}

fn join(port: u16, headers: &[(&str, &str)]) -> Answer {
    eventually("the stream can be joined", seconds(15), || {
        let answer = request(port, "POST", WHEP, &[&[SDP], headers].concat(), OFFER)?;
        assert!(matches!(answer.status, 201 | 409 | 503), "{answer:?}");
        (answer.status == 201).then_some(answer)
    })
}

fn location(answer: &Answer) -> String {
    answer.header("Location").expect("where it is").to_owned()
}

fn kind(answer: &Answer) -> &str {
    let kind = answer.body.split("urn:headwater:problem:").nth(1);
    kind.and_then(|kind| kind.split('"').next()).unwrap_or("")
}

#[test]
fn a_session_is_reached_through_any_edge() {
    let options = Options::default().env("HEADWATER_AUTH__PLAY_TOKEN", "let-me-in");
    let (mut cluster, _publisher) = start(&options);
    let token = ("Authorization", "Bearer let-me-in");
    let (here, there) = (cluster.nodes[1].http, cluster.nodes[2].http);
    let created = join(here, &[token]);
    let url = location(&created);
    assert!(url.starts_with(&format!("{WHEP}/e1~")), "{url}");
    eventually("the other edge knows of it", seconds(5), || {
        let answer = ask(there, "GET", &url, &[token], "");
        (answer.status == 204).then_some(())
    });
    let strange = ask(there, "GET", &format!("{WHEP}/e1~0123"), &[token], "");
    assert_eq!((strange.status, kind(&strange)), (404, "no-session"));
    let nowhere = ask(there, "GET", &format!("{WHEP}/e9~0123"), &[token], "");
    assert_eq!((nowhere.status, kind(&nowhere)), (404, "no-session"));
    assert_eq!(ask(there, "GET", &url, &[], "").status, 401);

    // ICE restarts, with the entity tag of the other edge.
    let etag = created.header("ETag").expect("an entity tag").to_owned();
    let restart = fragment("abcd", "0123456789abcdef012345");
    let stale = [token, FRAGMENT, ("If-Match", "\"stale\"")];
    let stale = ask(there, "PATCH", &url, &stale, &restart);
    assert_eq!(stale.status, 412, "{stale:?}");
    let headers = [token, FRAGMENT, ("If-Match", etag.as_str())];
    let restarted = ask(there, "PATCH", &url, &headers, &restart);
    assert_eq!(restarted.status, 200, "{restarted:?}");
    assert_ne!(restarted.header("ETag"), Some(etag.as_str()));
    let old = attribute(&created.body, "ice-ufrag");
    assert_ne!(attribute(&restarted.body, "ice-ufrag"), old);
    assert_eq!(restarted.header("Access-Control-Allow-Origin"), Some("*"));

    // Renditions, and events as they happen.
    let layers = ask(there, "GET", &format!("{url}/layer"), &[token], "").json();
    assert_eq!(layers["encodings"][0]["encodingId"], "source", "{layers}");
    let chosen = [token, JSON];
    let chosen = ask(
        there,
        "POST",
        &format!("{url}/layer"),
        &chosen,
        r#"{"maxHeight":720}"#,
    );
    assert_eq!(chosen.json()["maxHeight"], 720, "{chosen:?}");
    let wanted = ask(there, "POST", &format!("{url}/events"), &[token, JSON], "");
    assert_eq!(wanted.status, 201, "{wanted:?}");
    let mut events = TcpStream::connect((Ipv4Addr::LOCALHOST, there)).expect("the edge");
    events
        .set_read_timeout(Some(seconds(10)))
        .expect("a timeout");
    write!(
        events,
        "GET {} HTTP/1.1\r\nHost: edge\r\n{}: {}\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n",
        location(&wanted),
        token.0,
        token.1,
    )
    .expect("sent");
    let mut lines = BufReader::new(events)
        .lines()
        .map(|line| line.expect("read"));
    assert!(lines.any(|line| line == "event: active"));

    assert_eq!(ask(there, "DELETE", &url, &[token], "").status, 200);
    // The reader hears its end by the end of the stream.
    assert!(lines.all(|line| line != "event: inactive"));
    for port in [here, there] {
        assert_eq!(ask(port, "DELETE", &url, &[token], "").status, 404);
    }

    // Nobody knows what became of a session whose edge does not answer; that it is over is known when the directory forgets the edge.
    let url = location(&join(here, &[token]));
    cluster.nodes[1].kill();
    let gone = ask(there, "PATCH", &url, &headers, &restart);
    assert_eq!((gone.status, kind(&gone)), (504, "edge-unreachable"));
}

#[test]
fn an_edge_that_hangs_is_passed_over_and_does_nothing_late() {
    let options = Options::default().env("HEADWATER_EDGE__VIEWERS_PER_SHARD", "1");
    let (cluster, _publisher) = start(&options);
    let (here, there) = (cluster.nodes[1].http, cluster.nodes[2].http);
    // Nobody connects behind it, but the place is taken. A busy machine may make an edge send somebody on, too.
    let place = |at: usize| {
        let edge = format!("{WHEP}/e{at}~");
        eventually("a viewer is placed there", seconds(10), || {
            let answer = request(here, "POST", WHEP, &[SDP], OFFER)?;
            let placed = (answer.status == 201).then(|| location(&answer))?;
            if placed.starts_with(&edge) {
                return Some(placed);
            }
            assert_eq!(ask(here, "DELETE", &placed, &[], "").status, 200);
            None
        })
    };
    place(1);
    // It is known that there is room at the other one.
    let placed = place(2);
    assert_eq!(ask(there, "DELETE", &placed, &[], "").status, 200);
    cluster.nodes[2].process.freeze();
    let refused = ask(here, "POST", WHEP, &[SDP], OFFER);
    assert_eq!((refused.status, kind(&refused)), (503, "full"));
    let silent = ask(here, "GET", &placed, &[], "");
    assert_eq!((silent.status, kind(&silent)), (504, "edge-unreachable"));
    cluster.nodes[2].process.thaw();
    eventually("it is back", seconds(10), || {
        (ask(here, "GET", &placed, &[], "").status == 404).then_some(())
    });
    let viewers = get(cluster.nodes[2].admin, "/api/v1/viewers").expect("viewers");
    assert_eq!(viewers.body.matches(STREAM).count(), 0, "{}", viewers.body);
}

#[test]
fn nobody_is_told_to_go_to_an_edge_that_is_gone() {
    let options = Options {
        public_url: true,
        ..Options::default().env("HEADWATER_EDGE__VIEWERS_PER_SHARD", "1")
    };
    let (mut cluster, _publisher) = start(&options);
    let [here, there] = [1, 2].map(|edge| cluster.nodes[edge].http);
    let taken = eventually("the stream can be joined", seconds(15), || {
        let answer = request(here, "POST", WHEP, &[SDP], OFFER)?;
        assert!(matches!(answer.status, 201 | 307 | 409 | 503), "{answer:?}");
        (answer.status == 201).then_some(answer)
    });
    assert!(location(&taken).contains("/e1~"), "{taken:?}");
    let sent = eventually("it is full, and knows the other one", seconds(10), || {
        let answer = ask(here, "POST", WHEP, &[SDP], OFFER);
        (answer.status == 307).then_some(answer)
    });
    let other = format!("http://127.0.0.1:{there}{WHEP}?sent-by=e1");
    assert_eq!(location(&sent), other);
    // The directory has it for as long as its lease lasts, and what it answered a moment ago counts for a second.
    cluster.nodes[2].kill();
    eventually("that it is gone is noticed", seconds(3), || {
        let refused = ask(here, "POST", WHEP, &[SDP], OFFER);
        (refused.status == 503).then(|| assert_eq!(kind(&refused), "full"))
    });
}

#[test]
fn a_page_whose_edge_dies_finds_another_at_the_same_address() {
    let (mut cluster, _publisher) = start(&Options::default());
    let wire = Wire::among(cluster.edges().map(|edge| edge.http).collect());
    let page = format!("http://127.0.0.1:{}/play/{STREAM}", wire.port());
    let mut browser = Browser::open("follow", &page, "forward");
    browser.await_state("live", seconds(30));
    browser.await_frames(60, seconds(12));
    let its_edge = cluster.edges().find(|edge| {
        let viewers = get(edge.admin, "/api/v1/viewers").expect("viewers");
        viewers.body.contains(STREAM)
    });
    its_edge.expect("somebody serves it").kill();
    eventually("the picture of the other edge moves", seconds(8), || {
        browser
            .last()
            .filter(|seen| number(seen, "/joins") == 2 && number(seen, "/frames") >= 30)
    });
    drop(browser.stdin.take());
    browser.process.wait(seconds(15));
}

#[test]
fn a_full_edge_has_newcomers_served_by_another() {
    let options = Options::default().env("HEADWATER_EDGE__VIEWERS_PER_SHARD", "1");
    let (mut cluster, _publisher) = start(&options);
    let [first, second] = [1, 2].map(|edge| cluster.nodes[edge].http);
    let wire = Wire::among(vec![first]);
    let whep = format!("http://127.0.0.1:{}{WHEP}", wire.port());
    let flags = &["--wait", "20s", "--min-fps", "25"];
    let mut watching = Vec::new();
    for _ in 0..2 {
        let mut viewer = Viewer::start(&whep, seconds(120), flags);
        viewer.await_frames(60, seconds(30));
        watching.push(viewer);
    }
    for edge in cluster.edges() {
        let viewers = get(edge.admin, "/api/v1/viewers").expect("viewers");
        assert_eq!(viewers.body.matches(STREAM).count(), 1, "{}", viewers.body);
    }
    // With both full there is nowhere to go.
    let refused = ask(first, "POST", WHEP, &[SDP], OFFER);
    assert_eq!((refused.status, kind(&refused)), (503, "full"));
    let refused = ask(second, "POST", WHEP, &[SDP], OFFER);
    assert_eq!((refused.status, kind(&refused)), (503, "full"));
    for mut viewer in watching {
        viewer.leave();
        let report = viewer.last().expect("a report");
        assert_eq!(number(&report, "/video/lost"), 0, "{report:#}");
    }
    // They said goodbye to the edge that has them, through the one that they know.
    for edge in cluster.edges() {
        let viewers = get(edge.admin, "/api/v1/viewers").expect("viewers");
        assert_eq!(viewers.body.matches(STREAM).count(), 0, "{}", viewers.body);
    }
}
