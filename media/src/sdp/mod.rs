//! The SDP that WHEP needs: read an offer, decide, write the answer (RFC 8829, RFC 8843, RFC 9725 and the WHEP draft).
//!
//! [`Offer::parse`] checks what a player sent, [`Offer::negotiate`] compares it with a stream, and
//! [`Negotiation::answer`] writes what goes back. [`Negotiated`] is the part that the edge's transport works with.
//! [`Fragment`] is the small body of a PATCH: trickled candidates or an ICE restart (RFC 8840).
//!
//! Text from the network is hostile: every count and length is bounded before and while it is parsed, and nothing here
//! panics on any input (a test feeds tens of thousands of mutated offers).

use std::net::SocketAddr;

mod answer;
mod fragment;
mod h264;
mod negotiate;
mod offer;

pub use fragment::{Fragment, FragmentError, IceCredentials};
pub use negotiate::{Negotiation, Refusal};
pub use offer::{Offer, OfferError};

use crate::ice::Transport;

/// The longest offer that is parsed, in bytes. Chromium's offer for one audio and one video m-section has 8 kB.
pub const OFFER_BYTES_MAX: usize = 64 * 1024;

/// What offer and stream agreed on for one viewer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The viewer's ICE user fragment.
    pub remote_ufrag: String,
    /// The viewer's ICE password.
    pub remote_pwd: String,
    /// SHA-256 of the viewer's DTLS certificate.
    pub remote_fingerprint: [u8; 32],
    /// The canonical name that both tracks share, in the answer's `a=ssrc` lines and in RTCP SDES (RFC 3550 section 6.5.1):
    /// it is what makes a player synchronise them.
    pub cname: String,
    /// The video m-section, unless rejected or not offered.
    pub video: Option<NegotiatedMedia>,
    /// The audio m-section, unless rejected or not offered. It may be there before the stream has its Opus track, while
    /// the origin is still making it.
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
    /// `a=rtcp-fb … transport-cc` was offered, and the header extension that it needs.
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
    /// Where the viewer's shard is reached, best first.
    pub candidates: Vec<Candidate>,
}

/// A host candidate of ours; those of TCP are passive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// What it listens for.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

impl Candidate {
    /// By UDP.
    pub const fn udp(address: SocketAddr) -> Self {
        Self {
            transport: Transport::Udp,
            address,
        }
    }

    /// By TCP, where the viewer connects.
    pub const fn tcp(address: SocketAddr) -> Self {
        Self {
            transport: Transport::Tcp,
            address,
        }
    }
}

#[cfg(test)]
mod tests;
