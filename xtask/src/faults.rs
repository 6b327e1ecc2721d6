//! `cargo xtask faults`: inflicts faults on real processes for a given time, and checks the history of the clients.

use std::path::Path;

use crate::{build, test};

/// The options of `faults`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Minutes of faults
    #[arg(long, default_value_t = 10)]
    minutes: u32,

    /// Seed of faults and calls; every run of five minutes takes the next seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds, and runs the test of mixed faults for the given time.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    test::install_needed()?;
    build::node()?;
    let (minutes, seed) = (options.minutes.to_string(), options.seed.to_string());
    let bin = build::brink_bin()?;
    let env = [
        ("BRINK_BIN", bin.as_path()),
        ("BRINK_FAULTS_MINUTES", Path::new(&minutes)),
        ("BRINK_FAULTS_SEED", Path::new(&seed)),
    ];
    let args = ["test", "--workspace", "--test", "faults", "--", "--nocapture", "mixed::"];
    build::run_with(&build::cargo(), &args, &env)
}
