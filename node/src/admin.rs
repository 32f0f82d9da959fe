//! The admin port: health, readiness, metrics and what the node is doing.

use futures_util::future::BoxFuture;

/// What a role tells the admin port about itself.
///
/// Origin and edge each implement it; a standalone process merges the two. Answers must come within a second or so: the
/// admin server gives up on a slower one.
pub trait Report: Send + Sync {
    /// Whether the role can do its work; the error says in one sentence what is missing.
    ///
    /// # Errors
    /// If it can't. A directory that is away is no reason: known streams go on (static stability).
    fn ready(&self) -> Result<(), String>;

    /// One JSON object per live stream, with at least `name`.
    fn streams(&self) -> BoxFuture<'_, Vec<serde_json::Value>>;

    /// One JSON object per viewer, with at least `id` and `stream`.
    fn viewers(&self) -> BoxFuture<'_, Vec<serde_json::Value>>;
}
