//! The way of one write: recalled, judged, proposed, concluded.
//!
//! # Problem
//!
//! A write must not commit unless the hooks in force have accepted it, on a state that is still true (P6). A client that
//! got no answer sends the write again, and it must not be applied twice (P4).
//!
//! # Approach
//!
//! Hooks run once, here, on the node that received the write; the log carries their result. Everything they read, and the
//! hook epoch, are preconditions of the guarded write.
//!
//! ```text
//! write ──> recall ──> judge ──> propose ──> conclude ──> Written
//!   ▲         │          ▲                       │
//!   │         │          └── hooks or their ─────┤
//!   │         │              reads changed       │
//!   │         └─ applied before ──────────────────────────> Written (repeated)
//!   └── leader lost, and the write has a name ───┘
//! ```
//!
//! - **recall**: a write with a name (`Idempotency-Key`) that was applied before gets the outcome of that time, without a
//!   quorum and without the hooks, which may have changed. Values that hooks had made are not remembered: they are taken
//!   from the entries, as long as these have not been written again.
//! - **judge**: the hooks transform and validate the operations.
//! - **propose**: the guarded write commits, or fails one of its preconditions.
//! - **conclude**: the outcome is an answer to the client, or the write is judged again.
//!
//! # Guarantees
//!
//! - A refusal is final only if it rests on an up-to-date state. If it rests on reads, this node catches up and judges
//!   again. If the write has a name, this node catches up and recalls again: an earlier request may have been applied.
//! - A write with a name is proposed again while its outcome is unknown. Every other write is proposed once per judgement.
//!
//! # Failure model
//!
//! Every error but `Error::Replication` means *not written*; that one knows its own outcome. If an earlier attempt may
//! still commit, so does the error of a later one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use crate::hooks::{self, Judged, Pipeline, View, ViewError};
use crate::limits::REJUDGE_MAX;
use crate::replication::{self, WriteOutcome};
use crate::storage::{
    self, Action, Data, Effect, Entry, Fact, Fingerprint, GuardedWrite, Idempotency, Operation, Outcome, Precondition,
    RangeDigest, Space, Value,
};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

/// Pause before a write is proposed again because the leader was lost.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A write as a client requests it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Applied in order, all or none. No key occurs twice.
    pub operations: Vec<Operation>,
    pub preconditions: Vec<Precondition>,
    /// The client's name for the write, if it has one.
    pub idempotency_key: Option<String>,
}

/// A committed write.
#[derive(Debug)]
pub(crate) struct Written {
    /// The store's revision after the write.
    pub revision: u64,
    /// One change per operation.
    pub changes: Vec<Change>,
    /// Whether an earlier request of the same name was applied, and this one was not.
    pub repeated: bool,
}

/// What an operation of a committed write did.
#[derive(Debug)]
pub(crate) struct Change {
    pub key: String,
    pub effect: Effect,
    /// The value that was put, after transformers. `None` for deletions, and if it is not known any more: the write is
    /// repeated, transformers had changed the value, and the entry has been written again since.
    pub value: Option<Value>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A precondition of the client does not hold. `current` is the revision of the key; `None` if it has no entry.
    #[error("the precondition on key {key:?} does not hold")]
    PreconditionFailed { key: String, current: Option<u64> },
    #[error("the Idempotency-Key was used before, for a request that asked for something else")]
    IdempotencyKeyReused,
    /// The hooks, or something they had read, changed during each attempt.
    #[error("the write was judged {attempts} times, and each time what its hooks had read changed before it committed")]
    Contended { attempts: usize },
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    #[error(transparent)]
    Replication(#[from] replication::Error),
    /// This node could not look up an earlier write of the same name. Nothing was written now.
    #[error("this node's storage failed")]
    Storage(#[source] storage::Error),
}

/// The way of writes on this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WritePath {
    pipeline: Pipeline,
    replication: replication::Handle,
    data: Data,
    view: Arc<dyn View>,
    telemetry: Telemetry,
}

struct Write<'a> {
    request: &'a Request,
    name: Option<&'a Idempotency>,
    deadline: Instant,
}

impl WritePath {
    pub fn new(pipeline: Pipeline, replication: replication::Handle, data: Data, telemetry: Telemetry) -> Self {
        Self { pipeline, replication, view: Arc::new(LocalView(data.clone())), data, telemetry }
    }

    /// Judges and commits a write. Only after [`Error::Replication`] may a failed write still appear.
    pub async fn write(&self, request: Request, deadline: Instant) -> Result<Written, Error> {
        let began = std::time::Instant::now();
        let request = &request;
        let written = match &request.idempotency_key {
            None => self.attempt(&Write { request, name: None, deadline }).await?,
            Some(key) => {
                let fingerprint = Fingerprint::of(&request.operations, &request.preconditions);
                let fingerprint = fingerprint.map_err(replication::Error::Codec)?;
                let name = Idempotency { key: key.clone(), fingerprint, rewritten: false };
                self.write_named(&Write { request, name: Some(&name), deadline }).await?
            }
        };
        self.telemetry.metrics().write_stage(Stage::Total, began.elapsed());
        Ok(written)
    }

    /// Commits a write to the registry, which no hook judges. Returns its revision; `None` if a precondition failed.
    pub async fn write_unjudged(
        &self,
        operations: Vec<Operation>,
        preconditions: Vec<Precondition>,
        deadline: Instant,
    ) -> Result<Option<u64>, Error> {
        let proposed_at_ms = self.proposed_at_ms();
        let guarded = GuardedWrite { operations, preconditions, proposed_at_ms, ..GuardedWrite::default() };
        match self.propose(&guarded, deadline).await? {
            Outcome::Applied { revision, .. } => Ok(Some(revision)),
            Outcome::Unusable => Err(replication::Error::Unusable.into()),
            // The other outcomes presuppose a hook epoch or a name.
            _ => Ok(None),
        }
    }

    /// The cluster's time now, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.replication.time_ms()
    }

    /// Waits until this node's state holds everything acknowledged so far.
    pub async fn catch_up(&self, deadline: Instant) -> Result<(), Error> {
        Ok(self.replication.read_barrier(deadline).await?)
    }

    /// The time of a write in a cluster whose leader does not stamp rounds yet. Where it does, a write has no time of its own.
    fn proposed_at_ms(&self) -> u64 {
        if self.replication.applied_time_ms().is_some() { 0 } else { self.time_ms() }
    }

    /// Attempts a write again while its outcome is unknown: its name keeps it from being applied twice.
    async fn write_named(&self, write: &Write<'_>) -> Result<Written, Error> {
        if let Some(written) = self.recall(write).await? {
            return Ok(written);
        }
        let mut in_doubt = false;
        loop {
            match self.attempt(write).await {
                Err(Error::Replication(replication::Error::LeaderLost))
                    if Instant::now() + RETRY_PAUSE < write.deadline =>
                {
                    in_doubt = true;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // The replicated state has answered to this very name.
                answer @ (Ok(_) | Err(Error::PreconditionFailed { .. } | Error::IdempotencyKeyReused)) => {
                    return answer;
                }
                Err(Error::Replication(error)) if in_doubt => return Err(error.in_doubt().into()),
                Err(_) if in_doubt => return Err(replication::Error::LeaderLost.into()),
                error => return error,
            }
        }
    }

    /// Judges and proposes, until neither the hooks nor what they read change in between.
    async fn attempt(&self, write: &Write<'_>) -> Result<Written, Error> {
        let mut caught_up = false;
        for _ in 0..REJUDGE_MAX {
            let judged = match self.judge(write).await {
                Ok(judged) => judged,
                Err(error) if caught_up => return Err(error.into()),
                Err(error) => {
                    if let Some(written) = self.confirm_refusal(write, error).await? {
                        return Ok(written);
                    }
                    caught_up = true;
                    continue;
                }
            };
            let guarded = guard(write, judged, self.proposed_at_ms());
            let outcome = self.propose(&guarded, write.deadline).await?;
            if let Some(written) = self.conclude(write, guarded.operations, outcome).await? {
                return Ok(written);
            }
        }
        Err(Error::Contended { attempts: REJUDGE_MAX })
    }

    /// The outcome of an earlier write of the same name. `None` if this node knows of none, or the write has no name.
    async fn recall(&self, write: &Write<'_>) -> Result<Option<Written>, Error> {
        let Some(name) = write.name.cloned() else { return Ok(None) };
        // By the time of the log, as apply does: this node's clock may be wrong.
        let now_ms = self.replication.applied_time_ms().unwrap_or_else(|| self.time_ms());
        let data = self.data.clone();
        let recalled = tokio::task::spawn_blocking(move || data.recall(&name, now_ms)).await;
        let recalled = recalled.map_err(|_| replication::Error::Stopped { outcome: WriteOutcome::NotWritten })?;
        match recalled.map_err(Error::Storage)? {
            Some(outcome) => self.conclude(write, Vec::new(), outcome).await,
            None => Ok(None),
        }
    }

    async fn judge(&self, write: &Write<'_>) -> Result<Judged, hooks::Error> {
        let began = std::time::Instant::now();
        let (operations, view) = (write.request.operations.clone(), self.view.clone());
        let judged = self.pipeline.judge(operations, view, write.deadline.into_std()).await;
        self.telemetry.metrics().write_stage(Stage::Hook, began.elapsed());
        judged
    }

    /// Decides whether a refusal is final. `Ok(None)`: this node has caught up, and the write is judged again. `Ok(Some)`:
    /// an earlier write of the same name was applied.
    async fn confirm_refusal(&self, write: &Write<'_>, error: hooks::Error) -> Result<Option<Written>, Error> {
        if !error.has_read() && write.name.is_none() {
            return Err(error.into());
        }
        self.catch_up(write.deadline).await?;
        match self.recall(write).await? {
            None if !error.has_read() => Err(error.into()),
            recalled => Ok(recalled),
        }
    }

    async fn propose(&self, guarded: &GuardedWrite, deadline: Instant) -> Result<Outcome, replication::Error> {
        let began = std::time::Instant::now();
        let span = names::propose_span();
        let trace = TraceContext::of_span(&span);
        let outcome = self.replication.propose(guarded, trace, deadline).instrument(span).await;
        self.telemetry.metrics().write_stage(Stage::Replicate, began.elapsed());
        outcome
    }

    /// Turns an outcome into the answer to the client. `None`: this node is ready to judge the write again.
    async fn conclude(
        &self,
        write: &Write<'_>,
        operations: Vec<Operation>,
        outcome: Outcome,
    ) -> Result<Option<Written>, Error> {
        let (outcome, repeated) = match outcome {
            Outcome::Repeated { first, rewritten } => (*first, Some(rewritten)),
            outcome => (outcome, None),
        };
        match outcome {
            Outcome::Applied { revision, effects } => {
                let is_repeated = repeated.is_some();
                let changes = match repeated {
                    None => changes(operations, effects),
                    Some(None) => changes(write.request.operations.clone(), effects),
                    Some(Some(rewritten)) if !rewritten.is_empty() => changes(rewritten, effects),
                    Some(Some(_)) => self.changes_as_stored(write, revision, effects).await?,
                };
                return Ok(Some(Written { revision, changes, repeated: is_repeated }));
            }
            Outcome::PreconditionFailed { index, current } => {
                // The client's preconditions come first, those of the hooks' reads follow (see `guard`).
                let index = usize::try_from(index).unwrap_or(usize::MAX);
                if let Some(precondition) = write.request.preconditions.get(index) {
                    return Err(Error::PreconditionFailed { key: key_of(precondition), current });
                }
                // This node read an older state than the leader has.
                self.catch_up(write.deadline).await?;
            }
            Outcome::HooksChanged { epoch } => {
                self.pipeline.active().wait_for(epoch, write.deadline.into_std()).await?;
            }
            Outcome::IdempotencyKeyReused | Outcome::Repeated { .. } => return Err(Error::IdempotencyKeyReused),
            Outcome::Unusable => return Err(replication::Error::Unusable.into()),
        }
        Ok(None)
    }

    /// The changes of an earlier write of the same name that hooks had changed and whose values are not remembered.
    async fn changes_as_stored(
        &self,
        write: &Write<'_>,
        revision: u64,
        effects: Vec<Effect>,
    ) -> Result<Vec<Change>, Error> {
        if self.data.revision() < revision {
            // Without a quorum the outcome is known, and values are not: the entries of this node are older than the write.
            let caught_up = self.catch_up(write.deadline).await;
            caught_up
                .unwrap_or_else(|error| tracing::debug!(%error, "a repeated write is answered without its values"));
        }
        // Hooks change values, and neither keys nor their order.
        let keys = write.request.operations.iter().map(|operation| operation.key.clone()).collect();
        let data = self.data.clone();
        let changes = tokio::task::spawn_blocking(move || stored_changes(&data, keys, effects)).await;
        let changes = changes.map_err(|_| replication::Error::Stopped { outcome: WriteOutcome::NotWritten })?;
        changes.map_err(Error::Storage)
    }
}

/// The changes that operations made.
fn changes(operations: Vec<Operation>, effects: Vec<Effect>) -> Vec<Change> {
    let change = |(Operation { key, action, .. }, effect)| match action {
        Action::Put(value) => Change { key, effect, value: Some(value) },
        Action::Delete => Change { key, effect, value: None },
    };
    operations.into_iter().zip(effects).map(change).collect()
}

/// The changes of a write to these keys, with the values that are still stored. Blocks.
fn stored_changes(data: &Data, keys: Vec<String>, effects: Vec<Effect>) -> Result<Vec<Change>, storage::Error> {
    let change = |(key, effect): (String, Effect)| {
        let Effect::Put(meta) = effect else { return Ok(Change { key, effect, value: None }) };
        let entry = data.get(Space::Kv, &key)?.filter(|entry| entry.meta.revision == meta.revision);
        Ok(Change { key, effect, value: entry.map(|entry| entry.value) })
    };
    keys.into_iter().zip(effects).map(change).collect()
}

/// The judged operations, with everything that must hold when they are applied.
fn guard(write: &Write<'_>, judged: Judged, proposed_at_ms: u64) -> GuardedWrite {
    let Write { request, name, .. } = write;
    let idempotency = name.map(|name| {
        let rewritten = judged.operations != request.operations;
        Idempotency { rewritten, ..name.clone() }
    });
    GuardedWrite {
        operations: judged.operations,
        preconditions: request.preconditions.iter().cloned().chain(judged.reads).collect(),
        hook_epoch: Some(judged.epoch),
        proposed_at_ms,
        idempotency,
        ..GuardedWrite::default()
    }
}

/// The key that a precondition is about; for a range, its first key.
fn key_of(precondition: &Precondition) -> String {
    match &precondition.fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => key.clone(),
        Fact::Range { start, .. } => start.clone(),
    }
}

/// The store as plugins see it: the state of this node, which may lag. Each read becomes a precondition, so a stale read
/// never decides a write.
struct LocalView(Data);

impl View for LocalView {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        self.0.get(Space::Kv, key).map_err(|error| ViewError(error.into()))
    }

    fn list(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        self.0.digest_range(start, end, limit).map_err(|error| ViewError(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> GuardedWrite {
        let action = Action::Put(Value::json(value.to_owned()));
        let operations = vec![Operation { space: Space::Kv, key: "k".to_owned(), action }];
        GuardedWrite { operations, ..GuardedWrite::default() }
    }

    #[test]
    fn a_repeated_write_shows_its_value_until_the_entry_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path(), 8 << 20).unwrap();
        let Outcome::Applied { effects, .. } = data.apply(&[put("1")], &[]).unwrap().remove(0) else { panic!() };
        let value = || stored_changes(&data, vec!["k".to_owned()], effects.clone()).unwrap().remove(0).value;
        assert_eq!(value(), Some(Value::json("1")));
        data.apply(&[put("1")], &[]).unwrap();
        assert_eq!(value(), None);
    }
}
