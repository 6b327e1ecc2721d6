//! Real faults on real processes: what clients see must be true whatever happens to nodes and networks.
//!
//! One test runs at a time: they measure time.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod growing;
mod mixed;
mod partitions;
mod paused;
mod rolling;

/// Held by the test that runs.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
