//! The observer of this node's plugins: counts their calls in the metrics, and keeps the lines they log.

use crate::clock;
use crate::hooks::{Calls, Line, LogSink, LogSource, Observer, Record};
use crate::telemetry::{Telemetry, request_trace_id};

/// Observes all plugins of a node.
pub(super) struct PluginObserver {
    pub(super) telemetry: Telemetry,
    pub(super) record: Record,
}

impl Observer for PluginObserver {
    fn calls_of(&self, hook: &str, plugin: &str) -> Calls {
        let metrics = self.telemetry.metrics().of_hook(hook, plugin);
        let figures = self.record.of_hook(hook, plugin);
        Box::new(move |took, result, memory_bytes| {
            metrics.call(took, result, memory_bytes);
            if let Some(figures) = &figures {
                figures.count(took, result, memory_bytes);
            }
        })
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
