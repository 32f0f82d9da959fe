//! RTCP (RFC 3550 section 6, RFC 4585, RFC 5104, RFC 5506): compound packets parsed in place, reports built.

use std::time::Duration;

use crate::time::WallTime;

/// Why bytes are no RTCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within a packet.
    #[error("truncated RTCP packet")]
    Truncated,
    /// The version is not 2.
    #[error("RTCP version is not 2")]
    Version,
}

/// One packet of a compound. Everything is read from the datagram when asked for; nothing is allocated.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Packet<'a> {
    /// SR (200).
    SenderReport {
        /// What the sender says of itself.
        sender: SenderInfo,
        /// What it says of others.
        reports: Reports<'a>,
    },
    /// RR (201).
    ReceiverReport {
        /// Who reports.
        ssrc: u32,
        /// One an SSRC.
        reports: Reports<'a>,
    },
    /// SDES (202); its items don't interest us.
    SourceDescription,
    /// BYE (203) of its first SSRC.
    Bye {
        /// Who leaves; `None` when the packet names nobody.
        ssrc: Option<u32>,
    },
    /// Generic NACK (RFC 4585 section 6.2.1).
    Nack {
        /// The SSRC that misses packets.
        media_ssrc: u32,
        /// Which.
        lost: Lost<'a>,
    },
    /// PLI (RFC 4585 section 6.3.1).
    PictureLoss {
        /// The SSRC that a keyframe is wanted of.
        media_ssrc: u32,
    },
    /// FIR (RFC 5104 section 4.3.1).
    FullIntraRequest(FullIntraRequests<'a>),
    /// REMB (draft-alvestrand-rmcat-remb-03).
    MaximumBitrate {
        /// Bits per second.
        bits_per_second: u64,
    },
    /// Transport-wide feedback (draft-holmer-rmcat-transport-wide-cc-extensions-01).
    TransportFeedback(TransportFeedback<'a>),
    /// Anything else.
    Other {
        /// Its packet type.
        packet_type: u8,
        /// Its count or format field.
        format: u8,
    },
}

/// Sender part of an SR (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderInfo {
    /// The sender's SSRC.
    pub ssrc: u32,
    /// When `rtp_time` was (or will be) shown at the sender, 32.32 fixed point: see [`WallTime::ntp`].
    pub ntp: u64,
    /// The same moment as an RTP timestamp of this SSRC.
    pub rtp_time: u32,
    /// Packets sent so far, modulo 2^32.
    pub packets: u32,
    /// Payload bytes sent so far, modulo 2^32.
    pub bytes: u32,
}

/// A report block (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The SSRC reported on.
    pub ssrc: u32,
    /// Of 256, lost since the previous report.
    pub fraction_lost: u8,
    /// Lost since the beginning; negative with duplicates. 24 bits on the wire.
    pub cumulative_lost: i32,
    /// Wraps in the upper, the highest sequence number received in the lower 16 bits.
    pub highest_sequence: u32,
    /// Interarrival jitter in units of the RTP clock.
    pub jitter: u32,
    /// Middle 32 bits of the NTP timestamp of the last SR, 0 if none came.
    pub last_sr: u32,
    /// 1/65536 s between that SR and this report.
    pub delay_since_last_sr: u32,
}

impl Report {
    /// Round-trip time (RFC 3550 section 6.4.1), `None` if the viewer had no SR yet or its numbers are impossible.
    /// `now` is our wall clock, the one that made the SR's NTP timestamp.
    pub fn rtt(&self, now: WallTime) -> Option<Duration> {
        let _ = now;
        todo!()
    }
}

/// The packets of a datagram, compound or reduced-size. Ends after the first error.
pub fn packets(datagram: &[u8]) -> Packets<'_> {
    Packets { rest: datagram }
}

/// Iterator of [`packets`].
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<Packet<'a>, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        let _ = self.rest;
        todo!()
    }
}

/// Iterator over report blocks.
#[derive(Debug, Clone)]
pub struct Reports<'a>(&'a [u8]);
impl Iterator for Reports<'_> {
    type Item = Report;
    fn next(&mut self) -> Option<Report> {
        let _ = self.0;
        todo!()
    }
}

/// Iterator over lost sequence numbers.
#[derive(Debug, Clone)]
pub struct Lost<'a>(&'a [u8]);
impl Iterator for Lost<'_> {
    type Item = u16;
    fn next(&mut self) -> Option<u16> {
        let _ = self.0;
        todo!()
    }
}

/// Iterator over (SSRC, command number) of a FIR.
#[derive(Debug, Clone)]
pub struct FullIntraRequests<'a>(&'a [u8]);
impl Iterator for FullIntraRequests<'_> {
    type Item = (u32, u8);
    fn next(&mut self) -> Option<(u32, u8)> {
        let _ = self.0;
        todo!()
    }
}

/// A transport-wide feedback message.
#[derive(Debug, Clone, Copy)]
pub struct TransportFeedback<'a> {
    /// First transport-wide sequence number reported on.
    pub base_sequence: u16,
    /// How many are reported on.
    pub packet_count: u16,
    /// Counts the messages, to see lost ones.
    pub feedback_count: u8,
    /// The base for arrival times, in units of 64 ms; 24 bits, signed, on the viewer's own clock.
    pub reference_time: i32,
    body: &'a [u8],
}

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its transport-wide sequence number.
    pub sequence: u16,
    /// When it arrived, in units of 250 µs on the viewer's clock, counted as `reference_time` is; `None` if it did not.
    pub received: Option<i64>,
}

impl<'a> TransportFeedback<'a> {
    /// One for each packet reported on, in sequence order. Ends early where the message is malformed.
    pub fn arrivals(&self) -> Arrivals<'a> {
        Arrivals(self.body)
    }
}

/// Iterator of [`TransportFeedback::arrivals`].
#[derive(Debug, Clone)]
pub struct Arrivals<'a>(&'a [u8]);
impl Iterator for Arrivals<'_> {
    type Item = Arrival;
    fn next(&mut self) -> Option<Arrival> {
        let _ = self.0;
        todo!()
    }
}

/// Appends a compound of an SR without report blocks and an SDES with the CNAME, the least that RFC 3550 section 6.1 allows.
/// A `cname` over 255 bytes is cut.
pub fn write_sender_report(out: &mut Vec<u8>, sender: &SenderInfo, cname: &str) {
    let _ = (out, sender, cname);
    todo!()
}

/// Appends a BYE of `ssrcs` (at most 31, more are left out), to follow [`write_sender_report`] in the same datagram.
pub fn write_bye(out: &mut Vec<u8>, ssrcs: &[u32]) {
    let _ = (out, ssrcs);
    todo!()
}
