//! The life of a WHEP session as a player's HTTP requests see it (RFC 9725 and the WHEP draft), and what an unfriendly one gets.
//!
//! The offers are Chromium's. Nobody connects behind them unless a test says so: what counts here is what is answered.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use super::harness::{
    Answer, Cluster, Options, Picture, Publisher, Sound, Viewer, eventually, get, pause, request,
    seconds,
};

pub(crate) const OFFER: &str = include_str!("../../media/src/sdp/testdata/chromium-156-stereo.sdp");
const STREAM: &str = "/whep/live/demo";
const SDP: (&str, &str) = ("Content-Type", "application/sdp");
const JSON: (&str, &str) = ("Content-Type", "application/json");
const FRAGMENT: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");

/// A cluster with a live stream.
struct Live {
    cluster: Cluster,
    _publisher: Publisher,
}

/// What a 201 said.
struct Session {
    url: String,
    etag: String,
    links: Vec<String>,
    answer: String,
}

impl Live {
    fn start(options: &Options) -> Self {
        let mut cluster = Cluster::standalone(options);
        let url = cluster.rtmp_url("live/demo");
        Self {
            _publisher: Publisher::start(&url, Picture::Test, Sound::Tone),
            cluster,
        }
    }

    fn port(&mut self) -> u16 {
        self.cluster.edge().http
    }

    /// Offers until the stream is live.
    fn join(&mut self) -> Session {
        self.join_at(STREAM)
    }

    fn join_at(&mut self, path: &str) -> Session {
        let port = self.port();
        eventually("the stream can be joined", seconds(15), || {
            let answer = request(port, "POST", path, &[SDP], OFFER)?;
            if answer.status == 409 {
                assert!(answer.header("Retry-After").is_some(), "{answer:?}");
                return None;
            }
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(answer.header("Content-Type"), Some("application/sdp"));
            let header = |name| answer.header(name).unwrap_or_default().to_owned();
            assert!(header("Accept-Patch").contains(FRAGMENT.1));
            assert!(header("Access-Control-Expose-Headers").contains("Location"));
            Some(Session {
                url: header("Location"),
                etag: header("ETag"),
                links: answer.headers("Link").map(str::to_owned).collect(),
                answer: answer.body.clone(),
            })
        })
    }

    fn patch(&mut self, session: &Session, etag: &str, body: &str) -> Answer {
        let headers = [FRAGMENT, ("If-Match", etag)];
        request(self.port(), "PATCH", &session.url, &headers, body).expect("an answer")
    }

    /// How many viewers the edge has, by its admin port.
    fn viewers(&mut self) -> usize {
        let viewers = get(self.cluster.edge().admin, "/api/v1/viewers").expect("viewers");
        viewers.body.matches("live/demo").count()
    }
}

/// A fragment with these credentials, as Chromium trickles.
pub(crate) fn fragment(ufrag: &str, pwd: &str) -> String {
    format!(
        "a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\n\
         a=candidate:1 1 udp 2113937151 48a3c5da-bda6-493f-bbf6-68bd6c472087.local 39635 typ host\r\n\
         a=candidate:2 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active\r\na=end-of-candidates\r\n"
    )
}

pub(crate) fn attribute<'a>(sdp: &'a str, key: &str) -> &'a str {
    sdp.lines()
        .find_map(|line| {
            line.strip_prefix("a=")?
                .strip_prefix(key)?
                .strip_prefix(':')
        })
        .unwrap_or_else(|| panic!("no {key} in {sdp}"))
}

#[test]
fn a_session_lives_and_ends_as_rfc_9725_has_it() {
    let mut live = Live::start(&Options::default());
    let session = live.join();
    let port = live.port();

    // The answer: one transport, passive, lite, everything in it.
    for line in [
        "a=ice-lite",
        "a=setup:passive",
        "a=sendonly",
        "a=rtcp-mux",
        "a=group:BUNDLE 0 1",
        "a=end-of-candidates",
        "useinbandfec=1;stereo=1;sprop-stereo=1",
    ] {
        assert!(session.answer.contains(line), "{line}:\n{}", session.answer);
    }
    assert!(session.answer.contains("127.0.0.1"), "{}", session.answer);
    // The URL is on this edge and says nothing; the entity tag is strong and quoted.
    let id = session.url.rsplit('/').next().unwrap_or_default();
    assert!(
        session.url.starts_with(STREAM) && id.len() >= 32,
        "{}",
        session.url
    );
    assert!(session.etag.starts_with('"') && session.etag.ends_with('"') && session.etag.len() > 8);
    assert_eq!(live.viewers(), 1);
    let known = request(port, "GET", &session.url, &[], "").expect("an answer");
    assert_eq!((known.status, known.body.as_str()), (204, ""));

    // Trickling: candidates of every kind are taken and change nothing.
    let own = fragment(attribute(OFFER, "ice-ufrag"), attribute(OFFER, "ice-pwd"));
    let answer = live.patch(&session, &session.etag, &own);
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (204, ""),
        "{answer:?}"
    );
    assert!(answer.header("ETag").is_none(), "{answer:?}");
    let bare =
        "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=candidate:1 1 udp 1 ::1 9 typ host\r\n";
    assert_eq!(live.patch(&session, &session.etag, bare).status, 204);

    // What is wrong with a PATCH.
    let url = session.url.as_str();
    let patch = |headers: &[(&str, &str)], body: &str| {
        request(port, "PATCH", url, headers, body)
            .expect("an answer")
            .status
    };
    assert_eq!(patch(&[FRAGMENT], &own), 428);
    assert_eq!(patch(&[FRAGMENT, ("If-Match", "\"other\"")], &own), 412);
    let etag = ("If-Match", session.etag.as_str());
    assert_eq!(patch(&[SDP, etag], OFFER), 415);
    assert_eq!(patch(&[FRAGMENT, etag], "hello"), 400);
    assert_eq!(patch(&[FRAGMENT, etag], &"a=x\r\n".repeat(20_000)), 413);

    // Another name's path doesn't open the session.
    let elsewhere = url.replace("/live/demo/", "/live/other/");
    let answer = request(port, "DELETE", &elsewhere, &[], "").expect("an answer");
    assert_eq!(answer.status, 404);

    // The end: at once, and once. Entity tags don't matter to it.
    let headers = [("If-Match", "\"other\"")];
    let answer = request(port, "DELETE", url, &headers, "").expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    for method in ["DELETE", "GET"] {
        let answer = request(port, method, url, &[], "").expect("an answer");
        assert_eq!(answer.status, 404, "{method}");
    }
    assert_eq!(patch(&[FRAGMENT, etag], &own), 404);
    eventually("the viewer is gone", seconds(1), || {
        (live.viewers() == 0).then_some(())
    });
}

#[test]
fn ice_restarts_get_new_credentials_and_a_new_tag() {
    let mut live = Live::start(&Options::default());
    let session = live.join();
    let new = fragment("newF", "newPasswordOf24Characters");
    let answer = live.patch(&session, "*", &new);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        answer.header("Content-Type"),
        Some("application/trickle-ice-sdpfrag")
    );
    let etag = answer.header("ETag").expect("a new tag").to_owned();
    assert_ne!(etag, session.etag);
    for key in ["ice-ufrag", "ice-pwd"] {
        assert_ne!(
            attribute(&answer.body, key),
            attribute(&session.answer, key)
        );
    }
    for line in [
        "a=ice-lite\r\n",
        "a=candidate:1 1 udp ",
        "a=end-of-candidates\r\n",
    ] {
        assert!(answer.body.contains(line), "{line}: {}", answer.body);
    }
    // The old ICE session is over: late candidates of it are refused, those of the new one taken.
    assert_eq!(live.patch(&session, &session.etag, &new).status, 412);
    assert_eq!(live.patch(&session, &etag, &new).status, 204);
    // RFC 9725 prints the star in quotes, and some players send it so.
    let newer = fragment("newG", "newerPasswordOf24Characters");
    assert_eq!(live.patch(&session, "\"*\"", &newer).status, 200);
}

#[test]
fn offers_that_never_connect_are_reaped() {
    let mut live = Live::start(&Options::default());
    for _ in 0..20 {
        live.join();
    }
    assert_eq!(live.viewers(), 20);
    eventually("half-open sessions are gone", seconds(35), || {
        (live.viewers() == 0).then_some(())
    });
}

#[test]
fn unfriendly_requests_are_refused_and_leave_nothing_behind() {
    let mut live = Live::start(&Options::default());
    let session = live.join();
    let port = live.port();
    let post = |headers: &[(&str, &str)], body: &str| {
        request(port, "POST", STREAM, headers, body).map_or(0, |answer| answer.status)
    };
    assert_eq!(post(&[], OFFER), 415);
    assert_eq!(post(&[("Content-Type", "application/json")], OFFER), 415);
    assert_eq!(post(&[SDP], ""), 400);
    assert_eq!(post(&[SDP], "v=0"), 400);
    // The server may close before it was told everything.
    assert!([0, 413].contains(&post(&[SDP], &"a".repeat(1 << 20))));
    assert_eq!(
        post(&[SDP], &OFFER.replace("a=recvonly", "a=sendonly")),
        422
    );
    assert_eq!(
        post(&[SDP], &OFFER.replace("H264/90000", "H265/90000")),
        422
    );
    assert_eq!(
        post(&[SDP], &OFFER.replace("setup:actpass", "setup:passive")),
        400
    );
    assert_eq!(post(&[SDP], &OFFER.replace("sha-256", "sha-512")), 400);
    let own = fragment(attribute(OFFER, "ice-ufrag"), attribute(OFFER, "ice-pwd"));
    for _ in 0..2000 {
        assert_eq!(live.patch(&session, "\"stale\"", &own).status, 412);
    }
    assert_eq!(live.viewers(), 1);
    let answer = request(port, "DELETE", &session.url, &[], "").expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(live.viewers(), 0);
    assert!(!live.cluster.edge().process.said("panicked at"));
}

#[test]
fn deleting_a_playing_session_stops_its_media_within_a_second() {
    let mut live = Live::start(&Options::default());
    let url = live.cluster.whep_url("live/demo");
    let mut viewer = Viewer::start(&url, seconds(3), &["--wait", "15s"]);
    viewer.await_frames(30, seconds(20));
    assert_eq!(live.viewers(), 1);
    // The probe deletes its session when its time is over.
    viewer.process.wait(seconds(20));
    eventually("the viewer is gone", seconds(1), || {
        (live.viewers() == 0).then_some(())
    });
    let admin = live.cluster.edge().admin;
    let sent = || {
        let text = get(admin, "/metrics").expect("the metrics").body;
        let packets = text
            .lines()
            .filter(|line| line.starts_with("headwater_edge_packets_sent_total"));
        // The exporter's order changes from one answer to the next.
        packets.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    // Shards add to their counters once in a while, so the last packets may be counted a moment later.
    let mut before = sent();
    assert!(!before.is_empty());
    eventually("no packets leave for nobody", seconds(4), || {
        pause(seconds(1));
        let after = sent();
        (std::mem::replace(&mut before, after.clone()) == after).then_some(())
    });
}

#[test]
fn ice_servers_are_told_on_201_only() {
    let servers = "[{ url = \"stun:stun.example.com:3478\" }, \
                   { url = \"turn:turn.example.com?transport=udp\", username = \"u\", credential = \"p\" }]";
    let mut live = Live::start(&Options::default().env("HEADWATER_EDGE__ICE_SERVERS", servers));
    live.join();
    let port = live.port();
    let answer = request(port, "POST", STREAM, &[SDP], OFFER).expect("an answer");
    let link = answer.header("Link").expect("a link");
    assert_eq!(link, "<stun:stun.example.com:3478>; rel=\"ice-server\"");
    let options = request(port, "OPTIONS", STREAM, &[], "").expect("an answer");
    assert_eq!((options.status, options.header("Link")), (200, None));
}

#[test]
fn renditions_are_chosen_by_the_layer_extension() {
    let mut live = Live::start(&Options::default());
    let session = live.join();
    let port = live.port();
    let layer = format!("{}/layer", session.url);
    let read = |answer: &Answer| -> serde_json::Value {
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).expect("JSON")
    };
    // The viewer is there, so the origin makes what is below the source.
    let known = eventually("a lower rendition", seconds(15), || {
        let known = read(&request(port, "GET", &layer, &[], "")?);
        let encodings = known["encodings"].as_array()?;
        (encodings.len() == 2 && encodings[1]["bitrate"].as_u64() > Some(0)).then_some(known)
    });
    assert_eq!(known["encodings"][0]["encodingId"], "240p", "{known:#}");
    assert_eq!(known["encodings"][0]["height"], 240, "{known:#}");
    assert_eq!(known["encodings"][1]["encodingId"], "source", "{known:#}");
    assert!(known["pinned"].is_null(), "{known:#}");

    let post = |body: &str| request(port, "POST", &layer, &[JSON], body).expect("an answer");
    let pinned = read(&post(r#"{"mediaId": "1", "encodingId": "240p"}"#));
    assert_eq!(pinned["pinned"], "240p", "{pinned:#}");
    let pinned = read(&post(r#"{"spatialLayerId": 1, "of another server": true}"#));
    assert_eq!(pinned["pinned"], "source", "{pinned:#}");
    let bounded = read(&post(r#"{"maxHeight": 300}"#));
    assert!(bounded["pinned"].is_null(), "{bounded:#}");
    assert_eq!(bounded["maxHeight"], 300, "{bounded:#}");
    let automatic = read(&post("{}"));
    assert!(automatic["maxHeight"].is_null(), "{automatic:#}");

    for (body, status) in [
        (r#"{"encodingId": "1440p"}"#, 422),
        (r#"{"encodingId": "no name"}"#, 400),
        (r#"{"spatialLayerId": 2}"#, 422),
        (r#"{"mediaId": "7"}"#, 422),
        ("[", 400),
    ] {
        let answer = post(body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    let elsewhere = layer.replace("/layer", "0/layer");
    let answer = request(port, "GET", &elsewhere, &[], "").expect("an answer");
    assert_eq!(answer.status, 404);
}

/// Some players can set no header, and what they are given to go on with must let them in as well.
#[test]
fn a_token_in_the_url_is_in_the_urls_that_are_answered() {
    let options = Options::default().env("HEADWATER_AUTH__PLAY_TOKEN", "s3cret");
    let mut live = Live::start(&options);
    let session = live.join_at(&format!("{STREAM}?token=s3cret"));
    let port = live.port();
    let ask = |method: &str, path: &str| {
        let answer = request(port, method, path, &[JSON], "");
        answer.expect("an answer")
    };
    let (bare, token) = session.url.split_once('?').expect("a query");
    assert_eq!(token, "token=s3cret");
    assert_eq!(ask("GET", bare).status, 401);
    assert_eq!(ask("GET", &session.url).status, 204);
    for (name, method, status) in [("layer", "GET", 200), ("events", "POST", 201)] {
        let url = format!("{bare}/{name}?{token}");
        let link = format!("<{url}>");
        let mut links = session.links.iter();
        assert!(links.any(|known| known.starts_with(&link)), "{link}");
        let answer = ask(method, &url);
        assert_eq!(answer.status, status, "{answer:?}");
        if let Some(events) = answer.header("Location") {
            assert!(events.ends_with(&format!("&{token}")), "{events}");
        }
    }
    assert_eq!(ask("DELETE", &session.url).status, 200);
}

#[test]
fn events_are_read_as_long_as_the_session_lasts() {
    let mut live = Live::start(&Options::default());
    let session = live.join();
    let port = live.port();
    let events = format!("{}/events", session.url);
    let post = |body: &str| request(port, "POST", &events, &[JSON], body).expect("an answer");
    assert_eq!(post("{").status, 400);
    assert_eq!(post(r#"["scte35"]"#).status, 422);
    let created = post(r#"["scte35", "active", "inactive"]"#);
    assert_eq!(created.status, 201, "{created:?}");
    let location = created.header("Location").expect("where to read");

    let read = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the edge");
        stream
            .set_read_timeout(Some(seconds(10)))
            .expect("a timeout");
        let head = format!(
            "GET {location} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        BufReader::new(stream)
    };
    let await_line = |reader: &mut BufReader<TcpStream>, wanted: &str| {
        let mut lines = reader
            .by_ref()
            .lines()
            .map(|line| line.expect("a line in time"));
        assert!(lines.any(|line| line == wanted), "it ended before {wanted}");
    };
    let mut first = read();
    await_line(&mut first, "content-type: text/event-stream");
    await_line(&mut first, "event: active");
    // One reader at a time: a page that was reloaded must not leave the old one behind.
    let mut second = read();
    await_line(&mut second, "event: active");
    let mut rest = String::new();
    first.read_to_string(&mut rest).expect("it ends");
    assert_eq!(
        request(port, "DELETE", &session.url, &[], "").map(|a| a.status),
        Some(200)
    );
    second.read_to_string(&mut rest).expect("it ends");
    assert_eq!(post("").status, 404);
}
