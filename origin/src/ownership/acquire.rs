//! Acquires a name: claims it in the directory, asks its owner over gRPC if it has one.

use std::error::Error;
use std::io;
use std::time::Duration;

use headwater_media::id::{Epoch, StreamName};
use headwater_node::Node;
use headwater_node::directory::{Incarnation, StreamRecord};
use headwater_proto::replication::ownership_client::OwnershipClient;
use headwater_proto::replication::{Inquiry, Standing};
use metrics::counter;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tracing::{debug, info};

use super::{Acquisition, Answer, Denied, Step};
use crate::metrics as names;

/// A name that isn't had by then is refused: a publisher waits no longer for its answer. Room for two questions without an answer.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(6);

/// An owner that takes longer to accept a connection and to answer, each, doesn't answer. Far more than a healthy one needs; the
/// edges leave an upstream after two seconds of silence.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Claims `name` for this node, whose gRPC is reached at `grpc_url`. Must run on the node's I/O runtime, in a task of its own: a claim
/// that is made must be known to the caller.
pub(crate) async fn acquire(
    node: &Node,
    name: &StreamName,
    grpc_url: &str,
) -> Result<Epoch, Denied> {
    let mut core = Acquisition::new(node.id.clone());
    let acquired = async {
        let mut step = Step::Claim { over: None };
        loop {
            step = match step {
                Step::Claim { over } => {
                    let claim = node
                        .directory
                        .claim(name.clone(), grpc_url.to_owned(), over);
                    core.handle_claim(claim.await)
                }
                Step::Ask(held) => {
                    let answer = ask(node, &held).await;
                    debug!(stream = %name, owner = %held.origin, ?answer, "the owner was asked");
                    core.handle_answer(&answer)
                }
                Step::Done(outcome) => return outcome,
            };
        }
    };
    let outcome = timeout(ACQUIRE_TIMEOUT, acquired)
        .await
        .unwrap_or_else(|_| Err(Denied::Directory("it took too long".to_owned())));
    if let (Ok(epoch), Some(void)) = (&outcome, core.void()) {
        counter!(names::TAKEOVERS, "reason" => void.label()).increment(1);
        info!(stream = %name, %epoch, reason = void.label(), "took the stream over from another origin");
    }
    outcome
}

/// Asks a stream's owner whether it needs the name.
async fn ask(node: &Node, held: &StreamRecord) -> Answer {
    let Ok(endpoint) = Endpoint::from_shared(held.grpc_url.clone()) else {
        return Answer::Silent;
    };
    // A connection for one question: they are rare, and one that was kept would be no proof that the owner listens.
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT);
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) if refused(&error) => return Answer::Refused,
        Err(error) => {
            debug!(owner = %held.origin, %error, "the owner can't be reached");
            return Answer::Silent;
        }
    };
    let inquiry = Inquiry {
        stream: held.name.to_string(),
        node: node.id.to_string(),
    };
    let mut client = OwnershipClient::new(channel);
    match timeout(ANSWER_TIMEOUT, client.inquire(inquiry)).await {
        Ok(Ok(answer)) => standing(&answer.into_inner()),
        Ok(Err(status)) => {
            debug!(owner = %held.origin, %status, "the owner does not tell");
            Answer::Silent
        }
        Err(_) => Answer::Silent,
    }
}

fn standing(answer: &Standing) -> Answer {
    match answer.node.parse() {
        Ok(node) => Answer::Standing {
            node,
            incarnation: Incarnation(answer.incarnation),
            publishing: answer.publishing,
        },
        // Whoever that is, it is no node.
        Err(_) => Answer::Silent,
    }
}

/// The machine answered that nobody listens there.
fn refused(error: &tonic::transport::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.kind() == io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use headwater_node::clock::Clock;
    use headwater_node::directory::memory::MemoryDirectory;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn asked(grpc_url: String) -> Answer {
        let id: headwater_media::id::NodeId = "b".parse().expect("valid");
        let node = Node {
            id: id.clone(),
            clock: Clock::system(),
            directory: Arc::new(MemoryDirectory::new(id)),
            io: tokio::runtime::Handle::current(),
            shutdown: CancellationToken::new(),
        };
        let held = StreamRecord {
            name: "live/x".parse().expect("valid"),
            origin: "a".parse().expect("valid"),
            incarnation: Incarnation(1),
            epoch: Epoch(1),
            grpc_url,
        };
        ask(&node, &held).await
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_at_is_told_from_one_that_is_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        // Connections stand in its backlog, and nobody answers.
        assert_eq!(asked(url.clone()).await, Answer::Silent);
        drop(listener);
        assert_eq!(asked(url).await, Answer::Refused);
        assert_eq!(asked("no url".to_owned()).await, Answer::Silent);
    }
}
