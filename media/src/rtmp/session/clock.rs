//! The time of a publisher's media.

/// RTMP's 32-bit milliseconds, which wrap after 49.7 days, as one line of 64 bits.
///
/// Audio and video share it: a step is never more than half the circle in either direction, so two tracks with different
/// epochs keep their distance, and a wrap between them is no jump.
#[derive(Debug, Default)]
pub(super) struct MediaClock {
    last: Option<i64>,
}

impl MediaClock {
    pub(super) fn unwrap(&mut self, timestamp: u32) -> i64 {
        let time = match self.last {
            None => i64::from(timestamp),
            Some(last) => {
                let low = u32::try_from(last & 0xFFFF_FFFF).unwrap_or_default();
                last.saturating_add(i64::from(timestamp.wrapping_sub(low).cast_signed()))
            }
        };
        self.last = Some(time);
        time
    }
}
