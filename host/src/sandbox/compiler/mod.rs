//! Compiling components, in a process of its own.
//!
//! # Problem
//!
//! Compiling is the most expensive thing that a client can ask of a node, and the least predictable: a component of a few
//! kilobytes can take minutes and gigabytes, and nothing inside the process can stop a compiler. A large component is no
//! attack, and still takes all cores for seconds, while the node serves.
//!
//! # Approach
//!
//! 1. *Wait for a turn* (`turns`): few components compile at once, and never twice the same.
//! 2. *Run* (`process`): the node starts its own executable again, as `brink compile-component`, and hands it the [`Job`].
//! 3. *Limit* (`child`): the new process limits itself, before it reads anything.
//! 4. *Check* (`shape`): the component is validated, and refused if its shape alone would exceed what a compiler can do.
//! 5. *Build* (`job`): the code of the component, or of its copy that is configured: then the guest's `configure` runs there.
//! 6. *Load* ([`cache`](super::cache)): the process has written an entry of the cache, which the node loads like any other.
//!
//! # Guarantees
//!
//! - A compiler has bounded processor time, memory, output, threads and wall time (see `limits`, `COMPILE_…`).
//! - It yields to what serves, but always gets on (see [`Priority`]). It takes what the others leave; if that is less than a
//!   twentieth of a core for ten seconds, it is started again, at a niceness that gets a tenth of a busy core. If writes wait for
//!   it, it gets a quarter from the start. It uses at most half of the cores.
//! - It ends when the request that asked for it is cancelled, when the node stops, and when the node dies.
//! - It compiles with the settings of the node: both build their configuration in one function, and wasmtime compares it when
//!   the code is loaded.
//!
//! # Failure model
//!
//! | event | the caller sees (see [`Error`](super::error::Error)) |
//! |---|---|
//! | the component cannot be compiled | `NotAComponent`, with the compiler's words |
//! | its shape is absurd | `Shape` |
//! | it needs too much time, memory or code | `CompileLimit` |
//! | the machine is too busy | `CompileDeadline`, `Busy` |
//! | the caller does not wait any more | `CompileCancelled` |
//! | the process cannot run, or is killed by somebody | `Compiler` |

mod child;
mod job;
mod options;
mod process;
mod shape;
mod turns;

pub use self::child::compile_component;
pub(super) use self::job::{Configuration, Job, build};
pub use self::options::{CompileOptions, CompilerLimits, Compilers, Priority};
pub(super) use self::process::Processes;
pub(super) use self::shape::Refusal;
