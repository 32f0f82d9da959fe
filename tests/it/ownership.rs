//! Two origins in this process and one name: who gets it, and what its subscribers see.

use headwater_edge::replica::UpstreamState;
use headwater_origin::registry::{PublishError, Revoked};

use super::replication::{Cluster, Publisher, run, try_publish};

#[test]
fn a_name_whose_publisher_sends_is_not_given_away() {
    run(async {
        let cluster = Cluster::start(|_| {}).await;
        let other = cluster.another("o2").await;
        let mut publisher = cluster.publish().await;
        publisher.send(5, 1000).await;
        let refused = try_publish(&other).await.err();
        let owner = "o1".parse().expect("an id");
        assert_eq!(refused, Some(PublishError::HeldElsewhere(owner)));
        publisher.send(5, 1000).await;
        let mut subscription = cluster.subscribe(&cluster.edge);
        assert_eq!(
            subscription.unit().await.epoch,
            publisher.publication.epoch()
        );
        other.stop().await;
        cluster.stop().await;
    });
}

#[test]
fn a_stream_that_is_held_goes_on_where_its_publisher_returns_to() {
    run(async {
        let cluster = Cluster::start(|_| {}).await;
        let other = cluster.another("o2").await;
        let mut publisher = cluster.publish().await;
        publisher.send(10, 1000).await;
        let mut subscription = cluster.subscribe(&cluster.edge);
        let mut last = subscription.unit().await;
        while last.sequence < 9 {
            last = subscription.unit().await;
        }
        drop(publisher);

        let mut publisher = Publisher::new(try_publish(&other).await.expect("it is free at once"));
        publisher.send(10, 1000).await;
        subscription.state(UpstreamState::Connected).await;
        let epoch = publisher.publication.epoch();
        assert!(epoch > last.epoch);
        for sequence in 0..10 {
            let unit = subscription.unit().await;
            assert_eq!((unit.epoch, unit.sequence), (epoch, sequence));
        }
        // The one that held it has nothing left, and gets it back in the same way.
        let gone = async {
            while !cluster.origin().report().streams().await.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        gone.await;
        drop(publisher);
        let mut publisher = cluster.publish().await;
        assert!(publisher.publication.epoch() > epoch);
        publisher.send(5, 1000).await;
        assert_eq!(
            subscription.unit().await.epoch,
            publisher.publication.epoch()
        );
        other.stop().await;
        cluster.stop().await;
    });
}

#[test]
fn a_silent_publisher_loses_the_name_to_one_at_another_origin() {
    run(async {
        let cluster = Cluster::start(|config| config.origin.takeover_seconds = 1).await;
        let other = cluster.another("o2").await;
        let mut publisher = cluster.publish().await;
        publisher.send(5, 1000).await;
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        let second = try_publish(&other).await.expect("the first one is silent");
        assert!(second.epoch() > publisher.publication.epoch());
        assert_eq!(publisher.publication.revoked().await, Revoked::Replaced);
        other.stop().await;
        cluster.stop().await;
    });
}
