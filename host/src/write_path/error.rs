//! Why a write was not acknowledged.

use crate::{hooks, replication, storage};

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A precondition of the client does not hold.
    #[error("the precondition on key {key:?} does not hold")]
    PreconditionFailed {
        /// The key.
        key: String,
        /// Its current revision; `None` if it has no entry.
        current: Option<u64>,
    },
    /// The client has used the same `Idempotency-Key` for a different request.
    #[error("the Idempotency-Key was used before, for a request that asked for something else")]
    IdempotencyKeyReused,
    /// The hooks, or something they had read, changed during each attempt.
    #[error("the write was judged {attempts} times, and each time what its hooks had read changed before it committed")]
    Contended {
        /// How often it was judged.
        attempts: usize,
    },
    /// A hook refused the write or failed.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The cluster did not commit it.
    #[error(transparent)]
    Replication(#[from] replication::Error),
    /// This node could not look up an earlier write of the same name. Nothing was written now.
    #[error("this node's storage failed")]
    Storage(#[source] storage::Error),
}
