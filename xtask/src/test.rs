//! `cargo xtask test`, `verify` and `fix`, and the tools that tests need.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::{build, readme};

/// The tools that tests need beyond Rust: a file that shows that the tool is installed, and its Debian package.
const NEEDED: [(&str, &str); 12] = [
    ("/usr/sbin/nginx", "nginx-light"),
    ("/usr/share/iso-codes/json/iso_639-3.json", "iso-codes"),
    ("/usr/bin/systemd-analyze", "systemd"),
    ("/usr/bin/curl", "curl"),
    ("/usr/bin/jq", "jq"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/npm", "npm"),
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("/usr/share/doc/libfaketime", "libfaketime"),
];

/// The tool that tests need to mount their file system when they do not run as root.
const NEEDED_TO_MOUNT: (&str, &str) = ("/usr/bin/fusermount3", "fuse3");

/// Number of tests that run at once. Each may run a cluster of five processes; on small machines, more than two clusters
/// starve each other.
const TEST_THREADS: &str = "2";

/// Runs every check and every test.
pub(crate) fn run() -> anyhow::Result<()> {
    install_needed()?;
    build::run(&build::cargo(), &["fmt", "--all", "--check"])?;
    build::node_and_plugins(&build::PLUGINS)?;
    let (bin, plugins) = (build::brink_bin()?, build::plugins_dir()?);
    let env = [
        ("BRINK_BIN", bin.as_path()),
        ("BRINK_PLUGINS_DIR", plugins.as_path()),
        ("RUST_TEST_THREADS", Path::new(TEST_THREADS)),
    ];
    build::run_with(&build::cargo(), &["test", "--workspace"], &env)?;
    readme::run()?;
    verify()
}

/// Checks format, lints, documentation and the shape of the source. Changes nothing.
pub(crate) fn verify() -> anyhow::Result<()> {
    let cargo = build::cargo();
    build::run(&cargo, &["fmt", "--all", "--check"])?;
    build::run(&cargo, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    let deny = [("RUSTDOCFLAGS", Path::new("--deny warnings"))];
    build::run_with(&cargo, &["doc", "--workspace", "--no-deps"], &deny)?;
    build::run(&cargo, &["test", "--workspace", "--bin", "xtask", "tidy::"])
}

/// Fixes format and lints where that is possible automatically.
pub(crate) fn fix() -> anyhow::Result<()> {
    let cargo = build::cargo();
    build::run(&cargo, &["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"])?;
    build::run(&cargo, &["fmt", "--all"])
}

/// Installs the tools that tests need.
pub(crate) fn install_needed() -> anyhow::Result<()> {
    install(&NEEDED)?;
    if !rustix::process::geteuid().is_root() {
        install(&[NEEDED_TO_MOUNT])?;
    }
    Ok(())
}

/// Installs the missing tools of a list like [`NEEDED`]. A test that lacks its tools would fail, so this fails first if they
/// cannot be installed.
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
