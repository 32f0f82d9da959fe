//! A viewer's DTLS association: we are the passive side, `rtc-dtls` does the handshake.
//!
//! One `Endpoint` per viewer, keyed by a constant address, so that a viewer may change its address in the middle of anything.
//! It is made when the first ClientHello is complete, because a DTLS server takes the peer's order of SRTP profiles and
//! we prefer GCM: the ClientHello's `use_srtp` says which of two configurations to use.
//!
//! Retransmission is ours: `rtc-dtls` 0.21 disarms its timer when the peer repeats a flight and then never answers, so the loss of
//! our certificate's datagram would end in silence. The last flight is kept and sent again as it was; what the peer had of it
//! already, its replay window drops.
//!
//! What a viewer sends here is bounded: `rtc-dtls` keeps future records and fragments without a useful limit and joins fragments
//! recursively, so only [`HANDSHAKE_BYTES_MAX`] bytes ever reach it before the handshake is complete, in fragments that are not
//! absurdly small, and [`CONNECTED_BYTES_MAX`] afterwards.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_shared::TransportProtocol;

use crate::transport::srtp::{self, Profile};

mod established;
mod hello;
mod identity;
mod records;

use established::{Established, Meaning};
use hello::{COUNTER_MODE, GCM, Hello};
use identity::sha256;
use records::{CONTENT_HANDSHAKE, fragments_are_sane, records};

pub(crate) use identity::Identity;

/// Bytes of datagrams a viewer may send until its handshake is complete. Chromium's take about 4 kB, retransmissions
/// included maybe 20.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Bytes of datagrams a viewer may send afterwards: repeats of its last flight, and a close_notify.
const CONNECTED_BYTES_MAX: usize = 32 << 10;

/// How long our flight may stay unanswered before it is sent again; doubles each time. RFC 6347 section 4.2.4.1 has 1 s, but expects
/// real-time uses to go lower.
const RESEND_AFTER: Duration = Duration::from_millis(250);

/// Times a flight is sent again (count): 250 ms, 500 ms, … make 15 s until the last is given up.
const RESENDS_MAX: u32 = 5;

/// The address `Endpoint` knows every viewer by.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// Why an association can't be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The certificate or a configuration can't be made.
    #[error("the DTLS identity can't be made: {0}")]
    Identity(String),
    /// The viewer offers no SRTP profile we have.
    #[error("no SRTP profile in common")]
    NoProfile,
    /// More bytes than a handshake needs.
    #[error("too many handshake bytes")]
    TooMuch,
    /// The certificate is not the one that the offer named.
    #[error("the certificate is not the offer's")]
    WrongCertificate,
    /// `rtc-dtls` gave up.
    #[error("the handshake failed: {0}")]
    Handshake(String),
    /// The exported keys don't make SRTP sessions.
    #[error(transparent)]
    Srtp(#[from] srtp::Error),
}

/// What a datagram led to.
#[derive(Debug)]
pub(crate) enum Event {
    /// The handshake is complete, the certificate is the offer's.
    Connected(Box<srtp::Session>),
    /// The viewer closed the association.
    Closed,
}

/// One viewer's association.
pub(crate) struct Association {
    phase: Phase,
    /// Bytes received in this phase.
    received_bytes: usize,
    expected_fingerprint: [u8; 32],
    transmits: VecDeque<BytesMut>,
    flight: Flight,
    /// The shortest time in which the viewer answered a flight.
    answered_within: Option<Duration>,
}

/// What we last sent in the handshake, for as long as it is unanswered.
#[derive(Default)]
struct Flight {
    datagrams: Vec<BytesMut>,
    resend_at: Option<Instant>,
    resends: u32,
    /// Which one it is, and when it left first.
    stage: Stage,
    first_sent: Option<Instant>,
}

/// Flights of ours, in their order (RFC 6347 section 4.2.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Stage {
    #[default]
    None,
    HelloVerify,
    Hello,
    Finished,
}

impl Stage {
    /// By the first record of a flight.
    fn of(datagram: &[u8]) -> Self {
        const HELLO_VERIFY_REQUEST: u8 = 3;
        match records(datagram).next() {
            Some((CONTENT_HANDSHAKE, 0, content)) => {
                if content.first() == Some(&HELLO_VERIFY_REQUEST) {
                    Self::HelloVerify
                } else {
                    Self::Hello
                }
            }
            Some(_) => Self::Finished,
            None => Self::None,
        }
    }
}

enum Phase {
    /// The ClientHello isn't whole yet.
    Hello(Box<Hello>),
    Handshake(Box<Endpoint>, Profile),
    Connected(Box<Established>),
    Over,
}

impl std::fmt::Debug for Association {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phase = match self.phase {
            Phase::Hello(_) => "hello",
            Phase::Handshake(..) => "handshake",
            Phase::Connected(_) => "connected",
            Phase::Over => "over",
        };
        f.debug_struct("Association")
            .field("phase", &phase)
            .finish_non_exhaustive()
    }
}

impl Association {
    /// For a viewer whose offer named the certificate with this SHA-256.
    pub(crate) fn new(expected_fingerprint: [u8; 32]) -> Self {
        Self {
            phase: Phase::Hello(Box::default()),
            received_bytes: 0,
            expected_fingerprint,
            transmits: VecDeque::new(),
            flight: Flight::default(),
            answered_within: None,
        }
    }

    /// The shortest time from a flight of ours to the viewer's next: the round trip takes at most that long. A flight may have been
    /// sent several times; the answer came after the first.
    pub(crate) const fn answered_within(&self) -> Option<Duration> {
        self.answered_within
    }

    /// A datagram from an address that passed a STUN check. Afterwards take what [`Self::poll_transmit`] has.
    ///
    /// # Errors
    /// If the association can't be: end the viewer, after sending what there is to send (an alert).
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        identity: &Identity,
        datagram: &[u8],
    ) -> Result<Option<Event>, Error> {
        self.received_bytes += datagram.len();
        let connected = matches!(self.phase, Phase::Connected(_));
        if connected && self.received_bytes > CONNECTED_BYTES_MAX {
            // Whoever sends this has had its handshake; media goes on, only DTLS is over for it.
            return Ok(None);
        }
        if self.received_bytes > HANDSHAKE_BYTES_MAX {
            return Err(Error::TooMuch);
        }
        if !fragments_are_sane(datagram) {
            return Ok(None);
        }
        match &mut self.phase {
            Phase::Hello(hello) => {
                let Some(profiles) = hello.push(datagram) else {
                    return Ok(None);
                };
                let (config, profile) = if profiles.contains(&GCM) {
                    (&identity.gcm, Profile::AeadAes128Gcm)
                } else if profiles.contains(&COUNTER_MODE) {
                    (&identity.counter_mode, Profile::Aes128CmSha1_80)
                } else {
                    return Err(Error::NoProfile);
                };
                let held = std::mem::take(&mut hello.held);
                let endpoint = Endpoint::new(PEER, TransportProtocol::UDP, Some(config.clone()));
                self.phase = Phase::Handshake(Box::new(endpoint), profile);
                for datagram in held {
                    self.read(now, identity, &datagram)?;
                }
                Ok(None)
            }
            Phase::Handshake(..) => self.read(now, identity, datagram),
            Phase::Connected(established) => match established.handle_datagram(datagram) {
                Meaning::Repeat => {
                    self.transmits.extend(established.last_flight());
                    Ok(None)
                }
                Meaning::Closed => {
                    // RFC 5246 section 7.2.1: the other side answers with its own.
                    self.close();
                    Ok(Some(Event::Closed))
                }
                Meaning::Nothing => Ok(None),
            },
            Phase::Over => Ok(None),
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) const fn poll_timeout(&self) -> Option<Instant> {
        self.flight.resend_at
    }

    /// Sends a flight again that got no answer.
    ///
    /// # Errors
    /// If it was sent often enough: end the viewer.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Error> {
        let flight = &mut self.flight;
        if flight.resend_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        if flight.resends >= RESENDS_MAX {
            flight.resend_at = None;
            return Err(Error::Handshake("no answer".to_owned()));
        }
        flight.resends += 1;
        flight.resend_at = Some(now + RESEND_AFTER * 2_u32.pow(flight.resends));
        self.transmits.extend(flight.datagrams.iter().cloned());
        Ok(())
    }

    /// The next datagram to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<BytesMut> {
        self.transmits.pop_front()
    }

    /// Ends it: a close_notify is to be sent, if there is someone to understand it.
    pub(crate) fn close(&mut self) {
        self.flight = Flight::default();
        if let Phase::Connected(established) = std::mem::replace(&mut self.phase, Phase::Over) {
            self.transmits.extend(established.into_goodbye());
        }
    }

    /// Takes what the endpoint wants sent. In the handshake it is a new flight, which answers for the one before.
    fn collect(&mut self, now: Instant) {
        let Phase::Handshake(endpoint, _) = &mut self.phase else {
            return;
        };
        let before = self.transmits.len();
        while let Some(transmit) = endpoint.poll_transmit() {
            self.transmits.push_back(transmit.message);
        }
        if self.transmits.len() > before {
            let datagrams: Vec<_> = self.transmits.range(before..).cloned().collect();
            let stage = datagrams
                .first()
                .map_or(Stage::None, |first| Stage::of(first));
            let old = &self.flight;
            let mut first_sent = Some(now);
            if stage == old.stage {
                first_sent = old.first_sent;
            } else if let (true, Some(at)) = (stage > old.stage, old.first_sent) {
                let took = now.saturating_duration_since(at);
                self.answered_within = Some(self.answered_within.map_or(took, |t| t.min(took)));
            }
            self.flight = Flight {
                datagrams,
                resend_at: Some(now + RESEND_AFTER),
                resends: 0,
                stage,
                first_sent,
            };
        }
    }

    fn read(
        &mut self,
        now: Instant,
        identity: &Identity,
        datagram: &[u8],
    ) -> Result<Option<Event>, Error> {
        let Phase::Handshake(endpoint, _) = &mut self.phase else {
            return Ok(None);
        };
        // A parser that isn't ours, fed by the network: should it ever panic, that must cost one viewer, not a shard.
        // The endpoint is not used again then.
        let events = catch_unwind(AssertUnwindSafe(|| {
            endpoint.read(now, PEER, None, BytesMut::from(datagram))
        }));
        let Ok(events) = events else {
            self.phase = Phase::Over;
            return Err(Error::Handshake("the DTLS parser panicked".to_owned()));
        };
        self.collect(now);
        let events = events.map_err(|error| Error::Handshake(error.to_string()))?;
        for event in events {
            match event {
                EndpointEvent::HandshakeComplete => {
                    return self.connected(now, identity).map(Some);
                }
                EndpointEvent::PeerClosed => {
                    self.phase = Phase::Over;
                    return Ok(Some(Event::Closed));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn connected(&mut self, now: Instant, identity: &Identity) -> Result<Event, Error> {
        let Phase::Handshake(endpoint, profile) = std::mem::replace(&mut self.phase, Phase::Over)
        else {
            return Err(Error::Handshake("completed twice".to_owned()));
        };
        let state = endpoint
            .get_connection_state(PEER)
            .ok_or_else(|| Error::Handshake("the connection is gone".to_owned()))?;
        let certificate = state.peer_certificates.first().map(|der| sha256(der));
        if certificate != Some(self.expected_fingerprint) {
            return Err(Error::WrongCertificate);
        }
        let material = state
            .export_keying_material(srtp::EXPORTER_LABEL, &[], profile.keying_bytes())
            .map_err(|error| Error::Handshake(error.to_string()))?;
        let session = srtp::Session::of_server(profile, material.as_ref())?;
        let last_flight = std::mem::take(&mut self.flight).datagrams;
        let established = Established::new(*endpoint, last_flight, identity, now);
        self.phase = Phase::Connected(Box::new(established));
        self.received_bytes = 0;
        Ok(Event::Connected(Box::new(session)))
    }
}

#[cfg(any(test, feature = "testkit"))]
#[cfg_attr(not(test), allow(dead_code, unused_imports))]
#[allow(
    clippy::unwrap_used,
    reason = "tests, though clippy sees that only in cfg(test)"
)]
pub(crate) mod tests {
    use std::sync::Arc;

    use rtc_dtls::config::ConfigBuilder;
    use rtc_dtls::crypto::Certificate;
    use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
    use rtc_srtp::config::Config;
    use rtc_srtp::protection_profile::ProtectionProfile;

    use super::*;

    /// A DTLS client as a browser is one.
    pub(crate) struct Client {
        endpoint: Endpoint,
        pub(crate) fingerprint: [u8; 32],
    }

    impl Client {
        pub(crate) fn connect(profiles: Vec<SrtpProtectionProfile>, now: Instant) -> Self {
            let provider = rtc_crypto::default_provider().unwrap();
            let certificate =
                Certificate::generate_self_signed(["viewer".to_owned()], provider.crypto())
                    .unwrap();
            let fingerprint = sha256(&certificate.certificate[0]);
            let config = ConfigBuilder::default()
                .with_crypto_provider(provider)
                .with_certificates(vec![certificate])
                .with_srtp_protection_profiles(profiles)
                .with_insecure_skip_verify(true)
                .build(true, Some(PEER))
                .unwrap();
            let mut endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
            endpoint.connect(now, PEER, Arc::new(config), None).unwrap();
            Self {
                endpoint,
                fingerprint,
            }
        }

        pub(crate) fn poll_transmit(&mut self) -> Option<BytesMut> {
            self.endpoint.poll_transmit().map(|t| t.message)
        }

        pub(crate) fn handle_datagram(&mut self, now: Instant, datagram: BytesMut) -> bool {
            // After it closed, what still comes is for nobody.
            let events = self.endpoint.read(now, PEER, None, datagram);
            let events = events.unwrap_or_default();
            events
                .iter()
                .any(|event| matches!(event, EndpointEvent::PeerClosed))
        }

        pub(crate) fn handle_timeout(&mut self, now: Instant) {
            let _ = self.endpoint.handle_timeout(PEER, now);
        }

        pub(crate) fn close(&mut self, now: Instant) {
            self.endpoint.stop(now, PEER);
        }

        /// SRTP contexts: what it opens with, and what it seals with.
        pub(crate) fn srtp(&self) -> (rtc_srtp::context::Context, rtc_srtp::context::Context) {
            let state = self.endpoint.get_connection_state(PEER).unwrap();
            let profile = match state.srtp_protection_profile() {
                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => ProtectionProfile::AeadAes128Gcm,
                SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => {
                    ProtectionProfile::Aes128CmHmacSha1_80
                }
                other => panic!("{other:?}"),
            };
            let mut config = Config {
                profile,
                ..Default::default()
            };
            let material = state
                .export_keying_material(srtp::EXPORTER_LABEL, &[], config.keying_material_len())
                .unwrap();
            config
                .set_session_keys_from_keying_material(material.as_ref(), true)
                .unwrap();
            let provider = rtc_crypto::default_provider().unwrap();
            let context = |key: &[u8], salt: &[u8]| {
                rtc_srtp::context::Context::new(key, salt, profile, None, None, provider.crypto())
                    .unwrap()
            };
            (
                context(
                    &config.keys.remote_master_key,
                    &config.keys.remote_master_salt,
                ),
                context(
                    &config.keys.local_master_key,
                    &config.keys.local_master_salt,
                ),
            )
        }
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    /// Runs the handshake, dropping the datagrams to the client whose number is in `lost`.
    fn handshake(
        client: &mut Client,
        server: &mut Association,
        identity: &Identity,
        lost: &[usize],
    ) -> Result<Option<Box<srtp::Session>>, Error> {
        let mut now = start();
        let mut session = None;
        let mut number = 0;
        for _ in 0..50 {
            while let Some(datagram) = client.poll_transmit() {
                if let Some(Event::Connected(keys)) =
                    server.handle_datagram(now, identity, &datagram)?
                {
                    session = Some(keys);
                }
            }
            while let Some(datagram) = server.poll_transmit() {
                number += 1;
                if !lost.contains(&(number - 1)) {
                    client.handle_datagram(now, datagram);
                }
            }
            now += Duration::from_millis(200);
            client.handle_timeout(now);
            server.handle_timeout(now)?;
        }
        Ok(session)
    }

    use SrtpProtectionProfile::{
        Srtp_Aead_Aes_128_Gcm as AEAD_GCM, Srtp_Aead_Aes_256_Gcm as AEAD_GCM_256,
        Srtp_Aes128_Cm_Hmac_Sha1_80 as CM_80,
    };

    #[test]
    fn gcm_is_taken_wherever_it_is_offered() {
        let identity = Identity::generate().unwrap();
        for (offered, expected) in [
            (vec![CM_80, AEAD_GCM_256, AEAD_GCM], Profile::AeadAes128Gcm),
            (vec![AEAD_GCM, CM_80], Profile::AeadAes128Gcm),
            (vec![CM_80], Profile::Aes128CmSha1_80),
        ] {
            let mut client = Client::connect(offered, start());
            let mut server = Association::new(client.fingerprint);
            let session = handshake(&mut client, &mut server, &identity, &[])
                .unwrap()
                .expect("connected");
            assert_eq!(session.profile(), expected);
            // Both sides have the same keys.
            let mut packet = vec![0x80, 96, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, b'x'];
            packet.resize(packet.len() + session.media.tag_bytes(), 0);
            session.media.seal(&mut packet, 12, 0).unwrap();
            let (mut opener, _) = client.srtp();
            assert_eq!(opener.decrypt_rtp(&packet).unwrap()[12], b'x');
        }
    }

    #[test]
    fn a_lost_flight_is_sent_again() {
        let identity = Identity::generate().unwrap();
        for lost in 0..4 {
            let mut client = Client::connect(vec![CM_80], start());
            let mut server = Association::new(client.fingerprint);
            let session = handshake(&mut client, &mut server, &identity, &[lost]).unwrap();
            assert!(session.is_some(), "datagram {lost} lost");
            // The viewer has keys too, so our last flight reached it.
            client.srtp();
        }
    }

    #[test]
    fn the_handshake_tells_the_round_trip_whoever_repeats_himself() {
        let identity = Identity::generate().unwrap();
        let millis = Duration::from_millis;
        for (round_trip, repeats) in [(30, false), (120, false), (120, true)] {
            let begin = start();
            let mut client = Client::connect(vec![AEAD_GCM], begin);
            let mut server = Association::new(client.fingerprint);
            let hello = client.poll_transmit().unwrap();
            let (mut now, mut connected) = (begin, false);
            let mut up = vec![hello.clone()];
            while !connected {
                for datagram in up.drain(..) {
                    let event = server.handle_datagram(now, &identity, &datagram).unwrap();
                    connected |= event.is_some();
                }
                if repeats {
                    // An impatient client sends its first flight again before ours can have arrived.
                    let _ = server.handle_datagram(now + millis(5), &identity, &hello);
                }
                now += millis(round_trip);
                while let Some(datagram) = server.poll_transmit() {
                    client.handle_datagram(now, datagram);
                }
                up.extend(std::iter::from_fn(|| client.poll_transmit()));
            }
            let took = server.answered_within().unwrap();
            assert_eq!(took, millis(round_trip), "repeats: {repeats}");
        }
    }

    #[test]
    fn a_viewer_that_stops_answering_is_given_up() {
        let identity = Identity::generate().unwrap();
        let now = start();
        let mut client = Client::connect(vec![AEAD_GCM], now);
        let mut server = Association::new(client.fingerprint);
        let hello = client.poll_transmit().unwrap();
        server.handle_datagram(now, &identity, &hello).unwrap();
        let mut sent = 0;
        let error = loop {
            sent += std::iter::from_fn(|| server.poll_transmit()).count();
            let due = server.poll_timeout().expect("waiting");
            if let Err(error) = server.handle_timeout(due) {
                assert!(due <= now + Duration::from_secs(20));
                break error;
            }
        };
        assert!(matches!(error, Error::Handshake(_)));
        assert_eq!(sent, 6);
        assert_eq!(server.poll_timeout(), None);
    }

    #[test]
    fn a_certificate_the_offer_did_not_name_is_refused() {
        let identity = Identity::generate().unwrap();
        let mut client = Client::connect(vec![AEAD_GCM], start());
        let mut server = Association::new([0; 32]);
        let error = handshake(&mut client, &mut server, &identity, &[]).unwrap_err();
        assert!(matches!(error, Error::WrongCertificate), "{error}");
    }

    #[test]
    fn no_common_profile_is_refused() {
        let identity = Identity::generate().unwrap();
        let mut client = Client::connect(vec![AEAD_GCM_256], start());
        let mut server = Association::new(client.fingerprint);
        let error = handshake(&mut client, &mut server, &identity, &[]).unwrap_err();
        assert!(matches!(error, Error::NoProfile), "{error}");
    }

    #[test]
    fn both_sides_can_close() {
        let identity = Identity::generate().unwrap();
        let now = start();
        for ours in [true, false] {
            let mut client = Client::connect(vec![AEAD_GCM], now);
            let mut server = Association::new(client.fingerprint);
            handshake(&mut client, &mut server, &identity, &[]).unwrap();
            if ours {
                server.close();
                let closed = server.poll_transmit().expect("a close_notify");
                assert!(client.handle_datagram(now, closed));
            } else {
                client.close(now);
                let closed = client.poll_transmit().expect("a close_notify");
                // Anybody could send it in the clear, or with a forged seal.
                let mut forged = closed.clone();
                *forged.last_mut().unwrap() ^= 1;
                let mut clear = closed.clone();
                clear[4] = 0;
                clear.truncate(13);
                clear[12] = 2;
                clear.extend_from_slice(&[1, 0]);
                for wrong in [forged, clear] {
                    let event = server.handle_datagram(now, &identity, &wrong).unwrap();
                    assert!(event.is_none());
                }
                let event = server.handle_datagram(now, &identity, &closed).unwrap();
                assert!(matches!(event, Some(Event::Closed)));
                assert!(server.poll_transmit().is_some(), "ours answers it");
            }
        }
    }

    #[test]
    fn a_flood_ends_the_association() {
        let identity = Identity::generate().unwrap();
        let mut server = Association::new([0; 32]);
        let now = start();
        let datagram = vec![20; 1200];
        let error = (0..100)
            .find_map(|_| server.handle_datagram(now, &identity, &datagram).err())
            .expect("an end");
        assert!(matches!(error, Error::TooMuch));
    }
}
