//! Why a node could not start to take part in its cluster.

use super::error::Error;
use super::types::TypeConfig;
use crate::limits::MEMBERS_MAX;

/// Why a node could not start to take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// openraft refuses the timing.
    #[error("the timing of elections is contradictory")]
    Timing(#[from] openraft::ConfigError),
    /// Two nodes have the same URL, or this node is in its own list.
    #[error("the list of other nodes names a node twice, or this node itself")]
    Ambiguous,
    /// More nodes than a cluster may have.
    #[error("the list of other nodes is too long: a cluster has at most {MEMBERS_MAX} members")]
    TooMany,
    /// A node without others would begin a second history.
    #[error(
        "REPLICA_NODES is empty, and {0}: start this node with the other nodes of its cluster in REPLICA_NODES, or with an \
         empty --data-dir to begin a cluster of its own"
    )]
    Alone(&'static str),
    /// The engine could not read its state.
    #[error("the stored state of this node cannot be read")]
    Engine(#[from] openraft::error::Fatal<TypeConfig>),
    /// The stored state cannot be read.
    #[error(transparent)]
    State(#[from] Error),
}
