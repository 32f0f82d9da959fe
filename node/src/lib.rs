//! What every Headwater role needs around its work: actor kit, clock, directory, configuration, admin, telemetry.

pub mod actor;
pub mod admin;
pub mod clock;
pub mod directory;
pub mod node;

pub use node::Node;
