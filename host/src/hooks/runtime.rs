//! The WebAssembly engine of a node: its configuration, its clock, and who is told what plugins cost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::{Semaphore, SemaphorePermit};
use wasmtime::component::Component;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig, RegallocAlgorithm,
};

use super::cache::Cache;
use super::error::Error;
use super::hook::Hook;
use super::image;
use super::pipeline::{INSTANCES_PER_CORE, background_max};
use super::rewind::Means;
use super::ticker::Ticker;
use crate::limits;

/// Virtual address space of one linear memory, so that bounds checks are page faults and growth never moves it.
const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Pages of an ended instance that are zeroed and kept instead of returned to the system. Small instances then cost no
/// page fault; more would only raise the node's resident memory.
const MEMORY_KEEP_RESIDENT_BYTES: usize = 64 << 10;

/// As above, for tables.
const TABLE_KEEP_RESIDENT_BYTES: usize = 16 << 10;

/// The engine's own data of one instance (not its memory). The largest language runtimes need about one MiB.
const INSTANCE_METADATA_BYTES_MAX: usize = 8 << 20;

/// How far threads stand back that compile, or run what takes long; of 0 to 19. On Linux this is a thread's own.
const NICENESS: i32 = 5;

/// Instances that may run at once. An ended instance gives its slots back in a moment, hence a few to spare.
const RUNNING_INSTANCES: u32 =
    (limits::PLUGIN_INSTANCES_MAX + HEAVY_INSTANCES_MAX + limits::PLUGIN_SIDE_INSTANCES_MAX + 4) as u32;

/// Of them, those of heavy hooks.
const HEAVY_INSTANCES_MAX: usize = limits::PLUGIN_INSTANCES_MAX / INSTANCES_PER_CORE;

/// Instances that may wait for calls, beside those that run: at least a MiB each. They are of images that can be put back,
/// which have one memory.
const KEPT_INSTANCES: u32 = limits::PLUGIN_KEPT_MIB_MAX as u32;

/// Learns what plugins do. Called on the thread that runs them, in the span of the request; must not block.
pub trait Observer: Send + Sync {
    /// What learns of the calls of a hook from now on.
    fn calls_of(&self, hook: &str, plugin: &str) -> Arc<dyn Calls>;

    /// A plugin wrote a line, or failed. `level` is `debug`, `info`, `warn` or `error`; `hook` is empty while the plugin
    /// is only being compiled.
    fn said(&self, hook: &str, plugin: &str, digest: &str, level: &'static str, line: String) {
        let _ = (hook, plugin, digest, level, line);
    }
}

/// Learns of the calls of one hook, as [`Observer`] does.
pub trait Calls: Send + Sync {
    /// One call ended. `result` is `accepted` or the [`Error::word`] of what it ended in; `memory_bytes` is the linear
    /// memory the instance had.
    fn ended(&self, took: Duration, result: &'static str, memory_bytes: usize);
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn calls_of(&self, _: &str, _: &str) -> Arc<dyn Calls> {
        Arc::new(Self)
    }
}

impl Calls for Unobserved {
    fn ended(&self, _: Duration, _: &'static str, _: usize) {}
}

/// What makes fresh instances cheap; all of it on, but to measure what each is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Instances come from a pool with slots that were set up before.
    pub pool: bool,
    /// Their memory begins as a mapping of the component's image, copied when it is written to.
    pub copy_on_write: bool,
    /// Of an ended instance only the pages that were written to are reset (Linux, `PAGEMAP_SCAN`).
    pub pagemap_scan: bool,
    /// Instances are put back after their calls, for other calls (Linux, `PAGEMAP_SCAN`).
    pub rewind: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { pool: true, copy_on_write: true, pagemap_scan: true, rewind: true }
    }
}

/// The engine that compiles and runs plugins. Cheap to clone; its clock stops with the last clone, plugin and hook.
#[derive(Clone)]
pub struct Runtime {
    core: Arc<Core>,
}

/// What plugins and hooks share.
pub(super) struct Core {
    engine: Engine,
    ticker: Ticker,
    observer: Arc<dyn Observer>,
    side: Semaphore,
    compilers: Arc<ThreadPool>,
    /// Runs the calls of heavy hooks.
    background: Arc<ThreadPool>,
    cache: Option<Cache>,
    rewinding: Option<Arc<Means>>,
}

impl Runtime {
    /// Sets up the engine. Fails with [`Error::Engine`] if the machine cannot run it.
    ///
    /// Instances come from a pool that reserves address space (no memory) for all of them up front. Where the system
    /// denies that much (`ulimit -v`), instances are allocated one by one, which is slower, and a warning says so.
    pub fn new(observer: Arc<dyn Observer>) -> Result<Self, Error> {
        Self::tuned(observer, Tuning::default())
    }

    /// As above, without some of what makes fresh instances cheap.
    pub fn tuned(observer: Arc<dyn Observer>, tuning: Tuning) -> Result<Self, Error> {
        Self::set_up(observer, tuning, None)
    }

    /// As above, for a node: its compilers stand back behind what serves, and what they made is kept in a folder, where
    /// the next process finds it. A folder that cannot be used is reported, and done without.
    pub fn on_node(observer: Arc<dyn Observer>, cache_dir: &Path) -> Result<Self, Error> {
        Self::set_up(observer, Tuning::default(), Some(cache_dir))
    }

    fn set_up(observer: Arc<dyn Observer>, tuning: Tuning, cache_dir: Option<&Path>) -> Result<Self, Error> {
        let fail = |detail: String| Error::Engine { detail };
        let mut config = config();
        config.memory_init_cow(tuning.copy_on_write);
        let pooled = tuning.pool.then(|| Engine::new(config.clone().allocation_strategy(pool(tuning.pagemap_scan))));
        let engine = match pooled {
            Some(Ok(engine)) => engine,
            not_pooled => {
                if let Some(Err(error)) = not_pooled {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "plugin instances cannot be pooled; calls will be slower");
                }
                Engine::new(&config).map_err(|error| fail(format!("{error:#}")))?
            }
        };
        let cache = cache_dir.and_then(|dir| match Cache::open(dir, &engine) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "compiled code is not kept");
                None
            }
        });
        let is_node = cache_dir.is_some();
        // 0: as many as there are cores.
        let compilers = threads("compiler", 0, is_node).map_err(fail)?;
        let background = threads("plugin", background_max(), is_node).map_err(fail)?;
        let mut core = Core::new(engine, observer, compilers, background, cache).map_err(fail)?;
        core.rewinding = tuning.rewind.then(Means::find).flatten();
        Ok(Self { core: Arc::new(core) })
    }

    /// Forgets the compiled code of everything but these versions, by digest, and the images of these hooks.
    pub fn keep_compiled<'a>(
        &self,
        versions: impl IntoIterator<Item = String>,
        hooks: impl IntoIterator<Item = &'a Hook>,
    ) {
        let Some(cache) = &self.core.cache else { return };
        cache.keep(&versions.into_iter().chain(hooks.into_iter().map(image::key)).collect());
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

impl Core {
    fn new(
        engine: Engine,
        observer: Arc<dyn Observer>,
        compilers: Arc<ThreadPool>,
        background: Arc<ThreadPool>,
        cache: Option<Cache>,
    ) -> Result<Self, String> {
        let ticker = Ticker::start(&engine).map_err(|error| error.to_string())?;
        let side = Semaphore::new(limits::PLUGIN_SIDE_INSTANCES_MAX);
        Ok(Self { engine, ticker, observer, side, compilers, background, cache, rewinding: None })
    }

    /// An engine for one instance: it compiles quickly what then runs slowly.
    pub(super) fn scratch(&self) -> Result<Self, String> {
        let mut config = config();
        config.cranelift_opt_level(OptLevel::None).cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
        let engine = Engine::new(&config).map_err(|error| format!("{error:#}"))?;
        let (compilers, background) = (Arc::clone(&self.compilers), Arc::clone(&self.background));
        Self::new(engine, Arc::new(Unobserved), compilers, background, None)
    }

    /// Compiles a component, or finds it compiled under this key.
    pub(super) fn compile(&self, key: &str, bytes: &[u8]) -> Result<Component, String> {
        if let Some(component) = self.cached(key) {
            return Ok(component);
        }
        // The bytes come from outside, and compilers are large: should one panic on them, that is an error like any other.
        let compile = || self.compilers.install(|| Component::from_binary(&self.engine, bytes));
        let component = catch_unwind(AssertUnwindSafe(compile))
            .map_err(|_| "the compiler failed on it".to_owned())?
            .map_err(|error| format!("{error:#}"))?;
        if let Some(cache) = &self.cache {
            match component.serialize() {
                Ok(code) => cache.put(key, &code),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "compiled code cannot be written out"),
            }
        }
        Ok(component)
    }

    /// What was compiled under this key before.
    pub(super) fn cached(&self, key: &str) -> Option<Component> {
        let code = self.cache.as_ref()?.get(key)?;
        #[allow(unsafe_code, reason = "the cache vouches for it: an engine with these settings wrote it, on this node")]
        // SAFETY: the code was serialised by `compile`, and the cache has checked that it is whole and its owner's alone.
        let component = unsafe { Component::deserialize(&self.engine, code) };
        component.map_err(|error| tracing::warn!(error = format!("{error:#}"), "compiled code cannot be used")).ok()
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What puts instances back; absent where that cannot be done.
    pub(super) fn rewinding(&self) -> Option<&Arc<Means>> {
        self.rewinding.as_ref()
    }

    pub(super) fn ticker(&self) -> &Ticker {
        &self.ticker
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// Threads for calls that take long, one for each that may run at once.
    pub(super) fn background(&self) -> &Arc<ThreadPool> {
        &self.background
    }

    /// Room for an instance that is not there for a write.
    pub(super) fn side_room(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.side.try_acquire().map_err(|_| Error::Busy { hook: None })
    }
}

/// Some threads. On a node they let those that serve go first: each gets about a quarter of a core that
/// is busy, and all of an idle one.
fn threads(name: &'static str, count: usize, is_node: bool) -> Result<Arc<ThreadPool>, String> {
    let step_back = move || {
        if is_node && let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, name, "threads run at the priority of everything else");
        }
    };
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(move |index| format!("{name}-{index}"));
    let pool = pool.start_handler(move |_| step_back()).build();
    pool.map(Arc::new).map_err(|error| error.to_string())
}

fn config() -> Config {
    let mut config = Config::new();
    config
        .concurrency_support(false)
        .epoch_interruption(true)
        // 32-bit memories only: bounds checks stay free, and no language a plugin is written in needs more.
        .wasm_memory64(false)
        // A trap's backtrace names functions that released plugins have no names for.
        .wasm_backtrace_max_frames(None)
        .memory_reservation(MEMORY_RESERVATION_BYTES);
    config
}

/// Whether pages may have been swapped out. The engine's scan does not see those that were written to and then swapped out, so
/// that the next instance in their place would find them.
fn has_swap() -> bool {
    // The first line is a heading.
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() > 1)
}

fn pool(pagemap_scan: bool) -> InstanceAllocationStrategy {
    let instances = RUNNING_INSTANCES + KEPT_INSTANCES;
    let each = |instances: u32, count: usize| instances.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        .total_core_instances(each(instances, limits::PLUGIN_CORE_INSTANCES_MAX))
        .total_memories(each(RUNNING_INSTANCES, limits::PLUGIN_MEMORIES_MAX) + KEPT_INSTANCES)
        .total_tables(each(instances, limits::PLUGIN_TABLES_MAX))
        .max_memories_per_module(limits::PLUGIN_MEMORIES_MAX as u32)
        .max_tables_per_module(limits::PLUGIN_TABLES_MAX as u32)
        .table_elements(limits::PLUGIN_TABLE_ELEMENTS_MAX)
        .max_component_instance_size(INSTANCE_METADATA_BYTES_MAX)
        .max_core_instance_size(INSTANCE_METADATA_BYTES_MAX)
        // The limiter of each instance sets the limit that counts, and can say which one was met. The pool's own is
        // what fits into a slot.
        .max_memory_size(MEMORY_RESERVATION_BYTES as usize)
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_KEEP_RESIDENT_BYTES)
        .pagemap_scan(if pagemap_scan && !has_swap() { Enabled::Auto } else { Enabled::No });
    InstanceAllocationStrategy::Pooling(pool)
}
