//! The consensus engine under this node's id.
//!
//! A node may take another id while it runs (see `cluster/identity`). The engine is then rebuilt on the same databases.

use std::collections::BTreeMap;
use std::sync::Arc;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::Fatal;
use parking_lot::RwLock;

use super::log_store::LogStore;
use super::network::NetworkFactory;
use super::state_machine::{Applied, StateMachine};
use crate::replication::blocking::Blocking;
use crate::replication::peer::protocol::Transport;
use crate::replication::types::{LogId, Metrics, TypeConfig};
use crate::storage::{Data, Log};
use crate::telemetry::Telemetry;

/// openraft's handle on a running engine.
pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Everything an engine is built from but the node's id.
pub(crate) struct EngineParts {
    pub(crate) config: Arc<openraft::Config>,
    pub(crate) log: Log,
    pub(crate) data: Data,
    pub(crate) applied: Arc<Applied>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) telemetry: Telemetry,
    pub(crate) blocking: Blocking,
}

impl EngineParts {
    /// Starts an engine. It stands for no election until that is enabled.
    async fn build(&self, id: u64) -> Result<Running, Fatal<TypeConfig>> {
        let (telemetry, blocking) = (self.telemetry.clone(), self.blocking.clone());
        let network = NetworkFactory { transport: self.transport.clone(), telemetry, blocking };
        let log_store = LogStore { log: self.log.clone(), telemetry: self.telemetry.clone() };
        let (telemetry, blocking) = (self.telemetry.clone(), self.blocking.clone());
        let (data, applied) = (self.data.clone(), self.applied.clone());
        let state_machine = StateMachine { data, applied, telemetry, blocking };
        let raft = Raft::new(id, self.config.clone(), network, log_store, state_machine).await?;
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
    /// Starts the engine under an id.
    pub(crate) async fn start(parts: EngineParts, id: u64) -> Result<Self, Fatal<TypeConfig>> {
        let running = RwLock::new(parts.build(id).await?);
        Ok(Self { parts, running })
    }

    /// Replaces the engine by one under another id.
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

    /// The engine.
    pub(crate) fn raft(&self) -> Raft {
        self.running.read().raft.clone()
    }

    /// The id under which the engine runs. It is the node's own only once the node is [identified].
    ///
    /// [identified]: crate::replication::cluster::identity::Stage
    pub(crate) fn id(&self) -> u64 {
        self.running.read().id
    }

    /// A copy of the engine's metrics.
    pub(crate) fn metrics(&self) -> Metrics {
        self.with_metrics(Clone::clone)
    }

    /// Reads the engine's metrics without a copy.
    pub(crate) fn with_metrics<T>(&self, read: impl FnOnce(&Metrics) -> T) -> T {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        read(&metrics)
    }

    /// The index of the last applied log entry.
    pub(crate) fn applied(&self) -> &Applied {
        &self.parts.applied
    }

    /// Whether the log or the state contains a membership, though not necessarily with this node in it.
    pub(crate) fn is_initialized(&self) -> bool {
        self.with_metrics(|metrics| metrics.membership_config.voter_ids().next().is_some())
    }

    /// Whether this node is the cluster's only voter.
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

    /// Number of entries in this node's log.
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

#[cfg(test)]
mod tests {
    use openraft::StorageError;
    use openraft::testing::log::{StoreBuilder, Suite};
    use tempfile::TempDir;

    use super::*;

    /// Opens new stores in a directory that lives as long as the guard.
    struct Disk;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Disk {
        async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().unwrap();
            let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap();
            let data = Data::open(&dir.path().join("data"), 8 << 20).unwrap();
            let (applied, telemetry) = (Arc::new(Applied::of(&data).unwrap()), Telemetry::disabled());
            let log_store = LogStore { log, telemetry: telemetry.clone() };
            Ok((dir, log_store, StateMachine { data, applied, telemetry, blocking: Blocking::Threads }))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_stores_conform_to_what_openraft_expects() {
        Suite::test_all(Disk).await.unwrap();
    }
}
