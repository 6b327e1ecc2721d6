//! What can go wrong between a write and the plugins that judge it.

use super::view::ViewError;
use crate::sandbox::{self, EngineError};

/// Why a plugin cannot be used, a hook cannot be created, or a write was refused.
///
/// A write that ends in one of these errors is *not written* (P4).
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Error {
    /// A plugin cannot be used, or failed during a call.
    #[error("{} {failure}", who(.hook, .plugin))]
    Failed {
        /// The hook's name; empty while a plugin is only being compiled.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// How it failed; its text is part of this error's.
        failure: sandbox::Error,
    },
    /// A plugin's answer is not one it may give.
    #[error("{} gave an answer that cannot be used: {what}", who(.hook, .plugin))]
    BadOutput {
        /// The hook's name.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// What is wrong with it.
        what: String,
    },
    /// Plugins have enlarged the write beyond what can be replicated.
    #[error(
        "{} has enlarged the write: its values have {bytes} bytes now, and at most {} are allowed",
        who(.hook, .plugin),
        crate::limits::COMMAND_BYTES_MAX
    )]
    Enlarged {
        /// The name of the last hook that changed it.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// Bytes of all values.
        bytes: usize,
    },
    /// A plugin refused the write.
    #[error("refused by hook `{}`: {}", .0.hook, .0.message)]
    Rejected(Box<Rejection>),
    /// A hook names a plugin, or a version of it, that this node does not have.
    #[error("there is no plugin `{plugin}`{}", named(" with digest ", .digest))]
    PluginMissing {
        /// The plugin's name.
        plugin: String,
        /// The digest asked for, if one was named.
        digest: Option<String>,
    },
    /// A field of a hook has a value that is not allowed.
    #[error("`{field}` is {found}; allowed: {allowed}")]
    BindingInvalid {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values it may have.
        allowed: String,
    },
    /// Too many writes wait for plugins, of one hook or in all; or this one has waited until its deadline.
    #[error("too many writes are waiting for plugins{}", named(" of hook ", .0))]
    Busy(Option<String>),
    /// The hooks of the epoch asked for were not ready in time on this node.
    #[error("the hooks of epoch {0} are not ready on this node")]
    EpochWait(u64),
    /// The node's storage failed while a plugin read from it.
    #[error("a plugin's read failed")]
    Store(#[source] ViewError),
    /// The thread that called the plugins is gone, as happens when the node stops.
    #[error("the judgement was interrupted: {0}")]
    Interrupted(&'static str),
    /// The WebAssembly engine could not be set up on this machine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A plugin's refusal of a write. Texts are cut to bounded lengths.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rejection {
    /// The hook's name.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// A short stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The rules broken, at most [`crate::limits::PLUGIN_VIOLATIONS_MAX`].
    pub violations: Vec<Violation>,
    /// Whether the plugin read from the store to decide. This node's copy may lag behind: such a refusal is final only
    /// if the write was judged on a view known to be up to date.
    #[serde(skip)]
    pub has_read: bool,
}

/// One rule that a write breaks.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Violation {
    /// Position of the write in the request; `None` if the plugin named a write that it was not given.
    pub item: Option<u32>,
    /// Where in the value, as a JSON pointer; empty for the whole.
    pub path: String,
    /// A short stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

impl Error {
    /// Whether the plugin failed at its task, as opposed to doing it and refusing the write, or to the node failing.
    /// A hook's `on_failure` is about these errors.
    pub fn is_plugin_failure(&self) -> bool {
        match self {
            Self::Failed { failure, .. } => failure.is_guest_failure(),
            Self::BadOutput { .. } => true,
            Self::PluginMissing { .. } | Self::BindingInvalid { .. } => false,
            Self::Enlarged { .. } | Self::Rejected(_) => false,
            Self::Busy(_) | Self::EpochWait(_) | Self::Store(_) | Self::Interrupted(_) | Self::Engine(_) => false,
        }
    }

    /// Whether this is a refusal that depends on what the plugin read (see [`Rejection::has_read`]).
    pub fn has_read(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.has_read)
    }

    /// One word for metrics and spans.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Failed { failure, .. } => failure.word(),
            error => error.into(),
        }
    }
}

/// An introduction and a name, or nothing if there is no name.
fn named(introduction: &str, name: &Option<String>) -> String {
    name.as_ref().map(|name| format!("{introduction}`{name}`")).unwrap_or_default()
}

/// Whose failure it is. There is no hook while a plugin is being compiled.
fn who(hook: &str, plugin: &str) -> String {
    if hook.is_empty() { format!("plugin `{plugin}`") } else { format!("hook `{hook}`: plugin `{plugin}`") }
}
