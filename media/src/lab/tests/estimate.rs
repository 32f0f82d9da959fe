//! The estimate over links of all kinds, whatever is sent.

use super::flows::{Scene, link};
use super::*;
use crate::bwe::{Arrivals, Estimator, Group, Train};

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
        scene.flows[0].rate = scene.estimate().min(2_500_000) * 9 / 10;
    }
    assert!(scene.estimate() > 2_000_000, "{}", scene.estimate());
}

#[test]
fn want_of_packets_neither_lowers_nor_raises_it() {
    let mut scene = Scene::new(link(4_000_000), 2_500_000);
    scene.run(secs(5));
    let before = scene.estimate();
    scene.flows[0].rate = 200_000;
    assert!(scene.lowest(secs(60)) >= before * 9 / 10);

    // One packet at a time is no train: it says nothing of what else there would be room for.
    let mut scene = Scene::new(link(8_000_000), 1_000_000);
    scene.flows[0].bursts = false;
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
        assert!(scene.flows[0].estimator.queue() > Duration::from_millis(60));
        // Sending what it says empties the queue, and keeps it so.
        scene.flows[0].rate = 1_000_000;
        scene.run(secs(2));
        assert!(
            scene.flows[0].estimator.queue() < Duration::from_millis(40),
            "{:?}",
            scene.flows[0].estimator.queue()
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
        scene.flows[0].rate = scene.estimate();
        if second > 20 {
            sent += scene.flows[0].rate / 100;
            queue += scene.link.queued(scene.now) / 100;
        }
    }
    assert!((1_600_000..2_000_000).contains(&sent), "{sent}");
    assert!(queue < Duration::from_millis(120), "{queue:?}");
}

#[test]
fn a_probe_tells_what_the_link_carries() {
    let mut scene = Scene::new(link(6_000_000), 400_000);
    scene.flows[0].bursts = false;
    scene.run(secs(5));
    assert!(scene.estimate() < 1_000_000);
    let probed = scene.probe(3_840_000, 80).expect("an answer");
    assert!(probed.whole, "{probed:?}");
    assert!(scene.estimate() > 3_400_000, "{}", scene.estimate());

    let mut scene = Scene::new(link(1_500_000), 400_000);
    scene.flows[0].bursts = false;
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
