//! A read-only list of origins, for edges without etcd: every origin of the list may have every stream, so all are asked.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use headwater_media::id::{Epoch, NodeId, StreamName};
use tokio::sync::watch;

use super::{Directory, Error, Incarnation, NodeRecord, StreamRecord, Upstream};

/// A fixed list of origins.
#[derive(Debug)]
pub struct FixedDirectory {
    origins: Vec<String>,
    changes: watch::Sender<u64>,
}

impl FixedDirectory {
    /// From gRPC URLs, `http://host:port`, in order of preference.
    pub fn new(origins: Vec<String>) -> Self {
        Self {
            origins,
            changes: watch::Sender::new(0),
        }
    }
}

impl Directory for FixedDirectory {
    /// Nothing to do: nobody looks here for this node.
    fn announce(&self, _: NodeRecord) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    /// Nobody looks here for this node's claims either.
    fn incarnation(&self) -> Incarnation {
        Incarnation::default()
    }

    fn claim(
        &self,
        _: StreamName,
        _: String,
        _: Option<Epoch>,
    ) -> BoxFuture<'_, Result<Epoch, Error>> {
        async { Err(Error::ReadOnly) }.boxed()
    }

    fn release(&self, _: StreamName, _: Epoch) -> BoxFuture<'_, Result<(), Error>> {
        async { Err(Error::ReadOnly) }.boxed()
    }

    fn owns(&self, _: &StreamName, _: Epoch) -> bool {
        false
    }

    fn upstreams(&self, _: &StreamName) -> Vec<Upstream> {
        self.origins
            .iter()
            .map(|url| Upstream {
                grpc_url: url.clone(),
                epoch: None,
            })
            .collect()
    }

    fn streams(&self) -> Vec<StreamRecord> {
        Vec::new()
    }

    fn nodes(&self) -> Vec<NodeRecord> {
        Vec::new()
    }

    fn node(&self, _: &NodeId) -> Option<NodeRecord> {
        None
    }

    fn fixed_origins(&self) -> Vec<String> {
        self.origins.clone()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn synced(&self) -> bool {
        true
    }

    fn withdraw(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_origins_are_named_for_every_stream_and_nothing_is_written() {
        let directory = FixedDirectory::new(vec!["http://a:1".into(), "http://b:1".into()]);
        let name: StreamName = "live/x".parse().expect("valid");
        let urls: Vec<_> = directory
            .upstreams(&name)
            .into_iter()
            .map(|upstream| upstream.grpc_url)
            .collect();
        assert_eq!(urls, ["http://a:1", "http://b:1"]);
        let claimed = directory.claim(name, "http://c:1".into(), None).await;
        assert!(matches!(claimed, Err(Error::ReadOnly)));
    }
}
