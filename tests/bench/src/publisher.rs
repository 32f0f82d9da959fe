//! A publisher that writes the time into each picture: a clip over and over by RTMP, in real time.
//!
//! The time stands in an SEI message in front of the picture ([`stamp`]), where viewers find it; so latency is measured from
//! the moment of sending, through the whole cluster, to the last packet at the viewer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use headwater_media::codec::h264::stamp;
use headwater_media::flv::TagKind;
use headwater_media::flv::reader::Tag;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
};
use rml_rtmp::time::RtmpTimestamp;

use crate::clip::{Clip, is_picture};
use crate::time::{now, pause, wall};

/// How long a server may take to answer while the connection is made.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A running publisher; ends when dropped.
#[derive(Debug)]
pub struct Publisher {
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Publishes `app`/`key` at the RTMP port of this machine, over and over.
    ///
    /// # Errors
    /// If nobody listens there, or the server refuses.
    pub fn start(port: u16, app: &str, key: &str, clip: Clip) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut link = Link::open(port, app, key)?;
        let sender = {
            let stop = Arc::clone(&stop);
            std::thread::Builder::new()
                .name("publisher".to_owned())
                .spawn(move || link.play(&clip, &stop))?
        };
        Ok(Self {
            stop,
            sender: Some(sender),
        })
    }

    /// Whether it still publishes.
    pub fn running(&self) -> bool {
        self.sender
            .as_ref()
            .is_some_and(|sender| !sender.is_finished())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

struct Link {
    stream: TcpStream,
    session: ClientSession,
    accepted: bool,
    publishing: bool,
}

impl Link {
    fn open(port: u16, app: &str, key: &str) -> Result<Self> {
        let mut stream =
            TcpStream::connect(("127.0.0.1", port)).context("no RTMP server listens")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut handshake = Handshake::new(PeerType::Client);
        let hello = handshake
            .generate_outbound_p0_and_p1()
            .map_err(|error| anyhow!("{error:?}"))?;
        stream.write_all(&hello)?;
        let mut buffer = vec![0; 64 * 1024];
        let rest = loop {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "closed during the handshake");
            match handshake
                .process_bytes(&buffer[..count])
                .map_err(|error| anyhow!("{error:?}"))?
            {
                HandshakeProcessResult::InProgress { response_bytes } => {
                    stream.write_all(&response_bytes)?;
                }
                HandshakeProcessResult::Completed {
                    response_bytes,
                    remaining_bytes,
                } => {
                    stream.write_all(&response_bytes)?;
                    break remaining_bytes;
                }
            }
        };
        let (session, results) =
            ClientSession::new(ClientSessionConfig::new()).map_err(|error| anyhow!("{error:?}"))?;
        let mut link = Self {
            stream,
            session,
            accepted: false,
            publishing: false,
        };
        link.perform(results)?;
        link.input(&rest)?;
        let request = link
            .session
            .request_connection(app.to_owned())
            .map_err(|error| anyhow!("{error:?}"))?;
        link.perform(vec![request])?;
        while !link.accepted {
            link.read(&mut buffer)?;
        }
        let request = link
            .session
            .request_publishing(key.to_owned(), PublishRequestType::Live)
            .map_err(|error| anyhow!("{error:?}"))?;
        link.perform(vec![request])?;
        while !link.publishing {
            link.read(&mut buffer)?;
        }
        Ok(link)
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        let count = self.stream.read(buffer).context("no answer")?;
        ensure!(count > 0, "the origin closed the connection");
        self.input(&buffer[..count])
    }

    fn input(&mut self, bytes: &[u8]) -> Result<()> {
        let results = self.session.handle_input(bytes);
        self.perform(results.map_err(|error| anyhow!("{error:?}"))?)
    }

    fn perform(&mut self, results: Vec<ClientSessionResult>) -> Result<()> {
        for result in results {
            match result {
                ClientSessionResult::OutboundResponse(packet) => {
                    self.stream.write_all(&packet.bytes)?;
                }
                ClientSessionResult::RaisedEvent(ClientSessionEvent::ConnectionRequestAccepted) => {
                    self.accepted = true;
                }
                ClientSessionResult::RaisedEvent(ClientSessionEvent::PublishRequestAccepted) => {
                    self.publishing = true;
                }
                ClientSessionResult::RaisedEvent(
                    ClientSessionEvent::ConnectionRequestRejected { description },
                ) => bail!("refused: {description}"),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends the clip in real time, again and again on one timeline. Ends with `stop` or the connection.
    fn play(&mut self, clip: &Clip, stop: &AtomicBool) {
        let start = now();
        for round in 0_u32.. {
            for tag in &clip.tags {
                // The configurations need sending only once; they are equal in each round.
                if round > 0 && tag.body.get(1) == Some(&0) {
                    continue;
                }
                let millis = round * clip.millis + tag.millis;
                let due = start + Duration::from_millis(u64::from(millis));
                pause(due.saturating_duration_since(now()));
                if stop.load(Ordering::Relaxed) || self.send(tag, millis).is_none() {
                    return;
                }
            }
        }
    }

    fn send(&mut self, tag: &Tag, millis: u32) -> Option<()> {
        let time = RtmpTimestamp::new(millis);
        let result = if tag.kind == TagKind::Video {
            let body = if is_picture(tag) {
                stamped(&tag.body)
            } else {
                tag.body.clone()
            };
            self.session.publish_video_data(body, time, false)
        } else {
            self.session
                .publish_audio_data(tag.body.clone(), time, false)
        };
        let Ok(ClientSessionResult::OutboundResponse(packet)) = result else {
            return None;
        };
        self.stream.write_all(&packet.bytes).ok()?;
        // Acknowledgements and pings that nobody reads would fill the socket in the end.
        self.drain()
    }

    fn drain(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        self.stream.set_nonblocking(true).ok()?;
        let read = self.stream.read(&mut buffer);
        self.stream.set_nonblocking(false).ok()?;
        match read {
            Ok(0) => None,
            Ok(count) => self.input(&buffer[..count]).ok(),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Some(()),
            Err(_) => None,
        }
    }
}

/// The body of a picture's tag with the present time in front of the picture. NAL units have 4-byte lengths in ffmpeg's FLV.
fn stamped(body: &Bytes) -> Bytes {
    const HEADER_BYTES: usize = 5;
    let nal = stamp::write(u64::try_from(wall().as_micros()).unwrap_or(u64::MAX));
    let mut out = BytesMut::with_capacity(body.len() + nal.len() + 4);
    let (header, picture) = body.split_at(HEADER_BYTES.min(body.len()));
    out.put_slice(header);
    out.put_u32(u32::try_from(nal.len()).unwrap_or(0));
    out.put_slice(&nal);
    out.put_slice(picture);
    out.freeze()
}
