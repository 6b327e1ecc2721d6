//! Running cargo, and the paths of what it builds.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::progress;

/// The target of plugins.
const WASM_TARGET: &str = "wasm32-wasip2";

/// The packages that are plugins.
pub(crate) const PLUGINS: [&str; 8] =
    ["json-schema", "limits", "normalize", "redact", "reference", "test-hostile", "test-reference", "test-stamp"];

/// The directory of the workspace.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The target directory: where this very program is, whatever the user has configured.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe()?;
    let dir = this.parent().and_then(Path::parent);
    Ok(dir.context("this program is not in a target directory")?.to_path_buf())
}

/// The directory of compiled plugins.
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

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// A command that runs in the workspace. It is printed first.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    eprintln!("--- {program} {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs a command in the workspace; its failure is an error.
pub(crate) fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    run_with(program, args, &[])
}

/// Runs a command in the workspace with environment variables.
pub(crate) fn run_with(program: &str, args: &[&str], env: &[(&str, &Path)]) -> anyhow::Result<()> {
    let mut command = command(program, args);
    let status = command.envs(env.iter().copied()).status().with_context(|| format!("{program} cannot be run"))?;
    if !status.success() {
        bail!("{program} {}: {status}", args.join(" "));
    }
    Ok(())
}

/// Builds the node. `--workspace` selects the features of dependencies as the tests do, so that none is built twice.
pub(crate) fn node() -> anyhow::Result<()> {
    progress::build("brink", command(&cargo(), &["build", "--workspace", "--bin", "brink"]))
}

/// The given binary of brink, or a release build.
pub(crate) fn given_or_release(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(brink) = given {
        return Ok(brink.to_path_buf());
    }
    progress::build("brink", command(&cargo(), &["build", "--release", "--package", "brink"]))?;
    Ok(target_dir()?.join("release").join("brink"))
}

/// Builds the node as its instructions are counted. Returns its binary.
pub(crate) fn counted() -> anyhow::Result<PathBuf> {
    let args = ["build", "--profile", "counted", "--package", "brink", "--bin", "brink"];
    progress::build("brink, to count its instructions", command(&cargo(), &args))?;
    Ok(target_dir()?.join("counted").join("brink"))
}

/// Builds the node and plugins at the same time, since neither build keeps all cores busy to its end.
pub(crate) fn node_and_plugins(packages: &[&str]) -> anyhow::Result<()> {
    add_wasm_target()?;
    std::thread::scope(|scope| {
        let plugins = scope.spawn(|| plugins(packages));
        node()?;
        plugins.join().unwrap_or_else(|_| bail!("the build of the plugins panicked"))
    })
}

/// Builds plugins.
pub(crate) fn plugins_only(packages: &[&str]) -> anyhow::Result<()> {
    add_wasm_target()?;
    plugins(packages)
}

fn plugins(packages: &[&str]) -> anyhow::Result<()> {
    let mut args = vec!["build", "--profile", "plugin", "--target", WASM_TARGET];
    for package in packages {
        args.extend(["--package", package]);
    }
    // A terminal has room for one bar.
    if std::io::stderr().is_terminal() {
        args.push("--quiet");
    }
    progress::build("plugins", command(&cargo(), &args))
}

/// Installs the compilation target of plugins if it is missing.
fn add_wasm_target() -> anyhow::Result<()> {
    let installed = Command::new("rustup").args(["target", "list", "--installed"]).current_dir(root()).output();
    let installed = installed.context("rustup cannot be run; it installs the target of plugins")?;
    if !String::from_utf8_lossy(&installed.stdout).lines().any(|line| line == WASM_TARGET) {
        run("rustup", &["target", "add", WASM_TARGET])?;
    }
    Ok(())
}
