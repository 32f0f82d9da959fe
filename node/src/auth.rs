//! Static tokens: kept out of logs, compared in constant time, read from `Authorization: Bearer`.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use serde::Deserialize;

/// A secret that admits whoever presents it. Never shows itself in `Debug` output; cheap to clone.
///
/// 1 to 1024 visible ASCII characters, so that it fits an HTTP header and a URL's query after escaping.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Token(Arc<str>);

/// Why a text is no [`Token`]. Doesn't repeat the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token is 1 to 1024 visible ASCII characters")]
pub struct InvalidToken;

impl Token {
    const CHARS_MAX: usize = 1024;

    /// Whether `presented` is this token. Takes a time that depends on the length of `presented` only.
    pub fn matches(&self, presented: &str) -> bool {
        let own = self.0.as_bytes();
        let mut difference = u8::from(own.len() != presented.len());
        for (at, byte) in presented.bytes().enumerate() {
            // `own` is not empty by construction; wrapping around keeps the work independent of its length.
            let other = own.get(at % own.len().max(1)).copied().unwrap_or(0);
            difference = black_box(difference | (byte ^ other));
        }
        black_box(difference) == 0
    }

    /// The secret itself, for the one who must present it (`headwater probe`, an upstream call).
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Token {
    type Error = InvalidToken;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let fits = (1..=Self::CHARS_MAX).contains(&text.len());
        if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidToken)
        }
    }
}

impl std::str::FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.to_owned().try_into()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        self.matches(&other.0)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The token of an `Authorization` header's value, if it is a bearer token (RFC 6750 section 2.1; the scheme's case does
/// not matter, RFC 9110 section 11.1).
pub fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && !token.contains(' '))
        .then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_token_matches() {
        let token: Token = "s3cret".parse().expect("valid");
        assert!(token.matches("s3cret"));
        for wrong in ["", "s3cre", "s3cret!", "s3creT", "s3crets3cret", "x"] {
            assert!(!token.matches(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let token: Token = "s3cret".parse().expect("valid");
        assert!(!format!("{token:?} {:?}", Some(&token)).contains("s3cret"));
        let long = "x".repeat(1025);
        for bad in ["", "a b", "ä", "a\n", &long] {
            let error = bad.parse::<Token>().expect_err("invalid");
            assert!(bad.is_empty() || !error.to_string().contains(bad));
        }
    }

    #[test]
    fn bearer_headers_are_read() {
        for (header, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("BEARER a.b-c~d+/=", Some("a.b-c~d+/=")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic abc", None),
            ("Bearer a b", None),
            ("", None),
        ] {
            assert_eq!(bearer(header), expected, "{header:?}");
        }
    }
}
