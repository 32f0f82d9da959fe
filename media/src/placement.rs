//! Placement: which of several edges a viewer is best served by.
//!
//! Loads are a few seconds old when they are compared, and thousands of viewers may compare them at once, so nobody looks for the least loaded
//! edge: of two drawn at random the better one is taken (power of two choices), which spreads a crowd nearly as well and never sends all
//! of it to one place.

/// An edge that could serve a viewer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// 0 idle, 1 full.
    pub load: f64,
    /// It has the stream: another viewer of it costs neither a subscription nor the time to get one.
    pub has_stream: bool,
}

/// How much more loaded an edge may be that has the stream (of 1).
const STREAM_IS_WORTH: f64 = 0.2;
/// From this load on an edge takes no viewer that another one sends: its own newcomers fill the rest.
const TAKES_UP_TO: f64 = 0.9;
/// Up to this load an edge keeps its viewers, whatever others do.
const CONTENT_UP_TO: f64 = 0.5;
/// Above it, it sends one on if the other is that much less loaded: less would send viewers to and fro.
const MUCH_LESS: f64 = 0.25;

impl Candidate {
    /// It would take a viewer that another edge sends.
    pub fn takes(&self) -> bool {
        self.load < TAKES_UP_TO
    }

    /// What is compared: less is better.
    fn cost(&self) -> f64 {
        self.load
            - if self.has_stream {
                STREAM_IS_WORTH
            } else {
                0.0
            }
    }

    /// It keeps its viewers, whatever others do.
    pub fn is_content(&self) -> bool {
        self.load <= CONTENT_UP_TO
    }

    /// A viewer that came here is better off there, though there is room here.
    pub fn should_send_to(&self, there: &Self) -> bool {
        !self.is_content() && there.takes() && there.cost() + MUCH_LESS < self.cost()
    }
}

/// The better one of two drawn by `random`, among those that take viewers: its place.
pub fn choose(candidates: &[Candidate], random: [u64; 2]) -> Option<usize> {
    let open: Vec<(usize, &Candidate)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| candidate.takes())
        .collect();
    let count = u64::try_from(open.len()).ok().filter(|count| *count > 0)?;
    let drawn = |random: u64| open.get(usize::try_from(random % count).ok()?).copied();
    let (first, second) = (drawn(random[0])?, drawn(random[1])?);
    let better = if second.1.cost() < first.1.cost() {
        second
    } else {
        first
    };
    Some(better.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(load: f64, has_stream: bool) -> Candidate {
        Candidate { load, has_stream }
    }

    #[test]
    fn the_better_of_two_is_taken_and_a_full_one_never() {
        let edges = [edge(0.8, false), edge(0.3, false), edge(0.95, true)];
        assert_eq!(choose(&edges, [0, 1]), Some(1));
        assert_eq!(choose(&edges, [1, 0]), Some(1));
        assert_eq!(choose(&edges, [0, 0]), Some(0));
        for random in 0..100 {
            assert_ne!(choose(&edges, [random, random / 3]), Some(2));
        }
        assert_eq!(choose(&[edge(1.0, true)], [0, 0]), None);
        assert_eq!(choose(&[], [0, 0]), None);
        // The stream is worth some load.
        let edges = [edge(0.4, true), edge(0.3, false)];
        assert_eq!(choose(&edges, [0, 1]), Some(0));
    }

    #[test]
    fn viewers_are_sent_on_for_a_good_reason_only() {
        let here = |load| edge(load, true);
        assert!(!here(0.45).should_send_to(&edge(0.0, true)));
        assert!(here(0.7).should_send_to(&edge(0.2, true)));
        assert!(!here(0.7).should_send_to(&edge(0.5, true)));
        assert!(!here(0.7).should_send_to(&edge(0.3, false)));
        assert!(here(0.8).should_send_to(&edge(0.1, false)));
        assert!(!here(2.0).should_send_to(&edge(0.95, true)));
    }

    #[test]
    fn a_crowd_spreads_though_its_readings_are_old() {
        const EDGES: usize = 100;
        const VIEWERS: u64 = 20_000;
        let mut viewers = [0_u32; EDGES];
        let mut told = [edge(0.0, true); EDGES];
        let mut state = 7_u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        };
        for joined in 0..VIEWERS {
            // Every edge tells its load each time a fortieth of the crowd has come.
            if joined % (VIEWERS / 40) == 0 {
                for (told, viewers) in told.iter_mut().zip(viewers) {
                    told.load = f64::from(viewers) / 400.0;
                }
            }
            let at = choose(&told, [random(), random()]).expect("room");
            viewers[at] += 1;
        }
        let most = viewers.iter().max().unwrap();
        assert!(*most < 250, "200 would be even: {most}");
    }
}
