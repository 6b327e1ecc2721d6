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
//! The node serves nothing but its probes until it has a state (see `api/starting`). It goes on asking as long as no node has one
//! for it: one that covers the cut may come back. A crash meanwhile leaves the state lost, and the next start asks again.

use std::{io, time::Duration};

use openraft::entry::RaftEntry;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::blocking::Blocking;
use super::cluster::identity::Stage;
use super::error::Error;
use super::options::Options;
use super::peer::claims;
use super::peer::protocol::Transport;
use super::peer::receiver::Receiver;
use super::peer::snapshot::{Header, STALL_MAX};
use super::raft::engine::purged;
use super::raft::log_store::wait_for;
use super::raft::state_machine::{APPLIED, install};
use super::start_error::StartError;
use super::types::{LogEntry, LogId, decode, decode_stored, encode};
use crate::storage::{Data, Log};

/// Time between two rounds in which all other nodes are asked.
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Rounds between two warnings.
const WARN_ROUNDS: u32 = 10;

/// Whether a node with these databases starts only once another node has given it a state.
///
/// # Errors
///
/// If they cannot be read.
pub fn lacks_state(log: &Log, data: &Data) -> Result<bool, StartError> {
    Ok(lost_up_to(log, data)?.is_some())
}

/// The last entry that neither the log holds any more, nor the state.
fn lost_up_to(log: &Log, data: &Data) -> Result<Option<LogId>, Error> {
    let Some(purged) = purged(log)? else { return Ok(None) };
    let applied: Option<LogId> = decode_stored(data.meta(APPLIED))?;
    Ok(Some(purged).filter(|purged| applied.is_none_or(|applied| applied.index() < purged.index())))
}

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
        let (log, data) = (self.log.clone(), self.data.clone());
        let lost = self.options.blocking.run(move || lost_up_to(&log, &data)).await.map_err(refused)??;
        let Some(purged) = lost else { return Ok(()) };
        if let Some(cluster) = stage.cluster() {
            self.transport.set_cluster(cluster);
        }
        let index = purged.index();
        tracing::warn!(index, "the state of this node is lost; another node is asked for a snapshot");
        let Options { spool_dir, free_space, blocking, .. } = self.options;
        let stop = CancellationToken::new();
        let _stops_with_this = stop.clone().drop_guard();
        let receiver = Receiver::new(spool_dir.clone(), free_space.clone(), blocking.clone(), TaskTracker::new(), stop);
        for round in 0_u32.. {
            for url in &self.options.peer_urls {
                match self.fetch(&receiver, url, purged).await {
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
    async fn fetch(&self, receiver: &Receiver, url: &str, purged: LogId) -> Result<(), Error> {
        let begun = tokio::time::timeout(STALL_MAX, self.transport.fetch_snapshot(url, purged.index())).await;
        let body = begun.map_err(refused)?.map_err(refused)?;
        let (log, data, blocking) = (self.log.clone(), self.data.clone(), self.options.blocking.clone());
        let install = async move |header: Header, source| {
            let last = header.meta.last_log_id.filter(|last| last.index() >= purged.index());
            let last = last.ok_or_else(|| refused(io::Error::other("the snapshot ends before the log begins")))?;
            if last.index() == purged.index() && last != purged {
                return Err(refused(io::Error::other("the snapshot and the log have different entries at the cut")));
            }
            drop_conflicting(&log, &blocking, last).await?;
            blocking.run(move || install(&data, &source)).await.map_err(refused)?.map_err(refused)?;
            encode(&last)
        };
        let last: LogId = decode(&receiver.receive(body, claims::contents, install).await?)?;
        tracing::info!(url, last = last.index(), "the state was fetched from another node");
        Ok(())
    }
}

/// Empties the log if it has another entry at the position that a snapshot covers.
async fn drop_conflicting(log: &Log, blocking: &Blocking, last: LogId) -> Result<(), Error> {
    let reader = log.clone();
    let held = blocking.run(move || reader.get(last.index())).await.map_err(refused)??;
    let held = held.map(|held| decode::<LogEntry>(&held)).transpose()?;
    if held.is_some_and(|held| held.log_id() != last) {
        tracing::warn!(index = last.index(), "the log holds entries that were never committed, and is emptied");
        wait_for(|done| log.truncate_after(None, done)).await.map_err(refused)?;
    }
    Ok(())
}

fn refused(error: impl std::error::Error) -> Error {
    Error::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use openraft::{EntryPayload, LogId as EntryId};

    use super::*;
    use crate::replication::peer::protocol::{Answer, Call, CallError, Failure, Fetched, SnapshotBody};
    use crate::replication::peer::snapshot::{Outgoing, SnapshotSource};
    use crate::replication::types::{ClusterId, SnapshotMeta, Vote};
    use crate::storage::FreeSpace;

    /// Index up to which the log was cut, and its last index. All its entries are of term 1.
    const CUT: u64 = 5;
    const LAST: u64 = 10;

    /// A peer that gives a snapshot up to some position.
    struct Peer {
        state: Data,
        last: LogId,
    }

    impl Transport for Peer {
        fn set_cluster(&self, _: ClusterId) {}

        fn call(&self, _: u64, url: &str, _: Call, _: Bytes, _: Duration) -> Answer<'_> {
            let refused = CallError::new(Failure::Refused, url, "it only gives snapshots");
            Box::pin(async { Err(refused) })
        }

        fn send_snapshot(&self, to: u64, url: &str, _: SnapshotBody) -> Answer<'_> {
            self.call(to, url, Call::Snapshot, Bytes::new(), Duration::ZERO)
        }

        fn fetch_snapshot(&self, _: &str, _: u64) -> Fetched<'_> {
            let meta = SnapshotMeta { last_log_id: Some(self.last), ..SnapshotMeta::default() };
            let outgoing = Outgoing::new(Vote::new(9, 9), meta, SnapshotSource::Live(self.state.snapshot()));
            let body = outgoing.body(0, u64::MAX, &Blocking::Threads).unwrap();
            Box::pin(async { Ok(body) })
        }
    }

    fn position(term: u64, index: u64) -> LogId {
        EntryId::new(*Vote::new(term, 1).leader_id(), index)
    }

    /// Time for a recovery that must succeed, and for one that must not.
    const LONG: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(500);

    /// Recovers a node that lost its state, from a peer whose snapshot ends with a position. Returns whether it has the
    /// state then, and its log.
    async fn recover(last: LogId, time: Duration) -> (bool, Option<(u64, u64)>) {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| Data::open(&dir.path().join(name).join("data"), 8 << 20).unwrap();
        let state = open("peer");
        state.apply(&[], &[(APPLIED, encode(&last).unwrap()), ("content", "here".into())]).unwrap();
        let (data, log) = (open("node"), Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap());
        let entry = |index| (index, encode(&LogEntry::new(position(1, index), EntryPayload::Blank)).unwrap());
        wait_for(|done| log.append((1..=LAST).map(entry).collect(), done)).await.unwrap();
        let marker = encode(&position(1, CUT)).unwrap();
        wait_for(|done| log.purge_upto(CUT, marker, done)).await.unwrap();

        let options = Options {
            self_url: "http://a".to_owned(),
            peer_urls: vec!["http://b".to_owned()],
            spool_dir: dir.path().to_path_buf(),
            may_found: false,
            free_space: FreeSpace::new(dir.path(), 0),
            snapshot_entries: 1,
            blocking: Blocking::Threads,
            clock: crate::clock::Clock::system(),
            check_proposed: |_| true,
        };
        let recovery = Recovery { options: &options, log: &log, data: &data, transport: &Peer { state, last } };
        let ran = tokio::time::timeout(time, recovery.run(Stage::Unidentified)).await;
        let has_state = data.meta("content").unwrap().is_some();
        assert_eq!(ran.is_ok(), has_state);
        log.close();
        (has_state, log.first_last())
    }

    #[tokio::test]
    async fn the_log_is_kept_if_the_snapshot_agrees_with_it() {
        for index in [CUT, CUT + 1, LAST, LAST + 7] {
            assert_eq!(recover(position(1, index), LONG).await, (true, Some((CUT + 1, LAST))), "up to {index}");
        }
    }

    #[tokio::test]
    async fn entries_that_were_never_committed_are_dropped() {
        assert_eq!(recover(position(2, LAST - 1), LONG).await, (true, None));
    }

    #[tokio::test]
    async fn a_snapshot_that_does_not_reach_the_log_is_not_taken() {
        assert_eq!(recover(position(1, CUT - 1), SHORT).await, (false, Some((CUT + 1, LAST))));
        assert_eq!(recover(position(2, CUT), SHORT).await, (false, Some((CUT + 1, LAST))));
    }
}
