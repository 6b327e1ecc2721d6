//! Changes of the membership and of the leader, their progress, and the membership that a leader changes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::replication::addresses::AddressBook;
use crate::replication::types::{LogId, Metrics, url_of};

/// Log entries that a node may lack and still become a voter or the leader: it has received them by the time that is
/// decided.
const CATCH_UP_ENTRIES: u64 = 128;

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
    /// An operator raises the feature level.
    Upgrade,
}

impl Change {
    /// The node that is to change, if it is one.
    pub(super) fn url(&self) -> &str {
        match self {
            Self::Join { url, .. } | Self::Add { url, .. } | Self::Remove { url } | Self::Transfer { url } => url,
            Self::Upgrade => "",
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Progress {
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

/// The membership in force, as the leader sees it.
pub(super) struct Members {
    /// Its position in the log.
    pub(super) log_id: Option<LogId>,
    /// The URLs of the nodes by id, as the log has them.
    pub(super) stored: BTreeMap<u64, String>,
    /// The URLs at which the nodes are reached now.
    pub(super) nodes: BTreeMap<u64, String>,
    pub(super) voters: BTreeSet<u64>,
    /// For each node, the index up to which its log is known to match the leader's.
    pub(super) matched: BTreeMap<u64, u64>,
    last_log_index: u64,
    pub(super) is_joint: bool,
}

impl Members {
    pub(super) fn of(metrics: &Metrics, addresses: &AddressBook) -> Self {
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        let stored: BTreeMap<u64, String> = membership.nodes().map(|(id, node)| (*id, url_of(node))).collect();
        Self {
            log_id: *metrics.membership_config.log_id(),
            nodes: stored.iter().map(|(id, url)| (*id, addresses.current(*id, url))).collect(),
            stored,
            voters: membership.voter_ids().collect(),
            matched: matched.map(|(id, matched)| (*id, matched.map_or(0, |log_id| log_id.index()))).collect(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            is_joint: is_joint(metrics),
        }
    }

    /// The nodes that an operator means by a URL: those that the membership has there, or the one that is there now.
    pub(super) fn with_url(&self, url: &str) -> Vec<u64> {
        let stored: Vec<u64> = self.stored_at(url).collect();
        if !stored.is_empty() {
            return stored;
        }
        self.nodes.iter().filter(|(_, found)| *found == url).map(|(id, _)| *id).collect()
    }

    /// The nodes that the membership has at a URL.
    pub(super) fn stored_at(&self, url: &str) -> impl Iterator<Item = u64> {
        self.stored.iter().filter(move |(_, stored)| *stored == url).map(|(id, _)| *id)
    }

    pub(super) fn has_caught_up(&self, id: u64) -> bool {
        self.matched.get(&id).is_some_and(|matched| matched + CATCH_UP_ENTRIES >= self.last_log_index && *matched > 0)
    }
}

/// Whether the membership is joint, so that a change is half done.
pub(super) fn is_joint(metrics: &Metrics) -> bool {
    metrics.membership_config.membership().get_joint_config().len() > 1
}
