//! Telemetry: traces, metrics and logs (P10).
//!
//! # Approach
//!
//! Traces and metrics are exported by OTLP (HTTP, protobuf) if a standard variable names an endpoint:
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, or its `_TRACES_` and `_METRICS_` forms. The SDK reads the other variables itself:
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`.
//! `OTEL_SDK_DISABLED=true` disables all exports. Metrics are always collected, for `/metrics`.
//!
//! Inside the process, spans are `tracing` spans with the target [`names::TRACE_TARGET`]. They are not created while traces are
//! off. Between nodes, the trace context is part of the log entries, so each node adds its appends and applies to the traces
//! of the writes.
//!
//! Log lines are written by a thread of their own, so that a pipe that nobody reads stops no request. Lines that do not fit its
//! queue are dropped and counted. A collector that does not answer is logged once, and delays the end of the process by a
//! bounded time.
//!
//! Only the `tracing` subscriber is global to the process. Two nodes in one process have separate metrics.

mod context;
mod lines;
mod metrics;
pub mod names;
mod watched;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use parking_lot::Mutex;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use self::context::{TraceContext, TraceIdHex, request_trace_id, within_request, within_request_sync};
pub use self::lines::{LogFormat, SafeFields};
use self::lines::{line_filter, lines_layer};
pub use self::metrics::{HookMetrics, Metrics, Stage};
use self::watched::Watched;

/// Log lines that wait for whoever reads them.
const LINES_MAX: usize = 16 * 1024;

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter of log lines is malformed.
    #[error("--log: {0:?}: it must be a level or a list such as `brink=debug,warn` ({1})")]
    Filter(String, #[source] ParseError),
    /// The `OTEL_*` variables do not describe an exporter.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Standard error cannot be written to.
    #[error("standard error: {0}")]
    Lines(#[from] io::Error),
    /// The process already has a `tracing` subscriber.
    #[error("logging is set up already")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// The telemetry of a node. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
    /// The provider and its tracer; `None` while traces are off.
    traces: Option<(SdkTracerProvider, SdkTracer)>,
    /// Writes the remaining log lines when it is dropped.
    lines: Arc<Mutex<Option<WorkerGuard>>>,
}

impl Telemetry {
    /// Starts logs, metrics, and the exports that the `OTEL_*` variables ask for. `node` is exported as
    /// `service.instance.id`; `filter` is the `tracing` filter of log lines.
    pub fn init(node: String, format: LogFormat, filter: &str) -> Result<Self, Error> {
        let line_filter = line_filter(filter).map_err(|error| Error::Filter(filter.to_owned(), error))?;
        let resource = resource(node);
        let traces = match exports("TRACES") {
            true => {
                let exporter = on_own_thread(|| SpanExporter::builder().with_http().build())?;
                let exporter = Watched::new(exporter, "traces");
                let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
                let provider = provider.with_resource(resource.clone()).build();
                let tracer = provider.tracer("brink");
                Some((provider, tracer))
            }
            false => None,
        };
        let mut metrics = SdkMeterProvider::builder().with_resource(resource);
        if exports("METRICS") {
            let exporter = on_own_thread(|| MetricExporter::builder().with_http().build())?;
            let exporter = Watched::new(exporter, "metrics");
            metrics = metrics.with_reader(PeriodicReader::builder(exporter).build());
        }
        // Past the lock of `std::io::stderr`, which a blocked line would keep.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let lines = NonBlockingBuilder::default().buffered_lines_limit(LINES_MAX).thread_name("brink-lines");
        let (writer, guard) = lines.finish(stderr);
        let dropped = writer.error_counter();
        let metrics = Metrics::start(metrics, move || dropped.dropped_lines() as u64);
        let spans = traces.as_ref().map(|(_, tracer)| {
            let targets = [(names::TRACE_TARGET, LevelFilter::INFO)];
            let spans = tracing_opentelemetry::layer().with_tracer(tracer.clone());
            spans.with_location(false).with_threads(false).with_filter(Targets::from_iter(targets))
        });
        let lines = tracing_subscriber::registry().with(lines_layer(format, line_filter, writer));
        // IMPORTANT: an `Option` must not be passed to `with`: `None` enables every span.
        match spans {
            Some(spans) => lines.with(spans).try_init()?,
            None => lines.try_init()?,
        }
        Ok(Self { metrics, traces, lines: Arc::new(Mutex::new(Some(guard))) })
    }

    /// Telemetry without logs and exports; the metrics are only kept for `/metrics`.
    pub fn disabled() -> Self {
        Self { metrics: Metrics::start(SdkMeterProvider::builder(), || 0), traces: None, lines: Arc::default() }
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Records a span that has ended, as a child of `parent`. One append or apply serves the writes of many traces, so its
    /// span is recorded once in each of them. Does nothing while traces are off.
    pub fn record_span(
        &self,
        name: &'static str,
        parent: TraceContext,
        began: SystemTime,
        ended: SystemTime,
        attributes: &[KeyValue],
    ) {
        let Some((_, tracer)) = &self.traces else { return };
        let builder = SpanBuilder::from_name(name).with_start_time(began).with_attributes(attributes.to_vec());
        tracer.build_with_context(builder, &parent.to_parent()).end_with_timestamp(ended);
    }

    /// Exports the remaining traces and metrics and writes the remaining log lines, within a deadline. Call it once, at the end.
    pub async fn shutdown(self, deadline: Duration) {
        let lines = self.lines.clone();
        let (traces, metrics) = (self.traces.map(|(traces, _)| traces), self.metrics);
        let traces = ended("traces", move || traces.map_or(Ok(()), |traces| traces.shutdown_with_timeout(deadline)));
        let metrics = ended("metrics", move || metrics.provider.shutdown_with_timeout(deadline));
        if tokio::time::timeout(deadline, async { tokio::join!(traces, metrics) }).await.is_err() {
            tracing::warn!("the last traces and metrics were not exported: the collector does not answer");
        }
        drop(lines.lock().take());
    }
}

/// Ends the exports of a signal on a thread that nobody waits for any longer than for the result.
async fn ended(signal: &'static str, end: impl FnOnce() -> OTelSdkResult + Send + 'static) {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(done.send(end())));
    if let Ok(Err(error)) = result.await {
        tracing::warn!(%error, "the last {signal} were not exported");
    }
}

fn resource(node: String) -> Resource {
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("brink");
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    resource.with_attributes([KeyValue::new("service.instance.id", node), version]).build()
}

/// Whether to export a signal: `TRACES` or `METRICS`.
fn exports(signal: &str) -> bool {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.trim().eq_ignore_ascii_case("true"));
    let named = set("OTEL_EXPORTER_OTLP_ENDPOINT") || set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
    let none = std::env::var(format!("OTEL_{signal}_EXPORTER")).is_ok_and(|value| value.trim() == "none");
    named && !disabled && !none
}

/// Builds an exporter on its own thread, since its blocking HTTP client must not be built inside an async runtime.
fn on_own_thread<T: Send>(build: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(build).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
