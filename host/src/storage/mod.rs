//! A node's data on disk: the Raft log, and the state that results from applying it.
//!
//! # Problem
//!
//! A write may be acknowledged only when a majority has it on disk (P1), so the log's fsync is on the path of every
//! write. The state is read all the time, is larger than memory, and must never show half a write (P3).
//!
//! # Approach
//!
//! - [`Log`], in `log/`: entries by index in append-only segments, with one fsync for all appends that wait at one
//!   moment.
//! - [`Data`], in `data/` or a later generation beside it: entries by key, the registry, and all else that applying the log results in. Many log entries
//!   are applied as one batch, without an fsync: the log holds whatever a crash takes from it. It is a database behind
//!   the traits of `engine`, which is fjall in production and a simulated disk in tests that cut its power.
//!
//! Their chapters list what each guarantees.
//!
//! Every change of the store is a [`GuardedWrite`] (see [`command`]). [`Data::apply`] is the only way in, and depends
//! on the state and the write alone. This module knows neither how writes are agreed on nor who sends them.
//!
//! # Failure model
//!
//! Processes stop at any point; disks keep what was synced and may lose the rest. After a failed write or sync nothing
//! more is written there ([`Error::Poisoned`], `poison`), and the node stops. [`FreeSpace`] warns before the
//! disk is full. A directory of another format is refused ([`Error::Format`]).
//!
//! # Cost
//!
//! Recent writes of the state are held in memory: for some seconds in two layers of 8 MiB (16 MiB if the disk is slow),
//! which have only the newest row of each key; then in tables of 16 MiB, of which up to five exist at once for entries and as
//! many for large values. The journal that a restart reads is cut at 128 MiB. Opened after a crash with 1,000,000 entries of 256 bytes, it takes about a second.

pub mod command;
pub mod dir;
mod engine;
mod error;
mod feature_level;
mod format;
mod free_space;
mod log;
mod poison;
mod record;
pub(crate) mod shared;
mod state;
mod usability;

pub use self::command::{
    Action, AskedBy, Effect, Entry, EntryMeta, Fact, Fingerprint, GuardedWrite, HOOKS_PREFIX, Idempotency, Operation,
    Outcome, PLUGINS_PREFIX, Precondition, RangeDigest, Space, Value,
};
pub use self::error::Error;
pub use self::feature_level::FeatureLevel;
pub use self::free_space::{DiskFull, FreeSpace};
pub use self::log::{Done, Log, OnFsync};
pub use self::poison::Poison;
pub use self::state::{Data, Page, Position, RangeQuery, SnapshotReader, verify_snapshot};
#[cfg(test)]
pub(crate) use self::{engine::memory, log::simulated as simulated_log, state::simulated as simulated_data};
