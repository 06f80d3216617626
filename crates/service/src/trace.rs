//! Traces: OpenTelemetry spans, sent over OTLP (HTTP, protobuf).
//!
//! Configured by the standard `OTEL_*` environment; off, and nothing but a look at a static, unless `OTEL_EXPORTER_OTLP_ENDPOINT` or
//! `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set. Sampler, limits and batching are the SDK's own and read their own variables. Spans hold names,
//! numbers and digests, never inputs or answers.

mod otlp;

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
pub use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{
    FutureExt as _, Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _,
    TracerProvider as _,
};
use opentelemetry::{Array, StringValue, Value};
use opentelemetry::{Context, InstrumentationScope};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

static TRACES: OnceLock<Option<Traces>> = OnceLock::new();
const USUAL_SERVICE: &str = "highroad";

fn traces() -> Option<&'static Traces> {
    TRACES.get()?.as_ref()
}

/// Starts sending traces where the environment says where to; later calls change nothing.
pub fn init() {
    TRACES.get_or_init(|| {
        let exporter = match otlp::Settings::from_env(|name| std::env::var(name).ok()) {
            Ok(None) => return None,
            Ok(Some(settings)) => otlp::Otlp::new(settings),
            Err(reason) => Err(reason),
        };
        let exporter = exporter.inspect_err(|reason| tracing::error!("No traces are sent: {reason}")).ok()?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(USUAL_SERVICE);
        }
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
        let scope = InstrumentationScope::builder("highroad").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = provider.tracer_with_scope(scope);
        Some(Traces { provider, tracer, propagator: TraceContextPropagator::new() })
    });
}

/// Sends what is still to be sent, at most a few seconds.
pub fn flush() {
    if let Some(traces) = traces() {
        let _told_by_the_exporter = traces.provider.shutdown_with_timeout(Duration::from_secs(5));
    }
}

/// Whether anything is traced.
pub fn is_on() -> bool {
    traces().is_some()
}

/// The trace and the span that this task works on, as W3C writes them; `None` where none is recorded.
pub fn ids() -> Option<(String, String)> {
    traces()?;
    let context = Context::current();
    let span = context.span().span_context().clone();
    span.is_sampled().then(|| (span.trace_id().to_string(), span.span_id().to_string()))
}

/// A span that goes on. Ends when dropped, at the latest.
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Side {
    Server,
    Client,
    Internal,
}

impl From<Side> for SpanKind {
    fn from(side: Side) -> Self {
        match side {
            Side::Server => Self::Server,
            Side::Client => Self::Client,
            Side::Internal => Self::Internal,
        }
    }
}

impl Span {
    /// That of a request, in the trace that its `traceparent` names or a new one.
    pub fn of_request(headers: &HeaderMap, name: impl FnOnce() -> String) -> Self {
        let Some(traces) = traces() else { return Self::default() };
        let parent = traces.propagator.extract_with_context(&Context::new(), &Headers(headers));
        Self::begin(traces, builder(name(), Side::Server), &parent)
    }

    /// One within what this task works on.
    pub fn within(name: impl FnOnce() -> String, side: Side) -> Self {
        let Some(traces) = traces() else { return Self::default() };
        Self::begin(traces, builder(name(), side), &Context::current())
    }

    fn begin(traces: &Traces, builder: SpanBuilder, parent: &Context) -> Self {
        let span = builder.start_with_context(&traces.tracer, parent);
        Self(Some(parent.with_span(span)))
    }

    /// What this task works on, whoever ends it.
    pub fn current() -> Current {
        Current(traces().map(|_| Context::current()))
    }

    /// Does `work` as part of it.
    pub async fn scope<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            Some(context) => work.with_context(context.clone()).await,
            None => work.await,
        }
    }

    /// Says more about it; `attributes` is only asked where it is recorded.
    pub fn set<const N: usize>(&self, attributes: impl FnOnce() -> [KeyValue; N]) {
        if let Some(context) = self.recording() {
            context.span().set_attributes(attributes());
        }
    }

    /// It went wrong, in so many words.
    pub fn failed(&self, reason: &str) {
        if let Some(context) = self.recording() {
            context.span().set_attribute(KeyValue::new("error.type", reason.to_owned()));
            context.span().set_status(Status::error(reason.to_owned()));
        }
    }

    /// Its `traceparent` and `tracestate`, for whoever is asked next.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some((traces, context)) = traces().zip(self.0.as_ref()) {
            traces.propagator.inject_context(context, &mut HeadersMut(&mut headers));
        }
        headers
    }

    /// As W3C writes them; `None` where it is not recorded.
    pub fn ids(&self) -> Option<(String, String)> {
        let span = self.recording()?.span().span_context().clone();
        Some((span.trace_id().to_string(), span.span_id().to_string()))
    }

    fn recording(&self) -> Option<&Context> {
        self.0.as_ref().filter(|context| context.span().is_recording())
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// What a task worked on when it was asked, kept past that task.
#[derive(Clone, Debug, Default)]
pub struct Current(Option<Context>);

impl Current {
    /// Records something that lies behind: it began at `begun`, took `took`, and is a part of this.
    pub fn past(
        &self,
        name: impl FnOnce() -> String,
        begun: Instant,
        took: Duration,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) -> Self {
        let Some((traces, parent)) = traces().zip(self.0.as_ref()).filter(|(_, parent)| parent.span().is_recording())
        else {
            return Self::default();
        };
        let (start, end) = times(begun, took);
        let builder = builder(name(), Side::Internal).with_start_time(start).with_attributes(attributes());
        let mut span = builder.start_with_context(&traces.tracer, parent);
        let context = span.span_context().clone();
        span.end_with_timestamp(end);
        Self(Some(parent.with_remote_span_context(context)))
    }

    /// The same for a part of something that was recorded as [`Current::past`].
    pub fn part(&self, name: &'static str, begun: Instant, took: Duration) {
        let Some((traces, parent)) = traces().zip(self.0.as_ref()) else { return };
        let (start, end) = times(begun, took);
        let mut span =
            builder(name.to_owned(), Side::Internal).with_start_time(start).start_with_context(&traces.tracer, parent);
        span.end_with_timestamp(end);
    }

    /// Records something that was done because of this but is no part of it: a trace of its own, linked to this one.
    pub fn linked(
        &self,
        name: impl FnOnce() -> String,
        begun: Instant,
        took: Duration,
        attributes: impl FnOnce() -> Vec<KeyValue>,
    ) {
        let Some((traces, cause)) = traces().zip(self.0.as_ref()) else { return };
        let cause: SpanContext = cause.span().span_context().clone();
        if !cause.is_sampled() {
            return;
        }
        let (start, end) = times(begun, took);
        let builder = builder(name(), Side::Internal).with_start_time(start).with_attributes(attributes());
        let builder = builder.with_links(vec![Link::new(cause, Vec::new(), 0)]);
        let mut span = builder.start_with_context(&traces.tracer, &Context::new());
        span.end_with_timestamp(end);
    }
}

/// Texts as one value.
pub fn texts(texts: Vec<StringValue>) -> Value {
    Value::Array(Array::String(texts))
}

fn builder(name: String, side: Side) -> SpanBuilder {
    SpanBuilder::from_name(name).with_kind(side.into())
}

/// By the clock on the wall: a monotonic time has no date, and now is both.
fn times(begun: Instant, took: Duration) -> (SystemTime, SystemTime) {
    let start = SystemTime::now().checked_sub(begun.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
    (start, start.checked_add(took).unwrap_or(start))
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
