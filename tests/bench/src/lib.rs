//! What the bench shares with the cluster tests: clips, a publisher that stamps them, just enough HTTP, free ports.
//!
//! The bench itself is the binary beside it: `make bench`, or `headwater-bench --help`.

pub mod clip;
pub mod http;
pub mod ports;
pub mod programme;
pub mod publisher;
pub mod time;
