//! Changes of the membership and of the leader, and their progress: the messages of [`Call::Members`].
//!
//! [`Call::Members`]: crate::replication::peer::protocol::Call::Members

use serde::{Deserialize, Serialize};

/// A change of the membership or the leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Change {
    /// A new node, or one that lost its disk, asks to be let in under its own id.
    Join { id: u64, url: String },
    /// An operator adds a node or changes its role.
    Add { url: String, role: Role },
    /// An operator removes a node.
    Remove { url: String },
    /// An operator makes a node the leader.
    Transfer { url: String },
}

impl Change {
    pub(super) fn url(&self) -> &str {
        match self {
            Self::Join { url, .. } | Self::Add { url, .. } | Self::Remove { url } | Self::Transfer { url } => url,
        }
    }
}

/// The role of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Counts for the quorum and may lead.
    Voter,
    /// Receives every write, later than the voters, and serves reads.
    Learner,
}

/// The progress of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// The change is in force.
    Done,
    /// The change is under way: ask again.
    Pending,
    /// The node that was asked does not lead.
    NotLeader,
    /// The cluster has no node with that URL: an operator must add it.
    Unknown,
    /// The change is impossible, with the reason.
    Refused(String),
}
