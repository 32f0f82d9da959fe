//! Opus (RFC 6716) as a track: what an RTP or MP4 packager must know about it.

/// Opus always runs on a 48 kHz clock, whatever the input's rate was (RFC 7587 section 4.1).
pub const CLOCK_HZ: u32 = 48_000;

/// How an Opus track is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// 1 or 2.
    pub channels: u8,
    /// Samples at 48 kHz that a decoder drops at the start (RFC 7845 section 5.1).
    pub pre_skip: u16,
}
