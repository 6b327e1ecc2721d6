//! `cargo xtask sim`: runs simulated clusters from a range of seeds, on all cores.

use std::path::Path;

use clap::Args;

use crate::build;

/// The test that runs the seeds.
const TEST: &str = "replication::sim::clusters_keep_their_promises_under_simulated_faults";

/// The options of `sim`.
#[derive(Args)]
pub(crate) struct Options {
    /// Number of seeds to run
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// Runs the seeds. The first violation of an invariant ends the run and prints the command that replays its seed.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (seeds, from) = (options.seeds.to_string(), options.from.to_string());
    let env = [("BRINK_SIM_SEEDS", Path::new(&seeds)), ("BRINK_SIM_FROM", Path::new(&from))];
    // Optimized: thousands of seeds are worth the minutes that the first build takes.
    let test = ["test", "--package", "brink", "--profile", "sim", "--lib", "--", "--exact", TEST, "--nocapture"];
    build::run_with(&build::cargo(), &test, &env)
}
