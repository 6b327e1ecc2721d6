//! Where components compile, at which priority, within which limits, and when they are given up.

use tokio_util::sync::CancellationToken;

use super::super::error::Error;
use super::super::settings;
use crate::limits;

/// Where an engine compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compilers {
    /// In this process, without limits: for tests and benchmarks, whose executables are no compilers.
    Here,
    /// In processes of this executable, whose subcommand `compile-component` calls
    /// [`compile_component`](crate::sandbox::compile_component).
    Processes,
}

/// How much of a busy machine a compiler gets. It gets all that an idle machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Priority {
    /// What the others leave; a tenth of a core if that is too little. Somebody deploys.
    #[default]
    Deploying,
    /// A quarter of a core: writes wait for it.
    Serving,
}

impl Priority {
    /// The niceness of its process, of 0 to 19, or `None` for the idle class: first, and whenever it starved so far.
    pub(super) fn attempts(self) -> &'static [Option<i32>] {
        match self {
            Self::Deploying => &[None, Some(10)],
            Self::Serving => &[Some(settings::NICENESS)],
        }
    }
}

/// What the process of a compiler may use.
#[derive(Debug, Clone, Copy)]
pub struct CompilerLimits {
    /// Its niceness, of 0 to 19. `None`: Linux' idle class, which runs when nothing else wants to.
    pub niceness: Option<i32>,
    /// Processor time over all its threads, in seconds.
    pub cpu_s: u64,
    /// Memory that is written to, in bytes.
    pub memory_bytes: u64,
    /// The code that it writes, in bytes.
    pub code_bytes: u64,
}

impl Default for CompilerLimits {
    fn default() -> Self {
        Self {
            niceness: None,
            cpu_s: limits::COMPILE_CPU.as_secs(),
            memory_bytes: limits::COMPILE_MEMORY_BYTES_MAX,
            code_bytes: limits::COMPILED_BYTES_MAX,
        }
    }
}

/// How to compile a component, and when to give it up.
#[derive(Debug, Clone, Default)]
pub struct CompileOptions {
    /// At which priority.
    pub priority: Priority,
    /// Ends the compiler when it is cancelled.
    pub cancelled: CancellationToken,
}

impl CompileOptions {
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.cancelled.is_cancelled() { Err(Error::CompileCancelled) } else { Ok(()) }
    }
}
