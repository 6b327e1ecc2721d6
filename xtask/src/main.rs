//! brink's own chores, as `cargo xtask <chore>`: a cluster to try, all tests, simulations, faults, verify, fix.

mod bench_peers;
mod build;
mod dev;
mod faults;
mod readme;
mod sim;
mod test;
#[cfg(test)]
mod tidy;

use clap::{Parser, Subcommand};

/// brink's own chores
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build everything and run three nodes on this machine, with example hooks, until Ctrl-C
    Dev(dev::Options),
    /// Install what the tests need, then run every check and every test
    Test,
    /// Inflict faults on real nodes for a while, and judge what clients saw
    Faults(faults::Options),
    /// Run simulated clusters from seeds, on all cores
    Sim(sim::Options),
    /// Run the examples of the README as they are written; builds nothing
    Readme,
    /// Compare the speed of brink with that of etcd, which is installed for it
    BenchPeers(bench_peers::Options),
    /// Check format, lints and documentation; changes nothing
    Verify,
    /// Mend format and what lints can mend by themselves
    Fix,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().chore {
        Chore::Dev(options) => dev::run(&options),
        Chore::Test => test::run(),
        Chore::Faults(options) => faults::run(&options),
        Chore::Sim(options) => sim::run(&options),
        Chore::Readme => readme::run(),
        Chore::BenchPeers(options) => bench_peers::run(&options),
        Chore::Verify => test::verify(),
        Chore::Fix => test::fix(),
    }
}
