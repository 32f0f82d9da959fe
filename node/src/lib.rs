//! What every Headwater role needs around its work.
//!
//! | module | what it does |
//! |---|---|
//! | [`node`] | what a role is given |
//! | [`actor`] | links between actors: `try_send`, `post` |
//! | [`clock`], [`backoff`] | the one place that reads the time; waits between attempts |
//! | [`config`], [`auth`] | layers of settings; static tokens |
//! | [`directory`], [`announce`] | who is alive, who owns which stream; this node's record |
//! | [`grpc`], [`replication`] | the gRPC port; how streams are passed on to other nodes |
//! | [`listen`], [`address`] | TCP ports; what an address is counted by |
//! | [`admin`], [`problem`], [`telemetry`], [`drain`] | health, metrics and API; how errors are told; logs; stopping |
//! | [`trace`] | spans of joins, publishers and drains, to a collector |

pub mod actor;
pub mod address;
pub mod admin;
pub mod announce;
pub mod auth;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod directory;
pub mod drain;
pub mod grpc;
pub mod listen;
pub mod node;
pub mod problem;
pub mod replication;
pub mod telemetry;
pub mod trace;

pub use node::Node;
