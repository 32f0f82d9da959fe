//! Whom a publisher wants to be: application, key and parameters, from the several places where encoders put them.

use std::fmt;

use crate::id::{InvalidRenditionName, InvalidStreamName, RenditionName, StreamName};

/// A `publish` command, with what the connection's `connect` said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// The application, without query and outer slashes.
    pub app: String,
    /// The stream's key, without query and outer slashes.
    pub stream: String,
    /// Parameters of the key's query, then those of the application's.
    pub query: Query,
    /// `flashVer` of `connect`: what the encoder calls itself. Printable ASCII, at most 64 characters.
    pub encoder: Option<String>,
}

/// Parameters of a query, percent-decoded. They hold tokens, so [`fmt::Debug`] shows only their names.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, String)>);

/// Parameters read from one query (count).
const PARAMETERS_MAX: usize = 16;
/// Characters kept of an encoder's name.
const ENCODER_CHARS_MAX: usize = 64;

impl Publish {
    /// From the raw texts: the application and key may each have a query behind a `?`.
    pub fn new(app: &str, key: &str, encoder: Option<&str>) -> Self {
        let (app, app_query) = split_query(app);
        let (stream, key_query) = split_query(key);
        let mut query = Query::parse(key_query);
        query.0.extend(Query::parse(app_query).0);
        Self {
            app: app.to_owned(),
            stream: stream.to_owned(),
            query,
            encoder: encoder.map(|name| {
                name.chars()
                    .filter(|c| c.is_ascii_graphic() || *c == ' ')
                    .take(ENCODER_CHARS_MAX)
                    .collect()
            }),
        }
    }

    /// The stream's name: two parts, wherever the slash between them stood. `rtmp://host/live` with key `demo`,
    /// `rtmp://host/live/demo` without key and `rtmp://host` with key `live/demo` are all `live/demo`; Flash's
    /// instance name `_definst_` is left out.
    ///
    /// # Errors
    /// If there are not exactly two parts of permitted characters.
    pub fn name(&self) -> Result<StreamName, InvalidStreamName> {
        let mut parts = [self.app.as_str(), self.stream.as_str()]
            .into_iter()
            .flat_map(|text| text.split('/'))
            .filter(|part| !part.is_empty() && *part != "_definst_");
        match (parts.next(), parts.next(), parts.next()) {
            (Some(app), Some(stream), None) => StreamName::new(app, stream),
            _ => Err(InvalidStreamName),
        }
    }
}

impl Publish {
    /// The rendition of the stream that is to be published, by `?rendition=480p`; none: the stream itself, its source.
    ///
    /// # Errors
    /// If it is no name.
    pub fn rendition(&self) -> Result<Option<RenditionName>, InvalidRenditionName> {
        match self.query.get("rendition") {
            None | Some(RenditionName::SOURCE) => Ok(None),
            Some(name) => name.parse().map(Some),
        }
    }
}

impl Query {
    /// From `a=1&b=2`.
    pub fn parse(text: &str) -> Self {
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .take(PARAMETERS_MAX)
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
    }
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

fn split_query(text: &str) -> (&str, &str) {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    (path.trim_matches('/'), query)
}

/// Percent-decoding (RFC 3986 section 2.1); what is no valid escape stays as it is.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let hex = |digit: u8| {
            char::from(digit)
                .to_digit(16)
                .and_then(|v| u8::try_from(v).ok())
        };
        if let (b'%', [high, low, tail @ ..]) = (*byte, rest)
            && let (Some(high), Some(low)) = (hex(*high), hex(*low))
        {
            out.push(high << 4 | low);
            rest = tail;
        } else {
            out.push(*byte);
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_the_encoder_put_them() {
        for (app, key, name) in [
            ("live", "demo", Some("live/demo")),
            ("live/", "demo", Some("live/demo")),
            ("/live", "/demo", Some("live/demo")),
            ("live/demo", "", Some("live/demo")),
            ("", "live/demo", Some("live/demo")),
            ("live?token=x", "demo?a=b", Some("live/demo")),
            ("live/_definst_", "demo", Some("live/demo")),
            ("live/?vhost=a.b", "demo", Some("live/demo")),
            ("live", "", None),
            ("", "", None),
            ("a/b", "c", None),
            ("live", "..", None),
            ("live", "de mo", None),
        ] {
            let found = Publish::new(app, key, None).name().ok();
            assert_eq!(found.map(String::from).as_deref(), name, "{app:?} {key:?}");
        }
    }

    #[test]
    fn a_rendition_is_named_behind_the_key() {
        let named = |key: &str| Publish::new("live", key, None).rendition();
        assert_eq!(named("demo"), Ok(None));
        assert_eq!(named("demo?rendition=source"), Ok(None));
        assert_eq!(
            named("demo?token=x&rendition=480p"),
            Ok("480p".parse().ok())
        );
        for bad in ["", "a%20b", "%2f", &"x".repeat(33)] {
            assert!(named(&format!("demo?rendition={bad}")).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parameters_are_decoded_and_never_shown() {
        let publish = Publish::new(
            "live?token=from-app&v=2",
            "demo?token=s%63cret%2",
            Some("OBS\n30"),
        );
        assert_eq!(publish.query.get("token"), Some("sccret%2"));
        assert_eq!(publish.query.get("v"), Some("2"));
        assert_eq!(publish.query.get("x"), None);
        assert_eq!(publish.encoder.as_deref(), Some("OBS30"));
        let shown = format!("{publish:?}");
        assert!(
            !shown.contains("cret") && !shown.contains("from-app"),
            "{shown}"
        );
    }
}
