//! Applies guarded writes, deterministically: the result depends on the state and the write alone.

use std::collections::{BTreeMap, HashMap};

use super::cache::RecentMetas;
use super::idempotency::{Outcomes, Rewritten};
use super::{scan, tables};
use crate::storage::command::{
    Action, AskedBy, Effect, EntryMeta, Fact, GuardedWrite, HOOKS_PREFIX, Operation, Outcome, Precondition,
    RangeDigest, Space, Value,
};
use crate::storage::engine::{ReadTables, WriteBatch};
use crate::storage::{Error, FeatureLevel, record};

/// The changes of a batch so far, over the state below it. Later writes of a batch see earlier ones.
pub(super) struct Overlay<'a> {
    tables: &'a dyn ReadTables,
    recent: &'a RecentMetas,
    revision: u64,
    hook_epoch: u64,
    /// The new entries by their keys; none for deleted ones.
    changed: HashMap<Space, BTreeMap<String, Option<(EntryMeta, Value)>>>,
    outcomes: Outcomes<'a>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(tables: &'a dyn ReadTables, recent: &'a RecentMetas, revision: u64, hook_epoch: u64) -> Self {
        Self { tables, recent, revision, hook_epoch, changed: HashMap::new(), outcomes: Outcomes::new(tables) }
    }

    /// Applies one write as a whole or not at all. A write whose idempotency key is remembered is not applied again.
    pub(super) fn apply(&mut self, write: &GuardedWrite) -> Result<Outcome, Error> {
        let Some(idempotency) = &write.idempotency else { return self.apply_new(write) };
        if let Some(outcome) = self.outcomes.recall(idempotency, write.proposed_at_ms)? {
            return Ok(outcome);
        }
        let outcome = self.apply_new(write)?;
        if is_final(&outcome, write) {
            let rewritten = remembered_of(write);
            self.outcomes.remember(idempotency, &write.operations, rewritten, &outcome, write.proposed_at_ms)?;
        }
        Ok(outcome)
    }

    fn apply_new(&mut self, write: &GuardedWrite) -> Result<Outcome, Error> {
        if write.hook_epoch.is_some_and(|epoch| epoch != self.hook_epoch) {
            return Ok(Outcome::HooksChanged { epoch: self.hook_epoch });
        }
        for (index, precondition) in (0..).zip(&write.preconditions) {
            if let Some(current) = self.violated(precondition)? {
                return Ok(Outcome::PreconditionFailed { index, current });
            }
        }
        let revision = self.revision + 1;
        let mut effects = Vec::with_capacity(write.operations.len());
        for operation in &write.operations {
            effects.push(self.change(operation, revision, write.proposed_at_ms)?);
        }
        if effects.iter().any(|effect| !matches!(effect, Effect::Deleted { existed: false })) {
            self.revision = revision;
            if write.operations.iter().any(changes_hooks) {
                self.hook_epoch = revision;
            }
        }
        Ok(Outcome::Applied { revision: self.revision, effects })
    }

    /// The keys of clients that the batch changes, with the new metadata of their entries; none for deleted ones.
    pub(super) fn metas(&self) -> Vec<(String, Option<EntryMeta>)> {
        let changes = self.changed.get(&Space::Kv).into_iter().flatten();
        changes.map(|(key, entry)| (key.clone(), entry.as_ref().map(|(meta, _)| *meta))).collect()
    }

    /// Adds the changes to a batch; returns the new revision and hook epoch.
    pub(super) fn stage(self, batch: &mut WriteBatch) -> Result<(u64, u64), Error> {
        for (space, changes) in self.changed {
            let table = tables::of(space);
            for (key, entry) in changes {
                let record = entry.map(|(meta, value)| record::encode(meta, &value)).transpose()?;
                batch.set(table, key, record.map(Into::into));
            }
        }
        self.outcomes.stage(batch);
        Ok((self.revision, self.hook_epoch))
    }

    fn change(&mut self, operation: &Operation, revision: u64, now_ms: u64) -> Result<Effect, Error> {
        let before = self.current(operation.space, &operation.key)?;
        let (effect, entry) = match &operation.action {
            Action::Put(value) => {
                let meta = EntryMeta {
                    version: before.map_or(1, |before| before.version + 1),
                    revision,
                    created_at_ms: before.map_or(now_ms, |before| before.created_at_ms),
                    updated_at_ms: now_ms,
                };
                (Effect::Put(meta), Some((meta, value.clone())))
            }
            Action::Delete if before.is_none() => return Ok(Effect::Deleted { existed: false }),
            Action::Delete => (Effect::Deleted { existed: true }, None),
        };
        self.changed.entry(operation.space).or_default().insert(operation.key.clone(), entry);
        Ok(effect)
    }

    fn current(&self, space: Space, key: &str) -> Result<Option<EntryMeta>, Error> {
        if let Some(entry) = self.changed.get(&space).and_then(|changed| changed.get(key)) {
            return Ok(entry.as_ref().map(|(meta, _)| *meta));
        }
        if let (Space::Kv, Some(meta)) = (space, self.recent.get(key)) {
            return Ok(Some(*meta));
        }
        let found = self.tables.get(tables::of(space), key.as_bytes())?;
        found.map(|found| record::decode_meta(&found)).transpose()
    }

    /// The current revision of a precondition's key, if the precondition does not hold.
    fn violated(&self, precondition: &Precondition) -> Result<Option<Option<u64>>, Error> {
        let revision_of = |key: &str| Ok::<_, Error>(self.current(precondition.space, key)?.map(|meta| meta.revision));
        Ok(match &precondition.fact {
            Fact::Revision { key, revision } => Some(revision_of(key)?).filter(|current| current != revision),
            Fact::Exists { key } => Some(revision_of(key)?).filter(Option::is_none),
            Fact::Range { start, end, limit, digest } => {
                (self.digest(precondition.space, start, end, *limit)? != *digest).then_some(None)
            }
        })
    }

    fn digest(&self, space: Space, start: &str, end: &str, limit: u32) -> Result<RangeDigest, Error> {
        let limit = usize::try_from(limit).unwrap_or(0);
        let in_range = |key: &str| key >= start && (end.is_empty() || key <= end);
        let changes = self.changed.get(&space).into_iter().flatten().filter(|(key, _)| in_range(key));
        // Each deletion of the batch may hide one entry of the state, so one more is read for each change.
        let spare = changes.clone().count();
        let found = scan::revisions(self.tables, space, start, end, limit.saturating_add(spare))?;
        let mut merged: BTreeMap<String, u64> = found.into_iter().collect();
        for (key, entry) in changes {
            match entry {
                Some((meta, _)) => merged.insert(key.clone(), meta.revision),
                None => merged.remove(key),
            };
        }
        Ok(RangeDigest::of(merged.iter().take(limit).map(|(key, revision)| (key.as_str(), *revision))))
    }
}

/// Whether an outcome is the client's answer, rather than a reason to judge the write again.
fn is_final(outcome: &Outcome, write: &GuardedWrite) -> bool {
    match outcome {
        Outcome::Applied { .. } => true,
        Outcome::PreconditionFailed { index, .. } => {
            let failed = usize::try_from(*index).ok().and_then(|index| write.preconditions.get(index));
            failed.is_some_and(|precondition| precondition.asked_by == AskedBy::Client)
        }
        Outcome::HooksChanged { .. } | Outcome::Repeated { .. } | Outcome::IdempotencyKeyReused => false,
    }
}

/// What is remembered of a write that hooks have changed. All nodes must remember the same, so the cluster's feature level
/// decides: nodes that cannot answer a repetition without the operations may take part below it.
fn remembered_of(write: &GuardedWrite) -> Rewritten {
    if write.level < FeatureLevel::STAMPED { Rewritten::Kept } else { Rewritten::Noted }
}

fn changes_hooks(operation: &Operation) -> bool {
    operation.space == Space::System && operation.key.starts_with(HOOKS_PREFIX)
}
