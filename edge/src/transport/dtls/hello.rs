//! A viewer's first message, as far as it is read before there is an endpoint for it.

use bytes::BytesMut;

use super::records::{CONTENT_HANDSHAKE, fragments, records};

/// Longest ClientHello we reassemble to look at (bytes). Post-quantum key shares make Chromium's 1413.
const HELLO_BYTES_MAX: usize = 8 << 10;

/// Numbers of the profiles in `use_srtp` (RFC 5764 section 4.1.2, RFC 7714 section 14.2).
pub(super) const COUNTER_MODE: u16 = 0x0001;
pub(super) const GCM: u16 = 0x0007;

/// The first ClientHello while it arrives.
#[derive(Default)]
pub(super) struct Hello {
    message: Vec<u8>,
    covered: Vec<bool>,
    /// The datagrams it came in, for the endpoint.
    pub(super) held: Vec<BytesMut>,
}

impl Hello {
    /// Takes a datagram; yields the SRTP profiles offered once the ClientHello is whole. One without `use_srtp`, or
    /// malformed, offers none.
    pub(super) fn push(&mut self, datagram: &[u8]) -> Option<Vec<u16>> {
        const CLIENT_HELLO: u8 = 1;
        let mut relevant = false;
        for (content_type, epoch, content) in records(datagram) {
            if content_type != CONTENT_HANDSHAKE || epoch != 0 {
                continue;
            }
            for fragment in fragments(content) {
                let fits = fragment.message_type == CLIENT_HELLO
                    && fragment.sequence == 0
                    && (1..=HELLO_BYTES_MAX).contains(&fragment.length)
                    && fragment.offset + fragment.data.len() <= fragment.length;
                if !fits {
                    continue;
                }
                if self.message.len() != fragment.length {
                    *self = Self {
                        message: vec![0; fragment.length],
                        covered: vec![false; fragment.length],
                        held: Vec::new(),
                    };
                }
                let range = fragment.offset..fragment.offset + fragment.data.len();
                self.message[range.clone()].copy_from_slice(fragment.data);
                self.covered[range].fill(true);
                relevant = true;
            }
        }
        if relevant {
            self.held.push(BytesMut::from(datagram));
        }
        let whole = !self.covered.is_empty() && self.covered.iter().all(|covered| *covered);
        whole.then(|| srtp_profiles(&self.message).unwrap_or_default())
    }
}

/// The profiles in a ClientHello's `use_srtp` (RFC 6347 section 4.2.1, RFC 5246 section 7.4.1.4, RFC 5764 section 4.1.1).
fn srtp_profiles(hello: &[u8]) -> Option<Vec<u16>> {
    const USE_SRTP: u16 = 14;
    /// version and random
    const FIXED_BYTES: usize = 2 + 32;

    fn vector8(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = bytes.split_first()?;
        rest.split_at_checked(usize::from(*length))
    }
    fn u16_and_rest(bytes: &[u8]) -> Option<(u16, &[u8])> {
        let (value, rest) = bytes.split_first_chunk::<2>()?;
        Some((u16::from_be_bytes(*value), rest))
    }
    fn vector16(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = u16_and_rest(bytes)?;
        rest.split_at_checked(usize::from(length))
    }

    let rest = hello.get(FIXED_BYTES..)?;
    let (_session, rest) = vector8(rest)?;
    let (_cookie, rest) = vector8(rest)?;
    let (_suites, rest) = vector16(rest)?;
    let (_compressions, rest) = vector8(rest)?;
    let (mut extensions, _) = vector16(rest)?;
    while !extensions.is_empty() {
        let (kind, rest) = u16_and_rest(extensions)?;
        let (data, rest) = vector16(rest)?;
        if kind == USE_SRTP {
            let (profiles, _mki) = vector16(data)?;
            let profiles = profiles.chunks_exact(2);
            return Some(profiles.map(|p| u16::from_be_bytes([p[0], p[1]])).collect());
        }
        extensions = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::records::fragments_are_sane;
    use super::*;

    /// A ClientHello with `use_srtp` and some padding, as one handshake message.
    fn hello(padding: usize) -> Vec<u8> {
        let mut extensions = vec![0, 21];
        extensions.extend_from_slice(&u16::try_from(padding).unwrap().to_be_bytes());
        extensions.resize(extensions.len() + padding, 0);
        extensions.extend_from_slice(&[0, 14, 0, 7, 0, 4, 0, 1, 0, 7, 0]);
        let mut body = vec![0xfe, 0xfd];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[0, 0, 0, 2, 0xc0, 0x2b, 1, 0]);
        body.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&extensions);
        body
    }

    fn record(message: &[u8], range: std::ops::Range<usize>) -> Vec<u8> {
        let u24 = |n: usize| u32::try_from(n).unwrap().to_be_bytes()[1..].to_vec();
        let mut content = vec![1];
        content.extend(u24(message.len()));
        content.extend_from_slice(&[0, 0]);
        content.extend(u24(range.start));
        content.extend(u24(range.len()));
        content.extend_from_slice(&message[range]);
        let mut record = vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
        record.extend_from_slice(&u16::try_from(content.len()).unwrap().to_be_bytes());
        record.extend(content);
        record
    }

    #[test]
    fn a_fragmented_client_hello_is_reassembled_in_any_order() {
        let message = hello(1300);
        let half = message.len() / 2;
        let first = record(&message, 0..half);
        let second = record(&message, half..message.len());
        for order in [[&first, &second], [&second, &first]] {
            let mut reader = Hello::default();
            assert_eq!(reader.push(order[0]), None);
            // A retransmission in between.
            assert_eq!(reader.push(order[0]), None);
            assert_eq!(reader.push(order[1]), Some(vec![1, 7]));
            assert_eq!(reader.held.len(), 3);
        }
    }

    #[test]
    fn dust_is_not_passed_on() {
        let message = hello(100);
        assert!(fragments_are_sane(&record(&message, 0..message.len())));
        assert!(fragments_are_sane(&record(&message, 100..message.len())));
        assert!(!fragments_are_sane(&record(&message, 0..1)));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = srtp_profiles(&bytes);
            let _ = fragments_are_sane(&bytes);
            let _ = Hello::default().push(&bytes);
            let mut message = hello(0);
            message.truncate(40);
            message.extend_from_slice(&bytes);
            let _ = srtp_profiles(&message);
            proptest::prop_assert!(Hello::default().push(&record(&message, 0..message.len())).is_some());
        }
    }
}
