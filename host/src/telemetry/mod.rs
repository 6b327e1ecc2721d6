//! What a node tells of itself: traces, metrics and logs.
//!
//! # Approach
//!
//! Traces leave by OTLP (HTTP, protobuf) if one of the standard variables names an endpoint:
//! `OTEL_EXPORTER_OTLP_ENDPOINT`, or its `_TRACES_` and `_METRICS_` forms. The SDK reads the others by itself:
//! `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_*`, `OTEL_METRIC_EXPORT_INTERVAL`.
//! `OTEL_SDK_DISABLED=true` turns all of it off. Metrics are collected always, for `/metrics`.
//!
//! Inside the process, spans are `tracing` spans. Those of the hot path have the target [`names::TRACE_TARGET`] and are
//! not even created while traces are off. Across processes the context travels in the log entries themselves, so each
//! node adds its appends and applies to the traces of the writes it handles.
//!
//! Nothing here is global to the process except the subscriber that `tracing` itself keeps: two nodes in one process
//! have their own metrics.

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

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, with the trace id under `spans`.
    Json,
}

/// How a node reports.
#[derive(Debug, Clone)]
pub struct Config {
    /// What tells this node from others: `service.instance.id`.
    pub node: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What is logged, as `tracing` filters say it.
    pub log_filter: String,
}

/// Why reporting could not begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter of log lines is malformed.
    #[error("--log: {found:?}: it must be a level or a list such as `brink=debug,warn` ({source})")]
    Filter {
        /// The filter.
        found: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// An exporter cannot be built from the `OTEL_*` variables.
    #[error("OTEL_*: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The metrics cannot be set up.
    #[error("metrics cannot be set up: {0}")]
    Metrics(#[from] opentelemetry_sdk::error::OTelSdkError),
    /// A subscriber for `tracing` is set already.
    #[error("logging is set up already")]
    Subscriber(#[from] tracing_subscriber::util::TryInitError),
}

/// A node's reporting. Cheap to clone.
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
    /// Begins to log, to count, and to export as the `OTEL_*` variables say.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn init(config: &Config) -> Result<Self, Error> {
        // Requests give log lines their trace id, so their span is always there.
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

    /// Reporting that nobody listens to, except by [`Metrics::render_prometheus`].
    pub fn disabled() -> Self {
        let (metrics, provider) = pulled_metrics(SdkMeterProvider::builder());
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
        let (metrics, provider) = pulled_metrics(metrics);
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

    /// Records spans that have ended.
    pub fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    /// Sends what has not left yet, within a deadline. Called once, at the end.
    pub async fn shutdown(self, deadline: Duration) {
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(traces) = &self.providers.traces
                && let Err(error) = traces.shutdown_with_timeout(deadline)
            {
                tracing::warn!(%error, "the last traces were not sent");
            }
            if let Err(error) = self.providers.metrics.shutdown_with_timeout(deadline) {
                tracing::warn!(%error, "the last metrics were not sent");
            }
        });
        if tokio::time::timeout(deadline * 2, ended).await.is_err() {
            tracing::warn!("the last traces and metrics were given up");
        }
    }
}

/// Adds the reader behind `/metrics`.
fn pulled_metrics(builder: opentelemetry_sdk::metrics::MeterProviderBuilder) -> (Metrics, SdkMeterProvider) {
    let registry = prometheus::Registry::new();
    let provider = match opentelemetry_prometheus::exporter().with_registry(registry.clone()).build() {
        Ok(exporter) => builder.with_reader(exporter).build(),
        // A new registry has nothing that the exporter could collide with.
        Err(error) => {
            tracing::error!(%error, "/metrics stays empty");
            builder.build()
        }
    };
    (Metrics::new(provider.clone(), registry), provider)
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

/// Whether a signal is to be exported.
fn exports(signal: &str) -> bool {
    let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.trim().is_empty());
    let disabled = std::env::var("OTEL_SDK_DISABLED").is_ok_and(|value| value.trim().eq_ignore_ascii_case("true"));
    let named = set("OTEL_EXPORTER_OTLP_ENDPOINT") || set(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"));
    let none = std::env::var(format!("OTEL_{signal}_EXPORTER")).is_ok_and(|value| value.trim() == "none");
    named && !disabled && !none
}

/// Builds an exporter on a thread of its own: its HTTP client is a blocking one, which must not be made inside an async
/// runtime.
fn on_own_thread<T: Send>(
    build: impl FnOnce() -> Result<T, opentelemetry_otlp::ExporterBuildError> + Send,
) -> Result<T, opentelemetry_otlp::ExporterBuildError> {
    std::thread::scope(|scope| match scope.spawn(build).join() {
        Ok(built) => built,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

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
