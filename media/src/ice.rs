//! ICE-lite (RFC 8445 section 2.5) for one viewer: which of its paths we send to, and when it is gone.
//!
//! The lite side never checks; it answers checks, which the transport has authenticated before they come here, and learns
//! from them. The rules:
//!
//! - The first authenticated path is used at once, so that DTLS need not wait for the nomination; USE-CANDIDATE
//!   settles it. Before that UDP goes before TCP.
//! - Browsers nominate aggressively and go on checking several pairs with USE-CANDIDATE, so a nomination alone moves a viewer
//!   off a nominated path only when nothing authentic came on that for [`Options::switch_after`].
//! - What a viewer sends besides checks comes by the path that it uses itself. Such traffic on another nominated path moves the viewer
//!   there sooner: once the selected path was silent for [`Options::follow_after`], or at once from TCP to UDP. That a UDP check
//!   came proves nothing yet: a firewall may let the viewer's datagrams out and ours not in.
//! - A TCP connection that closes takes its path with it. A viewer without any path is kept until it is gone by time; its next
//!   check is its first.
//! - Consent (RFC 7675) is by time: a viewer whose checks stop is gone after [`Options::expire_after`], one that never
//!   finished connecting after [`Options::connect_within`].
//! - A restart (RFC 8445 section 9) replaces the credentials at once and keeps sending on the old path until a check with the
//!   new ones arrives, which then decides anew.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

/// Paths remembered per viewer (count). A browser with a few interfaces checks from as many.
const PATHS_MAX: usize = 8;

/// What carries a path's datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// As they are.
    Udp,
    /// Framed in a connection that the viewer opened (RFC 6544, RFC 4571).
    Tcp,
}

/// A way to a viewer: from our media port, which is one per transport, to this address. Two viewers never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// How.
    pub transport: Transport,
    /// Where to.
    pub address: SocketAddr,
}

impl Path {
    /// By UDP.
    pub const fn udp(address: SocketAddr) -> Self {
        Self {
            transport: Transport::Udp,
            address,
        }
    }

    /// By the TCP connection from there.
    pub const fn tcp(address: SocketAddr) -> Self {
        Self {
            transport: Transport::Tcp,
            address,
        }
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transport = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        write!(f, "{transport}/{}", self.address)
    }
}

/// Time limits of an [`Agent`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// A nominated path that was silent this long gives way to another nominated one. Chromium checks every 2.66 s.
    pub switch_after: Duration,
    /// A nominated path that was silent this long gives way to another nominated one that the viewer sends its feedback on. Longer than
    /// datagrams overtake each other, shorter than anybody waits for.
    pub follow_after: Duration,
    /// Without a check for this long the viewer is gone (RFC 7675 section 5.1 has 30 s).
    pub expire_after: Duration,
    /// A viewer that isn't connected this long after it joined is gone.
    pub connect_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            switch_after: Duration::from_secs(3),
            follow_after: Duration::from_millis(500),
            expire_after: Duration::from_secs(30),
            connect_within: Duration::from_secs(30),
        }
    }
}

/// User fragments and the password that checks are authenticated with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Ours.
    pub local_ufrag: Box<str>,
    /// Ours; keys the checks that the viewer sends, and our answers.
    pub local_pwd: Box<str>,
    /// The viewer's.
    pub remote_ufrag: Box<str>,
}

/// The password stays out of logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("local_ufrag", &self.local_ufrag)
            .field("remote_ufrag", &self.remote_ufrag)
            .finish_non_exhaustive()
    }
}

/// What a check changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// The path to send on is another one now: [`Agent::selected`].
    pub moved: bool,
    /// This path, once authenticated, is forgotten; datagrams from it are nobody's.
    pub forgotten: Option<Path>,
}

/// A path that passed a check.
#[derive(Debug, Clone, Copy)]
struct Known {
    path: Path,
    /// When something authentic last came on it.
    heard: Instant,
    /// Its last check carried USE-CANDIDATE, with the present password.
    nominated: bool,
}

/// The lite agent of one viewer. Feed it checks and authentic traffic; ask [`Agent::poll_timeout`] when to look at [`Agent::gone`].
#[derive(Debug)]
pub struct Agent {
    options: Options,
    credentials: Credentials,
    /// Paths that passed a check with the present or an earlier password.
    paths: SmallVec<[Known; 2]>,
    selected: Option<Path>,
    nominated: bool,
    /// When the viewer joined, or its last check came.
    consent: Instant,
    joined: Instant,
    connected: bool,
}

impl Agent {
    /// For a viewer that joins now.
    pub fn new(options: Options, credentials: Credentials, now: Instant) -> Self {
        Self {
            options,
            credentials,
            paths: SmallVec::new(),
            selected: None,
            nominated: false,
            consent: now,
            joined: now,
            connected: false,
        }
    }

    /// The credentials in force.
    pub const fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Where to send.
    pub const fn selected(&self) -> Option<Path> {
        self.selected
    }

    /// Datagrams from here are this viewer's.
    pub fn knows(&self, path: Path) -> bool {
        self.known(path).is_some()
    }

    /// All paths that [`Agent::knows`] is true for.
    pub fn paths(&self) -> impl Iterator<Item = Path> + '_ {
        self.paths.iter().map(|known| known.path)
    }

    /// `username` is a check's for us: `local:remote` (RFC 8445 section 7.2.2).
    pub fn answers_to(&self, username: &str) -> bool {
        username.split_once(':').is_some_and(|(local, remote)| {
            local == &*self.credentials.local_ufrag && remote == &*self.credentials.remote_ufrag
        })
    }

    /// A check passed authentication. `nominates`: it carries USE-CANDIDATE.
    pub fn handle_check(&mut self, now: Instant, from: Path, nominates: bool) -> Checked {
        self.consent = self.consent.max(now);
        let forgotten = self.remember(now, from, nominates);
        let moved = match self.selected {
            Some(selected) if selected == from => false,
            Some(selected) if self.nominated => {
                nominates && self.is_silent(now, selected, self.options.switch_after)
            }
            Some(selected) => nominates || is_better(from, selected),
            None => true,
        };
        if moved {
            self.selected = Some(from);
            self.nominated = nominates;
        } else if self.selected == Some(from) {
            self.nominated |= nominates;
        }
        Checked { moved, forgotten }
    }

    /// Something else that is authentic came, such as SRTCP. Returns whether the path to send on is another one now.
    pub fn handle_traffic(&mut self, now: Instant, from: Path) -> bool {
        let Some(known) = self.known_mut(from) else {
            return false;
        };
        known.heard = now.max(known.heard);
        let nominated = known.nominated;
        let moved = self.selected.is_some_and(|selected| {
            selected != from
                && nominated
                && (is_better(from, selected)
                    || self.is_silent(now, selected, self.options.follow_after))
        });
        if moved {
            self.selected = Some(from);
            self.nominated = true;
        }
        moved
    }

    /// A path is no more: its connection is closed. Returns whether the path to send on is another one now, or none.
    pub fn handle_lost(&mut self, now: Instant, path: Path) -> bool {
        self.paths.retain(|known| known.path != path);
        if self.selected != Some(path) {
            return false;
        }
        let alive = self
            .paths
            .iter()
            .filter(|known| now.saturating_duration_since(known.heard) < self.options.switch_after);
        let next = alive.max_by_key(|known| (known.nominated, known.heard));
        self.nominated = next.is_some_and(|known| known.nominated);
        self.selected = next.map(|known| known.path);
        true
    }

    /// The DTLS handshake is complete.
    pub const fn handle_connected(&mut self) {
        self.connected = true;
    }

    /// ICE restarts with new credentials. The old ones are void from now on.
    pub fn handle_restart(&mut self, now: Instant, credentials: Credentials) {
        self.credentials = credentials;
        self.nominated = false;
        for known in &mut self.paths {
            known.nominated = false;
        }
        self.consent = self.consent.max(now);
    }

    /// When [`Agent::gone`] may become true.
    pub fn poll_timeout(&self) -> Instant {
        let consent = self.consent + self.options.expire_after;
        if self.connected {
            consent
        } else {
            consent.min(self.joined + self.options.connect_within)
        }
    }

    /// The viewer is gone, or never came.
    pub fn gone(&self, now: Instant) -> bool {
        now >= self.poll_timeout()
    }

    fn known(&self, path: Path) -> Option<&Known> {
        self.paths.iter().find(|known| known.path == path)
    }

    fn known_mut(&mut self, path: Path) -> Option<&mut Known> {
        self.paths.iter_mut().find(|known| known.path == path)
    }

    fn is_silent(&self, now: Instant, path: Path, span: Duration) -> bool {
        self.known(path)
            .is_none_or(|known| now.saturating_duration_since(known.heard) >= span)
    }

    /// Notes that a check came on `from`; forgets the path that has been silent longest when there are too many.
    fn remember(&mut self, now: Instant, from: Path, nominates: bool) -> Option<Path> {
        if let Some(known) = self.known_mut(from) {
            known.heard = now.max(known.heard);
            known.nominated = nominates;
            return None;
        }
        let mut forgotten = None;
        if self.paths.len() >= PATHS_MAX {
            let oldest = self
                .paths
                .iter()
                .enumerate()
                .filter(|(_, known)| Some(known.path) != self.selected)
                .min_by_key(|(_, known)| known.heard)
                .map(|(i, _)| i);
            forgotten = oldest.map(|i| self.paths.swap_remove(i).path);
        }
        self.paths.push(Known {
            path: from,
            heard: now,
            nominated: nominates,
        });
        forgotten
    }
}

/// UDP goes before TCP, where a lost segment holds up what comes after it.
fn is_better(path: Path, than: Path) -> bool {
    (path.transport, than.transport) == (Transport::Udp, Transport::Tcp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(now: Instant) -> Agent {
        Agent::new(Options::default(), credentials("L"), now)
    }

    fn credentials(local: &str) -> Credentials {
        Credentials {
            local_ufrag: local.into(),
            local_pwd: "secret".into(),
            remote_ufrag: "R".into(),
        }
    }

    fn path(port: u16) -> Path {
        Path::udp(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn tcp(port: u16) -> Path {
        Path::tcp(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
    fn start() -> Instant {
        Instant::now()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_path_is_used_until_another_is_nominated() {
        let now = start();
        let mut agent = agent(now);
        assert!(agent.handle_check(now, path(1), false).moved);
        assert!(!agent.handle_check(now, path(2), false).moved);
        assert_eq!(agent.selected(), Some(path(1)));
        assert!(agent.handle_check(now, path(2), true).moved);
        assert_eq!(agent.selected(), Some(path(2)));
    }

    #[test]
    fn a_nominated_path_is_left_only_when_silent() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        // A browser keeps checking its second pair.
        for second in 1..6 {
            let now = now + SECOND * second;
            agent.handle_traffic(now - SECOND / 2, path(1));
            assert!(!agent.handle_check(now, path(2), true).moved);
        }
        let silent = now + SECOND * 6 + SECOND * 2;
        assert!(!agent.handle_check(silent, path(2), false).moved);
        assert!(agent.handle_check(silent, path(2), true).moved);
    }

    #[test]
    fn feedback_on_a_nominated_path_moves_a_viewer_once_the_old_one_is_silent() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        // The viewer changed networks: nothing comes on the old path any more.
        let at = now + SECOND;
        assert!(!agent.handle_check(at, path(2), true).moved, "not yet 3 s");
        assert!(agent.handle_traffic(at, path(2)));
        assert_eq!(agent.selected(), Some(path(2)));

        // A datagram that was overtaken on the way changes nothing.
        assert!(!agent.handle_traffic(at + Duration::from_millis(20), path(1)));
        assert_eq!(agent.selected(), Some(path(2)));
    }

    #[test]
    fn feedback_moves_nobody_to_a_path_without_a_nomination_or_a_check() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        agent.handle_check(now, path(2), false);
        for stranger in [path(2), path(3)] {
            assert!(!agent.handle_traffic(now + SECOND * 2, stranger));
        }
        // A nomination of before a restart doesn't count after it.
        agent.handle_check(now, path(2), true);
        agent.handle_restart(now, credentials("L2"));
        assert!(!agent.handle_traffic(now + SECOND * 2, path(2)));
        assert_eq!(agent.selected(), Some(path(1)));
    }

    #[test]
    fn udp_goes_before_tcp_but_not_on_the_word_of_a_check() {
        let now = start();
        let mut agent = agent(now);
        // Nothing is nominated yet.
        assert!(agent.handle_check(now, tcp(1), false).moved);
        assert!(agent.handle_check(now, path(1), false).moved);
        assert!(!agent.handle_check(now, tcp(1), false).moved);

        // What is nominated is what works for the viewer; it goes on checking UDP, with USE-CANDIDATE if it is of that kind.
        assert!(agent.handle_check(now, tcp(1), true).moved);
        for second in 1..10 {
            let now = now + SECOND * second;
            agent.handle_traffic(now, tcp(1));
            assert!(!agent.handle_check(now, path(1), true).moved);
        }
        // UDP works after all: the viewer uses it, though TCP is still alive.
        assert!(agent.handle_traffic(now + SECOND * 10, path(1)));
        assert_eq!(agent.selected(), Some(path(1)));
        // And it isn't left for TCP while it is.
        assert!(!agent.handle_check(now + SECOND * 10, tcp(1), true).moved);
        assert!(!agent.handle_traffic(now + SECOND * 10, tcp(1)));
    }

    #[test]
    fn a_closed_connection_is_left_at_once_for_what_is_alive_or_for_nothing() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_connected();
        agent.handle_check(now, path(1), true);
        agent.handle_check(now, path(2), false);
        let at = now + SECOND * 4;
        agent.handle_check(at, path(2), false);
        agent.handle_check(at, tcp(3), true);
        assert_eq!(agent.selected(), Some(tcp(3)));
        // UDP 1 is dead, UDP 2 was just checked.
        assert!(agent.handle_lost(at, tcp(3)));
        assert_eq!(agent.selected(), Some(path(2)));
        assert!(!agent.handle_lost(at, tcp(3)), "it is known already");
        assert!(agent.handle_lost(at + SECOND * 5, path(2)));
        assert_eq!(agent.selected(), None);
        // It is kept for as long as anybody who falls silent, and comes back by its next check.
        assert!(!agent.gone(at + SECOND * 29));
        assert!(agent.handle_check(at + SECOND * 29, tcp(4), false).moved);
        assert_eq!(agent.selected(), Some(tcp(4)));
    }

    #[test]
    fn usernames_name_both_sides() {
        let agent = agent(start());
        for (username, ours) in [
            ("L:R", true),
            ("L:X", false),
            ("R:L", false),
            ("L", false),
            ("", false),
            ("L:R:R", false),
        ] {
            assert_eq!(agent.answers_to(username), ours, "{username}");
        }
    }

    #[test]
    fn a_viewer_that_never_connects_is_gone_within_30_seconds() {
        let now = start();
        let mut agent = agent(now);
        // Checks alone don't keep it: DTLS must come.
        for second in 0..30 {
            agent.handle_check(now + SECOND * second, path(1), true);
            assert!(!agent.gone(now + SECOND * second));
        }
        assert!(agent.gone(now + SECOND * 30));
    }

    #[test]
    fn consent_lasts_as_long_as_checks_come() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        agent.handle_connected();
        for second in (0..300).step_by(3) {
            agent.handle_check(now + SECOND * second, path(1), true);
        }
        let last = now + SECOND * 297;
        agent.handle_traffic(last + SECOND * 29, path(1));
        assert_eq!(agent.poll_timeout(), last + SECOND * 30);
        assert!(!agent.gone(last + SECOND * 29));
        assert!(agent.gone(last + SECOND * 30));
    }

    #[test]
    fn a_restart_voids_the_old_fragment_and_moves_with_the_first_nomination() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        agent.handle_connected();
        agent.handle_restart(now, credentials("L2"));
        assert!(!agent.answers_to("L:R"));
        assert!(agent.answers_to("L2:R"));
        assert_eq!(agent.selected(), Some(path(1)));
        assert!(agent.handle_check(now, path(2), true).moved);
        assert_eq!(agent.selected(), Some(path(2)));
        assert!(agent.knows(path(1)));
    }

    #[test]
    fn paths_are_bounded_and_the_selected_one_stays() {
        let now = start();
        let mut agent = agent(now);
        agent.handle_check(now, path(1), true);
        let mut forgotten = 0;
        for port in 2..100 {
            let checked = agent.handle_check(now + SECOND, path(port), false);
            forgotten += usize::from(checked.forgotten.is_some());
        }
        assert_eq!(forgotten, 99 - PATHS_MAX);
        assert_eq!(agent.paths().count(), PATHS_MAX);
        assert!(agent.knows(path(1)));
    }
}
