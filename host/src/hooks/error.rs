//! What can go wrong between a write and the plugins that judge it.

use super::view::ViewError;

/// Why a plugin cannot be used, a hook cannot be created, or a write was not let through.
///
/// None of these writes anything: a write that ends in one of them is *not written*.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The uploaded bytes are not a component.
    #[error("plugin `{plugin}` is not a WebAssembly component: {detail}")]
    NotAComponent {
        /// The plugin's name.
        plugin: String,
        /// What the bytes are instead, and what to do.
        detail: String,
    },
    /// The component does not fit the worlds of `brink:hooks`.
    #[error("plugin `{plugin}` does not fit brink:hooks: {mismatch}")]
    WorldMismatch {
        /// The plugin's name.
        plugin: String,
        /// What does not fit.
        mismatch: Mismatch,
    },
    /// The component is larger than a node accepts.
    #[error("plugin `{plugin}` has {found_bytes} bytes; at most {limit_bytes} are allowed")]
    TooLarge {
        /// The plugin's name.
        plugin: String,
        /// Its size.
        found_bytes: usize,
        /// [`crate::limits::PLUGIN_BYTES_MAX`].
        limit_bytes: usize,
    },
    /// A hook names a plugin, or a version of it, that this node does not have.
    #[error("there is no plugin `{plugin}`{}", named(" with digest ", .digest))]
    PluginMissing {
        /// The plugin's name.
        plugin: String,
        /// The digest asked for, if one was named.
        digest: Option<String>,
    },
    /// The plugin refused the configuration of the hook.
    #[error("hook `{hook}`: the plugin refuses the configuration{}: {message}", at(.path))]
    ConfigRefused {
        /// The hook's name.
        hook: String,
        /// Where in the configuration, as a JSON pointer; empty for the whole.
        path: String,
        /// The plugin's own words.
        message: String,
    },
    /// A field of a hook has a value that is not allowed.
    #[error("`{field}` is {found}; allowed: {allowed}")]
    BindingInvalid {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: String,
    },
    /// A plugin refused the write.
    #[error("refused by hook `{}`: {}", .0.hook, .0.message)]
    Rejected(Box<Rejection>),
    /// A plugin did not answer in time.
    #[error("{} did not answer within {deadline_ms} ms", who(.hook, .plugin))]
    TimedOut {
        /// The hook's name.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// How long it had, in milliseconds.
        deadline_ms: u64,
    },
    /// A plugin stopped with a trap: a panic, an exit, a forbidden call, a full stack.
    #[error("{} failed: {message}", who(.hook, .plugin))]
    Trapped {
        /// The hook's name.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// A short reason, and the end of what it wrote to standard error.
        message: String,
    },
    /// A plugin needed more memory or table elements than it may have.
    #[error("{} asked for {asked} {what}; it may have {limit}", who(.hook, .plugin))]
    MemoryLimit {
        /// The hook's name.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// Of what it asked for too much, with the unit.
        what: &'static str,
        /// How much it asked for, in all.
        asked: usize,
        /// How much it may have, in all.
        limit: usize,
    },
    /// A plugin returned, or passed to the host, more than it may.
    #[error("{} passed more than {limit_bytes} bytes to the host in one call", who(.hook, .plugin))]
    OutputLimit {
        /// The hook's name.
        hook: String,
        /// The plugin's name.
        plugin: String,
        /// How much it may pass.
        limit_bytes: usize,
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
    /// Too many writes wait for plugins, or this one has waited until its deadline.
    #[error("too many writes are waiting for plugins{}", named(" of hook ", .hook))]
    Busy {
        /// The hook that was waited for; `None` if it was the node's common queue.
        hook: Option<String>,
    },
    /// The hooks of the epoch asked for were not ready in time on this node.
    #[error("the hooks of epoch {epoch} are not ready on this node")]
    EpochWait {
        /// The epoch asked for.
        epoch: u64,
    },
    /// The node's storage failed while a plugin read from it.
    #[error("a plugin's read failed")]
    Store(#[source] ViewError),
    /// The thread that ran the plugins is gone, as happens when the node stops.
    #[error("the judgement was interrupted: {detail}")]
    Interrupted {
        /// What happened to it.
        detail: String,
    },
    /// The WebAssembly engine could not be set up on this machine.
    #[error("the WebAssembly engine cannot start: {detail}")]
    Engine {
        /// What the engine or the operating system says.
        detail: String,
    },
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
    /// Position of the write in the request; `None` if the plugin named one it was not given.
    pub item: Option<u32>,
    /// Where in the value, as a JSON pointer; empty for the whole.
    pub path: String,
    /// A short stable word for programs.
    pub code: String,
    /// A sentence for people.
    pub message: String,
}

/// How a component fails to fit the worlds of `brink:hooks`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It has neither role.
    #[error(
        "it exports neither `validator` nor `transformer` of brink:hooks@{}; build it against one of the worlds \
         `validator-plugin`, `transformer-plugin` or `plugin`",
        super::plugin::HOOKS_VERSION
    )]
    NoRole,
    /// It cannot be configured.
    #[error("it does not export `configuration`, which every plugin must")]
    NoConfiguration,
    /// It needs something that plugins do not have.
    #[error("it imports `{import}`; plugins may import only `store` and `log` of brink:hooks, and WASI")]
    Import {
        /// The import.
        import: String,
    },
    /// It was built for another version of the interface.
    #[error("it was built for brink:hooks@{found}; this node serves {supported}")]
    Version {
        /// The version it names.
        found: String,
        /// The versions this node serves.
        supported: String,
    },
    /// A function or type has another shape than the interface says.
    #[error("{detail}")]
    Signature {
        /// Which, and how.
        detail: String,
    },
    /// It wants more of something than a plugin may have before it even runs.
    #[error("it starts with {found} {what}; at most {limit} are allowed")]
    Resources {
        /// Of what, with the unit.
        what: &'static str,
        /// How much it starts with.
        found: u64,
        /// How much it may have.
        limit: u64,
    },
}

impl Error {
    /// Whether the same request may succeed if it is sent again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Busy { .. } | Self::EpochWait { .. } | Self::Store(_) => true,
            Self::Interrupted { .. } => true,
            Self::NotAComponent { .. } | Self::WorldMismatch { .. } | Self::TooLarge { .. } => false,
            Self::PluginMissing { .. } | Self::ConfigRefused { .. } | Self::BindingInvalid { .. } => false,
            Self::Rejected(_) | Self::Trapped { .. } | Self::MemoryLimit { .. } | Self::OutputLimit { .. } => false,
            Self::BadOutput { .. } | Self::Engine { .. } => false,
        }
    }

    /// Whether the plugin failed at its task, as opposed to doing it and refusing the write, or to the node failing.
    /// This is what a hook's `on_failure` is about.
    pub fn is_plugin_failure(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Trapped { .. } | Self::MemoryLimit { .. } => true,
            Self::OutputLimit { .. } | Self::BadOutput { .. } | Self::ConfigRefused { .. } => true,
            Self::NotAComponent { .. } | Self::WorldMismatch { .. } | Self::TooLarge { .. } => false,
            Self::PluginMissing { .. } | Self::BindingInvalid { .. } | Self::Rejected(_) => false,
            Self::Busy { .. } | Self::EpochWait { .. } | Self::Store(_) => false,
            Self::Interrupted { .. } | Self::Engine { .. } => false,
        }
    }

    /// Whether a call met one of its limits.
    pub(super) fn is_limit(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::MemoryLimit { .. } | Self::OutputLimit { .. })
    }

    /// Whether this is a refusal that rests on what the plugin read (see [`Rejection::has_read`]).
    pub fn has_read(&self) -> bool {
        matches!(self, Self::Rejected(rejection) if rejection.has_read)
    }

    /// One word for metrics and spans.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotAComponent { .. } => "not_a_component",
            Self::WorldMismatch { .. } => "world_mismatch",
            Self::TooLarge { .. } => "too_large",
            Self::PluginMissing { .. } => "plugin_missing",
            Self::ConfigRefused { .. } => "config_refused",
            Self::BindingInvalid { .. } => "binding_invalid",
            Self::Rejected(_) => "rejected",
            Self::TimedOut { .. } => "timed_out",
            Self::Trapped { .. } => "trapped",
            Self::MemoryLimit { .. } => "memory_limit",
            Self::OutputLimit { .. } => "output_limit",
            Self::BadOutput { .. } => "bad_output",
            Self::Busy { .. } => "busy",
            Self::EpochWait { .. } => "epoch_wait",
            Self::Store(_) => "store",
            Self::Interrupted { .. } => "interrupted",
            Self::Engine { .. } => "engine",
        }
    }
}

/// " at `path`", or nothing for the whole.
fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at `{path}`") }
}

/// A name with what introduces it, if there is one.
fn named(introduction: &str, name: &Option<String>) -> String {
    name.as_ref().map(|name| format!("{introduction}`{name}`")).unwrap_or_default()
}

/// Whose failure it is. There is no hook while a plugin is being compiled.
fn who(hook: &str, plugin: &str) -> String {
    if hook.is_empty() { format!("plugin `{plugin}`") } else { format!("hook `{hook}`: plugin `{plugin}`") }
}
