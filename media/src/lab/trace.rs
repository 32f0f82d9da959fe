//! The links of the lab, over time. All of them are made up here, the shaky ones from a seed.

use std::time::Duration;

use super::link::{Conditions, Loss, Policer};
use super::rng::Rng;

/// How often a link may change.
pub(super) const STEP: Duration = Duration::from_millis(50);

/// A link over time.
#[derive(Debug, Clone)]
pub struct Trace {
    /// Its name in reports.
    pub name: &'static str,
    /// The link from each [`STEP`] on.
    pub(super) steps: Vec<Conditions>,
    /// How many watch over it; they join 5 s apart.
    pub(super) viewers: usize,
}

const fn secs(secs: u64) -> u64 {
    secs * 20
}

/// A link with a queue of `queue_ms`.
fn link(rate: u64, delay_ms: u64, queue_ms: u64) -> Conditions {
    Conditions {
        rate: Some(rate),
        queue_bytes: usize::try_from(rate / 8 * queue_ms / 1000).unwrap_or(usize::MAX),
        delay: Duration::from_millis(delay_ms),
        ..Conditions::default()
    }
}

impl Trace {
    /// Capacity changes at once, and back.
    pub fn step() -> Self {
        Self::rates(
            "step",
            &[(31, 6_000_000), (30, 1_500_000), (39, 6_000_000)],
            300,
        )
    }

    /// Each rendition in turn, down to sound alone, and back.
    pub fn stairs() -> Self {
        let rates = [
            (31, 1_300_000),
            (30, 600_000),
            (20, 250_000),
            (39, 1_300_000),
        ];
        Self::rates("stairs", &rates, 300)
    }

    /// Nothing happens.
    pub fn steady() -> Self {
        Self::rates("steady", &[(120, 1_500_000)], 300)
    }

    fn rates(name: &'static str, rates: &[(u64, u64)], queue_ms: u64) -> Self {
        let steps = rates.iter().flat_map(|(time, rate)| {
            std::iter::repeat_n(
                link(*rate, 25, queue_ms),
                usize::try_from(secs(*time)).unwrap_or(0),
            )
        });
        Self {
            name,
            steps: steps.collect(),
            viewers: 1,
        }
    }

    fn of(name: &'static str, seconds: u64, at: impl FnMut(u64) -> Conditions) -> Self {
        Self {
            name,
            steps: (0..secs(seconds)).map(at).collect(),
            viewers: 1,
        }
    }

    /// Slowly down and up again.
    pub fn ramp() -> Self {
        Self::of("ramp", 120, |i| {
            let down = secs(60).abs_diff(i);
            link(600_000 + 3_400_000 * down / secs(60), 25, 300)
        })
    }

    /// A cell: the rate wanders between 0.4 and 9 Mbit/s, the queue is long, and now and then nothing comes for a moment.
    pub fn lte(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let (mut level, mut pause) = (60_i64, 0_u32);
        Self::of("lte-like", 120, |i| {
            if i.is_multiple_of(4) {
                level += i64::from(rng.below(21)) - 10 + (60 - level) / 20;
                level = level.clamp(0, 100);
            }
            if pause == 0 && rng.below(200) == 0 {
                pause = 2 + rng.below(4);
            }
            pause = pause.saturating_sub(1);
            // From 0.4 to 9 Mbit/s in 100 steps of 3.16 %.
            let rate = (0..level).fold(400_000_u64, |rate, _| rate * 10_316 / 10_000);
            let rate = if pause > 0 { 30_000 } else { rate };
            Conditions {
                // The queue is as long as memory is, not as time is.
                queue_bytes: 200_000,
                jitter: Duration::from_millis(8),
                ..link(rate, 35, 0)
            }
        })
    }

    /// A shared room: the rate jumps about 4 Mbit/s every 50 ms, packets come in clumps, some are lost; for a while somebody else downloads.
    pub fn wifi(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self::of("wifi-like", 120, |i| {
            let busy = (secs(50)..secs(80)).contains(&i);
            let mean = if busy { 1_600_000 } else { 4_500_000 };
            let rate = mean / 100 * (50 + u64::from(rng.below(100)));
            Conditions {
                jitter: Duration::from_millis(12),
                loss: Loss::Random(5),
                ..link(rate, 15, 250)
            }
        })
    }

    /// Whatever is above 1.8 Mbit/s is dropped, but for 48 kB at once.
    pub fn policer() -> Self {
        Self::of("policer", 120, |_| Conditions {
            policer: Some(Policer {
                rate: 1_800_000,
                bucket_bytes: 48_000,
            }),
            ..link(20_000_000, 25, 300)
        })
    }

    /// A queue of 2 s, and less room for a while.
    pub fn bufferbloat() -> Self {
        let rates = [(41, 3_200_000), (40, 1_300_000), (39, 3_200_000)];
        Self::rates("bufferbloat", &rates, 2000)
    }

    /// Bursts of loss, and moments without anything.
    pub fn bursts() -> Self {
        Self::of("bursts", 120, |i| {
            let gone = (secs(20)..secs(20) + 6).contains(&(i % secs(30)));
            let loss = if gone {
                Loss::Random(1000)
            } else {
                Loss::Bursts {
                    enter: 3,
                    leave: 150,
                }
            };
            Conditions {
                loss,
                ..link(4_500_000, 30, 300)
            }
        })
    }

    /// Each hundredth packet is lost, for no reason of ours.
    pub fn random_loss() -> Self {
        Self::of("random-loss", 120, |_| Conditions {
            loss: Loss::Random(10),
            ..link(6_000_000, 40, 300)
        })
    }

    /// Three share a link that carries the middle rendition for each.
    pub fn competing() -> Self {
        Self {
            name: "competing",
            viewers: 3,
            ..Self::rates("competing", &[(120, 4_200_000)], 300)
        }
    }

    /// All of them.
    pub fn all(seed: u64) -> Vec<Self> {
        vec![
            Self::step(),
            Self::ramp(),
            Self::stairs(),
            Self::steady(),
            Self::lte(seed),
            Self::wifi(seed),
            Self::policer(),
            Self::bufferbloat(),
            Self::bursts(),
            Self::random_loss(),
            Self::competing(),
        ]
    }

    /// How long it is.
    pub fn duration(&self) -> Duration {
        STEP.saturating_mul(u32::try_from(self.steps.len()).unwrap_or(u32::MAX))
    }

    /// What the link carries in the second from step `at` on, for each viewer (bits per second).
    pub(super) fn capacity(&self, at: usize) -> u64 {
        let coming = self.steps.iter().skip(at).take(20);
        let rates = coming.map(|step| {
            let policed = step.policer.map_or(u64::MAX, |policer| policer.rate);
            step.rate.unwrap_or(u64::MAX).min(policed)
        });
        let (sum, count) = rates.fold((0_u64, 0), |(sum, count), rate| {
            (sum.saturating_add(rate), count + 1)
        });
        sum / u64::max(count, 1) / u64::try_from(self.viewers).unwrap_or(1)
    }
}
