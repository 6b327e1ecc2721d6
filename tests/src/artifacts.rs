//! The binary and the compiled plugins that the tests use.
//!
//! `cargo xtask test` builds them and names them in `BRINK_BIN` and `BRINK_PLUGINS_DIR`. Without these variables they are
//! expected in this build's target directory.

use std::path::{Path, PathBuf};

/// The `brink` binary.
pub fn brink_bin() -> PathBuf {
    let path = std::env::var_os("BRINK_BIN").map_or_else(|| build_dir().join("brink"), PathBuf::from);
    assert!(path.exists(), "{} is missing; build it, or run `cargo xtask test`", path.display());
    path
}

/// The bytes of a compiled plugin.
pub fn plugin_wasm(package: &str) -> Vec<u8> {
    std::fs::read(plugin_file(package)).unwrap()
}

/// Another version of a compiled plugin with the same behavior.
pub fn plugin_version(package: &str, number: u8) -> Vec<u8> {
    let mut wasm = plugin_wasm(package);
    // A custom section: its id, its length, its name, its content.
    wasm.extend([0, 3, 1, b'v', number]);
    wasm
}

/// The file of a compiled plugin, named by its package.
pub fn plugin_file(package: &str) -> PathBuf {
    let dir = std::env::var_os("BRINK_PLUGINS_DIR")
        .map_or_else(|| build_dir().parent().unwrap().join("wasm32-wasip2").join("plugin"), PathBuf::from);
    let path = dir.join(format!("{}.wasm", package.replace('-', "_")));
    assert!(path.exists(), "{} is missing; build the plugins, or run `cargo xtask test`", path.display());
    path
}

/// The directory of this build's binaries. Test executables are in its `deps`.
pub fn build_dir() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.parent().and_then(Path::parent).unwrap().to_path_buf()
}
