//! Programs of others that tasks need, installed as Debian packages.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Installs what is missing of a list: for each tool, a file that shows that it is installed, and its Debian package. Fails if it
/// cannot be installed, before anything runs that needs it.
pub(crate) fn install(needed: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("please install these Debian packages, or what corresponds to them here: {}", missing.join(", "));
    }
    let is_root = rustix::process::geteuid().is_root();
    let (program, before) = if is_root { ("apt-get", vec![]) } else { ("sudo", vec!["apt-get"]) };
    let apt = |args: &[&str]| -> anyhow::Result<()> {
        let all: Vec<&str> = before.iter().chain(args).copied().collect();
        let mut command = Command::new(program);
        // Packages must not start their services: the tests start their own. Installation scripts see run level 1.
        command.args(&all).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").stdin(Stdio::null());
        let status = command.status().with_context(|| format!("{program} cannot be run"))?;
        if !status.success() {
            bail!("{program} {}: {status}", all.join(" "));
        }
        Ok(())
    };
    apt(&["update", "--quiet"])?;
    let install = ["install", "--quiet", "--yes", "--no-install-recommends"];
    apt(&install.iter().chain(&missing).copied().collect::<Vec<_>>())
}
