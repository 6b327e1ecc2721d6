//! What can go wrong between proposing a write and its commit.

use crate::storage::{self, DiskFull};

/// What is known about a write that was not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOutcome {
    /// The write has not happened and never will: repeating it is safe.
    NotWritten,
    /// The write was in flight when contact was lost: it may yet appear.
    Unknown,
}

/// Why the cluster did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No majority of the voters answered in time.
    #[error("Failed to replicate to quorum of nodes. Successful: {successful} nodes")]
    NoQuorum {
        /// How many nodes were reached, this one included; if the write was in flight, how many hold it.
        successful: usize,
        /// Whether the write may yet appear.
        outcome: WriteOutcome,
    },
    /// Contact with the leader was lost while it worked on the write.
    #[error("the leader was lost while the write was in flight")]
    LeaderLost,
    /// Too many writes wait to be proposed.
    #[error("this node has {limit} writes waiting, and takes no more until some are done")]
    Busy {
        /// [`crate::limits::PROPOSE_QUEUE_MAX`].
        limit: usize,
    },
    /// The disk of this node, or of a leader that has nobody to hand over to, is full.
    #[error("{0}")]
    DiskFull(DiskFull),
    /// The cluster cannot be changed like that.
    #[error("{0}")]
    MembershipRefused(String),
    /// The cluster has no node of that URL.
    #[error("{url} is not in the cluster")]
    NotAMember {
        /// The URL.
        url: String,
    },
    /// A change of the cluster goes on, and was not done in time.
    #[error("the change of the cluster is not done yet; it goes on, and asking for it again waits for it")]
    MembershipPending,
    /// The node is shutting down, or its consensus engine has stopped after a storage failure.
    #[error("this node has stopped taking part in the cluster")]
    Stopped {
        /// Whether a write in flight may yet appear.
        outcome: WriteOutcome,
    },
    /// A command or a message between nodes could not be encoded or decoded.
    #[error("a message between nodes is malformed")]
    Codec(#[source] postcard::Error),
    /// The node's own storage failed.
    #[error("the node's storage failed")]
    Storage(#[from] storage::Error),
    /// A message reached a node it was not meant for, or one that cannot take it now.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// What is known about the write that met this error.
    pub fn outcome(&self) -> WriteOutcome {
        match self {
            Self::NoQuorum { outcome, .. } | Self::Stopped { outcome } => *outcome,
            Self::LeaderLost | Self::Storage(_) | Self::MembershipPending => WriteOutcome::Unknown,
            Self::Busy { .. }
            | Self::DiskFull(_)
            | Self::Codec(_)
            | Self::Refused(_)
            | Self::MembershipRefused(_)
            | Self::NotAMember { .. } => WriteOutcome::NotWritten,
        }
    }

    /// The error of a later attempt at a write of which an earlier attempt may yet appear.
    #[must_use]
    pub fn in_doubt(self) -> Self {
        match self {
            Self::NoQuorum { successful, .. } => Self::NoQuorum { successful, outcome: WriteOutcome::Unknown },
            Self::Stopped { .. } => Self::Stopped { outcome: WriteOutcome::Unknown },
            error @ (Self::LeaderLost | Self::Storage(_) | Self::MembershipPending) => error,
            Self::Busy { .. }
            | Self::DiskFull(_)
            | Self::Codec(_)
            | Self::Refused(_)
            | Self::MembershipRefused(_)
            | Self::NotAMember { .. } => Self::LeaderLost,
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoQuorum { .. } | Self::LeaderLost | Self::Busy { .. } | Self::Stopped { .. } => true,
            Self::MembershipPending | Self::DiskFull(_) => true,
            Self::Codec(_)
            | Self::Storage(_)
            | Self::Refused(_)
            | Self::MembershipRefused(_)
            | Self::NotAMember { .. } => false,
        }
    }
}
