//! The way of one write: judged by the hooks, then proposed, and judged again if what it was judged by has changed.
//!
//! The hooks run once, here, on the node that received the write; the log carries their result. What they read, and
//! the hooks themselves, are preconditions of the guarded write, so that a verdict given on a state that is no longer
//! true never commits (P6).
//!
//! A write that its client gave a name (`Idempotency-Key`) is applied at most once, however often and wherever it is
//! sent. So it may be proposed again here while it is unknown what became of the first attempt (P4).

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument;

use crate::clock;
use crate::hooks::{self, Pipeline, View, ViewError};
use crate::limits::REJUDGE_MAX;
use crate::replication::{self, WriteOutcome};
use crate::storage::{
    self, Data, Effect, Entry, Fingerprint, GuardedWrite, Idempotency, Operation, Outcome, Precondition, RangeDigest,
    Space,
};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

/// Pause before a write whose leader was lost is proposed again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What a client wants written.
#[derive(Debug, Clone)]
pub struct Request {
    /// Applied in order, all or none. No key occurs twice.
    pub operations: Vec<Operation>,
    /// What the client demands.
    pub preconditions: Vec<Precondition>,
    /// The client's name for the write, if it gave one.
    pub idempotency_key: Option<String>,
}

/// A write that is committed.
#[derive(Debug, Clone)]
pub struct Written {
    /// The store's revision after the write.
    pub revision: u64,
    /// What each operation did.
    pub effects: Vec<Effect>,
    /// The operations as they were written, that is, after transformers.
    pub operations: Vec<Operation>,
    /// Whether an earlier request of the same name did it, and this one did nothing.
    pub repeated: bool,
}

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the client demanded does not hold.
    #[error("the precondition on key {key:?} does not hold")]
    PreconditionFailed {
        /// The key.
        key: String,
        /// Its current revision; `None` if it has no entry.
        current: Option<u64>,
    },
    /// The client's name for the write was given to another one.
    #[error("the Idempotency-Key was used before, for a request that asked for something else")]
    IdempotencyKeyReused,
    /// What the hooks read, or the hooks themselves, kept changing.
    #[error("the write was judged {attempts} times, and each time what its hooks had read changed before it committed")]
    Contended {
        /// How often it was judged.
        attempts: usize,
    },
    /// The hooks refused or failed.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The cluster did not commit it.
    #[error(transparent)]
    Replication(#[from] replication::Error),
    /// This node could not look up whether the write was made before; it made nothing now.
    #[error("this node's storage failed")]
    Storage(#[source] storage::Error),
}

/// The way of writes on this node. Cheap to clone.
#[derive(Clone)]
pub struct WritePath {
    pipeline: Pipeline,
    replication: replication::Handle,
    data: Data,
    view: Arc<dyn View>,
    telemetry: Telemetry,
}

impl WritePath {
    /// Puts the way together.
    pub fn new(pipeline: Pipeline, replication: replication::Handle, data: Data, telemetry: Telemetry) -> Self {
        Self { pipeline, replication, view: Arc::new(LocalView(data.clone())), data, telemetry }
    }

    /// Takes a write to its commit.
    ///
    /// # Errors
    ///
    /// See [`Error`]. Only [`Error::Replication`] may leave it open whether the write happened.
    pub async fn write(&self, request: Request, deadline: Instant) -> Result<Written, Error> {
        let began = std::time::Instant::now();
        let written = match &request.idempotency_key {
            None => self.attempt(&request, None, deadline).await?,
            Some(key) => {
                let fingerprint = Fingerprint::of(&request.operations, &request.preconditions);
                let fingerprint = fingerprint.map_err(replication::Error::Codec)?;
                let name = Idempotency { key: key.clone(), fingerprint, rewritten: false };
                self.write_named(&request, &name, deadline).await?
            }
        };
        self.telemetry.metrics().write_stage(Stage::Total, began.elapsed());
        Ok(written)
    }

    /// A write with a name: attempted again while it is unknown what became of it, since its name keeps it from being
    /// applied twice.
    async fn write_named(&self, request: &Request, name: &Idempotency, deadline: Instant) -> Result<Written, Error> {
        // One that was sent before may be answered without a quorum, and without the hooks, which may have changed.
        if let Some(written) = self.recall(request, name, deadline).await? {
            return Ok(written);
        }
        let mut in_doubt = false;
        loop {
            match self.attempt(request, Some(name), deadline).await {
                Err(Error::Replication(replication::Error::LeaderLost)) if Instant::now() + RETRY_PAUSE < deadline => {
                    in_doubt = true;
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                // These are answers of the replicated state to this very name.
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
    async fn attempt(
        &self,
        request: &Request,
        name: Option<&Idempotency>,
        deadline: Instant,
    ) -> Result<Written, Error> {
        let mut caught_up = false;
        for _ in 0..REJUDGE_MAX {
            let judged = match self.judge(request.operations.clone(), deadline).await {
                Ok(judged) => judged,
                // A refusal that rests on reads is final only if what was read is up to date; one of a write with a
                // name, only if it is certain that no earlier request has done it.
                Err(error) if !caught_up && (error.has_read() || name.is_some()) => {
                    self.replication.read_barrier(deadline).await?;
                    caught_up = true;
                    if let Some(name) = name
                        && let Some(written) = self.recall(request, name, deadline).await?
                    {
                        return Ok(written);
                    }
                    if !error.has_read() {
                        return Err(error.into());
                    }
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let idempotency = name.map(|name| {
                let rewritten = judged.operations != request.operations;
                Idempotency { rewritten, ..name.clone() }
            });
            let write = GuardedWrite {
                operations: judged.operations,
                preconditions: request.preconditions.iter().cloned().chain(judged.reads).collect(),
                hook_epoch: Some(judged.epoch),
                proposed_at_ms: clock::unix_ms(),
                idempotency,
            };
            let outcome = self.propose(&write, deadline).await?;
            if let Some(written) = self.conclude(request, write.operations, outcome, deadline).await? {
                return Ok(written);
            }
        }
        Err(Error::Contended { attempts: REJUDGE_MAX })
    }

    /// What an outcome means for the client; none if the write must be judged again.
    async fn conclude(
        &self,
        request: &Request,
        operations: Vec<Operation>,
        outcome: Outcome,
        deadline: Instant,
    ) -> Result<Option<Written>, Error> {
        let (outcome, operations, repeated) = match outcome {
            Outcome::Repeated { first, rewritten } => {
                (*first, rewritten.unwrap_or_else(|| request.operations.clone()), true)
            }
            outcome => (outcome, operations, false),
        };
        match outcome {
            Outcome::Applied { revision, effects } => {
                return Ok(Some(Written { revision, effects, operations, repeated }));
            }
            Outcome::PreconditionFailed { index, current } => match request.preconditions.get(usize_of(index)) {
                Some(demanded) => return Err(Error::PreconditionFailed { key: key_of(demanded), current }),
                // This node read something older than the leader has: judge again on what it has now.
                None => self.replication.read_barrier(deadline).await?,
            },
            Outcome::HooksChanged { epoch } => {
                self.pipeline.active().wait_for(epoch, deadline.into_std()).await.map(drop)?;
            }
            Outcome::IdempotencyKeyReused | Outcome::Repeated { .. } => return Err(Error::IdempotencyKeyReused),
        }
        Ok(None)
    }

    /// What this node remembers of a write with a name.
    async fn recall(&self, request: &Request, name: &Idempotency, deadline: Instant) -> Result<Option<Written>, Error> {
        let (data, name) = (self.data.clone(), name.clone());
        let recalled = tokio::task::spawn_blocking(move || data.recall(&name, clock::unix_ms())).await;
        let recalled = recalled.map_err(|_| replication::Error::Stopped { outcome: WriteOutcome::NotWritten })?;
        match recalled.map_err(Error::Storage)? {
            Some(outcome) => self.conclude(request, Vec::new(), outcome, deadline).await,
            None => Ok(None),
        }
    }

    /// Writes to the registry: no hook judges it.
    ///
    /// # Errors
    ///
    /// As for [`WritePath::write`].
    pub async fn write_unjudged(&self, request: Request, deadline: Instant) -> Result<Written, Error> {
        let write = GuardedWrite {
            operations: request.operations,
            preconditions: request.preconditions,
            hook_epoch: None,
            proposed_at_ms: clock::unix_ms(),
            idempotency: None,
        };
        let outcome = self.propose(&write, deadline).await?;
        let GuardedWrite { operations, preconditions, .. } = write;
        let request = Request { operations: Vec::new(), preconditions, idempotency_key: None };
        let written = self.conclude(&request, operations, outcome, deadline).await?;
        written.ok_or(Error::Contended { attempts: 1 })
    }

    /// Waits until this node's state holds everything acknowledged so far.
    ///
    /// # Errors
    ///
    /// If that cannot be established by the deadline.
    pub async fn catch_up(&self, deadline: Instant) -> Result<(), Error> {
        Ok(self.replication.read_barrier(deadline).await?)
    }

    async fn judge(&self, operations: Vec<Operation>, deadline: Instant) -> Result<hooks::Judged, hooks::Error> {
        let began = std::time::Instant::now();
        let judged = self.pipeline.judge(operations, self.view.clone(), deadline.into_std()).await;
        self.telemetry.metrics().write_stage(Stage::Hook, began.elapsed());
        judged
    }

    async fn propose(&self, write: &GuardedWrite, deadline: Instant) -> Result<Outcome, replication::Error> {
        let began = std::time::Instant::now();
        let span = names::propose_span();
        let trace = TraceContext::of_span(&span);
        let outcome = self.replication.propose(write, trace, deadline).instrument(span).await;
        self.telemetry.metrics().write_stage(Stage::Replicate, began.elapsed());
        outcome
    }
}

fn key_of(precondition: &Precondition) -> String {
    use storage::Fact;
    match &precondition.fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => key.clone(),
        Fact::Range { start, .. } => start.clone(),
    }
}

fn usize_of(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// What plugins may read: this node's own state. Each read becomes a precondition, so a stale one is noticed.
struct LocalView(Data);

impl View for LocalView {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        self.0.get(Space::Kv, key).map_err(ViewError::new)
    }

    fn list(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        self.0.digest_range(Space::Kv, start, end, limit).map_err(ViewError::new)
    }
}
