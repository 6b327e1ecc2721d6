//! `cargo xtask test`: everything there is to check, with all that it needs.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::{build, readme};

/// What tests need beyond Rust: a file that shows it is there, and the Debian package that brings it.
const NEEDED: [(&str, &str); 11] = [
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
];

/// What tests need to mount a file system of their own if they are not run by root.
const NEEDED_TO_MOUNT: (&str, &str) = ("/usr/bin/fusermount3", "fuse3");

/// Clusters of three to five processes run at once; more than two of them starve each other on small machines.
const TEST_THREADS: &str = "2";

/// Runs every check and every test.
pub(crate) fn run() -> anyhow::Result<()> {
    install_needed()?;
    build::run(&build::cargo(), &["fmt", "--all", "--check"])?;
    build::plugins()?;
    build::node()?;
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

/// Checks format, lints and documentation.
pub(crate) fn verify() -> anyhow::Result<()> {
    let cargo = build::cargo();
    build::run(&cargo, &["fmt", "--all", "--check"])?;
    build::run(&cargo, &["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])?;
    let deny = [("RUSTDOCFLAGS", Path::new("--deny warnings"))];
    build::run_with(&cargo, &["doc", "--workspace", "--no-deps"], &deny)
}

/// Mends what can be mended.
pub(crate) fn fix() -> anyhow::Result<()> {
    let cargo = build::cargo();
    build::run(&cargo, &["clippy", "--workspace", "--all-targets", "--fix", "--allow-dirty", "--allow-staged"])?;
    build::run(&cargo, &["fmt", "--all"])
}

/// Installs what the tests need.
pub(crate) fn install_needed() -> anyhow::Result<()> {
    install(&NEEDED)?;
    if !rustix::process::geteuid().is_root() {
        install(&[NEEDED_TO_MOUNT])?;
    }
    Ok(())
}

/// Installs what is missing: each a file that shows it is there, and the Debian package that brings it. A test that cannot
/// run is a failure, so there is no going on without.
pub(crate) fn install(needed: &[(&str, &str)]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        needed.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("this needs {}; install what brings them here", missing.join(", "));
    }
    let is_root = rustix::process::geteuid().is_root();
    let (program, before) = if is_root { ("apt-get", vec![]) } else { ("sudo", vec!["apt-get"]) };
    let apt = |args: &[&str]| -> anyhow::Result<()> {
        let all: Vec<&str> = before.iter().chain(args).copied().collect();
        let mut command = Command::new(program);
        // A service that a package would start is not wanted: the tests start their own.
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
