//! What the bench shares with the cluster tests: a clip, a publisher that stamps it, just enough HTTP, free ports.
//!
//! The bench itself is the binary beside it: `make bench`, or `headwater-bench --help`.

pub mod clip;
pub mod http;
pub mod ports;
pub mod publisher;
pub mod time;
