//! Offer meets stream: which m-section carries what, with which payload type, or why it can't be.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;

use rand::RngCore;

use super::h264::{Parameters, Profile};
use super::offer::{Codec, Direction, Offer, Section, SectionKind, parameters};
use super::{Negotiated, NegotiatedMedia};
use crate::codec::opus;
use crate::track::{Configuration, StreamInfo};

/// Why a stream can't be sent to who made this offer. The sentence is for the viewer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A player must receive.
    #[error(
        "an m-section of the offer is sendonly or inactive; to play, a=recvonly (or sendrecv) is needed"
    )]
    Direction,
    /// Everything goes over one transport.
    #[error(
        "the offer does not bundle its m-sections (a=group:BUNDLE), and this server sends all media over one transport"
    )]
    Unbundled,
    /// RTP and RTCP share it.
    #[error("the offer lacks a=rtcp-mux, without which this server can't send")]
    Unmuxed,
    /// No H.264 with packetization-mode 1 in the offer.
    #[error(
        "this stream's video is H.264, and the player can't receive it (it needs packetization-mode=1); it offers {offered}"
    )]
    VideoCodec {
        /// What it has instead.
        offered: String,
    },
    /// No Opus in the offer, and nothing else in common.
    #[error(
        "this stream's audio is sent as Opus, and the player can't receive it; it offers {offered}"
    )]
    AudioCodec {
        /// What it has instead.
        offered: String,
    },
    /// The source has B-frames, which WebRTC players can't show.
    #[error(
        "this stream's video has B-frames, which browsers can't play over WebRTC; \
         the publisher must switch them off: in OBS under Settings > Output > Streaming set Max B-frames to 0 \
         (x264: Tune zerolatency), in ffmpeg add -bf 0"
    )]
    Reordered,
    /// The stream has sound that can't be sent, and nothing else was asked for.
    #[error("this stream's audio can't be played over WebRTC: {0}")]
    AudioProblem(Arc<str>),
    /// The offer asks for picture or sound that the stream doesn't have, and for nothing else.
    #[error("the player asks for {asked} only, and this stream has none")]
    NoSuchTrack {
        /// `video`, `audio`, or both.
        asked: &'static str,
    },
    /// Neither picture nor sound is asked for.
    #[error("the offer asks for neither video nor audio")]
    NothingAsked,
}

/// An offer's outcome, from which the answer is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation {
    /// What the transport needs.
    pub negotiated: Negotiated,
    pub(super) sections: Vec<Outcome>,
    pub(super) session_id: u64,
}

/// One m-section of the answer, in the offer's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Rejected(Section),
    Video {
        offered: Section,
        codec: Codec,
    },
    Audio {
        offered: Section,
        codec: Codec,
        stereo: bool,
    },
}

/// What a stream has of a kind, seen from WebRTC.
enum Available<'a> {
    Yes(&'a Configuration),
    /// The origin is making it.
    Soon,
    Problem(&'a Arc<str>),
    Reordered,
    No,
}

impl Offer {
    /// Decides what of `stream` this player gets. `random` gives SSRCs and names, which must differ between sessions.
    ///
    /// # Errors
    /// [`Refusal`]: tell the player by a 422 with this sentence.
    pub fn negotiate(
        &self,
        stream: &StreamInfo,
        random: &mut dyn RngCore,
    ) -> Result<Negotiation, Refusal> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(self.sections.len());
        let (mut video, mut audio) = (None, None);
        let (mut asked_video, mut asked_audio) = (false, false);
        let mut refusal = None;
        for section in &self.sections {
            let rejected = || Outcome::Rejected(section.clone());
            if !section.usable || section.kind == SectionKind::Other {
                outcomes.push(rejected());
                continue;
            }
            if matches!(section.direction, Direction::SendOnly | Direction::Inactive) {
                return Err(Refusal::Direction);
            }
            if !section.rtcp_mux {
                return Err(Refusal::Unmuxed);
            }
            match section.kind {
                SectionKind::Video if !asked_video => {
                    asked_video = true;
                    match available_video(stream) {
                        Available::Yes(configuration) => {
                            let codec = best_h264(section, configuration).ok_or_else(|| {
                                Refusal::VideoCodec {
                                    offered: section.codec_names(),
                                }
                            })?;
                            video = Some(accept(section, codec, random));
                            outcomes.push(Outcome::Video {
                                offered: section.clone(),
                                codec: codec.clone(),
                            });
                        }
                        Available::Reordered => return Err(Refusal::Reordered),
                        Available::No | Available::Soon | Available::Problem(_) => {
                            outcomes.push(rejected());
                        }
                    }
                }
                SectionKind::Audio if !asked_audio => {
                    asked_audio = true;
                    match available_audio(stream) {
                        Available::Yes(_) | Available::Soon => {
                            if let Some(codec) = opus_codec(section) {
                                audio = Some(accept(section, codec, random));
                                outcomes.push(Outcome::Audio {
                                    offered: section.clone(),
                                    codec: codec.clone(),
                                    stereo: wants_stereo(codec),
                                });
                            } else {
                                refusal = Some(Refusal::AudioCodec {
                                    offered: section.codec_names(),
                                });
                                outcomes.push(rejected());
                            }
                        }
                        Available::Problem(problem) => {
                            refusal = Some(Refusal::AudioProblem(Arc::clone(problem)));
                            outcomes.push(rejected());
                        }
                        Available::No | Available::Reordered => outcomes.push(rejected()),
                    }
                }
                // One track of a kind is what a stream has; a second section stays empty.
                SectionKind::Video | SectionKind::Audio | SectionKind::Other => {
                    outcomes.push(rejected());
                }
            }
        }

        match (&video, &audio) {
            (None, None) => {
                return Err(refusal.unwrap_or(match (asked_video, asked_audio) {
                    (true, true) => Refusal::NoSuchTrack {
                        asked: "video and audio",
                    },
                    (true, false) => Refusal::NoSuchTrack { asked: "video" },
                    (false, true) => Refusal::NoSuchTrack { asked: "audio" },
                    (false, false) => Refusal::NothingAsked,
                }));
            }
            (Some(_), Some(_)) => {
                let bundled = |outcome: &Outcome| outcome.rejected() || outcome.section().bundled;
                if !outcomes.iter().all(bundled) {
                    return Err(Refusal::Unbundled);
                }
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        Ok(Negotiation {
            negotiated: Negotiated {
                remote_ufrag: self.ice.ufrag.clone(),
                remote_pwd: self.ice.pwd.clone(),
                remote_fingerprint: self.fingerprint,
                cname: format!("{:016x}", random.next_u64()),
                video,
                audio,
            },
            sections: outcomes,
            // RFC 8829 section 5.2.1: 63 bits.
            session_id: random.next_u64() >> 1,
        })
    }
}

impl Negotiation {
    /// The mids of the accepted sections in the answer's order, each with its media type; the first is BUNDLE's tagged one.
    pub fn mids(&self) -> Vec<(&'static str, String)> {
        self.sections
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Rejected(_) => None,
                Outcome::Video { offered, .. } => Some(("video", offered.mid.clone())),
                Outcome::Audio { offered, .. } => Some(("audio", offered.mid.clone())),
            })
            .collect()
    }
}

impl Outcome {
    pub(super) const fn section(&self) -> &Section {
        match self {
            Self::Rejected(offered) | Self::Video { offered, .. } | Self::Audio { offered, .. } => {
                offered
            }
        }
    }

    pub(super) const fn rejected(&self) -> bool {
        matches!(self, Self::Rejected(_))
    }
}

fn available_video(stream: &StreamInfo) -> Available<'_> {
    let h264 = |reordered| {
        stream.tracks.iter().find(|track| {
            matches!(*track.configuration, Configuration::H264(_)) && track.reordered == reordered
        })
    };
    match (h264(false), h264(true)) {
        (Some(track), _) => Available::Yes(&track.configuration),
        (None, Some(_)) => Available::Reordered,
        (None, None) => Available::No,
    }
}

fn available_audio(stream: &StreamInfo) -> Available<'_> {
    let find = |wanted: fn(&Configuration) -> bool| {
        stream
            .tracks
            .iter()
            .find(|track| wanted(&track.configuration))
    };
    if let Some(track) = find(|configuration| matches!(configuration, Configuration::Opus(_))) {
        return Available::Yes(&track.configuration);
    }
    match (
        find(|configuration| matches!(configuration, Configuration::Aac(_))),
        &stream.audio_problem,
    ) {
        (_, Some(problem)) => Available::Problem(problem),
        // The first Opus packet comes a moment after the first AAC frame. Whoever joins in that moment
        // gets the section, since a rejected one would stay silent for as long as they watch.
        (Some(_), None) => Available::Soon,
        (None, None) => Available::No,
    }
}

/// The offered payload type that comes nearest to the stream's profile, in the player's order where several do.
fn best_h264<'a>(section: &'a Section, configuration: &Configuration) -> Option<&'a Codec> {
    let Configuration::H264(configuration) = configuration else {
        return None;
    };
    let stream = Profile::of(configuration.profile_level_id);
    section
        .codecs
        .iter()
        .filter(|codec| codec.name.eq_ignore_ascii_case("H264") && codec.clock_hz == 90_000)
        .map(|codec| (codec, Parameters::parse(&codec.fmtp)))
        .filter(|(_, parameters)| parameters.non_interleaved)
        .min_by_key(|(_, parameters)| stream.distance(Profile::of(parameters.profile_level_id)))
        .map(|(codec, _)| codec)
}

fn opus_codec(section: &Section) -> Option<&Codec> {
    section
        .codecs
        .iter()
        .find(|codec| codec.name.eq_ignore_ascii_case("opus") && codec.clock_hz == opus::CLOCK_HZ)
}

/// RFC 7587 section 6.1: `stereo=1` says that the player would rather have stereo than mono.
fn wants_stereo(codec: &Codec) -> bool {
    parameters(&codec.fmtp).any(|(key, value)| key.eq_ignore_ascii_case("stereo") && value == "1")
}

fn accept(section: &Section, codec: &Codec, random: &mut dyn RngCore) -> NegotiatedMedia {
    // Distinct with certainty: both tracks' SSRCs would have to meet in 2^32, and the lowest bit tells media from RTX.
    let ssrc = (random.next_u32() & !1).max(2);
    let transport_cc =
        codec.feedback.transport_cc && section.extensions.transport_sequence.is_some();
    let mut extensions = section.extensions;
    if !transport_cc {
        extensions.transport_sequence = None;
    }
    NegotiatedMedia {
        mid: section.mid.clone(),
        payload_type: codec.payload_type,
        rtx_payload_type: section.rtx_for(codec.payload_type),
        ssrc,
        rtx_ssrc: ssrc | 1,
        transport_cc,
        nack: codec.feedback.nack,
        extensions,
    }
}
