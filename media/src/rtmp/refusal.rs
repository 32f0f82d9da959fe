//! Why a publisher may not publish, in words that encoders show.

/// Why a publisher is refused or ended. The peer sees a code and one sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The name is malformed.
    Name,
    /// The publish token is missing or wrong.
    Token,
    /// Somebody else is publishing under this name.
    Busy,
    /// The server that has the stream does not answer, and has to be waited for.
    Held,
    /// This server has no room, or can't decide now; trying again may work.
    Unavailable,
    /// The server is stopping.
    Stopping,
    /// A newer publisher took over.
    Replaced,
    /// An administrator ended it.
    Kicked,
    /// The rendition's name is malformed.
    Rendition,
    /// The rendition's keyframes are not at the source's times.
    Unaligned,
    /// A rendition of a stream whose source nobody publishes.
    NoSource,
}

impl Refusal {
    /// The value of a `result` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Token => "token",
            Self::Busy => "busy",
            Self::Held => "held",
            Self::Unavailable => "unavailable",
            Self::Stopping => "stopping",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Rendition => "rendition",
            Self::Unaligned => "unaligned",
            Self::NoSource => "no_source",
        }
    }

    /// The status code, which encoders tell apart, and the sentence, which they show or log.
    pub(super) const fn status(self) -> (&'static str, &'static str) {
        match self {
            Self::Name => (
                "NetStream.Publish.BadName",
                "publish to rtmp://HOST/APP/STREAM; both names are 1 to 128 of A-Z a-z 0-9 . _ ~ -",
            ),
            Self::Token => (
                "NetStream.Publish.Denied",
                "the publish token is missing or wrong: append ?token=... to the stream key",
            ),
            Self::Busy => (
                "NetStream.Publish.BadName",
                "this stream already has a publisher",
            ),
            Self::Held => (
                "NetStream.Publish.BadName",
                "the server that has this stream does not answer; it is free within 15 seconds: try again",
            ),
            Self::Unavailable => (
                "NetStream.Publish.BadName",
                "the server can't take this stream now; try again",
            ),
            Self::Stopping => ("NetStream.Publish.BadName", "the server is stopping"),
            Self::Replaced => (
                "NetStream.Publish.BadName",
                "another publisher took this stream over",
            ),
            Self::Kicked => (
                "NetStream.Publish.BadName",
                "an administrator ended this stream",
            ),
            Self::Rendition => (
                "NetStream.Publish.BadName",
                "a rendition's name is 1 to 32 of A-Z a-z 0-9 . _ ~ -",
            ),
            Self::Unaligned => (
                "NetStream.Publish.BadName",
                "the rendition's keyframes are not at the times of the source's: encode all in one process, with one keyframe interval",
            ),
            Self::NoSource => (
                "NetStream.Publish.BadName",
                "nobody publishes this stream's source: publish it without ?rendition= to the same server",
            ),
        }
    }
}
