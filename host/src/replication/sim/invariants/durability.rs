//! Durability: every acknowledged write is in the committed log, with the revision that its client was told.

use super::{Violation, replay::Replay};
use crate::replication::sim::clients::applied_revision;
use crate::replication::sim::history::{History, Unique};

const NAME: &str = "durability";

pub(super) fn conclude(history: &History, replay: &Replay) -> Result<(), Violation> {
    for operation in history.operations.iter().filter(|operation| operation.is_write()) {
        let Some(revision) = operation.outcome().and_then(applied_revision) else { continue };
        let value: Unique = history.value_of(operation);
        match replay.applied.get(&value) {
            Some(found) if *found == revision => {}
            found => {
                let detail = format!("{operation:?} was acknowledged with revision {revision}; the log has {found:?}");
                return Err(Violation::new(NAME, detail));
            }
        }
    }
    Ok(())
}
