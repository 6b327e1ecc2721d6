//! `cargo xtask faults`: real faults on real processes for as long as wanted, with the verdict on what clients saw.

use std::path::Path;

use crate::{build, test};

/// What `faults` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long faults go on
    #[arg(long, default_value_t = 10)]
    minutes: u32,

    /// Whence faults and calls are drawn; each run of five minutes takes the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds, runs the test of mixed faults for so long, and fails if it does.
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
