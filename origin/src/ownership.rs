//! Who gets a stream's name: what an origin decides that has a publisher for one, and what one says that has the name.
//!
//! The directory fences: a claim is a transaction that yields an epoch above all before it, so there are never two owners of one epoch.
//! What is decided here is when a name that another origin holds may be taken. That origin is asked: one whose publisher sends keeps it;
//! one that isn't there any more, runs anew, or has no publisher loses it at once; one that doesn't answer keeps it until its lease is
//! over, since its publisher may be alive behind a broken network.
//!
//! [`Acquisition`] and [`occupied`] are pure; [`acquire`] and [`answer`] are their shells.

use std::time::Duration;

use headwater_media::id::{Epoch, NodeId};
use headwater_node::directory::{self, Incarnation, StreamRecord};

pub(crate) mod acquire;
pub(crate) mod answer;
#[cfg(test)]
mod model;

/// How often an owner is asked for one publisher (count). Each further question means that the owner has changed since the last one.
const QUESTIONS_MAX: u32 = 3;

/// What came of asking a stream's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Somebody answered at its address.
    Standing {
        node: NodeId,
        incarnation: Incarnation,
        /// See [`occupied`].
        publishing: bool,
    },
    /// Nobody listens at its address.
    Refused,
    /// There was no answer in time, or none that tells.
    Silent,
}

/// Why a name that another origin holds can be taken at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Void {
    /// Its process isn't there any more.
    Gone,
    /// Another run or another node answers in its place.
    OtherRun,
    /// It has no publisher that sends.
    NoPublisher,
}

impl Void {
    /// The value of a `reason` label.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::OtherRun => "other_run",
            Self::NoPublisher => "no_publisher",
        }
    }
}

/// Why a name can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Denied {
    /// Its owner has a publisher that sends.
    Publishing(NodeId),
    /// Its owner does not answer; its lease has to end first.
    Silent(NodeId),
    /// The directory does not do its part.
    Directory(String),
}

/// What to do next for a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Claim it, over another's claim of that epoch if one is given; then call [`Acquisition::handle_claim`].
    Claim { over: Option<Epoch> },
    /// Ask the owner that the record names; then call [`Acquisition::handle_answer`].
    Ask(StreamRecord),
    /// It is decided.
    Done(Result<Epoch, Denied>),
}

/// A name that is being acquired for a publisher who waits for the answer. Begin with [`Step::Claim`] over nothing.
#[derive(Debug, Clone)]
pub(crate) struct Acquisition {
    own: NodeId,
    /// Whom the last question was about.
    held: Option<StreamRecord>,
    questions: u32,
    void: Option<Void>,
}

impl Acquisition {
    pub(crate) const fn new(own: NodeId) -> Self {
        Self {
            own,
            held: None,
            questions: 0,
            void: None,
        }
    }

    /// The directory has answered a claim.
    pub(crate) fn handle_claim(&mut self, claimed: Result<Epoch, directory::Error>) -> Step {
        match claimed {
            Ok(epoch) => Step::Done(Ok(epoch)),
            // It goes from hand to hand; who has it now will do.
            Err(directory::Error::Held(held)) if self.questions == QUESTIONS_MAX => {
                Step::Done(Err(Denied::Publishing(held.origin)))
            }
            Err(directory::Error::Held(held)) => {
                self.questions += 1;
                self.held = Some(held.clone());
                Step::Ask(held)
            }
            Err(error) => Step::Done(Err(Denied::Directory(error.to_string()))),
        }
    }

    /// The owner has been asked.
    pub(crate) fn handle_answer(&mut self, answer: &Answer) -> Step {
        let Some(held) = self.held.take() else {
            return Step::Claim { over: None };
        };
        let void = match answer {
            Answer::Refused => Void::Gone,
            Answer::Silent => return Step::Done(Err(Denied::Silent(held.origin))),
            // The owner's address leads here: as likely as not it is misadvertised rather than gone.
            Answer::Standing { node, .. } if *node == self.own => {
                return Step::Done(Err(Denied::Silent(held.origin)));
            }
            Answer::Standing {
                node, incarnation, ..
            } if (node, incarnation) != (&held.origin, &held.incarnation) => Void::OtherRun,
            Answer::Standing {
                publishing: true, ..
            } => return Step::Done(Err(Denied::Publishing(held.origin))),
            Answer::Standing { .. } => Void::NoPublisher,
        };
        self.void = Some(void);
        Step::Claim {
            over: Some(held.epoch),
        }
    }

    /// Why the last claim was over another's, if it was.
    pub(crate) const fn void(&self) -> Option<Void> {
        self.void
    }
}

/// A name can't be given to another publisher: one is just being accepted, or one is there that has been `silent` for no longer than
/// `takeover`. The answer of an owner that is asked, and to a publisher of its own.
pub(crate) fn occupied(claiming: bool, silent: Option<Duration>, takeover: Duration) -> bool {
    claiming || silent.is_some_and(|silent| silent <= takeover)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> NodeId {
        text.parse().expect("valid")
    }

    fn held(epoch: u64) -> StreamRecord {
        StreamRecord {
            name: "live/x".parse().expect("valid"),
            origin: id("a"),
            incarnation: Incarnation(7),
            epoch: Epoch(epoch),
            grpc_url: "http://a:1".to_owned(),
        }
    }

    fn standing(node: &str, incarnation: u64, publishing: bool) -> Answer {
        Answer::Standing {
            node: id(node),
            incarnation: Incarnation(incarnation),
            publishing,
        }
    }

    /// What follows from an answer to the question about `held(5)`.
    fn after(answer: &Answer) -> Step {
        let mut core = Acquisition::new(id("b"));
        let asked = core.handle_claim(Err(directory::Error::Held(held(5))));
        assert_eq!(asked, Step::Ask(held(5)));
        core.handle_answer(answer)
    }

    #[test]
    fn the_owners_answer_decides() {
        let over = Step::Claim {
            over: Some(Epoch(5)),
        };
        let denied = |why: fn(NodeId) -> Denied| Step::Done(Err(why(id("a"))));
        assert_eq!(after(&Answer::Refused), over);
        assert_eq!(after(&standing("a", 7, false)), over);
        assert_eq!(after(&standing("a", 8, true)), over, "it was restarted");
        assert_eq!(after(&standing("c", 7, true)), over, "another's address");
        assert_eq!(after(&standing("a", 7, true)), denied(Denied::Publishing));
        assert_eq!(after(&Answer::Silent), denied(Denied::Silent));
        assert_eq!(after(&standing("b", 9, false)), denied(Denied::Silent));
    }

    #[test]
    fn a_name_that_goes_from_hand_to_hand_is_left_to_the_others() {
        let mut core = Acquisition::new(id("b"));
        for epoch in 1..=3 {
            let step = core.handle_claim(Err(directory::Error::Held(held(epoch))));
            assert_eq!(step, Step::Ask(held(epoch)));
            let over = Some(Epoch(epoch));
            assert_eq!(core.handle_answer(&Answer::Refused), Step::Claim { over });
        }
        let step = core.handle_claim(Err(directory::Error::Held(held(4))));
        assert_eq!(step, Step::Done(Err(Denied::Publishing(id("a")))));
    }
}
