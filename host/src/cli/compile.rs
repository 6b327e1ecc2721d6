//! `brink compile-component`: a compiler of plugins, which a node or a command starts for itself.

use std::process::ExitCode;

use crate::sandbox::{CompilerLimits, compile_component};

/// Compile a component, for a node
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The parent process; the compiler ends when it does
    #[arg(long, value_name = "PID")]
    parent: u32,
    /// Without it, the compiler runs when nothing else wants to
    #[arg(long)]
    niceness: Option<i32>,
    #[arg(long, default_value_t = CompilerLimits::default().cpu_s)]
    cpu_s: u64,
    #[arg(long, default_value_t = CompilerLimits::default().memory_bytes)]
    memory_bytes: u64,
    #[arg(long, default_value_t = CompilerLimits::default().code_bytes)]
    code_bytes: u64,
}

pub(super) fn run(args: &Args) -> ExitCode {
    let Args { parent, niceness, cpu_s, memory_bytes, code_bytes } = *args;
    compile_component(parent, CompilerLimits { niceness, cpu_s, memory_bytes, code_bytes })
}
