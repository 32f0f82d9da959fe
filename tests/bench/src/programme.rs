//! What a publisher sends: a clip, or several as the tracks of one stream by Enhanced RTMP v2, and the time in each picture.
//!
//! Written from the specification on its own, so that the server's reading of it is checked by something else than itself.

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use headwater_media::flv::TagKind;
use headwater_media::flv::reader::Tag;

use crate::clip::{Clip, is_picture};

/// How further tracks travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    /// The first under legacy headers, each other one in messages of its own, as OBS and ffmpeg do.
    #[default]
    OneTrack,
    /// All tracks of a time in one message.
    ManyTracks,
}

/// Keyframes of two clips are at the same time if they are no further apart than what FLV rounds times to (ms).
const SAME_TIME: u32 = 1;

/// A legacy video body: frame type and codec, packet type, composition time; then NAL units.
const LEGACY_HEADER_BYTES: usize = 5;

/// Enhanced RTMP's packet types.
const SEQUENCE_START: u8 = 0;
const CODED_FRAMES: u8 = 1;

/// The messages of one round, in order.
#[derive(Debug)]
pub struct Programme {
    pub(crate) messages: Vec<Message>,
    /// What a round adds to the time, in ms.
    pub(crate) millis: u32,
}

/// An audio or video message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) millis: u32,
    pub(crate) kind: TagKind,
    /// Says how a track is coded; once is enough.
    pub(crate) configuration: bool,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// As in the clip; a picture or not.
    Tag(Bytes, bool),
    /// With tracks beside the default one, all packets of one type.
    Tracks {
        layout: Layout,
        frame_type: u8,
        packet_type: u8,
        packets: Vec<Packet>,
    },
}

#[derive(Debug)]
struct Packet {
    track: u8,
    /// Composition time of a picture; nothing in front of a configuration.
    header: Bytes,
    payload: Bytes,
}

impl Programme {
    /// One clip; or several of one length and with keyframes at the same times: the first is the default track and the sound, the others
    /// are the tracks 1, 2 and so on.
    ///
    /// # Errors
    /// If clips don't go together.
    pub fn new(clips: Vec<Clip>, layout: Layout) -> Result<Self> {
        let first = clips.first().context("nothing to publish")?;
        let (millis, keyframes) = (first.millis, keyframes(first));
        let begin = *keyframes.first().context("no keyframe")?;
        let mut messages = Vec::new();
        for (track, clip) in clips.into_iter().enumerate() {
            let number = u8::try_from(track).context("too many tracks")?;
            let own = self::keyframes(&clip);
            // ffmpeg moves files by the sound's priming, which a file without sound has none of.
            let late = own.first().copied().context("no keyframe")?;
            let at = |millis: u32| (millis + begin).saturating_sub(late);
            let aligned = keyframes
                .iter()
                .all(|time| own.iter().any(|&own| at(own).abs_diff(*time) <= SAME_TIME));
            ensure!(aligned, "clip {track} lacks keyframes of the first one");
            let same = clip.millis.abs_diff(millis) <= 2;
            ensure!(same, "clip {track} is of another length");
            for tag in clip.tags {
                // The end of a sequence, which ffmpeg writes behind each file, is none here.
                let ends = tag.kind == TagKind::Video && tag.body.get(1) == Some(&2);
                if ends || (track > 0 && tag.kind == TagKind::Audio) {
                    continue;
                }
                messages.push(Message::new(number, at(tag.millis), tag, layout));
            }
        }
        // Stable: the default track goes first.
        messages.sort_by_key(|message| message.millis);
        if layout == Layout::ManyTracks {
            messages = merged(messages);
        }
        Ok(Self { messages, millis })
    }
}

impl Message {
    fn new(track: u8, millis: u32, tag: Tag, layout: Layout) -> Self {
        let configuration = tag.body.get(1) == Some(&0);
        let picture = is_picture(&tag);
        let legacy = tag.kind != TagKind::Video || (track == 0 && layout == Layout::OneTrack);
        let body = if legacy || tag.body.len() < LEGACY_HEADER_BYTES {
            Body::Tag(tag.body, picture)
        } else {
            Body::Tracks {
                layout,
                frame_type: tag.body[0] >> 4,
                packet_type: if picture {
                    CODED_FRAMES
                } else {
                    SEQUENCE_START
                },
                packets: vec![Packet {
                    track,
                    header: if picture {
                        tag.body.slice(2..LEGACY_HEADER_BYTES)
                    } else {
                        Bytes::new()
                    },
                    payload: tag.body.slice(LEGACY_HEADER_BYTES..),
                }],
            }
        };
        Self {
            millis,
            kind: tag.kind,
            configuration,
            body,
        }
    }

    /// A picture of the default track, alone in its message.
    pub(crate) const fn is_picture(&self) -> bool {
        matches!(self.body, Body::Tag(_, true))
    }

    /// What goes over the wire; `stamp` is a NAL unit to go in front of each picture.
    pub(crate) fn write(&self, stamp: Option<&[u8]>) -> Bytes {
        let (layout, frame_type, packet_type, packets) = match &self.body {
            Body::Tag(body, picture) => {
                return match stamp.filter(|_| *picture) {
                    Some(stamp) => stamped(body, stamp),
                    None => body.clone(),
                };
            }
            Body::Tracks {
                layout,
                frame_type,
                packet_type,
                packets,
            } => (*layout, *frame_type, *packet_type, packets),
        };
        let stamp = stamp.filter(|_| packet_type == CODED_FRAMES);
        let mut out = BytesMut::new();
        out.put_u8(0x80 | frame_type << 4 | 6);
        out.put_u8(u8::from(layout == Layout::ManyTracks) << 4 | packet_type);
        out.put_slice(b"avc1");
        for packet in packets {
            out.put_u8(packet.track);
            let added = stamp.map_or(0, |stamp| stamp.len() + 4);
            if layout == Layout::ManyTracks {
                let length = packet.header.len() + added + packet.payload.len();
                out.put_uint(u64::try_from(length).unwrap_or(0), 3);
            }
            out.put_slice(&packet.header);
            if let Some(stamp) = stamp {
                put_nal(&mut out, stamp);
            }
            out.put_slice(&packet.payload);
        }
        out.freeze()
    }
}

/// A legacy body with a NAL unit in front of the picture. NAL units have 4-byte lengths in ffmpeg's FLV.
fn stamped(body: &Bytes, stamp: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(body.len() + stamp.len() + 4);
    let (header, picture) = body.split_at(LEGACY_HEADER_BYTES.min(body.len()));
    out.put_slice(header);
    put_nal(&mut out, stamp);
    out.put_slice(picture);
    out.freeze()
}

fn put_nal(out: &mut BytesMut, nal: &[u8]) {
    out.put_u32(u32::try_from(nal.len()).unwrap_or(0));
    out.put_slice(nal);
}

/// Messages of one time and type as one.
fn merged(messages: Vec<Message>) -> Vec<Message> {
    let mut out: Vec<Message> = Vec::with_capacity(messages.len());
    for mut message in messages {
        let alike = |other: &&mut Message| match (&other.body, &message.body) {
            (
                Body::Tracks {
                    frame_type: a,
                    packet_type: b,
                    ..
                },
                Body::Tracks {
                    frame_type: c,
                    packet_type: d,
                    ..
                },
            ) => (a, b) == (c, d) && other.millis.abs_diff(message.millis) <= SAME_TIME,
            _ => false,
        };
        let known = out.iter_mut().rev().take(8).find(alike);
        match (known.map(|known| &mut known.body), &mut message.body) {
            (Some(Body::Tracks { packets: all, .. }), Body::Tracks { packets, .. }) => {
                all.append(packets);
            }
            _ => out.push(message),
        }
    }
    out
}

fn keyframes(clip: &Clip) -> Vec<u32> {
    let pictures = clip.tags.iter().filter(|tag| is_picture(tag));
    let keyframes = pictures.filter(|tag| tag.body.first().is_some_and(|first| first >> 4 == 1));
    keyframes.map(|tag| tag.millis).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(kind: TagKind, millis: u32, body: &[u8]) -> Tag {
        Tag {
            kind,
            millis,
            body: Bytes::copy_from_slice(body),
        }
    }

    /// Two pictures, the first of them a keyframe, and a configuration before them.
    fn clip(late: u32) -> Clip {
        Clip {
            tags: vec![
                tag(TagKind::Video, 0, &[0x17, 0, 0, 0, 0, b'c']),
                tag(TagKind::Audio, 0, &[0xAF, 1, b's']),
                tag(TagKind::Video, late, &[0x17, 1, 0, 0, 7, b'k']),
                tag(TagKind::Video, late + 40, &[0x27, 1, 0, 0, 0, b'd']),
            ],
            millis: 80,
        }
    }

    fn written(layout: Layout, stamp: Option<&[u8]>) -> Vec<(u32, Vec<u8>)> {
        let programme = Programme::new(vec![clip(21), clip(0)], layout).expect("they go together");
        let messages = programme.messages.iter();
        messages
            .map(|message| (message.millis, message.write(stamp).to_vec()))
            .collect()
    }

    #[test]
    fn the_first_clip_goes_as_it_is_and_the_second_beside_it() {
        let expected: [(u32, &[u8]); 7] = [
            (0, &[0x17, 0, 0, 0, 0, b'c']),
            (0, &[0xAF, 1, b's']),
            (21, &[0x17, 1, 0, 0, 7, b'k']),
            (21, b"\x96\x00avc1\x01c"),
            (21, b"\x96\x01avc1\x01\0\0\x07k"),
            (61, &[0x27, 1, 0, 0, 0, b'd']),
            (61, b"\xA6\x01avc1\x01\0\0\0d"),
        ];
        let expected: Vec<_> = expected.map(|(at, body)| (at, body.to_vec())).into();
        assert_eq!(written(Layout::OneTrack, None), expected);
    }

    #[test]
    fn all_tracks_of_a_time_are_one_message_each_with_its_stamp() {
        let written = written(Layout::ManyTracks, Some(b"!"));
        let expected: [(u32, &[u8]); 5] = [
            (0, b"\x96\x10avc1\x00\0\0\x01c"),
            (0, &[0xAF, 1, b's']),
            (
                21,
                b"\x96\x11avc1\x00\0\0\x09\0\0\x07\0\0\0\x01!k\x01\0\0\x09\0\0\x07\0\0\0\x01!k",
            ),
            (21, b"\x96\x10avc1\x01\0\0\x01c"),
            (
                61,
                b"\xA6\x11avc1\x00\0\0\x09\0\0\0\0\0\0\x01!d\x01\0\0\x09\0\0\0\0\0\0\x01!d",
            ),
        ];
        let mut found = written;
        found.sort();
        let mut expected: Vec<_> = expected.map(|(at, body)| (at, body.to_vec())).into();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn clips_that_do_not_go_together_are_refused() {
        let mut longer = clip(0);
        longer.millis = 120;
        assert!(Programme::new(vec![clip(0), longer], Layout::OneTrack).is_err());
        let mut second = clip(0);
        second
            .tags
            .push(tag(TagKind::Video, 60, &[0x17, 1, 0, 0, 0, b'k']));
        assert!(Programme::new(vec![second, clip(0)], Layout::OneTrack).is_err());
    }
}
