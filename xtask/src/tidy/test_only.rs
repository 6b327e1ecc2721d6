//! Production code that differs between tests and production.
//!
//! Test doubles implement a trait and are chosen from outside, so only whole modules and imports may be for tests.

use super::modules::Crate;

/// Describes each `cfg` of tests in production code.
pub(super) fn find(source: &Crate) -> Vec<String> {
    let switches =
        source.files.iter().flat_map(|file| file.contents.test_switches.iter().map(|line| (&file.name, line)));
    let describe = |(name, line)| format!("{name}:{line}: only a whole module or import may be for tests");
    switches.map(describe).collect()
}
