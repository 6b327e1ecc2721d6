//! brink's development tasks, as `cargo xtask <task>`: a local cluster, tests, simulations, faults, verify, fix.

mod bench_peers;
mod build;
mod deployment;
mod dev;
mod faults;
mod figures;
mod flame;
mod growth;
mod hook_cost;
mod http;
mod instructions;
mod interrupt;
mod loader;
mod node;
mod progress;
mod readme;
mod sim;
mod test;
#[cfg(test)]
mod tidy;
mod tools;
mod upgrade;

use clap::{Parser, Subcommand};

/// brink's development tasks
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build brink and run three nodes on this machine, with example hooks, until Ctrl-C
    Dev(dev::Options),
    /// Install the tools that tests need, then run every check and every test
    Test,
    /// Inflict faults on real nodes, and check what clients saw
    Faults(faults::Options),
    /// Run simulated clusters from seeds, on all cores
    Sim(sim::Options),
    /// Run the README's examples as they are written; builds nothing
    Readme,
    /// Build an earlier version, and run it with this one in one cluster: an upgrade, the way back, and the end of it
    Upgrade(upgrade::Options),
    /// Compare the speed of brink, etcd, Redis and NATS; installs them
    BenchPeers(bench_peers::Options),
    /// Measure what deploying a large plugin costs the writes of a busy cluster
    Deployment(deployment::Options),
    /// Count the instructions of writes and reads, and compare them with the recorded figures; installs valgrind
    Instructions(instructions::Options),
    /// Measure writes at growing numbers of keys and sizes of values, and plot them
    Growth(growth::Options),
    /// Measure what a bound hook costs writes
    HookCost(hook_cost::Options),
    /// Draw flame graphs of nodes that are busy with writes; installs perf
    Flame(flame::Options),
    /// Check format, lints, documentation and the shape of the source; changes nothing
    Verify,
    /// Fix format and lints where that is possible automatically
    Fix,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Dev(options) => dev::run(&options),
        Task::Test => test::run(),
        Task::Faults(options) => faults::run(&options),
        Task::Sim(options) => sim::run(&options),
        Task::Readme => readme::run(),
        Task::Upgrade(options) => upgrade::run(&options),
        Task::BenchPeers(options) => bench_peers::run(&options),
        Task::Deployment(options) => deployment::run(&options),
        Task::Instructions(options) => instructions::run(&options),
        Task::Growth(options) => growth::run(&options),
        Task::HookCost(options) => hook_cost::run(&options),
        Task::Flame(options) => flame::run(&options),
        Task::Verify => test::verify(),
        Task::Fix => test::fix(),
    }
}
