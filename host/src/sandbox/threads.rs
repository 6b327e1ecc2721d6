//! Threads: pools for long computations, which yield to the threads that serve requests, and values with a copy per thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::EngineError;

/// Niceness of the threads of a node's pools, of 0 to 19. On Linux each thread has its own.
const NICENESS: i32 = 5;

/// Number of copies. With more threads than that, some threads share a copy.
const COPIES: usize = 16;

/// Starts `count` threads; 0 means one for each core.
///
/// On a node they have a lower priority: each gets about a quarter of a busy core, and all of an idle one.
pub(crate) fn pool(name: &'static str, count: usize, is_node: bool) -> Result<Arc<ThreadPool>, EngineError> {
    let lower_priority = move |_| {
        if is_node && let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, name, "the priority of the threads could not be lowered");
        }
    };
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(move |index| format!("{name}-{index}"));
    pool.start_handler(lower_priority).build().map(Arc::new).map_err(EngineError::new)
}

/// One `T` for each thread, or for a few threads, so that threads rarely write to the same cache line. Moving a cache line
/// between cores costs more than most updates of what is in it.
#[derive(Default)]
pub(super) struct PerThread<T>([CachePadded<T>; COPIES]);

thread_local! {
    /// Index of this thread's copy.
    static INDEX: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % COPIES
    };
}

impl<T> PerThread<T> {
    pub(super) fn mine(&self) -> &T {
        let [first, ..] = &self.0;
        INDEX.with(|index| self.0.get(*index).unwrap_or(first))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|copy| &**copy)
    }
}
