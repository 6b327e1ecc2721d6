//! The settings of a node's part in its cluster.

use std::path::PathBuf;
use std::time::Duration;

use super::blocking::Blocking;
use crate::storage::FreeSpace;

/// How a node takes part in its cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The base URL under which the other nodes reach this one.
    pub self_url: String,
    /// The base URLs of the other nodes; empty for a single node.
    pub peer_urls: Vec<String>,
    /// Directory for snapshots that arrive from other nodes.
    pub spool_dir: PathBuf,
    /// Whether the node may form a new cluster. A node that lost its data must not: it has a cluster already.
    pub may_found: bool,
    /// Free space on the node's disk.
    pub free_space: FreeSpace,
    /// Raft's timing.
    pub timing: Timing,
    /// Number of log entries between snapshots. As many are kept behind a snapshot when the log is cut.
    pub snapshot_entries: u64,
    /// Where blocking work runs.
    pub blocking: Blocking,
}

/// Raft's timing. Failover takes about a lease plus a random time between `election_min` and `election_max`.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Interval of the leader's heartbeats.
    pub heartbeat: Duration,
    /// Shortest silence, after the lease, before a follower stands for election.
    pub election_min: Duration,
    /// Longest such silence, and the length of the leader's lease.
    pub election_max: Duration,
}

impl Timing {
    /// For nodes within a millisecond or two of each other.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(250),
    };
}
