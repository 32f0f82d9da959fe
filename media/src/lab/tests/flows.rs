//! Flows over one link and the way back: media that is sent as the estimate says, with the real history and estimator, and TCP beside it.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use super::tcp::{ACK_BYTES, SEGMENT_BYTES, Tcp};
use super::*;
use crate::bwe::{Cluster, Estimate, Estimator, History, Probed};
use crate::lab::packet::{IP_BYTES, Packet};
use crate::lab::viewer::{Viewer, Word};
use crate::rtp::rtcp;

pub(super) const MILLI: Duration = Duration::from_millis(1);
pub(super) const PACKET: usize = 1200;

/// A link with a queue of 300 ms and 25 ms of way.
pub(super) fn link(rate: u64) -> Conditions {
    Conditions {
        rate: Some(rate),
        queue_bytes: usize::try_from(rate / 8 * 3 / 10).unwrap(),
        delay: Duration::from_millis(25),
        ..Conditions::default()
    }
}

/// Everybody who shares the link.
pub(super) struct Scene {
    pub(super) now: Instant,
    pub(super) link: Link<Parcel>,
    /// The way back: its own link.
    pub(super) back: Link<Parcel>,
    pub(super) flows: Vec<Flow>,
    pub(super) tcp: Vec<Tcp>,
    delay: Duration,
    millis: u64,
}

/// What the links carry.
#[derive(Debug, Clone)]
pub(super) enum Parcel {
    Media { flow: usize, number: u16 },
    Feedback { flow: usize, message: Vec<u8> },
    Segment { tcp: usize, number: u64 },
    Ack { tcp: usize, number: u64 },
}

/// A sender of pictures of equal size, 30 a second, and a viewer who tells what arrives.
pub(super) struct Flow {
    pub(super) estimator: Estimator,
    pub(super) rate: u64,
    /// The rate follows the estimate in these bounds, else it stays as it is.
    pub(super) follows: Option<RangeInclusive<u64>>,
    /// Packets of a picture leave at once, else one by one.
    pub(super) bursts: bool,
    /// It has something to send.
    pub(super) live: bool,
    /// Its pictures go over the way back, and its feedback over the link.
    pub(super) backwards: bool,
    /// Its own part of the way, beyond the link, in each direction.
    pub(super) way: Duration,
    pub(super) arrived_bytes: u64,
    viewer: Viewer,
    history: History,
    number: u16,
    owed_bits: u64,
    /// What has passed the link and is still on its own way.
    coming: VecDeque<(Instant, Parcel)>,
    probe: Option<(u64, usize)>,
}

impl Flow {
    pub(super) fn new(now: Instant, rate: u64) -> Self {
        Self {
            estimator: Estimator::default(),
            rate,
            follows: None,
            bursts: true,
            live: true,
            backwards: false,
            way: Duration::ZERO,
            arrived_bytes: 0,
            viewer: Viewer::new(now, Duration::ZERO),
            history: History::new(now),
            number: 0,
            owed_bits: 0,
            coming: VecDeque::new(),
            probe: None,
        }
    }

    pub(super) fn estimate(&self) -> u64 {
        self.estimator.estimate().expect("known").rate.0
    }

    /// What leaves in this millisecond (packets).
    fn due(&mut self, millis: u64) -> usize {
        let mut count = 0;
        if self.live {
            self.owed_bits += self.rate / 1000;
        }
        if !self.bursts || millis.is_multiple_of(33) {
            while self.owed_bits >= 8 * PACKET as u64 {
                self.owed_bits -= 8 * PACKET as u64;
                count += 1;
            }
        }
        count
    }

    /// What leaves in this millisecond of a probe (packets).
    fn probes(&mut self, millis: u64) -> usize {
        let Some((rate, left)) = self.probe.filter(|_| millis.is_multiple_of(5)) else {
            return 0;
        };
        let count = usize::try_from(rate / 200).unwrap() / 8 / PACKET;
        self.probe = Some((rate, left.saturating_sub(count))).filter(|_| left > count);
        count.min(left)
    }

    fn handle_feedback(&mut self, now: Instant, message: &[u8]) -> Option<Estimate> {
        let Some(Ok(rtcp::Packet::TransportFeedback(feedback))) = rtcp::packets(message).next()
        else {
            return None;
        };
        let arrivals = self.history.arrivals(&feedback);
        let estimate = self.estimator.handle_arrivals(now, &arrivals)?;
        if let Some(bounds) = &self.follows {
            self.rate = estimate.rate.0.clamp(*bounds.start(), *bounds.end());
        }
        Some(estimate)
    }
}

impl Scene {
    /// A link and nobody on it; the way back has the same delay and no end of room.
    pub(super) fn empty(conditions: Conditions) -> Self {
        let now = testkit::start();
        let back = Conditions {
            delay: conditions.delay,
            ..Conditions::default()
        };
        Self {
            now,
            link: Link::new(conditions, 5, now),
            back: Link::new(back, 6, now),
            flows: Vec::new(),
            tcp: Vec::new(),
            delay: conditions.delay,
            millis: 0,
        }
    }

    /// A link with one flow that is sent at `rate`.
    pub(super) fn new(conditions: Conditions, rate: u64) -> Self {
        let mut scene = Self::empty(conditions);
        scene.flows.push(Flow::new(scene.now, rate));
        scene
    }

    /// Somebody joins, from `way` beyond the link, who sends what the estimate says, within bounds.
    pub(super) fn join(&mut self, bounds: RangeInclusive<u64>, way: Duration) -> &mut Flow {
        let mut flow = Flow::new(self.now, 300_000.max(*bounds.start()));
        flow.follows = Some(bounds);
        flow.way = way;
        flow.estimator.handle_rtt((self.delay + way) * 2);
        self.flows.push(flow);
        self.flows.last_mut().expect("just now")
    }

    pub(super) fn run(&mut self, time: Duration) {
        self.watch(time, |_| {});
    }

    /// Runs, and shows each estimate.
    pub(super) fn watch(&mut self, time: Duration, mut see: impl FnMut(Estimate)) {
        let end = self.now + time;
        while self.now < end {
            self.send();
            self.arrive(&mut see);
            self.tell();
            self.now += MILLI;
            self.millis += 1;
        }
    }

    pub(super) fn estimate(&self) -> u64 {
        self.flows[0].estimate()
    }

    pub(super) fn lowest(&mut self, time: Duration) -> u64 {
        let mut lowest = u64::MAX;
        self.watch(time, |estimate| lowest = lowest.min(estimate.rate.0));
        lowest
    }

    /// `packets` of the first flow at `rate`, on top of the pictures.
    pub(super) fn probe(&mut self, rate: u64, packets: usize) -> Option<Probed> {
        self.flows[0].history.set_cluster(Some(Cluster::FIRST));
        self.flows[0].probe = Some((rate, packets));
        for _ in 0..20 {
            self.run(Duration::from_millis(50));
            if let Some(probed) = self.flows[0].estimator.poll_probed() {
                return Some(probed);
            }
        }
        None
    }

    fn send(&mut self) {
        let now = self.now;
        for (at, flow) in self.flows.iter_mut().enumerate() {
            let (media, probes) = (flow.due(self.millis), flow.probes(self.millis));
            let way = if flow.backwards {
                &mut self.back
            } else {
                &mut self.link
            };
            for _ in 0..media + probes {
                flow.history.handle_sent(now, flow.number, PACKET);
                let number = flow.number;
                way.send(now, PACKET, Parcel::Media { flow: at, number });
                flow.number = flow.number.wrapping_add(1);
            }
            if flow.probe.is_none() {
                flow.history.set_cluster(None);
            }
        }
        for (at, tcp) in self.tcp.iter_mut().enumerate() {
            while let Some(number) = tcp.poll_segment(now) {
                let segment = Parcel::Segment { tcp: at, number };
                self.link.send(now, SEGMENT_BYTES, segment);
            }
        }
    }

    fn arrive(&mut self, see: &mut impl FnMut(Estimate)) {
        let now = self.now;
        let next = |scene: &mut Self| {
            let forward = scene.link.poll_arrived(now);
            forward.or_else(|| scene.back.poll_arrived(now))
        };
        while let Some((at, parcel)) = next(self) {
            match parcel {
                Parcel::Media { flow, .. } | Parcel::Feedback { flow, .. } => {
                    let flow = &mut self.flows[flow];
                    flow.coming.push_back((at + flow.way, parcel));
                }
                Parcel::Segment { tcp, number } => {
                    self.back.send(at, ACK_BYTES, Parcel::Ack { tcp, number });
                }
                Parcel::Ack { tcp, number } => self.tcp[tcp].handle_ack(at, number),
            }
        }
        for flow in &mut self.flows {
            while let Some((at, parcel)) = flow.coming.pop_front_if(|(at, _)| *at <= now) {
                match parcel {
                    Parcel::Media { number, .. } => {
                        let packet = Packet {
                            viewer: 0,
                            number,
                            part: None,
                        };
                        flow.arrived_bytes += PACKET as u64;
                        flow.viewer.handle_packet(at, &packet);
                    }
                    Parcel::Feedback { message, .. } => {
                        if let Some(estimate) = flow.handle_feedback(now, &message) {
                            see(estimate);
                        }
                    }
                    Parcel::Segment { .. } | Parcel::Ack { .. } => {}
                }
            }
        }
    }

    fn tell(&mut self) {
        for (at, flow) in self.flows.iter_mut().enumerate() {
            for word in flow.viewer.poll_words(self.now) {
                let Word::Arrivals(message) = word else {
                    continue;
                };
                let way = if flow.backwards {
                    &mut self.link
                } else {
                    &mut self.back
                };
                let bytes = message.len() + IP_BYTES;
                way.send(self.now, bytes, Parcel::Feedback { flow: at, message });
            }
        }
    }
}
