//! A node with a full disk: it accepts no writes, and hands over if it leads.
//!
//! It refuses its clients' writes, and once half of the reserve is used up too, the leader's entries. Peers then treat it
//! as offline and continue without it. It still answers hellos, votes, applies its log, and serves reads. A leader with a
//! full disk hands over to a voter with free space. When space returns, the node catches up like one that was offline.

use std::{sync::Arc, time::Duration};

use openraft::EntryPayload;
use tokio_util::sync::CancellationToken;

use super::{cluster::leadership::Leadership, error::Error, types::LogEntry};
use crate::storage::FreeSpace;

/// Interval at which a leader with a full disk tries to hand over.
const HAND_OVER_INTERVAL: Duration = Duration::from_millis(100);

/// Hands over whenever this node leads with a full disk.
pub(super) async fn watch(free_space: FreeSpace, leadership: Arc<Leadership>, stop: CancellationToken) {
    while stop.run_until_cancelled(free_space.until_full()).await.is_some() {
        if leadership.leads() {
            leadership.hand_over_full().await;
        }
        if stop.run_until_cancelled(tokio::time::sleep(HAND_OVER_INTERVAL)).await.is_none() {
            return;
        }
    }
}

/// Refuses the leader's entries if they carry writes and the space is nearly used up.
///
/// Clients' writes are refused earlier: if all disks are full, the entries that the leader has accepted can still be
/// committed. Entries without writes are always accepted; a new leader needs one to serve reads.
pub(super) fn check_entries(free_space: &FreeSpace, entries: &[LogEntry]) -> Result<(), Error> {
    let has_writes = || entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Normal(_)));
    if free_space.is_exhausted() && has_writes() { check(free_space) } else { Ok(()) }
}

/// Refuses a request that takes space, if the disk is full.
pub(super) fn check(free_space: &FreeSpace) -> Result<(), Error> {
    free_space.disk_full().map_or(Ok(()), |disk_full| Err(Error::DiskFull(disk_full)))
}
