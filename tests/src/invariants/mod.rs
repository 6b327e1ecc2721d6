//! What must be true of every history, whatever faults there were. Each rule has a file of its own, with histories that
//! break it.

mod answers;
mod batches;
mod linearizable;
mod local_reads;
mod revisions;
#[cfg(test)]
mod samples;
mod visible;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::history::Call;
pub use linearizable::draw;

/// A rule that a history breaks.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The rule.
    pub rule: &'static str,
    /// What is wrong.
    pub what: String,
    /// The calls that show it.
    pub calls: Vec<Arc<Call>>,
}

impl Violation {
    fn new(rule: &'static str, what: impl Into<String>, calls: &[&Arc<Call>]) -> Self {
        let mut calls: Vec<Arc<Call>> = calls.iter().map(|call| Arc::clone(call)).collect();
        calls.dedup_by_key(|call| call.id);
        Self { rule, what: what.into(), calls }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.rule, self.what)?;
        for call in &self.calls {
            write!(formatter, "\n    {}", call.describe())?;
        }
        Ok(())
    }
}

/// Every rule that a history breaks, at most one violation of each. `calls` are in the order of their beginnings.
pub fn check(calls: &[Arc<Call>]) -> Vec<Violation> {
    let rules = [answers::check, visible::check, revisions::check, local_reads::check, batches::check];
    let mut violations: Vec<Violation> = rules.iter().filter_map(|rule| rule(calls).err()).collect();
    violations.extend(linearizable::check(calls).err());
    violations
}

/// Draws the history of each object that a violation is about, as pages for a browser.
pub fn draw_all(violations: &[Violation], calls: &[Arc<Call>], dir: &Path) {
    let objects = violations.iter().filter_map(|violation| violation.calls.first()).map(|call| call.object);
    let objects: std::collections::BTreeSet<u64> = objects.collect();
    for object in objects {
        draw(calls, object, &dir.join(format!("object-{object}.html")));
    }
}
