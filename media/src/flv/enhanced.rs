//! The headers of Enhanced RTMP v2 (E-RTMP v2, sections "Enhanced Video" and "Enhanced Audio"): from a tag body to the packets of its
//! tracks.
//!
//! A body has one packet or, in multitrack mode, one of each of several tracks. Nothing is decided here: codecs and packet types that are
//! not known come out as numbers.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use bytes::{Buf, Bytes};

use crate::unit::SourceTrack;

/// A codec's name.
pub(super) type FourCc = [u8; 4];

/// Packets of one body (count): trackId has 8 bits, and a body has one packet of a track.
const PACKETS_MAX: usize = 256;

/// The body ends early, or says what must not be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The numbers that differ between picture and sound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dialect {
    multitrack: u8,
    /// VideoFrameType.Command, which audio has none of.
    command: Option<u8>,
}

impl Dialect {
    pub(super) const VIDEO: Self = Self {
        multitrack: 6,
        command: Some(5),
    };
    pub(super) const AUDIO: Self = Self {
        multitrack: 5,
        command: None,
    };
}

/// Modifier in front of the packet type: VideoPacketType.ModEx and AudioPacketType.ModEx.
const MOD_EX: u8 = 7;
/// VideoPacketType.Metadata: the frame type means nothing then.
const METADATA: u8 = 4;

/// AvMultitrackType.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    OneTrack,
    ManyTracks,
    ManyTracksManyCodecs,
}

/// One packet of a track.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) track: SourceTrack,
    pub(super) codec: FourCc,
    /// The same for all packets of a body.
    pub(super) packet_type: u8,
    pub(super) body: Bytes,
}

/// The packets of a body, in order. It ends at the first that is not whole.
#[derive(Debug)]
pub(super) struct Packets {
    packet_type: u8,
    /// None: all of the body is one packet of the default track.
    layout: Option<Layout>,
    codec: Option<FourCc>,
    rest: Bytes,
    taken: usize,
    done: bool,
}

impl Packets {
    /// Of a body behind its first byte, whose upper half (without the bit that says "enhanced") is the frame type and whose lower half
    /// the packet type.
    pub(super) fn read(
        dialect: Dialect,
        frame_type: u8,
        packet_type: u8,
        mut body: Bytes,
    ) -> Result<Self, Malformed> {
        let mut packet_type = packet_type;
        while packet_type == MOD_EX {
            packet_type = mod_ex(&mut body)?;
        }
        let mut packets = Self {
            packet_type,
            layout: None,
            codec: None,
            rest: Bytes::new(),
            taken: 0,
            done: false,
        };
        if packet_type != METADATA && Some(frame_type) == dialect.command {
            // A command to the player, which has no packet.
            packets.done = true;
            return Ok(packets);
        }
        if packet_type == dialect.multitrack {
            let byte = body.try_get_u8().map_err(|_| Malformed)?;
            packets.layout = Some(match byte >> 4 {
                0 => Layout::OneTrack,
                1 => Layout::ManyTracks,
                2 => Layout::ManyTracksManyCodecs,
                _ => return Err(Malformed),
            });
            packets.packet_type = byte & 0xF;
            if packets.packet_type == dialect.multitrack || packets.packet_type == MOD_EX {
                return Err(Malformed);
            }
        }
        if packets.layout != Some(Layout::ManyTracksManyCodecs) {
            packets.codec = Some(four_cc(&mut body)?);
        }
        packets.rest = body;
        Ok(packets)
    }

    fn take(&mut self) -> Result<Packet, Malformed> {
        let Some(layout) = self.layout else {
            self.done = true;
            return self.packet(SourceTrack::DEFAULT, None, self.rest.clone());
        };
        self.taken = self.taken.saturating_add(1);
        if self.taken > PACKETS_MAX {
            return Err(Malformed);
        }
        let rest = &mut self.rest;
        let codec = match layout {
            Layout::ManyTracksManyCodecs => Some(four_cc(rest)?),
            Layout::OneTrack | Layout::ManyTracks => None,
        };
        let track = SourceTrack(rest.try_get_u8().map_err(|_| Malformed)?);
        let length = match layout {
            Layout::OneTrack => rest.len(),
            Layout::ManyTracks | Layout::ManyTracksManyCodecs => {
                let length = rest.try_get_uint(3).map_err(|_| Malformed)?;
                usize::try_from(length).map_err(|_| Malformed)?
            }
        };
        if length > rest.len() {
            return Err(Malformed);
        }
        let body = rest.split_to(length);
        self.done = self.rest.is_empty();
        self.packet(track, codec, body)
    }

    fn packet(
        &self,
        track: SourceTrack,
        codec: Option<FourCc>,
        body: Bytes,
    ) -> Result<Packet, Malformed> {
        Ok(Packet {
            track,
            codec: codec.or(self.codec).ok_or(Malformed)?,
            packet_type: self.packet_type,
            body,
        })
    }
}

impl Iterator for Packets {
    type Item = Result<Packet, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let packet = self.take();
        self.done |= packet.is_err();
        Some(packet)
    }
}

/// Passes a modifier over and returns the packet type behind it. The one that is defined adds nanoseconds to the time; each message has
/// its milliseconds, so that nothing drifts without them.
fn mod_ex(body: &mut Bytes) -> Result<u8, Malformed> {
    let mut size = usize::from(body.try_get_u8().map_err(|_| Malformed)?);
    if size == 255 {
        size = usize::from(body.try_get_u16().map_err(|_| Malformed)?);
    }
    let size = size.saturating_add(1);
    if size > body.len() {
        return Err(Malformed);
    }
    body.advance(size);
    let byte = body.try_get_u8().map_err(|_| Malformed)?;
    Ok(byte & 0xF)
}

fn four_cc(body: &mut Bytes) -> Result<FourCc, Malformed> {
    let code = *body.first_chunk().ok_or(Malformed)?;
    body.advance(4);
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(first: u8, rest: &[u8]) -> Result<Vec<Result<Packet, Malformed>>, Malformed> {
        let body = Bytes::copy_from_slice(rest);
        let (frame_type, packet_type) = (first >> 4 & 7, first & 0xF);
        Packets::read(Dialect::VIDEO, frame_type, packet_type, body).map(Iterator::collect)
    }

    fn packet(track: u8, codec: &FourCc, packet_type: u8, body: &'static [u8]) -> Packet {
        Packet {
            track: SourceTrack(track),
            codec: *codec,
            packet_type,
            body: Bytes::from_static(body),
        }
    }

    #[test]
    fn a_body_has_one_packet_or_those_of_its_tracks() {
        for (first, rest, expected) in [
            (0x93, &b"avc1xyz"[..], vec![packet(0, b"avc1", 3, b"xyz")]),
            (
                0x96,
                b"\x03avc1\x07xyz",
                vec![packet(7, b"avc1", 3, b"xyz")],
            ),
            (
                0xA6,
                b"\x11avc1\x00\0\0\x02ab\x05\0\0\x00\x01\0\0\x01c",
                vec![
                    packet(0, b"avc1", 1, b"ab"),
                    packet(5, b"avc1", 1, b""),
                    packet(1, b"avc1", 1, b"c"),
                ],
            ),
            (
                0x96,
                b"\x20avc1\x00\0\0\x01ahvc1\x01\0\0\x01b",
                vec![packet(0, b"avc1", 0, b"a"), packet(1, b"hvc1", 0, b"b")],
            ),
            (0x92, b"avc1", vec![packet(0, b"avc1", 2, b"")]),
            // Commands have a byte and nothing else, but the frame type of metadata means nothing.
            (0xD1, b"\x00", vec![]),
            (0xD4, b"avc1m", vec![packet(0, b"avc1", 4, b"m")]),
        ] {
            let found = read(first, rest).expect("whole");
            let expected: Vec<_> = expected.into_iter().map(Ok).collect();
            assert_eq!(found, expected, "{first:x} {rest:x?}");
        }
    }

    #[test]
    fn modifiers_are_passed_over() {
        let nano = b"\x02\0\x01\x02\x03avc1x";
        assert_eq!(read(0x97, nano), Ok(vec![Ok(packet(0, b"avc1", 3, b"x"))]));
        let twice = b"\x00\xFF\x17\x02\0\x01\x02\x06\x01avc1\x09x";
        assert_eq!(read(0x97, twice), Ok(vec![Ok(packet(9, b"avc1", 1, b"x"))]));
        let mut long = vec![255, 1, 0];
        long.resize(3 + 257, 0);
        long.extend_from_slice(b"\x03avc1x");
        assert_eq!(read(0x97, &long), Ok(vec![Ok(packet(0, b"avc1", 3, b"x"))]));
    }

    #[test]
    fn what_is_broken_is_said_and_what_came_before_it_counts() {
        for (first, rest) in [
            (0x91, &b"av"[..]),
            (0x96, b""),
            (0x96, b"\x01av"),
            // Multitrack within multitrack, a modifier within it, an unknown layout.
            (0x96, b"\x06avc1\x00"),
            (0x96, b"\x07avc1\x00"),
            (0x96, b"\x31avc1\x00"),
            (0x97, b""),
            (0x97, b"\x05ab"),
            (0x97, b"\xFF\x00"),
        ] {
            assert_eq!(read(first, rest), Err(Malformed), "{rest:x?}");
        }
        let cut = read(0x96, b"\x11avc1\x00\0\0\x01a\x01\0\0\x09b").expect("begins well");
        assert_eq!(cut, [Ok(packet(0, b"avc1", 1, b"a")), Err(Malformed)]);
        let many = [&b"\x11avc1"[..], &[0; 4 * 300]].concat();
        let many = read(0x96, &many).expect("begins well");
        assert_eq!((many.len(), many.last()), (257, Some(&Err(Malformed))));
    }
}
