//! What our benches need of our tests' world. Not for others: behind the feature `testkit`, without any promise.

pub use crate::shard::tests::crowd::Crowd;
