//! RTCP (RFC 3550 section 6, RFC 4585, RFC 5104, RFC 5506): compound packets parsed in place, reports built.
//!
//! [`packets`] walks a decrypted datagram. Nothing is allocated and each iterator's work is bounded by the datagram's length, but for
//! [`TransportFeedback`], which has a bound of its own.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod feedback;
mod report;
mod transport;

pub use feedback::{FullIntraRequests, Lost};
pub use report::{Report, Reports, SenderInfo, write_bye, write_sender_report};
pub use transport::{Arrival, Arrivals, TransportFeedback};

/// Packet types (RFC 3550 section 12.1, RFC 4585 section 6.1).
mod packet_type {
    pub(super) const SENDER_REPORT: u8 = 200;
    pub(super) const RECEIVER_REPORT: u8 = 201;
    pub(super) const SOURCE_DESCRIPTION: u8 = 202;
    pub(super) const BYE: u8 = 203;
    pub(super) const TRANSPORT_FEEDBACK: u8 = 205;
    pub(super) const PAYLOAD_FEEDBACK: u8 = 206;
}

/// Feedback message types of packet types 205 and 206.
mod format {
    pub(super) const NACK: u8 = 1;
    pub(super) const TRANSPORT_WIDE: u8 = 15;
    pub(super) const PICTURE_LOSS: u8 = 1;
    pub(super) const FULL_INTRA: u8 = 4;
    pub(super) const APPLICATION: u8 = 15;
}

const VERSION: u8 = 0x80;
const VERSION_MASK: u8 = 0xc0;
const PADDING: u8 = 0x20;
const COUNT_MASK: u8 = 0x1f;

/// Why bytes are no RTCP. The rest of the datagram is to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes end within a packet, or a packet within its content.
    #[error("truncated RTCP packet")]
    Truncated,
    /// The version is not 2.
    #[error("RTCP version is not 2")]
    Version,
    /// A feedback message reports on more packets than any viewer receives between two of them.
    #[error("RTCP feedback on {0} packets")]
    Excessive(u16),
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

/// The packets of a datagram, compound or reduced-size (RFC 5506). Ends after the first error.
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
        if self.rest.is_empty() {
            return None;
        }
        let packet = self.packet();
        if packet.is_err() {
            self.rest = &[];
        }
        Some(packet)
    }
}

impl<'a> Packets<'a> {
    fn packet(&mut self) -> Result<Packet<'a>, Error> {
        let (&[first, packet_type, high, low], rest) =
            self.rest.split_first_chunk::<4>().ok_or(Error::Truncated)?;
        if first & VERSION_MASK != VERSION {
            return Err(Error::Version);
        }
        let length = usize::from(u16::from_be_bytes([high, low])).saturating_mul(4);
        let (mut body, rest) = rest.split_at_checked(length).ok_or(Error::Truncated)?;
        self.rest = rest;
        if first & PADDING != 0 {
            let padding = body.last().copied().unwrap_or(0);
            body = body
                .len()
                .checked_sub(padding.into())
                .and_then(|end| body.get(..end))
                .ok_or(Error::Truncated)?;
        }
        Packet::read(packet_type, first & COUNT_MASK, body)
    }
}

impl<'a> Packet<'a> {
    /// `format` is the count or feedback message type, `body` what follows the first four bytes, without padding.
    fn read(packet_type: u8, format: u8, body: &'a [u8]) -> Result<Self, Error> {
        let mut fields = Fields(body);
        Ok(match (packet_type, format) {
            (packet_type::SENDER_REPORT, count) => Self::SenderReport {
                sender: SenderInfo::read(&mut fields)?,
                reports: Reports::new(fields.0, count)?,
            },
            (packet_type::RECEIVER_REPORT, count) => Self::ReceiverReport {
                ssrc: fields.u32()?,
                reports: Reports::new(fields.0, count)?,
            },
            (packet_type::SOURCE_DESCRIPTION, _) => Self::SourceDescription,
            (packet_type::BYE, 0) => Self::Bye { ssrc: None },
            (packet_type::BYE, _) => Self::Bye {
                ssrc: Some(fields.u32()?),
            },
            (packet_type::TRANSPORT_FEEDBACK, format::NACK) => Self::Nack {
                media_ssrc: fields.media_ssrc()?,
                lost: Lost::new(fields.0),
            },
            (packet_type::TRANSPORT_FEEDBACK, format::TRANSPORT_WIDE) => {
                fields.media_ssrc()?;
                Self::TransportFeedback(TransportFeedback::read(&mut fields)?)
            }
            (packet_type::PAYLOAD_FEEDBACK, format::PICTURE_LOSS) => Self::PictureLoss {
                media_ssrc: fields.media_ssrc()?,
            },
            (packet_type::PAYLOAD_FEEDBACK, format::FULL_INTRA) => {
                fields.media_ssrc()?; // unused, RFC 5104 section 4.3.1.2
                Self::FullIntraRequest(FullIntraRequests::new(fields.0))
            }
            (packet_type::PAYLOAD_FEEDBACK, format::APPLICATION) => {
                fields.media_ssrc()?;
                match feedback::maximum_bitrate(fields) {
                    Some(bits_per_second) => Self::MaximumBitrate { bits_per_second },
                    None => Self::Other {
                        packet_type,
                        format,
                    },
                }
            }
            _ => Self::Other {
                packet_type,
                format,
            },
        })
    }
}

/// Big-endian fields of a packet, taken from the front.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.take::<1>().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.take().map(u64::from_be_bytes)
    }

    /// The two SSRCs that begin every feedback message (RFC 4585 section 6.1), of which the sender's tells us nothing.
    fn media_ssrc(&mut self) -> Result<u32, Error> {
        self.u32()?;
        self.u32()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What Chromium sends: RR with one block, then a NACK, then a PLI.
    const COMPOUND: &[u8] = &[
        0x81, 201, 0, 7, 0, 0, 0, 1, 0, 0, 0, 9, 64, 0xff, 0xff, 0xfe, 0, 1, 0xff, 0xff, 0, 0, 0,
        80, 0xaa, 0xbb, 0xcc, 0xdd, 0, 1, 0, 0, //
        0x81, 205, 0, 3, 0, 0, 0, 1, 0, 0, 0, 9, 0xff, 0xfe, 0x80, 0x05, //
        0x81, 206, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9,
    ];

    #[test]
    fn a_compound_is_read_packet_by_packet() {
        let found: Vec<_> = packets(COMPOUND).collect();
        let [
            Ok(Packet::ReceiverReport { ssrc: 1, reports }),
            Ok(Packet::Nack {
                media_ssrc: 9,
                lost,
            }),
            Ok(Packet::PictureLoss { media_ssrc: 9 }),
        ] = found.as_slice()
        else {
            panic!("{found:?}");
        };
        let report = Report {
            ssrc: 9,
            fraction_lost: 64,
            cumulative_lost: -2,
            highest_sequence: 0x1_ffff,
            jitter: 80,
            last_sr: 0xaabb_ccdd,
            delay_since_last_sr: 65_536,
        };
        assert_eq!(reports.clone().collect::<Vec<_>>(), [report]);
        // Over the wrap: 65534, and of the mask bits 0, 2 and 15.
        assert_eq!(lost.clone().collect::<Vec<_>>(), [65_534, 65_535, 1, 14]);
    }

    #[test]
    fn reduced_size_unknown_and_padded_packets_are_taken() {
        let pli = &COMPOUND[COMPOUND.len() - 12..];
        assert!(matches!(
            packets(pli).collect::<Vec<_>>()[..],
            [Ok(Packet::PictureLoss { media_ssrc: 9 })]
        ));
        let extended = [&[0x85, 207, 0, 1, 1, 2, 3, 4], pli].concat();
        assert!(matches!(
            packets(&extended).collect::<Vec<_>>()[..],
            [
                Ok(Packet::Other {
                    packet_type: 207,
                    format: 5
                }),
                Ok(Packet::PictureLoss { .. })
            ]
        ));
        let padded = [
            0xa1, 205, 0, 4, 0, 0, 0, 1, 0, 0, 0, 9, 0, 5, 0, 0, 0, 0, 0, 4,
        ];
        let found: Vec<_> = packets(&padded).collect();
        let [Ok(Packet::Nack { lost, .. })] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(lost.clone().collect::<Vec<_>>(), [5]);
        assert!(matches!(
            packets(&[0x81, 203, 0, 1, 0, 0, 0, 7]).next(),
            Some(Ok(Packet::Bye { ssrc: Some(7) }))
        ));
    }

    #[test]
    fn the_first_error_ends_the_datagram() {
        let next = |bytes: &[u8]| packets(bytes).next().map(|found| found.map(|_| ()));
        assert_eq!(next(&[]), None);
        for bad in [
            &[0x80][..],
            &[0x80, 200, 0],
            &[0x80, 200, 0, 1, 0],
            &[0x80, 201, 0, 0],                         // no SSRC
            &[0x81, 201, 0, 1, 0, 0, 0, 1],             // no block
            &[0x81, 205, 0, 1, 0, 0, 0, 1],             // no media SSRC
            &[0xa1, 206, 0, 1, 0, 0, 0, 9],             // more padding than packet
            &[0x8f, 205, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9], // nothing of the feedback
        ] {
            assert_eq!(next(bad), Some(Err(Error::Truncated)), "{bad:?}");
            let followed = [bad, COMPOUND].concat();
            let errors = packets(&followed).filter(Result::is_err).count();
            assert!(errors <= 1, "{bad:?}");
        }
        assert_eq!(next(&[0x41, 201, 0, 0]), Some(Err(Error::Version)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), packet_type in 199_u8..208, honest in any::<bool>()) {
            if let (true, [first, kind, high, low, rest @ ..]) = (honest, bytes.as_mut_slice()) {
                *first = 0x80 | *first & 0x1f;
                *kind = packet_type;
                [*high, *low] = u16::try_from(rest.len() / 4).expect("short").to_be_bytes();
            }
            for packet in packets(&bytes).flatten() {
                let items = match packet {
                    Packet::SenderReport { reports, .. } | Packet::ReceiverReport { reports, .. } => reports.count(),
                    Packet::Nack { lost, .. } => lost.count(),
                    Packet::FullIntraRequest(requests) => requests.count(),
                    Packet::TransportFeedback(feedback) => feedback.arrivals().count(),
                    _ => 0,
                };
                prop_assert!(items <= 8192);
            }
        }
    }
}
