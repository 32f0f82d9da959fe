//! A viewer's secure path: STUN answers, the DTLS handshake, SRTP and SRTCP; TCP connections and their framing.

pub(crate) mod dtls;
pub(crate) mod framing;
pub(crate) mod srtp;
pub(crate) mod stun;
pub(crate) mod tcp;
