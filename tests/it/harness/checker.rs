//! What a viewer saw of what was published: lost, repeated, late.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

/// A picture that a viewer could show. Times are µs of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Counts the viewer's sessions.
    pub(crate) session: u64,
    pub(crate) arrived: u64,
    /// When its publisher made it, which names it.
    pub(crate) stamp: u64,
    /// RTP's.
    pub(crate) timestamp: u32,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Pictures that were published, and neither shown nor still on their way.
    pub(crate) missing: Vec<u64>,
    /// Pictures that came again within a session, or after newer ones, or with an older time.
    pub(crate) repeated: Vec<u64>,
    /// Those among them that came after a newer publisher's.
    pub(crate) mixed: Vec<u64>,
    /// The longest time between two pictures.
    pub(crate) gap: Duration,
    /// The longest time from the publisher to here, of pictures that came later than 2 s after the end of the fault, and once.
    pub(crate) late: Duration,
}

impl Shown {
    /// From a line of `headwater probe --json --pictures`; none if it is another one.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let number = |name: &str| value.get(name).and_then(Value::as_u64);
        Some(Self {
            session: number("session").filter(|_| value["kind"] == "picture")?,
            arrived: number("arrived_unix_micros")?,
            stamp: number("stamp_unix_micros")?,
            timestamp: u32::try_from(number("timestamp")?).ok()?,
        })
    }
}

/// What there was to see.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    /// The stamps, in order.
    pub(crate) stamps: Vec<u64>,
    /// The first stamp of each publisher.
    pub(crate) begins: Vec<u64>,
}

/// Holds what a viewer was shown, from its first picture to its last, against what was published since `from`, all in order. What went
/// wrong was over at `healed`.
pub(crate) fn judge(published: &Published, shown: &[Shown], from: u64, healed: u64) -> Verdict {
    let seen: HashSet<u64> = shown.iter().map(|shown| shown.stamp).collect();
    let first = shown.first().map_or(u64::MAX, |shown| shown.stamp);
    let newest = seen.iter().max().copied().unwrap_or(0);
    let due = published.stamps.iter().filter(|stamp| {
        let stamp = **stamp;
        stamp >= from && stamp >= first && stamp <= newest
    });
    let mut arrivals: Vec<u64> = shown.iter().map(|shown| shown.arrived).collect();
    arrivals.sort_unstable();
    let steps = arrivals.windows(2).filter(|pair| pair[1] >= from);
    let settled = healed + 2_000_000;
    let repeated = repeated(shown, from);
    let again: HashSet<u64> = repeated.iter().map(|(stamp, _)| *stamp).collect();
    let late = shown
        .iter()
        .filter(|shown| shown.arrived >= settled && !again.contains(&shown.stamp));
    let older = |(stamp, newest): &&(u64, u64)| {
        let mut begins = published.begins.iter();
        begins.any(|begin| stamp < begin && begin <= newest)
    };
    let stamp = |(stamp, _): &(u64, u64)| *stamp;
    Verdict {
        missing: due.filter(|stamp| !seen.contains(stamp)).copied().collect(),
        mixed: repeated.iter().filter(older).map(stamp).collect(),
        repeated: repeated.iter().map(stamp).collect(),
        gap: Duration::from_micros(steps.map(|pair| pair[1] - pair[0]).max().unwrap_or(0)),
        late: Duration::from_micros(
            late.map(|shown| shown.arrived.saturating_sub(shown.stamp))
                .max()
                .unwrap_or(0),
        ),
    }
}

/// Pictures that did not go on from the newest one of their session, and that one.
fn repeated(shown: &[Shown], from: u64) -> Vec<(u64, u64)> {
    let mut newest: Vec<Shown> = Vec::new();
    let mut repeated = Vec::new();
    for shown in shown {
        match newest
            .iter_mut()
            .find(|newest| newest.session == shown.session)
        {
            Some(newest) => {
                let forward = shown.timestamp.wrapping_sub(newest.timestamp);
                if shown.stamp <= newest.stamp || forward == 0 || forward >= 1 << 31 {
                    if shown.arrived >= from {
                        repeated.push((shown.stamp, newest.stamp));
                    }
                } else {
                    *newest = *shown;
                }
            }
            None => newest.push(*shown),
        }
    }
    repeated
}

#[test]
fn the_checker_finds_what_is_lost_repeated_and_late() {
    let shown = |session, stamp: u64, ticks| Shown {
        session,
        arrived: stamp + 20,
        stamp,
        timestamp: ticks,
    };
    let mut published = Published {
        stamps: (0..10).map(|n| n * 100).collect(),
        begins: vec![0],
    };
    let all: Vec<Shown> = (2..8).map(|n| shown(0, n * 100, 9)).collect();
    let with_times = |mut all: Vec<Shown>| {
        for (n, shown) in (0..).zip(&mut all) {
            shown.timestamp = (u32::MAX - 3).wrapping_add(n);
        }
        all
    };
    let good = with_times(all);
    let verdict = judge(&published, &good, 0, 0);
    assert_eq!((verdict.missing.len(), verdict.repeated.len()), (0, 0));
    assert_eq!(verdict.gap, Duration::from_micros(100));
    assert_eq!(verdict.late, Duration::ZERO, "nobody waited so long");

    let mut lost = good.clone();
    lost.remove(3);
    let verdict = judge(&published, &lost, 0, 0);
    assert_eq!(verdict.missing, [500]);
    assert_eq!(verdict.gap, Duration::from_micros(200));
    assert_eq!(judge(&published, &lost, 600, 0).missing, [0_u64; 0]);

    let mut again = good.clone();
    again.push(good[2]);
    let verdict = judge(&published, &again, 0, 0);
    assert_eq!((verdict.repeated, verdict.mixed), (vec![400], vec![]));
    published.begins.push(500);
    assert_eq!(judge(&published, &again, 0, 0).mixed, [400]);
    again.last_mut().expect("one").session = 1;
    let verdict = judge(&published, &again, 0, 0);
    assert_eq!(verdict.repeated, [0_u64; 0], "a session of its own");
}
