//! Headwater's wire contract between nodes: the `.proto` files, the code generated from it (committed, made without
//! `protoc`), and the conversions to and from the types of `headwater-media`.
//!
//! | module | what it does |
//! |---|---|
//! | [`replication`], [`sessions`] | generated: messages, clients and servers |
//! | [`convert`] | messages ↔ media types; what comes from the network is hostile |

pub mod convert;

/// Generated from `replication.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
#[rustfmt::skip]
pub mod replication {
    include!("gen/headwater.replication.v1.rs");
}

/// Generated from `sessions.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    reason = "generated"
)]
#[rustfmt::skip]
pub mod sessions {
    include!("gen/headwater.sessions.v1.rs");
}
