//! What an ordinary viewer knows of an RTP stream: what the headers say, which SRTP leaves in clear.

use headwater_media::rtp::sequence::Unwrapper;

/// Sequence numbers behind the newest in which a packet that comes late is told from one that comes twice (count).
const WINDOW: u64 = 64;

/// Fixed RTP header (RFC 3550 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) payload_type: u8,
    pub(crate) sequence: u16,
    pub(crate) timestamp: u32,
    pub(crate) ssrc: u32,
    pub(crate) marker: bool,
    /// Bytes of header, CSRCs and extension.
    pub(crate) bytes: usize,
    /// The transport-wide sequence number, if the extension was asked for.
    pub(crate) transport_sequence: Option<u16>,
}

impl Header {
    /// Reads a packet's header; `extension` is the id of the transport-wide sequence number (RFC 8285 section 4.2).
    pub(crate) fn parse(packet: &[u8], extension: Option<u8>) -> Option<Self> {
        let &[first, second, s1, s0, t3, t2, t1, t0, c3, c2, c1, c0, ..] = packet else {
            return None;
        };
        let mut bytes = 12 + 4 * usize::from(first & 0xf);
        let mut transport_sequence = None;
        if first & 0x10 != 0 {
            let profile = packet.get(bytes..bytes + 2)?;
            let words = packet.get(bytes + 2..bytes + 4)?;
            let length = 4 * usize::from(u16::from_be_bytes([words[0], words[1]]));
            let elements = packet.get(bytes + 4..bytes + 4 + length)?;
            if let (Some(id), [0xbe, 0xde]) = (extension, profile) {
                transport_sequence = one_byte_element(elements, id);
            }
            bytes += 4 + length;
        }
        Some(Self {
            payload_type: second & 0x7f,
            sequence: u16::from_be_bytes([s1, s0]),
            timestamp: u32::from_be_bytes([t3, t2, t1, t0]),
            ssrc: u32::from_be_bytes([c3, c2, c1, c0]),
            marker: second & 0x80 != 0,
            bytes,
            transport_sequence,
        })
    }
}

fn one_byte_element(mut elements: &[u8], id: u8) -> Option<u16> {
    while let Some((&first, rest)) = elements.split_first() {
        if first == 0 {
            elements = rest;
            continue;
        }
        let value = rest.get(..usize::from(first & 0xf) + 1)?;
        if first >> 4 == id {
            return Some(u16::from_be_bytes(*value.first_chunk()?));
        }
        elements = &rest[value.len()..];
    }
    None
}

/// Counts of a stream so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Distinct packets.
    pub(crate) packets: u64,
    /// Their bytes, header and tag included.
    pub(crate) bytes: u64,
    /// From the first sequence number to the newest.
    pub(crate) expected: u64,
    /// Timestamps that were newer than all before.
    pub(crate) frames: u64,
    /// Packets that came twice.
    pub(crate) duplicates: u64,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Reception {
    pub(crate) ssrc: u32,
    unwrapper: Unwrapper,
    /// Newest sequence number, unwrapped.
    pub(crate) newest: u64,
    /// Which of the last [`WINDOW`] came; bit 0 is the newest.
    seen: u64,
    timestamp: Option<u32>,
    pub(crate) counts: Counts,
}

impl Reception {
    pub(crate) fn new(ssrc: u32) -> Self {
        Self {
            ssrc,
            unwrapper: Unwrapper::default(),
            newest: 0,
            seen: 0,
            timestamp: None,
            counts: Counts::default(),
        }
    }

    /// A packet of `bytes` came. Returns whether a frame began with it.
    pub(crate) fn handle_packet(&mut self, header: &Header, bytes: usize) -> bool {
        let sequence = self.unwrapper.unwrap(header.sequence);
        let counts = &mut self.counts;
        if counts.packets == 0 {
            (self.newest, self.seen, counts.expected) = (sequence, 1, 1);
        } else if sequence > self.newest {
            let ahead = sequence - self.newest;
            self.seen = u32::try_from(ahead)
                .ok()
                .and_then(|ahead| self.seen.checked_shl(ahead))
                .unwrap_or(0)
                | 1;
            self.newest = sequence;
            counts.expected += ahead;
        } else {
            let behind = self.newest - sequence;
            if behind >= WINDOW || self.seen >> behind & 1 == 1 {
                counts.duplicates += 1;
                return false;
            }
            self.seen |= 1 << behind;
        }
        counts.packets += 1;
        counts.bytes += bytes as u64;
        let newer = self
            .timestamp
            .is_none_or(|newest| header.timestamp.wrapping_sub(newest).cast_signed() > 0);
        if newer {
            self.timestamp = Some(header.timestamp);
            counts.frames += 1;
        }
        newer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(sequence: u16, timestamp: u32) -> Header {
        Header {
            payload_type: 96,
            sequence,
            timestamp,
            ssrc: 1,
            marker: false,
            bytes: 12,
            transport_sequence: None,
        }
    }

    #[test]
    fn losses_and_frames_are_counted_over_the_wraps() {
        let mut reception = Reception::new(1);
        // Two packets a frame; one is lost, one comes late, one twice, around both wraps.
        for (sequence, timestamp, began) in [
            (65_533, u32::MAX - 3000, true),
            (65_534, u32::MAX - 3000, false),
            (65_535, u32::MAX, true),
            (1, 2999, true),
            (0, u32::MAX, false),
            (0, u32::MAX, false),
            (3, 5999, true),
        ] {
            let header = packet(sequence, timestamp);
            assert_eq!(reception.handle_packet(&header, 100), began, "{sequence}");
        }
        assert_eq!(
            reception.counts,
            Counts {
                packets: 6,
                bytes: 600,
                expected: 7,
                frames: 4,
                duplicates: 1,
            }
        );
    }

    #[test]
    fn a_jump_beyond_the_window_forgets_it() {
        let mut reception = Reception::new(1);
        reception.handle_packet(&packet(1, 0), 1);
        reception.handle_packet(&packet(1001, 1), 1);
        assert_eq!(reception.counts.expected, 1001);
        reception.handle_packet(&packet(1, 0), 1);
        assert_eq!(reception.counts.duplicates, 1);
    }

    #[test]
    fn headers_are_read_with_their_extensions() {
        let mut bytes = vec![0x90, 0x80 | 102, 1, 2, 0, 0, 0, 9, 0, 0, 0, 7];
        bytes.extend([0xbe, 0xde, 0, 3]);
        // mid "0", padding, the number, capture time (its value cut to one byte for the test).
        bytes.extend([0x90, b'0', 0, 0x41, 0x12, 0x34, 0xc0, 0, 0, 0, 0, 0]);
        bytes.push(0x65);
        let header = Header::parse(&bytes, Some(4)).unwrap();
        assert_eq!(header.transport_sequence, Some(0x1234));
        assert_eq!((header.bytes, header.sequence), (28, 0x0102));
        assert!(header.marker);
        assert_eq!(
            Header::parse(&bytes, None).unwrap().transport_sequence,
            None
        );
        for cut in 0..28 {
            assert_eq!(Header::parse(&bytes[..cut], Some(4)), None, "{cut}");
        }
    }
}
