//! Sender and receiver reports, SDES and BYE (RFC 3550 sections 6.4 to 6.6).

use std::time::Duration;

use super::{Error, Fields, VERSION, packet_type};
use crate::time::WallTime;

/// Bytes of a report block.
const BLOCK_BYTES: usize = 24;
/// SDES item type (RFC 3550 section 6.5.1).
const CNAME: u8 = 1;
/// What a one-byte length can say.
const CNAME_BYTES_MAX: usize = 255;
/// What a five-bit count can say.
const BYE_SSRCS_MAX: usize = 31;
/// A round trip that rounding makes negative by less than this is taken as zero, in 1/65536 s: 1 ms.
const RTT_ROUNDING: i32 = 66;
/// A longer round trip is a lie or a clock that was stepped.
const RTT_MAX: Duration = Duration::from_secs(60);

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

impl SenderInfo {
    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, Error> {
        Ok(Self {
            ssrc: fields.u32()?,
            ntp: fields.u64()?,
            rtp_time: fields.u32()?,
            packets: fields.u32()?,
            bytes: fields.u32()?,
        })
    }
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
        if self.last_sr == 0 {
            return None;
        }
        let [_, _, a, b, c, d, _, _] = now.ntp().to_be_bytes();
        let now = u32::from_be_bytes([a, b, c, d]);
        let rtt = now
            .wrapping_sub(self.last_sr)
            .wrapping_sub(self.delay_since_last_sr)
            .cast_signed();
        if rtt < -RTT_ROUNDING {
            return None;
        }
        let units = u64::try_from(rtt).unwrap_or(0);
        let rtt = Duration::from_nanos(units.saturating_mul(1_000_000_000) >> 16);
        (rtt <= RTT_MAX).then_some(rtt)
    }

    fn read(fields: &mut Fields<'_>) -> Result<Self, Error> {
        let ssrc = fields.u32()?;
        let fraction_lost = fields.u8()?;
        let [a, b, c] = fields.take()?;
        Ok(Self {
            ssrc,
            fraction_lost,
            // Shifted down again to carry the sign.
            cumulative_lost: i32::from_be_bytes([a, b, c, 0]) >> 8,
            highest_sequence: fields.u32()?,
            jitter: fields.u32()?,
            last_sr: fields.u32()?,
            delay_since_last_sr: fields.u32()?,
        })
    }
}

/// Iterator over report blocks.
#[derive(Debug, Clone)]
pub struct Reports<'a>(&'a [u8]);

impl<'a> Reports<'a> {
    /// `count` blocks at the start of `bytes`; what follows are profile-specific extensions.
    pub(super) fn new(bytes: &'a [u8], count: u8) -> Result<Self, Error> {
        let length = BLOCK_BYTES.saturating_mul(count.into());
        bytes.get(..length).map(Self).ok_or(Error::Truncated)
    }
}

impl Iterator for Reports<'_> {
    type Item = Report;

    fn next(&mut self) -> Option<Report> {
        let (block, rest) = self.0.split_first_chunk::<BLOCK_BYTES>()?;
        self.0 = rest;
        Report::read(&mut Fields(block)).ok()
    }
}

/// Appends a compound of an SR without report blocks and an SDES with the CNAME, the least that RFC 3550 section 6.1 allows.
/// A `cname` over 255 bytes is cut.
pub fn write_sender_report(out: &mut Vec<u8>, sender: &SenderInfo, cname: &str) {
    out.extend_from_slice(&[VERSION, packet_type::SENDER_REPORT, 0, 6]);
    out.extend_from_slice(&sender.ssrc.to_be_bytes());
    out.extend_from_slice(&sender.ntp.to_be_bytes());
    out.extend_from_slice(&sender.rtp_time.to_be_bytes());
    out.extend_from_slice(&sender.packets.to_be_bytes());
    out.extend_from_slice(&sender.bytes.to_be_bytes());

    let end = cname.floor_char_boundary(CNAME_BYTES_MAX);
    let cname = cname.as_bytes().get(..end).unwrap_or_default();
    // SSRC, item type and length, the text, and at least one zero that ends the chunk.
    let chunk = cname.len().saturating_add(7).next_multiple_of(4);
    let words = u16::try_from(chunk / 4).unwrap_or(0);
    out.extend_from_slice(&[VERSION | 1, packet_type::SOURCE_DESCRIPTION]);
    out.extend_from_slice(&words.to_be_bytes());
    let chunk_end = out.len().saturating_add(chunk);
    out.extend_from_slice(&sender.ssrc.to_be_bytes());
    out.extend_from_slice(&[CNAME, u8::try_from(cname.len()).unwrap_or(0)]);
    out.extend_from_slice(cname);
    out.resize(chunk_end, 0);
}

/// Appends a BYE of `ssrcs` (at most 31, more are left out), to follow [`write_sender_report`] in the same datagram.
pub fn write_bye(out: &mut Vec<u8>, ssrcs: &[u32]) {
    let ssrcs = ssrcs.get(..BYE_SSRCS_MAX).unwrap_or(ssrcs);
    let count = u8::try_from(ssrcs.len()).unwrap_or(0);
    out.extend_from_slice(&[VERSION | count, packet_type::BYE, 0, count]);
    for ssrc in ssrcs {
        out.extend_from_slice(&ssrc.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Packet, packets};
    use super::*;

    fn report(last_sr: u32, delay_since_last_sr: u32) -> Report {
        Report {
            ssrc: 1,
            fraction_lost: 0,
            cumulative_lost: 0,
            highest_sequence: 0,
            jitter: 0,
            last_sr,
            delay_since_last_sr,
        }
    }

    #[test]
    fn the_round_trip_is_what_the_delay_does_not_explain() {
        // 2^16 s after the NTP epoch began to wrap in the middle bits, plus half a second.
        let now = WallTime::from_unix_micros(1_700_000_000_500_000);
        let middle = u32::try_from(now.ntp() >> 16 & 0xffff_ffff).expect("masked");
        for (last_sr, delay, expected) in [
            (0, 0, None),
            (middle.wrapping_sub(65_536), 65_536 / 2, Some(500)),
            (middle.wrapping_sub(100_000), 100_000, Some(0)),
            (middle.wrapping_sub(100_000), 100_030, Some(0)),
            (middle.wrapping_sub(100_000), 200_000, None),
            (middle, 0, Some(0)),
            (middle.wrapping_add(5 * 65_536), 0, None),
            (middle.wrapping_sub(61 * 65_536), 0, None),
        ] {
            let rtt = report(last_sr, delay).rtt(now);
            let expected = expected.map(Duration::from_millis);
            assert_eq!(rtt, expected, "{last_sr} {delay}");
        }
    }

    #[test]
    fn the_round_trip_is_measured_over_the_wrap_of_the_middle_bits() {
        // The middle 32 bits wrap every 65,536 s of NTP time.
        let wrap_seconds = (2_208_988_800_u64 / 65_536 + 26_000) * 65_536 - 2_208_988_800;
        let now = WallTime::from_unix_micros(wrap_seconds * 1_000_000 + 250_000);
        let rtt = report(0xffff_c000, 0x4000).rtt(now);
        assert_eq!(rtt, Some(Duration::from_millis(250)));
    }

    #[test]
    fn a_bye_follows_a_report() {
        let mut out = Vec::new();
        let sender = SenderInfo {
            ssrc: 7,
            ntp: 1,
            rtp_time: 2,
            packets: 3,
            bytes: 4,
        };
        write_sender_report(&mut out, &sender, "abc");
        write_bye(&mut out, &[7, 8]);
        assert_eq!(
            out[28..],
            [
                0x81, 202, 0, 3, 0, 0, 0, 7, 1, 3, b'a', b'b', b'c', 0, 0, 0, //
                0x82, 203, 0, 2, 0, 0, 0, 7, 0, 0, 0, 8
            ]
        );
        let mut out = Vec::new();
        write_bye(&mut out, &[1; 40]);
        assert_eq!(out.len(), 4 + 31 * 4);
    }

    proptest! {
        #[test]
        fn what_is_written_can_be_read(ssrc: u32, ntp: u64, rtp_time: u32, packets_sent: u32, bytes: u32, cname in "[a-zä]{0,300}") {
            let sender = SenderInfo { ssrc, ntp, rtp_time, packets: packets_sent, bytes };
            let mut out = Vec::new();
            write_sender_report(&mut out, &sender, &cname);
            prop_assert_eq!(out.len() % 4, 0);
            prop_assert_eq!(out.last(), Some(&0));
            let found: Vec<_> = packets(&out).collect();
            let whole = matches!(found.as_slice(), [Ok(Packet::SenderReport { sender: read, .. }), Ok(Packet::SourceDescription)] if *read == sender);
            prop_assert!(whole, "{:?}", found);
        }
    }
}
