//! Clusters of real processes: forming, losing nodes, coming back.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod bootstrap;
mod durability;
mod idempotency;
mod learners;
mod membership;
mod node_loss;
mod snapshot;
mod trace;
