//! A replay of the committed log: every write in order, applied to a model that shares no code with the store.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use openraft::EntryPayload;

use super::{Leadership, Violation};
use crate::replication::sim::{clients::unique, history::Unique};
use crate::replication::types::{LogEntry, decode};
use crate::storage::{Action, Fact, FeatureLevel, GuardedWrite, HOOKS_PREFIX, Precondition, RangeDigest, Space};

/// Revision, version and value by key.
pub(super) type Keys = BTreeMap<String, (u64, u64, String)>;

#[derive(Default)]
pub(super) struct Replay {
    /// By unique value: the revision of each write that was applied.
    pub(super) applied: HashMap<Unique, u64>,
    /// The revisions at which each key of clients changed, with its new unique value; none for a deletion.
    pub(super) changes: BTreeMap<String, BTreeMap<u64, Option<Unique>>>,
    /// Revision, version and value of every key at the end, and of every key of the registry.
    pub(super) state: Keys,
    pub(super) registry: Keys,
    /// The store's revision at the end.
    pub(super) revision: u64,
    /// The revision of the last change of the hooks.
    pub(super) hook_epoch: u64,
    /// The names of writes so far, and whether each write was applied.
    names: HashMap<String, bool>,
}

impl Replay {
    pub(super) fn of(committed: &BTreeMap<u64, (Leadership, Bytes)>) -> Result<Self, Violation> {
        let mut replay = Self::default();
        let (mut level, mut time_ms) = (FeatureLevel::FIRST, 0);
        for (expected, (index, (_, bytes))) in (0..).zip(committed) {
            if *index != expected {
                return Err(Violation::new("replay", format!("entry {expected} was never seen, and {index} was")));
            }
            let entry: LogEntry = decode(bytes).map_err(|error| Violation::new("replay", error.to_string()))?;
            let EntryPayload::Normal(round) = entry.payload else { continue };
            level = level.max(round.level());
            time_ms = time_ms.max(round.stamped_at_ms.unwrap_or(0));
            for write in round.guarded_writes((level >= FeatureLevel::STAMPED).then_some(time_ms), level) {
                replay.apply(&write);
            }
        }
        Ok(replay)
    }

    fn apply(&mut self, write: &GuardedWrite) {
        if write.is_unusable {
            return;
        }
        if let Some(name) = &write.idempotency
            && self.names.contains_key(&name.key)
        {
            return;
        }
        if write.hook_epoch.is_some_and(|epoch| epoch != self.hook_epoch) {
            return;
        }
        let holds = write.preconditions.iter().all(|precondition| self.holds(precondition));
        if let Some(name) = &write.idempotency {
            self.names.insert(name.key.clone(), holds);
        }
        if !holds {
            return;
        }
        self.revision += 1;
        for operation in &write.operations {
            let (key, revision) = (&operation.key, self.revision);
            if operation.space == Space::System && key.starts_with(HOOKS_PREFIX) {
                self.hook_epoch = revision;
            }
            let keys = if operation.space == Space::System { &mut self.registry } else { &mut self.state };
            let value = match &operation.action {
                Action::Put(value) => {
                    let version = keys.get(key).map_or(0, |(_, version, _)| *version) + 1;
                    let text = String::from_utf8_lossy(&value.bytes).into_owned();
                    keys.insert(key.clone(), (revision, version, text));
                    self.applied.extend(unique(value).map(|id| (id, revision)));
                    unique(value)
                }
                Action::Delete => {
                    keys.remove(key);
                    None
                }
            };
            if operation.space == Space::Kv {
                self.changes.entry(key.clone()).or_default().insert(revision, value);
            }
        }
    }

    fn holds(&self, precondition: &Precondition) -> bool {
        let keys = if precondition.space == Space::System { &self.registry } else { &self.state };
        let revision_of = |key: &String| keys.get(key).map(|(revision, ..)| *revision);
        match &precondition.fact {
            Fact::Revision { key, revision } => revision_of(key) == *revision,
            Fact::Exists { key } => revision_of(key).is_some(),
            Fact::Range { start, end, digest, .. } => {
                let found = keys.range(start.clone()..=end.clone());
                RangeDigest::of(found.map(|(key, (revision, ..))| (key.as_str(), *revision))) == *digest
            }
        }
    }
}
