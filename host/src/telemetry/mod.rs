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
mod tracer;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

pub use self::context::{TraceContext, new_trace_id, request_trace_id, within_request, within_request_sync};
pub use self::metrics::{HookMetrics, Metrics, Stage};
pub use self::tracer::Tracer;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable text.
    Text,
    /// One JSON object a line, with the trace id under `spans`.
    Json,
}

/// The telemetry settings of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The name of this node, exported as `service.instance.id`.
    pub node: String,
    /// The format of log lines.
    pub log_format: LogFormat,
    /// The `tracing` filter of log lines.
    pub log_filter: String,
}

/// Why telemetry could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is malformed.
    #[error("--log: {found:?}: it must be a level or a list such as `brink=debug,warn` ({source})")]
    Filter {
        /// The filter.
        found: String,
        /// The parser's error.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The `OTEL_*` variables do not describe an exporter.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The metrics cannot be set up.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// The process already has a `tracing` subscriber.
    #[error("logging is set up already")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// The telemetry of a node. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry {
    metrics: Metrics,
    tracer: Tracer,
    providers: Arc<Providers>,
}

struct Providers {
    traces: Option<SdkTracerProvider>,
    metrics: SdkMeterProvider,
}

impl Telemetry {
    /// Starts logs, metrics, and the exports that the `OTEL_*` variables ask for.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn init(config: &Config) -> Result<Self, Error> {
        // Log lines get their trace id from the request's span, so that span always exists.
        let (traces, requests) = (names::TRACE_TARGET, names::REQUEST_TARGET);
        let filter = format!("{},{traces}=off,{requests}=info", config.log_filter);
        let filter =
            EnvFilter::try_new(filter).map_err(|source| Error::Filter { found: config.log_filter.clone(), source })?;
        let telemetry = Self::build(config)?;
        let layer = telemetry.providers.traces.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("brink"))
                .with_location(false)
                .with_threads(false)
                .with_filter(
                    Targets::new()
                        .with_target(names::TRACE_TARGET, LevelFilter::INFO)
                        .with_target(names::REQUEST_TARGET, LevelFilter::INFO),
                )
        });
        let lines = lines(config.log_format).with_filter(filter);
        tracing_subscriber::registry().with(layer).with(lines).try_init()?;
        Ok(telemetry)
    }

    /// Telemetry without logs and exports; only [`Metrics::render_prometheus`] works.
    pub fn disabled() -> Self {
        let (metrics, provider) = Metrics::start(SdkMeterProvider::builder());
        Self { metrics, tracer: Tracer::default(), providers: Arc::new(Providers { traces: None, metrics: provider }) }
    }

    fn build(config: &Config) -> Result<Self, Error> {
        let resource = resource(config);
        let traces = match exports("TRACES") {
            true => {
                let exporter = on_own_thread(|| SpanExporter::builder().with_http().build())?;
                let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
                Some(provider.with_resource(resource.clone()).build())
            }
            false => None,
        };
        let mut metrics = SdkMeterProvider::builder().with_resource(resource);
        if exports("METRICS") {
            let exporter = on_own_thread(|| MetricExporter::builder().with_http().build())?;
            metrics = metrics.with_reader(PeriodicReader::builder(exporter).build());
        }
        let (metrics, provider) = Metrics::start(metrics);
        let tracer = traces.as_ref().map(|traces| Tracer::new(traces.tracer("brink"))).unwrap_or_default();
        Ok(Self { metrics, tracer, providers: Arc::new(Providers { traces, metrics: provider }) })
    }

    /// Whether traces are exported.
    pub fn exports_traces(&self) -> bool {
        self.providers.traces.is_some()
    }

    /// The node's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Records ended spans.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Exports the remaining traces and metrics within a deadline. Call it once, at the end.
    pub async fn shutdown(self, deadline: Duration) {
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(traces) = &self.providers.traces
                && let Err(error) = traces.shutdown_with_timeout(deadline)
            {
                tracing::warn!(%error, "the last traces were not exported");
            }
            if let Err(error) = self.providers.metrics.shutdown_with_timeout(deadline) {
                tracing::warn!(%error, "the last metrics were not exported");
            }
        });
        if tokio::time::timeout(deadline * 2, ended).await.is_err() {
            tracing::warn!("the export of the last traces and metrics was abandoned");
        }
    }
}

fn resource(config: &Config) -> Resource {
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("brink");
    }
    resource
        .with_attribute(KeyValue::new("service.instance.id", config.node.clone()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build()
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
fn on_own_thread<T: Send>(
    build: impl FnOnce() -> Result<T, opentelemetry_otlp::ExporterBuildError> + Send,
) -> Result<T, opentelemetry_otlp::ExporterBuildError> {
    std::thread::scope(|scope| match scope.spawn(build).join() {
        Ok(built) => built,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The layer that writes log lines to standard error.
fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(true).boxed(),
    }
}
