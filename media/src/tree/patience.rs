//! How long a node stays with an upstream that gets nothing itself, because somebody above has lost its own.
//!
//! Whoever is orphaned keeps those it feeds, and tells them with each pong how many levels above them it is. While the publisher's node is
//! silent they could do no better, and if they left, all of them would come to that node at once when it is back: the tree would be gone. Where
//! only the orphan is cut off they can, and have to. So they wait for it to find a way, those right below it for less time than those
//! further down, who go on with them; then they ask the owner that the directory names, and leave if it answers and nothing comes by the
//! old way for a while either. An owner that stays silent for long, though the directory names it, is one that they can't reach: there
//! may be other edges that can.

use std::time::{Duration, Instant};

/// An orphan has this for itself, and each level below it as much again, before anybody asks for more than it has.
const PER_LEVEL: Duration = Duration::from_secs(3);

/// An owner that answers after it was silent is given so long to feed the orphan, which asks it every two seconds and waits as long.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// Between two questions.
const ASKED_EVERY: Duration = Duration::from_secs(5);

/// An owner that is silent for so long, and for each level as long again, is one that can't be reached from here. In etcd its record
/// would have gone with its lease (12 s) by then, if it were dead.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Levels that make a difference (count).
const LEVELS_MAX: u32 = 8;

/// What the owner says when it is asked for the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has it.
    Has,
    /// It doesn't, or the directory names nobody.
    HasNot,
    /// Nothing.
    Silent,
}

/// See the module. Feed it (`handle_*`), then ask [`Patience::poll_ask`] and [`Patience::ended`], and again at [`Patience::poll_timeout`].
#[derive(Debug)]
pub struct Patience {
    /// Added to the wait before the first question, so that not all ask at once.
    spread: Duration,
    orphaned: Option<Orphaned>,
}

#[derive(Debug)]
struct Orphaned {
    since: Instant,
    levels: u32,
    /// When the owner is asked next; none while an answer is awaited, or none is needed.
    asks: Option<Instant>,
    /// When it said that it has the stream.
    answered: Option<Instant>,
    /// It said nothing the last time.
    silent: bool,
}

impl Patience {
    /// What to draw the constructor's spread from (uniform from 0).
    pub const SPREAD: Duration = Duration::from_secs(1);

    /// With an upstream that isn't known to lack anything; `spread` is a draw from [`Self::SPREAD`].
    pub const fn new(spread: Duration) -> Self {
        Self {
            spread,
            orphaned: None,
        }
    }

    /// The upstream says so many levels above this node somebody is orphaned; 0: nobody.
    pub fn handle_levels(&mut self, now: Instant, levels: u32) {
        if levels == 0 {
            self.orphaned = None;
            return;
        }
        let levels = levels.min(LEVELS_MAX);
        let first = PER_LEVEL * levels + self.spread;
        match &mut self.orphaned {
            Some(orphaned) if levels >= orphaned.levels => orphaned.levels = levels,
            // Where somebody above has just begun to look for another way, which takes as long as for the one before.
            _ => {
                self.orphaned = Some(Orphaned {
                    since: now,
                    levels,
                    asks: Some(now + first),
                    answered: None,
                    silent: false,
                });
            }
        }
    }

    /// The stream comes (again).
    pub fn handle_fed(&mut self) {
        self.orphaned = None;
    }

    /// What became of a question.
    pub fn handle_answer(&mut self, now: Instant, answer: Answer) {
        let Some(orphaned) = &mut self.orphaned else {
            return;
        };
        orphaned.silent = answer == Answer::Silent;
        match answer {
            Answer::Has => orphaned.answered = Some(now),
            Answer::HasNot | Answer::Silent => orphaned.asks = Some(now + ASKED_EVERY),
        }
    }

    /// True: ask the owner now whether it has the stream, and hand its answer to [`Self::handle_answer`].
    pub fn poll_ask(&mut self, now: Instant) -> bool {
        let Some(orphaned) = &mut self.orphaned else {
            return false;
        };
        let due = orphaned.asks.is_some_and(|at| at <= now);
        if due {
            orphaned.asks = None;
        }
        due
    }

    /// True: leave the upstream and look for another.
    pub fn ended(&self, now: Instant) -> bool {
        self.ends().is_some_and(|at| at <= now)
    }

    /// Nothing has come for so long that another upstream, where there is one already, had better be replaced than awaited.
    pub fn overdue(&self, now: Instant) -> bool {
        let orphaned = self.orphaned.as_ref();
        orphaned.is_some_and(|orphaned| now >= orphaned.since + PER_LEVEL * orphaned.levels)
    }

    /// The upstream is known to get nothing.
    pub const fn waits(&self) -> bool {
        self.orphaned.is_some()
    }

    /// When to look again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let orphaned = self.orphaned.as_ref()?;
        [orphaned.asks, self.ends()].into_iter().flatten().min()
    }

    fn ends(&self) -> Option<Instant> {
        let orphaned = self.orphaned.as_ref()?;
        let answered = orphaned.answered.map(|at| at + SETTLES_WITHIN);
        let silent = orphaned
            .silent
            .then(|| orphaned.since + SILENT_MAX * orphaned.levels);
        answered.or(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    /// Seconds after the start at which it asks and leaves, if its upstream is orphaned from the start for `orphaned` seconds, and the owner
    /// answers as `answer` says.
    fn run(levels: u32, orphaned: u64, answer: impl Fn(u64) -> Answer) -> (Vec<u64>, Option<u64>) {
        let start = testkit::start();
        let mut patience = Patience::new(Duration::ZERO);
        let mut asked = Vec::new();
        for tenths in 0..2000 {
            let now = start + Duration::from_millis(100) * tenths;
            let seconds = u64::from(tenths) / 10;
            if tenths % 5 == 0 {
                patience.handle_levels(now, if seconds < orphaned { levels } else { 0 });
            }
            if patience.poll_ask(now) {
                asked.push(seconds);
                patience.handle_answer(now, answer(seconds));
            }
            if patience.ended(now) {
                return (asked, Some(seconds));
            }
        }
        (asked, None)
    }

    #[test]
    fn a_node_whose_parent_alone_is_cut_off_leaves_it_and_takes_those_below_along() {
        let has = |_| Answer::Has;
        assert_eq!(run(1, u64::MAX, has), (vec![3], Some(6)));
        // Who is further down waits until that has had time to find another.
        assert_eq!(run(2, u64::MAX, has), (vec![6], Some(9)));
        assert_eq!(run(2, 8, has), (vec![6], None));
    }

    #[test]
    fn while_the_owner_is_silent_everybody_stays_and_goes_on_as_before() {
        for hang in [5, 8, 9, 20, 26] {
            let answer = |seconds| {
                if seconds < hang {
                    Answer::Silent
                } else {
                    Answer::Has
                }
            };
            // The parent is fed again within two seconds of the owner's return.
            let (asked, left) = run(1, hang + 2, answer);
            assert_eq!(left, None, "{hang} s");
            assert!(asked.len() <= 6, "{asked:?}");
        }
    }

    #[test]
    fn nobody_leaves_for_an_owner_that_has_not_the_stream_or_is_not_named() {
        assert_eq!(run(1, u64::MAX, |_| Answer::HasNot).1, None);
    }

    #[test]
    fn an_owner_that_is_named_and_can_not_be_reached_for_long_is_looked_for_by_other_ways() {
        assert_eq!(run(1, u64::MAX, |_| Answer::Silent).1, Some(30));
        assert_eq!(run(2, u64::MAX, |_| Answer::Silent).1, Some(60));
    }

    #[test]
    fn when_the_parent_begins_to_look_it_has_as_long_as_the_one_above_had() {
        let start = testkit::start();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(Duration::ZERO);
        patience.handle_levels(start, 2);
        assert!(patience.poll_ask(at(6)));
        patience.handle_answer(at(6), Answer::Silent);
        // It has left its own parent, whose owner stays silent.
        patience.handle_levels(at(30), 1);
        assert!(!patience.ended(at(30)) && !patience.overdue(at(30)));
        assert!(!patience.poll_ask(at(32)) && patience.poll_ask(at(33)));
        patience.handle_answer(at(33), Answer::Silent);
        assert!(!patience.ended(at(59)) && patience.ended(at(60)));
    }

    #[test]
    fn what_was_said_before_the_stream_came_again_counts_no_more() {
        let now = testkit::start();
        let mut patience = Patience::new(Duration::from_millis(500));
        patience.handle_levels(now, 1);
        assert!(!patience.overdue(now) && patience.waits());
        assert!(!patience.poll_ask(now + PER_LEVEL));
        assert!(patience.overdue(now + PER_LEVEL));
        assert_eq!(
            patience.poll_timeout(),
            Some(now + PER_LEVEL + Duration::from_millis(500))
        );
        assert!(patience.poll_ask(now + PER_LEVEL + Duration::from_millis(500)));
        patience.handle_fed();
        patience.handle_answer(now + PER_LEVEL * 2, Answer::Has);
        assert!(!patience.waits() && !patience.ended(now + PER_LEVEL * 9));
        assert_eq!(patience.poll_timeout(), None);
    }
}
