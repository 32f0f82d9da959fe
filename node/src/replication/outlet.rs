//! The queue to one subscriber's session, as its stream fills it.

use std::sync::Arc;

use headwater_media::track::StreamInfo;
use headwater_media::unit::AccessUnit;
use tokio::sync::mpsc;

use super::Item;

/// See the module. Never waits: what finds no room is lost to the session, which counts what is missing by the sequence numbers.
#[derive(Debug)]
pub struct Outlet {
    items: mpsc::Sender<Item>,
    /// There was no room when the stream's description changed: units are of no use before the session has that.
    info_due: bool,
}

impl Outlet {
    /// To the session that reads the other end.
    pub const fn new(items: mpsc::Sender<Item>) -> Self {
        Self {
            items,
            info_due: false,
        }
    }

    /// The session has ended.
    pub fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// Tells the session; `info` gives what the stream is now. False: it has ended.
    pub fn tell(&mut self, item: &Item, info: impl FnOnce() -> Option<Arc<StreamInfo>>) -> bool {
        use mpsc::error::TrySendError::{Closed, Full};
        if let (true, Item::Unit(_) | Item::Backlog(_)) = (self.info_due, item)
            && let Some(info) = info()
        {
            match self.items.try_send(Item::Info(info)) {
                Ok(()) => self.info_due = false,
                Err(Full(_)) => return true,
                Err(Closed(_)) => return false,
            }
        }
        match self.items.try_send(item.clone()) {
            Ok(()) => {
                self.info_due &= !matches!(item, Item::Info(_));
                true
            }
            Err(Full(_)) => {
                self.info_due |= matches!(item, Item::Info(_));
                true
            }
            Err(Closed(_)) => false,
        }
    }

    /// What [`super::Subscription::backlog`] asked for. Where there is no room the tracks begin at their next keyframe instead.
    pub fn give(&self, units: Vec<Arc<AccessUnit>>) {
        let _ = self.items.try_send(Item::Backlog(units));
    }
}
