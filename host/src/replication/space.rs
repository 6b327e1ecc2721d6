//! A node whose disk is full: it takes nothing more, and hands over if it leads.
//!
//! It refuses the writes of its clients, and when half of the reserve is gone too the leader's, so that a follower with a full disk is to the
//! others what one is that is away: they go on without it. It still says that it is there, votes, applies what it has, and
//! serves reads. A leader in that state gives the leadership to a voter that has space. When space returns it catches up
//! like any node that was away.

use std::sync::Arc;
use std::time::Duration;

use openraft::{EntryPayload, ServerState};

use super::error::Error;
use super::membership;
use super::shared::Shared;
use super::types::LogEntry;

/// How often a leader whose disk is full tries to hand over.
const HAND_OVER_INTERVAL: Duration = Duration::from_millis(100);

/// Hands the leadership over whenever this node leads with a full disk, until the node stops.
pub(super) async fn attend(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = shared.options.free_space.until_full() => {}
        }
        if shared.metrics().state == ServerState::Leader {
            membership::hand_to_one_with_space(&shared).await;
        }
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = tokio::time::sleep(HAND_OVER_INTERVAL) => {}
        }
    }
}

/// Refuses entries of the leader that carry writes, if space runs out.
///
/// Not as early as writes of clients: if all disks are full, what the leader has taken is to be committed still. Entries
/// without writes are taken in any case, or a new leader could not so much as serve reads.
pub(super) fn check_entries(shared: &Shared, entries: &[LogEntry]) -> Result<(), Error> {
    let has_writes = || entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Normal(_)));
    if shared.options.free_space.is_exhausted() && has_writes() { check(shared) } else { Ok(()) }
}

/// Refuses what would take space, if there is too little.
pub(super) fn check(shared: &Shared) -> Result<(), Error> {
    shared.options.free_space.disk_full().map_or(Ok(()), |disk_full| Err(Error::DiskFull(disk_full)))
}
