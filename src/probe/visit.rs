//! One WHEP session of the probe: its connection, and what came over it.

use std::future::pending;
use std::time::{Duration, Instant};

use headwater_node::clock::Clock;
use reqwest::Url;
use tokio::sync::mpsc;

use super::observer::Seen;
use super::peer::{self, Event, Peer};
use super::tally::Tally;
use super::whep::Whep;
use super::{Failure, Transport};

/// How long a viewer goes without a keyframe before it asks for one, and before it asks again.
const KEYFRAME_PATIENCE: Duration = Duration::from_millis(500);

/// See the module. Must be left when done.
pub(super) struct Visit {
    pub(super) whep: Whep,
    pub(super) tally: Tally,
    peer: Peer,
    events: mpsc::Receiver<Event>,
    session: Option<Url>,
    invitations: mpsc::Receiver<Url>,
    keyframe_at: Instant,
    /// Where the server asked to go before this one was what is watched.
    pub(super) invited: Option<Url>,
    /// Why nothing comes any more.
    pub(super) lost: Option<&'static str>,
}

impl Visit {
    /// Sends the offer, and takes the answer.
    pub(super) async fn join(
        clock: Clock,
        whep: Whep,
        transport: Transport,
    ) -> Result<Self, Failure> {
        let seen = Seen::default();
        let mut tally = Tally::new(clock.clone(), seen.clone());
        let server = whep.endpoint().host_str().unwrap_or_default().to_owned();
        let (mut peer, events) = Peer::new(&clock, &server, transport, seen).await?;
        let answer = match whep.offer(peer.offer().await?).await {
            Ok(answer) => answer,
            Err(error) => {
                peer.close().await;
                return Err(error.into());
            }
        };
        tally.join.http_ms = Some(tally.since_start(clock.now()));
        tally.capture_time_id = peer::extension_id(&answer.sdp, peer::CAPTURE_TIME_URI);
        let accepted = peer.answer(answer.sdp).await;
        let (sender, invitations) = mpsc::channel(1);
        if let Some(url) = answer.events {
            whep.listen(url, sender);
        }
        let visit = Self {
            whep,
            tally,
            peer,
            events,
            session: answer.session,
            invitations,
            keyframe_at: clock.now() + KEYFRAME_PATIENCE,
            invited: None,
            lost: None,
        };
        match accepted {
            Ok(()) => Ok(visit),
            Err(error) => {
                visit.leave().await;
                Err(error.into())
            }
        }
    }

    /// Waits for something to happen, and counts it; yields the endpoint that the server asks to join instead. Cancel-safe.
    pub(super) async fn receive(&mut self) -> Option<Url> {
        let event = tokio::select! {
            event = self.events.recv(), if self.lost.is_none() => event,
            Some(url) = self.invitations.recv() => return Some(url),
            else => pending().await,
        };
        match event {
            Some(Event::IceConnected(at)) => {
                let since = self.tally.since_start(at);
                self.tally.join.ice_ms.get_or_insert(since);
            }
            Some(Event::Connected(at)) => {
                let since = self.tally.since_start(at);
                self.tally.join.dtls_ms.get_or_insert(since);
            }
            Some(Event::Packet { at, kind, packet }) => self.tally.handle_packet(at, kind, &packet),
            Some(Event::Lost(how)) => self.lost = Some(how),
            None => self.lost = Some("the peer connection ended"),
        }
        None
    }

    /// Time passed.
    pub(super) async fn handle_timeout(&mut self, now: Instant) {
        self.tally.handle_timeout(now);
        if !self.tally.wants_keyframe() {
            self.keyframe_at = now + KEYFRAME_PATIENCE;
        } else if now >= self.keyframe_at {
            self.peer.request_keyframe().await;
            self.keyframe_at = now + KEYFRAME_PATIENCE;
        }
    }

    /// Closes the connection, then the session.
    pub(super) async fn leave(self) {
        self.peer.close().await;
        if let Some(session) = self.session
            && let Err(error) = self.whep.delete(session).await
        {
            tracing::debug!(%error, "the session could not be deleted");
        }
    }
}
