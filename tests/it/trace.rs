//! Traces, as a collector gets them by OpenTelemetry's own protocol.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tonic::{Request, Response, Status};

use super::harness::{
    Cluster, Options, Picture, Publisher, Sound, Viewer, eventually, free_ports, get, request,
    seconds,
};
use super::whep::OFFER;

const PLAYER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A span, and the node that it is of.
type Seen = Vec<(String, Span)>;

/// Takes what is exported.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Seen>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for of in request.into_inner().resource_spans {
            let resource = of.resource.unwrap_or_default();
            let node = text(&resource.attributes, "service.instance.id");
            assert_eq!(text(&resource.attributes, "service.name"), "headwater");
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            seen.extend(spans.map(|span| (node.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Serves until the process ends; where.
    fn start(&self) -> String {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)));
        let service = TraceServiceServer::new(self.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            let server = tonic::transport::Server::builder().add_service(service);
            runtime.block_on(server.serve(address)).expect("it serves");
        });
        format!("http://{address}")
    }

    fn seen(&self) -> Seen {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// The span of this name, by node, that fits, once it is there.
    fn span(&self, node: &str, name: &str, fits: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("{node} has sent {name}"), seconds(10), || {
            let mut seen = self.seen().into_iter();
            let found = seen.find(|(by, span)| by == node && span.name == name && fits(span));
            found.map(|(_, span)| span)
        })
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(any_value::Value::StringValue(text)) => text,
        _ => String::new(),
    }
}

fn join(port: u16, stream: &str, more: &[(&str, &str)]) -> u16 {
    let headers = [&[("Content-Type", "application/sdp")], more].concat();
    let path = format!("/whep/{stream}");
    let answer = request(port, "POST", &path, &headers, OFFER);
    answer.expect("an answer").status
}

#[test]
fn a_join_is_one_trace_from_the_player_to_the_origin() {
    let collector = Collector::default();
    let options = Options::default()
        .env("HEADWATER_TRACE__OTLP", &collector.start())
        .env("HEADWATER_TRACE__SAMPLE", "0")
        .env("HEADWATER_EDGE__STREAMS_MAX", "1");
    let mut cluster = Cluster::fleet(1, 1, &options);
    let _publishers = ["live/a", "live/b"]
        .map(|name| Publisher::start(&cluster.rtmp_url(name), Picture::Test, Sound::Silence));
    for stream in ["live/a", "live/b"] {
        let publish = collector.span("o1", "publish", |span| {
            text(&span.attributes, "stream") == stream
        });
        assert_eq!(text(&publish.attributes, "result"), "accepted");
    }
    let edge = cluster.edge().http;
    // Those that wait for the first pictures are nobody's fault.
    eventually("the stream is live", seconds(20), || {
        (join(edge, "live/a", &[("traceparent", PLAYER)]) == 201).then_some(())
    });
    let ok = |span: &Span| text(&span.attributes, "result") == "ok";
    let joined = collector.span("e1", "join", ok);
    let trace = joined.trace_id.clone();
    assert_eq!(
        trace,
        0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()
    );
    assert_eq!(
        joined.parent_span_id,
        0xb7ad_6b71_6920_3331_u64.to_be_bytes()
    );
    assert_eq!(joined.kind, i32::from(SpanKind::Server));
    assert_eq!(text(&joined.attributes, "stream"), "live/a");
    let subscribe = collector.span("e1", "subscribe", |span| {
        span.trace_id == trace && span.status.is_none()
    });
    assert_eq!(subscribe.kind, i32::from(SpanKind::Client));
    let accepted = collector.span("o1", "accept subscription", |span| {
        span.parent_span_id == subscribe.span_id
    });
    assert_eq!(accepted.trace_id, trace);
    for phase in ["offer", "open", "shard"] {
        let part = collector.span("e1", phase, |span| span.parent_span_id == joined.span_id);
        assert!(part.start_time_unix_nano >= joined.start_time_unix_nano);
        assert!(part.end_time_unix_nano <= joined.end_time_unix_nano);
    }

    // One of which nobody decided otherwise isn't traced, and one that fails is.
    assert_eq!(join(edge, "live/a", &[]), 201);
    assert_eq!(join(edge, "live/b", &[]), 503);
    let failed = collector.span("e1", "join", |span| span.status.is_some());
    assert_eq!(text(&failed.attributes, "stream"), "live/b");
    assert!(failed.parent_span_id.is_empty());
    let joins = collector.seen().into_iter();
    let joins = joins.filter(|(_, span)| span.name == "join" && span.trace_id != trace);
    assert_eq!(joins.count(), 1, "the failed one");

    let admin = cluster.edge().admin;
    let metrics = get(admin, "/metrics").expect("metrics").body;
    assert!(metrics.contains("headwater_trace_spans_total{result=\"queue_full\"} 0"));
    // What is left goes before the process does.
    cluster.edge().process.terminate();
    cluster.edge().process.wait(seconds(15));
    let drain = collector.span("e1", "drain", |_| true);
    for phase in ["viewers go elsewhere", "roles stop"] {
        collector.span("e1", phase, |span| span.parent_span_id == drain.span_id);
    }
    let mut names: HashMap<String, usize> = HashMap::new();
    for (_, span) in collector.seen() {
        *names.entry(span.name).or_default() += 1;
    }
    // However many pictures went by.
    assert!(names.values().all(|count| *count < 20), "{names:?}");
}

#[test]
fn a_collector_that_never_answers_costs_spans_and_nothing_else() {
    let dead = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = dead.local_addr().expect("bound");
    // It takes connections, and reads nothing.
    std::thread::spawn(move || {
        let connections: Vec<_> = dead.incoming().collect();
        drop(connections);
    });
    let options = Options::default()
        .env("HEADWATER_TRACE__OTLP", &format!("http://{address}"))
        .env("HEADWATER_TRACE__SAMPLE", "1");
    let mut cluster = Cluster::standalone(&options);
    let _publisher = Publisher::start(&cluster.rtmp_url("live/a"), Picture::Test, Sound::Silence);
    let url = cluster.whep_url("live/a");
    let mut viewer = Viewer::start(&url, seconds(60), &["--wait", "15s"]);
    viewer.await_frames(30, seconds(20));
    let admin = cluster.edge().admin;
    eventually("spans are given up", seconds(15), || {
        let metrics = get(admin, "/metrics")?.body;
        let failed = metrics.lines().find_map(|line| {
            line.strip_prefix("headwater_trace_spans_total{result=\"failed\"} ")
        })?;
        failed
            .parse::<u64>()
            .is_ok_and(|count| count > 0)
            .then_some(())
    });
    viewer.await_frames(30, seconds(3));
    let report = viewer.last().expect("a report");
    let freeze = report["video"]["longest_freeze_ms"].as_f64();
    assert!(freeze.is_some_and(|freeze| freeze < 250.0), "{report:#}");
    drop(viewer);
    cluster.edge().process.terminate();
    let status = cluster.edge().process.wait(seconds(10));
    assert_eq!(status.code(), Some(0), "{status}");
}
