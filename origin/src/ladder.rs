//! Renditions that the origin makes of a publisher's video: lower ones for slow links, and one without B-frames where there are some.
//!
//! | module | what it knows |
//! |---|---|
//! | `config` | `[ladder]` |
//! | `rungs` | which renditions are made of a source |
//! | `arguments` | how ffmpeg is told |
//! | `gop`, `times` | what a child begins with; its times and the stream's |
//! | `supervisor`, `run` | when a child runs, what it gets, what its pictures become, whether it keeps up: the pure core |
//! | `source`, `output` | what the core is told, and what it tells |
//! | `child` | the process and its pipes |
//! | `actor` | `LadderActor`, around the core and the child |
//! | `link` | a stream's end of it |

use std::sync::Arc;

use headwater_node::clock::Clock;
use tokio::sync::Semaphore;

mod actor;
mod arguments;
mod child;
mod config;
mod gop;
mod link;
mod output;
mod rating;
mod run;
mod rungs;
mod source;
mod supervisor;
mod times;

pub(crate) use actor::Made;
pub use config::{Config, Encoder, InvalidStep, Step};
pub(crate) use link::{Link, Outcome};

/// What all ladders of an origin share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    config: Arc<Config>,
    clock: Clock,
    /// Where the children's pipes are served.
    io: tokio::runtime::Handle,
    /// One permit per child.
    children: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(config: Config, clock: Clock, io: tokio::runtime::Handle) -> Self {
        let children = config.children().min(Semaphore::MAX_PERMITS);
        Self {
            config: Arc::new(config),
            clock,
            io,
            children: Arc::new(Semaphore::new(children)),
        }
    }
}
