//! Streams whose actor panicked.

use std::sync::Arc;

use headwater_node::clock::Clock;
use headwater_node::directory::memory::MemoryDirectory;
use tokio_util::sync::CancellationToken;

use super::actor::OWNERSHIP_INTERVAL;
use super::*;
use crate::stream::Stat;

#[derive(Message)]
#[rtype(result = "()")]
struct Panic;

impl Handler<Panic> for StreamActor {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Self::Context) {
        panic!("as the test asked");
    }
}

fn registry() -> Registry {
    let id: NodeId = "o1".parse().expect("valid");
    let node = Node {
        id: id.clone(),
        clock: Clock::system(),
        directory: Arc::new(MemoryDirectory::new(id)),
        io: tokio::runtime::Handle::current(),
        shutdown: CancellationToken::new(),
    };
    let (config, audio) = Default::default();
    let ladder = ladder::Config::default();
    let ladder = ladder::Shared::new(ladder, node.clock.clone(), node.io.clone());
    Registry::start(
        config,
        audio,
        ladder,
        "http://o1:7070".to_owned(),
        node,
        Vec::new(),
    )
}

async fn publish(registry: &Registry) -> Publication {
    let request = PublishRequest {
        name: name(),
        peer: SocketAddr::from(([127, 0, 0, 1], 1)),
        encoder: None,
    };
    registry.publish(request).await.expect("accepted")
}

fn name() -> StreamName {
    "live/x".parse().expect("valid")
}

async fn panic_stream(registry: &Registry) {
    let actor = registry.find(name()).await.expect("live");
    assert!(actor.send(Panic).await.is_err());
}

#[actix::test]
async fn a_stream_that_panicked_is_replaced() {
    let registry = registry();
    let first = publish(&registry).await;
    drop(first);
    panic_stream(&registry).await;
    let _second = publish(&registry).await;
    let actor = registry.find(name()).await.expect("live");
    let status = actor.send(Stat).await.expect("a living actor");
    assert!(status.publishing);
}

#[actix::test]
async fn a_stream_that_panicked_ends_by_itself() {
    let registry = registry();
    let _publication = publish(&registry).await;
    panic_stream(&registry).await;
    tokio::time::timeout(OWNERSHIP_INTERVAL * 4, async {
        while registry.find(name()).await.is_some() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("it is noticed");
    let _next = publish(&registry).await;
}
