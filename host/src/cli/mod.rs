//! The command line: `serve` is a node, all other commands are clients of one.
//!
//! Exit codes, which scripts may rely on:
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | no node could be reached, or the node failed; a tool that builds a plugin, or a case of its test, failed |
//! | 2 | wrong usage: a flag, a setting, a file that cannot be read |
//! | 3 | not found |
//! | 4 | refused: by a plugin, a precondition, a limit |

#![allow(clippy::indexing_slicing, reason = "what is indexed here is JSON, where a missing member is null")]

mod bench;
mod client;
mod cluster;
mod export;
mod import;
mod kv;
mod output;
mod plugin;
mod serve;
mod wire;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use self::client::Failure;
use self::output::Format;

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
    /// Upload plugins and say what runs where
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Look at the cluster
    #[command(subcommand)]
    Cluster(cluster::Command),
    Bench(bench::Args),
    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Which nodes a command talks to, and how it prints.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Base URLs of nodes, separated by commas; the first that can be reached is used
    #[arg(
        long,
        env = "BRINK_URL",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8000/kv-store/v1"
    )]
    url: Vec<String>,

    /// How results are printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => return serve::run(args),
        Command::Kv(command) => run(kv::run(command)),
        Command::Plugin(command) => run(plugin::run(command)),
        Command::Cluster(command) => run(cluster::run(command)),
        Command::Bench(args) => run(bench::run(args)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "brink", &mut std::io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has read enough.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("brink: {failure}");
            failure.exit_code()
        }
    }
}

/// Runs a client's command on a runtime of its own.
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
