//! RTP: packetization once per rendition, the packet ring, headers and feedback.

pub mod batch;
