//! How long ago this node last knew its state to be up to date, for reads that accept stale data.

use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::Instant as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::raft::engine::RaftHandle;

/// The staleness of a node that has never been up to date since it started.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// When this node last knew its state to be up to date.
pub(super) struct Freshness {
    raft: Arc<RaftHandle>,
    last: Mutex<Option<Instant>>,
}

impl Freshness {
    pub(super) fn new(raft: Arc<RaftHandle>) -> Self {
        Self { raft, last: Mutex::new(None) }
    }

    /// Records that the state is up to date now.
    pub(super) fn note(&self) {
        *self.last.lock() = Some(Instant::now());
    }

    /// Time since the state was last known to be up to date. On a leader, time since a majority last acknowledged it.
    pub(super) fn staleness(&self) -> Duration {
        let acked = self.raft.with_metrics(|metrics| match metrics.state {
            ServerState::Leader => metrics.last_quorum_acked.map(|acked| acked.elapsed()),
            _ => None,
        });
        acked.unwrap_or_else(|| self.last.lock().map_or(NEVER, |last| last.elapsed()))
    }
}
