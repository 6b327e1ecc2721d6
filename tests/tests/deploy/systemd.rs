//! The systemd unit in `deploy/`.

use std::path::Path;
use std::process::Command;

#[test]
fn the_unit_is_accepted_by_systemd() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/brink.service");
    let dir = tempfile::tempdir().unwrap();
    // The binary is not installed at the unit's path.
    let text = std::fs::read_to_string(unit).unwrap();
    assert!(text.contains("ExecStart=/usr/local/bin/brink serve"));
    let brink = brink_tests::brink_bin();
    let text = text.replace("/usr/local/bin/brink", brink.to_str().unwrap());
    let path = dir.path().join("brink.service");
    std::fs::write(&path, text).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output();
    let output = output.expect("systemd is not installed; run `cargo xtask test`");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("brink.service"), "{said}");
}

#[test]
fn a_node_is_given_little_and_leaves_nothing_open() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/brink.service");
    // In tenths of systemd's points: it needs the network, and compiled code is executable.
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--threshold=17", "--no-pager"]).arg(&unit);
    let output = command.output().expect("systemd is not installed; run `cargo xtask test`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    // systemd counts no points for these.
    let text = std::fs::read_to_string(unit).unwrap();
    for line in ["UMask=0077", "StateDirectoryMode=0700", "LimitCORE=0", "MemorySwapMax=0"] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    for setting in ["MemoryMax=", "TasksMax="] {
        assert!(text.lines().any(|found| found.starts_with(setting)), "{setting}");
    }
}

#[test]
fn the_environment_file_has_the_settings_of_serve() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/brink.env");
    let text = std::fs::read_to_string(file).unwrap();
    let help = brink_tests::brink("", &["serve", "--help"]).expect(0).out;
    let names = text.lines().filter_map(|line| line.trim_start_matches('#').trim().split_once('='));
    let names: Vec<_> = names.map(|(name, _)| name).filter(|name| !name.contains(' ')).collect();
    assert!(names.len() > 3, "{names:?}");
    for name in names {
        assert!(name.starts_with("OTEL_") || help.contains(name), "{name} is not a setting of `brink serve`");
    }
}
