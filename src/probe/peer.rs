//! The viewer's end of the connection: a full `webrtc` PeerConnection that turns into one channel of events.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_node::clock::Clock;
use rtc::interceptor::Slot;
use rtc::peer_connection::configuration::media_engine::{
    MIME_TYPE_H264, MIME_TYPE_OPUS, MIME_TYPE_RTX,
};
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtp_transceiver::rtp_sender::{
    RTCPFeedback, RTCRtpCodec, RTCRtpCodecParameters, RTCRtpHeaderExtensionCapability, RtpCodecKind,
};
use rtc::rtp_transceiver::{RTCRtpTransceiverDirection, RTCRtpTransceiverInit};
use tokio::sync::{mpsc, watch};
use webrtc::media_stream::track_remote::{TrackRemote, TrackRemoteEvent};
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler,
    RTCConfigurationBuilder, RTCIceCandidateInit, RTCIceConnectionState, RTCIceGatheringState,
    RTCPeerConnectionState, RTCSessionDescription, Registry, SettingEngineBuilder,
    register_default_interceptors,
};

use super::Transport;
use super::observer::{Observer, Seen};

/// The header extension that carries when a picture was captured.
pub(super) const CAPTURE_TIME_URI: &str =
    "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
/// Events that wait for the probe (count): two seconds of 2000 packets/s. More are dropped and look like loss.
const EVENTS_MAX: usize = 4096;
/// Gathering host candidates is local work; without them in the offer an ICE-lite server works too.
const GATHER_TIMEOUT: Duration = Duration::from_millis(500);

/// What happens on the connection.
#[derive(Debug)]
pub(super) enum Event {
    /// ICE found a way.
    IceConnected(Instant),
    /// DTLS is through: media can flow.
    Connected(Instant),
    /// The connection ended or will not come up; the text says which.
    Lost(&'static str),
    /// An RTP packet, retransmissions unwrapped already.
    Packet {
        at: Instant,
        kind: Kind,
        packet: Box<rtc::rtp::Packet>,
    },
}

/// Which of the two tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Video,
    Audio,
}

/// The video track and its SSRC, once they are there.
type VideoTrack = Option<(Arc<dyn TrackRemote>, u32)>;

/// The connection. Close it when done.
pub(super) struct Peer {
    connection: Arc<dyn PeerConnection>,
    video: watch::Receiver<VideoTrack>,
    gathered: watch::Receiver<bool>,
    transport: Transport,
}

impl Peer {
    /// A connection that offers to receive H.264 and Opus, and the channel of its events.
    pub(super) async fn new(
        clock: &Clock,
        server: &str,
        transport: Transport,
        seen: Seen,
    ) -> webrtc::error::Result<(Self, mpsc::Receiver<Event>)> {
        let mut engine = media_engine()?;
        let registry = register_default_interceptors(Registry::new(), &mut engine)?
            // The slot nearest to the wire. Nothing else of ours sits there.
            .with(Slot::CongestionControl, Observer::new(seen));
        let settings = SettingEngineBuilder::new()
            .with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled)
            .with_include_loopback_candidate(true)
            .build();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (gathered_sender, gathered) = watch::channel(false);
        let (video_sender, video) = watch::channel(None);
        let handler = Handler {
            clock: clock.clone(),
            events,
            gathered: gathered_sender,
            video: video_sender,
        };
        let (udp, tcp) = match transport {
            Transport::Udp => (local_addresses(server), Vec::new()),
            Transport::Tcp => (Vec::new(), local_addresses(server)),
        };
        let building = PeerConnectionBuilder::new()
            .with_configuration(RTCConfigurationBuilder::new().build())
            .with_media_engine(engine)
            .with_setting_engine(settings)
            .with_interceptor_registry(registry)
            .with_handler(Arc::new(handler))
            .with_udp_addrs(udp)
            .with_tcp_addrs(tcp)
            .build();
        // 20 kB of future belong on the heap.
        let connection: Arc<dyn PeerConnection> = Arc::new(Box::pin(building).await?);
        for kind in [RtpCodecKind::Video, RtpCodecKind::Audio] {
            let init = RTCRtpTransceiverInit {
                direction: RTCRtpTransceiverDirection::Recvonly,
                ..Default::default()
            };
            connection
                .add_transceiver_from_kind(kind, Some(init))
                .await?;
        }
        let peer = Self {
            connection,
            video,
            gathered,
            transport,
        };
        Ok((peer, receiver))
    }

    /// The offer, with the host candidates in it.
    pub(super) async fn offer(&mut self) -> webrtc::error::Result<String> {
        let offer = self.connection.create_offer(None).await?;
        let fallback = offer.sdp.clone();
        self.connection.set_local_description(offer).await?;
        let _ = tokio::time::timeout(GATHER_TIMEOUT, self.gathered.wait_for(|done| *done)).await;
        let sdp = self.connection.local_description().await;
        Ok(sdp.map_or(fallback, |description| description.sdp))
    }

    /// Takes the server's answer, which starts ICE.
    pub(super) async fn answer(&self, sdp: String) -> webrtc::error::Result<()> {
        if self.transport == Transport::Udp {
            let answer = RTCSessionDescription::answer(sdp)?;
            return self.connection.set_remote_description(answer).await;
        }
        // `webrtc` connects only to passive candidates that are trickled.
        let (candidates, rest): (Vec<_>, Vec<_>) = sdp
            .lines()
            .partition(|line| line.starts_with("a=candidate:") || *line == "a=end-of-candidates");
        let mut description = rest.join("\r\n");
        description.push_str("\r\n");
        let answer = RTCSessionDescription::answer(description)?;
        self.connection.set_remote_description(answer).await?;
        for line in candidates.iter().filter(|line| line.contains(" tcp ")) {
            let candidate = RTCIceCandidateInit {
                candidate: line.trim_start_matches("a=").to_owned(),
                sdp_mline_index: Some(0),
                ..Default::default()
            };
            self.connection.add_ice_candidate(candidate).await?;
        }
        Ok(())
    }

    /// Asks for a keyframe, as a decoder does that cannot go on.
    pub(super) async fn request_keyframe(&self) {
        let video = self.video.borrow().clone();
        if let Some((track, media_ssrc)) = video {
            let request = PictureLossIndication {
                sender_ssrc: 0,
                media_ssrc,
            };
            // A connection that just went away is reported by its own event.
            let _ = track.write_rtcp(vec![Box::new(request)]).await;
        }
    }

    /// Closes the connection.
    pub(super) async fn close(&self) {
        let _ = self.connection.close().await;
    }
}

/// A wildcard stands for every interface but loopback, which a server on this machine may need.
fn local_addresses(server: &str) -> Vec<String> {
    let host = server.trim_start_matches('[').trim_end_matches(']');
    let ip: Option<IpAddr> = host.parse().ok();
    let loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
    let v6 = ip.is_some_and(|ip| ip.is_ipv6());
    match (v6, loopback) {
        (false, true) => vec!["127.0.0.1:0".to_owned()],
        (false, false) => vec!["0.0.0.0:0".to_owned()],
        (true, true) => vec!["[::1]:0".to_owned(), "127.0.0.1:0".to_owned()],
        (true, false) => vec!["[::]:0".to_owned(), "0.0.0.0:0".to_owned()],
    }
}

/// H.264 as browsers offer it (two profiles, packetization-mode 1, RTX each) and Opus in stereo.
fn media_engine() -> webrtc::error::Result<MediaEngine> {
    let mut engine = MediaEngine::default();
    let feedback = ["nack", "nack pli", "ccm fir", "goog-remb"].map(|text| {
        let (typ, parameter) = text.split_once(' ').unwrap_or((text, ""));
        RTCPFeedback {
            typ: typ.to_owned(),
            parameter: parameter.to_owned(),
        }
    });
    let video = |mime_type: &str, fmtp: String, feedback: &[RTCPFeedback]| RTCRtpCodec {
        mime_type: mime_type.to_owned(),
        clock_rate: 90_000,
        channels: 0,
        sdp_fmtp_line: fmtp,
        rtcp_feedback: feedback.to_vec(),
    };
    for (payload_type, profile) in [(102, "42e01f"), (104, "4d001f"), (106, "64001f")] {
        let fmtp =
            format!("level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}");
        let media = RTCRtpCodecParameters {
            rtp_codec: video(MIME_TYPE_H264, fmtp, &feedback),
            payload_type,
        };
        let repair = RTCRtpCodecParameters {
            rtp_codec: video(MIME_TYPE_RTX, format!("apt={payload_type}"), &[]),
            payload_type: payload_type + 1,
        };
        engine.register_codec(media, RtpCodecKind::Video)?;
        engine.register_codec(repair, RtpCodecKind::Video)?;
    }
    let audio = RTCRtpCodecParameters {
        rtp_codec: RTCRtpCodec {
            mime_type: MIME_TYPE_OPUS.to_owned(),
            clock_rate: 48_000,
            channels: 2,
            sdp_fmtp_line: "minptime=10;useinbandfec=1;stereo=1".to_owned(),
            rtcp_feedback: Vec::new(),
        },
        payload_type: 111,
    };
    engine.register_codec(audio, RtpCodecKind::Audio)?;
    let capture_time = RTCRtpHeaderExtensionCapability {
        uri: CAPTURE_TIME_URI.to_owned(),
    };
    engine.register_header_extension(capture_time, RtpCodecKind::Video, None)?;
    Ok(engine)
}

struct Handler {
    clock: Clock,
    events: mpsc::Sender<Event>,
    gathered: watch::Sender<bool>,
    video: watch::Sender<VideoTrack>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.gathered.send_replace(true);
        }
    }

    async fn on_ice_connection_state_change(&self, state: RTCIceConnectionState) {
        if state == RTCIceConnectionState::Connected {
            let _ = self.events.try_send(Event::IceConnected(self.clock.now()));
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let event = match state {
            RTCPeerConnectionState::Connected => Event::Connected(self.clock.now()),
            RTCPeerConnectionState::Failed => Event::Lost("the peer connection failed"),
            RTCPeerConnectionState::Closed => Event::Lost("the peer connection was closed"),
            _ => return,
        };
        let _ = self.events.send(event).await;
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        let kind = match track.kind().await {
            RtpCodecKind::Video => Kind::Video,
            RtpCodecKind::Audio => Kind::Audio,
            _ => return,
        };
        if kind == Kind::Video
            && let Some(ssrc) = track.ssrcs().await.first()
        {
            self.video.send_replace(Some((Arc::clone(&track), *ssrc)));
        }
        let (clock, events) = (self.clock.clone(), self.events.clone());
        tokio::spawn(async move {
            while let Some(event) = track.poll().await {
                match event {
                    TrackRemoteEvent::OnRtpPacket(packet) => {
                        let event = Event::Packet {
                            at: clock.now(),
                            kind,
                            packet: Box::new(packet),
                        };
                        if events.try_send(event).is_err() && events.is_closed() {
                            return;
                        }
                    }
                    TrackRemoteEvent::OnEnded | TrackRemoteEvent::OnError => return,
                    _ => {}
                }
            }
        });
    }
}

/// The id under which an answer accepts a header extension in its video section.
pub(super) fn extension_id(answer: &str, uri: &str) -> Option<u8> {
    let section = answer
        .split("\nm=")
        .find(|part| part.starts_with("video"))?;
    section.lines().find_map(|line| {
        let (id, rest) = line.trim().strip_prefix("a=extmap:")?.split_once(' ')?;
        let id = id.split('/').next()?;
        (rest.split(' ').next() == Some(uri)).then(|| id.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_ids_come_from_the_video_section() {
        let answer = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=extmap:3 urn:x\r\n\
                      m=video 9 UDP/TLS/RTP/SAVPF 102\r\na=extmap:5/sendonly urn:x\r\na=extmap:6 urn:y z\r\n";
        assert_eq!(extension_id(answer, "urn:x"), Some(5));
        assert_eq!(extension_id(answer, "urn:y"), Some(6));
        assert_eq!(extension_id(answer, "urn:z"), None);
        assert_eq!(extension_id("v=0\r\n", "urn:x"), None);
    }

    #[test]
    fn loopback_servers_are_met_on_loopback() {
        assert_eq!(local_addresses("127.0.0.1"), ["127.0.0.1:0"]);
        assert_eq!(local_addresses("[::1]"), ["[::1]:0", "127.0.0.1:0"]);
        assert_eq!(local_addresses("edge.example"), ["0.0.0.0:0"]);
    }
}
