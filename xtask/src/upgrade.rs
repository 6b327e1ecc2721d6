//! `cargo xtask upgrade`: builds an earlier version, and runs it with this one in one cluster.

use std::path::Path;

use anyhow::{Context, bail};

use crate::build;

/// The options of `upgrade`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The earlier version: a commit or a tag
    #[arg(long, default_value = OLD)]
    from: String,
}

/// The last commit before feature levels.
const OLD: &str = "f931505";

/// Builds both versions, and runs the test of a rolling upgrade.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let target = build::target_dir()?;
    let (checkout, old_target) = (target.join("upgrade").join(&options.from), target.join("upgrade-target"));
    if !checkout.exists() {
        let path = checkout.to_str().context("the target directory's name is not UTF-8")?;
        build::run("git", &["worktree", "prune"])?;
        build::run("git", &["worktree", "add", "--detach", path, &options.from])?;
    }
    let manifest = checkout.join("Cargo.toml");
    let Some(manifest) = manifest.to_str() else { bail!("the target directory's name is not UTF-8") };
    let args = ["build", "--workspace", "--bin", "brink", "--manifest-path", manifest];
    build::run_with(&build::cargo(), &args, &[("CARGO_TARGET_DIR", &old_target)])?;

    build::node()?;
    let (old, new) = (old_target.join("debug").join("brink"), build::brink_bin()?);
    let env: [(&str, &Path); 2] = [("BRINK_OLD_BIN", &old), ("BRINK_BIN", &new)];
    let args = ["test", "--workspace", "--test", "upgrade", "--", "--nocapture"];
    build::run_with(&build::cargo(), &args, &env)
}
