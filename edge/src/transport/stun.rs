//! STUN as an ICE-lite server needs it (RFC 8489, RFC 8445): read binding requests, authenticate them, answer them.

use std::net::{IpAddr, SocketAddr};

use rtc_crypto::RTCCrypto;
use rtc_stun::attributes::{
    ATTR_FINGERPRINT, ATTR_ICE_CONTROLLED, ATTR_MESSAGE_INTEGRITY, ATTR_USE_CANDIDATE,
    ATTR_USERNAME,
};
use rtc_stun::error_code::{CODE_ROLE_CONFLICT, ErrorCodeAttribute};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{
    BINDING_ERROR, BINDING_REQUEST, BINDING_SUCCESS, MESSAGE_HEADER_SIZE, Message, MessageType,
    Setter,
};
use rtc_stun::xoraddr::XorMappedAddress;

/// A check has a handful of attributes and fits in far less (bytes).
const REQUEST_BYTES_MAX: usize = 1280;

/// A binding request, not yet authenticated.
#[derive(Debug)]
pub(crate) struct Request {
    message: Message,
    username: String,
    nominates: bool,
    controlled: bool,
}

impl Request {
    /// Reads a binding request. Anything else, and what ICE doesn't allow (no USERNAME, no MESSAGE-INTEGRITY, a missing or
    /// wrong FINGERPRINT), is `None`: RFC 8445 gives the lite side nothing to say to it.
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        if !(MESSAGE_HEADER_SIZE..=REQUEST_BYTES_MAX).contains(&datagram.len()) {
            return None;
        }
        let mut message = Message::new();
        message.unmarshal_binary(datagram).ok()?;
        let whole = MESSAGE_HEADER_SIZE + message.length as usize == datagram.len();
        if !whole || message.typ != BINDING_REQUEST {
            return None;
        }
        FINGERPRINT.check(&message).ok()?;

        // Only what stands before MESSAGE-INTEGRITY is covered by it (RFC 8489 section 14.5).
        let attributes = &message.attributes.0;
        let covered = attributes
            .iter()
            .position(|attribute| attribute.typ == ATTR_MESSAGE_INTEGRITY)?;
        let end = attributes.iter().position(|a| a.typ == ATTR_FINGERPRINT)?;
        if end != attributes.len() - 1 || attributes[covered].value.len() != 20 {
            return None;
        }
        let covered = &attributes[..covered];
        let has = |typ| covered.iter().any(|attribute| attribute.typ == typ);
        let username = covered.iter().find(|a| a.typ == ATTR_USERNAME)?;
        let username = std::str::from_utf8(&username.value).ok()?.to_owned();
        let nominates = has(ATTR_USE_CANDIDATE);
        let controlled = has(ATTR_ICE_CONTROLLED);
        Some(Self {
            message,
            username,
            nominates,
            controlled,
        })
    }

    /// `local:remote`, seen from us.
    pub(crate) fn username(&self) -> &str {
        &self.username
    }

    /// Our user fragment in it.
    pub(crate) fn local_ufrag(&self) -> &str {
        self.username
            .split_once(':')
            .map_or(&*self.username, |(local, _)| local)
    }

    /// It carries USE-CANDIDATE.
    pub(crate) const fn nominates(&self) -> bool {
        self.nominates
    }

    /// The sender believes it is controlled, as we are: to be answered by [`Self::role_conflict`].
    pub(crate) const fn controlled(&self) -> bool {
        self.controlled
    }

    /// It was made with our password.
    pub(crate) fn is_authentic(&mut self, password: &str, crypto: &dyn RTCCrypto) -> bool {
        MessageIntegrity::check(&mut self.message, password.as_bytes(), crypto).is_ok()
    }

    /// The success response: XOR-MAPPED-ADDRESS, MESSAGE-INTEGRITY, FINGERPRINT.
    pub(crate) fn success(
        &self,
        from: SocketAddr,
        password: &str,
        crypto: &dyn RTCCrypto,
    ) -> Option<Vec<u8>> {
        let mapped = XorMappedAddress {
            ip: canonical(from.ip()),
            port: from.port(),
        };
        self.respond(BINDING_SUCCESS, &mapped, password, crypto)
    }

    /// The 487 response (RFC 8445 section 7.3.1.1): a lite agent never becomes the controlling one.
    pub(crate) fn role_conflict(&self, password: &str, crypto: &dyn RTCCrypto) -> Option<Vec<u8>> {
        let error = ErrorCodeAttribute {
            code: CODE_ROLE_CONFLICT,
            reason: b"Role Conflict".to_vec(),
        };
        self.respond(BINDING_ERROR, &error, password, crypto)
    }

    fn respond(
        &self,
        typ: MessageType,
        attribute: &dyn Setter,
        password: &str,
        crypto: &dyn RTCCrypto,
    ) -> Option<Vec<u8>> {
        let mut response = Message::new();
        response.set_type(typ);
        response.transaction_id = self.message.transaction_id;
        response.write_header();
        let integrity = MessageIntegrity::new_raw_integrity_with_provider(password, crypto);
        let setters: [&dyn Setter; 3] = [attribute, &integrity, &FINGERPRINT];
        for setter in setters {
            setter.add_to(&mut response).ok()?;
        }
        Some(response.raw)
    }
}

/// A dual-stack socket shows IPv4 peers as IPv6-mapped; they know themselves as IPv4.
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

#[cfg(any(test, feature = "testkit"))]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
#[allow(
    clippy::unwrap_used,
    reason = "tests, though clippy sees that only in cfg(test)"
)]
pub(crate) mod tests {
    use rtc_stun::attributes::{ATTR_ICE_CONTROLLING, ATTR_XORMAPPED_ADDRESS};
    use rtc_stun::message::{Getter, TransactionId};
    use rtc_stun::textattrs::Username;

    use super::*;

    const PASSWORD: &str = "a password of 22 chars";

    /// A browser's check.
    pub(crate) fn check(username: &str, password: &str, nominates: bool) -> Vec<u8> {
        let provider = rtc_crypto::default_provider().unwrap();
        let mut message = Message::new();
        message.set_type(BINDING_REQUEST);
        message.transaction_id = TransactionId::new();
        message.write_header();
        Username::new(ATTR_USERNAME, username.to_owned())
            .add_to(&mut message)
            .unwrap();
        message.add(ATTR_ICE_CONTROLLING, &[0; 8]);
        if nominates {
            message.add(ATTR_USE_CANDIDATE, &[]);
        }
        MessageIntegrity::new_raw_integrity_with_provider(password, provider.crypto())
            .add_to(&mut message)
            .unwrap();
        FINGERPRINT.add_to(&mut message).unwrap();
        message.raw
    }

    #[test]
    fn checks_are_read_authenticated_and_answered() {
        let provider = rtc_crypto::default_provider().unwrap();
        let crypto = provider.crypto();
        let datagram = check("local:remote", PASSWORD, true);
        let mut request = Request::parse(&datagram).expect("a valid check");
        assert_eq!(request.username(), "local:remote");
        assert_eq!(request.local_ufrag(), "local");
        assert!(request.nominates() && !request.controlled());
        assert!(request.is_authentic(PASSWORD, crypto));
        assert!(!request.is_authentic("another", crypto));

        for from in ["192.0.2.7:5555", "[::ffff:192.0.2.7]:5555"] {
            let raw = request
                .success(from.parse().unwrap(), PASSWORD, crypto)
                .unwrap();
            let mut answer = Message::new();
            answer.unmarshal_binary(&raw).unwrap();
            assert_eq!(answer.typ, BINDING_SUCCESS);
            assert_eq!(answer.transaction_id, request.message.transaction_id);
            FINGERPRINT.check(&answer).unwrap();
            MessageIntegrity::check(&mut answer, PASSWORD.as_bytes(), crypto).unwrap();
            let mut mapped = XorMappedAddress::default();
            mapped.get_from(&answer).unwrap();
            assert_eq!(mapped.to_string(), "192.0.2.7:5555");
            let order: Vec<_> = answer.attributes.0.iter().map(|a| a.typ).collect();
            assert_eq!(
                order,
                [
                    ATTR_XORMAPPED_ADDRESS,
                    ATTR_MESSAGE_INTEGRITY,
                    ATTR_FINGERPRINT
                ]
            );
        }
    }

    #[test]
    fn unauthenticated_attributes_do_not_count() {
        let provider = rtc_crypto::default_provider().unwrap();
        let mut message = Message::new();
        message
            .unmarshal_binary(&check("local:remote", PASSWORD, false))
            .unwrap();
        // Someone on the path appends USE-CANDIDATE and repairs the fingerprint, which needs no key.
        message.attributes.0.pop();
        let attributes = std::mem::take(&mut message.attributes.0);
        message.raw.truncate(MESSAGE_HEADER_SIZE);
        message.length = 0;
        for attribute in attributes {
            message.add(attribute.typ, &attribute.value);
        }
        message.add(ATTR_USE_CANDIDATE, &[]);
        FINGERPRINT.add_to(&mut message).unwrap();
        let mut request = Request::parse(&message.raw).expect("still well-formed");
        assert!(request.is_authentic(PASSWORD, provider.crypto()));
        assert!(!request.nominates());
    }

    #[test]
    fn damaged_and_foreign_datagrams_are_no_requests() {
        let datagram = check("local:remote", PASSWORD, true);
        for cut in 0..datagram.len() {
            assert!(Request::parse(&datagram[..cut]).is_none(), "cut at {cut}");
        }
        for i in 0..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[i] ^= 0x20;
            assert!(Request::parse(&damaged).is_none(), "damaged at {i}");
        }
        assert!(Request::parse(&[0; 4000]).is_none());
    }

    #[cfg(test)]
    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let provider = rtc_crypto::default_provider().unwrap();
            // Behind a header that passes, so that attributes are reached; the fingerprint check is skipped on purpose.
            let mut datagram = check("a:b", PASSWORD, false)[..20].to_vec();
            datagram.extend_from_slice(&bytes);
            datagram[2..4].copy_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
            let _ = Request::parse(&datagram);
            let mut message = Message::new();
            if message.unmarshal_binary(&datagram).is_ok() {
                let _ = FINGERPRINT.check(&message);
                let _ = MessageIntegrity::check(&mut message, b"x", provider.crypto());
            }
        }
    }
}
