//! A node that lost its state gets one from another node, before it takes part.
//!
//! # Problem
//!
//! The state may be lost or damaged while the log is whole (see `node/databases`). The log holds the node's promises, so it
//! must go on under its id, with its votes and its log. But if the log was cut, the entries below the cut are in no log any
//! more: what they have led to must come from another node. openraft does not ask for it: a leader sends a snapshot to a
//! node whose log lacks entries, and this one's lacks none.
//!
//! # Approach
//!
//! Before the engine starts, the node asks the others for a snapshot that covers the log up to the cut at least, and installs
//! it. Any node will do, since only committed entries are applied. If the snapshot goes beyond the log, openraft cuts the
//! log there. If the log holds another entry at the snapshot's position, then that entry and those after it were never
//! committed, and the log is emptied first, as Raft prescribes for the receiver of a snapshot.
//!
//! # Failure model
//!
//! The node does not serve until it has a state. It goes on asking as long as no node has one for it: one that covers the
//! cut may come back. A crash meanwhile leaves the state lost, and the next start asks again.

use std::{io, time::Duration};

use openraft::entry::RaftEntry;

use super::cluster::identity::Stage;
use super::error::Error;
use super::options::{Options, SNAPSHOT_TIMEOUT};
use super::peer::{protocol::Transport, snapshot};
use super::raft::engine::purged;
use super::raft::log_store::wait_for;
use super::raft::state_machine::{APPLIED, install};
use super::types::{LogEntry, LogId, decode, decode_stored};
use crate::storage::{Data, Log};

/// Time between two rounds in which all other nodes are asked.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Rounds between two warnings.
const WARN_ROUNDS: u32 = 10;

/// The databases of a node that does not take part yet.
pub(super) struct Recovery<'a> {
    pub(super) options: &'a Options,
    pub(super) log: &'a Log,
    pub(super) data: &'a Data,
    pub(super) transport: &'a dyn Transport,
}

impl Recovery<'_> {
    /// Gets the state from another node, if this node's own is lost and its log was cut.
    pub(super) async fn run(&self, stage: Stage) -> Result<(), Error> {
        let Some(purged) = purged(self.log)? else { return Ok(()) };
        let data = self.data.clone();
        let applied = move || decode_stored::<LogId>(data.meta(APPLIED));
        let applied = self.options.blocking.run(applied).await.map_err(refused)??;
        if applied.is_some_and(|applied| applied.index() >= purged.index()) {
            return Ok(());
        }
        if let Some(cluster) = stage.cluster() {
            self.transport.set_cluster(cluster);
        }
        let index = purged.index();
        tracing::warn!(index, "the state of this node is lost; another node is asked for a snapshot");
        for round in 0_u32.. {
            for url in &self.options.peer_urls {
                match self.fetch(url, purged).await {
                    Ok(()) => return Ok(()),
                    Err(error) if round.is_multiple_of(WARN_ROUNDS) => {
                        tracing::warn!(url, %error, "no snapshot from this node; this one waits until it has a state");
                    }
                    Err(error) => tracing::debug!(url, %error, "no snapshot from this node"),
                }
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        Ok(())
    }

    /// Gets the state from the node at a URL.
    async fn fetch(&self, url: &str, purged: LogId) -> Result<(), Error> {
        let Options { spool_dir, blocking, .. } = self.options;
        let body = self.transport.fetch_snapshot(url, purged.index(), SNAPSHOT_TIMEOUT).await.map_err(refused)?;
        let (header, source) = snapshot::receive(spool_dir, body, blocking).await.map_err(refused)?;
        let last = header.meta.last_log_id().copied().filter(|last| last.index() >= purged.index());
        let last = last.ok_or_else(|| refused(io::Error::other("the snapshot ends before the log begins")))?;
        if last.index() == purged.index() && last != purged {
            return Err(refused(io::Error::other("the snapshot and the log have different entries at the cut")));
        }
        self.drop_conflicting(last).await?;
        let data = self.data.clone();
        blocking.run(move || install(&data, &source)).await.map_err(refused)?.map_err(refused)?;
        tracing::info!(url, last = last.index(), "the state was fetched from another node");
        Ok(())
    }

    /// Empties the log if it has another entry at the position that a snapshot covers.
    async fn drop_conflicting(&self, last: LogId) -> Result<(), Error> {
        let log = self.log.clone();
        let held = self.options.blocking.run(move || log.get(last.index())).await.map_err(refused)??;
        let held = held.map(|held| decode::<LogEntry>(&held)).transpose()?;
        if held.is_some_and(|held| held.log_id() != last) {
            tracing::warn!(index = last.index(), "the log holds entries that were never committed, and is emptied");
            wait_for(|done| self.log.truncate_after(None, done)).await.map_err(refused)?;
        }
        Ok(())
    }
}

fn refused(error: impl std::error::Error) -> Error {
    Error::Refused(error.to_string())
}
