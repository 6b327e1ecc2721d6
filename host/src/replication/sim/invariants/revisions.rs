//! Monotonic revisions: a running node's revision never decreases, every write has a revision of its own, and a write that
//! began after another was acknowledged has a greater one.

use std::collections::HashMap;

use super::{View, Violation};
use crate::replication::sim::{clients::applied_revision, history::History};

const NAME: &str = "monotonic-revisions";

/// The last start and revision of each node.
#[derive(Default)]
pub(super) struct Revisions {
    seen: HashMap<usize, (u64, u64)>,
}

impl Revisions {
    pub(super) fn observe(&mut self, view: &View<'_>) -> Result<(), Violation> {
        let revision = view.data.revision();
        match self.seen.insert(view.number, (view.start, revision)) {
            Some((start, before)) if start == view.start && before > revision => {
                let detail = format!("node {} went from revision {before} back to {revision}", view.number);
                Err(Violation::new(NAME, detail))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn conclude(history: &History) -> Result<(), Violation> {
    // A named write may have been applied before the call that reports it.
    let unnamed = history.operations.iter().filter(|operation| operation.is_write() && operation.name().is_none());
    let writes: Vec<(i64, i64, u64)> = unnamed
        .filter_map(|write| Some((write.called, write.returned?, applied_revision(write.outcome()?)?)))
        .collect();
    for (called, returned, revision) in &writes {
        for (other_called, _, other) in &writes {
            if other == revision && other_called != called {
                return Err(Violation::new(NAME, format!("two writes were given revision {revision}")));
            }
            if other_called > returned && other < revision {
                let detail = format!("a write of revision {other} began after one of revision {revision} was done");
                return Err(Violation::new(NAME, detail));
            }
        }
    }
    Ok(())
}
