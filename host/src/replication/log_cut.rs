//! When the log is cut, and where.
//!
//! A snapshot of the state covers the log up to some entry; what is before may go. The newest entries are kept behind it,
//! so that a node that was away for a moment needs no snapshot. A leader keeps more than that for those that follow but are
//! behind: while a node receives a snapshot the cluster goes on writing, and if the entries after the snapshot were cut
//! meanwhile, it would need another, and yet another. What is kept for them is bounded too, and nothing is kept for a node
//! that cannot be reached.

use std::sync::Arc;
use std::time::Duration;

use super::PURGE_ENTRIES;
use super::shared::{Metrics, Shared};

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How many times the usual number of entries is kept for nodes that are behind.
const PATIENCE_FACTOR: u64 = 50;

/// Cuts the log from time to time until the node stops.
pub(super) fn start(shared: Arc<Shared>) {
    tokio::spawn(async move {
        let stopped = shared.stopped();
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            cut(&shared).await;
        }
    });
}

async fn cut(shared: &Shared) {
    let metrics = shared.metrics();
    let Some(covered) = metrics.snapshot.as_ref().map(|log_id| log_id.index()) else { return };
    let keep = shared.options.snapshot_entries;
    let Some(upto) = upto(covered, keep, slowest_follower(shared, &metrics)) else { return };
    let purged = metrics.purged.as_ref().map_or(0, |log_id| log_id.index());
    if upto < purged + PURGE_ENTRIES.min(keep) {
        return;
    }
    if let Err(error) = shared.raft().trigger().purge_log(upto).await {
        // The engine has stopped, and says so where that matters.
        tracing::debug!(%error, "the log was not cut");
    }
}

/// The last entry that may go, if a snapshot covers the log up to `covered` and the slowest follower has it up to
/// `followed`.
fn upto(covered: u64, keep: u64, followed: Option<u64>) -> Option<u64> {
    let usual = covered.checked_sub(keep)?;
    let most_patient = covered.saturating_sub(keep.saturating_mul(PATIENCE_FACTOR));
    Some(followed.map_or(usual, |followed| followed.clamp(most_patient, usual)))
}

/// On the leader: up to where the slowest of the nodes has the log that can be reached.
fn slowest_follower(shared: &Shared, metrics: &Metrics) -> Option<u64> {
    let nodes = shared.nodes(metrics);
    let is_there =
        |id: &u64| nodes.get(id).and_then(|url| shared.peer(url)).is_some_and(|peer| peer.is_healthy_as(*id));
    let followers = metrics.replication.iter().flatten().filter(|(id, _)| **id != shared.id() && is_there(id));
    followers.map(|(_, matched)| matched.as_ref().map_or(0, |log_id| log_id.index())).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_more_for_those_that_follow() {
        assert_eq!(upto(500, 1_000, None), None);
        assert_eq!(upto(5_000, 1_000, None), Some(4_000));
        assert_eq!(upto(5_000, 1_000, Some(4_900)), Some(4_000));
        assert_eq!(upto(5_000, 1_000, Some(2_500)), Some(2_500));
        assert_eq!(upto(5_000, 1_000, Some(0)), Some(0));
        assert_eq!(upto(90_000, 1_000, Some(0)), Some(40_000));
    }
}
