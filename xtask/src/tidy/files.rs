//! The form of single files: length, header, nothing unfinished.

use std::path::Path;

use super::source;

/// Folders with the project's Rust code.
const FOLDERS: [&str; 5] = ["host", "guest-sdk", "plugins", "tests", "xtask"];

/// Lines that a file may have without saying why.
const LINES_MAX: usize = 500;

/// The words by which the header of a longer file says why.
const REASON: &str = "This file is long because";

/// Describes each Rust file that is not in form.
pub(super) fn find(root: &Path) -> Vec<String> {
    source::files(root, &FOLDERS, "rs").iter().flat_map(|(path, text)| check(path, text)).collect()
}

fn check(path: &str, text: &str) -> Vec<String> {
    // Spelled apart, so that this file does not find itself.
    let unfinished = [["TO", "DO"], ["FIX", "ME"], ["to", "do!("], ["unimpl", "emented!("], ["#[ig", "nore"]];
    let mut found = Vec::new();
    let header: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let lines = text.lines().count();
    if header.is_empty() {
        found.push(format!("{path} does not open with `//!` and what it is for"));
    }
    if lines > LINES_MAX && !header.join(" ").contains(REASON) {
        found.push(format!("{path} has {lines} lines; above {LINES_MAX} its header says \"{REASON} …\""));
    }
    let unfinished = unfinished.map(|parts| parts.concat());
    found.extend(unfinished.iter().filter(|word| text.contains(*word)).map(|word| format!("{path} has {word}")));
    found
}
