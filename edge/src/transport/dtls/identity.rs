//! Who this process is to viewers: one certificate, and how to shake hands with it.

use std::sync::Arc;
use std::time::Duration;

use ring::digest;
use rtc_crypto::{RTCCrypto, RTCCryptoProvider};
use rtc_dtls::config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::crypto::Certificate;
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

use super::Error;

/// Longer than any handshake: keeps `rtc-dtls` from retransmitting too.
const THEIR_INTERVAL: Duration = Duration::from_secs(3600);

/// This process's certificate, and the configurations made with it. Shared by all shards.
pub(crate) struct Identity {
    pub(super) provider: Arc<dyn RTCCryptoProvider>,
    pub(super) gcm: Arc<HandshakeConfig>,
    pub(super) counter_mode: Arc<HandshakeConfig>,
    fingerprint: [u8; 32],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes a self-signed ECDSA P-256 certificate.
    ///
    /// # Errors
    /// If that fails, which a working system doesn't do.
    pub(crate) fn generate() -> Result<Self, Error> {
        let provider = rtc_crypto::default_provider().map_err(identity_error)?;
        let certificate =
            Certificate::generate_self_signed(["headwater".to_owned()], provider.crypto())
                .map_err(identity_error)?;
        let der = certificate
            .certificate
            .first()
            .ok_or_else(|| Error::Identity("no certificate came out".to_owned()))?;
        let fingerprint = sha256(der);
        let config = |profile| {
            ConfigBuilder::default()
                .with_crypto_provider(provider.clone())
                .with_certificates(vec![certificate.clone()])
                .with_srtp_protection_profiles(vec![profile])
                // Viewers' certificates are self-signed; the fingerprint of the offer is what counts.
                .with_client_auth(ClientAuthType::RequireAnyClientCert)
                .with_insecure_skip_verify(true)
                .with_flight_interval(THEIR_INTERVAL)
                .with_extended_master_secret(ExtendedMasterSecretType::Require)
                .build(false, None)
                .map(Arc::new)
                .map_err(identity_error)
        };
        let gcm = config(SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm)?;
        let counter_mode = config(SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80)?;
        Ok(Self {
            gcm,
            counter_mode,
            fingerprint,
            provider,
        })
    }

    /// SHA-256 of the certificate.
    pub(crate) const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The process's cryptography.
    pub(crate) fn crypto(&self) -> &dyn RTCCrypto {
        self.provider.crypto()
    }
}

fn identity_error(error: impl std::fmt::Display) -> Error {
    Error::Identity(error.to_string())
}

/// Of a certificate.
pub(super) fn sha256(der: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, der);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}
