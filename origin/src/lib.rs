//! Headwater's origin: takes publishers in and replicates their streams to edges.
//!
//! | module | what it does |
//! |---|---|
//! | [`registry`] | name → stream; claims names, decides between publishers |

pub mod registry;
