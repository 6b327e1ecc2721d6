//! Errors of replication, and what each says about the write that met it.

use crate::limits::{COMMAND_BYTES_MAX, PROPOSE_QUEUE_BYTES_MAX, PROPOSE_QUEUE_MAX};
use crate::storage::{self, DiskFull};

/// The fate of a write that was not acknowledged, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOutcome {
    /// The write did not happen and never will: repeating it is safe.
    NotWritten,
    /// The write was in flight when contact was lost: it may yet appear.
    Unknown,
}

/// A limit that a busy node or cluster has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// Writes in the queue of this node.
    #[error("{PROPOSE_QUEUE_MAX} writes wait on this node, the maximum")]
    QueuedWrites,
    /// Bytes of writes that wait or are in flight on this node.
    #[error(
        "this node has no room for the write: those that wait or are in flight may have {PROPOSE_QUEUE_BYTES_MAX} bytes"
    )]
    QueuedBytes,
    /// The same on the leader.
    #[error(
        "the leader has no room for the write: those that wait or are in flight may have {PROPOSE_QUEUE_BYTES_MAX} bytes"
    )]
    LeaderBytes,
    /// Bytes of entries that the leader's disk has not synced.
    #[error("the disk of this node is too slow: entries that are not synced may have {PROPOSE_QUEUE_BYTES_MAX} bytes")]
    UnsyncedBytes,
    /// The deadline of a write, which passed while the write was queued.
    #[error("the write was not proposed by its deadline, since too many came before it")]
    Deadline,
    /// Strong reads at the gate of this node.
    #[error("{0} reads wait on this node, the maximum")]
    WaitingReads(usize),
}

/// Why a request to the cluster failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No majority of the voters answered in time.
    #[error("Failed to replicate to quorum of nodes. Successful: {successful} nodes")]
    NoQuorum {
        /// Number of nodes reached, this one included; if the write was in flight, the number that hold it.
        successful: usize,
        /// Whether the write may yet appear.
        outcome: WriteOutcome,
    },
    /// This node did not catch up in time with what the leader had committed.
    #[error("this node lags behind its cluster: it has yet to apply {entries} entries of the log")]
    Lagging {
        /// Entries that a read needs and this node has not applied.
        entries: u64,
    },
    /// Contact with the leader was lost while the write was in flight.
    #[error("the leader was lost while the write was in flight")]
    LeaderLost,
    /// Too many writes or reads are waiting.
    #[error("{limit}")]
    Busy {
        /// The limit that was met.
        limit: Limit,
    },
    /// The write is too large to be proposed.
    #[error(
        "the write has {bytes} bytes, with all that its hooks have added or read; at most {COMMAND_BYTES_MAX} are allowed"
    )]
    TooLarge {
        /// Its size as the log would carry it.
        bytes: usize,
    },
    /// The disk is full: this node's, or that of a leader without a successor.
    #[error("{0}")]
    DiskFull(DiskFull),
    /// The requested membership change is not possible.
    #[error("{0}")]
    MembershipRefused(String),
    /// The cluster has no node with that URL.
    #[error("{url} is not in the cluster")]
    NotAMember {
        /// The URL.
        url: String,
    },
    /// A membership change continues and was not complete by the deadline.
    #[error("the change of the cluster is not done yet; it goes on, and asking for it again waits for it")]
    MembershipPending,
    /// This node is no member of its cluster any more, or another process has its id.
    #[error("{0}")]
    Barred(String),
    /// The node is shutting down, or its consensus engine has stopped after a storage failure.
    #[error("this node has stopped taking part in the cluster")]
    Stopped {
        /// Whether a write in flight may yet appear.
        outcome: WriteOutcome,
    },
    /// The write is in the log, and every node has refused to apply it, because its command is malformed.
    #[error("the write was refused when it was applied, since its command is malformed")]
    Unusable,
    /// A command or a message between nodes could not be encoded or decoded.
    #[error("a message between nodes is malformed")]
    Codec(#[source] postcard::Error),
    /// The node's own storage failed.
    #[error("the node's storage failed")]
    Storage(#[from] storage::Error),
    /// A message reached the wrong node, or a node that cannot serve it now.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// The fate of the write that met this error.
    pub fn outcome(&self) -> WriteOutcome {
        match self {
            Self::NoQuorum { outcome, .. } | Self::Stopped { outcome } => *outcome,
            Self::LeaderLost | Self::Storage(_) | Self::MembershipPending => WriteOutcome::Unknown,
            Self::Busy { .. }
            | Self::Lagging { .. }
            | Self::TooLarge { .. }
            | Self::DiskFull(_)
            | Self::Barred(_)
            | Self::Unusable
            | Self::Codec(_)
            | Self::Refused(_)
            | Self::MembershipRefused(_)
            | Self::NotAMember { .. } => WriteOutcome::NotWritten,
        }
    }

    /// The error to report if an earlier attempt at the same write may yet appear.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        match self {
            Self::NoQuorum { successful, .. } => Self::NoQuorum { successful, outcome: WriteOutcome::Unknown },
            Self::Stopped { .. } => Self::Stopped { outcome: WriteOutcome::Unknown },
            error if error.outcome() == WriteOutcome::Unknown => error,
            _ => Self::LeaderLost,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { .. } | Self::LeaderLost | Self::Busy { .. } | Self::Stopped { .. } => true,
            Self::Lagging { .. } | Self::MembershipPending | Self::DiskFull(_) => true,
            Self::Barred(_)
            | Self::TooLarge { .. }
            | Self::Unusable
            | Self::Codec(_)
            | Self::Storage(_)
            | Self::Refused(_)
            | Self::MembershipRefused(_)
            | Self::NotAMember { .. } => false,
        }
    }
}
