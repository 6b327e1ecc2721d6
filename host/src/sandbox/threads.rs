//! Thread pools for long computations, which yield to the threads that serve requests.

use std::sync::Arc;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::error::EngineError;

/// Niceness of the threads of a node's pools, of 0 to 19. On Linux each thread has its own.
const NICENESS: i32 = 5;

/// Starts `count` threads; 0 means one for each core.
///
/// On a node they have a lower priority: each gets about a quarter of a busy core, and all of an idle one.
pub(crate) fn pool(name: &'static str, count: usize, is_node: bool) -> Result<Arc<ThreadPool>, EngineError> {
    let lower_priority = move || {
        if is_node && let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
            tracing::debug!(%error, name, "the priority of the threads could not be lowered");
        }
    };
    let pool = ThreadPoolBuilder::new().num_threads(count).thread_name(move |index| format!("{name}-{index}"));
    let pool = pool.start_handler(move |_| lower_priority()).build();
    pool.map(Arc::new).map_err(EngineError::new)
}
