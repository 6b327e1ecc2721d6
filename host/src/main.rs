//! The `brink` binary. `brink serve` starts a node, reports its end and drains it; see [`brink::cli`].

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    brink::cli::main()
}
