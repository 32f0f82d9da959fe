//! What a datagram is, by its first byte (RFC 7983 section 7, RFC 5761 section 4).

/// Protocols that share a media port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// STUN: first byte 0 to 3.
    Stun,
    /// DTLS: first byte 20 to 63.
    Dtls,
    /// SRTCP: first byte 128 to 191, packet type 192 to 223.
    Rtcp,
    /// SRTP: the other packet types. Viewers send none.
    Rtp,
    /// Neither.
    Other,
}

/// Tells the protocol of a datagram.
pub(crate) fn classify(datagram: &[u8]) -> Protocol {
    match datagram {
        [0..=3, ..] => Protocol::Stun,
        [20..=63, ..] => Protocol::Dtls,
        [128..=191, 192..=223, ..] => Protocol::Rtcp,
        [128..=191, ..] => Protocol::Rtp,
        _ => Protocol::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_first_byte_has_its_protocol() {
        for (datagram, expected) in [
            (&[][..], Protocol::Other),
            (&[0, 1], Protocol::Stun),
            (&[3], Protocol::Stun),
            (&[4], Protocol::Other),
            (&[19], Protocol::Other),
            (&[20], Protocol::Dtls),
            (&[63], Protocol::Dtls),
            (&[64], Protocol::Other),
            (&[127, 200], Protocol::Other),
            (&[128], Protocol::Rtp),
            (&[128, 191], Protocol::Rtp),
            (&[128, 200], Protocol::Rtcp),
            (&[191, 223], Protocol::Rtcp),
            (&[129, 224], Protocol::Rtp),
            (&[192, 200], Protocol::Other),
        ] {
            assert_eq!(classify(datagram), expected, "{datagram:?}");
        }
    }
}
