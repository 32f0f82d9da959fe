//! The fed half: whom a node that needs an upstream asks, in which order.
//!
//! First those that the directory names; whoever redirects is followed at once, depth first. Then nodes of which an earlier search
//! has heard, in case the origin can't be reached from here but they can. At last the directory's again, by a call that follows no redirection, which an
//! origin takes whatever its fan-out. A search is bounded; the owner waits before the next.

use std::collections::VecDeque;

use super::Alternative;
use crate::id::NodeId;

/// Upstreams that one search asks (count). A tree has a handful of levels, and each names its best first.
const TRIES_MAX: usize = 24;

/// Redirections in a row that are followed (count): more than any tree has levels.
const REDIRECTS_MAX: u32 = 8;

/// Nodes that are kept for the next search (count).
const KNOWN_MAX: usize = 8;

/// One to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub grpc_url: String,
    /// Which of the directory's upstreams it was found through, by index.
    pub root: usize,
    /// Who it is, if that is known.
    pub node: Option<NodeId>,
    /// How many redirections it may answer with (count).
    pub redirects_left: u32,
}

/// See the module. One search; the next begins with what this one heard of ([`Search::into_known`]).
#[derive(Debug)]
pub struct Search {
    roots: Vec<String>,
    /// Roots that redirected, and so have the stream.
    redirected: Vec<usize>,
    queue: VecDeque<Candidate>,
    known: Vec<Alternative>,
    avoid: Vec<NodeId>,
    tried: Vec<String>,
    tries: usize,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Roots,
    Known,
    LastResort,
}

impl Search {
    /// From what the directory names, best first, and what an earlier search heard of. Nodes of `avoid` aren't asked.
    pub fn new(roots: Vec<String>, known: Vec<Alternative>, avoid: Vec<NodeId>) -> Self {
        let queue = roots.iter().enumerate().map(|(root, url)| Candidate {
            grpc_url: url.clone(),
            root,
            node: None,
            redirects_left: REDIRECTS_MAX,
        });
        Self {
            queue: queue.collect(),
            roots,
            redirected: Vec::new(),
            known,
            avoid,
            tried: Vec::new(),
            tries: 0,
            stage: Stage::Roots,
        }
    }

    /// Whom to ask next; none when all have been.
    pub fn poll_candidate(&mut self) -> Option<Candidate> {
        if self.tries >= TRIES_MAX {
            return None;
        }
        // Some tries are kept for those who take whoever finds no place.
        if self.stage != Stage::LastResort && self.tries + self.redirected.len() >= TRIES_MAX {
            self.queue.clear();
            self.stage = Stage::Known;
        }
        loop {
            let Some(candidate) = self.queue.pop_front() else {
                self.advance()?;
                continue;
            };
            let last_resort = self.stage == Stage::LastResort;
            if !last_resort && self.tried.contains(&candidate.grpc_url) {
                continue;
            }
            self.tries += 1;
            self.tried.push(candidate.grpc_url.clone());
            return Some(candidate);
        }
    }

    /// `from` sends this node to one of these.
    pub fn handle_redirect(&mut self, from: &Candidate, alternatives: Vec<Alternative>) {
        if from.node.is_none() && !self.redirected.contains(&from.root) {
            self.redirected.push(from.root);
        }
        let left = from.redirects_left.saturating_sub(1);
        for alternative in alternatives.into_iter().rev() {
            if self.avoid.contains(&alternative.node) {
                continue;
            }
            self.queue.push_front(Candidate {
                grpc_url: alternative.grpc_url.clone(),
                root: from.root,
                node: Some(alternative.node.clone()),
                redirects_left: left,
            });
            self.known.retain(|known| known.node != alternative.node);
            self.known.insert(0, alternative);
        }
        self.known.truncate(KNOWN_MAX);
    }

    /// Who might have the stream, for a later search.
    pub fn into_known(self) -> Vec<Alternative> {
        self.known
    }

    fn advance(&mut self) -> Option<()> {
        match self.stage {
            Stage::Roots => {
                self.stage = Stage::Known;
                let known = self
                    .known
                    .iter()
                    .filter(|known| !self.avoid.contains(&known.node));
                // Without a root there is no stream, whoever remembers one.
                let known = known.filter(|_| !self.roots.is_empty());
                self.queue.extend(known.map(|known| Candidate {
                    grpc_url: known.grpc_url.clone(),
                    root: 0,
                    node: Some(known.node.clone()),
                    redirects_left: 1,
                }));
            }
            Stage::Known => {
                self.stage = Stage::LastResort;
                for &root in &self.redirected {
                    let Some(url) = self.roots.get(root) else {
                        continue;
                    };
                    self.queue.push_back(Candidate {
                        grpc_url: url.clone(),
                        root,
                        node: None,
                        redirects_left: 0,
                    });
                }
            }
            Stage::LastResort => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alternative(name: &str) -> Alternative {
        Alternative {
            grpc_url: url(name),
            node: name.parse().unwrap(),
            depth: 1,
        }
    }

    fn url(name: &str) -> String {
        format!("http://{name}:7070")
    }

    /// Whom a search asks when all it asks say what `answer` says: names of those they redirect to.
    fn asked(mut search: Search, answer: impl Fn(&str) -> &'static [&'static str]) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(candidate) = search.poll_candidate() {
            let name = candidate.grpc_url[7..]
                .split(':')
                .next()
                .unwrap()
                .to_owned();
            let names = answer(&name);
            if candidate.redirects_left == 0 {
                asked.push(format!("{name}!"));
                continue;
            }
            if !names.is_empty() {
                let alternatives = names.iter().map(|name| alternative(name)).collect();
                search.handle_redirect(&candidate, alternatives);
            }
            asked.push(name);
        }
        asked
    }

    #[test]
    fn redirections_are_followed_depth_first_and_the_origin_is_the_last_resort() {
        let search = Search::new(vec![url("o1")], Vec::new(), Vec::new());
        let answer = |name: &str| -> &[&str] {
            match name {
                "o1" => &["e1", "e2"],
                "e1" => &["e3", "e4"],
                _ => &[],
            }
        };
        assert_eq!(asked(search, answer), ["o1", "e1", "e3", "e4", "e2", "o1!"]);
    }

    #[test]
    fn an_origin_that_has_not_redirected_is_not_asked_twice_and_known_nodes_are() {
        let known = vec![alternative("e7"), alternative("e8")];
        let avoid = vec!["e8".parse().unwrap()];
        let search = Search::new(vec![url("o1"), url("o2")], known, avoid);
        assert_eq!(asked(search, |_| &[]), ["o1", "o2", "e7"]);
        let search = Search::new(Vec::new(), vec![alternative("e7")], Vec::new());
        assert_eq!(asked(search, |_| &[]), [""; 0], "nobody has the stream");
    }

    #[test]
    fn nodes_that_send_one_round_in_circles_are_asked_once() {
        let search = Search::new(vec![url("o1")], Vec::new(), Vec::new());
        let answer = |name: &str| -> &[&str] {
            match name {
                "o1" | "e2" => &["e1"],
                "e1" => &["e2"],
                _ => &[],
            }
        };
        assert_eq!(asked(search, answer), ["o1", "e1", "e2", "o1!"]);
    }

    #[test]
    fn a_search_ends_however_many_there_are_to_ask_and_remembers_a_few() {
        let mut search = Search::new(vec![url("o1")], Vec::new(), Vec::new());
        let mut asked = 0;
        while let Some(candidate) = search.poll_candidate() {
            let names = (0..10).map(|i| alternative(&format!("e{asked}-{i}")));
            let names = names.collect();
            search.handle_redirect(&candidate, names);
            asked += 1;
        }
        assert_eq!(asked, TRIES_MAX);
        assert_eq!(search.into_known().len(), KNOWN_MAX);
    }
}
