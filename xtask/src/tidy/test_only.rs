//! Production code that differs between tests and production.
//!
//! Test doubles implement a trait and are chosen from outside; only whole modules and imports are for tests.

use super::modules::Crate;

/// Files with a reason to break the rule.
const EXCEPTIONS: [(&str, &str); 0] = [];

/// Describes each `cfg` of tests in production code.
pub(super) fn find(source: &Crate) -> Vec<String> {
    let files = source.files.iter().filter(|file| !EXCEPTIONS.iter().any(|(name, _)| *name == file.name));
    let describe =
        |name: &str, line: &usize| format!("{name}:{line}: `cfg` of tests on something other than a module or import");
    files
        .flat_map(|file| file.contents.test_switches.iter().map(|line| describe(&file.name, line)).collect::<Vec<_>>())
        .collect()
}
