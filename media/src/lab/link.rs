//! One direction of a bad network under virtual time: a queue with a rate, a delay with jitter, and loss, by itself or in bursts.
//!
//! It is a core like others: `now` is an argument, [`Link::poll_arrived`] is drained after each step and [`Link::poll_timeout`] says when to look
//! again. In the order of `tools/linkemu`: loss comes before the queue, delay after it. What happens repeats from the seed.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::rng::Rng;

/// What a link does to what it carries. By default nothing: no delay, no loss, no end of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions {
    /// Bits per second; `None`: as many as there are.
    pub rate: Option<u64>,
    /// Bytes that may wait for their turn when there is a rate; what comes beyond them is dropped.
    pub queue_bytes: usize,
    /// A token bucket before the queue: what it has no tokens for is dropped.
    pub policer: Option<Policer>,
    /// How long everything is under way, after the queue.
    pub delay: Duration,
    /// Up to so much longer, evenly spread.
    pub jitter: Duration,
    /// Jitter may change the order of packets; else a packet waits for those before it.
    pub reorders: bool,
    /// What is lost.
    pub loss: Loss,
}

/// A token bucket that polices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policer {
    /// Bits per second that it lets through.
    pub rate: u64,
    /// Bytes that may pass at once.
    pub bucket_bytes: u64,
}

/// What a link loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loss {
    /// Nothing.
    #[default]
    None,
    /// Each packet by itself, so many of 1000.
    Random(u32),
    /// Everything while in the bad state (Gilbert-Elliott): a loss of `enter / (enter + leave)`, in bursts of `1000 / leave` packets on average.
    Bursts {
        /// Of 1000 packets, how many begin a burst.
        enter: u32,
        /// Of 1000 packets in a burst, how many are its end.
        leave: u32,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Link<T> {
    conditions: Conditions,
    rng: Rng,
    bad: bool,
    /// The policer's bucket, as far as it is used (in time at its rate): empty then.
    spent_until: Instant,
    /// When the last packet that was taken in will have left the queue.
    free_at: Instant,
    /// By time of arrival.
    carried: VecDeque<Carried<T>>,
    newest_arrival: Instant,
    sent: Tally,
    lost: Tally,
    overflowed: Tally,
}

#[derive(Debug)]
struct Carried<T> {
    leaves: Instant,
    arrives: Instant,
    packet: T,
}

/// How much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    const fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes as u64;
    }
}

impl<T> Link<T> {
    /// An empty link.
    pub const fn new(conditions: Conditions, seed: u64, now: Instant) -> Self {
        Self {
            conditions,
            rng: Rng::new(seed),
            bad: false,
            spent_until: now,
            free_at: now,
            carried: VecDeque::new(),
            newest_arrival: now,
            sent: Tally {
                packets: 0,
                bytes: 0,
            },
            lost: Tally {
                packets: 0,
                bytes: 0,
            },
            overflowed: Tally {
                packets: 0,
                bytes: 0,
            },
        }
    }

    /// From now on it is another link. What waits in its queue leaves at the new rate; what is under way stays so.
    pub fn set_conditions(&mut self, now: Instant, conditions: Conditions) {
        let rates = self.conditions.rate.zip(conditions.rate);
        if let Some((before, after)) = rates.filter(|(before, after)| before != after) {
            self.stretch(now, before, after);
        }
        if self.conditions.loss != conditions.loss {
            self.bad = false;
        }
        self.conditions = conditions;
    }

    /// Takes in a packet of `bytes` on the wire. False: it will never arrive.
    pub fn send(&mut self, now: Instant, bytes: usize, packet: T) -> bool {
        self.sent.add(bytes);
        if self.loses() {
            self.lost.add(bytes);
            return false;
        }
        if !self.passes(now, bytes) {
            self.overflowed.add(bytes);
            return false;
        }
        let mut leaves = now;
        if let Some(rate) = self.conditions.rate.filter(|rate| *rate > 0) {
            let waiting = self.free_at.saturating_duration_since(now);
            if transfer(rate, self.conditions.queue_bytes) < waiting {
                self.overflowed.add(bytes);
                return false;
            }
            leaves = now + waiting + transfer(rate, bytes);
            self.free_at = leaves;
        }
        let jitter = u32::try_from(self.conditions.jitter.as_micros()).unwrap_or(u32::MAX);
        let jitter = Duration::from_micros(self.rng.below(jitter).into());
        let mut arrives = leaves + self.conditions.delay + jitter;
        if !self.conditions.reorders {
            arrives = arrives.max(self.newest_arrival);
        }
        self.newest_arrival = self.newest_arrival.max(arrives);
        let place = self
            .carried
            .partition_point(|carried| carried.arrives <= arrives);
        let carried = Carried {
            leaves,
            arrives,
            packet,
        };
        self.carried.insert(place, carried);
        true
    }

    /// The next packet that has arrived by `now`, and when it did.
    pub fn poll_arrived(&mut self, now: Instant) -> Option<(Instant, T)> {
        let carried = self
            .carried
            .pop_front_if(|carried| carried.arrives <= now)?;
        Some((carried.arrives, carried.packet))
    }

    /// When the next packet arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.carried.front().map(|carried| carried.arrives)
    }

    /// How long a packet taken in now would wait in the queue.
    pub fn queued(&self, now: Instant) -> Duration {
        self.free_at.saturating_duration_since(now)
    }

    /// Everything that was taken in, lost or not.
    pub const fn sent(&self) -> Tally {
        self.sent
    }

    /// What was lost on the way.
    pub const fn lost(&self) -> Tally {
        self.lost
    }

    /// What found no room in the queue.
    pub const fn overflowed(&self) -> Tally {
        self.overflowed
    }

    /// What still waits in the queue leaves at another rate.
    fn stretch(&mut self, now: Instant, before: u64, after: u64) {
        let stretched = |at: Instant| {
            let nanos = at.saturating_duration_since(now).as_nanos() * u128::from(before)
                / u128::from(after.max(1));
            now + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        };
        let mut newest = now;
        for carried in self.carried.iter_mut().filter(|c| c.leaves > now) {
            let rest = carried.arrives.saturating_duration_since(carried.leaves);
            carried.leaves = stretched(carried.leaves);
            carried.arrives = carried.leaves + rest;
            newest = newest.max(carried.arrives);
        }
        self.carried
            .make_contiguous()
            .sort_by_key(|carried| carried.arrives);
        self.free_at = stretched(self.free_at);
        self.newest_arrival = newest;
    }

    /// The policer has tokens for it.
    fn passes(&mut self, now: Instant, bytes: usize) -> bool {
        let Some(Policer { rate, bucket_bytes }) = self.conditions.policer else {
            return true;
        };
        let full = usize::try_from(bucket_bytes).unwrap_or(usize::MAX);
        let spent = self.spent_until.max(now) + transfer(rate, bytes);
        let passes = spent.saturating_duration_since(now) <= transfer(rate, full);
        if passes {
            self.spent_until = spent;
        }
        passes
    }

    fn loses(&mut self) -> bool {
        match self.conditions.loss {
            Loss::None => false,
            Loss::Random(permille) => self.rng.below(1000) < permille,
            Loss::Bursts { enter, leave } => {
                let flips = if self.bad { leave } else { enter };
                self.bad ^= self.rng.below(1000) < flips;
                self.bad
            }
        }
    }
}

/// How long `bytes` take at `rate` bits per second.
fn transfer(rate: u64, bytes: usize) -> Duration {
    let nanos = u128::try_from(bytes).unwrap_or(u128::MAX) * 8 * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Sends 1250 bytes every millisecond and says when each arrived, in milliseconds since the start.
    fn arrivals(conditions: Conditions, packets: u64) -> (Vec<(u64, u128)>, Link<u64>) {
        let start = testkit::start();
        let mut link = Link::new(conditions, 1, start);
        let mut arrived = Vec::new();
        for i in 0..packets + 10_000 {
            let now = start + millis(i);
            if i < packets {
                link.send(now, 1250, i);
            }
            while let Some((at, number)) = link.poll_arrived(now) {
                assert!(at <= now);
                arrived.push((number, at.duration_since(start).as_millis()));
            }
        }
        assert_eq!(link.poll_timeout(), None);
        (arrived, link)
    }

    #[test]
    fn a_queue_drains_at_its_rate_and_drops_what_it_has_no_room_for() {
        // 10 Mbit/s are offered to 5, so half is dropped, and the queue of 25,000 bytes makes 40 ms.
        let conditions = Conditions {
            rate: Some(5_000_000),
            queue_bytes: 25_000,
            delay: millis(20),
            ..Conditions::default()
        };
        let (arrived, link) = arrivals(conditions, 1000);
        assert_eq!(arrived[0], (0, 22));
        let (number, at) = arrived[400];
        assert!((60..=63).contains(&(at - u128::from(number))), "{at}");
        assert!((500..=520).contains(&arrived.len()), "{}", arrived.len());
        assert_eq!(link.overflowed().packets, 1000 - arrived.len() as u64);
        assert_eq!((link.lost().packets, link.sent().bytes), (0, 1_250_000));
    }

    #[test]
    fn jitter_keeps_the_order_unless_told_otherwise() {
        let conditions = Conditions {
            delay: millis(20),
            jitter: millis(10),
            ..Conditions::default()
        };
        let in_order = |arrived: &[(u64, u128)]| arrived.is_sorted_by_key(|(number, _)| *number);
        let (kept, _) = arrivals(conditions, 500);
        assert!(in_order(&kept));
        let (changed, _) = arrivals(
            Conditions {
                reorders: true,
                ..conditions
            },
            500,
        );
        assert_eq!((kept.len(), changed.len()), (500, 500));
        assert!(!in_order(&changed));
        for (number, at) in changed {
            assert!((20..=30).contains(&(at - u128::from(number))));
        }
    }

    #[test]
    fn loss_is_as_much_as_asked_for_alone_or_in_bursts() {
        let lossy = |loss| {
            let (arrived, link) = arrivals(
                Conditions {
                    loss,
                    ..Conditions::default()
                },
                20_000,
            );
            let lost = 20_000 - arrived.len();
            assert_eq!(link.lost().packets, lost as u64);
            let bursts = arrived
                .windows(2)
                .filter(|pair| pair[1].0 != pair[0].0 + 1)
                .count();
            (lost, lost / bursts.max(1))
        };
        let (lost, length) = lossy(Loss::Random(20));
        assert!((360..440).contains(&lost), "{lost}");
        assert_eq!(length, 1);
        let (lost, length) = lossy(Loss::Bursts {
            enter: 10,
            leave: 250,
        });
        assert!((600..950).contains(&lost), "{lost}");
        assert!((3..=5).contains(&length), "{length}");
        assert_eq!(lossy(Loss::Random(1000)).0, 20_000);
    }
}
