//! The one way to change the registry: read, decide, write if nothing has changed, else start again.
//!
//! Every transaction reads the whole registry (without the bytes of plugins) and writes on the precondition that all of
//! it is unchanged, so transactions are serializable and need no locks. The record of the change in the history is part
//! of the same write.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::catalog::Catalog;
use super::components::StoredPieces;
use super::error::Error;
use super::history::{Change, Edit, History};
use crate::limits::{PROMPT_READ_DEADLINE, REGISTRY_READ_DEADLINE};
use crate::replication;
use crate::storage::{Data, Operation, Precondition};
use crate::write_path::{self, WritePath};

/// Attempts at a transaction while others change the registry at the same time.
pub(super) const ATTEMPTS_MAX: usize = 4;

/// Pause before a piece of an upload is written again, because the leader was lost or too busy.
const PIECE_RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The state that a transaction reads, and that must be unchanged when it commits.
pub(super) struct ReadSet {
    pub(super) catalog: Catalog,
    pub(super) history: History,
}

/// The result of one attempt at a transaction, before anything is written. `T` is the answer to the caller.
pub(super) enum Decision<T> {
    Done(T),
    Commit(Box<Commit>, T),
    /// Read the registry again: it was changed on purpose.
    Again,
}

/// The write of a transaction, without its record in the history.
pub(super) struct Commit {
    pub(super) read: ReadSet,
    pub(super) operations: Vec<Operation>,
    /// Preconditions beside the read set.
    pub(super) preconditions: Vec<Precondition>,
    pub(super) edit: Edit,
}

/// Who changes the registry, and why.
#[derive(Debug, Clone, Default)]
pub(crate) struct Author {
    /// The name given by the client; none if it is anonymous.
    pub by: Option<String>,
    /// The change to restore, if this is a rollback.
    pub rolls_back_to: Option<u64>,
}

/// Runs transactions on the registry.
pub(super) struct Transactions {
    pub(super) write_path: WritePath,
    pub(super) data: Data,
    pub(super) node_url: String,
}

impl Transactions {
    /// Runs one transaction. Returns its answer and, if it wrote anything, the revision of the write.
    ///
    /// `decide` is called again for each attempt, on a new read of the registry.
    pub(super) async fn run<T, F>(
        &self,
        author: &Author,
        deadline: Instant,
        decide: impl Fn(ReadSet) -> F,
    ) -> Result<(T, Option<u64>), Error>
    where
        F: Future<Output = Result<Decision<T>, Error>>,
    {
        for _ in 0..ATTEMPTS_MAX {
            match decide(self.read(deadline).await?).await? {
                Decision::Done(answer) => return Ok((answer, None)),
                Decision::Again => {}
                Decision::Commit(commit, answer) => {
                    if let Some(revision) = self.commit(*commit, author, deadline).await? {
                        return Ok((answer, Some(revision)));
                    }
                }
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// The registry with every change that any node has acknowledged.
    pub(super) async fn read(&self, deadline: Instant) -> Result<ReadSet, Error> {
        self.catch_up(deadline).await?;
        self.read_local().await
    }

    /// Waits until this node has every change of the registry that any node has acknowledged.
    pub(super) async fn catch_up(&self, deadline: Instant) -> Result<(), Error> {
        Ok(self.write_path.catch_up(deadline.min(Instant::now() + REGISTRY_READ_DEADLINE)).await?)
    }

    /// The registry with every change that any node has acknowledged, if this node can catch up promptly; else as it is
    /// here.
    pub(super) async fn read_promptly(&self) -> Result<ReadSet, Error> {
        if let Err(error) = self.write_path.catch_up(Instant::now() + PROMPT_READ_DEADLINE).await {
            tracing::debug!(%error, "the registry is read without catching up");
        }
        self.read_local().await
    }

    /// The registry as it is on this node.
    pub(super) async fn read_local(&self) -> Result<ReadSet, Error> {
        let data = self.data.clone();
        blocking(move || Ok(ReadSet { catalog: Catalog::read(&data)?, history: History::read(&data)? })).await
    }

    /// Stores the missing pieces of a version. Returns the preconditions that all its pieces still exist, or `None` if
    /// any was missing: the registry must then be read again.
    pub(super) async fn store_pieces(
        &self,
        read: &ReadSet,
        digest: &str,
        component: &Bytes,
        deadline: Instant,
    ) -> Result<Option<Vec<Precondition>>, Error> {
        let stored = self.stored_pieces(read).await?;
        let missing = stored.missing(digest, component);
        if missing.is_empty() {
            return Ok(Some(stored.still_exist(digest)));
        }
        // One by one, so that other writes go between them.
        for piece in missing {
            while let Err(error) = self.write_path.write_unjudged(vec![piece.clone()], Vec::new(), deadline).await {
                // The piece may have been committed. Writing it again is harmless.
                let may_pass = match &error {
                    write_path::Error::Replication(replication::Error::Stopped { .. }) => false,
                    write_path::Error::Replication(error) => error.is_retryable(),
                    _ => false,
                };
                if !may_pass || Instant::now() >= deadline {
                    return Err(Error::Preliminary(error));
                }
                tokio::time::sleep(PIECE_RETRY_PAUSE).await;
            }
        }
        Ok(None)
    }

    /// Commits a change of the registry with its record. Returns the revision, or `None` if the read set has changed.
    async fn commit(&self, commit: Commit, author: &Author, deadline: Instant) -> Result<Option<u64>, Error> {
        let pieces = self.stored_pieces(&commit.read).await?;
        let ReadSet { catalog, history } = commit.read;
        let mut preconditions = commit.preconditions;
        preconditions.extend(catalog.unchanged.iter().chain([&history.unchanged]).cloned());
        let change = Change {
            number: history.changes.back().map_or(1, |last| last.number + 1),
            at_ms: self.write_path.time_ms(),
            by: author.by.clone(),
            node: self.node_url.clone(),
            edit: commit.edit,
            rolled_back_to: author.rolls_back_to,
        };
        let mut operations = commit.operations;
        operations.extend(history.record(&catalog, &pieces, change)?);
        Ok(self.write_path.write_unjudged(operations, preconditions, deadline).await?)
    }

    async fn stored_pieces(&self, read: &ReadSet) -> Result<StoredPieces, Error> {
        let named = read.catalog.digests().into_iter().chain(read.history.digests()).collect();
        let data = self.data.clone();
        blocking(move || StoredPieces::read(&data, &named)).await
    }
}

/// Runs work that may block on a thread for that.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopping)?
}
