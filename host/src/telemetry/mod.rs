//! Telemetry: traces, metrics and logs (P10).
//!
//! # Approach
//!
//! Traces and metrics are exported by OTLP (HTTP, protobuf) if a standard variable names an endpoint:
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, or its `_TRACES_` and `_METRICS_` forms. The SDK reads the other variables itself:
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`.
//! `OTEL_SDK_DISABLED=true` disables all exports. Metrics are always collected, for `/metrics`.
//!
//! Inside the process, spans are `tracing` spans. Spans of the hot path have the target [`names::TRACE_TARGET`] and are not
//! created while traces are off. Between nodes, the trace context is part of the log entries, so each node adds its appends
//! and applies to the traces of the writes.
//!
//! Only the `tracing` subscriber is global to the process. Two nodes in one process have separate metrics.

mod context;
mod metrics;
pub mod names;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanBuilder, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

pub use self::context::{TraceContext, new_trace_id, request_trace_id, within_request, within_request_sync};
pub use self::metrics::{HookMetrics, Metrics, Stage};

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable text.
    Text,
    /// One JSON object a line, with the trace id under `spans`.
    Json,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter of log lines is malformed.
    #[error("--log: {0:?}: it must be a level or a list such as `brink=debug,warn` ({1})")]
    Filter(String, #[source] tracing_subscriber::filter::ParseError),
    /// The `OTEL_*` variables do not describe an exporter.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
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
}

impl Telemetry {
    /// Starts logs, metrics, and the exports that the `OTEL_*` variables ask for. `node` is exported as
    /// `service.instance.id`; `filter` is the `tracing` filter of log lines.
    pub fn init(node: String, format: LogFormat, filter: &str) -> Result<Self, Error> {
        // Log lines get their trace id from the request's span, so that span always exists.
        let with_spans = format!("{filter},{}=off,{}=info", names::TRACE_TARGET, names::REQUEST_TARGET);
        let line_filter = EnvFilter::try_new(with_spans).map_err(|error| Error::Filter(filter.to_owned(), error))?;
        let resource = resource(node);
        let traces = match exports("TRACES") {
            true => {
                let exporter = on_own_thread(|| SpanExporter::builder().with_http().build())?;
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
            metrics = metrics.with_reader(PeriodicReader::builder(exporter).build());
        }
        let metrics = Metrics::start(metrics);
        let spans = traces.as_ref().map(|(_, tracer)| {
            let targets = [names::TRACE_TARGET, names::REQUEST_TARGET].map(|target| (target, LevelFilter::INFO));
            let spans = tracing_opentelemetry::layer().with_tracer(tracer.clone());
            spans.with_location(false).with_threads(false).with_filter(Targets::from_iter(targets))
        });
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let lines = match format {
            LogFormat::Text => lines.boxed(),
            LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(true).boxed(),
        };
        tracing_subscriber::registry().with(spans).with(lines.with_filter(line_filter)).try_init()?;
        Ok(Self { metrics, traces })
    }

    /// Telemetry without logs and exports; the metrics are only kept for `/metrics`.
    pub fn disabled() -> Self {
        Self { metrics: Metrics::start(SdkMeterProvider::builder()), traces: None }
    }

    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub(crate) fn exports_traces(&self) -> bool {
        self.traces.is_some()
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

    /// Exports the remaining traces and metrics within a deadline. Call it once, at the end.
    pub async fn shutdown(self, deadline: Duration) {
        let ended = tokio::task::spawn_blocking(move || {
            if let Some((traces, _)) = &self.traces
                && let Err(error) = traces.shutdown_with_timeout(deadline)
            {
                tracing::warn!(%error, "the last traces were not exported");
            }
            if let Err(error) = self.metrics.provider.shutdown_with_timeout(deadline) {
                tracing::warn!(%error, "the last metrics were not exported");
            }
        });
        if tokio::time::timeout(deadline * 2, ended).await.is_err() {
            tracing::warn!("the export of the last traces and metrics was abandoned");
        }
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
