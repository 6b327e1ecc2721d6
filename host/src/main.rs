//! The `brink` binary: starts, reports, drains.

use std::process::ExitCode;

fn main() -> ExitCode {
    brink::cli::main()
}
