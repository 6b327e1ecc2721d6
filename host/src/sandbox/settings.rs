//! The settings of wasmtime that compiled code depends on: the same for a node and for its compilers.

use wasmtime::{Config, OptLevel, RegallocAlgorithm};

/// Address space of one linear memory, so that bounds checks are page faults and a memory never moves when it grows.
pub(super) const MEMORY_RESERVATION_BYTES: u64 = 4 << 30;

/// Niceness of what yields to the threads that serve, of 0 to 19: it gets about a quarter of a busy core, and all of an idle
/// one.
pub(super) const NICENESS: i32 = 5;

/// The settings for guests.
pub(super) fn config() -> Config {
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

/// The settings for a guest whose code runs once: compiling it well would take longer than that saves.
pub(super) fn scratch() -> Config {
    let mut config = config();
    config.cranelift_opt_level(OptLevel::None).cranelift_regalloc_algorithm(RegallocAlgorithm::SinglePass);
    config
}
