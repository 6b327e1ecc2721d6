//! The WebAssembly engine of a node: its instances, its clock, its compilers, and its cache of compiled code.

use std::collections::HashSet;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Instant;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component;
use wasmtime::{Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::cache::{self, Cache};
use super::compiler::{self, CompileOptions, Compilers, Job, Processes, Refusal};
use super::error::{EngineError, Error};
use super::instance::ResetSupport;
use super::lines::LogSink;
use super::settings::{self, MEMORY_RESERVATION_BYTES, NICENESS};
use super::ticker::Ticker;
use crate::limits;

/// Instances that run at once, per core. More than one, because guests may wait for reads.
const INSTANCES_PER_CORE: usize = 4;

/// Bytes at the start of an ended instance's memory that are zeroed and kept instead of returned to the system. Small instances
/// then cause no page fault; more would only raise the node's resident memory.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// The same for tables.
const TABLE_KEEP_RESIDENT_BYTES: usize = 16 << 10;

/// wasmtime's own data of one instance, without its memory. The largest language runtimes need about one MiB.
const INSTANCE_METADATA_BYTES_MAX: usize = 8 << 20;

const BACKGROUND_INSTANCES_MAX: usize = limits::PLUGIN_INSTANCES_MAX / INSTANCES_PER_CORE;

/// Instances that may run at once; each component starts one when it has been compiled. An ended instance returns its slots a
/// moment later, hence a few to spare.
const RUNNING_INSTANCES: u32 = (limits::PLUGIN_INSTANCES_MAX
    + BACKGROUND_INSTANCES_MAX
    + limits::PLUGIN_SIDE_INSTANCES_MAX
    + limits::COMPILERS_MAX
    + 4) as u32;

/// Instances that may wait for calls, beside those that run. Each counts as at least one MiB, and has one memory, because
/// only such instances can be reset.
const WAITING_INSTANCES: u32 = limits::PLUGIN_KEPT_MIB_MAX as u32;

/// Guest instances that may run at once on this machine for writes.
pub(crate) fn instances_max() -> usize {
    let cores = available_parallelism().map_or(1, NonZero::get);
    cores.saturating_mul(INSTANCES_PER_CORE).min(limits::PLUGIN_INSTANCES_MAX)
}

/// Instances that may run at once in the background, beside those: one per core.
pub(crate) fn background_instances_max() -> usize {
    (instances_max() / INSTANCES_PER_CORE).max(1)
}

/// The engine that has guests compiled, and runs them. Its clock stops when it is dropped.
pub struct Engine {
    wasmtime: wasmtime::Engine,
    pub(super) ticker: Ticker,
    /// What compiles; none if this process does.
    processes: Option<Processes>,
    /// For calls that take long.
    pub(crate) background: Arc<ThreadPool>,
    /// Where compilers leave their results. Without one, which is so where no node is, each leaves its result in a file without
    /// a name, so that nothing is left behind however the process ends.
    cache: Option<Cache>,
    _temporary_cache: Option<TempDir>,
    pub(super) log_sink: Arc<dyn LogSink>,
    side_room: Semaphore,
    /// What instances are reset with; `None` where that is not possible.
    pub(super) reset_support: Option<Arc<ResetSupport>>,
}

impl Engine {
    /// Sets up the engine. Fails if the machine cannot run it. Where the system denies the address space that the pool of
    /// instances reserves (`ulimit -v`), instances are allocated one by one, which is slower, and a warning says so.
    ///
    /// A node gives a folder for compiled code, where the next process finds it, and its background threads yield to the
    /// threads that serve. A folder that cannot be used is reported, and the node does without.
    pub fn new(
        log_sink: Arc<dyn LogSink>,
        compilers: Compilers,
        cache_dir: Option<&Path>,
    ) -> Result<Self, EngineError> {
        let pooled = wasmtime::Engine::new(settings::config().allocation_strategy(pool()));
        let wasmtime = pooled.or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "plugin instances cannot be pooled; calls will be slower");
            wasmtime::Engine::new(&settings::config()).map_err(EngineError::new)
        })?;
        let mut cache = cache_dir.and_then(|dir| {
            let cache = Cache::open(dir, &wasmtime);
            cache.inspect_err(|error| tracing::warn!(dir = %dir.display(), %error, "compiled code is not stored")).ok()
        });
        let processes = (compilers == Compilers::Processes).then(Processes::of_this_executable);
        let mut temporary_cache = None;
        // A node looks for what it has compiled.
        if processes.is_some() && cache_dir.is_some() && cache.is_none() {
            let dir = tempfile::Builder::new().prefix("brink-compiled-").tempdir().map_err(EngineError::new)?;
            cache = Some(Cache::open(dir.path(), &wasmtime).map_err(EngineError::new)?);
            temporary_cache = Some(dir);
        }
        let is_node = cache_dir.is_some();
        Ok(Self {
            ticker: Ticker::start(&wasmtime).map_err(EngineError::new)?,
            processes,
            background: threads("plugin", background_instances_max(), is_node)?,
            cache,
            _temporary_cache: temporary_cache,
            log_sink,
            side_room: Semaphore::new(limits::PLUGIN_SIDE_INSTANCES_MAX),
            reset_support: ResetSupport::find(),
            wasmtime,
        })
    }

    /// Starts an instance for each call, to compare with.
    pub fn without_resets(self) -> Self {
        Self { reset_support: None, ..self }
    }

    /// Does a compiler's job, unless its result is in the cache under this key. Blocks until that is done, which may take as
    /// long as [`limits::COMPILE_DEADLINE`].
    pub(super) fn compile(
        &self,
        key: &str,
        job: &Job,
        bytes: &[u8],
        options: &CompileOptions,
    ) -> Result<Component, Error> {
        if let Some(component) = self.cached(key) {
            return Ok(component);
        }
        let Some(processes) = &self.processes else { return self.compile_here(key, job, bytes) };
        let deadline = Instant::now() + limits::COMPILE_DEADLINE;
        let _turn = processes.turns.take(key, options, deadline)?;
        // Another may have compiled it meanwhile.
        if let Some(component) = self.cached(key) {
            return Ok(component);
        }
        let failed = |error: std::io::Error| Error::Compiler(error.to_string());
        let Some(cache) = &self.cache else {
            let mut entry = cache::unnamed_entry().map_err(failed)?;
            let output = entry.try_clone().map_err(failed)?;
            processes.run(job, bytes, (&std::env::temp_dir(), output), options, deadline)?;
            return cache::load_unnamed(&self.wasmtime, &mut entry).ok_or_else(unusable);
        };
        let entry = cache.new_entry().map_err(failed)?;
        let output = entry.reopen().map_err(failed)?;
        processes.run(job, bytes, (cache.dir(), output), options, deadline)?;
        cache.adopt(key, entry).map_err(failed)?;
        self.cached(key).ok_or_else(unusable)
    }

    fn compile_here(&self, key: &str, job: &Job, bytes: &[u8]) -> Result<Component, Error> {
        let build = || compiler::build(&self.wasmtime, job, bytes, limits::PLUGIN_CONFIGURE_DEADLINE);
        // The bytes come from outside, and compilers are large: a panic is an error like any other.
        let built = catch_unwind(AssertUnwindSafe(build));
        let built = built.unwrap_or_else(|_| Err(Refusal::Invalid("the compiler failed on it".to_owned())));
        let component = built.map_err(|refusal| match refusal {
            Refusal::Invalid(reason) => Error::NotAComponent(reason),
            Refusal::Shape(reason) => Error::Shape(reason),
            Refusal::Unable(reason) => Error::Compiler(reason),
        })?;
        if let Some(cache) = &self.cache {
            cache.store(key, &component);
        }
        Ok(component)
    }

    /// The component that was compiled under this key, if it is in the cache.
    pub(super) fn cached(&self, key: &str) -> Option<Component> {
        self.cache.as_ref()?.load(&self.wasmtime, key)
    }

    /// Removes all compiled code from the cache, except that of these keys.
    pub(crate) fn retain_compiled(&self, keys: &HashSet<String>) {
        if let Some(cache) = &self.cache {
            cache.retain(keys);
        }
    }

    /// Room for an instance that no write waits for.
    pub(super) fn side_room(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.side_room.try_acquire().map_err(|_| Error::Busy)
    }
}

/// What a compiler wrote is not what it should have written.
fn unusable() -> Error {
    Error::Compiler("what it wrote cannot be used".to_owned())
}

/// Starts `count` threads; on a node, at a lower priority. On Linux each thread has its own.
fn threads(name: &'static str, count: usize, is_node: bool) -> Result<Arc<ThreadPool>, EngineError> {
    let lower_priority = move |_| {
        if is_node && let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, name, "the priority of the threads could not be lowered");
        }
    };
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(move |index| format!("{name}-{index}"));
    pool.start_handler(lower_priority).build().map(Arc::new).map_err(EngineError::new)
}

fn pool() -> InstanceAllocationStrategy {
    let instances = RUNNING_INSTANCES + WAITING_INSTANCES;
    let each = |instances: u32, count: usize| instances.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(each(instances, limits::PLUGIN_CORE_INSTANCES_MAX))
        .total_memories(each(RUNNING_INSTANCES, limits::PLUGIN_MEMORIES_MAX) + WAITING_INSTANCES)
        .total_tables(each(instances, limits::PLUGIN_TABLES_MAX))
        .max_memories_per_module(limits::PLUGIN_MEMORIES_MAX as u32)
        .max_tables_per_module(limits::PLUGIN_TABLES_MAX as u32)
        .table_elements(limits::PLUGIN_TABLE_ELEMENTS_MAX)
        .max_component_instance_size(INSTANCE_METADATA_BYTES_MAX)
        .max_core_instance_size(INSTANCE_METADATA_BYTES_MAX)
        // The limiter of each instance enforces the limit, and can say which one was met. This is the size of a slot.
        .max_memory_size(MEMORY_RESERVATION_BYTES as usize)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        // IMPORTANT: wasmtime's scan for written pages misses those that are not present at this moment, because they are swapped
        // out, or because Linux is moving them in memory. The next instance in the slot would find them. Neither can be ruled out
        // beforehand: swap can be added at any time. Our own resets ask for such pages too (see `instance/pages`).
        .pagemap_scan(Enabled::No);
    InstanceAllocationStrategy::Pooling(pool)
}

#[cfg(test)]
mod tests {
    use wasmtime::{Instance, Module, Store};

    use super::*;

    #[test]
    fn an_ended_instance_is_cleaned_wherever_its_pages_are() {
        let engine = wasmtime::Engine::new(settings::config().allocation_strategy(pool())).unwrap();
        let module = Module::new(&engine, wat::parse_str("(module (memory 1))").unwrap()).unwrap();
        let mut store = Store::new(&engine, ());
        Instance::new(&mut store, &module, &[]).unwrap();
        drop(store);
        // No page is present. A scan would find none, and clean nothing.
        let cleaned = engine.pooling_allocator_metrics().unwrap().unused_memory_bytes_resident();
        assert_eq!(cleaned, MEMORY_KEEP_RESIDENT_BYTES);
    }
}
