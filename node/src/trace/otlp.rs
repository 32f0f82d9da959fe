//! Sends spans to a collector, by OTLP over gRPC.
//!
//! One task, one call at a time, each bounded: a collector that is away, slow or dead costs spans and nothing else. They are counted then and
//! not tried again; what comes meanwhile waits in a queue that takes no more when it is full.

use std::time::Duration;

use metrics::counter;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{info, warn};

use super::{Config, Error, SPANS, TRACER, Tracer, describe, text};
use crate::clock::Clock;

/// Spans with their phases that may wait (count): at a kilobyte each, two megabytes.
const QUEUE: usize = 2048;
/// As many go with one call (count).
const BATCH: usize = 256;
/// They are collected for so long, so that a call has more than one of them.
const GATHER: Duration = Duration::from_secs(1);
/// A collector that takes longer for a call has lost it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What still waits when the node stops has so long.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// What the spans are of (OpenTelemetry's semantic conventions for services).
#[derive(Debug, Clone)]
pub struct Service {
    /// The node.
    pub id: String,
    /// The cluster's name.
    pub cluster: String,
    /// What runs.
    pub version: &'static str,
}

/// Where spans go from now on. [`Exporter::stop`] sends what is left.
#[derive(Debug)]
pub struct Exporter {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Lets spans be made, and sends them to the collector of `config`. `None`: it names none.
///
/// # Errors
/// If the settings make no sense.
pub fn install(
    config: &Config,
    service: &Service,
    clock: &Clock,
    io: &Handle,
) -> Result<Option<Exporter>, Error> {
    describe();
    let Some(endpoint) = config.endpoint()? else {
        return Ok(None);
    };
    let (queue, spans) = mpsc::channel(QUEUE);
    let tracer = Tracer {
        clock: clock.clone(),
        sample: config.sample,
        queue,
    };
    if TRACER.set(tracer).is_err() {
        // Another node of this process was first, and exports for both.
        return Ok(None);
    }
    info!(collector = %config.otlp, sample = config.sample, "traces are exported");
    let resource = Resource {
        attributes: vec![
            text("service.name", "headwater"),
            text("service.namespace", &service.cluster),
            text("service.instance.id", &service.id),
            text("service.version", service.version),
        ],
        ..Resource::default()
    };
    let channel = {
        // The connection, made when there is something to send, lives there.
        let _io = io.enter();
        endpoint.connect_timeout(EXPORT_TIMEOUT).connect_lazy()
    };
    let sender = Sender {
        client: TraceServiceClient::new(channel),
        resource,
        works: true,
    };
    let stop = CancellationToken::new();
    let task = io.spawn(sender.run(spans, stop.clone()));
    Ok(Some(Exporter { stop, task }))
}

impl Exporter {
    /// Sends what is left, as far as a second allows.
    pub async fn stop(self) {
        self.stop.cancel();
        let abort = self.task.abort_handle();
        if tokio::time::timeout(LAST_TIMEOUT, self.task).await.is_err() {
            abort.abort();
        }
    }
}

struct Sender {
    client: TraceServiceClient<Channel>,
    resource: Resource,
    /// The last call did.
    works: bool,
}

impl Sender {
    async fn run(mut self, mut queue: mpsc::Receiver<Vec<Span>>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                _ = queue.recv_many(&mut batch, BATCH) => {}
                () = stop.cancelled() => break,
            }
            let gather = async {
                while batch.len() < BATCH {
                    let room = BATCH - batch.len();
                    if queue.recv_many(&mut batch, room).await == 0 {
                        break;
                    }
                }
            };
            tokio::select! {
                () = gather => {}
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => break,
            }
            self.send(std::mem::take(&mut batch)).await;
        }
        // What was gathered, and what is left: for as long as whoever stops this waits.
        queue.close();
        loop {
            if !batch.is_empty() {
                self.send(std::mem::take(&mut batch)).await;
            }
            if queue.recv_many(&mut batch, BATCH).await == 0 {
                return;
            }
        }
    }

    async fn send(&mut self, batch: Vec<Vec<Span>>) {
        let spans = batch.concat();
        let count = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        let request = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "headwater".to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans,
                    ..ScopeSpans::default()
                }],
                ..ResourceSpans::default()
            }],
        };
        let call = tokio::time::timeout(EXPORT_TIMEOUT, self.client.export(request)).await;
        let problem = match call {
            Ok(Ok(response)) => {
                let partial = response.into_inner().partial_success;
                let rejected = partial.map_or(0, |partial| partial.rejected_spans);
                let rejected = u64::try_from(rejected).unwrap_or(0).min(count);
                counter!(SPANS, "result" => "exported").increment(count - rejected);
                counter!(SPANS, "result" => "failed").increment(rejected);
                None
            }
            Ok(Err(status)) => Some(status.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        if let Some(problem) = &problem {
            counter!(SPANS, "result" => "failed").increment(count);
            if self.works {
                warn!(problem, "the collector takes no traces");
            }
        } else if !self.works {
            info!("the collector takes traces again");
        }
        self.works = problem.is_none();
    }
}
