//! Tests of the session, by what encoders send.

mod spoil;

use std::time::Duration;

use proptest::prelude::*;
use rml_rtmp::chunk_io::ChunkDeserializer;

use super::*;
use crate::rtmp::testkit::{ASC, AVCC, amf, message, picture, sized, video_configuration};

/// A server session and what it did.
struct Server {
    session: Session,
    now: Instant,
    events: Vec<Event>,
    output: Vec<u8>,
}

#[expect(clippy::disallowed_methods, reason = "a test's starting point")]
fn now() -> Instant {
    Instant::now()
}

impl Server {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let now = now();
        Self {
            session: Session::new(limits, now),
            now,
            events: Vec::new(),
            output: Vec::new(),
        }
    }

    /// Behind a simple handshake.
    fn open() -> Self {
        let mut server = Self::new();
        server.feed(&handshake()).expect("valid");
        assert_eq!(server.output.len(), 1 + 2 * 1536);
        server.output.clear();
        server
    }

    /// Behind an accepted publish of `live/demo`.
    fn publishing() -> Self {
        let mut server = Self::open();
        server.feed(&connect(&[])).expect("valid");
        server.feed(&create_stream()).expect("valid");
        server.feed(&publish("demo")).expect("valid");
        server.session.accept_publish().expect("room");
        server.drain();
        server.events.clear();
        server.output.clear();
        server
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let wall = WallTime::from_unix_micros(42);
        let result = self.session.handle_input(self.now, wall, bytes);
        self.drain();
        result
    }

    fn drain(&mut self) {
        while let Some(bytes) = self.session.poll_output() {
            self.output.extend_from_slice(&bytes);
        }
        while let Some(event) = self.session.poll_event() {
            self.events.push(event);
        }
    }

    fn wait(&mut self, seconds: u64) -> Result<(), Fault> {
        self.now += Duration::from_secs(seconds);
        let result = self.session.handle_timeout(self.now);
        self.drain();
        result
    }

    /// What was sent since the last call, as (type, message stream, values or bytes).
    fn replies(&mut self) -> Vec<(u8, u32, Vec<Value>, Vec<u8>)> {
        let mut reader = ChunkReader::new(Limits::default());
        // What comes before our Set Chunk Size fits in the initial one, too.
        reader.set_chunk_size(60_000).expect("in range");
        let output = std::mem::take(&mut self.output);
        let (mut input, mut replies) = (&output[..], Vec::new());
        while let Some(message) = reader.read(&mut input).expect("our own chunks") {
            let values = match message.kind {
                20 => amf::read(&message.payload, &Limits::default()).expect("our own AMF"),
                _ => Vec::new(),
            };
            replies.push((
                message.kind,
                message.stream_id,
                values,
                message.payload.to_vec(),
            ));
        }
        replies
    }

    /// The names of the commands sent since the last call, with the status code if there is one.
    fn commands(&mut self) -> Vec<String> {
        self.replies()
            .into_iter()
            .filter(|(kind, ..)| *kind == 20)
            .map(|(_, _, values, _)| {
                let name = values[0].as_str().expect("a name").to_owned();
                let code = values.get(3).and_then(|info| info.get("code"));
                match code.and_then(Value::as_str) {
                    Some(code) => format!("{name} {code}"),
                    None => name,
                }
            })
            .collect()
    }
}

/// C0, C1 and C2 of a simple handshake. C2 matches nothing, as hardware encoders do.
fn handshake() -> Vec<u8> {
    let mut bytes = vec![3];
    bytes.extend((0..1536 * 2).map(|i| if i < 8 { 0 } else { (i * 31 % 251) as u8 }));
    bytes
}

fn command(stream_id: u32, values: &[Value]) -> Vec<u8> {
    message(3, 20, stream_id, 0, &amf(values))
}

fn connect(extra: &[(&str, Value)]) -> Vec<u8> {
    let mut properties = vec![
        ("app".to_owned(), "live".into()),
        ("flashVer".to_owned(), "FMLE/3.0 (compatible; test)".into()),
        ("tcUrl".to_owned(), "rtmp://localhost/live".into()),
    ];
    properties.extend(extra.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    command(
        0,
        &["connect".into(), 1.0.into(), Value::Object(properties)],
    )
}

fn create_stream() -> Vec<u8> {
    command(0, &["createStream".into(), 4.0.into(), Value::Null])
}

fn publish(key: &str) -> Vec<u8> {
    let values = [
        "publish".into(),
        5.0.into(),
        Value::Null,
        key.into(),
        "live".into(),
    ];
    command(1, &values)
}

fn kinds(events: &[Event]) -> Vec<&'static str> {
    events
        .iter()
        .map(|event| match event {
            Event::Publish(_) => "publish",
            Event::Configuration(_, configuration) => configuration.codec(),
            Event::Unit(unit) if unit.kind == MediaKind::Audio => "audio",
            Event::Unit(unit) if unit.keyframe => "keyframe",
            Event::Unit(_) => "picture",
            Event::Skipped(..) => "skipped",
            Event::Metadata(_) => "metadata",
            Event::Data { .. } => "data",
            Event::Unpublished => "unpublished",
            Event::End(_) => "end",
        })
        .collect()
}

/// What OBS 30 sends, byte for byte as its librtmp writes it: a simple handshake, Set Chunk Size 4096 before `connect`, type 0 and
/// type 1 headers on its csids, `connect` without any word of Enhanced RTMP, then metadata, headers and media on stream 1.
fn obs() -> Vec<Vec<u8>> {
    let mut parts = vec![handshake()[..1537].to_vec(), handshake()[1537..].to_vec()];
    // Set Chunk Size on csid 2.
    parts.push(sized(4096, 2, 1, 0, 0, &4096u32.to_be_bytes()));
    let connect = amf(&[
        "connect".into(),
        1.0.into(),
        Value::object([
            ("app", "live".into()),
            ("type", "nonprivate".into()),
            ("flashVer", "FMLE/3.0 (compatible; FMSc/1.0)".into()),
            ("swfUrl", "rtmp://localhost/live".into()),
            ("tcUrl", "rtmp://localhost/live".into()),
        ]),
    ]);
    parts.push(sized(4096, 3, 20, 0, 0, &connect));
    // librtmp goes on with type 1 headers on the command csid: timestamp delta 0, length, type.
    let medium = |values: &[Value]| {
        let payload = amf(values);
        let mut out = vec![0x43, 0, 0, 0];
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
        out.push(20);
        out.extend(payload);
        out
    };
    parts.push(medium(&[
        "releaseStream".into(),
        2.0.into(),
        Value::Null,
        "demo".into(),
    ]));
    parts.push(medium(&[
        "FCPublish".into(),
        3.0.into(),
        Value::Null,
        "demo".into(),
    ]));
    parts.push(medium(&["createStream".into(), 4.0.into(), Value::Null]));
    parts.push(medium(&["_checkbw".into(), 5.0.into(), Value::Null]));
    let publish = amf(&[
        "publish".into(),
        6.0.into(),
        Value::Null,
        "demo".into(),
        "live".into(),
    ]);
    parts.push(sized(4096, 4, 20, 1, 0, &publish));
    let metadata = amf(&[
        "@setDataFrame".into(),
        "onMetaData".into(),
        Value::object([
            ("duration", 0.0.into()),
            ("width", 1280.0.into()),
            ("height", 720.0.into()),
            ("videocodecid", 7.0.into()),
            (
                "encoder",
                "obs-output module (libobs version 30.0.2)".into(),
            ),
        ]),
    ]);
    parts.push(sized(4096, 4, 18, 1, 0, &metadata));
    parts.push(sized(4096, 4, 8, 1, 0, &[&[0xAF, 0], ASC].concat()));
    parts.push(sized(4096, 4, 9, 1, 0, &video_configuration(AVCC)));
    parts.push(sized(4096, 4, 9, 1, 0, &picture(true, 0, 9000)));
    parts.push(sized(4096, 4, 8, 1, 21, &[0xAF, 1, 0x21, 0x10]));
    parts.push(sized(4096, 4, 9, 1, 33, &picture(false, 66, 500)));
    let delete =
        |name: &str, rest: Value| command(0, &[name.into(), 7.0.into(), Value::Null, rest]);
    parts.push(delete("FCUnpublish", "demo".into()));
    parts.push(delete("deleteStream", 1.0.into()));
    parts
}

#[test]
fn obs_is_accepted_step_by_step() {
    let mut server = Server::new();
    let mut parts = obs().into_iter();
    let mut next = |server: &mut Server| server.feed(&parts.next().expect("more")).expect("valid");
    next(&mut server);
    // S0, S1 and S2 do not wait for C2.
    assert_eq!(server.output.len(), 1 + 2 * 1536);
    assert_eq!(server.output[0], 3);
    server.output.clear();
    next(&mut server);
    next(&mut server);
    assert!(server.output.is_empty());
    next(&mut server);
    let replies = server.replies();
    let types: Vec<_> = replies.iter().map(|(kind, ..)| *kind).collect();
    assert_eq!(types, [5, 6, 1, 20]);
    assert_eq!(replies[2].3, 60_000u32.to_be_bytes());
    let values = &replies[3].2;
    assert_eq!(values[..2], [Value::from("_result"), 1.0.into()]);
    for name in ["fmsVer", "capabilities", "mode"] {
        assert!(values[2].get(name).is_some(), "{name}");
    }
    assert!(values[2].get("fourCcList").is_none());
    assert_eq!(
        values[3].get("code"),
        Some(&"NetConnection.Connect.Success".into())
    );
    assert_eq!(values[3].get("objectEncoding"), Some(&0.0.into()));
    next(&mut server);
    assert_eq!(server.commands(), ["_result"]);
    next(&mut server);
    assert_eq!(
        server.commands(),
        ["_result", "onFCPublish NetStream.Publish.Start"]
    );
    next(&mut server);
    let replies = server.replies();
    assert_eq!(
        replies[0].2,
        ["_result".into(), 4.0.into(), Value::Null, 1.0.into()]
    );
    next(&mut server);
    assert_eq!(server.commands(), ["_result"]);
    next(&mut server);
    assert!(
        server.output.is_empty(),
        "no Publish.Start before it is granted"
    );
    let Some(Event::Publish(request)) = server.events.pop() else {
        panic!("{:?}", server.events);
    };
    assert_eq!(
        request.name().expect("valid").to_string(),
        "live/demo".to_owned()
    );
    assert_eq!(
        request.encoder.as_deref(),
        Some("FMLE/3.0 (compatible; FMSc/1.0)")
    );
    server.session.accept_publish().expect("room");
    server.drain();
    let replies = server.replies();
    assert_eq!(replies[0].0, 4, "stream begin");
    assert_eq!(replies[1].1, 1, "on the message stream");
    let info = &replies[1].2[3];
    assert_eq!(info.get("code"), Some(&"NetStream.Publish.Start".into()));
    for part in parts {
        server.feed(&part).expect("valid");
    }
    assert_eq!(
        kinds(&server.events),
        [
            "metadata",
            "aac",
            "h264",
            "keyframe",
            "audio",
            "picture",
            "unpublished"
        ]
    );
    let Event::Unit(unit) = &server.events[5] else {
        panic!("a picture");
    };
    assert_eq!((unit.dts.as_millis(), unit.pts.as_millis()), (33, 99));
    assert_eq!(unit.ingest_time, WallTime::from_unix_micros(42));
    let Event::Metadata(metadata) = &server.events[0] else {
        panic!("metadata");
    };
    assert_eq!(metadata["width"], 1280.0);
}

#[test]
fn what_enhanced_encoders_offer_is_answered_by_what_there_is() {
    let mut server = Server::open();
    let extra = [
        ("fourCcList", Value::Array(vec!["hvc1".into()])),
        ("capsEx", 1.0.into()),
        ("audioFourCcInfoMap", Value::Object(vec![])),
        ("objectEncoding", 3.0.into()),
    ];
    server.feed(&connect(&extra)).expect("valid");
    let values = &server.replies()[3].2;
    let codecs = Value::Array(vec!["avc1".into(), "mp4a".into()]);
    assert_eq!(values[2].get("fourCcList"), Some(&codecs));
    let sound = Value::object([("mp4a", 5.0.into())]);
    assert_eq!(values[2].get("audioFourCcInfoMap"), Some(&sound));
    assert_eq!(values[2].get("capsEx"), Some(&7.0.into()));
    assert_eq!(values[2].get("videoFourCcInfoMap"), None);
    assert_eq!(values[3].get("objectEncoding"), Some(&3.0.into()));
    // A second connect is refused and changes nothing.
    server.feed(&connect(&[])).expect("valid");
    assert_eq!(server.commands(), ["_error NetConnection.Connect.Rejected"]);
}

#[test]
fn a_publisher_that_knows_the_request_is_asked_to_reconnect() {
    let publishing = |capabilities: &[(&str, Value)]| {
        let mut server = Server::open();
        server.feed(&connect(capabilities)).expect("valid");
        server.feed(&create_stream()).expect("valid");
        let early = server.session.request_reconnect(None);
        assert_eq!(early, Ok(false), "it does not publish yet");
        server.feed(&publish("demo")).expect("valid");
        server.session.accept_publish().expect("room");
        server.drain();
        server.output.clear();
        server
    };
    for unaware in [
        &[][..],
        &[("capsEx", 6.0.into())],
        &[("capsEx", 0.5.into())],
        &[("capsEx", (-1.0).into())],
        &[("capsEx", "1".into())],
    ] {
        let mut server = publishing(unaware);
        assert_eq!(server.session.request_reconnect(None), Ok(false));
    }
    for (base, url) in [
        (None, None),
        (Some("rtmp://b:1935"), Some("rtmp://b:1935/live")),
        (Some("rtmps://b/"), Some("rtmps://b/live")),
    ] {
        let mut server = publishing(&[("capsEx", 3.0.into())]);
        assert_eq!(server.session.request_reconnect(base), Ok(true));
        server.drain();
        let values = &server.replies()[0].2;
        let code = "NetConnection.Connect.ReconnectRequest";
        assert_eq!(values[3].get("code"), Some(&code.into()));
        assert_eq!(values[3].get("level"), Some(&"status".into()));
        assert_eq!(values[3].get("tcUrl").and_then(Value::as_str), url);
        // It sends on until it has connected anew.
        server
            .feed(&message(4, 9, 1, 0, &video_configuration(AVCC)))
            .expect("taken");
        assert_eq!(server.events.len(), 2);
    }
}

/// OBS says nothing of Enhanced RTMP in `connect` and sends it all the same: the first track as ever, others alone in a message.
#[test]
fn several_tracks_need_no_announcement() {
    let mut server = Server::publishing();
    let further = |track: u8, packet_type: u8, packet: &[u8]| {
        [&[0x96, packet_type][..], b"avc1", &[track], packet].concat()
    };
    let slice = [0, 0, 0, 3, 0x65, 1, 2];
    for body in [
        video_configuration(AVCC),
        further(1, 0, AVCC),
        further(2, 0, AVCC),
        picture(true, 0, 100),
        further(1, 3, &slice),
        further(2, 3, &slice),
        further(2, 2, &[]),
    ] {
        server.feed(&message(4, 9, 1, 0, &body)).expect("valid");
    }
    let events: Vec<_> = server.events.drain(..).collect();
    let expected = [
        "h264", "h264", "h264", "keyframe", "keyframe", "keyframe", "end",
    ];
    assert_eq!(kinds(&events), expected);
    let tracks: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Configuration(track, _) => Some(track.0),
            Event::Unit(unit) => Some(unit.track.0),
            _ => None,
        })
        .collect();
    assert_eq!(tracks, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn commands_are_answered_and_never_close() {
    let mut server = Server::publishing();
    let mut ask = |values: &[Value]| {
        server.feed(&command(1, values)).expect("harmless");
        server.commands()
    };
    let null = || Value::Null;
    assert_eq!(
        ask(&["unknown".into(), 9.0.into(), null()]),
        ["_error NetConnection.Call.Failed"]
    );
    assert!(ask(&["unknown".into(), 0.0.into(), null()]).is_empty());
    assert!(ask(&["unknown".into()]).is_empty());
    assert!(ask(&["_error".into(), 9.0.into(), null()]).is_empty());
    assert_eq!(
        ask(&["getStreamLength".into(), 9.0.into(), null(), "x".into()]),
        ["_result"]
    );
    assert_eq!(
        ask(&["FCSubscribe".into(), 9.0.into(), null(), "x".into()]),
        ["onFCSubscribe NetStream.Play.Start"]
    );
    assert_eq!(
        ask(&["play".into(), 9.0.into(), null(), "x".into()]),
        ["onStatus NetStream.Play.StreamNotFound"]
    );
    assert_eq!(
        ask(&["publish".into(), 9.0.into(), null(), "other".into()]),
        ["onStatus NetStream.Publish.BadName"]
    );
    // AMF3 commands: a format byte, then AMF0; what follows a switch to AMF3 is not looked at.
    let mut bytes = vec![0];
    bytes.extend(amf(&["_checkbw".into(), 9.0.into(), null()]));
    bytes.extend([0x11, 0x0A, 0xFF]);
    server.feed(&message(3, 17, 0, 0, &bytes)).expect("valid");
    assert_eq!(server.commands(), ["_result"]);
    // Dates, references and typed objects among the arguments.
    let mut bytes = amf(&["setThing".into(), 8.0.into(), null(), Value::Date(1.0)]);
    bytes.extend(b"\x07\0\x01\x10\0\x01C\0\x01k\x05\0\0\x09\x0C\0\0\0\x01z");
    server.feed(&message(3, 20, 0, 0, &bytes)).expect("valid");
    assert_eq!(server.commands(), ["_error NetConnection.Call.Failed"]);
    assert!(server.events.is_empty());
}

#[test]
fn control_messages_are_answered() {
    let mut server = Server::publishing();
    server
        .feed(&message(2, 4, 0, 0, &[0, 6, 1, 2, 3, 4]))
        .expect("valid");
    assert_eq!(server.replies()[0].3, [0, 7, 1, 2, 3, 4]);
    for harmless in [
        message(2, 4, 0, 0, &[0, 3, 0, 0, 0, 1, 0, 0, 3, 0xE8]),
        message(2, 4, 0, 0, &[0, 99]),
        message(2, 3, 0, 0, &[0, 0, 0, 1]),
        message(2, 6, 0, 0, &[0, 0x26, 0x25, 0xA0, 2]),
        message(2, 99, 0, 0, b"whatever"),
    ] {
        server.feed(&harmless).expect("harmless");
        assert!(server.replies().is_empty());
    }
    server
        .feed(&message(2, 6, 0, 0, &[0, 0, 0x10, 0, 2]))
        .expect("valid");
    let replies = server.replies();
    assert_eq!((replies[0].0, &replies[0].3[..]), (5, &[0, 0, 0x10, 0][..]));
    // A window of 1000 bytes is acknowledged with the total.
    server
        .feed(&message(2, 5, 0, 0, &1000u32.to_be_bytes()))
        .expect("valid");
    server.replies();
    server
        .feed(&message(4, 9, 1, 0, &picture(true, 0, 2000)))
        .expect("valid");
    let replies = server.replies();
    let total = u32::try_from(server.session.received_bytes()).expect("few");
    assert_eq!(
        (replies[0].0, &replies[0].3[..]),
        (3, &total.to_be_bytes()[..])
    );
}

#[test]
fn media_interleaves_with_the_chunks_of_a_large_picture() {
    let mut server = Server::publishing();
    server
        .feed(&message(4, 9, 1, 0, &video_configuration(AVCC)))
        .expect("valid");
    server
        .feed(&message(5, 8, 1, 0, &[&[0xAF, 0], ASC].concat()))
        .expect("valid");
    let picture = message(4, 9, 1, 10, &picture(true, 0, 300));
    server.feed(&picture[..12 + 128]).expect("valid");
    server
        .feed(&message(5, 8, 1, 11, &[0xAF, 1, 1, 2]))
        .expect("valid");
    server
        .feed(&message(2, 4, 0, 0, &[0, 6, 0, 0, 0, 0]))
        .expect("valid");
    server.feed(&picture[12 + 128..]).expect("valid");
    assert_eq!(kinds(&server.events), ["h264", "aac", "audio", "keyframe"]);
}

#[test]
fn aggregates_are_split_and_rebased() {
    let mut server = Server::publishing();
    let mut file = bytes::BytesMut::new();
    use crate::flv::writer;
    writer::aac_configuration(&mut file, 1000, ASC).expect("short");
    writer::aac_frame(&mut file, 1000, &[1, 2]).expect("short");
    writer::aac_frame(&mut file, 1021, &[3, 4]).expect("short");
    server
        .feed(&message(4, 22, 1, 50_000, &file))
        .expect("valid");
    assert_eq!(kinds(&server.events), ["aac", "audio", "audio"]);
    let times: Vec<_> = server
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Unit(unit) => Some(unit.dts.as_millis()),
            _ => None,
        })
        .collect();
    assert_eq!(times, [50_000, 50_021]);
    // The last tag's size may be missing; a tag beyond the end may not.
    server
        .feed(&message(4, 22, 1, 50_042, &file[..file.len() - 4]))
        .expect("valid");
    let short = &file[..file.len() - 5];
    assert_eq!(
        server.feed(&message(4, 22, 1, 0, short)),
        Err(Fault::Aggregate)
    );
}

#[test]
fn metadata_comes_in_any_form() {
    let object = || Value::object([("width", 640.0.into())]);
    let mut server = Server::publishing();
    for values in [
        vec!["@setDataFrame".into(), "onMetaData".into(), object()],
        vec!["onMetaData".into(), object()],
        vec!["onMetaData".into()],
        vec!["@setDataFrame".into()],
        vec![object()],
        vec!["onTextData".into(), object()],
    ] {
        server
            .feed(&message(4, 18, 1, 0, &amf(&values)))
            .expect("harmless");
    }
    server
        .feed(&message(4, 18, 1, 0, b"\x02\0\x09on"))
        .expect("harmless");
    server
        .feed(&message(4, 18, 1, 0, b"\xFF"))
        .expect("harmless");
    assert_eq!(
        kinds(&server.events),
        ["metadata", "metadata", "metadata", "data"]
    );
}

#[test]
fn configurations_and_metadata_may_not_come_at_the_rate_of_media() {
    let mut server = Server::publishing();
    let metadata = message(4, 18, 1, 0, &amf(&["onMetaData".into(), 1.0.into()]));
    for _ in 0..1000 {
        server.feed(&metadata).expect("harmless");
    }
    assert_eq!(server.events.len(), 64);
    server.now += Duration::from_secs(1);
    server.events.clear();
    let header = |asc: &[u8]| message(5, 8, 1, 0, &[&[0xAF, 0], asc].concat());
    let (one, other) = (header(ASC), header(&[0x12, 0x08]));
    for _ in 0..32 {
        server.feed(&one).expect("within the allowance");
        server.feed(&other).expect("within the allowance");
    }
    assert_eq!(server.feed(&one), Err(Fault::Configurations));
    assert_eq!(server.events.len(), 64);
}

#[test]
fn timestamps_unwrap_for_both_tracks_together() {
    let mut clock = MediaClock::default();
    for (time, unwrapped) in [
        (0xFFFF_FFF0, 0xFFFF_FFF0i64),
        (0x10, 0x1_0000_0010),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
        (0x20, 0x1_0000_0020),
        (0x0, 0x1_0000_0000),
    ] {
        assert_eq!(clock.unwrap(time), unwrapped);
    }
    let mut clock = MediaClock::default();
    assert_eq!(clock.unwrap(5), 5);
    assert_eq!(clock.unwrap(u32::MAX), -1);
}

#[test]
fn a_connection_may_publish_again() {
    let mut server = Server::publishing();
    server
        .feed(&command(
            1,
            &["closeStream".into(), 0.0.into(), Value::Null],
        ))
        .expect("valid");
    server.feed(&publish("other")).expect("valid");
    server.session.accept_publish().expect("room");
    server.drain();
    assert_eq!(kinds(&server.events), ["unpublished", "publish"]);
    assert_eq!(server.commands(), ["onStatus NetStream.Publish.Start"]);
}

#[test]
fn refusals_say_why() {
    let mut server = Server::open();
    server.feed(&connect(&[])).expect("valid");
    server.feed(&create_stream()).expect("valid");
    server.feed(&publish("demo")).expect("valid");
    server.output.clear();
    server.session.refuse_publish(Refusal::Busy);
    server.drain();
    let replies = server.replies();
    let info = &replies[0].2[3];
    assert_eq!(info.get("level"), Some(&"error".into()));
    assert_eq!(info.get("code"), Some(&"NetStream.Publish.BadName".into()));
    // What comes after the refusal is nobody's.
    server.events.clear();
    server
        .feed(&message(4, 9, 1, 0, &video_configuration(AVCC)))
        .expect("ignored");
    assert!(server.events.is_empty());
}

#[test]
fn every_fault_of_commands_has_its_name() {
    let check = |bytes: &[u8], fault: Fault| {
        let mut server = Server::open();
        assert_eq!(server.feed(bytes), Err(fault));
    };
    check(&command(0, &["connect".into()]), Fault::Command);
    check(&command(0, &["connect".into(), 1.0.into()]), Fault::Command);
    check(&command(0, &[1.0.into()]), Fault::Command);
    check(&message(3, 20, 0, 0, b""), Fault::Command);
    check(&message(3, 20, 0, 0, b"\x02\0\x09x"), Fault::Amf);
    check(&message(3, 20, 0, 0, b"\xFF"), Fault::Amf);
    check(&create_stream(), Fault::BeforeConnect);
    check(&message(2, 1, 0, 0, &[0, 0]), Fault::Control);
    check(&message(2, 1, 0, 0, &[0; 4]), Fault::ChunkSize);
    check(&message(2, 4, 0, 0, &[0]), Fault::Control);
    let nested = b"\x03\0\x01a".repeat(12_000);
    check(&message(3, 20, 0, 0, &nested), Fault::AmfDepth);
    check(&message(3, 20, 0, 0, &[5; 5000]), Fault::AmfValues);
    let mut many = vec!["x".into()];
    many.extend(std::iter::repeat_n(Value::Null, 40));
    check(&command(0, &many), Fault::CommandArguments);
    let mut server = Server::open();
    server.feed(&connect(&[])).expect("valid");
    for _ in 0..8 {
        server.feed(&create_stream()).expect("within the limit");
    }
    assert_eq!(server.feed(&create_stream()), Err(Fault::MessageStreams));
    let mut server = Server::open();
    server.feed(&connect(&[])).expect("valid");
    assert_eq!(server.feed(&publish("x")), Err(Fault::Command));
    // A peer that asks and never reads: the shell would have to hold the answers.
    let mut server = Server::publishing();
    let pings: Vec<u8> = std::iter::repeat_n(message(2, 4, 0, 0, &[0, 6, 0, 0, 0, 0]), 20_000)
        .flatten()
        .collect();
    assert_eq!(server.feed(&pings), Err(Fault::OutboundFull));
}

#[test]
fn what_is_no_rtmp_is_named() {
    for (first, foreign) in [
        (b'G', Foreign::Http),
        (0x16, Foreign::Tls),
        (6, Foreign::Rtmpe),
        (0, Foreign::Unknown),
    ] {
        let mut server = Server::new();
        assert_eq!(server.feed(&[first, 1]), Err(Fault::Handshake(foreign)));
        assert!(server.output.is_empty());
    }
}

#[test]
fn deadlines_end_what_does_not_come_to_publish() {
    let mut server = Server::new();
    server.feed(&[3]).expect("valid");
    assert_eq!(server.wait(4), Ok(()));
    assert_eq!(server.wait(1), Err(Fault::HandshakeTimeout));
    let mut server = Server::open();
    for _ in 0..14 {
        server.feed(&message(2, 99, 0, 0, b"x")).expect("harmless");
        assert_eq!(server.wait(1), Ok(()));
    }
    assert_eq!(server.wait(1), Err(Fault::PublishTimeout));
}

#[test]
fn a_silent_publisher_is_pinged_then_dropped() {
    let mut server = Server::publishing();
    assert_eq!(
        server.session.poll_timeout(),
        Some(server.now + Duration::from_secs(5))
    );
    assert_eq!(server.wait(5), Ok(()));
    assert_eq!(server.replies()[0].3, [0, 6, 0, 0, 0x13, 0x88]);
    assert_eq!(
        server.session.poll_timeout(),
        Some(server.now + Duration::from_secs(15))
    );
    server
        .feed(&message(2, 4, 0, 0, &[0, 7, 0, 0, 0x13, 0x88]))
        .expect("valid");
    assert_eq!(server.wait(19), Ok(()));
    assert_eq!(server.wait(1), Err(Fault::Silent));
}

#[test]
fn our_replies_are_what_rml_rtmp_reads() {
    let mut server = Server::open();
    server.feed(&connect(&[])).expect("valid");
    let mut reader = ChunkDeserializer::new();
    let mut input = std::mem::take(&mut server.output);
    let mut types = Vec::new();
    while let Ok(Some(message)) = reader.get_next_message(&input) {
        input = Vec::new();
        if message.type_id == 1 {
            reader.set_max_chunk_size(60_000).expect("in range");
        }
        types.push(message.type_id);
    }
    assert_eq!(types, [5, 6, 1, 20]);
}

proptest! {
    #[test]
    fn splitting_the_input_anywhere_changes_nothing(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let bytes = obs().concat();
        let mut whole = Server::new();
        whole.feed(&bytes).expect("valid");
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let (mut split, mut from) = (Server::new(), 0);
        for cut in cuts {
            split.feed(&bytes[from..cut]).expect("valid");
            from = cut;
        }
        prop_assert_eq!(split.events, whole.events);
        prop_assert_eq!(split.output.len(), whole.output.len());
    }
}
