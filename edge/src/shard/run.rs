//! A shard's thread: the socket, the clock and the actors around the core.
//!
//! One loop on the shard's arbiter. Each turn takes in what is there (control, actors' commands, datagrams, timers, batches), then sends media
//! for at most [`SLICE`], goes on with handshakes, and lets the arbiter's actors and timers have their turn. It sleeps only when there is
//! nothing to do.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use headwater_media::ice::Path;
use headwater_media::id::StreamName;
use headwater_media::time::WallTime;
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::{mpsc, oneshot};

use crate::abr::{Choose, Measured, RenditionsChanged, Switched};
use crate::metrics::{
    KEYFRAMES_RESENT, MAILBOX_FULL, TCP_CONNECTIONS, VIEWERS_ENDED, VIEWERS_JOINED,
};
use crate::registry::ReplicaHandle;
use crate::retransmit::Nacks;
use crate::shard::connection::{Arrival, Claimed, Connections};
use crate::shard::core::{Core, Event};
use crate::shard::figures::Figures;
use crate::shard::load::{Board, Meter};
use crate::shard::outbox::Outbox;
use crate::shard::socket::Socket;
use crate::shard::{
    Command, Counters, Credentials, EndReason, Ended, Gone, Join, JoinError, Layers, Media,
    ViewerId, Waiting,
};
use crate::viewer::{Connected, KeyframeAsked, Links, Over, ViewerActor};

/// How long media is sent before the socket and the actors are looked at again.
const SLICE: Duration = Duration::from_millis(1);

/// How long handshakes are gone on with in a turn while no media waits. While some does, a turn takes one step: a fifth of the time, which
/// makes some two hundred joins a second.
const HANDSHAKE_SLICE: Duration = Duration::from_millis(1);

/// Messages of one kind taken in a turn (count), and reads of 32 datagrams.
const TURN_MESSAGES: usize = 256;
const TURN_READS: usize = 4;

/// What other threads ask of a shard. The channel has no bound of its own, its senders have: joins and restarts hold a [`Waiting`] until they are
/// taken, and a session is left twice at most.
#[derive(Debug)]
pub(super) enum Control {
    Join {
        join: Box<Join>,
        waiting: Waiting,
        reply: oneshot::Sender<Result<(), JoinError>>,
    },
    Restart {
        viewer: ViewerId,
        credentials: Credentials,
        waiting: Waiting,
        reply: oneshot::Sender<Result<(), Gone>>,
    },
    Leave {
        viewer: ViewerId,
        reason: EndReason,
    },
    Choose {
        viewer: ViewerId,
        layers: Layers,
        waiting: Waiting,
    },
    /// End all viewers, then the shard.
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// Everything a shard's thread owns.
pub(super) struct Shell {
    pub(super) number: usize,
    pub(super) core: Core,
    pub(super) socket: Socket,
    pub(super) connections: Connections,
    pub(super) clock: Clock,
    pub(super) control: mpsc::UnboundedReceiver<Control>,
    pub(super) media: mpsc::Receiver<Media>,
    /// For replicas.
    pub(super) media_sender: mpsc::Sender<Media>,
    pub(super) commands: mpsc::Receiver<Command>,
    /// For actors.
    pub(super) command_sender: mpsc::Sender<Command>,
    pub(super) viewers: Arc<AtomicUsize>,
    pub(super) meter: Meter,
    pub(super) board: Arc<Board>,
    pub(super) ended: Ended,
}

struct State {
    /// The actors of each viewer.
    viewers: HashMap<ViewerId, Links>,
    /// Counters of viewers that are about to be started.
    joining: HashMap<ViewerId, Arc<Counters>>,
    replicas: HashMap<StreamName, ReplicaHandle>,
    figures: Figures,
}

impl Shell {
    /// Runs until told to stop.
    pub(super) async fn run(mut self) {
        let mut state = State {
            viewers: HashMap::new(),
            joining: HashMap::new(),
            replicas: HashMap::new(),
            figures: Figures::new(self.number),
        };
        let mut outbox = Outbox::default();
        let stopped = loop {
            if let Some(stopped) = self.take_in(&mut state, &mut outbox) {
                break stopped;
            }
            self.pump(&mut state);
            let more = self.send_slice(&mut outbox).await;
            let more = self.shake_hands(more, &mut outbox) || more;
            self.pump(&mut state);
            self.send(&mut outbox).await;
            self.publish(&mut state, outbox.wire_bytes());
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            // Nothing to do: sleep until there is. What a branch receives is handled here, the rest by the next turn.
            let reading = self.meter.poll_timeout();
            let wake = self
                .core
                .poll_timeout()
                .map_or(reading, |at| at.min(reading));
            let idle = tokio::time::sleep_until(wake.into());
            self.meter.handle_sleep(self.clock.now());
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => {
                        if let Some(stopped) = self.on_control(control, &mut state, &mut outbox) {
                            break Some(stopped);
                        }
                    }
                    None => break None,
                },
                Some(media) = self.media.recv() => self.on_media(media, &mut outbox),
                Some(command) = self.commands.recv() => self.on_command(command, &state, &mut outbox),
                arrival = self.connections.receive() => self.on_arrival(arrival, &mut outbox),
                _ = self.socket.readable() => {}
                () = idle => {}
            }
            self.meter.handle_wake(self.clock.now());
        };
        self.pump(&mut state);
        self.send(&mut outbox).await;
        self.publish(&mut state, outbox.wire_bytes());
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    }

    /// Takes in what is there without waiting. Yields the stop request's reply, if there was one.
    fn take_in(
        &mut self,
        state: &mut State,
        outbox: &mut Outbox,
    ) -> Option<Option<oneshot::Sender<()>>> {
        // A join takes as long as a chunk of fan-out does, so here it is the time that counts.
        let end = self.clock.now() + SLICE;
        for _ in 0..TURN_MESSAGES {
            let Ok(control) = self.control.try_recv() else {
                break;
            };
            if let Some(stopped) = self.on_control(control, state, outbox) {
                return Some(Some(stopped));
            }
            if self.clock.now() >= end {
                break;
            }
        }
        for _ in 0..TURN_MESSAGES {
            let Ok(command) = self.commands.try_recv() else {
                break;
            };
            self.on_command(command, state, outbox);
        }
        let (now, wall) = self.time();
        for _ in 0..TURN_READS {
            let core = &mut self.core;
            let received = self.socket.receive(|from, datagram| {
                core.handle_datagram(now, wall, Path::udp(from), datagram, outbox);
            });
            if received == 0 || self.clock.now() >= now + SLICE {
                break;
            }
        }
        for _ in 0..TURN_MESSAGES {
            let Some(arrival) = self.connections.try_receive() else {
                break;
            };
            self.on_arrival(arrival, outbox);
        }
        self.core.handle_timeout(now, wall, outbox);
        for _ in 0..TURN_MESSAGES {
            let Ok(media) = self.media.try_recv() else {
                break;
            };
            self.on_media(media, outbox);
        }
        None
    }

    /// Sends what the outbox has. Connections never wait, so they go first.
    async fn send(&mut self, outbox: &mut Outbox) {
        for address in self.connections.send(outbox) {
            // A check may have come on it since it fell out of use.
            let now = self.clock.now();
            self.core.handle_disconnected(now, Path::tcp(address));
        }
        self.socket.send(outbox).await;
    }

    /// Sends media for a slice. Returns whether there is more.
    async fn send_slice(&mut self, outbox: &mut Outbox) -> bool {
        let (now, wall) = self.time();
        let end = now + SLICE;
        while self.core.has_jobs() {
            let more = self.core.handle_job(now, wall, outbox);
            if outbox.is_full() {
                self.send(outbox).await;
            }
            if !more || self.clock.now() >= end {
                return more;
            }
        }
        false
    }

    /// Goes on with handshakes in the time that media leaves. Returns whether there is more.
    fn shake_hands(&mut self, media: bool, outbox: &mut Outbox) -> bool {
        if !self.core.has_handshakes() {
            return false;
        }
        let end = self.clock.now() + HANDSHAKE_SLICE;
        loop {
            let (now, wall) = self.time();
            self.core.handle_handshake(now, wall, outbox);
            if !self.core.has_handshakes() {
                return false;
            }
            if media || self.clock.now() >= end {
                return true;
            }
        }
    }

    fn on_control(
        &mut self,
        control: Control,
        state: &mut State,
        outbox: &mut Outbox,
    ) -> Option<oneshot::Sender<()>> {
        let (now, wall) = self.time();
        match control {
            Control::Join {
                join,
                waiting,
                reply,
            } => {
                if reply.is_closed() {
                    // Whoever asked has given up.
                    return None;
                }
                let viewer = join.viewer;
                let counters = Arc::clone(&join.counters);
                // What the stream is now: it may have changed since the offer was answered for.
                let result = match join.replica.info() {
                    Some(info) => self.core.handle_join(now, *join, &info),
                    None => Err(JoinError::StreamGone),
                };
                if result.is_ok() {
                    state.joining.insert(viewer, counters);
                    counter!(VIEWERS_JOINED).increment(1);
                    self.viewers.store(self.core.viewers(), Ordering::Relaxed);
                }
                drop(waiting);
                if reply.send(result).is_err() && result.is_ok() {
                    // Nobody will ever connect.
                    let reason = EndReason::NeverConnected;
                    self.core.handle_leave(wall, viewer, reason, outbox);
                }
                self.pump(state);
            }
            Control::Restart {
                viewer,
                credentials,
                waiting,
                reply,
            } => {
                drop(waiting);
                // Whoever was told that the running one goes on must find it so.
                if !reply.is_closed() {
                    let _ = reply.send(self.core.handle_restart(now, viewer, credentials));
                }
            }
            Control::Leave { viewer, reason } => {
                self.core.handle_leave(wall, viewer, reason, outbox);
            }
            Control::Choose {
                viewer,
                layers,
                waiting,
            } => {
                drop(waiting);
                if let Some(links) = state.viewers.get(&viewer) {
                    links.choose.post(Choose { layers });
                }
            }
            Control::Stop { reply } => {
                let viewers: Vec<ViewerId> = state.viewers.keys().copied().collect();
                for viewer in viewers {
                    let reason = EndReason::Kicked;
                    self.core.handle_leave(wall, viewer, reason, outbox);
                }
                return Some(reply);
            }
        }
        None
    }

    fn on_arrival(&mut self, arrival: Arrival, outbox: &mut Outbox) {
        let (now, wall) = self.time();
        match arrival {
            Arrival::Claimed(claimed) => self.on_claimed(claimed, outbox),
            Arrival::Frame { from, mut frame } => {
                let path = Path::tcp(from);
                if !self.connections.is_open(from) {
                    // It is being closed, and what is sent there is lost.
                    return;
                }
                self.core
                    .handle_datagram(now, wall, path, &mut frame, outbox);
            }
            Arrival::Closed { from, id } => {
                if self.connections.forget(from, id, outbox) {
                    self.core.handle_disconnected(now, Path::tcp(from));
                }
            }
        }
    }

    /// A connection is a viewer's if its first frame is a check of that viewer; else it is closed.
    fn on_claimed(&mut self, claimed: Claimed, outbox: &mut Outbox) {
        let (now, wall) = self.time();
        let Claimed {
            stream,
            from,
            mut first,
            frames,
        } = claimed;
        let outcome = match self.connections.open(stream, from, outbox) {
            Ok(opened) => {
                let path = Path::tcp(from);
                self.core
                    .handle_datagram(now, wall, path, &mut first, outbox);
                if self.core.knows(path) {
                    self.connections.keep(opened, frames);
                    "taken"
                } else {
                    opened.close(outbox);
                    "refused"
                }
            }
            Err(error) => {
                tracing::debug!(%from, %error, "a connection can't be taken over");
                "failed"
            }
        };
        counter!(TCP_CONNECTIONS, "outcome" => outcome).increment(1);
    }

    fn on_media(&mut self, media: Media, outbox: &mut Outbox) {
        let (now, wall) = self.time();
        match media {
            Media::Batch {
                stream,
                batch,
                timing,
            } => self.core.handle_batch(timing, &stream, batch),
            Media::Backlog {
                stream,
                info,
                batches,
            } => {
                self.core.handle_info(&stream, &info);
                self.core.handle_backlog(now, &stream, &batches);
            }
            Media::Info { stream, info } => {
                self.core.handle_info(&stream, &info);
            }
            Media::Ended { stream } => {
                self.core.handle_stream_ended(wall, &stream, outbox);
            }
        }
    }

    fn on_command(&mut self, command: Command, state: &State, outbox: &mut Outbox) {
        let now = self.clock.now();
        match command {
            Command::Resend {
                viewer,
                kind,
                packets,
            } => {
                let count = self.core.handle_resend(now, viewer, kind, &packets, outbox);
                state.figures.count_resent(count);
            }
            Command::Keyframe { viewer } => {
                let answer = self.core.handle_keyframe(now, viewer);
                counter!(KEYFRAMES_RESENT, "answer" => answer).increment(1);
            }
            Command::Estimate { viewer, estimate } => {
                self.core.handle_estimate(now, viewer, estimate);
            }
            Command::Select { viewer, selection } => {
                self.core.handle_select(now, viewer, selection);
            }
            Command::Probe { viewer, request } => self.core.handle_probe(now, viewer, request),
            Command::Need { viewer, need } => self.core.handle_need(viewer, need),
            Command::KeyframeAsked { viewer } => {
                if let Some(links) = state.viewers.get(&viewer) {
                    refused(
                        links.keyframe.try_send(KeyframeAsked { by_viewer: false }),
                        "viewer",
                    );
                }
            }
        }
    }

    /// Performs what the core wants done.
    fn pump(&mut self, state: &mut State) {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Joined {
                    viewer,
                    retransmitters,
                    rings,
                    info,
                    receives,
                } => {
                    let Some(counters) = state.joining.remove(&viewer) else {
                        continue;
                    };
                    let links = ViewerActor::launch(
                        viewer,
                        retransmitters,
                        (rings, info),
                        receives,
                        counters,
                        &self.clock,
                        &self.command_sender,
                    );
                    state.viewers.insert(viewer, links);
                }
                Event::Connected { viewer } => {
                    if let Some(links) = state.viewers.get(&viewer) {
                        links.connected.post(Connected);
                    }
                }
                Event::Nacked { viewer, kind, lost } => {
                    if let Some(links) = state.viewers.get(&viewer) {
                        refused(links.nacks.try_send(Nacks { kind, lost }), "retransmit");
                    }
                }
                Event::KeyframeAsked { viewer } => {
                    if let Some(links) = state.viewers.get(&viewer) {
                        refused(
                            links.keyframe.try_send(KeyframeAsked { by_viewer: true }),
                            "viewer",
                        );
                    }
                }
                Event::Measured {
                    viewer,
                    sample,
                    wait,
                } => {
                    if let Some(links) = state.viewers.get(&viewer) {
                        let measured = Measured { sample, wait };
                        refused(links.measured.try_send(measured), "abr");
                    }
                }
                Event::Switched { viewer, track } => {
                    if let Some(links) = state.viewers.get(&viewer) {
                        links.switched.post(Switched { track });
                    }
                }
                Event::RenditionsChanged { viewers } => {
                    for viewer in viewers {
                        if let Some(links) = state.viewers.get(&viewer) {
                            links.renditions.post(RenditionsChanged);
                        }
                    }
                }
                Event::Demanded { stream, need } => {
                    if let Some(replica) = state.replicas.get(&stream) {
                        replica.demand(self.number, need);
                    }
                }
                Event::Ended {
                    viewer,
                    stream,
                    reason,
                } => {
                    state.joining.remove(&viewer);
                    if let Some(gone) = state.viewers.remove(&viewer) {
                        gone.over.post(Over { reason });
                    }
                    counter!(VIEWERS_ENDED, "reason" => reason.as_str()).increment(1);
                    tracing::debug!(%viewer, %stream, reason = reason.as_str(), "viewer gone");
                    (self.ended)(viewer, reason);
                }
                Event::Disused { address } => self.connections.disuse(address),
                Event::StreamWanted { stream, replica } => {
                    replica.attach(self.number, self.media_sender.clone());
                    state.replicas.insert(stream, replica);
                }
                Event::StreamUnwanted { stream } => {
                    if let Some(replica) = state.replicas.remove(&stream) {
                        replica.detach(self.number);
                    }
                }
            }
        }
    }

    /// Shows what happened to whoever looks from outside.
    fn publish(&mut self, state: &mut State, sent_bytes: u64) {
        let viewers = self.core.viewers();
        self.viewers.store(viewers, Ordering::Relaxed);
        let sent = self.core.take_sent();
        let now = self.clock.now();
        state.figures.show_transports(self.core.transports());
        state.figures.count_sent(now, &sent);
        for timing in &sent.finished {
            self.meter
                .handle_fan_out(now.saturating_duration_since(timing.since));
        }
        if now < self.meter.poll_timeout() {
            return;
        }
        let waiting = self.core.oldest_batch();
        let waiting = waiting.map(|since| now.saturating_duration_since(since));
        if let Some(reading) = self.meter.poll_reading(now, viewers, waiting, sent_bytes) {
            self.board.write(now, &reading);
            let load = self.board.load(now, viewers).ratio;
            state.figures.show_reading(&reading, load, viewers);
        }
    }

    fn time(&self) -> (std::time::Instant, WallTime) {
        let now = self.clock.now();
        (now, self.clock.wall_at(now))
    }
}

fn refused(result: Result<(), headwater_node::actor::Undelivered>, link: &'static str) {
    if result.is_err() {
        counter!(MAILBOX_FULL, "link" => link).increment(1);
    }
}
