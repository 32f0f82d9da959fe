//! Which streams this edge replicates: one replica per name, however many ask.

use std::sync::Arc;

use headwater_media::id::StreamName;
use headwater_media::track::StreamInfo;

/// Opens streams. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {}

/// A stream that is live, or held for its publisher.
#[derive(Debug, Clone)]
pub struct OpenStream {
    /// What it is now.
    pub info: Arc<StreamInfo>,
    /// Keeps the replica from being dropped; goes into [`crate::shard::Join`].
    pub handle: ReplicaHandle,
}

/// A hold on a replica: while one exists, or a viewer, or a lingering time after both, the replica stays.
#[derive(Debug, Clone)]
pub struct ReplicaHandle {}

/// Why a stream can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nobody publishes it now; try again later (409).
    #[error("nobody publishes this stream now")]
    NotLive,
    /// It can't be told, or no upstream answers; try again later (503).
    #[error("no upstream answers")]
    Unavailable,
    /// This edge replicates as many streams as it may (503).
    #[error("this edge has as many streams as it may")]
    TooMany,
}

impl Registry {
    /// Opens a stream, subscribing to it if nobody has yet. Waits a bounded time.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, _name: &StreamName) -> Result<OpenStream, OpenError> {
        Err(OpenError::Unavailable)
    }
}
