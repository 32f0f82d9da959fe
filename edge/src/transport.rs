//! A viewer's secure path: STUN answers, the DTLS handshake, SRTP and SRTCP.

pub(crate) mod dtls;
pub(crate) mod srtp;
pub(crate) mod stun;
