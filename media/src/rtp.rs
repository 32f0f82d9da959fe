//! RTP: packetization once per rendition, the packet ring, headers and feedback.
//!
//! | module | what it knows |
//! |---|---|
//! | [`packetizer`], [`batch`] | access unit in, [`batch::PacketBatch`] out, once per rendition |
//! | [`ring`] | the recent batches of a track: retransmission and fast start |
//! | [`header`] | what differs between viewers: fixed header and extensions |
//! | [`assembler`] | the other end: packets to access units, for those who measure |
//! | [`rtcp`] | reports and feedback, parsed in place and built |
//! | [`sequence`] | 16-bit sequence numbers and 32-bit timestamps as `u64` |

pub mod assembler;
pub mod batch;
pub mod header;
pub mod packetizer;
pub mod ring;
pub mod rtcp;
pub mod sequence;
