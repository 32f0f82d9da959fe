//! What viewers' datagrams do to a shard: checks, handshakes, feedback.

use std::time::Instant;

use headwater_media::ice::Path;
use headwater_media::rtp::rtcp;
use headwater_media::time::WallTime;
use metrics::counter;

use crate::metrics::{DATAGRAMS_REFUSED, FEEDBACK};
use crate::shard::core::{Core, Event};
use crate::shard::demux::{Protocol, classify};
use crate::shard::feedback;
use crate::shard::outbox::Outbox;
use crate::transport::stun;

/// Transport-wide feedback messages in one datagram (count). Browsers send one; each may speak of thousands of packets in a few bytes, so that
/// a datagram full of them would cost milliseconds.
const TRANSPORT_FEEDBACKS_MAX: u32 = 4;

impl Core {
    /// A datagram came in.
    pub(crate) fn handle_datagram(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: Path,
        datagram: &mut [u8],
        outbox: &mut Outbox,
    ) {
        if from.address.port() == 0 {
            // Nothing can be sent there.
            return refused("address");
        }
        match classify(datagram) {
            Protocol::Stun => self.handle_stun(now, from, datagram, outbox),
            Protocol::Dtls => self.handle_dtls(now, wall, from, datagram, outbox),
            Protocol::Rtcp => self.handle_rtcp(now, wall, from, datagram, outbox),
            Protocol::Rtp | Protocol::Other => refused("protocol"),
        }
    }

    fn handle_stun(&mut self, now: Instant, from: Path, datagram: &[u8], outbox: &mut Outbox) {
        let Some(mut request) = stun::Request::parse(datagram) else {
            return refused("stun");
        };
        let Some(slot) = self.by_ufrag.get(request.local_ufrag()).copied() else {
            // After a restart browsers try their old candidates for a while.
            return refused("ufrag");
        };
        let peer = &mut self.peers[slot];
        let password = &peer.ice.credentials().local_pwd;
        let crypto = self.identity.crypto();
        let authentic =
            peer.ice.answers_to(request.username()) && request.is_authentic(password, crypto);
        if !authentic {
            return refused("stun_integrity");
        }
        if request.controlled() {
            if let Some(answer) = request.role_conflict(password, crypto) {
                outbox.push(from, &answer);
            }
            return;
        }
        if let Some(answer) = request.success(from.address, password, crypto) {
            outbox.push(from, &answer);
        }
        self.handle_check(now, slot, from, request.nominates());
    }

    fn handle_dtls(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: Path,
        datagram: &[u8],
        outbox: &mut Outbox,
    ) {
        let Some(slot) = self.by_path.get(&from).copied() else {
            return refused("address");
        };
        let peer = &mut self.peers[slot];
        if peer.session.is_some() {
            return self.handle_association(now, wall, slot, from, datagram, outbox);
        }
        if !self.handshakes.push(peer, slot, from, datagram) {
            refused("handshakes_full");
        }
    }

    fn handle_rtcp(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: Path,
        datagram: &mut [u8],
        outbox: &Outbox,
    ) {
        let Some(slot) = self.by_path.get(&from).copied() else {
            return refused("address");
        };
        let peer = &mut self.peers[slot];
        let Some(session) = &mut peer.session else {
            return refused("early");
        };
        let Ok(plain) = session.feedback.open(datagram) else {
            return refused("srtcp");
        };
        self.handle_traffic(now, slot, from);
        let wait = self.wait(now, slot, outbox);
        let peer = &mut self.peers[slot];
        let mut arrivals = 0;
        for packet in rtcp::packets(plain) {
            let Ok(packet) = packet else {
                return refused("rtcp");
            };
            if matches!(packet, rtcp::Packet::TransportFeedback(_)) {
                arrivals += 1;
                if arrivals > TRANSPORT_FEEDBACKS_MAX {
                    return refused("rtcp");
                }
            }
            if let Some((kind, event)) = feedback::event(peer, wall, wait, packet) {
                if matches!(event, Event::Nacked { .. }) {
                    peer.pacer.handle_losses(now);
                }
                counter!(FEEDBACK, "kind" => kind).increment(1);
                self.events.push_back(event);
            }
        }
    }
}

fn refused(reason: &'static str) {
    counter!(DATAGRAMS_REFUSED, "reason" => reason).increment(1);
}
