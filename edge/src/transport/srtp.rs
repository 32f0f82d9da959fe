//! SRTP and SRTCP (RFC 3711, RFC 7714) with keys from DTLS (RFC 5764), sealed and opened in place.
//!
//! Sealing RTP is the hottest loop of an edge, so it allocates nothing and looks nothing up: the caller, who counts
//! sequence numbers anyway, passes the rollover counter. SRTCP is ours too rather than `rtc-srtp`'s, whose receiver keeps
//! state for each SSRC it sees *before* authentication and without bound; the tests hold both against `rtc-srtp`.

use aes::Aes128Enc;
use aes::cipher::{InnerIvInit, KeyInit, StreamCipher};
use ctr::{Ctr128BE, CtrCore};
use hmac::{Hmac, Mac};
use ring::aead;
use sha1::Sha1;
use smallvec::SmallVec;

/// The exporter label of RFC 5764 section 4.2.
pub(crate) const EXPORTER_LABEL: &str = "EXTRACTOR-dtls_srtp";

/// What SRTP adds to a packet at most (bytes): the GCM tag.
pub(crate) const RTP_TAG_BYTES_MAX: usize = 16;

/// Bytes of the E flag and SRTCP index.
const SRTCP_INDEX_BYTES: usize = 4;

/// The SRTCP header that stays in clear: the first RTCP header and its SSRC.
const SRTCP_CLEAR_BYTES: usize = 8;

/// SSRCs a viewer may send RTCP with (count). Browsers use one per m-section; each costs a replay window.
const REMOTE_SSRCS_MAX: usize = 8;

/// A protection profile (RFC 5764 section 4.1.2, RFC 7714 section 14.2) that an edge speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// SRTP_AEAD_AES_128_GCM, preferred: four times cheaper than the other.
    AeadAes128Gcm,
    /// SRTP_AES128_CM_HMAC_SHA1_80, which everybody has.
    Aes128CmSha1_80,
}

impl Profile {
    /// Bytes a sealed RTP packet is longer than the plain one.
    pub(crate) const fn rtp_tag_bytes(self) -> usize {
        match self {
            Self::AeadAes128Gcm => aead::MAX_TAG_LEN,
            Self::Aes128CmSha1_80 => 10,
        }
    }

    /// Bytes a sealed RTCP packet is longer than the plain one.
    pub(crate) const fn rtcp_overhead_bytes(self) -> usize {
        self.rtp_tag_bytes() + SRTCP_INDEX_BYTES
    }

    const fn salt_bytes(self) -> usize {
        match self {
            Self::AeadAes128Gcm => 12,
            Self::Aes128CmSha1_80 => 14,
        }
    }

    /// Bytes to export from DTLS: two keys and two salts.
    pub(crate) const fn keying_bytes(self) -> usize {
        2 * (KEY_BYTES + self.salt_bytes())
    }

    /// For labels.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::AeadAes128Gcm => "aead_aes_128_gcm",
            Self::Aes128CmSha1_80 => "aes128_cm_sha1_80",
        }
    }
}

const KEY_BYTES: usize = 16;

/// Why SRTP state can't be made or a packet can't be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Fewer bytes than the profile's keys and salts.
    #[error("the keying material is too short")]
    KeyingMaterial,
    /// Shorter than the smallest packet of its kind.
    #[error("the packet is too short")]
    TooShort,
    /// Not encrypted, which RFC 3711 leaves to policy; ours is to refuse it.
    #[error("the packet is not encrypted")]
    Unencrypted,
    /// The tag doesn't fit: forged, damaged or with other keys.
    #[error("the packet is not authentic")]
    Forged,
    /// Seen before, or too old to tell.
    #[error("the packet was seen before")]
    Replayed,
    /// More SSRCs than a viewer needs.
    #[error("too many senders of control packets")]
    TooManySenders,
}

/// What a viewer's DTLS handshake yields: how to seal towards it and how to open what it sends. What every packet needs is inline, beside the
/// rest of the viewer's state; what a second needs once is not.
#[derive(Debug)]
pub(crate) struct Session {
    /// Seals RTP.
    pub(crate) media: Sealer,
    /// Seals RTCP.
    pub(crate) control: Box<ControlSealer>,
    /// Opens RTCP.
    pub(crate) feedback: Box<ControlOpener>,
}

impl Session {
    /// From the exported keying material of a DTLS server (RFC 5764 section 4.2: client key, server key, client salt,
    /// server salt).
    ///
    /// # Errors
    /// If the material is too short.
    pub(crate) fn of_server(profile: Profile, material: &[u8]) -> Result<Self, Error> {
        let (ours, theirs) = split(profile, material)?;
        Ok(Self {
            media: Sealer {
                keys: Keys::derive(profile, &ours, &Labels::RTP),
            },
            control: Box::new(ControlSealer {
                keys: Keys::derive(profile, &ours, &Labels::RTCP),
                index: 0,
            }),
            feedback: Box::new(ControlOpener {
                keys: Keys::derive(profile, &theirs, &Labels::RTCP),
                senders: SmallVec::new(),
            }),
        })
    }

    /// The profile.
    pub(crate) const fn profile(&self) -> Profile {
        self.media.keys.profile()
    }
}

/// A master key and salt; the salt is padded to 14 bytes as RFC 7714 section 11 has it.
struct Master {
    key: [u8; KEY_BYTES],
    salt: [u8; 14],
}

fn split(profile: Profile, material: &[u8]) -> Result<(Master, Master), Error> {
    let salt_bytes = profile.salt_bytes();
    let (client_key, rest) = material
        .split_first_chunk::<KEY_BYTES>()
        .ok_or(Error::KeyingMaterial)?;
    let (server_key, rest) = rest
        .split_first_chunk::<KEY_BYTES>()
        .ok_or(Error::KeyingMaterial)?;
    if rest.len() < 2 * salt_bytes {
        return Err(Error::KeyingMaterial);
    }
    let padded = |salt: &[u8]| {
        let mut out = [0; 14];
        out[..salt_bytes].copy_from_slice(salt);
        out
    };
    let client = Master {
        key: *client_key,
        salt: padded(&rest[..salt_bytes]),
    };
    let server = Master {
        key: *server_key,
        salt: padded(&rest[salt_bytes..2 * salt_bytes]),
    };
    Ok((server, client))
}

/// Key derivation labels (RFC 3711 section 4.3.1 and 4.3.2).
struct Labels {
    encryption: u8,
    authentication: u8,
    salt: u8,
}

impl Labels {
    const RTP: Self = Self {
        encryption: 0,
        authentication: 1,
        salt: 2,
    };
    const RTCP: Self = Self {
        encryption: 3,
        authentication: 4,
        salt: 5,
    };
}

impl Master {
    /// Fills `out` with the key of `label` (RFC 3711 section 4.3.3); the key derivation rate is 0.
    fn derive(&self, label: u8, out: &mut [u8]) {
        let mut iv = [0; 16];
        iv[..14].copy_from_slice(&self.salt);
        iv[7] ^= label;
        out.fill(0);
        let cipher = Aes128Enc::new(&self.key.into());
        Ctr128BE::from_core(CtrCore::inner_iv_init(cipher, &iv.into())).apply_keystream(out);
    }
}

/// Session keys of one direction and one protocol.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what nearly all viewers have"
)]
enum Keys {
    Gcm {
        key: aead::LessSafeKey,
        salt: [u8; 12],
    },
    Cm {
        cipher: Box<Aes128Enc>,
        /// Keyed once; cloned per packet, which copies two SHA-1 states.
        mac: Box<Hmac<Sha1>>,
        salt: [u8; 14],
    },
}

/// Keys stay out of logs.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.profile().as_str())
    }
}

impl Keys {
    fn derive(profile: Profile, master: &Master, labels: &Labels) -> Self {
        let mut key = [0; KEY_BYTES];
        master.derive(labels.encryption, &mut key);
        match profile {
            Profile::AeadAes128Gcm => {
                let mut salt = [0; 12];
                master.derive(labels.salt, &mut salt);
                let key = aead::UnboundKey::new(&aead::AES_128_GCM, &key)
                    .expect("16 bytes are an AES-128 key");
                Self::Gcm {
                    key: aead::LessSafeKey::new(key),
                    salt,
                }
            }
            Profile::Aes128CmSha1_80 => {
                let mut salt = [0; 14];
                master.derive(labels.salt, &mut salt);
                let mut authentication = [0; 20];
                master.derive(labels.authentication, &mut authentication);
                Self::Cm {
                    cipher: Box::new(Aes128Enc::new(&key.into())),
                    mac: Box::new(
                        <Hmac<Sha1> as Mac>::new_from_slice(&authentication)
                            .expect("HMAC takes keys of any length"),
                    ),
                    salt,
                }
            }
        }
    }

    const fn profile(&self) -> Profile {
        match self {
            Self::Gcm { .. } => Profile::AeadAes128Gcm,
            Self::Cm { .. } => Profile::Aes128CmSha1_80,
        }
    }
}

/// The GCM nonce: two zero bytes, the SSRC and a 48-bit counter, xor the salt (RFC 7714 sections 8.1 and 9.1).
fn gcm_nonce(salt: &[u8; 12], ssrc: [u8; 4], counter: u64) -> aead::Nonce {
    let mut nonce = *salt;
    for (byte, ssrc) in nonce[2..6].iter_mut().zip(ssrc) {
        *byte ^= ssrc;
    }
    for (byte, counter) in nonce[6..].iter_mut().zip(&counter.to_be_bytes()[2..]) {
        *byte ^= counter;
    }
    aead::Nonce::assume_unique_for_key(nonce)
}

/// Applies the counter-mode keystream (RFC 3711 section 4.1.1).
fn apply_counter_mode(
    cipher: &Aes128Enc,
    salt: &[u8; 14],
    ssrc: [u8; 4],
    index: u64,
    data: &mut [u8],
) {
    let mut iv = [0; 16];
    iv[..14].copy_from_slice(salt);
    for (byte, ssrc) in iv[4..8].iter_mut().zip(ssrc) {
        *byte ^= ssrc;
    }
    for (byte, index) in iv[8..14].iter_mut().zip(&index.to_be_bytes()[2..]) {
        *byte ^= index;
    }
    // The clone copies eleven round keys, 176 bytes.
    Ctr128BE::from_core(CtrCore::inner_iv_init(cipher.clone(), &iv.into())).apply_keystream(data);
}

/// Seals RTP packets.
#[derive(Debug)]
pub(crate) struct Sealer {
    keys: Keys,
}

impl Sealer {
    /// Bytes that [`Self::seal`] needs behind the payload.
    pub(crate) const fn tag_bytes(&self) -> usize {
        self.keys.profile().rtp_tag_bytes()
    }

    /// Seals `packet` in place: `header_bytes` of header and extensions, the payload, and room for the tag as its
    /// last [`Self::tag_bytes`]. `rollover` is the upper half of the extended sequence number, whose lower half stands
    /// in the header; the two together must never repeat for an SSRC.
    ///
    /// # Errors
    /// If `packet` is shorter than header and tag.
    pub(crate) fn seal(
        &self,
        packet: &mut [u8],
        header_bytes: usize,
        rollover: u32,
    ) -> Result<(), Error> {
        let tag_bytes = self.tag_bytes();
        if header_bytes < 12 || packet.len() < header_bytes + tag_bytes {
            return Err(Error::TooShort);
        }
        let ssrc = [packet[8], packet[9], packet[10], packet[11]];
        let sequence = u16::from_be_bytes([packet[2], packet[3]]);
        let index = (u64::from(rollover) << 16) | u64::from(sequence);
        let body_end = packet.len() - tag_bytes;
        match &self.keys {
            Keys::Gcm { key, salt } => {
                let (header, rest) = packet.split_at_mut(header_bytes);
                let (body, tag_room) = rest.split_at_mut(body_end - header_bytes);
                let tag = key
                    .seal_in_place_separate_tag(
                        gcm_nonce(salt, ssrc, index),
                        aead::Aad::from(&*header),
                        body,
                    )
                    .map_err(|_| Error::Forged)?;
                tag_room.copy_from_slice(tag.as_ref());
            }
            Keys::Cm { cipher, mac, salt } => {
                apply_counter_mode(
                    cipher,
                    salt,
                    ssrc,
                    index,
                    &mut packet[header_bytes..body_end],
                );
                let mut mac = Hmac::clone(mac);
                mac.update(&packet[..body_end]);
                mac.update(&rollover.to_be_bytes());
                let tag = mac.finalize().into_bytes();
                packet[body_end..].copy_from_slice(&tag[..tag_bytes]);
            }
        }
        Ok(())
    }
}

/// Seals compound RTCP packets; counts the index.
#[derive(Debug)]
pub(crate) struct ControlSealer {
    keys: Keys,
    /// The last index used, 31 bits.
    index: u32,
}

impl ControlSealer {
    /// Seals the compound packet in `packet` and appends index and tag. One index space serves all our SSRCs, which
    /// RFC 3711 allows: the pair of SSRC and index stays unique.
    ///
    /// # Errors
    /// If it is too short to be RTCP.
    pub(crate) fn seal(&mut self, packet: &mut Vec<u8>) -> Result<(), Error> {
        if packet.len() < SRTCP_CLEAR_BYTES {
            return Err(Error::TooShort);
        }
        // 2^31 reports at one a second are 68 years.
        self.index = (self.index + 1) & 0x7fff_ffff;
        let word = (0x8000_0000 | self.index).to_be_bytes();
        let ssrc = [packet[4], packet[5], packet[6], packet[7]];
        match &self.keys {
            Keys::Gcm { key, salt } => {
                let mut aad = [0; SRTCP_CLEAR_BYTES + SRTCP_INDEX_BYTES];
                aad[..SRTCP_CLEAR_BYTES].copy_from_slice(&packet[..SRTCP_CLEAR_BYTES]);
                aad[SRTCP_CLEAR_BYTES..].copy_from_slice(&word);
                let tag = key
                    .seal_in_place_separate_tag(
                        gcm_nonce(salt, ssrc, u64::from(self.index)),
                        aead::Aad::from(aad),
                        &mut packet[SRTCP_CLEAR_BYTES..],
                    )
                    .map_err(|_| Error::Forged)?;
                packet.extend_from_slice(tag.as_ref());
                packet.extend_from_slice(&word);
            }
            Keys::Cm { cipher, mac, salt } => {
                apply_counter_mode(
                    cipher,
                    salt,
                    ssrc,
                    u64::from(self.index),
                    &mut packet[SRTCP_CLEAR_BYTES..],
                );
                packet.extend_from_slice(&word);
                let mut mac = Hmac::clone(mac);
                mac.update(packet);
                let tag = mac.finalize().into_bytes();
                packet.extend_from_slice(&tag[..self.keys.profile().rtp_tag_bytes()]);
            }
        }
        Ok(())
    }
}

/// Opens compound RTCP packets of a viewer, each once.
#[derive(Debug)]
pub(crate) struct ControlOpener {
    keys: Keys,
    senders: SmallVec<[(u32, ReplayWindow); 2]>,
}

impl ControlOpener {
    /// Opens `packet` in place and yields the plain compound packet.
    ///
    /// # Errors
    /// See [`Error`]; nothing is remembered of a packet that isn't authentic.
    pub(crate) fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<&'a [u8], Error> {
        let overhead = self.keys.profile().rtcp_overhead_bytes();
        if packet.len() < SRTCP_CLEAR_BYTES + overhead {
            return Err(Error::TooShort);
        }
        let tag_bytes = overhead - SRTCP_INDEX_BYTES;
        let body_end = packet.len() - overhead;
        // GCM: body, tag, index (RFC 7714 section 9.3). Counter mode: body, index, tag.
        let word_at = match &self.keys {
            Keys::Gcm { .. } => body_end + tag_bytes,
            Keys::Cm { .. } => body_end,
        };
        let word = [
            packet[word_at],
            packet[word_at + 1],
            packet[word_at + 2],
            packet[word_at + 3],
        ];
        if word[0] & 0x80 == 0 {
            return Err(Error::Unencrypted);
        }
        let index = u32::from_be_bytes(word) & 0x7fff_ffff;
        let ssrc_bytes = [packet[4], packet[5], packet[6], packet[7]];
        let ssrc = u32::from_be_bytes(ssrc_bytes);
        let known = self.senders.iter().position(|(known, _)| *known == ssrc);
        match known {
            Some(i) if !self.senders[i].1.is_new(index) => return Err(Error::Replayed),
            None if self.senders.len() >= REMOTE_SSRCS_MAX => return Err(Error::TooManySenders),
            Some(_) | None => {}
        }

        match &self.keys {
            Keys::Gcm { key, salt } => {
                let mut aad = [0; SRTCP_CLEAR_BYTES + SRTCP_INDEX_BYTES];
                aad[..SRTCP_CLEAR_BYTES].copy_from_slice(&packet[..SRTCP_CLEAR_BYTES]);
                aad[SRTCP_CLEAR_BYTES..].copy_from_slice(&word);
                key.open_in_place(
                    gcm_nonce(salt, ssrc_bytes, u64::from(index)),
                    aead::Aad::from(aad),
                    &mut packet[SRTCP_CLEAR_BYTES..body_end + tag_bytes],
                )
                .map_err(|_| Error::Forged)?;
            }
            Keys::Cm { cipher, mac, salt } => {
                let (authenticated, tag) = packet.split_at(body_end + SRTCP_INDEX_BYTES);
                let mut mac = Hmac::clone(mac);
                mac.update(authenticated);
                mac.verify_truncated_left(tag).map_err(|_| Error::Forged)?;
                apply_counter_mode(
                    cipher,
                    salt,
                    ssrc_bytes,
                    u64::from(index),
                    &mut packet[SRTCP_CLEAR_BYTES..body_end],
                );
            }
        }

        match known {
            Some(i) => self.senders[i].1.accept(index),
            None => self.senders.push((ssrc, ReplayWindow::new(index))),
        }
        Ok(&packet[..body_end])
    }
}

/// Which of the last 64 indices came (RFC 3711 section 3.3.2).
#[derive(Debug, Clone, Copy)]
struct ReplayWindow {
    newest: u32,
    /// Bit i: `newest - i` came.
    seen: u64,
}

impl ReplayWindow {
    const fn new(first: u32) -> Self {
        Self {
            newest: first,
            seen: 1,
        }
    }

    const fn is_new(&self, index: u32) -> bool {
        match self.newest.checked_sub(index) {
            None => true,
            Some(age @ 0..64) => self.seen & (1 << age) == 0,
            Some(_) => false,
        }
    }

    fn accept(&mut self, index: u32) {
        if let Some(age) = self.newest.checked_sub(index) {
            self.seen |= 1_u64.checked_shl(age).unwrap_or(0);
        } else {
            self.seen = self.seen.checked_shl(index - self.newest).unwrap_or(0) | 1;
            self.newest = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use rtc_srtp::context::Context;
    use rtc_srtp::option::srtcp_replay_protection;
    use rtc_srtp::protection_profile::ProtectionProfile;

    use super::*;

    const PROFILES: [(Profile, ProtectionProfile); 2] = [
        (Profile::AeadAes128Gcm, ProtectionProfile::AeadAes128Gcm),
        (
            Profile::Aes128CmSha1_80,
            ProtectionProfile::Aes128CmHmacSha1_80,
        ),
    ];

    fn material(profile: Profile) -> Vec<u8> {
        (0..u8::MAX).take(profile.keying_bytes()).collect()
    }

    /// The peer's contexts: what it opens with (our keys) and what it seals with (its own).
    fn peer(profile: Profile, theirs: ProtectionProfile) -> (Context, Context) {
        let material = material(profile);
        let mut config = rtc_srtp::config::Config {
            profile: theirs,
            ..Default::default()
        };
        config
            .set_session_keys_from_keying_material(&material, true)
            .unwrap();
        let provider = rtc_crypto::default_provider().unwrap();
        let context = |key: &[u8], salt: &[u8]| {
            Context::new(
                key,
                salt,
                theirs,
                None,
                Some(srtcp_replay_protection(64)),
                provider.crypto(),
            )
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

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len() / 2)
            .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn keys_are_derived_as_in_rfc_3711_appendix_b3() {
        let master = Master {
            key: hex("E1F97A0D3E018BE0D64FA32C06DE4139").try_into().unwrap(),
            salt: hex("0EC675AD498AFEEBB6960B3AABE6").try_into().unwrap(),
        };
        for (label, expected) in [
            (0, "C61E7A93744F39EE10734AFE3FF7A087"),
            (2, "30CBBC08863D8C85D49DB34A9AE1"),
            (1, "CEBE321F6FF7716B6FD4AB49AF256A156D38BAA4"),
        ] {
            let expected = hex(expected);
            let mut key = vec![0; expected.len()];
            master.derive(label, &mut key);
            assert_eq!(key, expected, "label {label}");
        }
    }

    /// RFC 7714 section 16.1.1: session key and salt given, one packet.
    #[test]
    fn gcm_seals_the_vector_of_rfc_7714() {
        let key: [u8; 16] = hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap();
        let sealer = Sealer {
            keys: Keys::Gcm {
                key: aead::LessSafeKey::new(
                    aead::UnboundKey::new(&aead::AES_128_GCM, &key).unwrap(),
                ),
                salt: hex("517569642070726f2071756f").try_into().unwrap(),
            },
        };
        let mut packet = hex(
            "8040f17b8041f8d35501a0b247616c6c696120657374206f6d6e6973206469766973612069\
             6e207061727465732074726573",
        );
        packet.resize(packet.len() + 16, 0);
        sealer.seal(&mut packet, 12, 0).unwrap();
        assert_eq!(
            packet,
            hex(
                "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f\
                 42a5f47a51c7d19b36de3adf8833899d7f27beb16a9152cf765ee4390cce"
            )
        );
    }

    #[test]
    fn rtc_srtp_opens_what_we_seal_across_rollovers() {
        for (profile, theirs) in PROFILES {
            let session = Session::of_server(profile, &material(profile)).unwrap();
            let (mut opener, _) = peer(profile, theirs);
            // Starts next to the first wrap and passes it; then far ahead in steps a receiver follows.
            let indices = (65_500_u64..65_600).chain((65_600..400_000).step_by(20_000));
            for index in indices {
                let sequence = u16::try_from(index & 0xffff).unwrap();
                let mut packet = vec![0x80, 96];
                packet.extend_from_slice(&sequence.to_be_bytes());
                packet.extend_from_slice(&[0, 0, 0, 1, 0xde, 0xad, 0xbe, 0xef]);
                packet.extend_from_slice(b"a payload");
                let plain = packet.clone();
                packet.resize(packet.len() + session.media.tag_bytes(), 0);
                session
                    .media
                    .seal(&mut packet, 12, u32::try_from(index >> 16).unwrap())
                    .unwrap();
                assert_ne!(&packet[12..21], b"a payload");
                let opened = opener.decrypt_rtp(&packet).unwrap();
                assert_eq!(&opened[..], &plain[..], "{profile:?} {index}");
            }
        }
    }

    #[test]
    fn control_packets_pass_between_us_and_rtc_srtp() {
        let report = hex("80c80006deadbeef0102030405060708000000010000000200000003");
        for (profile, theirs) in PROFILES {
            let mut session = Session::of_server(profile, &material(profile)).unwrap();
            let (mut opener, mut sealer) = peer(profile, theirs);
            for _ in 0..3 {
                let mut ours = report.clone();
                session.control.seal(&mut ours).unwrap();
                assert_eq!(ours.len(), report.len() + profile.rtcp_overhead_bytes());
                assert_eq!(&opener.decrypt_rtcp(&ours).unwrap()[..], &report[..]);

                let sealed = sealer.encrypt_rtcp(&report).unwrap();
                let mut once = sealed.to_vec();
                assert_eq!(session.feedback.open(&mut once).unwrap(), &report[..]);
                let mut again = sealed.to_vec();
                assert_eq!(session.feedback.open(&mut again), Err(Error::Replayed));
            }
        }
    }

    #[test]
    fn forged_and_short_control_packets_are_refused_and_leave_nothing_behind() {
        let report = hex("80c80006deadbeef0102030405060708000000010000000200000003");
        for (profile, theirs) in PROFILES {
            let mut session = Session::of_server(profile, &material(profile)).unwrap();
            let (_, mut sealer) = peer(profile, theirs);
            let sealed = sealer.encrypt_rtcp(&report).unwrap();
            for i in 0..sealed.len() {
                let mut forged = sealed.to_vec();
                forged[i] ^= 1;
                assert!(session.feedback.open(&mut forged).is_err());
            }
            for cut in 0..sealed.len() {
                assert!(session.feedback.open(&mut sealed[..cut].to_vec()).is_err());
            }
            assert!(session.feedback.senders.is_empty());
        }
    }

    #[test]
    fn replay_windows_take_each_index_once_and_nothing_old() {
        let mut window = ReplayWindow::new(100);
        for (index, new) in [
            (100, false),
            (99, true),
            (99, false),
            (37, true),
            (36, false),
            (163, true),
            (100, false),
            (101, true),
            (1000, true),
            (163, false),
            (937, true),
            (936, false),
        ] {
            assert_eq!(window.is_new(index), new, "{index}");
            if new {
                window.accept(index);
            }
        }
    }
}
