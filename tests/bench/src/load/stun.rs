//! Connectivity checks of a controlling agent against an ICE-lite server (RFC 8445 section 7.2.2), by `rtc-stun`.

use anyhow::{Result, anyhow};
use rtc_crypto::RTCCrypto;
use rtc_stun::attributes::{
    ATTR_ICE_CONTROLLING, ATTR_PRIORITY, ATTR_USE_CANDIDATE, ATTR_USERNAME,
};
use rtc_stun::fingerprint::FINGERPRINT;
use rtc_stun::integrity::MessageIntegrity;
use rtc_stun::message::{BINDING_REQUEST, Message, Setter, TransactionId};
use rtc_stun::textattrs::Username;

/// First byte and type of a success response (RFC 8489 section 5).
const BINDING_SUCCESS: [u8; 2] = [1, 1];

/// A check that nominates: to `remote_ufrag` from `local_ufrag`, keyed with the server's password.
pub(crate) fn check(
    local_ufrag: &str,
    remote_ufrag: &str,
    remote_pwd: &str,
    crypto: &dyn RTCCrypto,
) -> Result<Vec<u8>> {
    let failed = |error| anyhow!("a check can't be written: {error}");
    let mut message = Message::new();
    message.set_type(BINDING_REQUEST);
    message.transaction_id = TransactionId::new();
    message.write_header();
    Username::new(ATTR_USERNAME, format!("{remote_ufrag}:{local_ufrag}"))
        .add_to(&mut message)
        .map_err(failed)?;
    message.add(ATTR_ICE_CONTROLLING, &1_u64.to_be_bytes());
    message.add(ATTR_PRIORITY, &1_853_824_767_u32.to_be_bytes());
    message.add(ATTR_USE_CANDIDATE, &[]);
    MessageIntegrity::new_raw_integrity_with_provider(remote_pwd, crypto)
        .add_to(&mut message)
        .map_err(failed)?;
    FINGERPRINT.add_to(&mut message).map_err(failed)?;
    Ok(message.raw)
}

/// Whether a datagram says that a check succeeded. Nobody forges one on loopback, so its integrity is not looked at.
pub(crate) fn is_success(datagram: &[u8]) -> bool {
    datagram.starts_with(&BINDING_SUCCESS)
}
