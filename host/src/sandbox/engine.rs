//! The WebAssembly engine of a node: its configuration, its clock, its compilers, and its cache of compiled code.

use std::collections::HashSet;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::available_parallelism;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component;
use wasmtime::{Config, Enabled, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, RegallocAlgorithm};

use super::cache::Cache;
use super::error::{EngineError, Error};
use super::instance::ResetSupport;
use super::lines::LogSink;
use super::ticker::Ticker;
use crate::limits;

/// Instances that run at once, per core. More than one, because guests may wait for reads.
const INSTANCES_PER_CORE: usize = 4;

/// Address space of one linear memory, so that bounds checks are page faults and a memory never moves when it grows.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Bytes of an ended instance's memory that are zeroed and kept instead of returned to the system. Small instances then
/// cause no page fault; more would only raise the node's resident memory.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// The same for tables.
const TABLE_KEEP_RESIDENT_BYTES: usize = 16 << 10;

/// wasmtime's own data of one instance, without its memory. The largest language runtimes need about one MiB.
const INSTANCE_METADATA_BYTES_MAX: usize = 8 << 20;

const BACKGROUND_INSTANCES_MAX: usize = limits::PLUGIN_INSTANCES_MAX / INSTANCES_PER_CORE;

/// Instances that may run at once. An ended instance returns its slots a moment later, hence a few to spare.
const RUNNING_INSTANCES: u32 =
    (limits::PLUGIN_INSTANCES_MAX + BACKGROUND_INSTANCES_MAX + limits::PLUGIN_SIDE_INSTANCES_MAX + 4) as u32;

/// Instances that may wait for calls, beside those that run. Each counts as at least one MiB, and has one memory, because
/// only such instances can be reset.
const WAITING_INSTANCES: u32 = limits::PLUGIN_KEPT_MIB_MAX as u32;

/// Niceness of the threads of a node's pools, of 0 to 19. On Linux each thread has its own.
const NICENESS: i32 = 5;

/// Guest instances that may run at once on this machine for writes.
pub(crate) fn instances_max() -> usize {
    let cores = available_parallelism().map_or(1, NonZero::get);
    cores.saturating_mul(INSTANCES_PER_CORE).min(limits::PLUGIN_INSTANCES_MAX)
}

/// Instances that may run at once in the background, beside those: one per core.
pub(crate) fn background_instances_max() -> usize {
    (instances_max() / INSTANCES_PER_CORE).max(1)
}

/// The engine that compiles and runs guests. Its clock stops when it is dropped.
pub struct Engine {
    wasmtime: wasmtime::Engine,
    pub(super) ticker: Ticker,
    compilers: Arc<ThreadPool>,
    /// For calls that take long.
    pub(crate) background: Arc<ThreadPool>,
    cache: Option<Cache>,
    pub(super) log_sink: Arc<dyn LogSink>,
    side_room: Semaphore,
    /// What instances are reset with; `None` where that is not possible.
    pub(super) reset_support: Option<Arc<ResetSupport>>,
}

impl Engine {
    /// Sets up the engine. Fails if the machine cannot run it. Where the system denies the address space that the pool of
    /// instances reserves (`ulimit -v`), instances are allocated one by one, which is slower, and a warning says so.
    ///
    /// A node gives a folder for compiled code, where the next process finds it, and its compilers and background threads
    /// yield to the threads that serve. A folder that cannot be used is reported, and the node does without.
    pub fn new(log_sink: Arc<dyn LogSink>, cache_dir: Option<&Path>) -> Result<Self, EngineError> {
        let pooled = wasmtime::Engine::new(config().allocation_strategy(pool()));
        let wasmtime = pooled.or_else(|error| {
            let error = format!("{error:#}");
            tracing::warn!(error, "plugin instances cannot be pooled; calls will be slower");
            wasmtime::Engine::new(&config()).map_err(EngineError::new)
        })?;
        let cache = cache_dir.and_then(|dir| {
            let cache = Cache::open(dir, &wasmtime);
            cache.inspect_err(|error| tracing::warn!(dir = %dir.display(), %error, "compiled code is not stored")).ok()
        });
        let is_node = cache_dir.is_some();
        Ok(Self {
            ticker: Ticker::start(&wasmtime).map_err(EngineError::new)?,
            compilers: threads("compiler", 0, is_node)?,
            background: threads("plugin", background_instances_max(), is_node)?,
            cache,
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

    /// An engine for a single instance: it compiles quickly, and its code runs slowly.
    pub(super) fn scratch(&self) -> Result<Self, EngineError> {
        let mut config = config();
        config.cranelift_opt_level(OptLevel::None).cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
        let wasmtime = wasmtime::Engine::new(&config).map_err(EngineError::new)?;
        Ok(Self {
            ticker: Ticker::start(&wasmtime).map_err(EngineError::new)?,
            compilers: Arc::clone(&self.compilers),
            background: Arc::clone(&self.background),
            cache: None,
            log_sink: Arc::new(()),
            side_room: Semaphore::new(0),
            reset_support: None,
            wasmtime,
        })
    }

    /// Compiles a component, unless it is in the cache under this key. An error says why it cannot be compiled.
    pub(super) fn compile(&self, key: &str, bytes: &[u8]) -> Result<Component, String> {
        if let Some(component) = self.cached(key) {
            return Ok(component);
        }
        // The bytes come from outside, and compilers are large: a panic is an error like any other.
        let compile = || self.compilers.install(|| Component::from_binary(&self.wasmtime, bytes));
        let component = catch_unwind(AssertUnwindSafe(compile))
            .map_err(|_| "the compiler failed on it".to_owned())?
            .map_err(|error| format!("{error:#}"))?;
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

/// Starts `count` threads; 0 means one for each core.
///
/// On a node they have a lower priority: each gets about a quarter of a busy core, and all of an idle one.
fn threads(name: &'static str, count: usize, is_node: bool) -> Result<Arc<ThreadPool>, EngineError> {
    let lower_priority = move |_| {
        if is_node && let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, name, "the priority of the threads could not be lowered");
        }
    };
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(move |index| format!("{name}-{index}"));
    pool.start_handler(lower_priority).build().map(Arc::new).map_err(EngineError::new)
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        // 32-bit memories only: bounds checks stay free, and no language of plugins needs more.
        .wasm_memory64(false)
        // A trap's backtrace names functions, and released plugins have no names for them.
        .wasm_backtrace_max_frames(None)
        .memory_reservation(MEMORY_RESERVATION_BYTES);
    config
}

/// Whether pages may be swapped out. wasmtime's scan misses pages that were written to and then swapped out, so that the
/// next instance in the slot would find them.
fn has_swap() -> bool {
    // The first line is a heading.
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
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
        .pagemap_scan(if has_swap() { Enabled::No } else { Enabled::Auto });
    InstanceAllocationStrategy::Pooling(pool)
}
