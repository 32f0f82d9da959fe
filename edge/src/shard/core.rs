//! What a shard decides: which datagram is whose, who gets which packets, who is gone.
//!
//! Sans-IO: datagrams, packet batches, commands and `now` go in; datagrams to send collect in an [`Outbox`], everything else that is
//! to be done comes out as [`Event`]s from [`Core::poll_event`]. The shell (`run.rs`) owns the socket and the actors. Sending of media is
//! in `fanout.rs`, reading of datagrams in `inbound.rs`.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headwater_media::bwe::Estimate;
use headwater_media::codec::opus;
use headwater_media::ice::{self, Path};
use headwater_media::id::{StreamName, TrackId};
use headwater_media::rtp::ring::Limits;
use headwater_media::rtx::Resend;
use headwater_media::time::WallTime;
use headwater_media::track::{Configuration, StreamInfo};
use headwater_media::unit::MediaKind;
use rand::RngCore;
use rand::rngs::StdRng;
use slab::Slab;

use crate::abr::Receives;
use crate::registry::ReplicaHandle;
use crate::retransmit::Retransmitters;
use crate::shard::demand::Need;
use crate::shard::fanout::{Job, Sent};
use crate::shard::feedback::Sample;
use crate::shard::handshakes::Handshakes;
use crate::shard::outbox::Outbox;
use crate::shard::outgoing::Outgoing;
use crate::shard::paths::Transports;
use crate::shard::peer::{Peer, PeerParts};
use crate::shard::stream::{SharedInfo, SharedRings, Stream};
use crate::shard::switching;
use crate::shard::wheel::Wheel;
use crate::shard::{Credentials, EndReason, Gone, Join, JoinError, ViewerId, ViewerState};
use crate::transport::dtls::Identity;

/// Pictures haven't come for a while, or left at once when they did: within this.
const SILENCE: Duration = Duration::from_millis(500);

/// Bounds of a shard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Viewers (count).
    pub(crate) viewers_max: usize,
    /// What each track's ring keeps.
    pub(crate) ring: Limits,
    /// See [`crate::config::Config::playout_delay_ms`].
    pub(crate) playout_delay_ms: Option<[u16; 2]>,
    /// When viewers are gone.
    pub(crate) ice: ice::Options,
}

/// What the shell is to do.
#[derive(Debug)]
pub(crate) enum Event {
    /// A viewer was taken in.
    Joined {
        viewer: ViewerId,
        retransmitters: Retransmitters,
        rings: SharedRings,
        info: SharedInfo,
        receives: Receives,
    },
    /// A viewer's handshake is complete; media flows.
    Connected { viewer: ViewerId },
    /// A viewer misses packets.
    Nacked {
        viewer: ViewerId,
        kind: MediaKind,
        lost: Vec<u16>,
    },
    /// A viewer wants a keyframe.
    KeyframeAsked { viewer: ViewerId },
    /// A viewer said how it receives.
    Measured {
        viewer: ViewerId,
        sample: Sample,
        /// How far its pictures are behind the live edge, by its own pace.
        wait: Duration,
    },
    /// A viewer is sent another rendition from now on.
    Switched { viewer: ViewerId, track: TrackId },
    /// A stream has other renditions than before.
    RenditionsChanged { viewers: Vec<ViewerId> },
    /// The viewers of a stream need other tracks than before.
    Demanded { stream: StreamName, need: Need },
    /// A viewer is gone.
    Ended {
        viewer: ViewerId,
        stream: StreamName,
        reason: EndReason,
    },
    /// Nobody is at this end of a connection any more: close it once what is queued has been sent.
    Disused { address: SocketAddr },
    /// The first viewer of a stream is here: ask the replica for packets.
    StreamWanted {
        stream: StreamName,
        replica: ReplicaHandle,
    },
    /// The last viewer of a stream left.
    StreamUnwanted { stream: StreamName },
}

/// See the module.
pub(crate) struct Core {
    pub(super) options: Options,
    pub(super) identity: Arc<Identity>,
    random: StdRng,
    pub(super) peers: Slab<Peer>,
    by_id: HashMap<ViewerId, usize>,
    pub(super) by_ufrag: HashMap<Box<str>, usize>,
    pub(super) by_path: HashMap<Path, usize>,
    pub(super) transports: Transports,
    pub(super) streams: HashMap<StreamName, Stream>,
    /// Media to send: audio first, it is small and late audio is heard.
    pub(super) audio_jobs: VecDeque<Job>,
    pub(super) video_jobs: VecDeque<Job>,
    pub(super) handshakes: Handshakes,
    wheel: Wheel<(usize, ViewerId)>,
    due: Vec<(usize, ViewerId)>,
    pub(super) events: VecDeque<Event>,
    pub(super) sent: Sent,
}

impl Core {
    /// An empty shard.
    pub(crate) fn new(
        options: Options,
        identity: Arc<Identity>,
        random: StdRng,
        now: Instant,
    ) -> Self {
        Self {
            options,
            identity,
            random,
            peers: Slab::new(),
            by_id: HashMap::new(),
            by_ufrag: HashMap::new(),
            by_path: HashMap::new(),
            transports: Transports::default(),
            streams: HashMap::new(),
            audio_jobs: VecDeque::new(),
            video_jobs: VecDeque::new(),
            handshakes: Handshakes::default(),
            wheel: Wheel::new(now),
            due: Vec::new(),
            events: VecDeque::new(),
            sent: Sent::default(),
        }
    }

    /// What is to be done next; drain until `None` after each input.
    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.poll_timeout()
    }

    /// How many viewers there are.
    pub(crate) fn viewers(&self) -> usize {
        self.peers.len()
    }

    /// Nothing is kept of anybody: what each viewer's end must lead to.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
            && self.by_id.is_empty()
            && self.by_ufrag.is_empty()
            && self.by_path.is_empty()
            && self.streams.is_empty()
            && !self.has_jobs()
            && !self.has_handshakes()
    }

    /// Takes a viewer in. `info` is what its stream is now.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub(crate) fn handle_join(
        &mut self,
        now: Instant,
        join: Join,
        info: &Arc<StreamInfo>,
    ) -> Result<(), JoinError> {
        if self.peers.len() >= self.options.viewers_max {
            return Err(JoinError::Full);
        }
        if info.has_only_b_frames() && join.negotiated.video.is_some() {
            return Err(JoinError::Reordered);
        }
        let taken = self.by_ufrag.contains_key(join.local_ufrag.as_str())
            || self.by_id.contains_key(&join.viewer);
        if taken {
            return Err(JoinError::UfragTaken);
        }
        let Join {
            viewer,
            stream: name,
            replica,
            local_ufrag,
            local_pwd,
            negotiated,
            preference,
            counters,
            asked,
        } = join;
        let new_stream = !self.streams.contains_key(&name);
        let (ring, playout_delay) = (self.options.ring, self.options.playout_delay_ms);
        let stream = self
            .streams
            .entry(name.clone())
            .or_insert_with(|| Stream::new(Arc::clone(info), ring));

        let video = negotiated.video.as_ref().map(|media| {
            // Until its AbrActor has chosen, which is before it is connected.
            let first = stream.info().renditions().map(|(track, _)| track.id).next();
            let track = first.unwrap_or(TrackId::SOURCE_VIDEO);
            Outgoing::new(
                media,
                track,
                MediaKind::Video,
                playout_delay,
                self.random.next_u64(),
                now,
            )
        });
        let audio = negotiated.audio.as_ref().map(|media| {
            let track = track_of(&stream.info(), |configuration| {
                matches!(
                    configuration,
                    Configuration::Opus(opus::Configuration { .. })
                )
            });
            let track = track.unwrap_or(TrackId::OPUS);
            Outgoing::new(
                media,
                track,
                MediaKind::Audio,
                playout_delay,
                self.random.next_u64(),
                now,
            )
        });
        let retransmitters = Retransmitters {
            video: video.as_ref().and_then(Outgoing::retransmitter),
            audio: audio.as_ref().and_then(Outgoing::retransmitter),
        };
        let receives = Receives {
            video: video.as_ref().map(|video| video.track),
            probes: video
                .as_ref()
                .is_some_and(|video| video.numbered && video.retransmitter().is_some()),
            preference,
        };
        let tracks = [&video, &audio].map(|outgoing| outgoing.as_ref().map(|o| o.track));
        let (rings, info) = (stream.rings.clone(), Rc::clone(&stream.described));
        let agent = ice::Agent::new(
            self.options.ice,
            ice::Credentials {
                local_ufrag: local_ufrag.clone().into(),
                local_pwd: local_pwd.into(),
                remote_ufrag: negotiated.remote_ufrag.into(),
            },
            now,
        );
        let wanted = new_stream.then(|| replica.clone());
        let slot = self.peers.insert(Peer::new(
            PeerParts {
                id: viewer,
                stream: name.clone(),
                ice: agent,
                fingerprint: negotiated.remote_fingerprint,
                cname: negotiated.cname.into(),
                video,
                audio,
                counters,
                replica,
                asked,
            },
            now,
        ));
        stream.peers.push(slot);
        let [video, audio] = tracks;
        if let Some(track) = video {
            switching::enter(stream, slot, &mut self.peers[slot], track);
        }
        if let Some(track) = audio {
            stream.audiences.enter(track, slot);
        }
        self.by_id.insert(viewer, slot);
        self.by_ufrag.insert(local_ufrag.into(), slot);
        self.schedule(slot);
        if let Some(replica) = wanted {
            self.events.push_back(Event::StreamWanted {
                stream: name,
                replica,
            });
        }
        self.events.push_back(Event::Joined {
            viewer,
            retransmitters,
            rings,
            info,
            receives,
        });
        if let Some(track) = video {
            let tracks = [track].into_iter().collect();
            let adaptive = true;
            self.handle_need(viewer, Need { tracks, adaptive });
        }
        Ok(())
    }

    /// Replaces a viewer's ICE credentials.
    ///
    /// # Errors
    /// If there is no such viewer.
    pub(crate) fn handle_restart(
        &mut self,
        now: Instant,
        viewer: ViewerId,
        credentials: Credentials,
    ) -> Result<(), Gone> {
        let slot = *self.by_id.get(&viewer).ok_or(Gone)?;
        // Fragments are random, so this doesn't happen; if it did, another viewer must not pay for it.
        if self.by_ufrag.contains_key(credentials.local_ufrag.as_str()) {
            return Err(Gone);
        }
        let peer = &mut self.peers[slot];
        self.by_ufrag.remove(&peer.ice.credentials().local_ufrag);
        let local_ufrag: Box<str> = credentials.local_ufrag.into();
        peer.ice.handle_restart(
            now,
            ice::Credentials {
                local_ufrag: local_ufrag.clone(),
                local_pwd: credentials.local_pwd.into(),
                remote_ufrag: credentials.remote_ufrag.into(),
            },
        );
        self.by_ufrag.insert(local_ufrag, slot);
        Ok(())
    }

    /// Ends a viewer: BYE and close_notify go to the outbox, the rest is forgotten.
    pub(crate) fn handle_leave(
        &mut self,
        wall: WallTime,
        viewer: ViewerId,
        reason: EndReason,
        outbox: &mut Outbox,
    ) {
        if let Some(slot) = self.by_id.get(&viewer).copied() {
            self.end(wall, slot, reason, outbox);
        }
    }

    /// Timers are due: flights to send again, reports, viewers that are gone.
    pub(crate) fn handle_timeout(&mut self, now: Instant, wall: WallTime, outbox: &mut Outbox) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.poll_expired(now, &mut due);
        for (slot, viewer) in due.drain(..) {
            let current = self
                .peers
                .get_mut(slot)
                .filter(|peer| peer.id == viewer && peer.wake_at.is_some_and(|at| at <= now));
            let Some(peer) = current else {
                continue;
            };
            peer.wake_at = None;
            if peer.ice.gone(now) {
                let reason = if peer.session.is_some() {
                    EndReason::Expired
                } else {
                    EndReason::NeverConnected
                };
                self.end(wall, slot, reason, outbox);
                continue;
            }
            if let Some(path) = peer.ice.selected() {
                if peer.dtls.handle_timeout(now).is_err() {
                    self.end(wall, slot, EndReason::HandshakeFailed, outbox);
                    continue;
                }
                peer.flush_dtls(path, outbox);
            }
            if peer.next_report.is_some_and(|at| at <= now)
                && let Some(stream) = self.streams.get(&peer.stream)
            {
                peer.report(now, wall, &stream.timeline, outbox);
            }
            self.pad(now, slot, outbox);
            let peer = &mut self.peers[slot];
            if peer.catch_up_at.is_some_and(|at| at <= now) {
                peer.catch_up_at = None;
                self.video_jobs.push_back(Job::CatchUp { viewer });
            }
            self.schedule(slot);
        }
        self.due = due;
    }

    /// Packets that a retransmit actor decided to send again.
    pub(crate) fn handle_resend(
        &mut self,
        now: Instant,
        viewer: ViewerId,
        kind: MediaKind,
        packets: &[Resend],
        outbox: &mut Outbox,
    ) -> u64 {
        let Some(slot) = self.by_id.get(&viewer) else {
            return 0;
        };
        let peer = &mut self.peers[*slot];
        let Some(stream) = self.streams.get(&peer.stream) else {
            return 0;
        };
        peer.resend(now, kind, packets, &stream.rings.borrow(), outbox)
    }

    /// A viewer asks for a keyframe: it is to get the newest GOP again. Returns how it was answered.
    ///
    /// Players ask, too, when nothing has come for a while (libwebrtc after 3 s). Who was sent all there is as it came gets no more of it:
    /// older pictures again would tell it that time goes back, and what is missed meanwhile is shown seconds late.
    pub(crate) fn handle_keyframe(&mut self, now: Instant, viewer: ViewerId) -> &'static str {
        if self.lacks_nothing(now, viewer) {
            "nothing_new"
        } else if self.start_video(now, viewer) {
            "resent"
        } else {
            "no_gop"
        }
    }

    fn lacks_nothing(&self, now: Instant, viewer: ViewerId) -> bool {
        let newest = || {
            let peer = self.peers.get(*self.by_id.get(&viewer)?)?;
            let video = peer.video.as_ref()?;
            let stream = self.streams.get(&peer.stream)?;
            let rings = stream.rings.borrow();
            let ring = rings.get(video.track)?;
            let has_all = video.position >= ring.next_index();
            Some((ring.newest_came()?, video.last_left()?)).filter(|_| has_all)
        };
        newest().is_some_and(|(came, left)| {
            left.saturating_duration_since(came) < SILENCE
                && now.saturating_duration_since(came) > SILENCE
        })
    }

    /// What a viewer's link carries is known anew.
    pub(crate) fn handle_estimate(&mut self, now: Instant, viewer: ViewerId, estimate: Estimate) {
        if let Some(slot) = self.slot(viewer) {
            self.peers[slot].pacer.handle_estimate(now, estimate);
        }
    }

    /// A viewer's catching up goes on at `at`.
    pub(super) fn pause_catch_up(&mut self, viewer: ViewerId, at: Instant) {
        if let Some(slot) = self.slot(viewer) {
            self.peers[slot].catch_up_at = Some(at);
            self.schedule(slot);
        }
    }

    /// The slot of a viewer.
    pub(super) fn slot(&self, viewer: ViewerId) -> Option<usize> {
        self.by_id.get(&viewer).copied()
    }

    /// Ends a viewer and forgets everything about it.
    pub(super) fn end(
        &mut self,
        wall: WallTime,
        slot: usize,
        reason: EndReason,
        outbox: &mut Outbox,
    ) {
        let Some(mut peer) = self.peers.try_remove(slot) else {
            return;
        };
        self.by_id.remove(&peer.id);
        self.by_ufrag.remove(&peer.ice.credentials().local_ufrag);
        self.forget_paths(slot, peer.ice.paths());
        self.transports.note(peer.ice.selected(), None);
        let mut last = false;
        if let Some(stream) = self.streams.get_mut(&peer.stream) {
            // Who went already got his goodbye; to the others it is the end of media and of consent.
            if !matches!(reason, EndReason::Closed | EndReason::Expired) {
                peer.say_goodbye(wall, &stream.timeline, outbox);
            }
            if let Some(place) = stream.peers.iter().position(|other| *other == slot) {
                stream.peers.swap_remove(place);
            }
            let audio = peer.audio.as_ref().map(|audio| audio.track);
            for track in [peer.audience, audio].into_iter().flatten() {
                stream.audiences.leave(track, slot);
            }
            stream.switching.retain(|other| *other != slot);
            last = stream.peers.is_empty();
            if stream.demand.replace(&peer.need, &Need::default()) && !last {
                self.events.push_back(Event::Demanded {
                    stream: peer.stream.clone(),
                    need: stream.demand.need(),
                });
            }
        }
        peer.dtls.close();
        if let Some(path) = peer.ice.selected() {
            peer.flush_dtls(path, outbox);
        }
        peer.set_state(ViewerState::Ended);
        if last {
            self.streams.remove(&peer.stream);
            self.events.push_back(Event::StreamUnwanted {
                stream: peer.stream.clone(),
            });
        }
        self.events.push_back(Event::Ended {
            viewer: peer.id,
            stream: peer.stream.clone(),
            reason,
        });
    }

    /// Puts a viewer on the wheel, unless it is called early enough already.
    pub(super) fn schedule(&mut self, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let at = peer.poll_timeout();
        if peer.wake_at.is_none_or(|wake| at < wake) {
            peer.wake_at = Some(at);
            self.wheel.schedule(at, (slot, peer.id));
        }
    }
}

/// The first track that `fits`.
fn track_of(info: &StreamInfo, fits: impl Fn(&Configuration) -> bool) -> Option<TrackId> {
    info.tracks
        .iter()
        .find(|track| fits(&track.configuration))
        .map(|track| track.id)
}
