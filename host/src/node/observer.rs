//! The observer of this node's plugins: counts their calls in the metrics, and keeps the lines they log.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::hooks::{Calls, Figures, Line, LogSink, LogSource, Observer, Record};
use crate::telemetry::{HookMetrics, Telemetry, request_trace_id};

/// Observes all plugins of a node.
pub(super) struct PluginObserver {
    pub(super) telemetry: Telemetry,
    pub(super) record: Record,
}

impl Observer for PluginObserver {
    fn calls_of(&self, hook: &str, plugin: &str) -> Arc<dyn Calls> {
        let metrics = self.telemetry.metrics().of_hook(hook, plugin);
        Arc::new(HookObserver { metrics, figures: self.record.of_hook(hook, plugin) })
    }
}

impl LogSink for PluginObserver {
    fn log(&self, source: &LogSource, level: &'static str, message: String) {
        let LogSource { hook, plugin, digest } = source;
        let (hook, plugin, digest) = (hook.clone(), plugin.clone(), digest.clone());
        let trace_id = request_trace_id().map(|id| id.to_string());
        self.record.say(Line { at_ms: clock::unix_ms(), hook, plugin, digest, trace_id, level, message });
    }
}

/// Observes the calls of one hook.
struct HookObserver {
    metrics: HookMetrics,
    figures: Option<Figures>,
}

impl Calls for HookObserver {
    fn ended(&self, took: Duration, result: &'static str, memory_bytes: usize) {
        self.metrics.call(took, result, memory_bytes);
        if let Some(figures) = &self.figures {
            figures.count(took, result, memory_bytes);
        }
    }
}
