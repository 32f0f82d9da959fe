//! Names and numbers that identify things across the cluster, as types that cannot be mixed up.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The name of a stream, `app/stream`, as publishers and viewers write it in URLs.
///
/// Both parts are 1 to 128 characters of `A-Z a-z 0-9 . _ ~ -` and are neither `.` nor `..`, so a name is safe in a
/// URL path, an etcd key and a log line. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(Arc<str>);

/// Why a text is no [`StreamName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a stream name is app/stream, each part 1 to 128 characters of A-Z a-z 0-9 . _ ~ -")]
pub struct InvalidStreamName;

impl StreamName {
    const PART_CHARS_MAX: usize = 128;

    /// From the two parts.
    ///
    /// # Errors
    /// If a part is empty, too long, a dot segment, or has a character outside the set.
    pub fn new(app: &str, stream: &str) -> Result<Self, InvalidStreamName> {
        let part = |text: &str| {
            (1..=Self::PART_CHARS_MAX).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b))
                && text != "."
                && text != ".."
        };
        if part(app) && part(stream) {
            Ok(Self(format!("{app}/{stream}").into()))
        } else {
            Err(InvalidStreamName)
        }
    }

    /// `app/stream`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the slash.
    pub fn app(&self) -> &str {
        self.0.split_once('/').map_or("", |(app, _)| app)
    }

    /// The part after the slash.
    pub fn stream(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, stream)| stream)
    }
}

impl FromStr for StreamName {
    type Err = InvalidStreamName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (app, stream) = text.split_once('/').ok_or(InvalidStreamName)?;
        Self::new(app, stream)
    }
}

impl TryFrom<String> for StreamName {
    type Error = InvalidStreamName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamName({self})")
    }
}

/// The name of a node, unique in its cluster: 1 to 63 characters of `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

/// Why a text is no [`NodeId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node id is 1 to 63 characters of A-Z a-z 0-9 . _ -")]
pub struct InvalidNodeId;

impl NodeId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=63).contains(&text.len());
        let clean = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits && clean {
            Ok(Self(text.into()))
        } else {
            Err(InvalidNodeId)
        }
    }
}

impl TryFrom<String> for NodeId {
    type Error = InvalidNodeId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One incarnation of a stream's publisher, and the fencing token of its owner: a higher epoch
/// replaces a lower one everywhere, and nothing of two epochs is ever mixed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A track's number within its stream, assigned by the stream and stable while it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackId(pub u16);

impl TrackId {
    /// The video as the publisher sent it, rendition `source`.
    pub const SOURCE_VIDEO: Self = Self(0);
    /// The audio as the publisher sent it.
    pub const SOURCE_AUDIO: Self = Self(1);
    /// The audio in Opus, made by the origin.
    pub const OPUS: Self = Self(2);
    /// Further renditions have this number or one above it, in the order in which their names first occurred.
    pub const FIRST_RENDITION: Self = Self(16);
}

/// The name of a rendition that a publisher chose: 1 to 32 characters of `A-Z a-z 0-9 . _ ~ -`, and not `source`, which the stream's default
/// video is called.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RenditionName(Arc<str>);

/// Why a text is no [`RenditionName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a rendition's name is 1 to 32 characters of A-Z a-z 0-9 . _ ~ -, and not source")]
pub struct InvalidRenditionName;

impl RenditionName {
    /// What the default video is called.
    pub const SOURCE: &str = "source";
    const CHARS_MAX: usize = 32;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RenditionName {
    type Err = InvalidRenditionName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let clean = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._~-".contains(&b));
        if clean && (1..=Self::CHARS_MAX).contains(&text.len()) && text != Self::SOURCE {
            Ok(Self(text.into()))
        } else {
            Err(InvalidRenditionName)
        }
    }
}

impl fmt::Display for RenditionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One who sends a rendition of a stream by a connection of its own; unique at an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContributorId(pub u64);

impl fmt::Display for TrackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bits per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bitrate(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_names_are_parsed_or_refused() {
        for good in ["live/demo", "a/b", "live/My.stream_1~x-2"] {
            assert_eq!(
                good.parse::<StreamName>().map(|n| n.to_string()),
                Ok(good.to_owned())
            );
        }
        let long = format!("live/{}", "x".repeat(129));
        for bad in [
            "",
            "/",
            "live",
            "live/",
            "/x",
            "a/b/c",
            "live/..",
            "live/a b",
            "live/ä",
            "live/a%2f",
            &long,
        ] {
            assert_eq!(bad.parse::<StreamName>(), Err(InvalidStreamName), "{bad:?}");
        }
        let name: StreamName = "live/demo".parse().expect("valid");
        assert_eq!((name.app(), name.stream()), ("live", "demo"));
    }

    #[test]
    fn node_ids_are_parsed_or_refused() {
        assert!("edge-1.eu".parse::<NodeId>().is_ok());
        for bad in ["", "a/b", "a b"] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad:?}");
        }
    }
}
