//! Who learns of the calls of hooks.

use std::sync::Arc;
use std::time::Duration;

use crate::sandbox::LogSink;

/// Learns of the calls of hooks, and receives what plugins log.
pub trait Observer: LogSink {
    /// What learns of the calls of a hook from now on.
    fn calls_of(&self, hook: &str, plugin: &str) -> Arc<dyn Calls>;
}

/// Learns of the calls of one hook, on the thread that calls the plugin, in the span of the request; must not block.
pub trait Calls: Send + Sync {
    /// A call ended. `result` is `accepted` or the [`Error::word`](super::Error::word) of its error; `memory_bytes` is the
    /// linear memory of the instance.
    fn ended(&self, took: Duration, result: &'static str, memory_bytes: usize);
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl LogSink for Unobserved {}

impl Observer for Unobserved {
    fn calls_of(&self, _: &str, _: &str) -> Arc<dyn Calls> {
        Arc::new(Self)
    }
}

impl Calls for Unobserved {
    fn ended(&self, _: Duration, _: &'static str, _: usize) {}
}
