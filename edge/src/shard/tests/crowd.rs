//! Many viewers of one stream in a steady state: what a packet costs a shard, the kernel apart.

#![allow(unreachable_pub, reason = "only the feature `testkit` makes it public")]

use super::*;

/// See the module. Needs an actix system around it.
pub struct Crowd {
    world: World,
    name: StreamName,
    /// Made by the replica elsewhere, so made before the measurement here.
    batches: VecDeque<Arc<PacketBatch>>,
}

impl std::fmt::Debug for Crowd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crowd")
            .field("viewers", &self.world.core.viewers())
            .finish_non_exhaustive()
    }
}

/// How long it takes until nothing grows any more: longer than what rings keep.
const WARM_UP_SECONDS: usize = 6;

const PICTURES_PER_SECOND: usize = 30;
const SOUNDS_PER_SECOND: usize = 50;

impl Crowd {
    /// So many viewers, each with a DTLS handshake behind it and the SRTP session that came of it.
    pub fn new(viewers: u16) -> Self {
        let mut world = World::with(Options {
            viewers_max: usize::from(viewers),
            ring: Limits::default(),
            playout_delay_ms: None,
            ice: ice::Options::default(),
        });
        for number in 0..u64::from(viewers) {
            let mut peer = world.join(number, vec![GCM]);
            world.check(&peer);
            world.exchange(&mut peer);
            assert!(world.connected(peer.id), "connected");
            world.wire.clear();
            world.events.clear();
        }
        let mut crowd = Self {
            world,
            name: name(),
            batches: VecDeque::new(),
        };
        crowd.prepare(WARM_UP_SECONDS);
        crowd.send();
        crowd
    }

    /// Makes pictures and sound of some seconds, in the order in which a stream has them.
    pub fn prepare(&mut self, seconds: usize) {
        let steps = seconds * PICTURES_PER_SECOND * SOUNDS_PER_SECOND;
        for step in 0..steps {
            if step.is_multiple_of(SOUNDS_PER_SECOND) {
                let picture = self.world.picture();
                self.batches.push_back(picture);
            }
            if step.is_multiple_of(PICTURES_PER_SECOND) {
                let sound = self.world.sound();
                self.batches.push_back(sound);
            }
        }
    }

    /// Sends what was prepared to everybody, as far as the outbox. Returns how many packets that were.
    pub fn send(&mut self) -> u64 {
        let world = &mut self.world;
        let mut packets = 0;
        while let Some(batch) = self.batches.pop_front() {
            world
                .core
                .handle_batch(Timing::new(world.now, None), &self.name, batch);
            let wall = world.wall();
            world
                .core
                .handle_timeout(world.now, wall, &mut world.outbox);
            while world
                .core
                .handle_job(world.now, world.wall(), &mut world.outbox)
            {
                if world.outbox.is_full() {
                    world.outbox.messages();
                    world.outbox.clear();
                }
            }
            world.outbox.messages();
            world.outbox.clear();
            let sent = world.core.take_sent();
            packets += sent.video_packets + sent.audio_packets;
            world.now += Duration::from_micros(12_500);
        }
        packets
    }
}
