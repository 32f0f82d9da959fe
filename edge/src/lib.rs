//! Headwater's edge: replicas of live streams, and the WebRTC shards that fan them out.
//!
//! | module | what it does |
//! |---|---|
//! | [`config`] | settings |
//! | [`http`], [`sessions`] | WHEP, the API and the player; which session URL is which viewer |
//! | [`locate`], [`subscriber`] | where streams are to be had; the replication client |
//! | [`registry`], [`replica`] | one replica per watched stream: started on demand, packetized once, lingering |
//! | [`shard`] | one core's viewers: socket, maps, fan-out |

pub mod config;
pub mod http;
pub mod locate;
pub mod registry;
pub mod replica;
pub mod sessions;
pub mod shard;
pub mod subscriber;
mod transport;
