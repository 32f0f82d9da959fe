//! The test cases of RFC 8867 (section 5) that concern a link with a drop-tail queue, with its capacities and times. Every flow sends what its
//! estimate says, in pictures, without a policy or probes on top: what a viewer's estimator does by itself.
//!
//! Where nothing else is said a way takes 50 ms, the queue holds 300 ms, and flows send 150 kbit/s to 2.5 Mbit/s. Packets keep their order and
//! shake by up to 10 ms, evenly; with 30, which the RFC allows, a second flow takes pictures of the first one for a queue and stays near the
//! least in the first phase of 5.2.

use super::flows::Scene;
use super::tcp::{Download, Tcp};
use super::*;

const LEAST: u64 = 150_000;
const MOST: u64 = 2_500_000;

fn path(rate: u64) -> Conditions {
    Conditions {
        rate: Some(rate),
        queue_bytes: usize::try_from(rate / 8 * 3 / 10).unwrap(),
        delay: Duration::from_millis(50),
        jitter: Duration::from_millis(10),
        ..Conditions::default()
    }
}

/// What happened in a span.
#[derive(Debug)]
struct Seen {
    /// Of each flow, what arrived (bits per second).
    rates: Vec<u64>,
    /// Of all TCP together.
    tcp: u64,
    queue_mean: Duration,
    queue_p95: Duration,
    overflowed: u64,
}

impl Seen {
    fn sum(&self) -> u64 {
        self.rates.iter().sum()
    }

    fn least(&self) -> u64 {
        self.rates.iter().copied().min().unwrap()
    }

    fn most(&self) -> u64 {
        self.rates.iter().copied().max().unwrap()
    }
}

impl Scene {
    fn observe(&mut self, seconds: u64) -> Seen {
        let media = |scene: &Self| -> Vec<u64> {
            let flows = scene.flows.iter();
            flows.map(|flow| flow.arrived_bytes).collect()
        };
        let tcp = |scene: &Self| -> u64 { scene.tcp.iter().map(|tcp| tcp.acked_bytes).sum() };
        let before = (media(self), tcp(self), self.link.overflowed().packets);
        let mut queue: Vec<Duration> = (0..seconds * 20)
            .map(|_| {
                self.run(Duration::from_millis(50));
                self.link.queued(self.now)
            })
            .collect();
        queue.sort_unstable();
        let rates = media(self).into_iter().zip(before.0);
        Seen {
            rates: rates
                .map(|(now, before)| (now - before) * 8 / seconds)
                .collect(),
            tcp: (tcp(self) - before.1) * 8 / seconds,
            queue_mean: queue.iter().sum::<Duration>() / u32::try_from(queue.len()).unwrap(),
            queue_p95: queue[queue.len() * 95 / 100],
            overflowed: self.link.overflowed().packets - before.2,
        }
    }

    fn carries(&mut self, rate: u64) {
        self.link.set_conditions(self.now, path(rate));
    }

    fn joins(&mut self) {
        self.join(LEAST..=MOST, Duration::ZERO);
    }
}

/// The link is used, and what is sent over it is not late.
#[track_caller]
fn check_used(seen: &Seen, rate: u64, percent: u64) {
    assert!(seen.sum() >= rate / 100 * percent, "{rate}: {seen:?}");
    check_queue(seen, 60, 130);
}

#[track_caller]
fn check_queue(seen: &Seen, mean_ms: u64, p95_ms: u64) {
    assert!(
        seen.queue_mean <= Duration::from_millis(mean_ms),
        "{seen:?}"
    );
    assert!(seen.queue_p95 <= Duration::from_millis(p95_ms), "{seen:?}");
}

/// 5.1: 1 Mbit/s, from 40 s on 2.5, from 60 s on 0.6, from 80 s on 1 again.
#[test]
fn variable_capacity_single_flow() {
    let mut scene = Scene::empty(path(1_000_000));
    scene.joins();
    // Pictures of one packet show nothing of the link: it begins at 300 kbit/s and grows by 8 % a second.
    scene.run(secs(20));
    check_used(&scene.observe(20), 1_000_000, 85);
    scene.carries(2_500_000);
    scene.run(secs(5));
    check_used(&scene.observe(15), 2_500_000, 90);
    // The queue that the fall makes is gone after 5 s, and nothing is lost any more.
    scene.carries(600_000);
    scene.run(secs(5));
    let seen = scene.observe(15);
    check_used(&seen, 600_000, 85);
    assert_eq!(seen.overflowed, 0);
    scene.carries(1_000_000);
    scene.run(secs(5));
    check_used(&scene.observe(15), 1_000_000, 85);
}

/// 5.2: two flows; 4 Mbit/s, then each 25 s another: 2, 3.5, 1, 2.
#[test]
fn variable_capacity_multiple_flows() {
    let mut scene = Scene::empty(path(4_000_000));
    scene.joins();
    scene.joins();
    scene.run(secs(15));
    check_used(&scene.observe(10), 4_000_000, 80);
    for rate in [2_000_000, 3_500_000, 1_000_000, 2_000_000] {
        scene.carries(rate);
        scene.run(secs(10));
        let seen = scene.observe(15);
        check_used(&seen, rate, 75);
        assert!(seen.most() <= 3 * seen.least(), "{rate}: {seen:?}");
    }
}

/// 5.3: a flow in each direction, whose feedback shares the way with the other's pictures. There 2 Mbit/s, from 20 s on 1, from 40 s on 0.5, from
/// 60 s on 2; back 2 Mbit/s, from 35 s on 0.8, from 70 s on 2.
#[test]
fn congested_feedback_link() {
    let mut scene = Scene::empty(path(2_000_000));
    scene.back.set_conditions(scene.now, path(2_000_000));
    scene.joins();
    scene.joins();
    scene.flows[1].backwards = true;
    scene.run(secs(10));
    let phases = [
        (2_000_000, 2_000_000, 10),
        (1_000_000, 2_000_000, 15),
        (1_000_000, 800_000, 5),
        (500_000, 800_000, 20),
        (2_000_000, 800_000, 10),
        (2_000_000, 2_000_000, 30),
    ];
    for (there, back, seconds) in phases {
        scene.carries(there);
        scene.back.set_conditions(scene.now, path(back));
        scene.run(secs(seconds / 2));
        let seen = scene.observe(seconds - seconds / 2);
        let used = |at: usize, rate: u64| seen.rates[at] >= rate / 2;
        assert!(used(0, there) && used(1, back), "{there} {back}: {seen:?}");
        check_queue(&seen, 60, 130);
    }
    let seen = scene.observe(10);
    assert!(seen.least() >= 1_700_000, "{seen:?}");
}

/// 5.4: 3.5 Mbit/s; another flow joins after 20 s and after 40.
///
/// Known limit: who joins last gets 350 kbit/s of 1170. Its pictures are of one or two packets, so nothing tells it that the link is faster, and
/// it gives way to each queue; the others' arrive faster than their share and excuse short ones.
#[test]
fn competing_flows_of_the_same_kind() {
    let mut scene = Scene::empty(path(3_500_000));
    scene.joins();
    scene.run(secs(15));
    assert!(scene.observe(5).sum() >= MOST / 10 * 9);
    scene.joins();
    scene.run(secs(15));
    let seen = scene.observe(5);
    assert!(seen.most() * 2 <= seen.least() * 3, "{seen:?}");
    scene.joins();
    scene.run(secs(20));
    let seen = scene.observe(60);
    check_used(&seen, 3_500_000, 85);
    assert!(seen.least() >= 260_000, "{seen:?}");
    assert!(seen.most() <= 2_000_000, "{seen:?}");
}

/// 5.5: 4 Mbit/s, five flows that take 10, 25, 50, 100 and 150 ms, joining 2 s apart.
///
/// Known limit: who has the shortest way and joins first gets the most it may send, and the one with the longest way a tenth of that.
#[test]
fn round_trip_time_fairness() {
    let conditions = Conditions {
        delay: Duration::from_millis(5),
        ..path(4_000_000)
    };
    let mut scene = Scene::empty(conditions);
    for way in [5, 20, 45, 95, 145] {
        scene.join(LEAST..=MOST, Duration::from_millis(way));
        scene.run(secs(2));
    }
    scene.run(secs(90));
    let seen = scene.observe(200);
    check_used(&seen, 4_000_000, 85);
    assert!(seen.least() >= 200_000, "{seen:?}");
}

/// 5.6: 2 Mbit/s that one TCP transfer fills, joined by a flow after 5 s; queues of 300 ms and 1 s.
///
/// Known limit: like other estimators that go by delay it gives way to who goes by loss: it is left with the least that it sends. What must not
/// happen is that it stops, or doesn't find its way back.
#[test]
fn beside_a_long_tcp_transfer() {
    for queue_ms in [300, 1000] {
        let conditions = Conditions {
            queue_bytes: 2_000_000 / 8 * queue_ms / 1000,
            ..path(2_000_000)
        };
        let mut scene = Scene::empty(conditions);
        scene.tcp.push(Tcp::endless(scene.now));
        scene.run(secs(5));
        scene.joins();
        let seen = scene.observe(110);
        assert!(seen.least() >= LEAST / 100 * 95, "{seen:?}");
        assert!(seen.sum() + seen.tcp >= 1_800_000, "{seen:?}");
        // It ends.
        scene.tcp[0].wakes = scene.now + secs(3600);
        scene.run(secs(40));
        assert!(scene.observe(10).least() >= 1_500_000);
    }
}

/// 5.7: 2 Mbit/s, two flows, and ten who now and then fetch a file of 30 to 50 kB, two of them at once at first; 10 s pass between two files.
///
/// Known limit: the bursts of files, 0.3 Mbit/s together, keep the flows to half a megabit in all.
#[test]
fn beside_short_tcp_transfers() {
    let mut scene = Scene::empty(path(2_000_000));
    let mut rng = Rng::new(8);
    for i in 0..10 {
        let first = if i < 2 { 0 } else { rng.below(20_000) };
        let download = Download {
            rng: Rng::new(100 + i),
            bytes_min: 30_000,
            bytes_max: 50_000,
            pause_ms: 10_000,
        };
        let wakes = scene.now + Duration::from_millis(first.into());
        scene.tcp.push(Tcp::downloads(wakes, download));
    }
    scene.run(secs(5));
    scene.joins();
    scene.joins();
    scene.run(secs(15));
    let seen = scene.observe(280);
    assert!(seen.sum() >= 500_000, "{seen:?}");
    assert!(seen.most() <= 2 * seen.least(), "{seen:?}");
    check_queue(&seen, 30, 130);
    let files: u64 = scene.tcp.iter().map(|tcp| tcp.transfers).sum();
    assert!(files >= 250, "{files}");
}

/// 5.8: as 5.4, but all join at once; the second has nothing to send from 40 s to 60 s.
///
/// Known limit: as in 5.4, who has the smallest pictures keeps the smallest share.
#[test]
fn pause_and_resume() {
    let mut scene = Scene::empty(path(3_500_000));
    for _ in 0..3 {
        scene.joins();
    }
    scene.run(secs(20));
    let before = scene.observe(20);
    check_used(&before, 3_500_000, 80);
    scene.flows[1].live = false;
    scene.run(secs(5));
    // The others take what it leaves.
    check_used(&scene.observe(15), 3_500_000, 85);
    scene.flows[1].live = true;
    scene.run(secs(20));
    let after = scene.observe(40);
    check_used(&after, 3_500_000, 85);
    assert!(
        after.rates[1] >= before.rates[1] / 10 * 7,
        "{before:?} {after:?}"
    );
    assert!(after.least() >= 260_000, "{after:?}");
}
