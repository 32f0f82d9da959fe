//! Looks over the shoulder of the peer connection: the RTCP that passes the wire.
//!
//! `webrtc` answers RTCP by itself and shows none of it. This interceptor sits nearest to the wire and only counts;
//! it changes nothing. Sender reports give each track's place in wall-clock time, NACKs say what was missing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rtc::interceptor::{Interceptor, Packet, StreamInfo, TaggedPacket};
use rtc::rtcp::payload_feedbacks::picture_loss_indication::PictureLossIndication;
use rtc::rtcp::sender_report::SenderReport;
use rtc::rtcp::transport_feedbacks::transport_layer_nack::TransportLayerNack;
use rtc::sansio::Protocol;

/// Requested packets that nobody collected yet (count). The owner collects every few milliseconds.
const REQUESTED_MAX: usize = 4096;

/// What was seen; shared with the owner.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    reports: HashMap<u32, Report>,
    requested: VecDeque<(u32, u16)>,
    nacks: u64,
    plis: u64,
}

/// The newest sender report of one SSRC: the same instant in two clocks (RFC 3550 section 6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    /// NTP, 32.32 fixed point.
    pub(super) ntp: u64,
    /// RTP, in the track's clock rate.
    pub(super) rtp: u32,
}

impl Seen {
    /// The newest sender report of `ssrc`.
    pub(super) fn report(&self, ssrc: u32) -> Option<Report> {
        self.with(|log| log.reports.get(&ssrc).copied())
    }

    /// The packets asked for by NACK since the last call: SSRC and sequence number.
    pub(super) fn take_requested(&self) -> Vec<(u32, u16)> {
        self.with(|log| log.requested.drain(..).collect())
    }

    /// NACKed packets and PLIs sent so far.
    pub(super) fn sent(&self) -> (u64, u64) {
        self.with(|log| (log.nacks, log.plis))
    }

    fn with<T>(&self, work: impl FnOnce(&mut Log) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The interceptor.
#[derive(Default)]
pub(super) struct Observer {
    seen: Seen,
    inbound: VecDeque<TaggedPacket>,
    outbound: VecDeque<TaggedPacket>,
}

impl Observer {
    /// Writes what it sees into `seen`.
    pub(super) fn new(seen: Seen) -> Self {
        Self {
            seen,
            ..Self::default()
        }
    }
}

impl Protocol<TaggedPacket, TaggedPacket, ()> for Observer {
    type Rout = TaggedPacket;
    type Wout = TaggedPacket;
    type Eout = ();
    type Error = rtc::shared::error::Error;
    type Time = Instant;

    fn handle_read(&mut self, message: TaggedPacket) -> Result<(), Self::Error> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            for packet in packets {
                if let Some(report) = packet.as_any().downcast_ref::<SenderReport>() {
                    let newest = Report {
                        ntp: report.ntp_time,
                        rtp: report.rtp_time,
                    };
                    self.seen
                        .with(|log| log.reports.insert(report.ssrc, newest));
                }
            }
        }
        self.inbound.push_back(message);
        Ok(())
    }

    fn poll_read(&mut self) -> Option<Self::Rout> {
        self.inbound.pop_front()
    }

    fn handle_write(&mut self, message: TaggedPacket) -> Result<(), Self::Error> {
        if let Packet::Rtcp(packets) = &message.message.packet {
            for packet in packets {
                let packet = packet.as_any();
                if let Some(nack) = packet.downcast_ref::<TransportLayerNack>() {
                    self.seen.with(|log| {
                        for sequence in nack.nacks.iter().flat_map(|pair| pair.packet_list()) {
                            log.nacks += 1;
                            log.requested.push_back((nack.media_ssrc, sequence));
                        }
                        while log.requested.len() > REQUESTED_MAX {
                            log.requested.pop_front();
                        }
                    });
                } else if packet.is::<PictureLossIndication>() {
                    self.seen.with(|log| log.plis += 1);
                }
            }
        }
        self.outbound.push_back(message);
        Ok(())
    }

    fn poll_write(&mut self) -> Option<Self::Wout> {
        self.outbound.pop_front()
    }
}

impl Interceptor for Observer {
    fn bind_local_stream(&mut self, _info: &StreamInfo) {}
    fn unbind_local_stream(&mut self, _info: &StreamInfo) {}
    fn bind_remote_stream(&mut self, _info: &StreamInfo) {}
    fn unbind_remote_stream(&mut self, _info: &StreamInfo) {}
}
