//! Traces: what happened on the way of one join, one publisher, one drain, across nodes.
//!
//! A [`Span`] is a few values until it is dropped; then it goes to the exporter ([`otlp`]) or nowhere, without waiting. There is none per
//! frame or packet. Whether a join is kept is decided at its start, by its trace id, so that all nodes decide alike; one that failed is kept
//! in any case, by the node on which it failed. Off by default: then a span is nothing at all.
//!
//! Context travels between nodes, and comes from players, as W3C Trace Context: the header `traceparent`, in gRPC's metadata too.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use headwater_media::time::WallTime;
use metrics::{counter, describe_counter};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as wire, Status};
use serde::Deserialize;
use tokio::sync::mpsc;
use tonic::metadata::MetadataMap;
use tonic::transport::Endpoint;

use crate::clock::Clock;
use crate::telemetry::start_at_zero_by;

mod otlp;

pub use otlp::{Exporter, Service, install};

/// The header of HTTP and gRPC's metadata.
pub const HEADER: &str = "traceparent";

/// Spans by what became of them.
const SPANS: &str = "headwater_trace_spans_total";

/// A text in a span is cut to so much (bytes): peers supply some.
const TEXT_BYTES_MAX: usize = 256;

/// Settings of traces, `[trace]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where a collector takes OTLP over gRPC, `http://host:4317`. Empty: there are no traces.
    pub otlp: String,
    /// Share of joins that are traced, 0 to 1. Those that fail on our side always are.
    pub sample: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            otlp: String::new(),
            sample: 0.01,
        }
    }
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No URL, or not one that is spoken here.
    #[error("trace.otlp is http://host:port of a collector's OTLP over gRPC: {0:?} is not")]
    Url(String),
    /// No share.
    #[error("trace.sample is a share from 0 to 1: {0} is not")]
    Sample(f64),
}

impl Config {
    /// Where spans go, if they go anywhere.
    ///
    /// # Errors
    /// If a setting makes no sense.
    pub fn endpoint(&self) -> Result<Option<Endpoint>, Error> {
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(Error::Sample(self.sample));
        }
        if self.otlp.is_empty() {
            return Ok(None);
        }
        let wrong = || Error::Url(self.otlp.clone());
        let endpoint = Endpoint::from_shared(self.otlp.clone()).map_err(|_| wrong())?;
        let uri = endpoint.uri();
        let right = uri.scheme_str() == Some("http") && uri.host().is_some();
        right.then_some(Some(endpoint)).ok_or_else(wrong)
    }
}

/// A span's place in a trace, as others are told of it (W3C Trace Context level 1, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    trace: u128,
    span: u64,
    sampled: bool,
}

/// A text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no traceparent")]
pub struct InvalidContext;

impl FromStr for Context {
    type Err = InvalidContext;

    fn from_str(text: &str) -> Result<Self, InvalidContext> {
        let mut parts = text.split('-');
        let mut part = |chars: usize| {
            // `from_str_radix` takes a sign and upper case, which the format doesn't.
            let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            let part = parts.next().filter(|part| part.len() == chars)?;
            let fits = part.bytes().all(digit);
            u128::from_str_radix(part, 16).ok().filter(|_| fits)
        };
        let (version, trace) = (part(2), part(32));
        let (span, flags) = (part(16), part(2));
        let (Some(version), Some(trace), Some(span), Some(flags)) = (version, trace, span, flags)
        else {
            return Err(InvalidContext);
        };
        // Versions to come may have more parts; 255 is none.
        let known = version == 0 && parts.next().is_none() || (1..255).contains(&version);
        let span = u64::try_from(span).map_err(|_| InvalidContext)?;
        if !known || trace == 0 || span == 0 {
            return Err(InvalidContext);
        }
        Ok(Self {
            trace,
            span,
            sampled: flags & 1 == 1,
        })
    }
}

/// As a `traceparent`.
impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

impl Context {
    /// What a gRPC call came with.
    pub fn of_call(metadata: &MetadataMap) -> Option<Self> {
        metadata.get(HEADER)?.to_str().ok()?.parse().ok()
    }

    /// Lets a gRPC call go with it.
    pub fn put(&self, metadata: &mut MetadataMap) {
        if let Ok(value) = self.to_string().parse() {
            metadata.insert(HEADER, value);
        }
    }
}

/// What a span is to those of other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It answers a request.
    Server,
    /// It makes one.
    Client,
    /// Neither.
    Internal,
}

/// Which of the traces that begin here are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// All: they are few.
    Always,
    /// The share that `trace.sample` says.
    Share,
}

/// Makes spans.
#[derive(Debug, Clone)]
struct Tracer {
    clock: Clock,
    sample: f64,
    queue: mpsc::Sender<Vec<wire::Span>>,
}

/// The process has one, as it has one log and one set of metrics.
static TRACER: OnceLock<Tracer> = OnceLock::new();

/// Begins a trace, or goes on with that of `parent`, whose decision on sampling stands.
pub fn start(name: &'static str, kind: Kind, parent: Option<Context>, sampling: Sampling) -> Span {
    let live = TRACER
        .get()
        .map(|tracer| tracer.start(name, kind, parent, sampling));
    Span(live.map(Box::new))
}

/// Goes on with a trace, if there is one.
pub fn follow(name: &'static str, kind: Kind, parent: Option<Context>) -> Span {
    match parent {
        Some(parent) => start(name, kind, Some(parent), Sampling::Share),
        None => Span(None),
    }
}

/// Something that takes a while, from its start to its drop.
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct Span(Option<Box<Live>>);

#[derive(Debug)]
struct Live {
    tracer: Tracer,
    context: Context,
    own: wire::Span,
    phases: Vec<wire::Span>,
    failed: bool,
}

impl Tracer {
    fn start(
        &self,
        name: &'static str,
        kind: Kind,
        parent: Option<Context>,
        sampling: Sampling,
    ) -> Live {
        let trace = parent.map_or_else(|| rand::random_range(1..=u128::MAX), |parent| parent.trace);
        let context = Context {
            trace,
            span: span_id(),
            sampled: match (parent, sampling) {
                (Some(parent), _) => parent.sampled,
                (None, Sampling::Always) => true,
                (None, Sampling::Share) => self.keeps(trace),
            },
        };
        let kind = match kind {
            Kind::Server => SpanKind::Server,
            Kind::Client => SpanKind::Client,
            Kind::Internal => SpanKind::Internal,
        };
        let own = wire::Span {
            parent_span_id: parent.map_or_else(Vec::new, |parent| parent.span.to_be_bytes().into()),
            kind: kind.into(),
            ..span(name, context, self.clock.wall(), WallTime::default())
        };
        Live {
            tracer: self.clone(),
            context,
            own,
            phases: Vec::new(),
            failed: false,
        }
    }

    /// By the trace's id, whose low half is random (W3C Trace Context level 2, section 3.2.2.3): whoever else decides by it decides alike.
    fn keeps(&self, trace: u128) -> bool {
        // 53 bits are what a ratio tells apart.
        const BITS: u32 = 53;
        let random = u64::try_from(trace & ((1 << BITS) - 1)).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let place = random as f64 / (1_u64 << BITS) as f64;
        place < self.sample
    }
}

impl Span {
    /// Its place, for those who go on with the trace.
    pub fn context(&self) -> Option<Context> {
        self.0.as_ref().map(|live| live.context)
    }

    /// Says something about it.
    pub fn set(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(live) = &mut self.0 {
            live.own.attributes.push(text(key, &value.to_string()));
        }
    }

    /// A part of it that is over.
    pub fn phase(&mut self, name: &'static str, from: WallTime, to: WallTime) {
        if let Some(live) = &mut self.0 {
            let context = Context {
                span: span_id(),
                ..live.context
            };
            let phase = wire::Span {
                parent_span_id: live.own.span_id.clone(),
                kind: SpanKind::Internal.into(),
                ..span(name, context, from, to)
            };
            live.phases.push(phase);
        }
    }

    /// It failed: it is kept whatever was decided.
    pub fn fail(&mut self, why: impl fmt::Display) {
        if let Some(live) = &mut self.0 {
            live.failed = true;
            live.own.status = Some(Status {
                message: cut(&why.to_string()).to_owned(),
                code: StatusCode::Error.into(),
            });
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(live) = self.0.take() else {
            return;
        };
        let Live {
            tracer,
            context,
            mut own,
            phases: mut spans,
            failed,
        } = *live;
        if !context.sampled && !failed {
            return;
        }
        own.end_time_unix_nano = nanos(tracer.clock.wall());
        spans.push(own);
        let count = u64::try_from(spans.len()).unwrap_or(u64::MAX);
        if tracer.queue.try_send(spans).is_err() {
            counter!(SPANS, "result" => "queue_full").increment(count);
        }
    }
}

fn span(name: &'static str, context: Context, from: WallTime, to: WallTime) -> wire::Span {
    wire::Span {
        trace_id: context.trace.to_be_bytes().into(),
        span_id: context.span.to_be_bytes().into(),
        flags: u32::from(context.sampled),
        name: name.to_owned(),
        start_time_unix_nano: nanos(from),
        end_time_unix_nano: nanos(to),
        ..wire::Span::default()
    }
}

fn span_id() -> u64 {
    rand::random_range(1..=u64::MAX)
}

fn nanos(time: WallTime) -> u64 {
    time.unix_micros().saturating_mul(1000)
}

fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(any_value::Value::StringValue(cut(value).to_owned())),
        }),
        ..KeyValue::default()
    }
}

fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX.min(text.len()));
    &text[..end]
}

/// Registers the help text.
pub(crate) fn describe() {
    describe_counter!(
        SPANS,
        "spans of traces by what became of them; none are without trace.otlp"
    );
    start_at_zero_by(SPANS, "result", &["exported", "queue_full", "failed"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn tracer(sample: f64) -> (Tracer, mpsc::Receiver<Vec<wire::Span>>) {
        let (queue, spans) = mpsc::channel(2);
        let clock = Clock::system();
        let tracer = Tracer {
            clock,
            sample,
            queue,
        };
        (tracer, spans)
    }

    fn begin(tracer: &Tracer, parent: Option<Context>, sampling: Sampling) -> Span {
        Span(Some(Box::new(tracer.start(
            "join",
            Kind::Server,
            parent,
            sampling,
        ))))
    }

    #[test]
    fn contexts_are_read_as_the_standard_has_them_and_written_again() {
        let context: Context = PARENT.parse().expect("valid");
        assert_eq!(context.to_string(), PARENT);
        assert!(context.sampled);
        let later = format!("{}-more", PARENT.replacen("00", "cc", 1));
        let later: Context = later.parse().expect("of a later version");
        assert_eq!(later, context);
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
        ] {
            assert_eq!(wrong.parse::<Context>(), Err(InvalidContext), "{wrong:?}");
        }
        let mut metadata = MetadataMap::new();
        context.put(&mut metadata);
        assert_eq!(Context::of_call(&metadata), Some(context));
    }

    #[test]
    fn a_trace_goes_on_where_it_came_from_with_its_phases() {
        let (tracer, mut spans) = tracer(0.0);
        let mut span = begin(&tracer, PARENT.parse().ok(), Sampling::Share);
        span.set("stream", "live/a");
        span.phase(
            "open",
            WallTime::from_unix_micros(5),
            WallTime::from_unix_micros(7),
        );
        let own = span.context().expect("on").span;
        drop(span);
        let spans = spans.try_recv().expect("kept, since its parent is");
        let [open, join] = &spans[..] else {
            panic!("{spans:?}");
        };
        assert_eq!(join.trace_id, open.trace_id);
        assert_eq!(join.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert_eq!(open.parent_span_id, own.to_be_bytes());
        assert_eq!(
            (open.start_time_unix_nano, open.end_time_unix_nano),
            (5000, 7000)
        );
        assert!(join.end_time_unix_nano >= join.start_time_unix_nano);
        assert_eq!(join.attributes[0].key, "stream");
    }

    #[test]
    fn a_share_is_kept_and_what_fails_always() {
        let kept = |sample: f64, end: fn(&mut Span)| {
            (0..400)
                .filter(|_| {
                    let (tracer, mut spans) = tracer(sample);
                    let mut span = begin(&tracer, None, Sampling::Share);
                    end(&mut span);
                    drop(span);
                    spans.try_recv().is_ok()
                })
                .count()
        };
        assert_eq!(kept(0.0, |_| ()), 0);
        assert_eq!(kept(1.0, |_| ()), 400);
        assert!((120..280).contains(&kept(0.5, |_| ())));
        assert_eq!(kept(0.0, |span| span.fail("no upstream")), 400);
        let (tracer, mut spans) = tracer(0.0);
        drop(begin(&tracer, None, Sampling::Always));
        assert!(spans.try_recv().is_ok());
    }

    #[test]
    fn a_full_queue_takes_no_more_and_nobody_waits() {
        let (tracer, mut spans) = tracer(1.0);
        for _ in 0..10 {
            drop(begin(&tracer, None, Sampling::Share));
        }
        assert!(spans.try_recv().is_ok() && spans.try_recv().is_ok());
        assert!(spans.try_recv().is_err());
        drop(start("join", Kind::Server, None, Sampling::Always));
    }

    #[test]
    fn texts_of_peers_are_cut_between_characters() {
        let long = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(cut(&long).len(), TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), TEXT_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }

    #[test]
    fn settings_name_a_collector_and_a_share() {
        let with = |otlp: &str, sample| {
            Config {
                otlp: otlp.to_owned(),
                sample,
            }
            .endpoint()
        };
        assert!(matches!(with("", 0.5), Ok(None)));
        assert!(matches!(with("http://collector:4317", 1.0), Ok(Some(_))));
        for wrong in ["collector:4317", "https://collector:4317", "http://", "/x"] {
            assert!(matches!(with(wrong, 1.0), Err(Error::Url(_))), "{wrong}");
        }
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(with("", wrong), Err(Error::Sample(_))));
        }
    }
}
