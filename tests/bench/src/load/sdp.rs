//! The offer of a viewer that only watches, and what it needs of the answer.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Result, bail};

/// The header extension that numbers packets across SSRCs, and its feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01).
const TRANSPORT_SEQUENCE: &str =
    "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
/// What Chromium offers beside it, and what our player asks for.
const MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
const CAPTURE_TIME: &str = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";

/// H.264 payload types of the offer, each followed by its RTX, with the profiles Chromium has.
const VIDEO_TYPES: [(u8, &str); 3] = [(102, "42e01f"), (104, "4d001f"), (106, "64001f")];
const AUDIO_TYPE: u8 = 111;

/// What a viewer brings.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    pub(crate) port: u16,
    pub(crate) ufrag: &'a str,
    pub(crate) pwd: &'a str,
    /// SHA-256 of the certificate.
    pub(crate) fingerprint: &'a [u8],
    /// With transport-wide feedback, as browsers offer it.
    pub(crate) transport_cc: bool,
}

impl Offer<'_> {
    /// As text.
    pub(crate) fn write(&self) -> String {
        let fingerprint: Vec<String> = self
            .fingerprint
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let fingerprint = fingerprint.join(":");
        let mut extensions = String::new();
        if self.transport_cc {
            for (id, uri) in [(4, TRANSPORT_SEQUENCE), (9, MID), (12, CAPTURE_TIME)] {
                let _ = write!(extensions, "a=extmap:{id} {uri}\r\n");
            }
        }
        let feedback = |payload_type: u8| match self.transport_cc {
            true => format!("a=rtcp-fb:{payload_type} transport-cc\r\n"),
            false => String::new(),
        };
        let (port, ufrag, pwd) = (self.port, self.ufrag, self.pwd);
        let common = format!(
            "c=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n\
             a=candidate:1 1 udp 2130706431 127.0.0.1 {port} typ host\r\na=end-of-candidates\r\n\
             a=ice-ufrag:{ufrag}\r\na=ice-pwd:{pwd}\r\na=fingerprint:sha-256 {fingerprint}\r\n\
             a=setup:actpass\r\na=recvonly\r\na=rtcp-mux\r\na=rtcp-rsize\r\n{extensions}"
        );
        let types: Vec<String> = VIDEO_TYPES
            .iter()
            .map(|(video, _)| format!("{video} {}", video + 1))
            .collect();
        let mut out = format!(
            "v=0\r\no=- {port} 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n\
             m=audio 9 UDP/TLS/RTP/SAVPF {AUDIO_TYPE}\r\n{common}a=mid:0\r\n\
             a=rtpmap:{AUDIO_TYPE} opus/48000/2\r\n{}a=fmtp:{AUDIO_TYPE} minptime=10;useinbandfec=1\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF {}\r\n{common}a=mid:1\r\n",
            feedback(AUDIO_TYPE),
            types.join(" "),
        );
        for (video, profile) in VIDEO_TYPES {
            let rtx = video + 1;
            let _ = write!(
                out,
                "a=rtpmap:{video} H264/90000\r\n{}a=rtcp-fb:{video} ccm fir\r\n\
                 a=rtcp-fb:{video} nack\r\na=rtcp-fb:{video} nack pli\r\n\
                 a=fmtp:{video} level-asymmetry-allowed=1;packetization-mode=1;profile-level-id={profile}\r\n\
                 a=rtpmap:{rtx} rtx/90000\r\na=fmtp:{rtx} apt={video}\r\n",
                feedback(video),
            );
        }
        out
    }
}

/// What a payload type carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Video,
    Audio,
    /// Retransmissions, and what nobody asked for.
    Other,
}

/// What the server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ufrag: String,
    pub(crate) pwd: String,
    /// Where it takes UDP.
    pub(crate) candidate: SocketAddr,
    /// Id of the transport-wide sequence number, if it will be sent.
    pub(crate) transport_sequence: Option<u8>,
    video: Option<u8>,
}

impl Answer {
    /// Reads an answer.
    ///
    /// # Errors
    /// If it lacks credentials, a candidate that can be reached here, or the video.
    pub(crate) fn parse(sdp: &str) -> Result<Self> {
        let (mut ufrag, mut pwd, mut candidate) = (None, None, None);
        let (mut transport_sequence, mut video) = (None, None);
        for line in sdp.lines() {
            if let Some(media) = line.strip_prefix("m=video ") {
                let mut fields = media.split_ascii_whitespace();
                let refused = fields.next() == Some("0");
                // The first payload type is the one that will be sent.
                video = fields.nth(1).filter(|_| !refused);
            }
            let Some((name, value)) = line.strip_prefix("a=").and_then(|a| a.split_once(':'))
            else {
                continue;
            };
            match name {
                "ice-ufrag" => ufrag = Some(value),
                "ice-pwd" => pwd = Some(value),
                "candidate" if candidate.is_none() => candidate = udp_candidate(value),
                "extmap" => {
                    let (id, uri) = value.split_once(' ').unwrap_or_default();
                    if uri == TRANSPORT_SEQUENCE {
                        transport_sequence = id.split('/').next().and_then(|id| id.parse().ok());
                    }
                }
                _ => {}
            }
        }
        let (Some(ufrag), Some(pwd), Some(candidate)) = (ufrag, pwd, candidate) else {
            bail!("the answer lacks ICE credentials or a UDP candidate");
        };
        let Some(video) = video.and_then(|video| video.parse().ok()) else {
            bail!("the answer has no video");
        };
        Ok(Self {
            ufrag: ufrag.to_owned(),
            pwd: pwd.to_owned(),
            candidate,
            transport_sequence,
            video: Some(video),
        })
    }

    /// What packets of this type are.
    pub(crate) fn kind(&self, payload_type: u8) -> Kind {
        match payload_type {
            AUDIO_TYPE => Kind::Audio,
            other if Some(other) == self.video => Kind::Video,
            _ => Kind::Other,
        }
    }
}

/// Foundation, component, transport, priority, address, port …
fn udp_candidate(value: &str) -> Option<SocketAddr> {
    let mut fields = value.split_ascii_whitespace().skip(2);
    let udp = fields.next()?.eq_ignore_ascii_case("udp");
    let address = fields.nth(1)?.parse().ok()?;
    let port = fields.next()?.parse().ok()?;
    udp.then_some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_understands_the_offer() {
        for transport_cc in [false, true] {
            let offer = Offer {
                port: 5000,
                ufrag: "abcd1234",
                pwd: "0123456789012345678901",
                fingerprint: &[0xab; 32],
                transport_cc,
            };
            let offer = headwater_media::sdp::Offer::parse(&offer.write()).expect("an offer");
            assert_eq!(
                format!("{offer:?}").contains("transport_cc: true"),
                transport_cc
            );
        }
    }

    #[test]
    fn an_answer_is_read_and_a_refusal_is_one() {
        let answer = format!(
            "v=0\r\na=ice-ufrag:u\r\na=ice-pwd:p\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n\
             a=candidate:1 1 tcp 1 127.0.0.1 9 typ host tcptype passive\r\n\
             a=candidate:1 1 udp 2130706431 127.0.0.1 8700 typ host\r\n\
             m=video 9 UDP/TLS/RTP/SAVPF 104 105\r\na=extmap:4/sendonly {TRANSPORT_SEQUENCE}\r\n"
        );
        let read = Answer::parse(&answer).expect("an answer");
        assert_eq!((read.ufrag.as_str(), read.pwd.as_str()), ("u", "p"));
        assert_eq!(read.candidate.to_string(), "127.0.0.1:8700");
        assert_eq!(read.transport_sequence, Some(4));
        assert_eq!(
            [104, 105, 111].map(|payload_type| read.kind(payload_type)),
            [Kind::Video, Kind::Other, Kind::Audio]
        );
        assert!(Answer::parse(&answer.replace("video 9", "video 0")).is_err());
        assert!(Answer::parse("v=0\r\n").is_err());
    }
}
