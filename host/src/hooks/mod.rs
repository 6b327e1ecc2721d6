//! Hooks: the plugins that see every write before the cluster commits it.
mod binding;
mod bindings;
mod error;
mod guest;
mod hook;
mod judge;
mod limiter;
mod lines;
mod pipeline;
mod plugin;
mod runtime;
mod set;
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
pub use runtime::{Observer, Runtime, Unobserved};
pub use set::{Active, Set};
pub use view::{View, ViewError};
