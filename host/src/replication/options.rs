//! The settings of a node's part in its cluster, and openraft's.

use std::{path::PathBuf, time::Duration};

use super::{blocking::Blocking, lease::LEASE, proposed::CheckProposed};
use crate::{clock::Clock, storage::FreeSpace};

/// Interval of the leader's heartbeats. All timing is for nodes within a millisecond or two of each other.
const HEARTBEAT: Duration = Duration::from_millis(50);

/// Shortest silence, after the lease, before a follower stands for election. Failover takes about a lease and a random time
/// between this and [`LEASE`].
const ELECTION_MIN: Duration = Duration::from_millis(150);

/// Log entries removed at once when a snapshot covers them.
const PURGE_ENTRIES: u64 = 1_024;

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
    /// Number of log entries between snapshots. As many are kept behind a snapshot when the log is cut.
    pub snapshot_entries: u64,
    /// Where blocking work runs.
    pub blocking: Blocking,
    /// The node's wall clock.
    pub clock: Clock,
    /// Says whether a write that another node proposes is one that a node would make.
    pub check_proposed: CheckProposed,
}

impl Options {
    /// openraft's settings.
    pub(super) fn openraft(&self) -> openraft::Config {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        openraft::Config {
            cluster_name: "brink".to_owned(),
            heartbeat_interval: ms(HEARTBEAT),
            election_timeout_min: ms(ELECTION_MIN),
            election_timeout_max: ms(LEASE),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            // Never by openraft: `log_cut` knows which nodes still need the entries.
            max_in_snapshot_log_to_keep: u64::MAX,
            purge_batch_size: purge_entries(self.snapshot_entries),
            enable_pre_vote: Some(true),
            // A voter may come back with a shorter log: by `--accept-data-loss`, or if its disk lost what its watermark does not
            // tell. Without this its leader would take that for a mistake of its own, and never send it the rest.
            allow_log_reversion: Some(true),
            // Enabled once no promise from before a restart can stand against it (see `lease`).
            enable_elect: false,
            // A restarted leader must win an election again: it has forgotten its lease.
            enable_leader_restore: Some(false),
            removed_leader_step_down: openraft::StepDownPolicy::Never,
            ..openraft::Config::default()
        }
    }
}

/// The number of log entries removed at once, given the number of entries between snapshots.
pub(super) fn purge_entries(snapshot_entries: u64) -> u64 {
    PURGE_ENTRIES.min(snapshot_entries)
}
