//! RTMP 1.0: the server side of a publisher's connection, as a core without sockets.
//!
//! [`Session`] takes the bytes of one connection and yields replies and [`Event`]s. Of `rml_rtmp` it uses the handshake and the
//! chunk serializer. What comes in is read by parsers of our own, because `rml_rtmp` 0.8 panics on interleaved chunks and short
//! commands, overflows the stack on nested AMF0 and hides what encoders announce; its `ServerSession` would see nothing but
//! commands we have already answered, so it is not asked.
//!
//! | module | what it knows |
//! |---|---|
//! | [`chunk`] | chunks to messages |
//! | [`amf`] | AMF0 within limits |
//! | [`session`] | handshake, control messages, commands, media, timers |
//! | [`publish`] | whom a publisher wants to be |
//! | `reply`, `refusal` | what we send, and why a publisher may not publish |

pub mod amf;
pub mod chunk;
mod fault;
mod limits;
pub mod publish;
mod refusal;
mod reply;
pub mod session;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "made-up data")]
pub(crate) mod testkit;

pub use fault::{Fault, Foreign};
pub use limits::Limits;
pub use publish::{Publish, Query};
pub use refusal::Refusal;
pub use session::{Event, Session};
