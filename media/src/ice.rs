//! ICE-lite (RFC 8445 section 2.5) for one viewer: which of its paths we send to, and when it is gone.
//!
//! The lite side never checks; it answers checks, which the transport has authenticated before they come here, and learns
//! from them. Three rules:
//!
//! - The first authenticated path is used at once, so that DTLS need not wait for the nomination; USE-CANDIDATE
//!   settles it. Browsers nominate aggressively and go on checking several pairs with USE-CANDIDATE, so a nominated path
//!   is left for another one only when nothing authentic came from it for [`Options::switch_after`].
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
    /// Without a check for this long the viewer is gone (RFC 7675 section 5.1 has 30 s).
    pub expire_after: Duration,
    /// A viewer that isn't connected this long after it joined is gone.
    pub connect_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            switch_after: Duration::from_secs(3),
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

/// The lite agent of one viewer. Feed it checks and authentic traffic; ask [`Agent::poll_timeout`] when to look at [`Agent::gone`].
#[derive(Debug)]
pub struct Agent {
    options: Options,
    credentials: Credentials,
    /// Paths that passed a check with the present or an earlier password, with the time something authentic last came.
    paths: SmallVec<[(Path, Instant); 2]>,
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
        self.paths.iter().any(|(known, _)| *known == path)
    }

    /// All paths that [`Agent::knows`] is true for.
    pub fn paths(&self) -> impl Iterator<Item = Path> + '_ {
        self.paths.iter().map(|(path, _)| *path)
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
        let forgotten = self.remember(now, from);
        let moved = match self.selected {
            Some(selected) if selected == from => false,
            Some(selected) if self.nominated => nominates && self.is_silent(now, selected),
            Some(_) => nominates,
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

    /// Something else that is authentic came, such as SRTCP.
    pub fn handle_traffic(&mut self, now: Instant, from: Path) {
        if let Some((_, heard)) = self.paths.iter_mut().find(|(path, _)| *path == from) {
            *heard = now.max(*heard);
        }
    }

    /// The DTLS handshake is complete.
    pub const fn handle_connected(&mut self) {
        self.connected = true;
    }

    /// ICE restarts with new credentials. The old ones are void from now on.
    pub fn handle_restart(&mut self, now: Instant, credentials: Credentials) {
        self.credentials = credentials;
        self.nominated = false;
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

    fn is_silent(&self, now: Instant, path: Path) -> bool {
        self.paths
            .iter()
            .find(|(known, _)| *known == path)
            .is_none_or(|(_, heard)| {
                now.saturating_duration_since(*heard) >= self.options.switch_after
            })
    }

    /// Notes that `from` was heard; forgets the one that has been silent longest when there are too many.
    fn remember(&mut self, now: Instant, from: Path) -> Option<Path> {
        if self.knows(from) {
            self.handle_traffic(now, from);
            return None;
        }
        let mut forgotten = None;
        if self.paths.len() >= PATHS_MAX {
            let oldest = self
                .paths
                .iter()
                .enumerate()
                .filter(|(_, (path, _))| Some(*path) != self.selected)
                .min_by_key(|(_, (_, heard))| *heard)
                .map(|(i, _)| i);
            forgotten = oldest.map(|i| self.paths.swap_remove(i).0);
        }
        self.paths.push((from, now));
        forgotten
    }
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
