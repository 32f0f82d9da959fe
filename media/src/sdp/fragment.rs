//! The body of a PATCH: `application/trickle-ice-sdpfrag` (RFC 8840 section 9, RFC 9725 section 4.3).
//!
//! An ICE-lite server learns a viewer's addresses from its checks, so candidates are counted and passed over, whatever
//! they are (mDNS names, TCP, IPv6). What matters is whether the fragment has new credentials: that is an ICE restart.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::Write as _;

use super::{Local, answer};

/// The longest fragment that is read, in bytes.
const FRAGMENT_BYTES_MAX: usize = 64 * 1024;

/// One side's ICE user fragment and password (RFC 8839 section 5.4).
#[derive(Clone, PartialEq, Eq)]
pub struct IceCredentials {
    /// 4 to 256 ice-chars.
    pub ufrag: String,
    /// 22 to 256 ice-chars.
    pub pwd: String,
}

/// The password is a secret of the session: logs show the user fragment only.
impl std::fmt::Debug for IceCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IceCredentials")
            .field("ufrag", &self.ufrag)
            .finish_non_exhaustive()
    }
}

/// What a PATCH brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fragment {
    /// The credentials it names. Those of the running ICE session when it trickles, new ones when it restarts.
    pub ice: Option<IceCredentials>,
    /// `a=candidate` lines (count).
    pub candidates: usize,
    /// `a=end-of-candidates` was there.
    pub complete: bool,
}

/// Why a text is no fragment. The sentence is for the person who wrote the player.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FragmentError {
    /// Longer than anything a player has to say.
    #[error("the fragment is longer than {FRAGMENT_BYTES_MAX} bytes")]
    TooLong,
    /// Lines that are no SDP.
    #[error("line {0} of the fragment is no SDP line")]
    Malformed(usize),
    /// A user fragment without a password, or the reverse, or characters they can't have.
    #[error("the fragment's ICE user or password is not usable")]
    Credentials,
    /// It says nothing.
    #[error("the fragment has neither candidates nor ICE credentials")]
    Empty,
}

impl Fragment {
    /// Reads a fragment. Sections beyond the BUNDLE-tagged one are accepted and must agree with it.
    ///
    /// # Errors
    /// [`FragmentError`]: tell the player by a 400 with this sentence.
    pub fn parse(text: &str) -> Result<Self, FragmentError> {
        if text.len() > FRAGMENT_BYTES_MAX {
            return Err(FragmentError::TooLong);
        }
        let mut fragment = Self::default();
        let (mut ufrag, mut pwd) = (None, None);
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end();
            if line.is_empty() {
                continue;
            }
            let Some((kind, rest)) = line.split_once('=') else {
                return Err(FragmentError::Malformed(number));
            };
            if kind.len() != 1 || !kind.bytes().all(|b| b.is_ascii_alphabetic()) {
                return Err(FragmentError::Malformed(number));
            }
            if kind != "a" {
                continue;
            }
            let (key, value) = rest.split_once(':').unwrap_or((rest, ""));
            match key {
                "ice-ufrag" => agree(&mut ufrag, value)?,
                "ice-pwd" => agree(&mut pwd, value)?,
                "candidate" => fragment.candidates = fragment.candidates.saturating_add(1),
                "end-of-candidates" => fragment.complete = true,
                _ => {}
            }
        }
        fragment.ice = match (ufrag, pwd) {
            (None, None) => None,
            (Some(ufrag), Some(pwd)) => {
                Some(credentials(ufrag, pwd).ok_or(FragmentError::Credentials)?)
            }
            (Some(_), None) | (None, Some(_)) => return Err(FragmentError::Credentials),
        };
        if fragment.ice.is_none() && fragment.candidates == 0 && !fragment.complete {
            return Err(FragmentError::Empty);
        }
        Ok(fragment)
    }

    /// The answer to an ICE restart: our new credentials and all candidates, in the form of RFC 9725 section 4.3.3.
    /// `mids` are those of the answer's BUNDLE group, the tagged one first, each with its media type.
    pub fn restart_answer(mids: &[(&'static str, String)], local: &Local) -> String {
        let mut text = format!("a=ice-lite\r\na=ice-options:{}\r\n", answer::ICE_OPTIONS);
        let Some((media, tagged)) = mids.first() else {
            return text;
        };
        if !tagged.is_empty() {
            text.push_str("a=group:BUNDLE");
            for (_, mid) in mids {
                text.push(' ');
                text.push_str(mid);
            }
            text.push_str("\r\n");
        }
        // Writing to a string can't fail.
        let _ = write!(text, "m={media} 9 UDP/TLS/RTP/SAVPF 0\r\n");
        if !tagged.is_empty() {
            let _ = write!(text, "a=mid:{tagged}\r\n");
        }
        let _ = write!(
            text,
            "a=ice-ufrag:{}\r\na=ice-pwd:{}\r\n",
            local.ufrag, local.pwd
        );
        for candidate in answer::candidates(&local.candidates) {
            let _ = write!(text, "a=candidate:{candidate}\r\n");
        }
        text.push_str("a=end-of-candidates\r\n");
        text
    }
}

/// Checked credentials: `ice-char` is a letter, a digit, `+` or `/` (RFC 8839 section 5.4). Firefox's and others' are
/// within that; a `-` or `_`, seen from hand-written players, does no harm and is let through.
pub(super) fn credentials(ufrag: &str, pwd: &str) -> Option<IceCredentials> {
    let clean = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b))
    };
    let fits = (4..=256).contains(&ufrag.len()) && (22..=256).contains(&pwd.len());
    (fits && clean(ufrag) && clean(pwd)).then(|| IceCredentials {
        ufrag: ufrag.to_owned(),
        pwd: pwd.to_owned(),
    })
}

/// Takes a value, or checks that it repeats the one that is known.
fn agree<'a>(slot: &mut Option<&'a str>, value: &'a str) -> Result<(), FragmentError> {
    let value = value.trim();
    match *slot {
        Some(known) if known != value => Err(FragmentError::Credentials),
        _ => {
            *slot = Some(value);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Candidate;
    use super::*;

    const PWD: &str = "P2uYro0UCOQ4zxjKXaWCBui1";

    #[test]
    fn trickled_candidates_are_counted_and_passed_over() {
        let text = format!(
            "a=ice-ufrag:EsAw\r\na=ice-pwd:{PWD}\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n\
             a=candidate:1387637174 1 udp 2122260223 4f1c.local 61764 typ host generation 0 ufrag EsAw\r\n\
             a=candidate:3471623853 1 tcp 1518280447 192.0.2.1 9 typ host tcptype active\r\n\
             a=candidate:3 1 udp 1 2001:db8::1 61765 typ host\r\na=end-of-candidates\r\n"
        );
        let fragment = Fragment::parse(&text).expect("a fragment");
        assert_eq!((fragment.candidates, fragment.complete), (3, true));
        assert_eq!(fragment.ice.map(|ice| ice.ufrag).as_deref(), Some("EsAw"));
    }

    #[test]
    fn fragments_with_all_sections_or_none_are_fine() {
        let all = format!(
            "a=group:BUNDLE 0 1\nm=audio 9 UDP/TLS/RTP/SAVPF 111\na=mid:0\na=ice-ufrag:EsAw\na=ice-pwd:{PWD}\n\
             m=video 9 UDP/TLS/RTP/SAVPF 96\na=mid:1\na=ice-ufrag:EsAw\na=ice-pwd:{PWD}\n"
        );
        assert!(Fragment::parse(&all).is_ok_and(|fragment| fragment.ice.is_some()));
        assert!(Fragment::parse("a=end-of-candidates").is_ok_and(|fragment| fragment.complete));
        assert!(Fragment::parse("a=candidate:nonsense\r\n").is_ok());
    }

    #[test]
    fn bad_fragments_are_told_apart() {
        let check = |text: &str, error| assert_eq!(Fragment::parse(text), Err(error), "{text:?}");
        check("", FragmentError::Empty);
        check("v=0\r\nm=audio 9 RTP/AVP 0\r\n", FragmentError::Empty);
        check("a=mid:0\r\nhello", FragmentError::Malformed(2));
        check("ab=c", FragmentError::Malformed(1));
        check("a=ice-ufrag:abcd", FragmentError::Credentials);
        check(
            "a=ice-ufrag:ab\r\na=ice-pwd:short",
            FragmentError::Credentials,
        );
        check(
            &format!("a=ice-ufrag:abcd\r\na=ice-pwd:{PWD}\r\na=ice-ufrag:efgh"),
            FragmentError::Credentials,
        );
        check(
            &"a=x\r\n".repeat(FRAGMENT_BYTES_MAX / 4),
            FragmentError::TooLong,
        );
    }

    #[test]
    fn a_restart_is_answered_in_the_form_of_rfc_9725() {
        let local = Local {
            ufrag: "289b31b754eaa438".into(),
            pwd: "0b66f472495ef0ccac7bda653ab6be49".into(),
            fingerprint: [0; 32],
            candidates: vec![
                Candidate::udp("198.51.100.1:8700".parse().expect("an address")),
                Candidate::udp("[2001:db8::1]:8700".parse().expect("an address")),
                Candidate::tcp("198.51.100.1:8700".parse().expect("an address")),
                Candidate::tcp("[2001:db8::1]:8700".parse().expect("an address")),
            ],
        };
        let mids = [("audio", "0".to_owned()), ("video", "1".to_owned())];
        insta::assert_snapshot!(Fragment::restart_answer(&mids, &local).replace("\r\n", "\n"));
    }

    #[test]
    fn the_password_does_not_reach_logs() {
        let ice = credentials("abcd", PWD).expect("credentials");
        assert!(!format!("{ice:?}").contains(PWD));
    }
}
