//! Hooks: the plugins of users, asked about every write before the cluster commits it.
//!
//! # Problem
//!
//! Users say in code what a valid value is, or rewrite it, once for every client and node. That code is not ours: it
//! may loop, allocate without end, crash, answer nonsense, or be slow for honest reasons. It runs in the middle of a
//! write, on nodes that serve everybody else. And its verdict must still be true when the write commits, although the
//! store, and the hooks themselves, change meanwhile.
//!
//! # Approach
//!
//! A [`Plugin`] is a WebAssembly component for one of the worlds of `wit/hooks.wit`, compiled once per node. A
//! [`Binding`] says what it is for; the two make a [`Hook`]. The hooks in force at one epoch are a [`Set`], immutable;
//! [`Active`] holds the current one. The [`Pipeline`] takes the writes of a request through it:
//!
//! ```text
//! judge ── no hook matches ──────────────────────────────────────────────> Judged (no thread hop)
//!   │
//!   ├─ transformers in order ─┐   for each: share of the hook → room on the node → a thread that suits its pace:
//!   └─ validators in order  ──┤     configured, untouched instance → one call with all matching writes → check the answer
//!                             └──> Judged { operations, reads as preconditions, epoch }
//! ```
//!
//! Every call gets an instance in which no call has left anything. `configure` runs when a hook is made; what it leaves in
//! memory becomes part of the component, so that instances start configured (see `image`). After a call an instance is put back
//! to exactly there, for another call, if nothing else can have changed in it (see `rewind`), or thrown away. Where there is no
//! image, and until there is one, each call gets a new instance, which is configured first, within the hook's own deadline.
//!
//! Guests are called synchronously. Where, depends on how fast the hook's calls have shown themselves (see `pace`): on a
//! blocking thread; if calls take long, on threads of a lower priority, where compilers run too; and if they are shorter than
//! the way to another thread and back, where the request is handled, for 2 to 7 ms at most.
//!
//! # Guarantees
//!
//! - A write that no hook refused was seen, in its final form, by every enforcing validator that matches it. It carries
//!   the epoch of the set: applied under another epoch, it is sent back and judged again.
//! - What a plugin read is a precondition of the write, recorded as first seen; a list covers its range, phantoms
//!   included. Reads of hooks that only monitor do not count, nor do those of failed calls that were skipped.
//! - A call is bounded in time (wall clock, stopped by the epoch up to 6 ms late), linear memory and table elements (over all
//!   memories and tables of the instance), instances, stack, bytes passed to the host, reads, log lines and log bytes.
//! - A plugin has no clock, network, files, environment or entropy. Of WASI it gets what reveals nothing (see `wasi`).
//!   No call sees another's leftovers.
//! - One hook gets at most half of the room for plugins and half of the queue; while it goes on failing slowly, one thread,
//!   with rests of up to four times as long as each call took, and a second at most. One whose calls take 1 ms or more on
//!   average runs behind everything that serves. Hooks in [`Mode::Monitor`]
//!   never hold a write up for want of room.
//! - An async thread is held up by guest code only by hooks whose calls are expected to take 0.1 ms and which cannot read,
//!   and by one that disappoints for 2 to 7 ms, once in 256 calls on average.
//!
//! # Failure model
//!
//! | what happens | what the write sees |
//! |---|---|
//! | the plugin refuses | [`Error::Rejected`] |
//! | it loops, waits, or is starved of CPU | [`Error::TimedOut`] |
//! | it panics, exits, overflows its stack, calls what it does not have | [`Error::Trapped`], with its last words |
//! | it outgrows its memory or tables and stops over it | [`Error::MemoryLimit`] |
//! | it passes too much to the host | [`Error::OutputLimit`]; the host has not copied it |
//! | its answer makes no sense | [`Error::BadOutput`] |
//! | the node's storage fails under its read | [`Error::Store`], whatever the plugin made of it |
//! | there is no room in time | [`Error::Busy`] |
//!
//! With `on_failure: skip` a failure of the plugin lets the write pass as it was; a refusal still refuses. In monitor
//! mode nothing it does changes the write. Every error here means *not written*.
//!
//! A refusal that rests on reads was made on this node's copy, which may lag: see [`Rejection::has_read`].
//!
//! # Cost
//!
//! Whole judgements (instance, call, check of the answer, putting back) of Rust guests on one thread of a small machine, in
//! microseconds, by `cargo bench --bench hooks`; with a new instance for each call, and what that would be without one thing:
//!
//! | | as it is | new instance | configured for each call | no pool | no copy-on-write | no scan for written pages |
//! |---|---|---|---|---|---|---|
//! | nothing to do | 2.8 | 9.7 | 10.1 | 41 | 12 | 24 |
//! | `normalize`, 256 bytes | 5.8 | 12.8 | 14.2 | 46 | 17 | 27 |
//! | `json-schema`, an ISO 639-3 record | 7.2 | 19.6 | 2,000 | 80 | 670 | 58 |
//!
//! An instance that nothing has used is taken and put back in 1.0, more than half of it to ask for the thread's page faults; to
//! take a new one from the pool, link it and end it takes 6.6 (9.0 for `json-schema`). The rest is the call, and copies of the
//! pages it wrote to. A value of 16 KiB takes 0.6 more to hand over than one of 16 bytes, one of 256 KiB 130, since memory grows
//! for it, and that cannot be put back.
//!
//! Two threads do 1.74 to 1.93 times as much as one. A judgement that is handed to a blocking thread and back costs 30 to 70
//! µs more. Where three nodes and their load share two cores, a quick hook on every write costs 3 to 10 % of the throughput of
//! 64 clients (13 to 27 % with new instances): beside a node at work, its call adds 7 to 14 µs to the 115 to 145 that a write
//! takes of all processors together, since caches are cold for it and colder after it. A write that no hook matches costs a
//! comparison with each prefix.
//!
//! Compiling takes 0.1 s for a guest of 165 kB and 1.9 s for one of 3 MB, its image as much again and half of it; neither
//! is done twice on a node, since compiled code is kept on disk (see `cache`).

mod binding;
mod bindings;
mod cache;
mod error;
mod guest;
mod hook;
mod image;
mod judge;
mod limiter;
mod lines;
mod pace;
mod pages;
mod per_thread;
mod pipeline;
mod plugin;
mod record;
mod rewind;
mod rewindable;
mod runtime;
mod set;
#[cfg(test)]
mod tests;
mod text;
mod ticker;
mod view;
mod wasi;

pub use binding::{Binding, Judges, Mode, OnFailure, check_name};
pub use error::{Error, Mismatch, Rejection, Violation};
pub use hook::Hook;
pub use judge::Judged;
pub use pipeline::Pipeline;
pub use plugin::{HOOKS_VERSION, Plugin, digest};
pub use record::{Figures, Line, Record, Tally};
pub use runtime::{Calls, Observer, Runtime, Tuning, Unobserved};
pub use set::{Active, Set};
pub use view::{View, ViewError};
