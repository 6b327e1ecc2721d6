//! Hooks: which plugin judges which write, before the cluster commits it.
//!
//! # Problem
//!
//! Users say in code what a valid value is, or rewrite it, once for all clients and nodes. Their code runs in the middle of a
//! write, on nodes that serve everybody else. And its verdict must still be true when the write commits, although the store
//! and the hooks change meanwhile.
//!
//! # Approach
//!
//! A [`Binding`] names a plugin, the writes it judges, its configuration and its limits. The [`Runtime`] has the
//! [`Plugin`] compiled, and makes a [`Hook`] of both. The hooks in force at one epoch are an immutable [`Set`]; [`Active`]
//! holds the current one. A request takes five steps:
//!
//! 1. *Match* (`pipeline`): a request that no hook matches passes at once, without leaving its thread.
//! 2. *Schedule* (`scheduler`), for each hook: wait for its turn and for room on the node, then run the call inline, on a blocking
//!    thread, or in the background.
//! 3. *Call* (`judge`, by [`ConfiguredPlugin`](crate::sandbox::ConfiguredPlugin)): one call with all writes that the hook matches.
//!    Transformers come first, in order, then validators.
//! 4. *Check* the answer, and act on it as the binding's mode and `on_failure` say.
//! 5. *Finish*: the operations with their new values, the reads of all hooks as preconditions, and the epoch of the set.
//!
//! # Guarantees
//!
//! - A write that no hook refused was seen, in its final form, by every enforcing validator that matches it (P6). It carries
//!   the epoch of the set: if another epoch is in force when it is applied, it is judged again.
//! - What a plugin read is a precondition of the write, recorded as first seen; a list covers its range, phantoms
//!   included. Reads of hooks in monitor mode do not count, nor those of failed calls that were skipped.
//! - Calls are bounded (P7, P9): by the sandbox, and in their number and size of reads (see `view`).
//! - One hook gets at most half of the room for calls, and half of the queue. A hook that keeps failing slowly gets one thread,
//!   and backs off between its calls. Hooks in [`Mode::Monitor`] never delay a write for lack of room.
//! - A guest occupies an async thread for 7 ms at most, once in 256 calls on average (see `scheduler`).
//!
//! # Failure model
//!
//! | event | the write sees |
//! |---|---|
//! | the plugin refuses | [`Error::Rejected`] |
//! | the plugin fails (see [`sandbox`](crate::sandbox)) | [`Error::Failed`] |
//! | its answer makes no sense | [`Error::BadOutput`] |
//! | the node's storage fails under its read | [`Error::Store`], whatever the plugin answers |
//! | there is no room in time | [`Error::Busy`] |
//!
//! With `on_failure: skip`, a write passes unchanged if the plugin fails; a refusal still refuses. In monitor mode nothing that
//! the plugin does changes the write. Every error means *not written* (P4). A refusal that depends on reads was made on this
//! node's copy, which may lag: see [`Rejection::has_read`].
//!
//! # Cost
//!
//! The sandbox's chapter has the cost of calls. Handing a judgement to a blocking thread and back costs 30 to 70 µs more. With
//! three nodes and their load on two cores, a fast hook on every write costs 3 to 10 % of the throughput of 64 clients (13 to
//! 27 % if each call starts an instance): its call adds 7 to 14 µs to the 115 to 145 µs that a write takes of all processors
//! together, because caches are cold for it, and colder after it. A write that no hook matches costs one comparison a hook.

mod binding;
mod error;
mod hook;
mod judge;
mod pipeline;
mod record;
mod scheduler;
mod set;
#[cfg(test)]
mod tests;
mod view;

pub use binding::{Binding, Judges, Mode, OnFailure, check_name};
pub use error::{Error, Rejection, Violation};
pub use hook::{Calls, Hook, Observer, Plugin, Runtime};
pub use judge::{Judged, judge};
pub use pipeline::Pipeline;
pub use record::{Figures, Line, Record, Tally};
pub use set::{Active, Set};
pub use view::{View, ViewError};

pub use crate::sandbox::{
    CompileOptions, Compilers, Error as Failure, HOOKS_VERSION, LogSink, LogSource, Priority, Role, digest,
};
