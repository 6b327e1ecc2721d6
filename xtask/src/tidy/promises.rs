//! Promises: each number in a comment or document is defined in ARCHITECTURE.md.

use std::collections::BTreeSet;
use std::path::Path;

use super::source;

/// Folders with comments that refer to promises.
const FOLDERS: [&str; 4] = ["host", "guest-sdk", "plugins", "tests"];

/// Describes each mention of a promise that is not defined.
pub(super) fn find(root: &Path) -> Vec<String> {
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let defined: BTreeSet<&str> =
        architecture.lines().filter_map(|line| numbers(line.strip_prefix("- **")?.split(' ').next()?).next()).collect();
    let mut found = Vec::new();
    let mut check = |path: &str, line: usize, text: &str| {
        for number in numbers(text).filter(|number| !defined.contains(number)) {
            found.push(format!("{path}:{line}: ARCHITECTURE.md defines no promise {number}"));
        }
    };
    for (path, text) in source::files(root, &[""], "md") {
        text.lines().zip(1..).for_each(|(text, line)| check(&path, line, text));
    }
    for (path, text) in source::files(root, &FOLDERS, "rs") {
        let comments = text.lines().zip(1..).filter_map(|(text, line)| Some((text.split_once("//")?.1, line)));
        comments.for_each(|(text, line)| check(&path, line, text));
    }
    found
}

/// The words of a text that are `P` and a number.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| {
        word.strip_prefix('P').is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
    })
}
