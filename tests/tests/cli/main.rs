//! The command line: each command with its output and exit code.

mod bad_input;
mod bench;
mod commands;
mod real_data;
