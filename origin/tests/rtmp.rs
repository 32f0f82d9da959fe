//! RTMP ingest over real sockets against a real origin: what hostile, odd and well-behaved publishers get.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use headwater_media::rtmp::amf::{self, Value};
use headwater_node::clock::Clock;
use headwater_node::directory::memory::MemoryDirectory;
use headwater_node::node::Node;
use headwater_node::telemetry::Metrics;
use headwater_origin::{Config, Origin};
use headwater_proto::replication::ownership_client::OwnershipClient;
use headwater_proto::replication::replication_client::ReplicationClient;
use headwater_proto::replication::{Ack, Inquiry, Subscribe, ToOrigin, Want, to_edge, to_origin};
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
};
use rml_rtmp::time::RtmpTimestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Far more than anything here takes, and a failure instead of a hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// An AVCDecoderConfigurationRecord of x264's, 320x240.
const AVCC: &[u8] = &[
    0x01, 0x42, 0xC0, 0x0D, 0xFF, 0xE1, 0x00, 0x18, 0x67, 0x42, 0xC0, 0x0D, 0xD9, 0x01, 0x41, 0xFB,
    0x01, 0x10, 0x00, 0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0xC0, 0xF1, 0x42, 0xA4, 0x80,
    0x01, 0x00, 0x05, 0x68, 0xCB, 0x83, 0xCB, 0x20,
];

/// Runs `test` against an origin of its own, on threads like the product's.
fn with_origin<F>(change: impl FnOnce(&mut Config), test: impl FnOnce(SocketAddr, SocketAddr) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    with_stop(change, |rtmp, grpc, _| test(rtmp, grpc));
}

/// The same; cancelling the token stops the origin while the test goes on.
fn with_stop<F>(
    change: impl FnOnce(&mut Config),
    test: impl FnOnce(SocketAddr, SocketAddr, CancellationToken) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = Config::default();
    config.origin.grpc = SocketAddr::from(([127, 0, 0, 1], 0));
    config.rtmp.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    change(&mut config);
    actix::System::new().block_on(async {
        let id: headwater_media::id::NodeId = "o1".parse().expect("valid");
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id)),
            io: io.handle().clone(),
            shutdown: CancellationToken::new(),
        };
        let stop = CancellationToken::new();
        let origin: Origin = headwater_origin::start(config, node).await.expect("starts");
        let (rtmp, grpc) = (origin.rtmp_addr(), origin.grpc_addr());
        let mut test = io.spawn(test(rtmp, grpc, stop.clone()));
        let done = tokio::select! {
            done = &mut test => Some(done),
            () = stop.cancelled() => None,
        };
        origin.stop().await;
        let done = match done {
            Some(done) => done,
            None => test.await,
        };
        done.expect("the test passes");
    });
    io.shutdown_background();
}

/// The value of a counter with these labels, as a scrape shows it.
fn counter(name: &str, label: &str) -> u64 {
    let text = Metrics::install().render();
    text.lines()
        .filter(|line| line.starts_with(name) && line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// One message as a type 0 chunk and type 3 chunks of 128 bytes.
fn message(chunk_stream: u8, kind: u8, stream_id: u32, time: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![chunk_stream];
    out.extend_from_slice(&time.to_be_bytes()[1..]);
    let length = u32::try_from(payload.len()).expect("short");
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.push(kind);
    out.extend_from_slice(&stream_id.to_le_bytes());
    for (index, part) in payload.chunks(128).enumerate() {
        if index > 0 {
            out.push(0xC0 | chunk_stream);
        }
        out.extend_from_slice(part);
    }
    out
}

fn command(values: &[Value]) -> Vec<u8> {
    let mut payload = BytesMut::new();
    for value in values {
        amf::write(&mut payload, value);
    }
    message(3, 20, 1, 0, &payload)
}

fn connect() -> Vec<u8> {
    connect_with(0.0)
}

/// With what the publisher says of its capabilities (E-RTMP v2, `capsEx`).
fn connect_with(capabilities: f64) -> Vec<u8> {
    let object = Value::object([("app", "live".into()), ("capsEx", capabilities.into())]);
    command(&["connect".into(), 1.0.into(), object])
}

fn create_stream() -> Vec<u8> {
    command(&["createStream".into(), 2.0.into(), Value::Null])
}

/// Everything up to and including `publish`.
fn publish(key: &str) -> Vec<u8> {
    let publish = command(&["publish".into(), 3.0.into(), Value::Null, key.into()]);
    [connect(), create_stream(), publish].concat()
}

fn handshake() -> Vec<u8> {
    let mut bytes = vec![3];
    bytes.extend([0; 8]);
    bytes.resize(1 + 2 * 1536, 7);
    bytes
}

fn ping() -> Vec<u8> {
    message(2, 4, 0, 0, &[0, 6, 1, 2, 3, 4])
}

/// Sends all of it, and reads until the server closes. A reset counts as a close: the server had not read everything.
async fn end_of(rtmp: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(rtmp).await.expect("connects");
    let (mut reader, mut writer) = stream.split();
    let mut answer = Vec::new();
    let send = async {
        let _ = writer.write_all(bytes).await;
    };
    let receive = async {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(PATIENCE, async { tokio::join!(send, receive) })
        .await
        .expect("the server closes the connection");
    answer
}

/// Sends all of it and a ping, and reads until the ping is answered: the session lives.
async fn lives_after(rtmp: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(rtmp).await.expect("connects");
    stream.write_all(bytes).await.expect("taken");
    stream.write_all(&ping()).await.expect("taken");
    let pong = [0, 7, 1, 2, 3, 4];
    let mut answer = Vec::new();
    timeout(PATIENCE, async {
        while !answer.ends_with(&pong) {
            answer.push(stream.read_u8().await.expect("the session lives"));
        }
    })
    .await
    .expect("the ping is answered");
    stream
}

/// A publisher that does everything right, by `rml_rtmp`.
struct Publisher {
    stream: TcpStream,
    session: ClientSession,
}

impl Publisher {
    async fn start(rtmp: SocketAddr, app: &str, key: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(rtmp).await?;
        let mut handshake = Handshake::new(PeerType::Client);
        let hello = handshake.generate_outbound_p0_and_p1().expect("random");
        stream.write_all(&hello).await?;
        let mut buffer = vec![0; 4096];
        let mut early = loop {
            let count = stream.read(&mut buffer).await?;
            match handshake.process_bytes(&buffer[..count]).expect("RTMP") {
                HandshakeProcessResult::InProgress { response_bytes } => {
                    stream.write_all(&response_bytes).await?;
                }
                HandshakeProcessResult::Completed {
                    response_bytes,
                    remaining_bytes,
                } => {
                    stream.write_all(&response_bytes).await?;
                    break remaining_bytes;
                }
            }
        };
        let (mut session, results) =
            ClientSession::new(ClientSessionConfig::new()).expect("a session");
        perform(&mut stream, results).await?;
        let request = session.request_connection(app.to_owned()).expect("new");
        perform(&mut stream, vec![request]).await?;
        loop {
            let results = session.handle_input(&early).expect("our replies");
            for event in perform(&mut stream, results).await? {
                match event {
                    ClientSessionEvent::ConnectionRequestAccepted => {
                        let request = session
                            .request_publishing(key.to_owned(), PublishRequestType::Live)
                            .expect("connected");
                        perform(&mut stream, vec![request]).await?;
                    }
                    ClientSessionEvent::PublishRequestAccepted => {
                        return Ok(Self { stream, session });
                    }
                    ClientSessionEvent::UnhandleableOnStatusCode { code } => {
                        return Err(io::Error::other(code));
                    }
                    _ => {}
                }
            }
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            early = buffer[..count].to_vec();
        }
    }

    async fn video(&mut self, millis: u32, body: Vec<u8>) -> io::Result<()> {
        let result = self
            .session
            .publish_video_data(Bytes::from(body), RtmpTimestamp::new(millis), false)
            .expect("publishing");
        perform(&mut self.stream, vec![result]).await.map(drop)
    }

    async fn configuration(&mut self) -> io::Result<()> {
        self.video(0, [&[0x17, 0, 0, 0, 0], AVCC].concat()).await
    }

    /// One picture whose slice names its number.
    async fn picture(&mut self, number: u32) -> io::Result<()> {
        let keyframe = number.is_multiple_of(30);
        let mut body = vec![if keyframe { 0x17 } else { 0x27 }, 1, 0, 0, 0, 0, 0, 4, 0];
        body.push(if keyframe { 0x65 } else { 0x41 });
        body.extend_from_slice(&number.to_be_bytes());
        body.resize(9 + 1024, 0xA5);
        self.video(number * 33, body).await
    }
}

async fn perform(
    stream: &mut TcpStream,
    results: Vec<ClientSessionResult>,
) -> io::Result<Vec<ClientSessionEvent>> {
    let mut events = Vec::new();
    for result in results {
        match result {
            ClientSessionResult::OutboundResponse(packet) => {
                stream.write_all(&packet.bytes).await?;
            }
            ClientSessionResult::RaisedEvent(event) => events.push(event),
            ClientSessionResult::UnhandleableMessageReceived(_) => {}
        }
    }
    Ok(events)
}

/// Subscribes to a stream as an edge does, and reads pictures until number `last`; all must be there, in order.
async fn watch(grpc: SocketAddr, stream: &str, begun: oneshot::Sender<()>, last: u32) -> Vec<u32> {
    let mut client = ReplicationClient::connect(format!("http://{grpc}"))
        .await
        .expect("connects");
    let (tx, rx) = mpsc::channel(8);
    let say = |message| ToOrigin {
        message: Some(message),
    };
    let subscribe = Subscribe {
        stream: stream.to_owned(),
        want: Some(Want {
            track_ids: vec![0],
            adaptive: false,
        }),
        node: "e1".to_owned(),
        ..Subscribe::default()
    };
    tx.send(say(to_origin::Message::Subscribe(subscribe)))
        .await
        .expect("room");
    let requests = tokio_stream::wrappers::ReceiverStream::new(rx);
    let mut answers = client
        .subscribe(requests)
        .await
        .expect("the stream is live")
        .into_inner();
    let (mut begun, mut numbers) = (Some(begun), Vec::new());
    while let Some(message) = answers.message().await.expect("goes on") {
        match message.message {
            Some(to_edge::Message::Unit(unit)) => {
                let number: [u8; 4] = unit.payload[5..9].try_into().expect("4 bytes");
                numbers.push(u32::from_be_bytes(number));
                let units = u64::try_from(numbers.len()).expect("few");
                let _ = tx.send(say(to_origin::Message::Ack(Ack { units }))).await;
                if let Some(begun) = begun.take() {
                    let _ = begun.send(());
                }
                if numbers.last() == Some(&last) {
                    return numbers;
                }
            }
            Some(to_edge::Message::Gap(gap)) => panic!("a gap: {gap:?}"),
            Some(to_edge::Message::End(end)) => panic!("an end: {end:?}"),
            _ => {}
        }
    }
    panic!("the subscription ended after {:?}", numbers.last());
}

#[test]
fn an_origin_that_stops_asks_publishers_to_reconnect_and_cuts_those_who_would_not_understand() {
    let base = "rtmp://elsewhere:1935";
    with_stop(
        |config| config.rtmp.reconnect_url = base.to_owned(),
        |rtmp, grpc, stop| async move {
            let publish = |key: &str| {
                let publish = command(&["publish".into(), 3.0.into(), Value::Null, key.into()]);
                [create_stream(), publish].concat()
            };
            let aware = [handshake(), connect_with(1.0), publish("aware")].concat();
            let mut aware = lives_after(rtmp, &aware).await;
            let unaware = [handshake(), connect(), publish("unaware")].concat();
            let mut unaware = lives_after(rtmp, &unaware).await;
            let mut owner = OwnershipClient::connect(format!("http://{grpc}"))
                .await
                .expect("connects");
            let mut asked = async || {
                let inquiry = Inquiry {
                    stream: "live/aware".to_owned(),
                    node: "o2".to_owned(),
                };
                owner.inquire(inquiry).await.expect("answered").into_inner()
            };
            assert!(asked().await.publishing);
            stop.cancel();
            let mut last = Vec::new();
            let closed = timeout(PATIENCE, unaware.read_to_end(&mut last)).await;
            closed.expect("in time").expect("closed");
            let says = |bytes: &[u8], text: &str| {
                bytes
                    .windows(text.len())
                    .any(|part| part == text.as_bytes())
            };
            assert!(says(&last, "the server is stopping"), "{last:?}");
            assert!(!says(&last, "ReconnectRequest"), "{last:?}");

            let mut answer = Vec::new();
            timeout(PATIENCE, async {
                while !says(&answer, "rtmp://elsewhere:1935/live") {
                    answer.push(aware.read_u8().await.expect("it is not cut"));
                }
            })
            .await
            .expect("it is asked");
            assert!(says(&answer, "NetConnection.Connect.ReconnectRequest"));
            // It may send on, and another origin may have its stream.
            aware.write_all(&ping()).await.expect("taken");
            timeout(PATIENCE, async {
                while !answer.ends_with(&[0, 7, 1, 2, 3, 4]) {
                    answer.push(aware.read_u8().await.expect("it is not cut"));
                }
            })
            .await
            .expect("the ping is answered");
            let standing = asked().await;
            assert!(!standing.publishing);
            assert_eq!(standing.node, "o1");
            drop(aware);
        },
    );
}

/// Every fault a hostile publisher may make, as bytes, with the `reason` it is counted under.
fn faults() -> Vec<(&'static str, Vec<u8>)> {
    let after = |bytes: Vec<u8>| [handshake(), bytes].concat();
    let header = |kind: u8, length: u32| {
        let mut out = vec![4, 0, 0, 0];
        out.extend_from_slice(&length.to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, 0, 0, 0, 0]);
        out
    };
    let begun = message(4, 9, 1, 0, &[1; 300])[..12 + 128].to_vec();
    let shrunk = [&begun[..], &[0x44, 0, 0, 0, 0, 0, 10, 9]].concat();
    let nested = b"\x03\0\x01a".repeat(12_000);
    let set_chunk_size = |size: u32| message(2, 1, 0, 0, &size.to_be_bytes());
    vec![
        ("handshake", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("handshake", vec![0x16, 3, 1, 0, 200]),
        ("handshake", vec![6; 1537]),
        ("handshake_timeout", vec![3; 100]),
        ("publish_timeout", after(connect())),
        ("command", after(command(&["connect".into()]))),
        ("command", after(command(&["connect".into(), 1.0.into()]))),
        ("command", after(message(3, 20, 0, 0, b""))),
        ("amf_depth", after(message(3, 20, 0, 0, &nested))),
        ("amf_values", after(message(3, 20, 0, 0, &[5; 5000]))),
        ("amf", after(message(3, 20, 0, 0, b"\x02\xFF\xFFx"))),
        ("chunk_without_header", after(vec![0xC4])),
        ("header_within_message", after(shrunk)),
        ("message_too_long", after(header(9, 0x00FF_FFFF))),
        ("message_too_long", after(header(20, 300_000))),
        ("chunk_size", after(set_chunk_size(0))),
        ("chunk_size", after(set_chunk_size(u32::MAX))),
        (
            "chunk_streams",
            after(
                (2..64)
                    .flat_map(|id| message(id, 9, 1, 0, b"x"))
                    .chain(
                        (0..9).flat_map(|low| {
                            [&[0, low][..], &message(2, 9, 1, 0, b"x")[1..]].concat()
                        }),
                    )
                    .collect(),
            ),
        ),
        ("before_connect", after(create_stream())),
        (
            "message_streams",
            after([connect(), create_stream().repeat(9)].concat()),
        ),
        ("control", after(message(2, 4, 0, 0, b"x"))),
        (
            "aggregate",
            after(message(
                4,
                22,
                1,
                0,
                &[9, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0, 0],
            )),
        ),
    ]
}

#[test]
fn every_fault_ends_cleanly_and_no_neighbour_notices() {
    Metrics::install();
    let change = |config: &mut Config| {
        config.rtmp.handshake_timeout_ms = 300;
        config.rtmp.publish_timeout_ms = 600;
    };
    with_origin(change, |rtmp, grpc| async move {
        // The neighbour: publishes 100 pictures a second while the others do their worst, and ends on a number all wait for.
        let last = 3000;
        let (stop, mut stopped) = oneshot::channel::<()>();
        let mut neighbour = timeout(PATIENCE, Publisher::start(rtmp, "live", "good"))
            .await
            .expect("in time")
            .expect("accepted");
        neighbour.configuration().await.expect("taken");
        neighbour.picture(0).await.expect("taken");
        let publisher = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(10));
            let mut number = 1;
            while stopped.try_recv().is_err() && number < last {
                ticks.tick().await;
                neighbour.picture(number).await.expect("taken");
                number += 1;
            }
            neighbour.picture(last).await.expect("taken");
            (neighbour, number)
        });
        let (begun, has_begun) = oneshot::channel();
        let watcher = tokio::spawn(watch(grpc, "live/good", begun, last));
        timeout(PATIENCE, has_begun)
            .await
            .expect("in time")
            .expect("a picture");
        for (reason, bytes) in faults() {
            let label = format!("reason=\"{reason}\"");
            let name = "headwater_origin_rtmp_faults_total";
            let before = counter(name, &label);
            end_of(rtmp, &bytes).await;
            timeout(PATIENCE, async {
                while counter(name, &label) == before {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("not counted: {reason}"));
        }
        let _ = stop.send(());
        let (_neighbour, sent) = publisher.await.expect("never disturbed");
        let numbers = timeout(PATIENCE, watcher)
            .await
            .expect("in time")
            .expect("no gap");
        let expected: Vec<u32> = (0..sent).chain([last]).collect();
        assert_eq!(numbers, expected);
    });
}

#[test]
fn what_is_odd_but_allowed_keeps_its_session() {
    with_origin(
        |_| {},
        |rtmp, _| async move {
            let picture = message(4, 9, 1, 0, &[0x17; 300]);
            let interleaved = [
                &publish("odd")[..],
                &picture[..12 + 128],
                &message(5, 8, 1, 0, &[0xAF, 1, 2]),
                &ping(),
                &picture[12 + 128..],
            ];
            let mut dates = BytesMut::new();
            for value in ["setThing".into(), 0.0.into(), Value::Date(1.0)] {
                amf::write(&mut dates, &value);
            }
            dates.extend_from_slice(b"\x07\0\x01\x10\0\x01C\0\x01k\x05\0\0\x09\x0C\0\0\0\x01z");
            let bare = b"\x02\0\x0D@setDataFrame";
            let aggregate = [8, 0, 0, 2, 0, 0, 5, 0, 0, 0, 0, 0xAF, 1, 0, 0, 0, 13];
            for bytes in [
                interleaved.concat(),
                message(3, 18, 0, 0, bare),
                [publish("bare"), message(3, 18, 1, 0, bare)].concat(),
                [connect(), message(3, 20, 0, 0, &dates)].concat(),
                [publish("sum"), message(4, 22, 1, 0, &aggregate)].concat(),
                message(2, 4, 0, 0, &[0, 77, 1]),
                [
                    &picture[..12 + 128],
                    &message(2, 2, 0, 0, &[0, 0, 0, 4]),
                    &picture,
                ]
                .concat(),
            ] {
                lives_after(rtmp, &[handshake(), bytes].concat()).await;
            }
        },
    );
}

#[test]
fn a_second_publisher_is_refused_and_a_close_frees_the_name() {
    Metrics::install();
    with_origin(
        |_| {},
        |rtmp, _| async move {
            let mut first = Publisher::start(rtmp, "live", "one")
                .await
                .expect("accepted");
            first.configuration().await.expect("taken");
            first.picture(0).await.expect("taken");
            let start = [handshake(), publish("one")].concat();
            let answer = end_of(rtmp, &start).await;
            let said = |code: &[u8]| answer.windows(code.len()).any(|window| window == code);
            assert!(said(b"NetStream.Publish.BadName"));
            assert!(!said(b"NetStream.Publish.Start"));
            assert!(counter("headwater_origin_rtmp_publishes_total", "result=\"busy\"") > 0);
            drop(first);
            // The stream learns of the close in its own time.
            let again = async {
                while Publisher::start(rtmp, "live", "one").await.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(PATIENCE, again).await.expect("the name is free");
        },
    );
}

#[test]
fn a_rendition_may_come_first_but_not_stay_without_a_source() {
    Metrics::install();
    let change = |config: &mut Config| config.origin.hold_seconds = 1;
    with_origin(change, |rtmp, _| async move {
        let start = |key: &str| [handshake(), publish(key)].concat();
        let said = |answer: &[u8], text: &[u8]| answer.windows(text.len()).any(|part| part == text);
        let malformed = end_of(rtmp, &start("r?rendition=a%20b")).await;
        assert!(!said(&malformed, b"NetStream.Publish.Start"));
        let first = start("r?rendition=480p");
        let first = tokio::spawn(async move { end_of(rtmp, &first).await });
        let label = "outcome=\"accepted\"";
        timeout(PATIENCE, async {
            while counter("headwater_origin_contributors_total", label) == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("it is accepted");
        // Another of its name is one too many, one of another name is not.
        let second = end_of(rtmp, &start("r?rendition=480p")).await;
        assert!(said(&second, b"this stream already has a publisher"));
        lives_after(rtmp, &start("r?rendition=240p")).await;
        let first = first.await.expect("it ends");
        assert!(said(&first, b"NetStream.Publish.Start"));
        assert!(said(&first, b"nobody publishes this stream's source"));
    });
}

#[test]
fn names_and_tokens_are_checked_before_publish_start() {
    let change = |config: &mut Config| {
        config.publish_token = Some("s3cret".parse().expect("valid"));
    };
    with_origin(change, |rtmp, _| async move {
        for (app, key, accepted) in [
            ("live", "a?token=s3cret", true),
            ("live?token=s3cret", "b", true),
            ("live/c?token=s3%63ret", "", true),
            ("live", "d", false),
            ("live", "e?token=s3cre", false),
            ("live", "..?token=s3cret", false),
            ("live/f/g", "h?token=s3cret", false),
        ] {
            let result = timeout(PATIENCE, Publisher::start(rtmp, app, key)).await;
            let result = result.expect("in time");
            assert_eq!(result.is_ok(), accepted, "{app} {key}: {:?}", result.err());
        }
    });
}

#[test]
fn connections_are_bounded_per_address() {
    Metrics::install();
    let change = |config: &mut Config| config.rtmp.connections_per_ip_max = 2;
    with_origin(change, |rtmp, _| async move {
        let one = lives_after(rtmp, &handshake()).await;
        let two = lives_after(rtmp, &handshake()).await;
        assert_eq!(end_of(rtmp, b"").await, b"");
        assert!(counter("headwater_origin_rtmp_rejected_total", "per_ip") > 0);
        drop(one);
        let again = async {
            loop {
                let mut stream = TcpStream::connect(rtmp).await.expect("connects");
                let _ = stream.write_all(&handshake()).await;
                if stream.read_u8().await.is_ok() {
                    return;
                }
            }
        };
        timeout(PATIENCE, again).await.expect("the place is free");
        drop(two);
    });
}
