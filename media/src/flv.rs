//! FLV: tag bodies as RTMP carries them, and the file format as ffmpeg speaks it over pipes.
//!
//! | module | what it knows |
//! |---|---|
//! | [`demux`] | audio and video tag bodies to configurations and access units |
//! | `enhanced` | the headers of Enhanced RTMP: several tracks in a body, codecs by name |
//! | [`reader`] | the file format, incrementally, to tags |
//! | [`writer`] | the file format and tag bodies, from access units |

pub mod demux;
mod enhanced;
pub mod reader;
mod skipped;
pub mod writer;

/// What a tag carries (Adobe FLV 10.1 section E.4.1); the numbers are RTMP's message types too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TagKind {
    /// Type 8.
    Audio,
    /// Type 9.
    Video,
    /// Type 18: AMF0, such as `onMetaData`.
    Script,
}

impl TagKind {
    /// The type on the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::Audio => 8,
            Self::Video => 9,
            Self::Script => 18,
        }
    }

    /// From the type on the wire.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            8 => Some(Self::Audio),
            9 => Some(Self::Video),
            18 => Some(Self::Script),
            _ => None,
        }
    }
}
