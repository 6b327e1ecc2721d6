//! The command line.
//!
//! `serve` runs a node. The other commands are clients of nodes, except those of `brink plugin` that try a plugin here.
//! `compile-component` is for nodes and these commands only.
//!
//! ```text
//! mod → compile
//! mod → serve → io
//! mod → {kv, plugin, cluster, bench} → client → io → failure
//! ```
//!
//! # Guarantees
//!
//! - Arguments are checked before anything is sent.
//! - A command sends a request to the first node of `--url` that accepts a connection. A request that may have arrived is
//!   not sent again, except by `kv import`, which repeats batches that were certainly not written.
//! - `kv` sends and prints values as they were written, with every digit of a number, except in the table of `kv list`.
//! - Nothing that others wrote orders anything of a terminal (see `io`).
//!
//! Scripts may rely on the exit codes of client commands (`serve` has its own, listed in `docs/configuration.md`):
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | no node could be reached, or the node failed; a build tool failed, or a case of `brink plugin test` |
//! | 2 | wrong usage: a flag, a setting, a file that cannot be read |
//! | 3 | not found |
//! | 4 | refused: by a plugin, a precondition, a limit |

#![allow(
    clippy::indexing_slicing,
    reason = "a missing member of a JSON value is null; a table has a cell for each title"
)]

mod bench;
mod client;
mod cluster;
mod compile;
mod failure;
mod io;
mod kv;
mod plugin;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

// Every command uses these.
use self::client::{Client, Common, Method, Request, key_path, name_path, query};
use self::failure::{Failure, Refusal, root_cause};
use self::io::Format;

/// A replicated key-value store for the edge, with WebAssembly plugins in its write path
#[derive(Debug, Parser)]
#[command(name = "brink", version, propagate_version = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 the node or a tool could not be reached or failed, 2 wrong usage, 3 not found, \
                          4 refused by a plugin, a precondition or a limit";

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
    /// Read and write keys
    #[command(subcommand)]
    Kv(kv::Command),
    /// Write, try and deploy plugins, and bind them to keys
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Show and change the members of the cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    Bench(bench::Args),
    #[command(hide = true)]
    CompileComponent(compile::Args),
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the command that the process's arguments give.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => return serve::run(args),
        Command::CompileComponent(args) => return compile::run(&args),
        Command::Kv(command) => run(kv::run(command)),
        Command::Plugin(command) => run(plugin::run(command)),
        Command::Cluster(command) => run(cluster::run(command)),
        Command::Bench(args) => run(bench::run(args)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "brink", &mut script);
            io::script(&script)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of the pipe has stopped reading, as `head` does.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            io::complain(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Runs a client command on its own runtime.
fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::Output)?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
