//! The consensus engine under this node's id.
//!
//! A node may take another id while it runs (see `cluster/identity`). The engine is then rebuilt on the same databases.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use openraft::{alias::SnapshotOf, async_runtime::watch::WatchReceiver, error::Fatal};
use parking_lot::RwLock;

use super::log_store::{LogStore, VOTE};
use super::network::Network;
use super::state_machine::{APPLIED, Applied, StateMachine};
use crate::replication::error::Error;
use crate::replication::peer::snapshot::SnapshotSource;
use crate::replication::types::{LogId, Metrics, TypeConfig, decode, decode_stored};
use crate::storage::{self, Data, Log};

/// The highest index at which a log that was never cut may begin.
const FIRST_INDEX_MAX: u64 = 1;

/// The name of the value that tells of an accepted loss. It is lost only together with the votes that come after it.
const LOSS_ACCEPTED: &str = "loss-accepted";

/// openraft's handle on a running engine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Everything an engine is built from but the node's id.
pub(crate) struct EngineParts {
    pub(crate) config: Arc<openraft::Config>,
    pub(crate) network: Network,
    pub(crate) log_store: LogStore,
    pub(crate) state_machine: StateMachine,
}

impl EngineParts {
    /// Starts an engine. It stands for no election until that is enabled.
    async fn build(&self, id: u64) -> Result<Running, Fatal<TypeConfig>> {
        let (log_store, state_machine) = (self.log_store.clone(), self.state_machine.clone());
        let raft = Raft::new(id, self.config.clone(), self.network.clone(), log_store, state_machine).await?;
        Ok(Running { id, raft })
    }
}

struct Running {
    id: u64,
    raft: Raft,
}

/// The consensus engine of this node, and the id it runs under.
pub(crate) struct RaftHandle {
    parts: EngineParts,
    /// Replaced when the node takes another id.
    running: RwLock<Running>,
}

impl RaftHandle {
    pub(crate) async fn start(parts: EngineParts, id: u64) -> Result<Self, Fatal<TypeConfig>> {
        let running = RwLock::new(parts.build(id).await?);
        Ok(Self { parts, running })
    }

    pub(crate) async fn restart_under(&self, id: u64) -> Result<(), Fatal<TypeConfig>> {
        if let Err(error) = self.raft().shutdown().await {
            tracing::warn!(%error, "the engine of the former id did not stop cleanly");
        }
        let running = self.parts.build(id).await?;
        // The id is new, so there is no promise to keep.
        running.raft.runtime_config().elect(true);
        *self.running.write() = running;
        Ok(())
    }

    pub(crate) fn raft(&self) -> Raft {
        self.running.read().raft.clone()
    }

    /// The id under which the engine runs. It is the node's own only once the node is [identified].
    ///
    /// [identified]: crate::replication::cluster::identity::Stage
    pub(crate) fn id(&self) -> u64 {
        self.running.read().id
    }

    pub(crate) fn metrics(&self) -> Metrics {
        self.with_metrics(Clone::clone)
    }

    /// Reads the engine's metrics without a copy.
    pub(crate) fn with_metrics<T>(&self, read: impl FnOnce(&Metrics) -> T) -> T {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        read(&metrics)
    }

    /// A snapshot of this node's state, for another node that asks for it.
    pub(crate) async fn snapshot(&self) -> std::io::Result<SnapshotOf<TypeConfig, SnapshotSource>> {
        self.parts.state_machine.snapshot().await
    }

    pub(crate) fn log_store(&self) -> &LogStore {
        &self.parts.log_store
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.parts.state_machine.applied
    }

    /// Whether the log or the state contains a membership, though not necessarily with this node in it.
    pub(crate) fn is_initialized(&self) -> bool {
        self.with_metrics(|metrics| metrics.membership_config.voter_ids().next().is_some())
    }

    pub(crate) fn is_only_voter(&self) -> bool {
        self.with_metrics(|metrics| metrics.membership_config.voter_ids().eq(std::iter::once(self.id())))
    }

    /// Initialises a cluster with its first nodes, if the log is empty.
    pub(crate) async fn initialize(&self, founders: &BTreeMap<u64, String>) {
        let nodes = founders.iter().map(|(id, url)| (*id, openraft::BasicNode::new(url)));
        match self.raft().initialize(nodes.collect::<BTreeMap<_, _>>()).await {
            Ok(()) => tracing::info!(nodes = founders.len(), "cluster formed"),
            // Another founder was faster, and its log is here already.
            Err(error) => tracing::debug!(%error, "not initialised here"),
        }
    }

    /// Bytes of log entries that this node's disk has not synced.
    pub(crate) fn unsynced_bytes(&self) -> usize {
        self.parts.log_store.log.unsynced_bytes()
    }

    pub(crate) fn log_entries(&self) -> u64 {
        self.with_metrics(|metrics| {
            let purged = metrics.purged.as_ref().map_or(0, |purged| purged.index());
            metrics.last_log_index.unwrap_or(0).saturating_sub(purged)
        })
    }

    /// On the leader: the number of nodes that hold its last entry, itself included.
    pub(crate) fn holders_of_last_entry(&self) -> usize {
        let own = self.id();
        self.with_metrics(|metrics| {
            let holds = |matched: &Option<LogId>| matched.map(|log_id| log_id.index()) >= metrics.last_log_index;
            let peers = metrics.replication.iter().flatten().filter(|(id, _)| **id != own);
            1 + peers.filter(|(_, matched)| holds(matched)).count()
        })
    }
}

/// On the leader: for each node, the log index up to which its log is known to match the leader's.
pub(crate) fn matched(metrics: &Metrics) -> BTreeMap<u64, u64> {
    let matched = metrics.replication.iter().flatten();
    matched.filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index()))).collect()
}

/// Checks that the log and the state in `dir` belong together, before a node takes part with them. They are stored apart, and
/// each may have lost entries that the other still shows; losses of the log alone show in its watermark.
///
/// A state that is ahead of the log is no loss: a node applies what a majority of the others has committed, even before its own disk
/// has the entry, and the watermark knows what the node itself has promised. Such a state is made durable here, since the
/// log will go on after it.
///
/// # Errors
///
/// [`storage::Error::Lost`] if the log lacks entries that it once had, as the state shows; other errors if they cannot be
/// read.
pub fn check_storage(log: &Log, data: &Data, dir: &Path) -> Result<Condition, storage::Error> {
    let lost = |what: String| Err(storage::Error::Lost { path: dir.to_path_buf(), what });
    let purged = index(log.purged_marker())?;
    let range = log.first_last();
    let expected = purged.map_or(FIRST_INDEX_MAX, |purged| purged + 1);
    if let Some((first, _)) = range.filter(|(first, _)| *first > expected) {
        return lost(format!("the log begins with entry {first}, though only those before {expected} were cut"));
    }
    let applied = index(data.meta(APPLIED)?)?;
    if applied < purged {
        let (purged, applied) = (name(purged), name(applied));
        return Ok(Condition::StateLost(format!(
            "the log was cut up to entry {purged}, and the state ends with {applied}"
        )));
    }
    // A node votes before it takes entries, so a log without a vote was never the one of this state, or has lost it.
    if applied.is_some() && log.named(VOTE).is_none() && log.named(LOSS_ACCEPTED).is_none() {
        return lost(format!("the state holds entry {}, and the log is empty", name(applied)));
    }
    let last = range.map(|(_, last)| last).max(purged);
    if applied > last {
        tracing::info!(
            applied = name(applied),
            log = name(last),
            "the state is ahead of the log, which goes on after it"
        );
        data.sync()?;
    }
    Ok(Condition::Whole)
}

/// Remembers that an operator accepts the loss that [`check_storage`] has found. Otherwise the next start would refuse it again,
/// if the node has not voted until then.
pub fn accept_loss(log: &Log) {
    // A failure ends the use of the log anyway.
    log.save_named(LOSS_ACCEPTED, Some(bytes::Bytes::new()), Box::new(drop));
}

/// What a log and a state are together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// They go on as they are.
    Whole,
    /// The log no longer holds the entries that the state lacks; why that is known.
    StateLost(String),
}

/// The log id in the place of the entries that were cut; none if the log still begins with the first entry.
pub(crate) fn purged(log: &Log) -> Result<Option<LogId>, Error> {
    decode_stored(Ok(log.purged_marker()))
}

fn name(index: Option<u64>) -> String {
    index.map_or_else(|| "none".to_owned(), |index| index.to_string())
}

fn index(bytes: Option<bytes::Bytes>) -> Result<Option<u64>, storage::Error> {
    let log_id = bytes.map(|bytes| decode::<LogId>(&bytes)).transpose();
    let log_id = log_id.map_err(|_| storage::Error::Corrupt("a log id".to_owned()))?;
    Ok(log_id.map(|log_id| log_id.index()))
}

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::entry::RaftEntry as _;
    use openraft::storage::{RaftLogStorage as _, RaftLogStorageExt as _};
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;
    use crate::replication::blocking::Blocking;
    use crate::replication::types::LogEntry;
    use crate::telemetry::Telemetry;

    struct Disk;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Disk {
        async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().unwrap();
            let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap();
            let data = Data::open(&dir.path().join("data"), 8 << 20).unwrap();
            let (applied, telemetry) = (Arc::new(Applied::of(&data).unwrap()), Telemetry::disabled());
            let blocking = Blocking::Threads;
            let log_store = LogStore { log, telemetry: telemetry.clone(), blocking: blocking.clone() };
            Ok((dir, log_store, StateMachine { data, applied, telemetry, blocking }))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_stores_conform_to_what_openraft_expects() {
        Suite::test_all(Disk).await.unwrap();
    }

    #[test]
    fn a_loss_that_was_accepted_is_not_found_again_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap();
        let data = Data::open(&dir.path().join("data"), 8 << 20).unwrap();
        let applied = LogId::new(*crate::replication::types::Vote::new(1, 1).leader_id(), 7);
        let meta = crate::replication::types::encode(&applied).unwrap();
        data.apply(&[], &[(APPLIED, meta)]).unwrap();
        let log = open();
        let found = check_storage(&log, &data, dir.path());
        assert!(matches!(found, Err(storage::Error::Lost { .. })), "{found:?}");
        accept_loss(&log);
        log.close();
        drop(log);
        assert_eq!(check_storage(&open(), &data, dir.path()).unwrap(), Condition::Whole);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_commit_position_beyond_the_end_of_the_log_is_forgotten() {
        let (_dir, mut log_store, _) = Disk.build().await.unwrap();
        let log_id = |index| LogId::new(*crate::replication::types::Vote::new(1, 1).leader_id(), index);
        let entries = [LogEntry::new_blank(log_id(0)), LogEntry::new_blank(log_id(1))];
        log_store.blocking_append(entries).await.unwrap();
        for (committed, found) in [(1, Some(log_id(1))), (2, None)] {
            log_store.save_committed(Some(log_id(committed))).await.unwrap();
            assert_eq!(log_store.read_committed().await.unwrap(), found);
        }
    }
}
