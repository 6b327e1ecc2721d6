//! Exporters that say when their collector stops and starts to take what they send.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::Temporality;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

/// An exporter of `traces` or `metrics`. It logs the first failure and the end of a series of failures, not each of them.
#[derive(Debug)]
pub(super) struct Watched<E> {
    exporter: E,
    signal: &'static str,
    fails: AtomicBool,
}

impl<E> Watched<E> {
    pub(super) fn new(exporter: E, signal: &'static str) -> Self {
        Self { exporter, signal, fails: AtomicBool::new(false) }
    }

    fn note(&self, result: OTelSdkResult) -> OTelSdkResult {
        let signal = self.signal;
        match (&result, self.fails.swap(result.is_err(), Ordering::Relaxed)) {
            (Err(error), false) => {
                tracing::warn!(%error, "{signal} cannot be exported and are lost until the collector takes them again");
            }
            (Ok(()), true) => tracing::info!("{signal} are exported again"),
            _ => {}
        }
        result
    }
}

impl<E: SpanExporter> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.note(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.note(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}
