//! `cargo xtask sim`: simulated clusters, as many seeds as wanted, on all cores.

use std::path::Path;

use clap::Args;

use crate::build;

/// The test that runs seeds.
const TEST: &str = "replication::sim::clusters_keep_their_promises_under_simulated_faults";

/// What to simulate.
#[derive(Args)]
pub(crate) struct Options {
    /// How many seeds to run
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
}

/// Runs the seeds; the first that violates an invariant ends the run, and the command that replays it is shown.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let (seeds, from) = (options.seeds.to_string(), options.from.to_string());
    let env = [("BRINK_SIM_SEEDS", Path::new(&seeds)), ("BRINK_SIM_FROM", Path::new(&from))];
    // The whole workspace, as `test` builds it, so that no dependency is built twice with other features.
    let test = ["test", "--workspace", "--lib", "--", "--exact", TEST, "--nocapture"];
    build::run_with(&build::cargo(), &test, &env)
}
