//! The streams this origin has, by name: publishers come in here, and so do subscribers.

use std::net::SocketAddr;

use headwater_media::id::{NodeId, StreamName};
use headwater_media::track::Configuration;
use headwater_media::unit::IngestUnit;

/// Who wants to publish what.
#[derive(Debug, Clone)]
pub struct PublishRequest {
    /// The stream.
    pub name: StreamName,
    /// Where the publisher connected from.
    pub peer: SocketAddr,
    /// What the publisher says it is, for the API and the log.
    pub encoder: Option<String>,
}

/// Why a publisher was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Another publisher is sending to this stream.
    #[error("the stream already has a publisher")]
    Busy,
    /// Another origin owns the stream's name.
    #[error("the stream is held by origin {0}")]
    HeldElsewhere(NodeId),
    /// The name could not be claimed; trying again later may work.
    #[error("the stream's name could not be claimed: {0}")]
    DirectoryUnavailable(String),
    /// This origin has as many streams as it takes.
    #[error("this origin has as many streams as it takes")]
    TooManyStreams,
    /// This origin is stopping.
    #[error("this origin is stopping")]
    Stopping,
}

/// Why a publisher that had been accepted must leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Revoked {
    /// It was silent for too long and a newer publisher took its place.
    Replaced,
    /// An administrator ended it.
    Kicked,
    /// This origin is stopping.
    Stopping,
}

/// The streams of this origin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {}

impl Registry {
    /// Claims the stream's name and makes the caller its publisher.
    ///
    /// # Errors
    /// [`PublishError`]: the session refuses the publisher.
    pub async fn publish(&self, request: PublishRequest) -> Result<Publication, PublishError> {
        let _ = request;
        Err(PublishError::Stopping)
    }
}

/// A publisher's place at its stream. Dropping it says that the publisher left: the stream is then held for its return.
#[derive(Debug)]
pub struct Publication {}

impl Publication {
    /// The publisher announced or changed how it codes one of its tracks.
    pub fn configure(&self, configuration: Configuration) {
        let _ = configuration;
    }

    /// Hands one access unit over. Never waits: when the stream can't keep up, units are dropped up to the next keyframe
    /// and counted.
    pub fn deliver(&self, unit: IngestUnit) {
        let _ = unit;
    }

    /// The publisher's `onMetaData`, for the API record.
    pub fn metadata(&self, metadata: serde_json::Value) {
        let _ = metadata;
    }

    /// Resolves when this publisher must leave, with the reason. The session then tells its peer and closes.
    pub async fn revoked(&self) -> Revoked {
        std::future::pending().await
    }
}
