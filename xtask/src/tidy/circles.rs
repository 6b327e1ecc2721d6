//! Circles: files that use each other, directly or through others.
//!
//! A file that is part of a circle cannot be understood without all the others. A `mod.rs` that only declares and
//! re-exports uses nothing; one that defines something is a file like any other.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::{Crate, Target};

/// For each file, the files that it uses and an example of how.
type Arrows = BTreeMap<usize, BTreeMap<usize, String>>;

/// Describes each set of files that use each other. Code for tests is left out.
pub(super) fn find(source: &Crate) -> Vec<String> {
    let arrows = arrows(source);
    let reachable: BTreeMap<usize, BTreeSet<usize>> =
        arrows.keys().map(|file| (*file, reach(&arrows, *file))).collect();
    let reaches = |from: usize, to: usize| reachable.get(&from).is_some_and(|files| files.contains(&to));
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for file in arrows.keys().copied().filter(|file| reaches(*file, *file)) {
        if seen.contains(&file) {
            continue;
        }
        let circle: BTreeSet<usize> =
            arrows.keys().copied().filter(|other| reaches(file, *other) && reaches(*other, file)).collect();
        found.push(describe(source, &arrows, &circle));
        seen.extend(circle);
    }
    found
}

fn arrows(source: &Crate) -> Arrows {
    let mut arrows = Arrows::new();
    for used in source.uses() {
        let Target::Item(target) = used.target else { continue };
        if used.in_test || used.is_reexport || target == used.file {
            continue;
        }
        let example = || format!("line {}: {}", used.path.line, used.path.segments.join("::"));
        arrows.entry(used.file).or_default().entry(target).or_insert_with(example);
    }
    arrows
}

/// All files that can be reached from a file in one or more steps.
fn reach(arrows: &Arrows, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(file) = next.pop() {
        let new = arrows.get(&file).into_iter().flat_map(BTreeMap::keys).filter(|used| reached.insert(**used));
        next.extend(new.copied().collect::<Vec<_>>());
    }
    reached
}

/// The arrows within a circle, one a line.
fn describe(source: &Crate, arrows: &Arrows, circle: &BTreeSet<usize>) -> String {
    let name = |file: &usize| source.files[*file].name.as_str();
    let mut lines = vec![format!("a circle of {} files:", circle.len())];
    for from in circle {
        for (to, example) in arrows[from].iter().filter(|(to, _)| circle.contains(to)) {
            lines.push(format!("    {} uses {} ({example})", name(from), name(to)));
        }
    }
    lines.join("\n")
}
