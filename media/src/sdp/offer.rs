//! A player's offer, checked once: what it can receive, and how it is to be reached.
//!
//! rtc-sdp splits the text into sections and attributes; what the attributes mean is read here, because its codec table
//! loses format parameters written with spaces and wildcard feedback.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::Cursor;

use rtc_sdp::description::common::Attribute;
use rtc_sdp::description::media::MediaDescription;
use rtc_sdp::description::session::SessionDescription;

use super::fragment::{IceCredentials, credentials};
use super::{ExtensionIds, OFFER_BYTES_MAX};

/// m-sections in one offer (count). A player needs two; some add a data channel.
const SECTIONS_MAX: usize = 16;
/// Attributes in one offer (count). Chromium's has 220.
const ATTRIBUTES_MAX: usize = 4096;
/// Formats in one m-line (count): there are 128 payload types.
const FORMATS_MAX: usize = 128;
/// Length of a mid in bytes. RFC 8843 section 9.2 advises 3; the header extension carries at most 16 in one-byte form.
const MID_BYTES_MAX: usize = 16;

/// Why a text is no offer that can be negotiated. The sentence is for the person who wrote the player.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OfferError {
    /// Longer than [`OFFER_BYTES_MAX`].
    #[error("the offer is longer than {OFFER_BYTES_MAX} bytes")]
    TooLong,
    /// Not SDP.
    #[error("the offer is no valid SDP: {0}")]
    Malformed(String),
    /// More sections, attributes or formats than any player needs.
    #[error("the offer has too many {0}")]
    TooMany(&'static str),
    /// Without this, no connection can be made.
    #[error("the offer has no {0}")]
    Missing(&'static str),
    /// This attribute's value can't be used.
    #[error("the offer's {0} is not usable")]
    Invalid(&'static str),
}

/// A checked offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub(super) sections: Vec<Section>,
    pub(super) ice: IceCredentials,
    pub(super) fingerprint: [u8; 32],
}

/// Picture, sound, or something that is always rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SectionKind {
    Audio,
    Video,
    Other,
}

/// Which way media would flow, from the player's point of view (RFC 8866 section 6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    SendReceive,
    ReceiveOnly,
    SendOnly,
    Inactive,
}

/// One m-section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: SectionKind,
    /// The media field as written, for the answer.
    pub(super) media: String,
    /// The protocol as written, for the answer.
    pub(super) protocol: Vec<String>,
    /// The formats as written, for the answer.
    pub(super) formats: Vec<String>,
    /// Empty if the offer has none.
    pub(super) mid: String,
    /// Named by `a=group:BUNDLE`.
    pub(super) bundled: bool,
    /// Not switched off by port 0, and a protocol that we speak.
    pub(super) usable: bool,
    pub(super) direction: Direction,
    pub(super) rtcp_mux: bool,
    pub(super) rtcp_rsize: bool,
    /// In order of the player's preference.
    pub(super) codecs: Vec<Codec>,
    pub(super) extensions: ExtensionIds,
}

/// One payload type of an m-section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Codec {
    pub(super) payload_type: u8,
    /// As written; compare without case.
    pub(super) name: String,
    pub(super) clock_hz: u32,
    pub(super) fmtp: String,
    pub(super) feedback: Feedback,
}

/// `a=rtcp-fb` of a payload type (RFC 4585).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Feedback {
    pub(super) nack: bool,
    pub(super) nack_pli: bool,
    pub(super) ccm_fir: bool,
    pub(super) transport_cc: bool,
}

impl Offer {
    /// Reads an offer.
    ///
    /// # Errors
    /// [`OfferError`]: tell the player by a 400 with this sentence.
    pub fn parse(text: &str) -> Result<Self, OfferError> {
        if text.len() > OFFER_BYTES_MAX {
            return Err(OfferError::TooLong);
        }
        let printable = |c: char| !c.is_control() || matches!(c, '\r' | '\n' | '\t');
        if !text.chars().all(printable) {
            return Err(OfferError::Malformed("it has control characters".into()));
        }
        let description = SessionDescription::unmarshal(&mut Cursor::new(text.as_bytes()))
            .map_err(|error| OfferError::Malformed(worded(&short(&error.to_string()))))?;
        let media = &description.media_descriptions;
        if media.is_empty() {
            return Err(OfferError::Missing("m-section"));
        }
        if media.len() > SECTIONS_MAX {
            return Err(OfferError::TooMany("m-sections"));
        }
        let attributes = media
            .iter()
            .map(|section| section.attributes.len())
            .fold(description.attributes.len(), usize::saturating_add);
        if attributes > ATTRIBUTES_MAX {
            return Err(OfferError::TooMany("attributes"));
        }

        let bundled: Vec<&str> = values(&description.attributes, "group")
            .filter_map(|group| group.strip_prefix("BUNDLE"))
            .flat_map(str::split_ascii_whitespace)
            .collect();
        let session_direction = direction(&description.attributes);
        let sections = media
            .iter()
            .map(|section| Section::read(section, &bundled, session_direction))
            .collect::<Result<Vec<_>, _>>()?;

        // The transport's attributes: with BUNDLE those of the first usable section count (RFC 8843 section 7.3.1), and
        // each may stand at session level instead (RFC 8839 section 4.2.1, RFC 8122 section 5).
        let tagged = media
            .iter()
            .zip(&sections)
            .find(|(_, section)| section.usable && section.kind != SectionKind::Other)
            .map(|(section, _)| section.attributes.as_slice())
            .unwrap_or_default();
        let session = description.attributes.as_slice();
        let transport = |key| value(tagged, key).or_else(|| value(session, key));
        let ufrag = transport("ice-ufrag").ok_or(OfferError::Missing("ice-ufrag"))?;
        let pwd = transport("ice-pwd").ok_or(OfferError::Missing("ice-pwd"))?;
        let ice = credentials(ufrag, pwd).ok_or(OfferError::Invalid("ICE user or password"))?;
        match transport("setup") {
            // We are always the DTLS server (RFC 8842 section 5).
            None | Some("actpass" | "active") => {}
            Some(_) => {
                return Err(OfferError::Invalid(
                    "a=setup (this server is always passive, so it must be actpass or active)",
                ));
            }
        }
        let fingerprint = fingerprint(tagged)
            .or_else(|| fingerprint(session))
            .ok_or(OfferError::Missing("usable sha-256 fingerprint"))?;
        Ok(Self {
            sections,
            ice,
            fingerprint,
        })
    }
}

impl Section {
    fn read(
        media: &MediaDescription,
        bundled: &[&str],
        session_direction: Option<Direction>,
    ) -> Result<Self, OfferError> {
        let name = &media.media_name;
        let attributes = media.attributes.as_slice();
        if name.formats.len() > FORMATS_MAX {
            return Err(OfferError::TooMany("formats"));
        }
        let mid = value(attributes, "mid").unwrap_or_default();
        if mid.len() > MID_BYTES_MAX || !mid.bytes().all(is_token) {
            return Err(OfferError::Invalid("a=mid"));
        }
        let kind = match name.media.as_str() {
            "audio" => SectionKind::Audio,
            "video" => SectionKind::Video,
            _ => SectionKind::Other,
        };
        let switched_on = name.port.value != 0 || has(attributes, "bundle-only");
        let secure = name.protos.last().is_some_and(|last| last == "SAVPF");
        Ok(Self {
            kind,
            media: name.media.clone(),
            protocol: name.protos.clone(),
            formats: name.formats.clone(),
            mid: mid.to_owned(),
            bundled: !mid.is_empty() && bundled.contains(&mid),
            usable: switched_on && (secure || kind == SectionKind::Other),
            direction: direction(attributes)
                .or(session_direction)
                .unwrap_or(Direction::SendReceive),
            rtcp_mux: has(attributes, "rtcp-mux"),
            rtcp_rsize: has(attributes, "rtcp-rsize"),
            codecs: codecs(&name.formats, attributes),
            extensions: extensions(attributes),
        })
    }

    /// The RTX payload type that repairs `payload_type` (RFC 4588 section 8.1).
    pub(super) fn rtx_for(&self, payload_type: u8) -> Option<u8> {
        self.codecs
            .iter()
            .filter(|codec| codec.name.eq_ignore_ascii_case("rtx"))
            .find(|codec| {
                parameters(&codec.fmtp).any(|(key, value)| {
                    key.eq_ignore_ascii_case("apt") && value.parse() == Ok(payload_type)
                })
            })
            .map(|codec| codec.payload_type)
    }

    /// The media codecs of this section as a list for people: `VP8, VP9`. Repair formats are left out.
    pub(super) fn codec_names(&self) -> String {
        const REPAIR: [&str; 5] = ["rtx", "red", "ulpfec", "flexfec-03", "telephone-event"];
        const NAMES_MAX: usize = 8;
        let mut names: Vec<&str> = Vec::new();
        for codec in &self.codecs {
            let name = codec.name.as_str();
            let repair = REPAIR.iter().any(|other| name.eq_ignore_ascii_case(other));
            let known = names.iter().any(|other| name.eq_ignore_ascii_case(other));
            if !repair && !known && names.len() < NAMES_MAX && name.len() <= 16 {
                names.push(name);
            }
        }
        if names.is_empty() {
            "none that is known".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// `key=value` pairs of an `a=fmtp`, separated by semicolons.
pub(super) fn parameters(fmtp: &str) -> impl Iterator<Item = (&str, &str)> {
    fmtp.split(';')
        .filter_map(|parameter| parameter.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
}

/// The first attribute with this key that has a value.
fn value<'a>(attributes: &'a [Attribute], key: &'a str) -> Option<&'a str> {
    values(attributes, key).next()
}

fn values<'a>(attributes: &'a [Attribute], key: &'a str) -> impl Iterator<Item = &'a str> {
    attributes
        .iter()
        .filter(move |attribute| attribute.key == key)
        .filter_map(|attribute| attribute.value.as_deref())
        .map(str::trim)
}

fn has(attributes: &[Attribute], key: &str) -> bool {
    attributes.iter().any(|attribute| attribute.key == key)
}

fn direction(attributes: &[Attribute]) -> Option<Direction> {
    attributes
        .iter()
        .find_map(|attribute| match attribute.key.as_str() {
            "sendrecv" => Some(Direction::SendReceive),
            "recvonly" => Some(Direction::ReceiveOnly),
            "sendonly" => Some(Direction::SendOnly),
            "inactive" => Some(Direction::Inactive),
            _ => None,
        })
}

/// The first SHA-256 fingerprint (RFC 8122 section 5): 32 bytes in hex with colons.
fn fingerprint(attributes: &[Attribute]) -> Option<[u8; 32]> {
    values(attributes, "fingerprint").find_map(|value| {
        let (algorithm, hex) = value.split_once(' ')?;
        if !algorithm.eq_ignore_ascii_case("sha-256") {
            return None;
        }
        let mut bytes = [0; 32];
        let mut parts = hex.trim().split(':');
        for byte in &mut bytes {
            let part = parts.next()?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(bytes)
    })
}

/// The codecs in order of the m-line's formats, which is the player's preference.
fn codecs(formats: &[String], attributes: &[Attribute]) -> Vec<Codec> {
    let mut codecs: Vec<Codec> = Vec::with_capacity(formats.len());
    for payload_type in formats.iter().filter_map(|format| format.parse().ok()) {
        let seen = codecs
            .iter()
            .any(|codec| codec.payload_type == payload_type);
        if payload_type > 127 || seen {
            continue;
        }
        let Some((name, clock_hz)) = values(attributes, "rtpmap").find_map(|map| {
            let (number, encoding) = map.split_once(' ')?;
            let mut parts = encoding.trim().split('/');
            let name = parts.next()?;
            let clock_hz = parts.next()?.parse().ok()?;
            (number.parse() == Ok(payload_type) && name.bytes().all(is_token))
                .then(|| (name.to_owned(), clock_hz))
        }) else {
            continue;
        };
        let fmtp = values(attributes, "fmtp")
            .find_map(|line| {
                let (number, parameters) = line.split_once(' ')?;
                (number.parse() == Ok(payload_type)).then(|| parameters.trim().to_owned())
            })
            .unwrap_or_default();
        codecs.push(Codec {
            payload_type,
            name,
            clock_hz,
            fmtp,
            feedback: feedback(attributes, payload_type),
        });
    }
    codecs
}

fn feedback(attributes: &[Attribute], payload_type: u8) -> Feedback {
    let mut feedback = Feedback::default();
    for line in values(attributes, "rtcp-fb") {
        let mut words = line.split_ascii_whitespace();
        let Some(target) = words.next() else { continue };
        if target != "*" && target.parse() != Ok(payload_type) {
            continue;
        }
        match (words.next(), words.next()) {
            (Some("nack"), None) => feedback.nack = true,
            (Some("nack"), Some("pli")) => feedback.nack_pli = true,
            (Some("ccm"), Some("fir")) => feedback.ccm_fir = true,
            (Some("transport-cc"), _) => feedback.transport_cc = true,
            _ => {}
        }
    }
    feedback
}

/// The URIs of [`ExtensionIds`]' fields.
pub(super) mod uri {
    pub(in crate::sdp) const TRANSPORT_SEQUENCE: &str =
        "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01";
    pub(in crate::sdp) const CAPTURE_TIME: &str =
        "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time";
    pub(in crate::sdp) const PLAYOUT_DELAY: &str =
        "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay";
    pub(in crate::sdp) const MID: &str = "urn:ietf:params:rtp-hdrext:sdes:mid";
}

/// `a=extmap:<id>[/<direction>] <uri>` (RFC 8285 section 5). Ids above 14 need two-byte headers, which we never write.
fn extensions(attributes: &[Attribute]) -> ExtensionIds {
    let mut ids = ExtensionIds::default();
    let mut taken = [false; 15];
    for line in values(attributes, "extmap") {
        let mut words = line.split_ascii_whitespace();
        let (Some(id), Some(uri)) = (words.next(), words.next()) else {
            continue;
        };
        let (id, direction) = id.split_once('/').unwrap_or((id, "sendrecv"));
        if matches!(direction, "sendonly" | "inactive") {
            continue;
        }
        let Ok(id @ 1..=14) = id.parse::<u8>() else {
            continue;
        };
        let slot = match uri {
            uri::TRANSPORT_SEQUENCE => &mut ids.transport_sequence,
            uri::CAPTURE_TIME => &mut ids.capture_time,
            uri::PLAYOUT_DELAY => &mut ids.playout_delay,
            uri::MID => &mut ids.mid,
            _ => continue,
        };
        // An id or an extension that is named twice keeps its first meaning.
        let Some(taken) = taken.get_mut(usize::from(id)) else {
            continue;
        };
        if slot.is_none() && !*taken {
            *slot = Some(id);
            *taken = true;
        }
    }
    ids
}

/// A token character (RFC 8866 section 9): what may be repeated in an answer without care.
pub(super) const fn is_token(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x27 | 0x2a | 0x2b | 0x2d | 0x2e | 0x30..=0x39 | 0x41..=0x5a | 0x5e..=0x7e)
}

/// What the library says of a text that is no SDP, in words of who wrote it.
fn worded(text: &str) -> String {
    match text.split_once(": ") {
        Some(("SdpInvalidSyntax" | "SdpInvalidValue", at)) => format!("it is wrong at {at:?}"),
        _ => text.to_owned(),
    }
}

/// A parser's complaint repeats the text it stumbled over, which may be long.
fn short(text: &str) -> String {
    const CHARS_MAX: usize = 120;
    let mut cut: String = text.chars().take(CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}
