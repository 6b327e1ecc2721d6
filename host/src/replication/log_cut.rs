//! When the log is cut, and where.
//!
//! A snapshot of the state covers the log up to some entry; earlier entries may be removed. The newest of them are kept, so
//! that a node that was away for a moment needs no snapshot. A leader keeps more for followers that are behind: while a
//! node receives a snapshot, the cluster continues to write, and if the entries after the snapshot were removed meanwhile,
//! the node would need another snapshot, and yet another. The number of entries kept for them is bounded, and none are kept
//! for a node that cannot be reached.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{cluster::view::ClusterView, options::purge_entries, types::Metrics};

/// Interval at which the log is checked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Entries kept for followers that are behind, as a multiple of the usual number.
const PATIENCE_FACTOR: u64 = 50;

/// Cuts the log from time to time, and keeps `keep` entries behind a snapshot.
pub(super) async fn run(view: Arc<ClusterView>, keep: u64, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        cut(&view, keep).await;
    }
}

async fn cut(view: &ClusterView, keep: u64) {
    let metrics = view.raft.metrics();
    let Some(covered) = metrics.snapshot.as_ref().map(|log_id| log_id.index()) else { return };
    let Some(upto) = upto(covered, keep, slowest_follower(view, &metrics)) else { return };
    let purged = metrics.purged.as_ref().map_or(0, |log_id| log_id.index());
    if upto < purged + purge_entries(keep) {
        return;
    }
    if let Err(error) = view.raft.raft().trigger().purge_log(upto).await {
        // The engine has stopped, and is reported by `Handle::failed`.
        tracing::debug!(%error, "the log was not cut");
    }
}

/// On the leader: the index up to which the slowest follower has the log, among those that can be reached.
fn slowest_follower(view: &ClusterView, metrics: &Metrics) -> Option<u64> {
    let nodes = view.nodes(metrics);
    let is_healthy =
        |id: &u64| nodes.get(id).and_then(|url| view.peers.get(url)).is_some_and(|peer| peer.is_healthy_as(*id));
    let own = view.raft.id();
    let followers = metrics.replication.iter().flatten().filter(|(id, _)| **id != own && is_healthy(id));
    followers.map(|(_, matched)| matched.as_ref().map_or(0, |log_id| log_id.index())).min()
}

/// The last entry to remove, if a snapshot covers the log up to `covered` and the slowest follower has it up to
/// `followed`.
fn upto(covered: u64, keep: u64, followed: Option<u64>) -> Option<u64> {
    let usual = covered.checked_sub(keep)?;
    let most_patient = covered.saturating_sub(keep.saturating_mul(PATIENCE_FACTOR));
    Some(followed.map_or(usual, |followed| followed.clamp(most_patient, usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_more_for_followers_that_are_behind() {
        assert_eq!(upto(500, 1_000, None), None);
        assert_eq!(upto(5_000, 1_000, None), Some(4_000));
        assert_eq!(upto(5_000, 1_000, Some(4_900)), Some(4_000));
        assert_eq!(upto(5_000, 1_000, Some(2_500)), Some(2_500));
        assert_eq!(upto(5_000, 1_000, Some(0)), Some(0));
        assert_eq!(upto(90_000, 1_000, Some(0)), Some(40_000));
    }
}
