//! What a node keeps of a stream that it was sent, for those that it passes it on to: the newest GOP of each track, and the resume window.
//!
//! Units keep their epoch and sequence, so whoever had the stream from another node goes on here. A subscriber may even be ahead, by what
//! is on its way to this node: it is sent nothing until this node has caught up.

use std::sync::Arc;
use std::time::Instant;

use super::Position;
use crate::gop_cache::GopCache;
use crate::id::TrackId;
use crate::resume_window::ResumeWindow;
use crate::stream::{Attachment, Config};
use crate::track::StreamInfo;
use crate::unit::AccessUnit;

/// See the module.
#[derive(Debug)]
pub struct Store {
    gop: GopCache,
    window: ResumeWindow,
    info: Option<Arc<StreamInfo>>,
    /// What should come next, of tracks of which something came.
    next: Vec<(TrackId, u64)>,
}

impl Store {
    /// Empty.
    pub const fn new(config: Config) -> Self {
        Self {
            gop: GopCache::new(config.gop),
            window: ResumeWindow::new(config.resume),
            info: None,
            next: Vec::new(),
        }
    }

    /// The stream is this from now on.
    pub fn handle_info(&mut self, info: &Arc<StreamInfo>) {
        if let Some(before) = self.info.replace(Arc::clone(info)) {
            if before.epoch != info.epoch {
                // Units of two epochs are never mixed.
                self.clear();
                return;
            }
            for track in &before.tracks {
                let now = info.track(track.id);
                // Parameter sets go out from the newest configuration only, which an older GOP does not match.
                if now.is_none_or(|now| now.configuration_id != track.configuration_id) {
                    self.gop.forget(track.id);
                }
            }
        }
    }

    /// The next unit came; those of tracks that the stream doesn't have are of no use.
    pub fn handle_unit(&mut self, now: Instant, unit: &Arc<AccessUnit>) {
        let Some(info) = self.info.as_ref().filter(|info| info.epoch == unit.epoch) else {
            return;
        };
        let Some(track) = info.track(unit.track) else {
            return;
        };
        let next = unit.sequence.saturating_add(1);
        match self.next.iter_mut().find(|(id, _)| *id == unit.track) {
            Some((_, expected)) => *expected = next,
            None => self.next.push((unit.track, next)),
        }
        self.gop.push(track.configuration.kind(), unit);
        self.window.push(now, unit);
    }

    /// Units of other tracks than these do not come any more: what is kept of them grows old.
    pub fn handle_want(&mut self, want: &[TrackId]) {
        let gone: Vec<TrackId> = self
            .next
            .iter()
            .map(|(id, _)| *id)
            .filter(|id| !want.contains(id))
            .collect();
        self.next.retain(|(id, _)| want.contains(id));
        for id in gone {
            self.gop.forget(id);
        }
    }

    /// The stream is over, or begins anew elsewhere.
    pub fn clear(&mut self) {
        self.gop.clear();
        self.window.clear();
        self.next.clear();
    }

    /// What a subscriber that has the positions `have` starts with; none before the stream is described.
    pub fn attach(&self, have: &[Position]) -> Option<Attachment> {
        let info = self.info.clone()?;
        let continues = |position: &&Position| {
            position.epoch == info.epoch && self.continues(position.track, position.sequence)
        };
        let positions = have.iter().filter(continues).copied().collect();
        Some(Attachment::new(info, positions, &self.gop, &self.window))
    }

    /// What a present subscriber needs to start with further tracks.
    pub fn backlog(&self, tracks: &[TrackId]) -> Vec<Arc<AccessUnit>> {
        let wanted = self.gop.units().filter(|unit| tracks.contains(&unit.track));
        wanted.cloned().collect()
    }

    /// What the stream is, as far as is known.
    pub const fn info(&self) -> Option<&Arc<StreamInfo>> {
        self.info.as_ref()
    }

    fn continues(&self, track: TrackId, sequence: u64) -> bool {
        let Some(&(_, next)) = self.next.iter().find(|(id, _)| *id == track) else {
            return false;
        };
        let Some(wanted) = sequence.checked_add(1) else {
            return false;
        };
        // A hole in between shows in the sequence as any does.
        wanted >= next
            || self
                .window
                .oldest(track)
                .is_some_and(|oldest| oldest <= wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::gop_cache::Limits;
    use crate::id::Epoch;
    use crate::testkit;
    use crate::time::MediaTime;
    use crate::track::{Configuration, Track};

    const VIDEO: TrackId = TrackId::SOURCE_VIDEO;

    fn info(epoch: u64, configuration_id: u32) -> Arc<StreamInfo> {
        let video = Configuration::H264(testkit::h264_configuration());
        let tracks = [testkit::track(VIDEO, video), testkit::opus_track()];
        let tracks = tracks.map(|track| Track {
            configuration_id,
            ..track
        });
        Arc::new(testkit::stream_info(epoch, tracks.to_vec()))
    }

    fn unit(track: TrackId, epoch: u64, sequence: u64) -> Arc<AccessUnit> {
        let dts = MediaTime::from_millis(i64::try_from(sequence).unwrap() * 40);
        Arc::new(AccessUnit {
            keyframe: track != VIDEO || sequence.is_multiple_of(10),
            payload: Bytes::from_static(&[0; 10]),
            ..testkit::unit(track, epoch, sequence, dts)
        })
    }

    /// Both tracks of epoch 1 up to `last`, from `first` on.
    fn store(first: u64, last: u64) -> Store {
        let limits = Limits {
            bytes: 1 << 20,
            span: Duration::from_secs(10),
        };
        let mut store = Store::new(Config {
            gop: limits,
            resume: limits,
        });
        assert!(store.attach(&[]).is_none(), "nothing is known yet");
        store.handle_info(&info(1, 0));
        let start = testkit::start();
        for sequence in first..=last {
            let now = start + Duration::from_millis(40 * sequence);
            store.handle_unit(now, &unit(VIDEO, 1, sequence));
            store.handle_unit(now, &unit(TrackId::OPUS, 1, sequence));
        }
        store
    }

    fn at(track: TrackId, epoch: u64, sequence: u64) -> Position {
        Position {
            track,
            epoch: Epoch(epoch),
            sequence,
        }
    }

    fn sequences(attachment: &Attachment, track: TrackId) -> Vec<u64> {
        let units = attachment.backlog.iter().filter(|u| u.track == track);
        units.map(|unit| unit.sequence).collect()
    }

    #[test]
    fn whoever_had_the_stream_elsewhere_goes_on_here() {
        let store = store(20, 35);
        let back = store
            .attach(&[at(VIDEO, 1, 32), at(TrackId::OPUS, 1, 34)])
            .unwrap();
        assert!(back.resumed());
        assert_eq!(sequences(&back, VIDEO), [33, 34, 35]);
        assert_eq!(sequences(&back, TrackId::OPUS), [35]);
        // Ahead by what has not come here yet.
        let ahead = store.attach(&[at(VIDEO, 1, 37)]).unwrap();
        assert_eq!(ahead.positions.len(), 1);
        assert!(sequences(&ahead, VIDEO).is_empty());
        assert_eq!(sequences(&ahead, TrackId::OPUS), [30, 31, 32, 33, 34, 35]);
    }

    #[test]
    fn a_track_that_cannot_go_on_starts_at_its_keyframe_and_the_others_go_on() {
        let store = store(20, 35);
        let back = store
            .attach(&[at(VIDEO, 1, 3), at(TrackId::OPUS, 1, 34)])
            .unwrap();
        assert_eq!(back.positions, [at(TrackId::OPUS, 1, 34)]);
        assert_eq!(sequences(&back, VIDEO), [30, 31, 32, 33, 34, 35]);
        assert_eq!(sequences(&back, TrackId::OPUS), [35]);
        let other_epoch = store.attach(&[at(VIDEO, 2, 33)]).unwrap();
        assert!(!other_epoch.resumed());
    }

    #[test]
    fn what_is_not_wanted_any_more_or_coded_differently_is_forgotten() {
        let mut wanted = store(20, 35);
        wanted.handle_want(&[TrackId::OPUS]);
        assert!(wanted.backlog(&[VIDEO]).is_empty());
        assert!(!wanted.attach(&[at(VIDEO, 1, 33)]).unwrap().resumed());
        let mut changed = store(20, 35);
        changed.handle_info(&info(1, 1));
        assert!(changed.backlog(&[VIDEO]).is_empty());
        let mut anew = store(20, 35);
        anew.handle_info(&info(2, 0));
        anew.handle_unit(testkit::start(), &unit(VIDEO, 1, 36));
        assert!(anew.attach(&[]).unwrap().backlog.is_empty());
    }
}
