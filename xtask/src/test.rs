//! `cargo xtask test`, `verify` and `fix`, and the tools that tests need.

use std::path::Path;

use crate::{build, instructions, readme, tools};

/// The tools that tests need beyond Rust: a file that shows that the tool is installed, and its Debian package.
const NEEDED: [(&str, &str); 13] = [
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
    ("/usr/bin/callgrind_control", "valgrind"),
];

/// The tool that tests need to mount their file system when they do not run as root.
const NEEDED_TO_MOUNT: (&str, &str) = ("/usr/bin/fusermount3", "fuse3");

/// Number of tests of a suite that run at once. Each may run a cluster of five processes under load.
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
    verify()?;
    instructions::run(&instructions::Options::default())
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
    tools::install(&NEEDED)?;
    if !rustix::process::geteuid().is_root() {
        tools::install(&[NEEDED_TO_MOUNT])?;
    }
    Ok(())
}
