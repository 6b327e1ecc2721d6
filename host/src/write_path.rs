//! The way of one write: judged by the hooks, then proposed, and judged again if what it was judged by has changed.
//!
//! The hooks run once, here, on the node that received the write; the log carries their result. What they read, and
//! the hooks themselves, are preconditions of the guarded write, so that a verdict given on a state that is no longer
//! true never commits (P6).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;
use tracing::Instrument;

use crate::hooks::{self, Pipeline, View, ViewError};
use crate::limits::REJUDGE_MAX;
use crate::replication;
use crate::storage::{self, Data, Effect, Entry, GuardedWrite, Operation, Outcome, Precondition, RangeDigest, Space};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

/// What a client wants written.
#[derive(Debug, Clone)]
pub struct Request {
    /// Applied in order, all or none. No key occurs twice.
    pub operations: Vec<Operation>,
    /// What the client demands.
    pub preconditions: Vec<Precondition>,
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
}

/// The way of writes on this node. Cheap to clone.
#[derive(Clone)]
pub struct WritePath {
    pipeline: Pipeline,
    replication: replication::Handle,
    view: Arc<dyn View>,
    telemetry: Telemetry,
}

impl WritePath {
    /// Puts the way together.
    pub fn new(pipeline: Pipeline, replication: replication::Handle, data: Data, telemetry: Telemetry) -> Self {
        Self { pipeline, replication, view: Arc::new(LocalView(data)), telemetry }
    }

    /// Takes a write to its commit.
    ///
    /// # Errors
    ///
    /// See [`Error`]. Only [`Error::Replication`] may leave it open whether the write happened.
    pub async fn write(&self, request: Request, deadline: Instant) -> Result<Written, Error> {
        let began = std::time::Instant::now();
        let demanded = request.preconditions.len();
        let mut caught_up = false;
        for _ in 0..REJUDGE_MAX {
            let judged = match self.judge(request.operations.clone(), deadline).await {
                // A refusal that rests on reads is final only if what was read is up to date.
                Err(hooks::Error::Rejected(rejection)) if rejection.has_read && !caught_up => {
                    self.replication.read_barrier(deadline).await?;
                    caught_up = true;
                    continue;
                }
                judged => judged?,
            };
            let write = GuardedWrite {
                operations: judged.operations,
                preconditions: request.preconditions.iter().cloned().chain(judged.reads).collect(),
                hook_epoch: Some(judged.epoch),
                proposed_at_ms: now_ms(),
            };
            match self.propose(&write, deadline).await? {
                Outcome::Applied { revision, effects } => {
                    self.telemetry.metrics().write_stage(Stage::Total, began.elapsed());
                    return Ok(Written { revision, effects, operations: write.operations });
                }
                Outcome::PreconditionFailed { index, current } => {
                    match write.preconditions.into_iter().take(demanded).nth(usize_of(index)) {
                        Some(precondition) => {
                            return Err(Error::PreconditionFailed { key: key_of(precondition), current });
                        }
                        // This node read something older than the leader has: judge again on what it has now.
                        None => self.replication.read_barrier(deadline).await?,
                    }
                }
                Outcome::HooksChanged { epoch } => {
                    self.pipeline.active().wait_for(epoch, deadline.into_std()).await.map(drop)?
                }
            }
        }
        Err(Error::Contended { attempts: REJUDGE_MAX })
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
            proposed_at_ms: now_ms(),
        };
        match self.propose(&write, deadline).await? {
            Outcome::Applied { revision, effects } => Ok(Written { revision, effects, operations: write.operations }),
            Outcome::PreconditionFailed { index, current } => {
                let failed = write.preconditions.into_iter().nth(usize_of(index));
                Err(Error::PreconditionFailed { key: failed.map(key_of).unwrap_or_default(), current })
            }
            Outcome::HooksChanged { .. } => Err(Error::Contended { attempts: 1 }),
        }
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
        let judged = self
            .pipeline
            .judge(operations, self.view.clone(), deadline.into_std())
            .instrument(names::hooks_span())
            .await;
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

fn key_of(precondition: Precondition) -> String {
    use storage::Fact;
    match precondition.fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => key,
        Fact::Range { start, .. } => start,
    }
}

fn usize_of(index: u32) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
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
