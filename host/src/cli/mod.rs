//! The command line.

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// brink: a replicated key-value store for the edge
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Args),
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("brink: {error:#}");
        ExitCode::FAILURE
    })
}
