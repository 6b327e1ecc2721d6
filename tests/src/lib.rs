//! What the black-box tests of brink stand on: clusters of real processes, a client, a disk that fails, an OTLP endpoint,
//! and what it takes to inflict faults and to judge what clients saw meanwhile (`hosts`, `nemesis`, `workload`, `history`,
//! `invariants`).
//!
//! The tests themselves are in `tests/`, one file for each behaviour. They need the `brink` binary and the compiled
//! plugins, which `cargo xtask test` builds and names in `BRINK_BIN` and `BRINK_PLUGINS_DIR`.

// Helpers of tests: a failure here is a failed test, and a panic says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers")]

mod cli;
mod client;
mod cluster;
pub mod episode;
mod fault_fs;
pub mod history;
pub mod hosts;
pub mod invariants;
mod load;
pub mod model;
pub mod nemesis;
mod otlp;
pub mod workload;

pub use cli::{Run, brink, brink_with};
pub use client::{Answer, Client};
pub use cluster::{Cluster, Node, Options, Place, brink_bin, build_dir, plugin_file, plugin_wasm};
pub use fault_fs::{CAPACITY_BYTES, FaultFs, Operation, Tail};
pub use load::{Load, entries};
pub use otlp::{Collector, Span};

use std::time::{Duration, Instant};

/// Waits until `check` gives a value, and fails with `what` if it takes longer than `limit`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
