//! Plugins in the write path of real clusters: rules that hold, plugins that misbehave.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod authors;
mod compatibility;
mod epochs;
mod examples;
mod history;
mod hostile;
mod logs;
mod references;
mod registry;
mod rules;
mod uploads;
