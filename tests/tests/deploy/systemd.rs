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
