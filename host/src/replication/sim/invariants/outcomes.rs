//! Honest outcomes: a write that its client was told will never happen has not happened.

use super::{Violation, replay::Replay};
use crate::replication::sim::history::History;

const NAME: &str = "honest-outcomes";

pub(super) fn conclude(history: &History, replay: &Replay) -> Result<(), Violation> {
    for denied in history.operations.iter().filter(|operation| operation.is_write() && operation.is_denied()) {
        // Another attempt at the same named write may have happened.
        let mut attempts = history
            .operations
            .iter()
            .filter(|other| other.id == denied.id || (denied.name().is_some() && other.name() == denied.name()));
        if attempts.all(|attempt| attempt.is_denied()) && replay.applied.contains_key(&history.value_of(denied)) {
            return Err(Violation::new(NAME, format!("{denied:?} was said not to be written, and the log has it")));
        }
    }
    Ok(())
}
