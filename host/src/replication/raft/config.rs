//! openraft's settings.

use std::time::Duration;

use crate::replication::options::Options;

/// Maximum duration of a snapshot transfer.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Log entries removed at once when a snapshot covers them.
const PURGE_ENTRIES: u64 = 1_024;

/// The number of log entries removed at once, given the number of entries between snapshots.
pub(crate) fn purge_entries(snapshot_entries: u64) -> u64 {
    PURGE_ENTRIES.min(snapshot_entries)
}

/// openraft's settings for a node.
pub(crate) fn openraft_config(options: &Options) -> openraft::Config {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "brink".to_owned(),
        heartbeat_interval: ms(options.timing.heartbeat),
        election_timeout_min: ms(options.timing.election_min),
        election_timeout_max: ms(options.timing.election_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        // Never by openraft: `log_cut` knows which nodes still need the entries.
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: options.snapshot_entries.saturating_mul(2),
        purge_batch_size: purge_entries(options.snapshot_entries),
        enable_pre_vote: Some(true),
        // Enabled once no promise from before a restart can stand against it (see `cluster/silence`).
        enable_elect: false,
        // A restarted leader must win an election again: it has forgotten its lease.
        enable_leader_restore: Some(false),
        removed_leader_step_down: openraft::StepDownPolicy::Never,
        ..openraft::Config::default()
    }
}
