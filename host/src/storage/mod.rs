//! What a node keeps on disk: the Raft log, and the state that applying it gives.
//!
//! # Problem
//!
//! A write may be acknowledged only once a majority holds it on disk (P1), so the log's fsync is on the path of every
//! write. The state is read all the time, is larger than memory, and must never show half a write (P3).
//!
//! # Approach
//!
//! Two databases (fjall, a log-structured merge tree), since the engine holds one lock on its journal while it syncs:
//!
//! - [`Log`], in `log/`: entries by index. One writer thread turns all that is queued into one batch and one fsync.
//! - [`Data`], in `data/`: entries by key, the registry, the revision, the hook epoch, what became of the writes that
//!   clients gave a name (`idempotency`), and how far the log is applied. Many log entries are applied as one batch,
//!   without an fsync: the log holds what a crash takes from it.
//!
//! Both stand on `engine`, which is fjall in production and a modelled disk in tests that take its power away.
//!
//! Everything that changes the store is a [`GuardedWrite`] (see [`command`]); [`Data::apply`] is the only way in, and
//! what it does depends on nothing but the state and the write. This module knows neither how writes are agreed on nor
//! who sends them.
//!
//! # Guarantees
//!
//! - What an append's `done` reported as written is on disk, and so is everything queued before it.
//! - A log that lost something of that is refused when it is opened ([`Error::Lost`]), as far as its `watermark` can tell.
//! - A batch is applied whole or not at all, with the position it brings the state to.
//! - A damaged log entry or snapshot is noticed by its checksum and never used.
//!
//! # Failure model
//!
//! Processes stop at any point; disks keep what was synced and may lose the rest. After a failed write or sync nothing
//! more is written to that database ([`Error::Poisoned`], `poison`), and the node stops. Of a disk that is about to be full
//! [`FreeSpace`] tells in time. A directory of another format is refused ([`Error::Format`]).
//!
//! # Cost
//!
//! One fsync for all appends that wait at one moment; one batch without an fsync for each run of applied entries.
//!
//! Memory and recovery are bounded by settings of the two databases: what was written lately is held in tables of 16 MiB
//! (data) and 8 MiB (log), of which up to five exist at once, and the journals that a restart reads are cut at 128 MiB each.
//! Opened after a crash with 1,000,000 entries of 256 bytes, both take about a second.

mod apply;
mod cache;
pub mod command;
mod data;
pub mod dir;
#[cfg(test)]
mod disk_tests;
mod engine;
mod error;
mod examine;
mod format;
mod free_space;
mod idempotency;
mod log;
mod poison;
mod record;
mod scan;
mod snapshot;
#[cfg(test)]
mod tests;
mod watermark;

pub use self::command::{
    Action, AskedBy, Effect, Entry, EntryMeta, Fact, Fingerprint, GuardedWrite, HOOKS_PREFIX, Idempotency, Operation,
    Outcome, PLUGINS_PREFIX, Precondition, RangeDigest, Space, Value,
};
pub use self::data::Data;
#[cfg(test)]
pub(crate) use self::engine::memory;
pub use self::error::Error;
pub use self::free_space::{FreeSpace, Shortage};
pub use self::log::{Done, Log, OnFsync};
pub use self::poison::Poison;
pub use self::scan::{Page, RangeQuery};
pub use self::snapshot::{SnapshotReader, verify as verify_snapshot};
