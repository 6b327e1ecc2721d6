//! Guest code within limits.
//!
//! # Problem
//!
//! A plugin is code of somebody else: it may loop, allocate without end, crash, or answer nonsense. A node calls it thousands
//! of times a second. So a call must harm nobody but its caller (P7), see nothing of other calls, and cost microseconds.
//!
//! # Approach
//!
//! A [`Plugin`] is a WebAssembly component that fits one of the worlds of `wit/hooks.wit`, compiled once per node, in a process of
//! its own (`compiler`). The [`Engine`] loads it. With its configuration it is a [`ConfiguredPlugin`], which offers calls on the
//! types of [`wit`]. The caller says what the guest may read, by a [`HostReads`]. A call takes five steps, from
//! [`ConfiguredPlugin::call`] on:
//!
//! 1. *Take* an instance: a reset one that waits for this thread, or a new one (`invocation`, `instance/pool`).
//! 2. *Configure* it, unless it started configured (`instance/preinit`).
//! 3. *Ask* the guest, within the limits of the call (`invocation`, `limiter`, `ticker`).
//! 4. *Explain* why it stopped, if it did not answer (`invocation`).
//! 5. *Reset* the instance, to wait for the next call; or drop it (`instance/reset`).
//!
//! # Guarantees
//!
//! - A call is bounded in time (wall clock, stopped by the epoch up to 6 ms late), linear memory and table elements (over all
//!   memories and tables of the instance), instances, stack, bytes passed to the host, log lines and log bytes.
//! - A guest has no clock, network, files, environment or entropy. Of WASI it gets what reveals nothing (see `wasi`).
//! - No call sees what another call left in memory (see `instance`).
//! - Compiling is bounded as well, and takes little of the processor from what serves (see `compiler`).
//! - Compiled code is loaded only from this node's own cache (see `cache`).
//! - `unsafe` code is in three places: resetting instances (`instance/`), loading compiled code (`cache`), and the class of a
//!   compiler's threads (`compiler/child`).
//!
//! # Failure model
//!
//! | the guest | the caller sees |
//! |---|---|
//! | loops, waits, or is starved of CPU | [`Error::TimedOut`] |
//! | panics, exits, overflows its stack, calls a function that it does not have | [`Error::Trapped`], with its last words |
//! | outgrows its memory or tables and stops over it | [`Error::MemoryLimit`] |
//! | passes too much to the host | [`Error::OutputLimit`]; the host has not copied it |
//! | refuses its configuration | [`Error::ConfigRefused`] |
//! | finds no free instance | [`Error::Busy`] |
//!
//! # Cost
//!
//! Whole judgements (instance, call, check of the answer, reset) of Rust guests on one thread of a small machine, in
//! microseconds, by `cargo bench --bench hooks`:
//!
//! | | as it is | with a new instance for each call |
//! |---|---|---|
//! | nothing to do | 2.8 | 24 |
//! | `normalize`, 256 bytes | 5.8 | 27 |
//! | `json-schema`, an ISO 639-3 record | 7.2 | 58, or 2,000 if it is configured first |
//!
//! Taking and resetting an unused instance takes 0.8, a third of it for counting page faults. A value of 16 KiB takes 0.6 more
//! to hand over than one of 16 bytes, and one of 256 KiB 130, because the memory grows for it, and the instance cannot be reset
//! then.
//!
//! Two threads do 1.74 to 1.93 times as much as one. Compiling takes 0.1 s for a guest of 165 kB and 1.9 s for one of 3 MB, and
//! pre-initializing it 1.5 times as long again. Neither happens twice on a node, because compiled code is kept on disk.

mod bindings;
mod cache;
mod compiler;
mod component;
mod configured;
mod engine;
mod error;
mod host_state;
mod instance;
mod invocation;
mod limiter;
mod lines;
mod plugin;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod ticker;
mod wasi;

pub use bindings::HOOKS_VERSION;
pub use compiler::{CompileOptions, CompilerLimits, Compilers, Priority, compile_component};
pub use component::Role;
pub use configured::ConfiguredPlugin;
pub use engine::Engine;
pub(crate) use engine::{background_instances_max, instances_max};
pub use error::{CompileResource, EngineError, Error, Mismatch};
pub use host_state::HostReads;
pub use invocation::CallOutcome;
pub use limiter::CallLimits;
pub use lines::{LogSink, LogSource};
pub(crate) use lines::{cut, one_line};
pub use plugin::{Plugin, digest};

/// The types of `brink:hooks`, as guests and host exchange them.
pub mod wit {
    pub use super::bindings::brink::hooks::log::Level;
    pub use super::bindings::brink::hooks::store::ReadError;
    pub use super::bindings::brink::hooks::types::{Entry, Rejection, Replacement, Violation, Write};
}
