//! Running cargo, and where it puts things.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The target of plugins.
pub(crate) const WASM_TARGET: &str = "wasm32-wasip2";

/// The packages that are plugins.
pub(crate) const PLUGINS: [&str; 8] =
    ["json-schema", "limits", "normalize", "redact", "reference", "test-hostile", "test-reference", "test-stamp"];

/// The directory of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where cargo builds. Next to this very program, whatever the user has configured.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let dir = this.parent().and_then(Path::parent);
    Ok(dir.context("this program is not in a target directory")?.to_path_buf())
}

/// Where the compiled plugins are.
pub(crate) fn plugins_dir() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join(WASM_TARGET).join("plugin"))
}

/// The compiled plugin of a package.
pub(crate) fn plugin_file(package: &str) -> anyhow::Result<PathBuf> {
    Ok(plugins_dir()?.join(format!("{}.wasm", package.replace('-', "_"))))
}

/// The node's binary.
pub(crate) fn brink_bin() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("debug").join("brink"))
}

/// Runs a command in the workspace; its failure is an error.
pub(crate) fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    run_with(program, args, &[])
}

/// Runs a command in the workspace with environment variables.
pub(crate) fn run_with(program: &str, args: &[&str], env: &[(&str, &Path)]) -> anyhow::Result<()> {
    eprintln!("--- {program} {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().copied()).current_dir(root()).stdin(Stdio::null());
    let status = command.status().with_context(|| format!("{program} cannot be run"))?;
    if !status.success() {
        bail!("{program} {}: {status}", args.join(" "));
    }
    Ok(())
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// Builds the plugins, and first adds the target they need if it is missing.
pub(crate) fn plugins() -> anyhow::Result<()> {
    let installed = Command::new("rustup").args(["target", "list", "--installed"]).current_dir(root()).output();
    let installed = installed.context("rustup cannot be run; it installs what plugins are compiled with")?;
    if !String::from_utf8_lossy(&installed.stdout).lines().any(|line| line == WASM_TARGET) {
        run("rustup", &["target", "add", WASM_TARGET])?;
    }
    let mut args = vec!["build", "--profile", "plugin", "--target", WASM_TARGET];
    for package in PLUGINS {
        args.extend(["--package", package]);
    }
    run(&cargo(), &args)
}

/// Builds the node. The whole workspace, as the tests do, so that no dependency is built twice with other features.
pub(crate) fn node() -> anyhow::Result<()> {
    run(&cargo(), &["build", "--workspace", "--bins"])
}
