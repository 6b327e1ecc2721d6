//! The memory and table limits of one plugin instance.
//!
//! Limits hold for the instance as a whole: many small memories count as one large one. A refused growth is remembered,
//! because what follows it is usually the guest's own abort, which says nothing about the cause.

use wasmtime::ResourceLimiter;

use crate::limits;

/// Counts what an instance has, and refuses what goes beyond its limits.
pub(super) struct Limiter {
    memory: Budget,
    tables: Budget,
}

/// A growth that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// Of what, with the unit.
    pub(super) what: &'static str,
    /// How much the instance would have had in all.
    pub(super) asked: usize,
    /// How much it may have.
    pub(super) limit: usize,
}

impl Limiter {
    /// A limiter for an instance that may have this much memory in all.
    pub(super) fn new(memory_bytes_max: usize) -> Self {
        Self {
            memory: Budget::new("bytes of memory", memory_bytes_max),
            tables: Budget::new("table elements", limits::PLUGIN_TABLE_ELEMENTS_MAX),
        }
    }

    /// For another call of an instance that was put back to where it began. `false`: it has more than it may have now.
    pub(super) fn renew(&mut self, memory_bytes_max: usize) -> bool {
        self.memory.limit = memory_bytes_max;
        self.memory.used <= memory_bytes_max
    }

    /// The growth that was refused, if any was.
    pub(super) fn refused(&self) -> Option<Refused> {
        self.memory.refused.or(self.tables.refused)
    }

    /// The most memory the instance had, in bytes. Memory of WebAssembly never shrinks.
    pub(super) fn memory_bytes(&self) -> usize {
        self.memory.used
    }
}

struct Budget {
    what: &'static str,
    used: usize,
    limit: usize,
    last_growth: usize,
    refused: Option<Refused>,
}

impl Budget {
    fn new(what: &'static str, limit: usize) -> Self {
        Self { what, used: 0, limit, last_growth: 0, refused: None }
    }

    fn grow(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> bool {
        self.last_growth = 0;
        if maximum.is_some_and(|maximum| desired > maximum && maximum < self.limit) {
            // The guest's own declared bound: the engine refuses it, and it is not our limit that was met. What a slot of
            // the pool holds is told as a maximum too, and is no less than our limit.
            return false;
        }
        let growth = desired.saturating_sub(current);
        let asked = self.used.saturating_add(growth);
        if asked > self.limit {
            self.refused.get_or_insert(Refused { what: self.what, asked, limit: self.limit });
            return false;
        }
        self.used = asked;
        self.last_growth = growth;
        true
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
