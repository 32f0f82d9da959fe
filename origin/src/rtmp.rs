//! RTMP ingest: the listener, its limits, and one task per connection around the core of [`headwater_media::rtmp`].

pub mod config;
pub mod listener;
mod metrics;
mod session;

pub use config::Config;
pub use listener::Listener;
