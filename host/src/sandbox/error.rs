//! How a component is refused, and how a guest fails.

use super::bindings::HOOKS_VERSION;
use crate::limits::{COMPILE_CPU, COMPILE_DEADLINE, COMPILE_MEMORY_BYTES_MAX, COMPILED_BYTES_MAX, PLUGIN_BYTES_MAX};

/// How a guest or its component failed, as a predicate: the message begins with a verb, and its reader adds who failed.
#[derive(Debug, thiserror::Error, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Error {
    /// The bytes are not a component; says what they are instead, and what to do.
    #[error("is not a WebAssembly component: {0}")]
    NotAComponent(String),
    /// The component does not fit the worlds of `brink:hooks`.
    #[error("does not fit brink:hooks: {0}")]
    WorldMismatch(Mismatch),
    /// The component is larger than a node accepts.
    #[error("has {0} bytes; at most {PLUGIN_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// The component would be too expensive to compile.
    #[error("is too complex: {0}")]
    Shape(String),
    /// Compiling the component needed more than it may.
    #[error("could not be compiled: it needs more than {0}")]
    CompileLimit(CompileResource),
    /// The component was not compiled in time, since the machine is busy.
    #[error("was not compiled within {} s: this node is busy", COMPILE_DEADLINE.as_secs())]
    CompileDeadline,
    /// Nobody waits for the component to be compiled any more: the client has left, or the node stops.
    #[error("was not compiled: the request was cancelled")]
    CompileCancelled,
    /// The compiler itself failed; says how.
    #[error("could not be compiled, since the compiler failed: {0}")]
    Compiler(String),
    /// The guest refused its configuration.
    #[error("refuses the configuration{}: {message}", at(.path))]
    ConfigRefused {
        /// Where in the configuration, as a JSON pointer; empty for the whole.
        path: String,
        /// The guest's own words.
        message: String,
    },
    /// The guest did not answer in time.
    #[error("did not answer within {deadline_ms} ms")]
    TimedOut {
        /// How long it had, in milliseconds.
        deadline_ms: u64,
    },
    /// The guest stopped with a trap: a panic, an exit, a forbidden call, a full stack. Says the reason, and the last lines it
    /// wrote to standard error.
    #[error("failed: {0}")]
    Trapped(String),
    /// The guest needed more memory or table elements than it may have.
    #[error("asked for {asked} {what}; it may have {limit}")]
    MemoryLimit {
        /// The resource, with its unit.
        what: &'static str,
        /// How much it asked for, in all.
        asked: usize,
        /// How much it may have, in all.
        limit: usize,
    },
    /// The guest returned, or passed to the host, more than it may.
    #[error("passed more than {0} bytes to the host in one call")]
    OutputLimit(usize),
    /// All instances that may run at once are running, or too many components wait to be compiled.
    #[error("cannot start: too many instances are running, or being compiled")]
    Busy,
}

/// A resource that compiling a component has exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompileResource {
    /// [`COMPILE_CPU`].
    Cpu,
    /// [`COMPILE_MEMORY_BYTES_MAX`].
    Memory,
    /// [`COMPILED_BYTES_MAX`].
    Code,
}

impl std::fmt::Display for CompileResource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => write!(f, "{} s of processor time", COMPILE_CPU.as_secs()),
            Self::Memory => write!(f, "{} MiB of memory", COMPILE_MEMORY_BYTES_MAX >> 20),
            Self::Code => write!(f, "{} MiB of code", COMPILED_BYTES_MAX >> 20),
        }
    }
}

/// The WebAssembly engine could not be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the WebAssembly engine cannot start: {0}")]
pub struct EngineError(String);

/// How a component fails to fit the worlds of `brink:hooks`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It has neither role.
    #[error(
        "it exports neither `validator` nor `transformer` of brink:hooks@{HOOKS_VERSION}; build it against one of the \
         worlds `validator-plugin`, `transformer-plugin` or `plugin`"
    )]
    NoRole,
    /// It cannot be configured.
    #[error("it does not export `configuration`, which every plugin must")]
    NoConfiguration,
    /// It imports an interface that plugins do not have.
    #[error("it imports `{0}`; plugins may import only `store` and `log` of brink:hooks, and WASI")]
    Import(String),
    /// It was built for another version of the interface.
    #[error("it was built for brink:hooks@{0}; this node serves {HOOKS_VERSION}")]
    Version(String),
    /// A function or type differs from the interface; says which, and how.
    #[error("{0}")]
    Signature(String),
    /// It starts with more of a resource than a plugin may have.
    #[error("it starts with {found} {what}; at most {limit} are allowed")]
    Resources {
        /// The resource, with its unit.
        what: &'static str,
        /// How much it starts with.
        found: u64,
        /// How much it may have.
        limit: u64,
    },
}

impl EngineError {
    pub(super) fn new(detail: impl std::fmt::Display) -> Self {
        Self(format!("{detail:#}"))
    }
}

impl Error {
    /// Whether the guest failed during a call, as opposed to its component being refused or the node failing.
    pub fn is_guest_failure(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Trapped(_) | Self::MemoryLimit { .. } => true,
            Self::OutputLimit(_) | Self::ConfigRefused { .. } => true,
            Self::NotAComponent(_) | Self::WorldMismatch(_) | Self::TooLarge(_) | Self::Shape(_) => false,
            Self::CompileLimit(_) | Self::CompileDeadline | Self::CompileCancelled | Self::Compiler(_) => false,
            Self::Busy => false,
        }
    }

    /// Whether another attempt to compile the same may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::CompileDeadline | Self::CompileCancelled | Self::Compiler(_) | Self::Busy)
    }

    /// Whether a call met one of its limits.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::MemoryLimit { .. } | Self::OutputLimit(_))
    }

    /// One word for metrics and spans.
    pub fn word(&self) -> &'static str {
        self.into()
    }
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at `{path}`") }
}
