//! Writes the answer: passive DTLS, ICE-lite, one transport, one media stream (RFC 8829 section 5.3).

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::Write as _;

use rtc_sdp::description::common::{Address, Attribute, ConnectionInformation};
use rtc_sdp::description::media::{MediaDescription, MediaName, RangedPort};
use rtc_sdp::description::session::{Origin, SessionDescription, TimeDescription, Timing};

use super::negotiate::{Negotiation, Outcome};
use super::offer::{Codec, Section, parameters, uri};
use super::{Candidate, Local, NegotiatedMedia};
use crate::ice::Transport;

/// The media stream that both tracks belong to (RFC 8830): one id, so that players show them together.
const MEDIA_STREAM: &str = "headwater";
/// A PATCH may trickle, though an ICE-lite server needs no candidates.
pub(super) const ICE_OPTIONS: &str = "trickle";

impl Negotiation {
    /// The answer's text.
    pub fn answer(&self, local: &Local) -> String {
        let tagged = self.sections.iter().position(|outcome| !outcome.rejected());
        let mut bundle = "BUNDLE".to_owned();
        for (_, mid) in self.mids() {
            bundle.push(' ');
            bundle.push_str(&mid);
        }
        let mut attributes = vec![flag("ice-lite"), pair("ice-options", ICE_OPTIONS)];
        // RFC 8843 section 7.3: a group only where the offer had one.
        if self
            .sections
            .iter()
            .any(|outcome| !outcome.rejected() && outcome.section().bundled)
        {
            attributes.insert(0, pair("group", bundle));
        }
        attributes.push(pair("msid-semantic", format!(" WMS {MEDIA_STREAM}")));
        let description = SessionDescription {
            version: 0,
            origin: Origin {
                username: "-".to_owned(),
                session_id: self.session_id,
                session_version: 1,
                network_type: "IN".to_owned(),
                address_type: "IP4".to_owned(),
                unicast_address: "0.0.0.0".to_owned(),
            },
            session_name: "-".to_owned(),
            time_descriptions: vec![TimeDescription {
                timing: Timing {
                    start_time: 0,
                    stop_time: 0,
                },
                repeat_times: Vec::new(),
            }],
            attributes,
            media_descriptions: self
                .sections
                .iter()
                .enumerate()
                .map(|(index, outcome)| self.section(outcome, local, tagged == Some(index)))
                .collect(),
            ..SessionDescription::default()
        };
        description.marshal()
    }

    fn section(&self, outcome: &Outcome, local: &Local, tagged: bool) -> MediaDescription {
        let negotiated = &self.negotiated;
        match outcome {
            Outcome::Rejected(offered) => rejected(offered),
            Outcome::Video { offered, codec } => match &negotiated.video {
                Some(media) => {
                    let mut section = self.accepted(offered, media, local, tagged);
                    h264(&mut section, codec, media);
                    self.sources(&mut section, media, "video");
                    section
                }
                None => rejected(offered),
            },
            Outcome::Audio {
                offered,
                codec,
                stereo,
            } => match &negotiated.audio {
                Some(media) => {
                    let mut section = self.accepted(offered, media, local, tagged);
                    opus(&mut section, codec, media, *stereo);
                    self.sources(&mut section, media, "audio");
                    section
                }
                None => rejected(offered),
            },
        }
    }

    /// What every accepted section has. Transport attributes stand in each, since not every player looks for them in
    /// the tagged one; the candidates in the tagged one only (RFC 8839 section 4.2.1.2 with RFC 8843 section 7.1.3).
    fn accepted(
        &self,
        offered: &Section,
        media: &NegotiatedMedia,
        local: &Local,
        tagged: bool,
    ) -> MediaDescription {
        let mut section = section(offered, 9);
        if let Some(rtx) = media.rtx_payload_type {
            section.media_name.formats = vec![media.payload_type.to_string(), rtx.to_string()];
        } else {
            section.media_name.formats = vec![media.payload_type.to_string()];
        }
        let attributes = &mut section.attributes;
        attributes.push(pair("rtcp", "9 IN IP4 0.0.0.0"));
        attributes.push(pair("ice-ufrag", local.ufrag.as_str()));
        attributes.push(pair("ice-pwd", local.pwd.as_str()));
        attributes.push(pair("fingerprint", fingerprint(&local.fingerprint)));
        attributes.push(pair("setup", "passive"));
        if !media.mid.is_empty() {
            attributes.push(pair("mid", media.mid.as_str()));
        }
        let ids = media.extensions;
        for (id, uri) in [
            (ids.transport_sequence, uri::TRANSPORT_SEQUENCE),
            (ids.mid, uri::MID),
            (ids.capture_time, uri::CAPTURE_TIME),
            (ids.playout_delay, uri::PLAYOUT_DELAY),
        ] {
            if let Some(id) = id {
                attributes.push(pair("extmap", format!("{id} {uri}")));
            }
        }
        attributes.push(flag("sendonly"));
        attributes.push(flag("rtcp-mux"));
        if offered.rtcp_rsize {
            attributes.push(flag("rtcp-rsize"));
        }
        if tagged {
            for candidate in candidates(&local.candidates) {
                attributes.push(pair("candidate", candidate));
            }
            attributes.push(flag("end-of-candidates"));
        }
        section
    }

    /// `a=msid` and the older `a=ssrc` lines, which tie RTX to its media and give both tracks one name.
    fn sources(&self, section: &mut MediaDescription, media: &NegotiatedMedia, track: &str) {
        let attributes = &mut section.attributes;
        let mut sources = vec![media.ssrc];
        attributes.push(pair("msid", format!("{MEDIA_STREAM} {track}")));
        if media.rtx_payload_type.is_some() {
            sources.push(media.rtx_ssrc);
            attributes.push(pair(
                "ssrc-group",
                format!("FID {} {}", media.ssrc, media.rtx_ssrc),
            ));
        }
        for ssrc in sources {
            attributes.push(pair(
                "ssrc",
                format!("{ssrc} cname:{}", self.negotiated.cname),
            ));
            attributes.push(pair("ssrc", format!("{ssrc} msid:{MEDIA_STREAM} {track}")));
        }
    }
}

/// Host candidates (RFC 8839 section 5.1; RFC 6544 section 4.5), best first of each transport. Each has its own foundation: they
/// differ in address or transport (RFC 8445 section 5.1.1.3).
pub(super) fn candidates(candidates: &[Candidate]) -> impl Iterator<Item = String> {
    /// Type preference of UDP host candidates (RFC 8445 section 5.1.2.2).
    const UDP_HOST: u32 = 126;
    /// That of TCP is lower, so that UDP is preferred (RFC 6544 section 4.2). Chromium's number.
    const TCP_HOST: u32 = 90;
    /// Direction preference of passive host candidates, in the upper three bits of their local preference (RFC 6544 section 4.2).
    const PASSIVE: u32 = 4 << 13;
    candidates
        .iter()
        .zip((0..=8191_u32).rev())
        .zip(1_u32..)
        .map(|((candidate, preference), foundation)| {
            let (ip, port) = (candidate.address.ip(), candidate.address.port());
            let (transport, kind, local, direction) = match candidate.transport {
                Transport::Udp => ("udp", UDP_HOST, preference | (7 << 13), ""),
                Transport::Tcp => ("tcp", TCP_HOST, preference | PASSIVE, " tcptype passive"),
            };
            let priority = (kind << 24) | (local << 8) | 255;
            format!("{foundation} 1 {transport} {priority} {ip} {port} typ host{direction}")
        })
}

/// A rejected section (RFC 3264 section 6): port 0, its formats as offered.
fn rejected(offered: &Section) -> MediaDescription {
    let mut section = section(offered, 0);
    // The formats of a rejected stream mean nothing, but one must stand there (RFC 3264 section 6). The stacks of the
    // pion family, `headwater probe` among them, look up what is listed and fail on numbers without an rtpmap; "0" is
    // what they write themselves.
    if matches!(offered.media.as_str(), "audio" | "video") {
        section.media_name.formats = vec!["0".to_owned()];
    }
    if !offered.mid.is_empty() {
        section.attributes.push(pair("mid", offered.mid.as_str()));
    }
    section.attributes.push(flag("inactive"));
    section
}

fn section(offered: &Section, port: isize) -> MediaDescription {
    MediaDescription {
        media_name: MediaName {
            media: offered.media.clone(),
            port: RangedPort {
                value: port,
                range: None,
            },
            protos: offered.protocol.clone(),
            formats: offered.formats.clone(),
        },
        connection_information: Some(ConnectionInformation {
            network_type: "IN".to_owned(),
            address_type: "IP4".to_owned(),
            address: Some(Address {
                address: "0.0.0.0".to_owned(),
                ttl: None,
                range: None,
            }),
        }),
        ..MediaDescription::default()
    }
}

fn h264(section: &mut MediaDescription, codec: &Codec, media: &NegotiatedMedia) {
    let pt = codec.payload_type;
    let attributes = &mut section.attributes;
    attributes.push(pair("rtpmap", format!("{pt} H264/90000")));
    feedback(attributes, codec, media);
    // The profile is the offer's, as RFC 6184 section 8.2.2 wants; the level too, since we don't receive.
    let mut fmtp = format!("{pt} ");
    if parameters(&codec.fmtp).any(|(key, value)| key == "level-asymmetry-allowed" && value == "1")
    {
        fmtp.push_str("level-asymmetry-allowed=1;");
    }
    let [profile, flags, level] = super::h264::Parameters::parse(&codec.fmtp).profile_level_id;
    // Writing to a string can't fail.
    let _ = write!(
        fmtp,
        "packetization-mode=1;profile-level-id={profile:02x}{flags:02x}{level:02x}"
    );
    attributes.push(pair("fmtp", fmtp));
    repair(attributes, pt, media, 90_000);
}

fn opus(section: &mut MediaDescription, codec: &Codec, media: &NegotiatedMedia, stereo: bool) {
    let pt = codec.payload_type;
    let attributes = &mut section.attributes;
    attributes.push(pair("rtpmap", format!("{pt} opus/48000/2")));
    feedback(attributes, codec, media);
    let channels = if stereo {
        ";stereo=1;sprop-stereo=1"
    } else {
        ""
    };
    attributes.push(pair(
        "fmtp",
        format!("{pt} minptime=10;useinbandfec=1{channels}"),
    ));
    repair(attributes, pt, media, 48_000);
}

/// Feedback that was offered and that we act on.
fn feedback(attributes: &mut Vec<Attribute>, codec: &Codec, media: &NegotiatedMedia) {
    let offered = codec.feedback;
    for (wanted, kind) in [
        (media.transport_cc, "transport-cc"),
        (offered.ccm_fir, "ccm fir"),
        (offered.nack, "nack"),
        (offered.nack_pli, "nack pli"),
    ] {
        if wanted {
            attributes.push(pair("rtcp-fb", format!("{} {kind}", codec.payload_type)));
        }
    }
}

fn repair(attributes: &mut Vec<Attribute>, pt: u8, media: &NegotiatedMedia, clock_hz: u32) {
    if let Some(rtx) = media.rtx_payload_type {
        attributes.push(pair("rtpmap", format!("{rtx} rtx/{clock_hz}")));
        attributes.push(pair("fmtp", format!("{rtx} apt={pt}")));
    }
}

/// `sha-256` and upper-case hex with colons (RFC 8122 section 5).
fn fingerprint(sha256: &[u8; 32]) -> String {
    let mut text = "sha-256 ".to_owned();
    for (index, byte) in sha256.iter().enumerate() {
        let colon = if index == 0 { "" } else { ":" };
        // Writing to a string can't fail.
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

fn flag(key: &str) -> Attribute {
    Attribute::new(key.to_owned(), None)
}

fn pair(key: &str, value: impl Into<String>) -> Attribute {
    Attribute::new(key.to_owned(), Some(value.into()))
}
