//! What replicas say of a shard's streams: what they are, what came before, that they are over.

use std::sync::Arc;
use std::time::Instant;

use headwater_media::id::StreamName;
use headwater_media::rtp::batch::PacketBatch;
use headwater_media::time::WallTime;
use headwater_media::track::StreamInfo;

use crate::shard::core::{Core, Event};
use crate::shard::outbox::Outbox;
use crate::shard::peer::Peer;
use crate::shard::{EndReason, ViewerId};

impl Core {
    /// Ends all viewers of a stream.
    pub(crate) fn handle_stream_ended(
        &mut self,
        wall: WallTime,
        name: &StreamName,
        outbox: &mut Outbox,
    ) {
        let slots = self
            .streams
            .get(name)
            .map(|stream| stream.peers.clone())
            .unwrap_or_default();
        for slot in slots {
            self.end(wall, slot, EndReason::StreamEnded, outbox);
        }
    }

    /// What a stream is has changed. Those whose rendition is gone, or has B-frames by now, get another one.
    pub(crate) fn handle_info(&mut self, name: &StreamName, info: &Arc<StreamInfo>) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        let before = stream.described.replace(Arc::clone(info));
        let ids = |info: &StreamInfo| -> Vec<_> {
            info.renditions().map(|(track, _)| track.id).collect()
        };
        if ids(&before) == ids(info) {
            return;
        }
        let viewers = stream.peers.iter().map(|slot| self.peers[*slot].id);
        let viewers = viewers.collect();
        self.drop_lost_renditions(name);
        self.events.push_back(Event::RenditionsChanged { viewers });
    }

    /// Keeps batches of the past, of a replica that has just been asked, and starts viewers that are waiting.
    pub(crate) fn handle_backlog(
        &mut self,
        now: Instant,
        name: &StreamName,
        batches: &[Arc<PacketBatch>],
    ) {
        let Some(stream) = self.streams.get_mut(name) else {
            return;
        };
        for batch in batches {
            stream.make_way(batch);
            stream.keep(now, batch);
        }
        // Those who have a place in the ring go on from there.
        let rings = stream.rings.borrow();
        let lost = |peer: &&Peer| {
            let video = peer.video.as_ref().filter(|_| peer.session.is_some());
            video.is_some_and(|video| {
                video.position.is_none_or(|position| {
                    let ring = rings.get(video.track);
                    ring.is_none_or(|ring| {
                        ring.get(position).is_none() && ring.next_index() != Some(position)
                    })
                })
            })
        };
        let peers = stream.peers.iter().map(|slot| &self.peers[*slot]);
        let waiting: Vec<ViewerId> = peers.filter(lost).map(|peer| peer.id).collect();
        drop(rings);
        for viewer in waiting {
            self.start_video(now, viewer);
        }
    }
}
