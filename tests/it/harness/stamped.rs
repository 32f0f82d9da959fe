//! A publisher that writes the time into each picture: ffmpeg makes an FLV file, rml_rtmp sends it in real time.
//!
//! The time stands in an SEI message (ITU-T H.264 section D.1.7) in front of the picture, where the probe finds it; so
//! latency is measured from the moment of sending, through the whole cluster, to the last packet at the viewer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use headwater_media::flv::TagKind;
use headwater_media::flv::reader::{Reader, Tag};
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
};
use rml_rtmp::time::RtmpTimestamp;

use super::{now, pause};

const STAMP_UUID: [u8; 16] = *b"whepload-stamp\x01\x02";

/// A running publisher; ends when dropped.
pub(crate) struct Stamped {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Stamped {
    /// Publishes `app`/`key` at the RTMP port of this machine, over and over.
    pub(crate) fn start(port: u16, app: &str, key: &str) -> Self {
        let tags = make_clip();
        let stop = Arc::new(AtomicBool::new(false));
        let mut link = Link::open(port, app, key);
        let sender = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || link.play(&tags, &stop))
        };
        Self {
            stop,
            sender: Some(sender),
        }
    }
}

impl Drop for Stamped {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

/// Four seconds of picture and tone. Made anew for each test: no media lies in the repository.
fn make_clip() -> Vec<Tag> {
    let directory = tempfile::tempdir().expect("a directory for the clip");
    let path = directory.path().join("clip.flv");
    let status = Command::new("ffmpeg")
        .args(["-nostdin", "-loglevel", "error", "-t", "4"])
        .args([
            "-f",
            "lavfi",
            "-i",
            "testsrc2=size=640x360:rate=30",
            "-t",
            "4",
        ])
        .args(["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"])
        .args([
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-tune",
            "zerolatency",
            "-bf",
            "0",
        ])
        .args([
            "-g",
            "30",
            "-sc_threshold",
            "0",
            "-pix_fmt",
            "yuv420p",
            "-b:v",
            "1000k",
        ])
        .args([
            "-c:a",
            "aac",
            "-ac",
            "2",
            "-b:a",
            "96k",
            "-shortest",
            "-f",
            "flv",
        ])
        .arg(&path)
        .status()
        .expect("ffmpeg runs");
    assert!(status.success(), "ffmpeg made no clip");
    let mut reader = Reader::new(1 << 20);
    reader.handle_input(&std::fs::read(&path).expect("the clip can be read"));
    let mut tags = Vec::new();
    while let Some(tag) = reader.poll_tag().expect("ffmpeg writes FLV") {
        if tag.kind != TagKind::Script {
            tags.push(tag);
        }
    }
    tags
}

struct Link {
    stream: TcpStream,
    session: ClientSession,
    accepted: bool,
    publishing: bool,
}

impl Link {
    fn open(port: u16, app: &str, key: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the origin listens");
        stream.set_nodelay(true).expect("TCP_NODELAY");
        let mut handshake = Handshake::new(PeerType::Client);
        let hello = handshake.generate_outbound_p0_and_p1().expect("a hello");
        stream.write_all(&hello).expect("sent");
        let mut buffer = vec![0; 64 * 1024];
        let rest = loop {
            let count = stream.read(&mut buffer).expect("the origin answers");
            match handshake
                .process_bytes(&buffer[..count])
                .expect("a handshake")
            {
                HandshakeProcessResult::InProgress { response_bytes } => {
                    stream.write_all(&response_bytes).expect("sent");
                }
                HandshakeProcessResult::Completed {
                    response_bytes,
                    remaining_bytes,
                } => {
                    stream.write_all(&response_bytes).expect("sent");
                    break remaining_bytes;
                }
            }
        };
        let (session, results) =
            ClientSession::new(ClientSessionConfig::new()).expect("a client session");
        let mut link = Self {
            stream,
            session,
            accepted: false,
            publishing: false,
        };
        link.perform(results);
        let results = link.session.handle_input(&rest).expect("valid chunks");
        link.perform(results);
        let request = link.session.request_connection(app.to_owned());
        link.perform(vec![request.expect("connect")]);
        while !link.accepted {
            link.read(&mut buffer);
        }
        let request = link
            .session
            .request_publishing(key.to_owned(), PublishRequestType::Live);
        link.perform(vec![request.expect("publish")]);
        while !link.publishing {
            link.read(&mut buffer);
        }
        link
    }

    fn read(&mut self, buffer: &mut [u8]) {
        let count = self.stream.read(buffer).expect("the origin answers");
        assert!(count > 0, "the origin closed the connection");
        let results = self.session.handle_input(&buffer[..count]);
        self.perform(results.expect("valid chunks"));
    }

    fn perform(&mut self, results: Vec<ClientSessionResult>) {
        for result in results {
            match result {
                ClientSessionResult::OutboundResponse(packet) => {
                    self.stream.write_all(&packet.bytes).expect("sent");
                }
                ClientSessionResult::RaisedEvent(ClientSessionEvent::ConnectionRequestAccepted) => {
                    self.accepted = true;
                }
                ClientSessionResult::RaisedEvent(ClientSessionEvent::PublishRequestAccepted) => {
                    self.publishing = true;
                }
                ClientSessionResult::RaisedEvent(
                    ClientSessionEvent::ConnectionRequestRejected { description },
                ) => panic!("refused: {description}"),
                _ => {}
            }
        }
    }

    /// Sends the clip in real time, again and again on one timeline. Ends with `stop` or the connection.
    fn play(&mut self, tags: &[Tag], stop: &AtomicBool) {
        let start = now();
        let round = tags.iter().map(|tag| tag.millis).max().unwrap_or(0) + 33;
        for repeat in 0_u32.. {
            for tag in tags {
                // The configurations need sending only once; they are equal in each round.
                if repeat > 0 && tag.body.get(1) == Some(&0) {
                    continue;
                }
                let millis = repeat * round + tag.millis;
                let due = start + Duration::from_millis(u64::from(millis));
                pause(due.saturating_duration_since(now()));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let time = RtmpTimestamp::new(millis);
                let result = if tag.kind == TagKind::Video {
                    let body = stamp(&tag.body);
                    self.session.publish_video_data(body, time, false)
                } else {
                    let body = tag.body.clone();
                    self.session.publish_audio_data(body, time, false)
                };
                let Ok(ClientSessionResult::OutboundResponse(packet)) = result else {
                    return;
                };
                if self.stream.write_all(&packet.bytes).is_err() {
                    return;
                }
            }
        }
    }
}

/// A video tag with the present time in front of its picture; other tags as they are.
#[expect(
    clippy::disallowed_methods,
    reason = "the stamp is the wall clock's time"
)]
fn stamp(body: &Bytes) -> Bytes {
    const HEADER_BYTES: usize = 5;
    // Legacy FLV: codec 7 (AVC), packet type 1 (NAL units).
    if body.len() < HEADER_BYTES || body[0] & 0xf != 7 || body[1] != 1 {
        return body.clone();
    }
    let unix = std::time::SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is set");
    let micros = u64::try_from(unix.as_micros()).expect("in this millennium");
    let mut nal = vec![6, 5, 24];
    nal.extend_from_slice(&STAMP_UUID);
    let mut zeros = 0;
    for byte in micros.to_be_bytes() {
        if zeros >= 2 && byte <= 3 {
            nal.push(3);
            zeros = 0;
        }
        zeros = if byte == 0 { zeros + 1 } else { 0 };
        nal.push(byte);
    }
    nal.push(0x80);
    let mut stamped = BytesMut::with_capacity(body.len() + nal.len() + 4);
    stamped.put_slice(&body[..HEADER_BYTES]);
    stamped.put_u32(u32::try_from(nal.len()).expect("short"));
    stamped.put_slice(&nal);
    stamped.put_slice(&body[HEADER_BYTES..]);
    stamped.freeze()
}
