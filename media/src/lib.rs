//! Headwater's media cores: parsers, packetizers, caches and the decisions around them.
//!
//! Everything here is sans-IO: plain structs that take bytes, messages and `now` and return what to do and when to be
//! called again. Nothing here opens a socket, starts a task or reads a clock, which is why all of it runs in tests under
//! virtual time. A test of the workspace fails when tokio, actix, tonic or hyper appear among this crate's dependencies.
//!
//! | module | what it knows |
//! |---|---|
//! | [`time`], [`id`] | the 90 kHz timeline, wall-clock stamps, names and numbers |
//! | [`mod@unit`], [`track`] | access units, tracks and their configuration |
//! | [`codec`] | parameter sets and NAL units, AudioSpecificConfig |
//! | [`flv`], [`rtmp`] | tag bodies and files; the RTMP server side of a publisher's connection |
//! | [`stream`], [`gop_cache`], [`resume_window`] | a live stream: timeline, sequences, tracks, what late subscribers get |
//! | [`replication`] | both halves of a subscription between nodes |
//! | [`tree`] | who feeds whom with a stream: redirections, and whom to ask next |
//! | [`rtp`], [`rtx`], [`rtt`] | packet batches, the packet ring, RTCP; retransmission; round-trip time |
//! | [`bwe`], [`pacer`] | what a viewer's link carries, and how fast its packets leave |
//! | [`abr`] | which rendition a viewer gets |
//! | [`lab`] | these cores over simulated links |
//! | [`sdp`], [`ice`] | offers and answers; an ICE-lite viewer |
//! | `testkit` | made-up streams, for tests and the feature of that name |

pub mod abr;
pub mod bwe;
pub mod codec;
pub mod flv;
pub mod gop_cache;
pub mod ice;
pub mod id;
pub mod lab;
pub mod pacer;
pub mod placement;
pub mod replication;
pub mod resume_window;
pub mod rtmp;
pub mod rtp;
pub mod rtt;
pub mod rtx;
pub mod sdp;
pub mod stream;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod time;
pub mod track;
pub mod tree;
pub mod unit;
