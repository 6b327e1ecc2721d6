//! The invariants of every history, whatever faults were injected. Each has a file of its own, with histories that violate
//! it.

mod answers;
mod batches;
mod linearizable;
mod local_reads;
mod revisions;
#[cfg(test)]
pub(crate) mod samples;
mod violation;
mod visible;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use crate::history::Call;
pub use linearizable::draw;
pub use violation::Violation;

/// Checks all invariants, and returns at most one violation of each. `calls` are ordered by their start.
pub fn check(calls: &[Arc<Call>]) -> Vec<Violation> {
    let checks =
        [answers::check, visible::check, revisions::check, local_reads::check, batches::check, linearizable::check];
    checks.iter().filter_map(|check| check(calls).err()).collect()
}

/// Draws the history of each object that a violation concerns, as HTML pages.
pub fn draw_all(violations: &[Violation], calls: &[Arc<Call>], dir: &Path) {
    let objects = violations.iter().filter_map(|violation| violation.calls.first()).map(|call| call.object);
    let objects: BTreeSet<u64> = objects.collect();
    for object in objects {
        draw(calls, object, &dir.join(format!("object-{object}.html")));
    }
}
