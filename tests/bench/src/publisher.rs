//! A publisher that writes the time into each picture: clips over and over by RTMP, in real time, one or several tracks.
//!
//! The time stands in an SEI message in front of the picture ([`stamp`]), where viewers find it; so latency is measured from
//! the moment of sending, through the whole cluster, to the last packet at the viewer.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use headwater_media::codec::h264::stamp;
use headwater_media::flv::TagKind;
use rml_rtmp::handshake::{Handshake, HandshakeProcessResult, PeerType};
use rml_rtmp::sessions::{
    ClientSession, ClientSessionConfig, ClientSessionEvent, ClientSessionResult, PublishRequestType,
};
use rml_rtmp::time::RtmpTimestamp;

use crate::clip::Clip;
use crate::programme::{Layout, Message, Programme};
use crate::time::{now, pause, wall};

/// How long a server may take to answer while the connection is made.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Pictures that are remembered (count): half a minute of them.
const SENT_MAX: usize = 1024;

/// Stamps that are remembered (count): two hours of 30 pictures a second.
const STAMPS_MAX: usize = 216_000;

/// Where to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address, and port.
    pub host: String,
    /// The application.
    pub app: String,
    /// The stream's key, with its query if it has one.
    pub key: String,
}

impl FromStr for Target {
    type Err = anyhow::Error;

    /// From `rtmp://host[:port]/app/key[?query]`.
    fn from_str(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("rtmp://");
        let rest = rest.context("a URL is rtmp://host[:port]/app/key")?;
        let mut parts = rest.splitn(3, '/');
        let (Some(host), Some(app), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("a URL is rtmp://host[:port]/app/key");
        };
        let host = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:1935")
        };
        Ok(Self {
            host,
            app: app.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// How to publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Write the time into each picture.
    pub stamp: bool,
    /// Begin again at the end, on one timeline.
    pub repeat: bool,
}

/// A running publisher; ends when dropped.
#[derive(Debug)]
pub struct Publisher {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<VecDeque<Sent>>>,
    sender: Option<JoinHandle<()>>,
    stamps: Stamps,
}

/// A picture that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Its number since the beginning.
    pub number: usize,
    /// The wall clock when it was handed to the socket (since the Unix epoch).
    pub at: Duration,
}

/// What was written into pictures that were sent (µs of Unix time), oldest first.
type Stamps = Arc<Mutex<VecDeque<u64>>>;

impl Publisher {
    /// Publishes `app`/`key` at the RTMP port of this machine, over and over.
    ///
    /// # Errors
    /// If nobody listens there, or the server refuses.
    pub fn start(port: u16, app: &str, key: &str, clip: Clip) -> Result<Self> {
        let target = Target {
            host: format!("127.0.0.1:{port}"),
            app: app.to_owned(),
            key: key.to_owned(),
        };
        let options = Options {
            stamp: true,
            repeat: true,
        };
        let programme = Programme::new(vec![clip], Layout::default())?;
        Self::publish(&target, programme, options)
    }

    /// Publishes.
    ///
    /// # Errors
    /// If nobody listens there, or the server refuses.
    pub fn publish(target: &Target, programme: Programme, options: Options) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stamps = Stamps::default();
        let mut link = Link::open(target, Arc::clone(&stamps))?;
        let sent = Arc::new(Mutex::new(VecDeque::new()));
        let sender = {
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            std::thread::Builder::new()
                .name("publisher".to_owned())
                .spawn(move || link.play(&programme, options, &stop, &sent))?
        };
        Ok(Self {
            stop,
            sent,
            sender: Some(sender),
            stamps,
        })
    }

    /// The pictures of a single track that it sent in the last half minute.
    ///
    /// # Panics
    /// If its thread did.
    pub fn sent(&self) -> Vec<Sent> {
        let sent = self.sent.lock().expect("the publisher's thread lives");
        sent.iter().copied().collect()
    }

    /// What stands in the pictures that it sent (µs of Unix time): the newest 216,000, oldest first.
    pub fn stamps(&self) -> Vec<u64> {
        let stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
        stamps.iter().copied().collect()
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
    stamps: Stamps,
}

impl Link {
    fn open(target: &Target, stamps: Stamps) -> Result<Self> {
        let mut stream = TcpStream::connect(&target.host).context("no RTMP server listens")?;
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
            stamps,
        };
        link.perform(results)?;
        link.input(&rest)?;
        let request = link
            .session
            .request_connection(target.app.clone())
            .map_err(|error| anyhow!("{error:?}"))?;
        link.perform(vec![request])?;
        while !link.accepted {
            link.read(&mut buffer)?;
        }
        let request = link
            .session
            .request_publishing(target.key.clone(), PublishRequestType::Live)
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

    /// Sends it in real time. Ends with `stop` or the connection.
    fn play(
        &mut self,
        programme: &Programme,
        options: Options,
        stop: &AtomicBool,
        sent: &Mutex<VecDeque<Sent>>,
    ) {
        let start = now();
        let mut number = 0;
        for round in 0_u32.. {
            if round > 0 && !options.repeat {
                return;
            }
            for message in &programme.messages {
                // The configurations need sending only once; they are equal in each round.
                if round > 0 && message.configuration {
                    continue;
                }
                let millis = round * programme.millis + message.millis;
                let due = start + Duration::from_millis(u64::from(millis));
                pause(due.saturating_duration_since(now()));
                let at = wall();
                let done = self.send(message, millis, options.stamp);
                if stop.load(Ordering::Relaxed) || done.is_none() {
                    return;
                }
                if message.is_picture() {
                    let Ok(mut sent) = sent.lock() else { return };
                    if sent.len() >= SENT_MAX {
                        sent.pop_front();
                    }
                    sent.push_back(Sent { number, at });
                    number += 1;
                }
            }
        }
    }

    fn send(&mut self, message: &Message, millis: u32, stamp: bool) -> Option<()> {
        let time = RtmpTimestamp::new(millis);
        let written = stamp.then(|| u64::try_from(wall().as_micros()).unwrap_or(u64::MAX));
        let nal = written.map(stamp::write);
        let body = message.write(nal.as_deref());
        let result = if message.kind == TagKind::Video {
            self.session.publish_video_data(body, time, false)
        } else {
            self.session.publish_audio_data(body, time, false)
        };
        let Ok(ClientSessionResult::OutboundResponse(packet)) = result else {
            return None;
        };
        self.stream.write_all(&packet.bytes).ok()?;
        if let Some(written) = written.filter(|_| message.is_picture()) {
            let mut stamps = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if stamps.len() == STAMPS_MAX {
                stamps.pop_front();
            }
            stamps.push_back(written);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_host_application_and_key() {
        let target = |url: &str| url.parse::<Target>().ok();
        let parts = |host: &str, app: &str, key: &str| {
            Some(Target {
                host: host.to_owned(),
                app: app.to_owned(),
                key: key.to_owned(),
            })
        };
        for (url, expected) in [
            ("rtmp://h/live/x", parts("h:1935", "live", "x")),
            (
                "rtmp://h:1/live/x?token=a/b",
                parts("h:1", "live", "x?token=a/b"),
            ),
            ("rtmp://h/live", None),
            ("http://h/live/x", None),
        ] {
            assert_eq!(target(url), expected, "{url}");
        }
    }
}
