//! The estimate over links of all kinds, whatever is sent.

use std::collections::VecDeque;

use super::*;
use crate::bwe::{Arrivals, Cluster, Estimate, Estimator, Group, History, Probed, Train};
use crate::lab::packet::Packet;
use crate::lab::viewer::{Viewer, Word};
use crate::rtp::rtcp;

const MILLI: Duration = Duration::from_millis(1);
const PACKET: usize = 1200;

/// A sender of pictures of equal size, 30 a second, a link, and a viewer who tells what arrives.
struct Scene {
    now: Instant,
    link: Link<Packet>,
    viewer: Viewer,
    history: History,
    estimator: Estimator,
    number: u16,
    rate: u64,
    /// Packets of a picture leave at once, else one by one.
    bursts: bool,
    owed_bits: u64,
    delay: Duration,
    words: VecDeque<(Instant, Vec<u8>)>,
    probe: Option<(u64, usize)>,
    millis: u64,
}

fn link(rate: u64) -> Conditions {
    Conditions {
        rate: Some(rate),
        queue_bytes: usize::try_from(rate / 8 * 3 / 10).unwrap(),
        delay: Duration::from_millis(25),
        ..Conditions::default()
    }
}

impl Scene {
    fn new(conditions: Conditions, rate: u64) -> Self {
        let now = testkit::start();
        Self {
            now,
            link: Link::new(conditions, 5, now),
            viewer: Viewer::new(now, conditions.delay * 2),
            history: History::new(now),
            estimator: Estimator::default(),
            number: 0,
            rate,
            bursts: true,
            owed_bits: 0,
            delay: conditions.delay,
            words: VecDeque::new(),
            probe: None,
            millis: 0,
        }
    }

    fn send(&mut self) {
        let packet = Packet {
            viewer: 0,
            number: self.number,
            part: None,
        };
        self.history.handle_sent(self.now, self.number, PACKET);
        self.number = self.number.wrapping_add(1);
        self.link.send(self.now, PACKET, packet);
    }

    fn run(&mut self, time: Duration) {
        self.watch(time, |_| {});
    }

    /// Runs, and shows each estimate.
    fn watch(&mut self, time: Duration, mut see: impl FnMut(Estimate)) {
        let end = self.now + time;
        while self.now < end {
            self.owed_bits += self.rate / 1000;
            if !self.bursts || self.millis.is_multiple_of(33) {
                while self.owed_bits >= 8 * PACKET as u64 {
                    self.owed_bits -= 8 * PACKET as u64;
                    self.send();
                }
            }
            if let Some((rate, left)) = self.probe
                && self.millis.is_multiple_of(5)
            {
                let count = usize::try_from(rate / 200).unwrap() / 8 / PACKET;
                for _ in 0..count.min(left) {
                    self.send();
                }
                self.probe = Some((rate, left.saturating_sub(count)));
                if left <= count {
                    self.probe = None;
                    self.history.set_cluster(None);
                }
            }
            while let Some((at, packet)) = self.link.poll_arrived(self.now) {
                self.viewer.handle_packet(at, &packet);
            }
            for word in self.viewer.poll_words(self.now) {
                if let Word::Arrivals(message) = word {
                    self.words.push_back((self.now + self.delay, message));
                }
            }
            while let Some((_, message)) = self.words.pop_front_if(|(at, _)| *at <= self.now) {
                if let Some(Ok(rtcp::Packet::TransportFeedback(feedback))) =
                    rtcp::packets(&message).next()
                {
                    let arrivals = self.history.arrivals(&feedback);
                    if let Some(estimate) = self.estimator.handle_arrivals(self.now, &arrivals) {
                        see(estimate);
                    }
                }
            }
            self.now += MILLI;
            self.millis += 1;
        }
    }

    fn estimate(&self) -> u64 {
        self.estimator.estimate().expect("known").rate.0
    }

    fn lowest(&mut self, time: Duration) -> u64 {
        let mut lowest = u64::MAX;
        self.watch(time, |estimate| lowest = lowest.min(estimate.rate.0));
        lowest
    }

    /// `packets` at `rate`, on top of the pictures.
    fn probe(&mut self, rate: u64, packets: usize) -> Option<Probed> {
        self.history.set_cluster(Some(Cluster::FIRST));
        self.probe = Some((rate, packets));
        for _ in 0..20 {
            self.run(Duration::from_millis(50));
            if let Some(probed) = self.estimator.poll_probed() {
                return Some(probed);
            }
        }
        None
    }
}

#[test]
fn the_first_pictures_tell_the_link() {
    for rate in [1_000_000, 3_000_000, 8_000_000] {
        let mut scene = Scene::new(link(rate), rate * 2 / 3);
        scene.run(secs(2));
        let estimate = scene.estimate();
        assert!(
            (rate * 7 / 10..=rate * 103 / 100).contains(&estimate),
            "{rate}: {estimate}"
        );
    }
}

#[test]
fn random_loss_does_not_lower_it() {
    for permille in [10, 40] {
        let conditions = Conditions {
            loss: Loss::Random(permille),
            ..link(6_000_000)
        };
        let mut scene = Scene::new(conditions, 2_700_000);
        scene.run(secs(5));
        let lowest = scene.lowest(secs(60));
        assert!(lowest > 4_500_000, "{permille}: {lowest}");
    }
}

#[test]
fn loss_that_stays_when_less_is_sent_is_learned() {
    let conditions = Conditions {
        loss: Loss::Random(150),
        ..link(6_000_000)
    };
    let mut scene = Scene::new(conditions, 2_500_000);
    for _ in 0..60 {
        scene.run(secs(1));
        scene.rate = scene.estimate().min(2_500_000) * 9 / 10;
    }
    assert!(scene.estimate() > 2_000_000, "{}", scene.estimate());
}

#[test]
fn want_of_packets_neither_lowers_nor_raises_it() {
    let mut scene = Scene::new(link(4_000_000), 2_500_000);
    scene.run(secs(5));
    let before = scene.estimate();
    scene.rate = 200_000;
    assert!(scene.lowest(secs(60)) >= before * 9 / 10);

    // One packet at a time is no train: it says nothing of what else there would be room for.
    let mut scene = Scene::new(link(8_000_000), 1_000_000);
    scene.bursts = false;
    scene.run(secs(60));
    let estimate = scene.estimate();
    assert!((900_000..1_700_000).contains(&estimate), "{estimate}");
}

#[test]
fn a_drop_is_noticed_in_half_a_second() {
    for delay in [10, 50, 150] {
        let conditions = |rate| Conditions {
            delay: Duration::from_millis(delay),
            ..link(rate)
        };
        let mut scene = Scene::new(conditions(6_000_000), 2_500_000);
        scene.run(secs(10));
        scene.link.set_conditions(scene.now, conditions(1_500_000));
        scene.run(Duration::from_millis(500 + 2 * delay));
        let estimate = scene.estimate();
        assert!(estimate < 1_500_000, "{delay} ms: {estimate}");
        assert!(estimate > 1_000_000, "{delay} ms: {estimate}");
        assert!(scene.estimator.queue() > Duration::from_millis(60));
        // Sending what it says empties the queue, and keeps it so.
        scene.rate = 1_000_000;
        scene.run(secs(2));
        assert!(
            scene.estimator.queue() < Duration::from_millis(40),
            "{:?}",
            scene.estimator.queue()
        );
        assert!(scene.lowest(secs(20)) > 1_000_000);
    }
}

#[test]
fn sending_what_it_says_fills_the_link_without_a_standing_queue() {
    let mut scene = Scene::new(link(2_000_000), 1_000_000);
    let (mut sent, mut queue) = (0, Duration::ZERO);
    for second in 0..120 {
        scene.run(Duration::from_millis(500));
        scene.rate = scene.estimate();
        if second > 20 {
            sent += scene.rate / 100;
            queue += scene.link.queued(scene.now) / 100;
        }
    }
    assert!((1_600_000..2_000_000).contains(&sent), "{sent}");
    assert!(queue < Duration::from_millis(120), "{queue:?}");
}

#[test]
fn a_probe_tells_what_the_link_carries() {
    let mut scene = Scene::new(link(6_000_000), 400_000);
    scene.bursts = false;
    scene.run(secs(5));
    assert!(scene.estimate() < 1_000_000);
    let probed = scene.probe(3_840_000, 80).expect("an answer");
    assert!(probed.whole, "{probed:?}");
    assert!(scene.estimate() > 3_400_000, "{}", scene.estimate());

    let mut scene = Scene::new(link(1_500_000), 400_000);
    scene.bursts = false;
    scene.run(secs(5));
    let probed = scene.probe(3_840_000, 24).expect("an answer");
    assert!(!probed.whole, "{probed:?}");
    let carried = probed.carried.0;
    assert!((1_300_000..1_700_000).contains(&carried), "{carried}");
}

#[test]
fn behind_a_policer_it_ends_near_what_passes() {
    let conditions = Conditions {
        policer: Some(Policer {
            rate: 1_800_000,
            bucket_bytes: 30_000,
        }),
        ..link(20_000_000)
    };
    let mut scene = Scene::new(conditions, 2_500_000);
    scene.run(secs(6));
    let estimate = scene.estimate();
    assert!((1_200_000..2_200_000).contains(&estimate), "{estimate}");
}

#[test]
fn another_route_is_no_overuse() {
    let mut scene = Scene::new(link(6_000_000), 2_500_000);
    scene.run(secs(10));
    let longer = Conditions {
        delay: Duration::from_millis(70),
        ..link(6_000_000)
    };
    scene.link.set_conditions(scene.now, longer);
    assert!(scene.lowest(secs(30)) > 2_500_000);
}

proptest::proptest! {
    #[test]
    fn nothing_overflows(
        groups in proptest::collection::vec((proptest::num::u32::ANY, proptest::num::i64::ANY, proptest::num::i64::ANY, proptest::num::u32::ANY), 0..200),
        counts in proptest::collection::vec((0_u32..70_000, 0_u32..70_000, 0_u64..1 << 40, 0_u64..5000), 1..40),
    ) {
        let mut now = testkit::start();
        let mut estimator = Estimator::default();
        let mut groups = groups.chunks(5);
        for (received, lost, bytes, millis) in counts {
            let groups = groups.next().unwrap_or_default().iter();
            let arrivals = Arrivals {
                received,
                lost,
                bytes,
                lost_bytes: bytes / 3,
                trains: smallvec::smallvec![Train { bytes: lost, micros: received }],
                groups: groups.map(|(sent, delay, arrived, bytes)| Group { sent: *sent, delay: *delay, arrived: *arrived, bytes: *bytes }).collect(),
                ..Arrivals::default()
            };
            now += Duration::from_millis(millis);
            estimator.handle_arrivals(now, &arrivals);
            let _ = (estimator.queue(), estimator.loss_permille());
        }
    }
}
