//! What viewers' RTCP means to a shard.

use std::time::Duration;

use headwater_media::bwe::Arrivals;
use headwater_media::rtp::rtcp;
use headwater_media::time::WallTime;
use headwater_media::unit::MediaKind;

use crate::shard::core::Event;
use crate::shard::peer::Peer;

/// What one feedback message says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sample {
    /// A report block of one of our SSRCs (RR or SR).
    Report {
        /// From an SR of ours and back, if it can be told.
        rtt: Option<Duration>,
        /// Of 256, lost since the last one.
        fraction_lost: u8,
    },
    /// An answer to something of ours took so long, the viewer's own time included.
    AnsweredWithin(Duration),
    /// A transport-wide feedback message.
    Arrivals(Arrivals),
}

/// What a feedback packet means, with its label. `wait`: how far the viewer's pictures are behind.
pub(super) fn event(
    peer: &Peer,
    wall: WallTime,
    wait: Duration,
    packet: rtcp::Packet<'_>,
) -> Option<(&'static str, Event)> {
    let viewer = peer.id;
    let measured = |sample| Event::Measured {
        viewer,
        sample,
        wait,
    };
    match packet {
        rtcp::Packet::ReceiverReport { reports, .. }
        | rtcp::Packet::SenderReport { reports, .. } => {
            // The picture's report is the one that matters; audio alone has its own.
            let ours = reports.filter(|report| peer.kind_of(report.ssrc).is_some());
            let report =
                ours.max_by_key(|report| peer.kind_of(report.ssrc) == Some(MediaKind::Video))?;
            let sample = Sample::Report {
                rtt: report.rtt(wall),
                fraction_lost: report.fraction_lost,
            };
            Some(("report", measured(sample)))
        }
        rtcp::Packet::Nack { media_ssrc, lost } => {
            let kind = peer.kind_of(media_ssrc)?;
            let lost = lost.collect();
            Some(("nack", Event::Nacked { viewer, kind, lost }))
        }
        rtcp::Packet::PictureLoss { media_ssrc } => (peer.kind_of(media_ssrc)? == MediaKind::Video)
            .then_some(("pli", Event::KeyframeAsked { viewer })),
        rtcp::Packet::FullIntraRequest(mut requests) => requests
            .any(|(ssrc, _)| peer.kind_of(ssrc) == Some(MediaKind::Video))
            .then_some(("fir", Event::KeyframeAsked { viewer })),
        rtcp::Packet::TransportFeedback(message) => {
            let arrivals = peer.numbers.history.as_ref()?.arrivals(&message);
            Some(("transport", measured(Sample::Arrivals(arrivals))))
        }
        _ => None,
    }
}
