//! When the log is cut, and where.
//!
//! A snapshot of the state covers the log up to some entry; earlier entries may be removed. The newest of them are kept, so
//! that a node that was away for a moment needs no snapshot. A leader keeps more for followers that are behind: while a
//! node receives a snapshot, the cluster continues to write, and if the entries after the snapshot were removed meanwhile,
//! the node would need another snapshot, and yet another.
//!
//! openraft sends a snapshot exactly if the entries that a node lacks were removed. So the log is kept from the entry on that
//! the slowest follower needs next: after its own last one, or after the snapshot that is on its way to it. That holds for
//! nodes that can be reached, or could a moment ago, or whose snapshot may resume, and is bounded by space: the log of a leader that waits for others takes
//! at most [`SPARE_SHARE`] of the space that is left above the disk's reserve. If it must be cut in spite of a follower that
//! needs it, the node says so.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::peer::snapshot::Transfers;
use super::{cluster::view::ClusterView, options::purge_entries, types::Metrics};
use crate::storage::{FreeSpace, Log};

/// Interval at which the log is checked.
const INTERVAL: Duration = Duration::from_millis(500);

/// Time for which entries are kept for a node that can no longer be reached: enough to restart its process.
const PATIENCE: Duration = Duration::from_secs(10);

/// The log that is kept for followers takes at most this share of the spare space, as a divisor.
const SPARE_SHARE: u64 = 2;

/// Cuts the log from time to time.
pub(super) struct LogCut {
    view: Arc<ClusterView>,
    log: Log,
    transfers: Arc<Transfers>,
    free_space: FreeSpace,
    /// Entries kept behind a snapshot in any case.
    keep: u64,
    /// When each follower was last reachable.
    reached: BTreeMap<u64, Instant>,
}

impl LogCut {
    pub(super) fn new(
        view: Arc<ClusterView>,
        log: Log,
        transfers: Arc<Transfers>,
        free_space: FreeSpace,
        keep: u64,
    ) -> Self {
        Self { view, log, transfers, free_space, keep, reached: BTreeMap::new() }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            self.cut().await;
        }
    }

    async fn cut(&mut self) {
        let metrics = self.view.raft.metrics();
        let slowest = self.slowest_follower(&metrics);
        let covered = metrics.snapshot.as_ref().map_or(0, |log_id| log_id.index());
        let has_room = || has_room(self.log.bytes(), self.free_space.spare_bytes());
        let Some(cut) = Cut::of(covered, self.keep, slowest.map(|(_, followed)| followed), has_room) else { return };
        let purged = metrics.purged.as_ref().map_or(0, |log_id| log_id.index());
        if cut.upto < purged + purge_entries(self.keep) {
            return;
        }
        if let (Some((node, followed)), true) = (slowest, cut.lacks_room) {
            let (node, upto, log_bytes) = (format!("{node:016x}"), cut.upto, self.log.bytes());
            tracing::warn!(
                node,
                followed,
                upto,
                log_bytes,
                "the log is cut for lack of space, though a node needs its entries: it will need a snapshot, or another one"
            );
        }
        if let Err(error) = self.view.raft.raft().trigger().purge_log(cut.upto).await {
            // The engine has stopped, and is reported by `Handle::failed`.
            tracing::debug!(%error, "the log was not cut");
        }
    }

    /// On the leader: the slowest follower that the log is kept for, and the index up to which it needs nothing more.
    fn slowest_follower(&mut self, metrics: &Metrics) -> Option<(u64, u64)> {
        let nodes = self.view.nodes(metrics);
        let now = Instant::now();
        for (id, url) in &nodes {
            if self.view.peers.get(url).is_some_and(|peer| peer.is_healthy_as(*id)) {
                self.reached.insert(*id, now);
            }
        }
        self.reached.retain(|id, reached| nodes.contains_key(id) && now - *reached < PATIENCE);
        let own = self.view.raft.id();
        let followers = metrics.replication.iter().flatten().filter(|(id, _)| **id != own);
        let needed = followers.filter_map(|(id, matched)| {
            let matched = matched.as_ref().map_or(0, |log_id| log_id.index());
            match self.transfers.covered(*id) {
                Some(covered) => Some((*id, matched.max(covered))),
                None => self.reached.contains_key(id).then_some((*id, matched)),
            }
        });
        needed.min_by_key(|(_, matched)| *matched)
    }
}

/// Whether the log may grow for the sake of followers.
fn has_room(log_bytes: u64, spare_bytes: u64) -> bool {
    log_bytes <= spare_bytes / SPARE_SHARE
}

/// A decision to cut the log.
#[derive(Debug, PartialEq, Eq)]
struct Cut {
    /// The last entry to remove.
    upto: u64,
    /// Whether a follower needs some of them.
    lacks_room: bool,
}

impl Cut {
    /// The cut if a snapshot covers the log up to `covered` and the slowest follower needs nothing up to `followed`. None if
    /// everything is kept.
    fn of(covered: u64, keep: u64, followed: Option<u64>, has_room: impl FnOnce() -> bool) -> Option<Self> {
        let usual = covered.checked_sub(keep)?;
        Some(match followed.filter(|followed| *followed < usual) {
            None => Self { upto: usual, lacks_room: false },
            Some(followed) if has_room() => Self { upto: followed, lacks_room: false },
            Some(_) => Self { upto: usual, lacks_room: true },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_entries_are_kept_and_all_that_a_follower_needs_while_there_is_room() {
        let cut = |covered, followed, has_room| Cut::of(covered, 1_000, followed, || has_room);
        let usual = |upto| Some(Cut { upto, lacks_room: false });
        assert_eq!(cut(500, None, true), None);
        assert_eq!(cut(5_000, None, true), usual(4_000));
        assert_eq!(cut(5_000, Some(4_900), false), usual(4_000));
        assert_eq!(cut(5_000, Some(2_500), true), usual(2_500));
        assert_eq!(cut(90_000_000, Some(0), true), usual(0));
        assert_eq!(cut(5_000, Some(2_500), false), Some(Cut { upto: 4_000, lacks_room: true }));
    }

    #[test]
    fn the_log_leaves_space_to_the_state() {
        assert!(has_room(1 << 30, 2 << 30));
        assert!(!has_room((1 << 30) + 1, 2 << 30));
        assert!(!has_room(1, 0));
    }

    #[test]
    fn the_log_is_kept_for_a_snapshot_as_long_as_it_is_on_its_way() {
        let transfers = Arc::new(Transfers::default());
        let first = transfers.begin(1, 70);
        let second = transfers.begin(1, 90);
        assert_eq!((transfers.covered(1), transfers.covered(2)), (Some(70), None));
        drop(first);
        assert_eq!(transfers.covered(1), Some(90));
        drop(second);
        assert_eq!(transfers.covered(1), None);
    }
}
