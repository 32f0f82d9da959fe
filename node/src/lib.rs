//! What every Headwater role needs around its work: actor kit, clock, directory, announcement, configuration, admin, telemetry.

pub mod actor;
pub mod admin;
pub mod announce;
pub mod auth;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod directory;
pub mod drain;
pub mod node;
pub mod telemetry;

pub use node::Node;
