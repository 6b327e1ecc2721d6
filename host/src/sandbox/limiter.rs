//! The limits of one call, and what enforces those of memory and tables.
//!
//! Limits hold for the instance as a whole: many small memories count as one large one. A refused growth is remembered, because
//! the guest usually aborts after it, and the abort does not name the cause.

use std::time::Duration;

use wasmtime::ResourceLimiter;

use super::error::Error;
use crate::limits;

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// How long each step (start, `configure`, the call itself) may take.
    pub deadline: Duration,
    /// Linear memory, in bytes.
    pub memory_bytes: usize,
    /// What the guest may pass to the host, in bytes.
    pub output_bytes: usize,
    /// Whether the caller repeats the call if it meets a limit. Then its log lines are dropped in that case, and all its
    /// steps share one deadline.
    pub is_provisional: bool,
}

/// Counts the memory and the table elements of an instance, and refuses growth beyond the limits.
pub(super) struct Limiter {
    memory: Budget,
    tables: Budget,
}

impl Limiter {
    pub(super) fn new(memory_bytes_max: usize) -> Self {
        Self {
            memory: Budget::new("bytes of memory", memory_bytes_max),
            tables: Budget::new("table elements", limits::PLUGIN_TABLE_ELEMENTS_MAX),
        }
    }

    /// Changes the memory limit for another call of a reset instance. `false`: the instance has more already.
    pub(super) fn renew(&mut self, memory_bytes_max: usize) -> bool {
        self.memory.limit = memory_bytes_max;
        self.memory.used <= memory_bytes_max
    }

    /// The first growth that was refused, as an error.
    pub(super) fn refused(&self) -> Option<Error> {
        self.memory.error().or_else(|| self.tables.error())
    }

    /// The most memory the instance had, in bytes. WebAssembly memory never shrinks.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory.used
    }
}

struct Budget {
    what: &'static str,
    used: usize,
    limit: usize,
    last_growth: usize,
    /// How much there would have been in all after the first growth that was refused.
    refused: Option<usize>,
}

impl Budget {
    fn new(what: &'static str, limit: usize) -> Self {
        Self { what, used: 0, limit, last_growth: 0, refused: None }
    }

    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        self.last_growth = 0;
        if maximum.is_some_and(|maximum| desired > maximum && maximum < self.limit) {
            // The guest exceeds the maximum that it declared itself: wasmtime refuses that, and our limit is not met. The size
            // of a pool slot arrives as a maximum too, but is never below our limit.
            return false;
        }
        let growth = desired.saturating_sub(current);
        let asked = self.used.saturating_add(growth);
        if asked > self.limit {
            self.refused.get_or_insert(asked);
            return false;
        }
        self.used = asked;
        self.last_growth = growth;
        true
    }

    fn error(&self) -> Option<Error> {
        self.refused.map(|asked| Error::MemoryLimit { what: self.what, asked, limit: self.limit })
    }

    fn give_back(&mut self) {
        self.used = self.used.saturating_sub(self.last_growth);
        self.last_growth = 0;
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.memory.grow(current, desired, maximum))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.give_back();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.tables.grow(current, desired, maximum))
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.tables.give_back();
        Ok(())
    }

    fn instances(&self) -> usize {
        limits::PLUGIN_CORE_INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        limits::PLUGIN_MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        limits::PLUGIN_TABLES_MAX
    }
}
