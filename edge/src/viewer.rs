//! ViewerActor: one viewer's life, at control rate.
//!
//! Owns the decision when a viewer's wish for a keyframe is granted, and its two children, [`AbrActor`] and [`RetransmitActor`]. Its parent is the
//! shard, on whose arbiter it lives; it ends with [`Over`]. Media never passes through it: the shard's fan-out sends from the viewer's hot
//! state. When its mailbox is full, messages are dropped and counted; a viewer repeats its wishes.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, Addr, Context, Handler, Message};
use headwater_node::actor::Sender;
use headwater_node::clock::Clock;
use metrics::counter;
use tokio::sync::mpsc;

use crate::abr::{AbrActor, Choose, Measured, Receives, RenditionsChanged, Switched, Watched};
use crate::metrics::{KEYFRAMES_RESENT, MAILBOX_FULL};
use crate::retransmit::{Nacks, RetransmitActor, Retransmitters};
use crate::round_trip::RoundTrip;
use crate::shard::stream::{SharedInfo, SharedRings};
use crate::shard::{Command, Counters, EndReason, ViewerId};

/// Messages waiting (count).
const MAILBOX: usize = 32;

/// The handshake is complete, media flows.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Connected;

/// A PLI or FIR came, or packets are lost for good.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct KeyframeAsked {
    /// The viewer asked; else it was our retransmission that gave up.
    pub(crate) by_viewer: bool,
}

/// The viewer is gone from the shard.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Over {
    pub(crate) reason: EndReason,
}

/// What a shard talks to a viewer's actors by.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) connected: Sender<Connected>,
    pub(crate) keyframe: Sender<KeyframeAsked>,
    pub(crate) over: Sender<Over>,
    pub(crate) measured: Sender<Measured>,
    pub(crate) switched: Sender<Switched>,
    pub(crate) renditions: Sender<RenditionsChanged>,
    pub(crate) choose: Sender<Choose>,
    pub(crate) nacks: Sender<Nacks>,
}

/// See the module.
pub(crate) struct ViewerActor {
    viewer: ViewerId,
    clock: Clock,
    counters: Arc<Counters>,
    commands: mpsc::Sender<Command>,
    keyframes: KeyframeGate,
    joined: Instant,
    /// They live as long as we do.
    _children: (Addr<AbrActor>, Addr<RetransmitActor>),
}

impl ViewerActor {
    /// Starts a viewer's actors on this thread's arbiter.
    pub(crate) fn launch(
        viewer: ViewerId,
        retransmitters: Retransmitters,
        (rings, info): (SharedRings, SharedInfo),
        receives: Receives,
        counters: Arc<Counters>,
        clock: &Clock,
        commands: &mpsc::Sender<Command>,
    ) -> Links {
        let round_trip = RoundTrip::new(Arc::clone(&counters), clock.clone());
        let abr = AbrActor::new(
            Watched {
                viewer,
                rings: Rc::clone(&rings),
                info,
                receives,
            },
            round_trip.clone(),
            Arc::clone(&counters),
            clock.clone(),
            commands.clone(),
        )
        .start();
        let retransmit = RetransmitActor {
            viewer,
            cores: retransmitters,
            rings,
            round_trip,
            counters: Arc::clone(&counters),
            clock: clock.clone(),
            commands: commands.clone(),
        }
        .start();
        let nacks = Sender::new(&retransmit);
        let (measured, switched) = (Sender::new(&abr), Sender::new(&abr));
        let (renditions, choose) = (Sender::new(&abr), Sender::new(&abr));
        let now = clock.now();
        let address = Self::create(|_| Self {
            viewer,
            clock: clock.clone(),
            counters,
            commands: commands.clone(),
            keyframes: KeyframeGate::default(),
            joined: now,
            _children: (abr, retransmit),
        });
        Links {
            connected: Sender::new(&address),
            keyframe: Sender::new(&address),
            over: Sender::new(&address),
            measured,
            switched,
            renditions,
            choose,
            nacks,
        }
    }
}

impl Actor for ViewerActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

impl Handler<Connected> for ViewerActor {
    type Result = ();

    fn handle(&mut self, _: Connected, _: &mut Context<Self>) {
        let now = self.clock.now();
        // What it is sent at first begins with a keyframe; decoders ask before it has arrived.
        self.keyframes.handle_granted(now);
        let joining = now.saturating_duration_since(self.joined);
        tracing::info!(viewer = %self.viewer, after_ms = joining.as_millis(), "viewer connected");
    }
}

impl Handler<KeyframeAsked> for ViewerActor {
    type Result = ();

    fn handle(&mut self, message: KeyframeAsked, _: &mut Context<Self>) {
        if message.by_viewer {
            self.counters.plis.fetch_add(1, Ordering::Relaxed);
        }
        let now = self.clock.now();
        if self.keyframes.handle_request(now) {
            let command = Command::Keyframe {
                viewer: self.viewer,
            };
            if self.commands.try_send(command).is_err() {
                counter!(MAILBOX_FULL, "link" => "commands").increment(1);
            }
        } else {
            counter!(KEYFRAMES_RESENT, "answer" => "too_soon").increment(1);
        }
    }
}

impl Handler<Over> for ViewerActor {
    type Result = ();

    fn handle(&mut self, message: Over, ctx: &mut Context<Self>) {
        let counters = &self.counters;
        let now = self.clock.now();
        tracing::info!(
            viewer = %self.viewer,
            reason = message.reason.as_str(),
            seconds = now.saturating_duration_since(self.joined).as_secs(),
            packets = counters.packets.load(Ordering::Relaxed),
            resent = counters.resent.load(Ordering::Relaxed),
            plis = counters.plis.load(Ordering::Relaxed),
            "viewer ended"
        );
        ctx.stop();
    }
}

/// How often a viewer gets the newest GOP again: at once, then ever more seldom while it keeps asking, since each answer repeats up to a
/// GOP of bytes on a link that has just lost some.
#[derive(Debug)]
struct KeyframeGate {
    granted: Option<Instant>,
    interval: Duration,
}

impl Default for KeyframeGate {
    fn default() -> Self {
        Self {
            granted: None,
            interval: Self::INTERVAL_MIN,
        }
    }
}

impl KeyframeGate {
    /// Decoders repeat a PLI every 200 ms or so until a keyframe is decoded; one round trip and a keyframe's bytes take longer.
    const INTERVAL_MIN: Duration = Duration::from_millis(500);
    const INTERVAL_MAX: Duration = Duration::from_secs(8);

    fn handle_granted(&mut self, now: Instant) {
        self.granted = Some(now);
    }

    /// True: grant it.
    fn handle_request(&mut self, now: Instant) -> bool {
        let Some(granted) = self.granted else {
            self.granted = Some(now);
            return true;
        };
        let since = now.saturating_duration_since(granted);
        if since < self.interval {
            return false;
        }
        self.interval = if since < self.interval * 4 {
            (self.interval * 2).min(Self::INTERVAL_MAX)
        } else {
            Self::INTERVAL_MIN
        };
        self.granted = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use headwater_media::abr::Choice;
    use headwater_media::id::{Bitrate, Epoch, TrackId};
    use headwater_media::rtp::ring::Limits;
    use headwater_media::testkit;
    use headwater_media::track::{Configuration, Track};

    use super::*;
    use crate::shard::Preference;
    use crate::shard::stream::Stream;

    #[test]
    fn keyframes_are_granted_at_once_and_ever_more_seldom() {
        #[expect(clippy::disallowed_methods, reason = "virtual time starts somewhere")]
        let now = Instant::now();
        let mut gate = KeyframeGate::default();
        let granted: Vec<u64> = (0..20_000)
            .step_by(200)
            .filter(|at| gate.handle_request(now + Duration::from_millis(*at)))
            .collect();
        assert_eq!(granted, [0, 600, 1600, 3600, 7600, 15_600]);
        // A quiet minute later it is as at first.
        assert!(gate.handle_request(now + Duration::from_secs(80)));
        assert!(gate.handle_request(now + Duration::from_millis(80_600)));
    }

    #[actix_rt::test]
    async fn whoever_keeps_asking_gets_one_gop_for_it() {
        let (commands, mut asked) = mpsc::channel(64);
        let info = testkit::stream_info(1, Vec::new());
        let counters = Arc::new(Counters::default());
        let stream = Stream::new(Arc::new(info), Limits::default());
        let links = ViewerActor::launch(
            ViewerId(1),
            Retransmitters::default(),
            (stream.rings, stream.described),
            Receives {
                video: None,
                probes: false,
                preference: Preference::default(),
            },
            Arc::clone(&counters),
            &Clock::system(),
            &commands,
        );
        for by_viewer in [true, false, true, true, false, true] {
            links
                .keyframe
                .try_send(KeyframeAsked { by_viewer })
                .unwrap();
        }
        links.over.post(Over {
            reason: EndReason::Left,
        });
        drop((links, commands));
        // They end with their last answer.
        let mut answers = Vec::new();
        while let Some(command) = asked.recv().await {
            answers.push(command);
        }
        assert!(
            matches!(
                answers[..],
                [Command::Keyframe {
                    viewer: ViewerId(1)
                }]
            ),
            "{answers:?}"
        );
        assert_eq!(counters.plis.load(Ordering::Relaxed), 4);
    }

    #[actix_rt::test]
    async fn a_rendition_that_was_gone_for_a_moment_is_selected_again() {
        let (commands, mut asked) = mpsc::channel(64);
        let bare = testkit::stream_info(1, Vec::new());
        let mut whole = bare.clone();
        let configuration = Configuration::H264(testkit::h264_configuration());
        whole.tracks.push(Track {
            bitrate: Bitrate(2_000_000),
            ..testkit::track(TrackId::SOURCE_VIDEO, configuration)
        });
        let stream = Stream::new(Arc::new(whole.clone()), Limits::default());
        let links = ViewerActor::launch(
            ViewerId(1),
            Retransmitters::default(),
            (stream.rings, Rc::clone(&stream.described)),
            Receives {
                video: Some(TrackId::SOURCE_VIDEO),
                probes: false,
                preference: Preference::default(),
            },
            Arc::new(Counters::default()),
            &Clock::system(),
            &commands,
        );
        let mut selected = async || loop {
            if let Command::Select { selection, .. } = asked.recv().await.unwrap() {
                break selection.target;
            }
        };
        let source = Choice::Video(TrackId::SOURCE_VIDEO);
        assert_eq!(selected().await, source);
        // Another publisher has the stream. That, and what it sends, the shard hears of before this viewer's turn comes.
        whole.epoch = Epoch(2);
        for info in [bare, whole] {
            stream.described.replace(Arc::new(info));
            links.renditions.post(RenditionsChanged);
        }
        assert_eq!(selected().await, source);
    }
}
