//! A replay of the committed log: every write in order, applied to a model that shares no code with the store.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use openraft::EntryPayload;

use super::{Leadership, Violation};
use crate::replication::sim::{clients::unique, history::Unique};
use crate::replication::types::{LogEntry, decode};
use crate::storage::{Action, Fact, GuardedWrite};

#[derive(Default)]
pub(super) struct Replay {
    /// By unique value: the revision of each write that was applied.
    pub(super) applied: HashMap<Unique, u64>,
    /// Revision, version and value of every key at the end.
    pub(super) state: BTreeMap<String, (u64, u64, String)>,
    /// The store's revision at the end.
    pub(super) revision: u64,
    /// The names of writes so far, and whether each write was applied.
    names: HashMap<String, bool>,
}

impl Replay {
    pub(super) fn of(committed: &BTreeMap<u64, (Leadership, Bytes)>) -> Result<Self, Violation> {
        let mut replay = Self::default();
        for (expected, (index, (_, bytes))) in (0..).zip(committed) {
            if *index != expected {
                return Err(Violation::new("replay", format!("entry {expected} was never seen, and {index} was")));
            }
            let entry: LogEntry = decode(bytes).map_err(|error| Violation::new("replay", error.to_string()))?;
            let EntryPayload::Normal(round) = entry.payload else { continue };
            for write in round.guarded_writes(0) {
                replay.apply(&write.map_err(|error| Violation::new("replay", error.to_string()))?);
            }
        }
        Ok(replay)
    }

    fn apply(&mut self, write: &GuardedWrite) {
        if let Some(name) = &write.idempotency
            && self.names.contains_key(&name.key)
        {
            return;
        }
        let holds = write.preconditions.iter().all(|precondition| match &precondition.fact {
            Fact::Revision { key, revision } => self.state.get(key).map(|(revision, ..)| *revision) == *revision,
            Fact::Exists { .. } | Fact::Range { .. } => true,
        });
        if let Some(name) = &write.idempotency {
            self.names.insert(name.key.clone(), holds);
        }
        if !holds {
            return;
        }
        self.revision += 1;
        for operation in &write.operations {
            match &operation.action {
                Action::Put(value) => {
                    let version = self.state.get(&operation.key).map_or(0, |(_, version, _)| *version) + 1;
                    let text = String::from_utf8_lossy(&value.bytes).into_owned();
                    self.state.insert(operation.key.clone(), (self.revision, version, text));
                    if let Some(id) = unique(value) {
                        self.applied.insert(id, self.revision);
                    }
                }
                Action::Delete => drop(self.state.remove(&operation.key)),
            }
        }
    }
}
