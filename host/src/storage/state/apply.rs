//! Applies guarded writes, deterministically: the result depends on the state and the write alone.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::heads::RecentHeads;
use super::idempotency::{Outcomes, Rewritten};
use super::rows::{self, Head, NewEntry};
use super::scan;
use crate::storage::command::{
    Action, AskedBy, Effect, EntryMeta, Fact, GuardedWrite, HOOKS_PREFIX, Operation, Outcome, Precondition,
    RangeDigest, Space,
};
use crate::storage::engine::{ReadTables, Slice, WriteBatch};
use crate::storage::{Error, FeatureLevel, record, usability};

/// The changes of a batch so far, over the state below it. Later writes of a batch see earlier ones.
pub(super) struct Overlay<'a> {
    tables: &'a dyn ReadTables,
    recent: &'a RecentHeads,
    revision: u64,
    hook_epoch: u64,
    /// Whether large values are stored apart. The version before cannot read them then, so this begins with the feature level
    /// that it does not know.
    has_values_apart: bool,
    changed: BySpace<'a>,
    outcomes: Outcomes<'a>,
}

/// The changed keys of each space, in order.
#[derive(Default)]
struct BySpace<'a> {
    kv: BTreeMap<&'a str, Change<'a>>,
    system: BTreeMap<&'a str, Change<'a>>,
}

impl<'a> BySpace<'a> {
    fn of(&self, space: Space) -> &BTreeMap<&'a str, Change<'a>> {
        match space {
            Space::Kv => &self.kv,
            Space::System => &self.system,
        }
    }

    fn of_mut(&mut self, space: Space) -> &mut BTreeMap<&'a str, Change<'a>> {
        match space {
            Space::Kv => &mut self.kv,
            Space::System => &mut self.system,
        }
    }
}

/// What a batch goes on from, and what it leaves.
#[derive(Clone, Copy)]
pub(super) struct Counters {
    pub revision: u64,
    pub hook_epoch: u64,
    pub has_values_apart: bool,
}

/// The change of a key by a batch.
struct Change<'a> {
    /// Whether the value that it had before the batch has a row of its own.
    was_apart: bool,
    /// None: it is deleted.
    entry: Option<NewEntry<'a>>,
}

impl Change<'_> {
    fn meta(&self) -> Option<EntryMeta> {
        self.entry.as_ref().map(|entry| entry.meta)
    }
}

impl<'a> Overlay<'a> {
    pub(super) fn new(tables: &'a dyn ReadTables, recent: &'a RecentHeads, counters: Counters) -> Self {
        let Counters { revision, hook_epoch, has_values_apart } = counters;
        let (changed, outcomes) = (BySpace::default(), Outcomes::new(tables));
        Self { tables, recent, revision, hook_epoch, has_values_apart, changed, outcomes }
    }

    /// Applies one write as a whole or not at all. A write whose idempotency key is remembered is not applied again.
    pub(super) fn apply(&mut self, write: &'a GuardedWrite) -> Result<Outcome, Error> {
        if write.is_unusable {
            return Ok(Outcome::Unusable);
        }
        self.has_values_apart |= write.level >= FeatureLevel::STAMPED;
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

    fn apply_new(&mut self, write: &'a GuardedWrite) -> Result<Outcome, Error> {
        if write.hook_epoch.is_some_and(|epoch| epoch != self.hook_epoch) {
            return Ok(Outcome::HooksChanged { epoch: self.hook_epoch });
        }
        for (index, precondition) in (0..).zip(&write.preconditions) {
            if !usability::can_be_looked_up(&precondition.fact) {
                return Ok(Outcome::Unusable);
            }
            if let Some(current) = self.violated(precondition)? {
                return Ok(Outcome::PreconditionFailed { index, current });
            }
        }
        if !write.operations.iter().all(usability::can_be_stored) {
            return Ok(Outcome::Unusable);
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

    /// The keys of clients that the batch changes, with the heads of their new entries; none for deleted ones.
    pub(super) fn heads(&self) -> Vec<(Slice, Option<Head>)> {
        let head = |entry: &NewEntry<'_>| Head { meta: entry.meta, is_apart: entry.is_apart };
        let heads = self.changed.kv.iter().map(|(key, change)| ((*key).into(), change.entry.as_ref().map(head)));
        heads.collect()
    }

    /// Adds the changes to a batch; returns the new counters.
    pub(super) fn stage(self, batch: &mut WriteBatch) -> Result<Counters, Error> {
        let Self { changed: BySpace { kv, system }, outcomes, revision, hook_epoch, has_values_apart, .. } = self;
        let mut row = Vec::new();
        for (space, changes) in [(Space::Kv, kv), (Space::System, system)] {
            for (key, Change { was_apart, entry }) in changes {
                rows::stage(batch, space, key, was_apart, entry, &mut row)?;
            }
        }
        outcomes.stage(batch);
        Ok(Counters { revision, hook_epoch, has_values_apart })
    }

    fn change(&mut self, operation: &'a Operation, revision: u64, now_ms: u64) -> Result<Effect, Error> {
        let Current { meta: before, was_apart } = self.current(operation.space, &operation.key)?;
        let (effect, entry) = match &operation.action {
            Action::Put(value) => {
                let meta = EntryMeta {
                    version: before.map_or(1, |before| before.version + 1),
                    revision,
                    created_at_ms: before.map_or(now_ms, |before| before.created_at_ms),
                    updated_at_ms: now_ms,
                };
                let is_apart = self.has_values_apart && record::is_large(value);
                (Effect::Put(meta), Some(NewEntry { meta, value, is_apart }))
            }
            Action::Delete if before.is_none() => return Ok(Effect::Deleted { existed: false }),
            Action::Delete => (Effect::Deleted { existed: true }, None),
        };
        let change = Change { was_apart, entry };
        self.changed.of_mut(operation.space).insert(&operation.key, change);
        Ok(effect)
    }

    fn current(&self, space: Space, key: &str) -> Result<Current, Error> {
        if let Some(change) = self.changed.of(space).get(key) {
            return Ok(Current { meta: change.meta(), was_apart: change.was_apart });
        }
        let recent = if space == Space::Kv { self.recent.get(key.as_bytes()) } else { None };
        let head = match recent {
            Some(head) => head,
            None => rows::head(self.tables, space, key)?,
        };
        Ok(Current { meta: head.map(|head| head.meta), was_apart: head.is_some_and(|head| head.is_apart) })
    }

    /// The current revision of a precondition's key, if the precondition does not hold.
    fn violated(&self, precondition: &Precondition) -> Result<Option<Option<u64>>, Error> {
        let current = |key: &str| self.current(precondition.space, key);
        let revision_of = |key: &str| Ok::<_, Error>(current(key)?.meta.map(|meta| meta.revision));
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
        let is_before_end = |key: &str| end.is_empty() || key <= end;
        let after_start = (Bound::Included(start), Bound::Unbounded);
        let changes = self.changed.of(space).range::<str, _>(after_start);
        let mut changes = changes.take_while(|(key, _)| is_before_end(key)).peekable();
        let mut stored = scan::revisions(self.tables, space, start, end)?.peekable();
        let mut found: Vec<(String, u64)> = Vec::new();
        // Both in key order, no further than needed: what the batch deletes is passed over, the rest counts.
        while found.len() < limit {
            let is_change_next = match (stored.peek(), changes.peek()) {
                (None, None) => break,
                (Some(Ok((stored, _))), Some((changed, _))) => **changed <= stored.as_str(),
                (stored, _) => stored.is_none(),
            };
            match if is_change_next { changes.next() } else { None } {
                Some((key, change)) => {
                    // It takes the place of the stored entry of its key.
                    drop(stored.next_if(|stored| stored.as_ref().is_ok_and(|(stored, _)| stored == *key)));
                    found.extend(change.meta().map(|meta| ((*key).to_owned(), meta.revision)));
                }
                None => found.extend(stored.next().transpose()?),
            }
        }
        Ok(RangeDigest::of(found.iter().map(|(key, revision)| (key.as_str(), *revision))))
    }
}

/// A key as the batch has left it so far.
struct Current {
    /// None: it has no entry.
    meta: Option<EntryMeta>,
    /// Whether the value that it had before the batch has a row of its own.
    was_apart: bool,
}

/// Whether an outcome is the client's answer, rather than a reason to judge the write again.
fn is_final(outcome: &Outcome, write: &GuardedWrite) -> bool {
    match outcome {
        Outcome::Applied { .. } => true,
        Outcome::PreconditionFailed { index, .. } => {
            let failed = usize::try_from(*index).ok().and_then(|index| write.preconditions.get(index));
            failed.is_some_and(|precondition| precondition.asked_by == AskedBy::Client)
        }
        Outcome::HooksChanged { .. } | Outcome::Repeated { .. } => false,
        Outcome::IdempotencyKeyReused | Outcome::Unusable => false,
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
