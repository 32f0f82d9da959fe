//! A viewer's end of DTLS-SRTP, by `rtc-dtls` and `rtc-srtp`: independent of the edge's own code where it counts, the sealing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::BytesMut;
use ring::digest;
use rtc_crypto::{RTCCrypto, RTCCryptoProvider};
use rtc_dtls::config::{ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::crypto::Certificate;
use rtc_dtls::endpoint::{Endpoint, EndpointEvent};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;
use rtc_shared::TransportProtocol;
use rtc_srtp::config::Config;
use rtc_srtp::context::Context;
use rtc_srtp::protection_profile::ProtectionProfile;

/// The address that the endpoint knows its one peer by.
const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// The label of RFC 5764 section 4.2.
const EXPORTER_LABEL: &str = "EXTRACTOR-dtls_srtp";

/// How long an unanswered flight waits.
const FLIGHT_INTERVAL: Duration = Duration::from_millis(500);

/// What all viewers of a load share: a certificate and a configuration.
pub(crate) struct Identity {
    provider: Arc<dyn RTCCryptoProvider>,
    config: Arc<HandshakeConfig>,
    /// SHA-256 of the certificate.
    pub(crate) fingerprint: Vec<u8>,
}

impl Identity {
    /// A self-signed one, with the SRTP profiles in Chromium's order.
    pub(crate) fn generate() -> Result<Self> {
        let provider = rtc_crypto::default_provider().map_err(failed)?;
        let certificate =
            Certificate::generate_self_signed(["viewer".to_owned()], provider.crypto())
                .map_err(failed)?;
        let der = certificate.certificate.first().context("no certificate")?;
        let fingerprint = digest::digest(&digest::SHA256, der).as_ref().to_vec();
        let config = ConfigBuilder::default()
            .with_crypto_provider(provider.clone())
            .with_certificates(vec![certificate])
            .with_srtp_protection_profiles(vec![
                SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80,
                SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm,
            ])
            .with_extended_master_secret(ExtendedMasterSecretType::Require)
            // The server's certificate is self-signed, and on loopback nobody else is.
            .with_insecure_skip_verify(true)
            .with_flight_interval(FLIGHT_INTERVAL)
            .build(true, Some(PEER))
            .map_err(failed)?;
        Ok(Self {
            provider,
            config: Arc::new(config),
            fingerprint,
        })
    }

    /// The cryptography that goes with it.
    pub(crate) fn crypto(&self) -> &dyn RTCCrypto {
        self.provider.crypto()
    }
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("DTLS: {error}")
}

/// One association, as the client.
pub(crate) struct Client {
    endpoint: Endpoint,
}

/// What a handshake yields.
pub(crate) struct Keys {
    /// Opens what the server sends.
    pub(crate) opener: Context,
    /// Seals what goes to the server.
    pub(crate) sealer: Context,
    /// Both use AES-128-GCM.
    pub(crate) gcm: bool,
}

impl Client {
    /// Begins a handshake: [`Self::poll_transmit`] has its first datagram.
    pub(crate) fn connect(identity: &Identity, now: Instant) -> Result<Self> {
        let mut endpoint = Endpoint::new(PEER, TransportProtocol::UDP, None);
        endpoint
            .connect(now, PEER, identity.config.clone(), None)
            .map_err(failed)?;
        Ok(Self { endpoint })
    }

    /// The next datagram to send.
    pub(crate) fn poll_transmit(&mut self) -> Option<BytesMut> {
        self.endpoint
            .poll_transmit()
            .map(|transmit| transmit.message)
    }

    /// Takes a datagram of the server. True once, when the handshake is complete.
    pub(crate) fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) -> Result<bool> {
        let events = self
            .endpoint
            .read(now, PEER, None, BytesMut::from(datagram))
            .map_err(failed)?;
        let complete = |event: &EndpointEvent| matches!(event, EndpointEvent::HandshakeComplete);
        Ok(events.iter().any(complete))
    }

    /// Repeats a flight that is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let _ = self.endpoint.handle_timeout(PEER, now);
    }

    /// The SRTP contexts of a complete handshake.
    pub(crate) fn keys(&self, identity: &Identity) -> Result<Keys> {
        let state = self
            .endpoint
            .get_connection_state(PEER)
            .context("the association is gone")?;
        let profile = match state.srtp_protection_profile() {
            SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm => ProtectionProfile::AeadAes128Gcm,
            SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80 => {
                ProtectionProfile::Aes128CmHmacSha1_80
            }
            other => bail!("the server chose {other:?}"),
        };
        let mut config = Config {
            profile,
            ..Config::default()
        };
        let material = state
            .export_keying_material(EXPORTER_LABEL, &[], config.keying_material_len())
            .map_err(failed)?;
        config
            .set_session_keys_from_keying_material(material.as_ref(), true)
            .map_err(failed)?;
        let context = |key: &[u8], salt: &[u8]| {
            Context::new(key, salt, profile, None, None, identity.crypto()).map_err(failed)
        };
        let keys = &config.keys;
        Ok(Keys {
            opener: context(&keys.remote_master_key, &keys.remote_master_salt)?,
            sealer: context(&keys.local_master_key, &keys.local_master_salt)?,
            gcm: matches!(profile, ProtectionProfile::AeadAes128Gcm),
        })
    }
}
