//! The SDP that WHEP needs: read an offer, decide, write the answer (RFC 8829, RFC 9725 and the WHEP draft).
//!
//! [`Negotiated`] is the outcome that the edge's transport works with.

use std::net::SocketAddr;

/// What offer and stream agreed on for one viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The viewer's ICE user fragment.
    pub remote_ufrag: String,
    /// The viewer's ICE password.
    pub remote_pwd: String,
    /// SHA-256 of the viewer's DTLS certificate.
    pub remote_fingerprint: [u8; 32],
    /// The video m-section, unless rejected or not offered.
    pub video: Option<NegotiatedMedia>,
    /// The audio m-section, unless rejected or not offered.
    pub audio: Option<NegotiatedMedia>,
}

/// One accepted m-section. Payload types and extension ids are the offer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NegotiatedMedia {
    /// Its `a=mid`.
    pub mid: String,
    /// The payload type we send.
    pub payload_type: u8,
    /// The payload type of its RTX (RFC 4588), if offered.
    pub rtx_payload_type: Option<u8>,
    /// The SSRC we send.
    pub ssrc: u32,
    /// The SSRC of its RTX; unused without `rtx_payload_type`.
    pub rtx_ssrc: u32,
    /// `a=rtcp-fb … transport-cc` was offered.
    pub transport_cc: bool,
    /// `a=rtcp-fb … nack` was offered.
    pub nack: bool,
    /// Ids of the header extensions both sides know (RFC 8285), 1 to 14.
    pub extensions: ExtensionIds,
}

/// Header extension ids of an m-section; `None` is not negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExtensionIds {
    /// transport-wide-cc-01.
    pub transport_sequence: Option<u8>,
    /// abs-capture-time.
    pub capture_time: Option<u8>,
    /// playout-delay.
    pub playout_delay: Option<u8>,
    /// urn:ietf:params:rtp-hdrext:sdes:mid.
    pub mid: Option<u8>,
}

/// What of the server goes into an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Our ICE user fragment for this viewer; the shard finds the viewer by it.
    pub ufrag: String,
    /// Our ICE password for this viewer.
    pub pwd: String,
    /// SHA-256 of our DTLS certificate.
    pub fingerprint: [u8; 32],
    /// Where the viewer's shard listens (UDP host candidates).
    pub candidates: Vec<SocketAddr>,
}
