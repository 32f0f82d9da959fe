//! Conversions between the wire messages and the types of `headwater-media`.
//!
//! Towards the wire they cannot fail. From the wire everything is checked here, once: the peer may be broken, of another
//! version, or hostile. A typed error says what was wrong; the receiver of one ends the call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use headwater_media::codec::{aac, h264, opus};
use headwater_media::id::{Bitrate, Epoch, InvalidNodeId, InvalidStreamName, NodeId, TrackId};
use headwater_media::replication::{Position, Want};
use headwater_media::time::{MediaTime, WallTime};
use headwater_media::track;
use headwater_media::tree::{self, Alternative, Joining, Room};
use headwater_media::unit::AccessUnit;

use crate::replication as wire;

/// The longest payload of an access unit that is accepted (bytes); the message limit of RTMP ingest is half of it.
pub const PAYLOAD_BYTES_MAX: usize = 15 << 20;

/// The longest gRPC message that is decoded (bytes): a payload and its fields.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Tracks a stream may have (count): a ladder of some ten renditions with audio fits well.
pub const TRACKS_MAX: usize = 64;

/// Composition offsets beyond this are refused (ticks of 90 kHz): ten seconds, far above any reordering depth.
const COMPOSITION_OFFSET_TICKS_MAX: i64 = 900_000;

/// DTS beyond this are refused (ticks of 90 kHz): a million days, so that sums of times can't overflow.
const DTS_TICKS_MAX: i64 = 90_000 * 86_400 * 1_000_000;

/// What is wrong with a message from another node. Not worth a retry with the same peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number is outside its range.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// The stream's name is none.
    #[error(transparent)]
    Name(#[from] InvalidStreamName),
    /// A node's id is none.
    #[error(transparent)]
    Node(#[from] InvalidNodeId),
    /// A codec this node does not know: the peer is of a newer version.
    #[error("codec {0} is not known")]
    UnknownCodec(i32),
    /// The H.264 configuration can't be read.
    #[error("H.264 configuration: {0}")]
    H264(#[from] h264::Error),
    /// The AAC configuration can't be read.
    #[error("AAC configuration: {0}")]
    Aac(#[from] aac::Error),
}

fn track_id(id: u32) -> Result<TrackId, Error> {
    u16::try_from(id)
        .map(TrackId)
        .map_err(|_| Error::OutOfRange("track_id"))
}

/// Checks the ids of a [`wire::Want`].
///
/// # Errors
/// If there are too many, or one is out of range.
pub fn want_from_wire(want: &wire::Want) -> Result<Want, Error> {
    if want.track_ids.len() > TRACKS_MAX {
        return Err(Error::OutOfRange("track_ids"));
    }
    let tracks: Result<Vec<TrackId>, Error> =
        want.track_ids.iter().map(|&id| track_id(id)).collect();
    Ok(Want {
        tracks: tracks?,
        adaptive: want.adaptive,
    })
}

/// See [`wire::Want`].
pub fn want_to_wire(want: &Want) -> wire::Want {
    wire::Want {
        track_ids: want.tracks.iter().map(|id| u32::from(id.0)).collect(),
        adaptive: want.adaptive,
    }
}

/// Checks the positions of a [`wire::Subscribe`].
///
/// # Errors
/// If there are too many, or a track id is out of range.
pub fn have_from_wire(have: &[wire::Position]) -> Result<Vec<Position>, Error> {
    if have.len() > TRACKS_MAX {
        return Err(Error::OutOfRange("have"));
    }
    have.iter()
        .map(|position| {
            Ok(Position {
                track: track_id(position.track_id)?,
                epoch: Epoch(position.epoch),
                sequence: position.sequence,
            })
        })
        .collect()
}

/// See [`wire::Position`].
pub fn have_to_wire(have: &[Position]) -> Vec<wire::Position> {
    let wire = have.iter().map(|position| wire::Position {
        track_id: u32::from(position.track.0),
        epoch: position.epoch.0,
        sequence: position.sequence,
    });
    wire.collect()
}

/// The longest URL of a node that is accepted (bytes).
const URL_BYTES_MAX: usize = 256;

fn url(url: String) -> Result<String, Error> {
    let fits = url.len() <= URL_BYTES_MAX && url.chars().all(|c| c.is_ascii_graphic());
    fits.then_some(url).ok_or(Error::OutOfRange("grpc_url"))
}

fn node_ids(ids: Vec<String>, max: usize, what: &'static str) -> Result<Vec<NodeId>, Error> {
    if ids.len() > max {
        return Err(Error::OutOfRange(what));
    }
    let ids: Result<Vec<NodeId>, InvalidNodeId> = ids.into_iter().map(|id| id.parse()).collect();
    Ok(ids?)
}

/// See [`wire::Room`].
pub const fn room_from_wire(room: wire::Room) -> Room {
    Room {
        free: room.free,
        load_percent: room.load_percent,
        descendants: room.descendants,
        height: room.height,
        height_max: room.height_max,
    }
}

/// See [`wire::Room`].
pub const fn room_to_wire(room: Room) -> wire::Room {
    wire::Room {
        free: room.free,
        load_percent: room.load_percent,
        descendants: room.descendants,
        height: room.height,
        height_max: room.height_max,
    }
}

/// Checks what a [`wire::Subscribe`] says of its sender. An older one's id may be any text, and then counts as none.
///
/// # Errors
/// If its URL is none, or what it avoids are no nodes, or too many.
pub fn joining_from_wire(subscribe: &wire::Subscribe) -> Result<Joining, Error> {
    Ok(Joining {
        node: subscribe.node.parse().ok(),
        grpc_url: url(subscribe.grpc_url.clone())?,
        room: subscribe.room.map(room_from_wire).unwrap_or_default(),
        redirects_left: subscribe.redirects_left,
        avoid: avoid_from_wire(subscribe.avoid.clone())?,
    })
}

/// Checks whom a subscriber avoids.
///
/// # Errors
/// If they are no nodes, or too many.
pub fn avoid_from_wire(avoid: Vec<String>) -> Result<Vec<NodeId>, Error> {
    node_ids(avoid, tree::AVOID_MAX, "avoid")
}

/// Checks a [`wire::Redirect`].
///
/// # Errors
/// If it has too many alternatives, or one that is no node.
pub fn alternatives_from_wire(redirect: wire::Redirect) -> Result<Vec<Alternative>, Error> {
    if redirect.alternatives.len() > tree::ALTERNATIVES_MAX {
        return Err(Error::OutOfRange("alternatives"));
    }
    let alternative = |alternative: wire::Alternative| {
        Ok(Alternative {
            grpc_url: url(alternative.grpc_url)?,
            node: alternative.node.parse()?,
            depth: usize::try_from(alternative.depth).unwrap_or(usize::MAX),
        })
    };
    redirect.alternatives.into_iter().map(alternative).collect()
}

/// See [`wire::Redirect`].
pub fn alternatives_to_wire(alternatives: &[Alternative]) -> wire::Redirect {
    let alternative = |alternative: &Alternative| wire::Alternative {
        grpc_url: alternative.grpc_url.clone(),
        node: alternative.node.to_string(),
        depth: u32::try_from(alternative.depth).unwrap_or(u32::MAX),
    };
    wire::Redirect {
        alternatives: alternatives.iter().map(alternative).collect(),
    }
}

impl From<&AccessUnit> for wire::Unit {
    fn from(unit: &AccessUnit) -> Self {
        Self {
            track_id: u32::from(unit.track.0),
            epoch: unit.epoch.0,
            sequence: unit.sequence,
            configuration_id: unit.configuration_id,
            dts_ticks: unit.dts.ticks(),
            composition_offset_ticks: (unit.pts - unit.dts).ticks(),
            keyframe: unit.keyframe,
            discardable: unit.discardable,
            discontinuity: unit.discontinuity,
            ingest_unix_micros: unit.ingest_time.unix_micros(),
            origin_delay_micros: u32::try_from(unit.origin_delay.as_micros()).unwrap_or(u32::MAX),
            payload: unit.payload.clone(),
        }
    }
}

impl TryFrom<wire::Unit> for AccessUnit {
    type Error = Error;

    fn try_from(unit: wire::Unit) -> Result<Self, Error> {
        if unit.dts_ticks.unsigned_abs() > DTS_TICKS_MAX.unsigned_abs() {
            return Err(Error::OutOfRange("dts_ticks"));
        }
        if unit.composition_offset_ticks.unsigned_abs()
            > COMPOSITION_OFFSET_TICKS_MAX.unsigned_abs()
        {
            return Err(Error::OutOfRange("composition_offset_ticks"));
        }
        if unit.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::OutOfRange("payload"));
        }
        if unit.sequence == u64::MAX {
            return Err(Error::OutOfRange("sequence"));
        }
        let dts = MediaTime::from_ticks(unit.dts_ticks);
        Ok(Self {
            track: track_id(unit.track_id)?,
            epoch: Epoch(unit.epoch),
            sequence: unit.sequence,
            configuration_id: unit.configuration_id,
            dts,
            pts: dts + MediaTime::from_ticks(unit.composition_offset_ticks),
            keyframe: unit.keyframe,
            discardable: unit.discardable,
            discontinuity: unit.discontinuity,
            payload: unit.payload,
            ingest_time: WallTime::from_unix_micros(unit.ingest_unix_micros),
            origin_delay: Duration::from_micros(unit.origin_delay_micros.into()),
        })
    }
}

impl From<&track::Track> for wire::Track {
    fn from(track: &track::Track) -> Self {
        let (codec, codec_configuration, channels, pre_skip) = match track.configuration.as_ref() {
            track::Configuration::H264(h264) => (wire::Codec::H264, h264.avcc.clone(), 0, 0),
            track::Configuration::Aac(aac) => (wire::Codec::Aac, aac.asc.clone(), 0, 0),
            track::Configuration::Opus(opus) => (
                wire::Codec::Opus,
                Bytes::new(),
                u32::from(opus.channels),
                u32::from(opus.pre_skip),
            ),
        };
        Self {
            id: u32::from(track.id.0),
            rendition: track.rendition.as_ref().to_owned(),
            configuration_id: track.configuration_id,
            codec: codec.into(),
            codec_configuration,
            channels,
            pre_skip_samples: pre_skip,
            bitrate_bits_per_second: track.bitrate.0,
            reordered: track.reordered,
        }
    }
}

impl TryFrom<wire::Track> for track::Track {
    type Error = Error;

    fn try_from(track: wire::Track) -> Result<Self, Error> {
        const RENDITION_BYTES_MAX: usize = 64;
        if track.rendition.is_empty() || track.rendition.len() > RENDITION_BYTES_MAX {
            return Err(Error::OutOfRange("rendition"));
        }
        let configuration = match wire::Codec::try_from(track.codec) {
            Ok(wire::Codec::H264) => {
                track::Configuration::H264(h264::Configuration::parse(track.codec_configuration)?)
            }
            Ok(wire::Codec::Aac) => {
                track::Configuration::Aac(aac::Configuration::parse(track.codec_configuration)?)
            }
            Ok(wire::Codec::Opus) => track::Configuration::Opus(opus::Configuration {
                channels: u8::try_from(track.channels)
                    .ok()
                    .filter(|channels| (1..=2).contains(channels))
                    .ok_or(Error::OutOfRange("channels"))?,
                pre_skip: u16::try_from(track.pre_skip_samples)
                    .map_err(|_| Error::OutOfRange("pre_skip_samples"))?,
            }),
            Ok(wire::Codec::Unspecified) | Err(_) => return Err(Error::UnknownCodec(track.codec)),
        };
        Ok(Self {
            id: track_id(track.id)?,
            rendition: track.rendition.into(),
            configuration: Arc::new(configuration),
            configuration_id: track.configuration_id,
            bitrate: Bitrate(track.bitrate_bits_per_second),
            reordered: track.reordered,
        })
    }
}

impl From<&track::StreamInfo> for wire::StreamInfo {
    fn from(info: &track::StreamInfo) -> Self {
        Self {
            stream: info.name.to_string(),
            epoch: info.epoch.0,
            tracks: info.tracks.iter().map(wire::Track::from).collect(),
            publishing: info.publishing,
            audio_problem: info.audio_problem.as_deref().unwrap_or_default().to_owned(),
            settled: info.settled,
            path: info.path.nodes().iter().map(NodeId::to_string).collect(),
        }
    }
}

impl TryFrom<wire::StreamInfo> for track::StreamInfo {
    type Error = Error;

    /// Tracks of codecs that this node does not know are left out: a newer upstream may have them, and its other tracks
    /// are still good.
    fn try_from(info: wire::StreamInfo) -> Result<Self, Error> {
        if info.tracks.len() > TRACKS_MAX {
            return Err(Error::OutOfRange("tracks"));
        }
        let mut tracks: Vec<track::Track> = Vec::with_capacity(info.tracks.len());
        for track in info.tracks {
            match track::Track::try_from(track) {
                Ok(track) => tracks.push(track),
                Err(Error::UnknownCodec(_)) => {}
                Err(error) => return Err(error),
            }
        }
        tracks.sort_by_key(|track| track.id);
        if tracks.windows(2).any(|pair| pair[0].id == pair[1].id) {
            return Err(Error::OutOfRange("tracks"));
        }
        Ok(Self {
            name: info.stream.parse()?,
            epoch: Epoch(info.epoch),
            tracks,
            publishing: info.publishing,
            audio_problem: (!info.audio_problem.is_empty()).then(|| info.audio_problem.into()),
            settled: info.settled,
            path: node_ids(info.path, tree::PATH_NODES_MAX, "path")?.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opus_track(id: u32) -> wire::Track {
        wire::Track {
            id,
            rendition: "source".to_owned(),
            configuration_id: 3,
            codec: wire::Codec::Opus.into(),
            codec_configuration: Bytes::new(),
            channels: 2,
            pre_skip_samples: 312,
            bitrate_bits_per_second: 96_000,
            reordered: false,
        }
    }

    fn info(tracks: Vec<wire::Track>) -> wire::StreamInfo {
        wire::StreamInfo {
            stream: "live/demo".to_owned(),
            epoch: 7,
            tracks,
            publishing: true,
            audio_problem: String::new(),
            settled: true,
            path: vec!["o1".to_owned(), "e1".to_owned()],
        }
    }

    #[test]
    fn stream_info_survives_the_wire() {
        let sent = info(vec![opus_track(2)]);
        let read = track::StreamInfo::try_from(sent.clone()).expect("valid");
        assert_eq!(read.tracks[0].id, TrackId::OPUS);
        assert_eq!(wire::StreamInfo::from(&read), sent);
    }

    #[test]
    fn hostile_stream_infos_are_refused() {
        let check = |info: wire::StreamInfo| track::StreamInfo::try_from(info).map(|_| ());
        assert_eq!(
            check(info(vec![opus_track(65_536)])),
            Err(Error::OutOfRange("track_id"))
        );
        assert_eq!(
            check(info(vec![opus_track(1), opus_track(1)])),
            Err(Error::OutOfRange("tracks"))
        );
        assert_eq!(
            check(info((0..65).map(opus_track).collect())),
            Err(Error::OutOfRange("tracks"))
        );
        let mut channels = opus_track(2);
        channels.channels = 0;
        assert_eq!(
            check(info(vec![channels])),
            Err(Error::OutOfRange("channels"))
        );
        let mut name = info(Vec::new());
        name.stream = "../x/y".to_owned();
        assert_eq!(check(name), Err(Error::Name(InvalidStreamName)));
        let mut path = info(Vec::new());
        path.path = vec!["o 1".to_owned()];
        assert_eq!(check(path.clone()), Err(Error::Node(InvalidNodeId)));
        path.path = vec!["o1".to_owned(); tree::PATH_NODES_MAX + 1];
        assert_eq!(check(path), Err(Error::OutOfRange("path")));
        let mut avcc = opus_track(0);
        avcc.codec = wire::Codec::H264.into();
        assert!(matches!(check(info(vec![avcc])), Err(Error::H264(_))));
    }

    #[test]
    fn tracks_of_unknown_codecs_are_left_out() {
        let mut newer = opus_track(9);
        newer.codec = 1000;
        let read = track::StreamInfo::try_from(info(vec![newer, opus_track(2)])).expect("readable");
        assert_eq!(read.tracks.len(), 1);
    }

    #[test]
    fn wants_survive_the_wire_and_hostile_ones_are_refused() {
        let want = Want {
            tracks: vec![TrackId::SOURCE_VIDEO, TrackId(17)],
            adaptive: true,
        };
        assert_eq!(want_from_wire(&want_to_wire(&want)), Ok(want));
        let check = |track_ids: Vec<u32>| {
            want_from_wire(&wire::Want {
                track_ids,
                adaptive: false,
            })
        };
        assert_eq!(check(vec![65_536]), Err(Error::OutOfRange("track_id")));
        assert_eq!(
            check((0..65).collect()),
            Err(Error::OutOfRange("track_ids"))
        );
        assert_eq!(check(Vec::new()), Ok(Want::default()));
    }

    #[test]
    fn redirections_survive_the_wire_and_hostile_ones_are_refused() {
        let alternative = Alternative {
            grpc_url: "http://e1:7070".to_owned(),
            node: "e1".parse().expect("an id"),
            depth: 1,
        };
        let wire = alternatives_to_wire(std::slice::from_ref(&alternative));
        assert_eq!(alternatives_from_wire(wire.clone()), Ok(vec![alternative]));
        let mut url = wire.clone();
        url.alternatives[0].grpc_url = "http://e1 \n".to_owned();
        assert_eq!(
            alternatives_from_wire(url),
            Err(Error::OutOfRange("grpc_url"))
        );
        let many = wire::Redirect {
            alternatives: vec![wire.alternatives[0].clone(); tree::ALTERNATIVES_MAX + 1],
        };
        assert_eq!(
            alternatives_from_wire(many),
            Err(Error::OutOfRange("alternatives"))
        );
    }

    #[test]
    fn an_older_subscriber_follows_no_redirection_and_passes_nothing_on() {
        let joining = joining_from_wire(&wire::Subscribe {
            node: "any text".to_owned(),
            ..wire::Subscribe::default()
        });
        assert_eq!(joining, Ok(Joining::default()));
    }

    proptest! {
        #[test]
        fn any_unit_is_read_back_or_refused(
            track_id in 0u32..70_000, sequence: u64, dts_ticks: i64, offset: i64, keyframe: bool,
            payload in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let sent = wire::Unit {
                track_id, epoch: 1, sequence, configuration_id: 2, dts_ticks,
                composition_offset_ticks: offset, keyframe, discardable: !keyframe, discontinuity: false,
                ingest_unix_micros: 5, origin_delay_micros: 6, payload: payload.into(),
            };
            if let Ok(unit) = AccessUnit::try_from(sent.clone()) {
                prop_assert_eq!(wire::Unit::from(&unit), sent);
            }
        }
    }
}
